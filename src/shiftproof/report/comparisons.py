"""Mean accuracies of models over sets, with intervals, and the shifts by which a run is judged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shiftproof.records.paths import PathPoint
from shiftproof.records.runs import RunRecord

# What a note says of the intervals of ``mean_estimate``.
MEAN_OF_INTERVALS = (
    "the interval of a mean is the mean of its sets' intervals, which is wide enough however much the sets have in "
    "common"
)
ZERO_SHOT, START = "zero-shot", "start"


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a mean of accuracies, with the bounds of its interval (fractions)."""

    value: float
    low: float
    high: float


def start_name(head: str | None = None) -> str:
    """Returns what the start of a path is called: zero-shot if its head is made from text, and start otherwise.

    ``head`` is that of the start (``Classifier.head``). Runs of version 0.1, which recorded none, were zero-shot.

    >>> start_name("zero-shot"), start_name("probe")
    ('zero-shot', 'start')
    """
    return ZERO_SHOT if head in (None, "zero-shot") else START


def model_names(start: str = ZERO_SHOT) -> dict[str, str]:
    """Returns the names of the three models for a reader; ``start`` is that of the first (``start_name``)."""
    return {"zero_shot": start, "fine_tuned": "fine-tuned", "ensemble": "ensemble"}


def names_of(run: RunRecord) -> dict[str, str]:
    """Returns the names of a run's three models for a reader."""
    return model_names(start_name(run.start.get("head")))


def mean_estimate(accuracies: Iterable[tuple[float, tuple[float, float]]]) -> Estimate:
    """Returns the mean of the accuracies of several sets, with an interval that is wide enough for any dependence.

    Several sets often show the same drawings or photographs, and their accuracies then err in the same direction. How
    much they do does not follow from their intervals, but the standard error of a mean is at most the mean of the
    standard errors (Minkowski's inequality). The bounds are therefore the means of the sets' bounds. A paired interval,
    which needs every prediction (``contrast_interval``), is narrower. For one set the result is that set's interval.

    >>> mean_estimate([(0.5, (0.46, 0.53)), (0.7, (0.67, 0.74))])
    Estimate(value=0.6, low=0.565, high=0.635)
    """
    entries = [(accuracy, *interval) for accuracy, interval in accuracies]
    return Estimate(*(round(sum(numbers) / len(entries), 12) for numbers in zip(*entries, strict=True)))


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
