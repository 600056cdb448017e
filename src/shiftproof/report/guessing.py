"""Models that guess: recognised by an accuracy at the level of chance, or by one answer to nearly every image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.report.tables import accuracy_cell, per_cent

_NEARLY_ALL = 0.95
_LISTED = 4  # sets that a sentence names


@dataclass(frozen=True)
class Guessing:
    """How a model guesses: ``kind`` is ``constant``, ``chance`` or ``below``, and ``detail`` has the numbers."""

    kind: str
    detail: str


def guessing_of(record: AccuracyRecord) -> Guessing | None:
    """Returns how the model of a record guesses on its set, or None if it does not or cannot be judged.

    A model is constant if it names one class for at least 95 % of the images, unless about as many belong to one class.
    It is at chance if the interval of its accuracy includes 1 / K for K classes, and below if the interval lies under
    it. Records of version 0.1 do not have K, and are not judged.

    >>> guessing_of(AccuracyRecord("zero_shot", 0.0, "photo", 0.3, (0.2, 0.41), 90, class_count=3))
    Guessing(kind='chance', detail='30.0 (20.0–41.0)')
    >>> guessing_of(AccuracyRecord("zero_shot", 0.0, "photo", 0.9, (0.8, 0.95), 90, class_count=3)) is None
    True
    """
    constant = record.top_share is not None and record.top_share >= _NEARLY_ALL
    if constant and (record.majority_share or 0.0) < _NEARLY_ALL:
        return Guessing("constant", f"“{record.top_class}” for {per_cent(record.top_share or 0.0)} %")
    if record.class_count is None or record.interval[0] > 1 / record.class_count:
        return None
    kind = "below" if record.interval[1] < 1 / record.class_count else "chance"
    return Guessing(kind, accuracy_cell(record.accuracy, record.interval))


def guessing_sentences(name: str, records: Iterable[AccuracyRecord]) -> list[str]:
    """Returns a sentence for each way in which a model guesses on some of its sets; ``name`` is how to call the model.

    >>> guessing_sentences("zero-shot", [AccuracyRecord("m", 0.0, "photo", 0.3, (0.2, 0.41), 90, class_count=3)])
    ['Zero-shot cannot be told from guessing (1 of 3 classes, 33.3 %) on photo: 30.0 (20.0–41.0).']
    """
    guesses = [(record, guess) for record in records if (guess := guessing_of(record)) is not None]
    beginnings = {
        "constant": "names one class for nearly all images",
        "chance": "cannot be told from guessing",
        "below": "is worse than guessing, so its classes may not be those of the labels",
    }
    sentences = []
    subject = name[:1].upper() + name[1:]
    for kind, beginning in beginnings.items():
        alike: dict[int | None, list[tuple[str, str]]] = {}
        for record, guess in guesses:
            if guess.kind == kind:  # sets may have different chance levels
                count = None if kind == "constant" else record.class_count
                alike.setdefault(count, []).append((record.set, guess.detail))
        for count, details in alike.items():
            level = f" (1 of {count} classes, {per_cent(1 / count)} %)" if count else ""
            sentences.append(f"{subject} {beginning}{level} on {_joined(details)}.")
    return sentences


def _joined(entries: Sequence[tuple[str, str]]) -> str:
    shown = "; ".join(f"{name}: {detail}" for name, detail in entries[:_LISTED])
    return shown if len(entries) <= _LISTED else f"{shown}; and {len(entries) - _LISTED} more"
