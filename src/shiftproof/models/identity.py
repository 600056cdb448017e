"""The identity of a classifier: a fingerprint of everything that decides its predictions, and how it is compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from shiftproof.data.loading import Preprocessing
from shiftproof.models.classifier import Classifier, Task, require_classifier

VERSION = 2
_PREFIX = f"v{VERSION}:"
# The roles of the parents that a fine-tuned classifier, or an ensemble with it, was fine-tuned from.
_START_ROLES = ("start", "zero_shot")


def fingerprint(classifier: Classifier) -> str:
    """Returns ``v2:`` and a SHA-256 of everything that decides a prediction.

    It covers class ids, preprocessing, architecture and weights. Two classifiers with the same fingerprint compute
    the same logits; their provenance may differ.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> len(fingerprint(zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))))
    67
    """
    require_classifier(classifier)
    return fingerprint_of(classifier, classifier.state_dict())


def fingerprint_of(task: Task, tensors: Mapping[str, Tensor]) -> str:
    """Returns the fingerprint of a classifier whose weights may still be in a file.

    It hashes a canonical JSON document, which holds the version, the task, and the name, dtype and shape of every
    tensor in the order of the names, and then the bytes of the tensors in that order.
    """
    ordered = sorted(tensors.items())
    document = {
        "version": VERSION,
        "classes": task.classes.ids,
        "preprocessing": asdict(task.preprocessing),
        "architecture": task.architecture,
        "tensors": [
            {"name": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": tuple(tensor.shape)}
            for name, tensor in ordered
        ],
    }
    digest = hashlib.sha256(_canonical_json(document))
    for _, tensor in ordered:
        digest.update(_bytes_of(tensor))
    return f"{_PREFIX}{digest.hexdigest()}"


def first_fingerprint(classifier: Classifier) -> str:
    """Returns the fingerprint in its first form, which versions before 0.2 wrote: 64 hexadecimal digits."""
    return _first_fingerprint_of(classifier, classifier.state_dict())


def has_fingerprint(classifier: Classifier, recorded: object) -> bool:
    """Returns whether a recorded fingerprint, in whichever form it was written, is that of a classifier."""
    return is_fingerprint_of(classifier, classifier.state_dict(), recorded)


def is_fingerprint_of(task: Task, tensors: Mapping[str, Tensor], recorded: object) -> bool:
    """Returns whether a recorded fingerprint is that of a classifier whose weights may still be in a file."""
    if not isinstance(recorded, str):
        return False
    return recorded == (fingerprint_of if recorded.startswith(_PREFIX) else _first_fingerprint_of)(task, tensors)


def is_first_form(recorded: str) -> bool:
    """Returns whether a recorded fingerprint has the form that versions before 0.2 wrote.

    >>> is_first_form("0" * 64), is_first_form("v2:" + "0" * 64)
    (True, False)
    """
    return not recorded.startswith(_PREFIX)


def parent_entry(role: str, classifier: Classifier) -> dict[str, Any]:
    """Returns what a classifier's ``parents`` record about one of them."""
    return {"role": role, "fingerprint": fingerprint(classifier), "source": classifier.source}


def recorded_starts(classifier: Classifier) -> list[Mapping[str, Any]]:
    """Returns those of a classifier's ``parents`` that it was fine-tuned from."""
    return [parent for parent in classifier.parents if parent.get("role") in _START_ROLES]


def _first_fingerprint_of(task: Task, tensors: Mapping[str, Tensor]) -> str:
    architecture = sorted(task.architecture.items(), key=str)
    described = f"[{task.classes.ids!r}, {_first_description(task.preprocessing)}, {architecture!r}]"
    digest = hashlib.sha256(described.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def _canonical_json(document: Mapping[str, Any]) -> bytes:
    """One text for equal values: sorted keys, no spaces, ASCII, and whole numbers without a decimal point."""
    text = json.dumps(_plain(document), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return text.encode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _bytes_of(tensor: Tensor) -> Any:
    plain = tensor.detach().cpu().contiguous()
    return plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b""


def _first_description(preprocessing: Preprocessing) -> str:
    # Versions before there was a crop wrote the fingerprint without it, so a crop of 1 is left out.
    crop = f", crop_share={preprocessing.crop_share!r}"
    return repr(preprocessing).replace(crop, "") if preprocessing.crop_share == 1 else repr(preprocessing)
