"""Classifier directories: ``classifier.json`` and ``model.safetensors``, all that predicting needs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError
from shiftproof.models.checkpoints import read_state_dict, write_state_dict
from shiftproof.models.classifier import Classifier, fingerprint, rebuild
from shiftproof.storage import read_json, write_json

FORMAT = 1


def save_classifier(classifier: Classifier, directory: str | Path) -> Path:
    """Writes a classifier directory; ``classifier.json`` comes last, so that a directory with it is whole."""
    directory = Path(directory)
    write_state_dict(classifier.state_dict(), directory / "model.safetensors")
    write_json(
        directory / "classifier.json",
        {
            "format": FORMAT,
            "architecture": dict(classifier.architecture),
            "preprocessing": asdict(classifier.preprocessing),
            "classes": {"ids": classifier.classes.ids, "names": classifier.classes.names},
            "prompts": classifier.prompts,
            "head": classifier.head,
            "logit_scale": classifier.logit_scale,
            "alpha": classifier.alpha,
            "source": classifier.source,
            "parents": [dict(parent) for parent in classifier.parents],
            "training": dict(classifier.training),
            "fingerprint": fingerprint(classifier),
        },
    )
    return directory


def load_classifier(directory: str | Path) -> Classifier:
    """Reads a classifier directory, in evaluation mode on the CPU.

    Raises an InputError where a file is missing or damaged, also where the weights are not the ones that
    ``classifier.json`` was written with.
    """
    directory = Path(directory)
    if not (directory / "classifier.json").is_file():
        raise InputError(
            f"{directory} is no classifier directory: it has no classifier.json. "
            "Name one that shiftproof wrote, e.g. RUN/ensemble."
        )
    stored = read_json(directory / "classifier.json")
    if stored.get("format") != FORMAT:
        raise InputError(f"{directory} has the format {stored.get('format')!r}; this version reads {FORMAT}.")
    try:
        written_with = stored["fingerprint"]
        classifier = rebuild(_fields(stored), read_state_dict(directory / "model.safetensors"))
    except KeyError as error:
        raise InputError(f"{directory}/classifier.json lacks {error}. Restore it or write it anew.") from error
    if fingerprint(classifier) != written_with:
        raise InputError(
            f"the weights in {directory} are not those that its classifier.json was written with. "
            "Restore both files from one source."
        )
    return classifier


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    preprocessing: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored["preprocessing"].items()
    }
    return {
        "architecture": stored["architecture"],
        "preprocessing": Preprocessing(**preprocessing),
        "classes": ClassSpace(tuple(stored["classes"]["ids"]), tuple(stored["classes"]["names"])),
        "prompts": tuple(stored["prompts"]),
        "head": stored["head"],
        "logit_scale": stored["logit_scale"],
        "alpha": stored["alpha"],
        "source": stored["source"],
        "parents": tuple(stored["parents"]),
        "training": stored["training"],
    }
