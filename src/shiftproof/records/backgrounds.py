"""Records of how much models rely on the background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftproof.records.accuracy import GroupRecord


@dataclass(frozen=True)
class BackgroundRecord:
    """One model on recombined objects and backgrounds: its accuracy by variant, and its background gap.

    ``gap`` is the accuracy on mixed-same minus that on mixed-random, over the ``gap_n`` samples that both have;
    ``gap_interval`` resamples whole classes.
    """

    variants: Mapping[str, GroupRecord]
    gap: float
    gap_interval: tuple[float, float]
    gap_n: int


@dataclass(frozen=True)
class BackgroundStudy:
    """How much models rely on the background of one set.

    ``chance`` is 1 / classes, the accuracy on only-background of a model that ignores the background; ``level`` is that
    of every interval.
    """

    set: str
    chance: float
    seed: int
    level: float
    models: Mapping[str, BackgroundRecord]
