"""Mean accuracies of models over sets, with intervals, and the shifts by which a run is judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shiftproof.records.paths import PathPoint
from shiftproof.records.runs import RunRecord

MODEL_NAMES = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "ensemble"}


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a mean of accuracies, with the bounds of its interval (fractions)."""

    value: float
    low: float
    high: float


def mean_estimate(accuracies: Iterable[tuple[float, tuple[float, float]]]) -> Estimate:
    """Returns the mean of the accuracies of several sets, with an interval that is propagated from theirs.

    The sets are taken as independent samples. The distances from the accuracies to their bounds are added in
    quadrature and divided by the number of sets, separately for the lower and the upper bounds. The mean of the
    half-widths would be too wide. For one set the result is that set's interval.

    >>> mean_estimate([(0.5, (0.46, 0.53)), (0.7, (0.67, 0.74))])
    Estimate(value=0.6, low=0.575, high=0.625)
    """
    entries = list(accuracies)
    count = len(entries)
    value = sum(accuracy for accuracy, _ in entries) / count
    below = math.hypot(*(accuracy - low for accuracy, (low, _) in entries)) / count
    above = math.hypot(*(high - accuracy for accuracy, (_, high) in entries)) / count
    return Estimate(*(round(number, 12) for number in (value, value - below, value + above)))


def model_estimate(run: RunRecord, model: str, sets: Sequence[str]) -> Estimate:
    """Returns a model's mean accuracy over the sets, with its interval (fractions)."""
    records = run.models[model]
    return mean_estimate((records[name].accuracy, records[name].interval) for name in sets)


def point_estimate(point: PathPoint, sets: Sequence[str]) -> Estimate:
    """Returns the mean accuracy over the sets at one alpha of a path, with its interval (fractions)."""
    return mean_estimate((point.accuracy[name], point.interval[name]) for name in sets)


def headline_shifts(run: RunRecord) -> tuple[str, ...]:
    """Returns the shifts by which a run is judged: the natural ones, or all of them if none is natural."""
    return run.shifts_of("natural") or run.shifts


def headline_name(run: RunRecord) -> str:
    """Returns the name of the mean over ``headline_shifts``, such as ``mean of the 4 natural shifts``."""
    shifts = headline_shifts(run)
    if not shifts:
        return "no shift"
    kind = run.kinds[shifts[0]]
    return f"{kind} shift {shifts[0]}" if len(shifts) == 1 else f"mean of the {len(shifts)} {kind} shifts"
