"""Everything that one run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.paths import PathRecord

MODELS = ("zero_shot", "fine_tuned", "ensemble")


@dataclass(frozen=True)
class RunRecord:
    """What a whole run measured; ``summary.json`` is its JSON form.

    ``models[name][set]`` for zero_shot, fine_tuned and ensemble; the reference's numbers are its test
    split's. ``kinds`` says of every shift whether it is natural or synthetic. ``alpha`` is the chosen one;
    what each set itself would have chosen is the path's ``oracle()``.
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

    @property
    def sets(self) -> tuple[str, ...]:
        """The reference and then the shifts."""
        return (self.reference, *self.shifts)

    def shifts_of(self, kind: str) -> tuple[str, ...]:
        """The shifts that are natural, or synthetic."""
        return tuple(name for name in self.shifts if self.kinds[name] == kind)

    def mean_accuracy(self, model: str, sets: tuple[str, ...]) -> float | None:
        """A model's mean accuracy over sets, or None where there are none."""
        return sum(self.models[model][name].accuracy for name in sets) / len(sets) if sets else None
