"""How far the configurations of a study lie apart, and how much closer once weights are ensembled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shiftproof.evaluation.intervals import LEVEL, bootstrap_spreads
from shiftproof.records.studies import STUDIED, SpreadRecord, StudyMember

_NOTHING = 1e-12  # less is no deviation
Floats = NDArray[np.float64]


def measure_spreads(
    members: Sequence[StudyMember], reference: str, averaged: tuple[str, ...]
) -> tuple[SpreadRecord, ...]:
    """How far configurations lie apart, for each studied model, on the reference and on the shifts' mean.

    Nothing where fewer than three configurations have ended.
    """
    configurations = list(dict.fromkeys(member.configuration for member in members))
    found = []
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
        drawn = bootstrap_spreads(series)
        for model, values in series.items():
            deviation = float(values.std(ddof=1))
            ratio, ratio_interval = _ratio(series["fine_tuned"], values, drawn["fine_tuned"], drawn[model])
            found.append(
                SpreadRecord(
                    model=model,
                    sets=what,
                    deviation=deviation,
                    interval=_percentiles(drawn[model]),
                    lowest=float(values.min()),
                    highest=float(values.max()),
                    ratio=ratio,
                    ratio_interval=ratio_interval,
                )
            )
    return tuple(found)


def _ratio(
    base: Floats, own: Floats, base_drawn: Floats, own_drawn: Floats
) -> tuple[float, tuple[float, float]] | tuple[None, None]:
    """How many times larger a deviation is than another, with its interval; None where the other does not vary."""
    if own.std(ddof=1) < _NOTHING:
        return None, None
    telling = (base_drawn > _NOTHING) | (own_drawn > _NOTHING)  # a resample of one item alone tells nothing
    ratios = base_drawn[telling] / np.maximum(own_drawn[telling], _NOTHING)
    return float(base.std(ddof=1) / own.std(ddof=1)), _percentiles(ratios)


def _percentiles(draws: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)
