"""The record of everything that one run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.paths import PathRecord

MODELS = ("zero_shot", "fine_tuned", "ensemble")


@dataclass(frozen=True)
class RunRecord:
    """The measurements of a complete run; ``summary.json`` is its JSON form.

    ``models[name][set]`` are the evaluations of zero_shot, fine_tuned and ensemble; those on the reference use its
    test split. ``kinds`` says for every shift whether it is natural or synthetic. ``alpha`` is the chosen one; the best
    alpha on each set is given by the path's ``oracle()``. ``conversions`` count, by data name and conversion, the
    pictures that were not plain 8-bit RGB. ``start`` says what theta_0 is, which the record calls zero_shot whatever it
    is: its ``model`` and its ``head`` (``Classifier.head``); runs of earlier versions did not record it.
    """

    suite: str
    reference: str
    shifts: tuple[str, ...]
    kinds: Mapping[str, str]
    models: Mapping[str, Mapping[str, AccuracyRecord]]
    alpha: float
    alpha_rule: str
    path: PathRecord
    interval_level: float
    interval_method: str
    seconds: Mapping[str, float]
    seed: int
    versions: Mapping[str, str]
    conversions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the reference and of the shifts, in this order."""
        return (self.reference, *self.shifts)

    def shifts_of(self, kind: str) -> tuple[str, ...]:
        """The names of the shifts of a kind, "natural" or "synthetic"."""
        return tuple(name for name in self.shifts if self.kinds[name] == kind)

    def mean_accuracy(self, model: str, sets: tuple[str, ...]) -> float | None:
        """A model's mean accuracy over sets, or None if there are none."""
        return sum(self.models[model][name].accuracy for name in sets) / len(sets) if sets else None
