"""The networks that the diagnosis of a run trains, each once: two halves, two from random weights, and baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from shiftproof.data.sets import joined
from shiftproof.data.suites import ShiftSuite, load_suite
from shiftproof.diagnosis.baselines import (
    BASELINES,
    BaselineSettings,
    finetune_half,
    half_settings,
    require_trained_with,
    train_baseline,
    train_from_scratch,
)
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.records.diagnosis import HALVES
from shiftproof.runs.finished import FinishedRun
from shiftproof.training.hardware import LoopSettings

# Networks from random weights are trained end to end, whatever recipe the run used.
_SCRATCH = FinetuneSettings(epochs=8, lr=2e-3, batch_size=128, warmup_steps=20)
# They are trained on an embedded suite's training views of this many seeds.
_VIEW_SEEDS = 8


@dataclass(frozen=True)
class _Training:
    """How a network is trained, and the function that trains it."""

    settings: FinetuneSettings
    seed: int
    train: Callable[[], Classifier]


def half_networks(run: FinishedRun) -> tuple[Classifier, Classifier]:
    """Fine-tunes as the run did on each of two halves of the reference, or loads both from ``RUN/diagnosis``."""
    first, second = (_trained(run, name, _half(run, index)) for index, name in enumerate(HALVES))
    return first, second


def scratch_networks(run: FinishedRun) -> tuple[Classifier, Classifier]:
    """Trains the run's architecture from two random starts on the reference, or loads both from ``RUN/diagnosis``."""
    first, second = (_trained(run, f"scratch {index + 1}", _scratch(run, index)) for index in range(2))
    return first, second


def baseline_networks(run: FinishedRun) -> dict[str, Classifier]:
    """Trains networks of several sizes on the reference alone, or loads them from ``RUN/diagnosis``, by name."""
    return {entry.name: _trained(run, f"baseline {entry.name}", _baseline(run, entry)) for entry in BASELINES}


def _trained(run: FinishedRun, name: str, training: _Training) -> Classifier:
    """Trains a network, or loads the one that an earlier diagnosis of this run trained in the same way."""
    folder = run.directory.trained(name)
    if not (folder / "classifier.json").is_file():
        save_classifier(training.train(), folder, overwrite=True)
    network = load_classifier(folder)
    remedy = "Delete that folder to train it again."
    require_trained_with(network, run.suite.classes, training.settings, training.seed, folder, remedy)
    return network


def _half(run: FinishedRun, index: int) -> _Training:
    start, settings, seed = run.models["zero_shot"], run.run_file.finetune, run.run_file.seed
    return _Training(
        half_settings(settings),
        seed,
        lambda: finetune_half(start, run.suite, settings, index, seed=seed, device=run.device),
    )


def _scratch(run: FinishedRun, index: int) -> _Training:
    start, seed, run_settings = run.models["zero_shot"], run.run_file.seed + 1000 * (index + 1), run.run_file.finetune
    # The run's use of the machine applies, and so does a smaller batch, which the memory may require.
    machine = {field.name: getattr(run_settings, field.name) for field in fields(LoopSettings)}
    settings = replace(_SCRATCH, **machine, batch_size=min(run_settings.batch_size, _SCRATCH.batch_size))
    return _Training(
        settings,
        seed,
        lambda: train_from_scratch(start, _with_many_views(run), settings, seed=seed, device=run.device),
    )


def _baseline(run: FinishedRun, entry: BaselineSettings) -> _Training:
    start, seed = run.models["zero_shot"], run.run_file.seed
    return _Training(
        entry.settings,
        seed,
        lambda: train_baseline(start, _with_many_views(run), entry, seed=seed, device=run.device),
    )


def _with_many_views(run: FinishedRun) -> ShiftSuite:
    """The suite, with the training views of several seeds if it has any, since random weights need many views."""
    suite, name, seed = run.suite, run.run_file.suite, run.run_file.seed
    if not isinstance(name, str) or not suite.views_by_seed:
        return suite
    draws = [load_suite(name, seed=_VIEW_SEEDS * seed + number) for number in range(_VIEW_SEEDS)]
    train = joined([draw.reference.train.relabelled(suite.classes) for draw in draws], "train")
    return replace(suite, reference=replace(suite.reference, train=train))
