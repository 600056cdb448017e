"""Accuracy along an alpha path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftproof.errors import InputError


def same_alpha(first: float, second: float) -> bool:
    """Whether two alphas are the same but for the rounding of their decimal forms.

    >>> same_alpha(0.1 + 0.2, 0.3), same_alpha(0.3, 0.31)
    (True, False)
    """
    return abs(first - second) < 1e-9


@dataclass(frozen=True)
class PathPoint:
    """One alpha of a path: accuracy on the reference's validation split and on every test set, with intervals."""

    alpha: float
    validation: float
    accuracy: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    validation_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class PathRecord:
    """An alpha path, from zero-shot (alpha 0) to fine-tuned (alpha 1), in rising order of alpha."""

    reference: str
    shifts: tuple[str, ...]
    points: tuple[PathPoint, ...]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas in rising order."""
        return tuple(point.alpha for point in self.points)

    def at(self, alpha: float) -> PathPoint:
        """The point at an alpha that was evaluated; an InputError names those that were."""
        for point in self.points:
            if same_alpha(point.alpha, alpha):
                return point
        raise InputError(f"alpha {alpha} is not on the path. Evaluated: {', '.join(map(str, self.alphas))}.")

    def oracle(self) -> dict[str, float]:
        """For every set, the alpha that is best on it, ties toward zero-shot: for the report only."""
        names = (self.reference, *self.shifts)
        return {name: max(self.points, key=lambda p: (p.accuracy[name], -p.alpha)).alpha for name in names}
