"""Classifier directories: ``classifier.json`` and ``model.safetensors``, all that predicting needs."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, listed
from shiftproof.models.classifier import Classifier, rebuild, require_classifier
from shiftproof.models.identity import fingerprint, is_fingerprint_of
from shiftproof.models.prompts import Prompts, stored_prompts
from shiftproof.storage import expanded, read_json, require_directory_name, sync_directory, write_json
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

FORMAT = 1
_TEXT = "text_tower.safetensors"
_STAGING = ".replacement"  # the folder in a classifier directory in which a new classifier is written
# A directory without the first is none of a classifier; it is the last to be written and moved.
CLASSIFIER_FILES = ("classifier.json", "model.safetensors", _TEXT)


@dataclass(frozen=True)
class Card:
    """What ``classifier.json`` says: a classifier's fields without its network."""

    architecture: Mapping[str, Any]
    preprocessing: Preprocessing
    classes: ClassSpace
    prompts: Prompts
    head: str
    logit_scale: float
    alpha: float | None
    source: str
    parents: tuple[Mapping[str, Any], ...]
    training: Mapping[str, Any]
    fingerprint: str


def save_classifier(classifier: Classifier, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Writes a classifier directory; ``classifier.json`` comes last, so that a directory with it is complete.

    Raises an InputError if the directory holds a classifier already, unless ``overwrite`` replaces it. The earlier
    classifier stays until all files of the new one are on disk: a process that is killed leaves the one or the other.

    If the head was rebuilt, ``text_tower.safetensors`` is written too: predicting does not need it, but interpolating
    both towers does.
    """
    require_classifier(classifier)
    directory = expanded(directory)
    require_directory_name(directory, "save_classifier")
    existing = [name for name in CLASSIFIER_FILES if (directory / name).exists()]
    if existing and not overwrite:
        raise InputError(
            f"{directory} already holds {listed(existing)}. Choose another `directory`, or add `overwrite=True` to "
            "replace them."
        )
    staging = directory / _STAGING
    shutil.rmtree(staging, ignore_errors=True)  # what a process that was killed had not completed
    try:
        write_state_dict(classifier.state_dict(), staging / "model.safetensors")
        if classifier.text is not None:
            write_state_dict(classifier.text, staging / _TEXT)
        values = {field.name: getattr(classifier, field.name) for field in fields(Card) if field.name != "fingerprint"}
        write_card(Card(**values, fingerprint=fingerprint(classifier)), staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _move_into_place(directory)
    return directory


def _move_into_place(directory: Path) -> None:
    """Moves the files of a complete staged classifier into its directory, ``classifier.json`` last.

    Does nothing where none is staged. As long as the staged ``classifier.json`` is there, a process that was killed can
    be succeeded by another one, which moves the rest.
    """
    staging = directory / _STAGING
    if not (staging / "classifier.json").is_file():
        return
    sync_directory(staging)
    if read_json(staging / "classifier.json")["head"] != "rebuilt" and not (staging / _TEXT).is_file():
        (directory / _TEXT).unlink(missing_ok=True)  # it is the earlier classifier's
    for name in reversed(CLASSIFIER_FILES):
        with contextlib.suppress(FileNotFoundError):  # it has been moved
            os.replace(staging / name, directory / name)
    sync_directory(directory)
    shutil.rmtree(staging, ignore_errors=True)


def write_card(card: Card, directory: Path) -> None:
    """Writes ``classifier.json``."""
    write_json(
        directory / "classifier.json",
        {
            "format": FORMAT,
            "architecture": dict(card.architecture),
            "preprocessing": asdict(card.preprocessing),
            "classes": {"ids": card.classes.ids, "names": card.classes.names},
            "prompts": card.prompts,
            "head": card.head,
            "logit_scale": card.logit_scale,
            "alpha": card.alpha,
            "source": card.source,
            "parents": [dict(parent) for parent in card.parents],
            "training": dict(card.training),
            "fingerprint": card.fingerprint,
        },
    )


def load_classifier(directory: str | Path, *, channels_last: bool | None = None) -> Classifier:
    """Reads a classifier directory, in evaluation mode on the CPU.

    ``channels_last`` is the memory format in which the classifier will run; None chooses by the kind of network.
    Raises an InputError if a file is missing or damaged, or if the weights are not those that ``classifier.json`` was
    written with.
    """
    directory = expanded(directory)
    card = read_card(directory)
    needed = ["model.safetensors", *([_TEXT] if card.head == "rebuilt" else [])]
    if missing := [name for name in needed if not (directory / name).is_file()]:
        raise InputError(
            f"the classifier directory {directory} is incomplete: {listed(missing)} is missing. Restore the file, or "
            "write the classifier again."
        )
    values = {field.name: getattr(card, field.name) for field in fields(Card) if field.name != "fingerprint"}
    classifier = rebuild({**values, "channels_last": channels_last}, read_state_dict(directory / "model.safetensors"))
    if card.head == "rebuilt":
        classifier = replace(classifier, text=read_state_dict(directory / _TEXT))
    require_weights_of_card(card, classifier.state_dict(), directory)
    return classifier


def require_weights_of_card(card: Card, tensors: Mapping[str, Tensor], directory: Path) -> None:
    """Raises an InputError unless the weights in a directory are those that its card was written with."""
    if not is_fingerprint_of(card, tensors, card.fingerprint):
        raise InputError(
            f"the weights in {directory} are not those that its classifier.json was written with. "
            "Restore both files from one source."
        )


def read_card(directory: str | Path) -> Card:
    """Reads ``classifier.json``; raises an InputError that names what is missing.

    A classifier that a killed process had completed, but not moved into place, is moved there first.
    """
    directory = expanded(directory)
    _move_into_place(directory)
    if not (directory / "classifier.json").is_file():
        reason = "it has no classifier.json" if directory.exists() else "it does not exist"
        raise InputError(
            f"{directory} is not a classifier directory: {reason}. Name one that shiftproof wrote, e.g. RUN/ensemble."
        )
    stored = read_json(directory / "classifier.json")
    if not isinstance(stored, dict):
        raise InputError(f"{directory}/classifier.json holds no settings. Restore or rewrite it.")
    if stored.get("format") != FORMAT:
        raise InputError(f"{directory} has the format {stored.get('format')!r}; this version reads {FORMAT}.")
    try:
        return Card(**_fields(stored))
    except KeyError as error:
        raise InputError(f"{directory}/classifier.json lacks {error}. Restore or rewrite it.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{directory}/classifier.json is damaged ({error}). Restore or rewrite it.") from error


def _fields(stored: dict[str, Any]) -> dict[str, Any]:
    preprocessing: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in stored["preprocessing"].items()
    }
    return {
        "fingerprint": stored["fingerprint"],
        "architecture": stored["architecture"],
        "preprocessing": Preprocessing(**preprocessing),
        "classes": ClassSpace(tuple(stored["classes"]["ids"]), tuple(stored["classes"]["names"])),
        "prompts": stored_prompts(stored["prompts"]),
        "head": stored["head"],
        "logit_scale": stored["logit_scale"],
        "alpha": stored["alpha"],
        "source": stored["source"],
        "parents": tuple(stored["parents"]),
        "training": stored["training"],
    }
