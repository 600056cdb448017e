"""How much models rely on the background."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftproof.records.accuracy import GroupRecord


@dataclass(frozen=True)
class BackgroundRecord:
    """One model on objects and backgrounds put together anew: accuracy by variant, and the background gap.

    ``gap`` is accuracy on mixed-same minus mixed-random, a fraction of the ``gap_n`` samples that both have;
    ``gap_interval`` comes from resampling whole classes.
    """

    variants: Mapping[str, GroupRecord]
    gap: float
    gap_interval: tuple[float, float]
    gap_n: int


@dataclass(frozen=True)
class BackgroundStudy:
    """How much models lean on the background of one set.

    ``chance`` is 1 / classes, what only-background gives to a model that draws nothing from the background; ``level``
    is that of every interval.
    """

    set: str
    chance: float
    seed: int
    level: float
    models: Mapping[str, BackgroundRecord]
