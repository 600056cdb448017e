"""What a run file names, loaded and checked: the suite, the start, and the versions that a run records."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from shiftproof.data.suites import ShiftSuite, load_suite, own_suite
from shiftproof.finetuning.recipes import require_trainable_batches
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.directories import load_classifier
from shiftproof.models.zero_shot import zero_shot_classifier
from shiftproof.runs.file import RunFile, SuiteFile

_VERSIONED = ("shiftproof", "torch", "torchvision", "open_clip_torch", "timm", "numpy")


def load_run_suite(run_file: RunFile) -> ShiftSuite:
    """Loads the embedded suite or the user's own data, with held-out sets of at most ``limit`` images."""
    if isinstance(run_file.suite, SuiteFile):
        sections = run_file.suite.model_dump()
        suite = own_suite(sections["reference"], sections["shifts"], name=sections["name"], seed=run_file.seed)
    else:
        suite = load_suite(run_file.suite, seed=run_file.seed)
    return suite.limited(run_file.limit)


def build_start(run_file: RunFile, suite: ShiftSuite) -> Classifier:
    """Loads the start: a classifier directory, or a model with a zero-shot head for the suite's classes.

    Raises an InputError for a model with random weights, unless the run file asks for them.
    """
    if (Path(run_file.model) / "classifier.json").is_file():
        return load_classifier(run_file.model)
    clip = load_clip(run_file.model, seed=run_file.seed, random_weights=run_file.random_weights)
    return zero_shot_classifier(clip, suite.classes, run_file.prompts)


def require_trainable(run_file: RunFile, suite: ShiftSuite, start: Classifier | None) -> None:
    """Raises an InputError where an image of any set is missing, or where batch norm would see a single image.

    Otherwise a missing file of a shift would be noticed only after the fine-tuning.
    """
    suite.require_readable()
    if start is not None:
        require_trainable_batches(start, run_file.finetune, seed=run_file.seed)


def versions() -> dict[str, str]:
    """Returns the versions of the packages that affect results."""
    return {name: version(name) for name in _VERSIONED}
