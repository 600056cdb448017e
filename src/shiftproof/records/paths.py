"""Records of the accuracy along an alpha path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftproof.errors import InputError


def same_alpha(first: float, second: float) -> bool:
    """Whether two alphas are equal up to the rounding of their decimal forms.

    >>> same_alpha(0.1 + 0.2, 0.3), same_alpha(0.3, 0.31)
    (True, False)
    """
    return abs(first - second) < 1e-9


@dataclass(frozen=True)
class PathPoint:
    """The accuracies at one alpha of a path, on the reference's validation split and every test set, with intervals.

    ``interval_method`` says by test set how its interval was computed, as in ``AccuracyRecord``; it is empty in files
    of version 0.1, whose intervals are all Clopper-Pearson.
    """

    alpha: float
    validation: float
    accuracy: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    validation_interval: tuple[float, float] | None = None
    interval_method: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PathRecord:
    """An alpha path from the zero-shot model (alpha 0) to the fine-tuned one (alpha 1), sorted by alpha."""

    reference: str
    shifts: tuple[str, ...]
    points: tuple[PathPoint, ...]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas in increasing order."""
        return tuple(point.alpha for point in self.points)

    def at(self, alpha: float) -> PathPoint:
        """The point at an alpha; raises an InputError that lists the evaluated alphas if it is not one of them."""
        for point in self.points:
            if same_alpha(point.alpha, alpha):
                return point
        raise InputError(f"alpha {alpha} is not on the path. Evaluated: {', '.join(map(str, self.alphas))}.")

    def oracle(self) -> dict[str, float]:
        """The best alpha on every set, the lowest of equals; it reads the test sets, so it is for the report only."""
        names = (self.reference, *self.shifts)
        return {name: max(self.points, key=lambda p: (p.accuracy[name], -p.alpha)).alpha for name in names}
