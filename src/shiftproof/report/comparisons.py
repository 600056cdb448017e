"""Comparisons of models in numbers and in words: means over sets with an interval, and the verdict on a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shiftproof.records.paths import PathPoint
from shiftproof.records.runs import RunRecord
from shiftproof.report.tables import per_cent, signed_points

MODEL_NAMES = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "ensemble"}

# In the verdict, the ensemble keeps an accuracy if it loses at most this much and the intervals overlap.
_TOLERATED_LOSS = 0.01


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a mean of accuracies, with the bounds of its interval (fractions)."""

    value: float
    low: float
    high: float

    def overlaps(self, other: Estimate) -> bool:
        """Whether the two intervals share a point."""
        return self.low <= other.high and other.low <= self.high


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


def verdict(run: RunRecord) -> str:
    """Describes the result of the run in two sentences with numbers.

    The first says whether the ensemble keeps the fine-tuned model's accuracy on the reference. The second says what
    fine-tuning and the ensemble did to the mean of the natural shifts (of all shifts, if none is natural). The text
    mentions intervals that overlap. All models are tested on the same images, so a difference can be reliable even if
    they do.
    """
    if run.alpha in (0.0, 1.0):
        return f"{_end_chosen(run)} {_fine_tuning(run)}."
    return f"{_on_reference(run)} {_on_shifts(run)}"


def _end_chosen(run: RunRecord) -> str:
    end = "zero-shot" if run.alpha == 0 else "fine-tuned"
    return (
        f"The rule “{run.alpha_rule}” gives alpha {run.alpha:g}, so the ensemble is the {end} model itself."
        f" On the reference its accuracy is {per_cent(run.models['ensemble'][run.reference].accuracy)} %."
    )


def _on_reference(run: RunRecord) -> str:
    zero_shot, tuned, ensemble = (model_estimate(run, model, (run.reference,)) for model in MODEL_NAMES)
    change = round(ensemble.value - tuned.value, 9)
    if not ensemble.overlaps(tuned):
        what = "gains" if change > 0 else "gives up"
        finding = f"so it {what} {per_cent(abs(change))} points (the intervals do not overlap)"
    elif change >= -_TOLERATED_LOSS:
        finding = f"so it keeps the fine-tuned accuracy ({signed_points(change)} points, the intervals overlap)"
    else:
        finding = f"a difference of {signed_points(change)} points, which is uncertain because the intervals overlap"
    return (
        f"On the reference the ensemble (alpha {run.alpha:g}) has an accuracy of {per_cent(ensemble.value)} % and the "
        f"fine-tuned model one of {per_cent(tuned.value)} %, {finding}; zero-shot has {per_cent(zero_shot.value)} %."
    )


def _on_shifts(run: RunRecord) -> str:
    shifts = headline_shifts(run)
    if not shifts:
        return "No shift was measured, so this run says nothing about robustness."
    zero_shot, tuned, ensemble = (model_estimate(run, model, shifts) for model in MODEL_NAMES)
    if ensemble.value <= tuned.value:
        lead = "the ensemble did not help here: it has"
    elif ensemble.overlaps(tuned):
        lead = "the ensemble shows no clear gain: it has"
    else:
        lead = "the ensemble reaches"
    return (
        f"{_fine_tuning(run)}; {lead} {per_cent(ensemble.value)} %, "
        f"{_relation(ensemble, tuned, 'fine-tuned')} and {_relation(ensemble, zero_shot, 'zero-shot')}."
    )


def _fine_tuning(run: RunRecord) -> str:
    """Says what fine-tuning did to the accuracy on the headline shifts, without a full stop."""
    shifts = headline_shifts(run)
    if not shifts:
        return "No shift was measured, so this run says nothing about robustness"
    zero_shot, tuned = (model_estimate(run, model, shifts) for model in ("zero_shot", "fine_tuned"))
    change, where = tuned.value - zero_shot.value, f"the {headline_name(run)}"
    ends = f"from {per_cent(zero_shot.value)} % to {per_cent(tuned.value)} %"
    if tuned.overlaps(zero_shot):
        return (
            f"Fine-tuning alone did not clearly change the accuracy on {where}: {ends} "
            f"({signed_points(change)} points, the intervals overlap)"
        )
    if change > 0:
        return f"Fine-tuning alone did not hurt accuracy on {where}: {ends} ({signed_points(change)} points)"
    return f"On {where} fine-tuning alone cost {per_cent(-change)} points ({ends})"


def _relation(first: Estimate, second: Estimate, name: str) -> str:
    gap = per_cent(abs(first.value - second.value))
    if gap == "0.0":
        return f"level with {name}"
    side = "above" if first.value > second.value else "below"
    overlap = " (the intervals overlap)" if first.overlaps(second) else ""
    return f"{gap} points {side} {name}{overlap}"
