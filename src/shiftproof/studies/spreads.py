"""How much accuracy varies over the configurations of a study, and how much less it varies with weight ensembling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shiftproof.evaluation.intervals import LEVEL, bootstrap_spreads
from shiftproof.records.studies import STUDIED, SpreadRecord, StudyMember

_NOTHING = 1e-12  # a smaller standard deviation counts as zero
Floats = NDArray[np.float64]


def measure_spreads(
    members: Sequence[StudyMember], reference: str, averaged: tuple[str, ...]
) -> tuple[SpreadRecord, ...]:
    """Measures the spread of each studied model over the configurations, on the reference and on the shifts' mean.

    The spread is the standard deviation of accuracy (a fraction) over the configurations, after each configuration's
    seeds have been averaged, with a bootstrap interval over configurations. ``averaged`` names the shifts of the mean.
    Returns an empty tuple if fewer than three configurations have finished.
    """
    configurations = list(dict.fromkeys(member.configuration for member in members))
    records = []
    for what, sets in (("reference", (reference,)), ("mean", averaged)):
        if len(configurations) < 3 or not sets:
            continue
        series = {
            model: np.array(
                [
                    np.mean([member.accuracy(model, sets) for member in members if member.configuration == name])
                    for name in configurations
                ]
            )
            for model in STUDIED
        }
        resampled = bootstrap_spreads(series)
        for model, values in series.items():
            deviation = float(values.std(ddof=1))
            ratio, ratio_interval = _ratio(series["fine_tuned"], values, resampled["fine_tuned"], resampled[model])
            records.append(
                SpreadRecord(
                    model=model,
                    sets=what,
                    deviation=deviation,
                    interval=_percentiles(resampled[model]),
                    lowest=float(values.min()),
                    highest=float(values.max()),
                    ratio=ratio,
                    ratio_interval=ratio_interval,
                )
            )
    return tuple(records)


def _ratio(
    base: Floats, other: Floats, base_resampled: Floats, other_resampled: Floats
) -> tuple[float, tuple[float, float]] | tuple[None, None]:
    """Returns the ratio of the base's deviation to the other's, with its interval; None if the other does not vary."""
    if other.std(ddof=1) < _NOTHING:
        return None, None
    # A resample that repeats a single configuration has no spread, so it is left out.
    varied = (base_resampled > _NOTHING) | (other_resampled > _NOTHING)
    ratios = base_resampled[varied] / np.maximum(other_resampled[varied], _NOTHING)
    return float(base.std(ddof=1) / other.std(ddof=1)), _percentiles(ratios)


def _percentiles(draws: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
