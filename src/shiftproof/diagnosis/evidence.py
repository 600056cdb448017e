"""What a run kept of its predictions, and all that can be found from that alone: no model is run, nothing trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.diagnosis.agreement import measure_agreement
from shiftproof.diagnosis.cka import measure_cka
from shiftproof.diagnosis.logits import named_classes
from shiftproof.diagnosis.means import measured_mean
from shiftproof.diagnosis.overrides import overrides_of
from shiftproof.errors import require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.evaluation.calibration import (
    BINS,
    brier_scores,
    calibration_error,
    calibration_interval,
    confident_share,
    fit_temperature,
    selective_accuracy,
)
from shiftproof.evaluation.intervals import (
    alike_interval,
    can_resample,
    contrast_interval,
    resampled_means,
    statistic_interval,
)
from shiftproof.evaluation.metrics import Scores, macro_f1, scores
from shiftproof.evaluation.robustness import effective_interval, effective_robustness, fit_baseline, on_scale
from shiftproof.evaluation.significance import holm_correction, mcnemar_test
from shiftproof.records.comparisons import FollowedRecord, Measured
from shiftproof.records.diagnosis import (
    AverageRecord,
    ClassesRecord,
    ConfidenceRecord,
    DifferenceRecord,
    PairRecord,
    RobustnessRecord,
    TemperatureRecord,
)
from shiftproof.records.runs import MODELS

COVERAGES = (0.5, 0.8)


@dataclass(frozen=True)
class SetEvidence:
    """What was kept of one set's N samples, all in one order.

    ``labels`` (N,), ``logits[model]`` (N, K) as arrays or kept predictions, ``along[alpha]`` the compact scores on the
    alpha path; ``groups`` (N,) splits for reporting. ``clusters`` (N,) name what is resampled together; without, every
    sample stands for itself.
    """

    name: str
    labels: NDArray[np.int64]
    logits: Mapping[str, Logits]
    along: Mapping[float, Scores]
    groups: Sequence[str] | None = None
    clusters: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        for model, logits in self.logits.items():
            require_equal_length(f"labels and the {model} logits of {self.name}", self.labels, range(logits.shape[0]))

    def correct(self, model: str) -> NDArray[np.bool_]:
        """(N,) which samples a model names right."""
        return np.asarray(named_classes(self.logits[model]) == self.labels)


def find_pairs(evidence: Sequence[SetEvidence]) -> tuple[PairRecord, ...]:
    """How much every two of the models differ on every set."""
    return tuple(pair for own in evidence for pair in pairs_of(own.logits, own.name, own.labels, own.clusters))


def pairs_of(
    logits: Mapping[str, Logits], name: str, labels: NDArray[np.integer] | None, clusters: NDArray[np.str_] | None
) -> tuple[PairRecord, ...]:
    """How much every two of several models, whose (N, K) logits on the set ``name`` are given, differ there."""
    return tuple(
        PairRecord(
            first,
            second,
            name,
            measure_agreement(logits[first], logits[second], labels, clusters),
            measure_cka(logits[first], logits[second], clusters),
        )
        for first, second in itertools.combinations(logits, 2)
    )


def find_overrides(evidence: Sequence[SetEvidence]) -> dict[str, FollowedRecord]:
    """Whom the ensemble follows, set by set."""
    return {
        own.name: overrides_of(
            *(named_classes(own.logits[model]) for model in MODELS), labels=own.labels, clusters=own.clusters
        )
        for own in evidence
    }


@dataclass(frozen=True)
class Correctness:
    """Which samples each model names right, set by set, and what of them is resampled together."""

    right: Mapping[str, Mapping[str, NDArray[np.bool_]]]
    clusters: Mapping[str, NDArray[np.str_]]

    @classmethod
    def of(cls, evidence: Sequence[SetEvidence]) -> Correctness:
        """From the kept logits."""
        right = {model: {own.name: own.correct(model) for own in evidence} for model in MODELS}
        return cls(right, {own.name: own.clusters for own in evidence if own.clusters is not None})

    def contrast(self, values: Mapping[str, NDArray[Any]], weights: Mapping[str, float]) -> Measured:
        """A weighted sum of sets' means with its interval, None where a set has one cluster alone.

        ``values[set]`` (N,) say who is right, or differ by that: they lie within -1 to 1.
        """
        value = sum(weight * float(values[name].mean()) for name, weight in weights.items())
        if not can_resample({name: values[name] for name in weights}, self.clusters):
            return Measured(value, None)
        bounds = (0.0, 1.0) if all(values[name].dtype == bool for name in weights) else (-1.0, 1.0)
        return Measured(value, contrast_interval(values, weights, self.clusters, bounds=bounds))

    def difference(self, first: str, second: str, *sets: str) -> DifferenceRecord:
        """Of two models' accuracy on a set, or of its mean over several."""
        moved = {n: self.right[first][n].astype(np.float64) - self.right[second][n] for n in sets}
        p = mcnemar_test(self.right[first][sets[0]], self.right[second][sets[0]]) if len(sets) == 1 else None
        return DifferenceRecord(first, second, sets, self.contrast(moved, dict.fromkeys(sets, 1 / len(sets))), p)


def find_differences(known: Correctness, means: Sequence[tuple[str, ...]]) -> tuple[DifferenceRecord, ...]:
    """Every two models' difference in accuracy, on every set with Holm's correction over them, and on the means."""
    found = []
    for first, second in (("fine_tuned", "zero_shot"), ("ensemble", "zero_shot"), ("ensemble", "fine_tuned")):
        single = [known.difference(first, second, name) for name in known.right[first]]
        corrected = holm_correction({record.sets[0]: record.p for record in single if record.p is not None})
        found += [
            DifferenceRecord(first, second, record.sets, record.difference, record.p, corrected[record.sets[0]])
            for record in single
        ]
        found += [known.difference(first, second, *sets) for sets in means]
    return tuple(found)


def find_averages(known: Correctness, means: Sequence[tuple[str, ...]]) -> tuple[AverageRecord, ...]:
    """Every model's mean accuracy over several sets."""
    return tuple(
        AverageRecord(model, sets, known.contrast(known.right[model], dict.fromkeys(sets, 1 / len(sets))))
        for model in MODELS
        for sets in means
    )


def find_robustness(
    known: Correctness, reference: str, baselines: Mapping[str, Sequence[float]] | None = None
) -> tuple[RobustnessRecord, ...]:
    """Every model's gap to the reference under every shift, and its accuracy there beyond the fine-tuned model's.

    ``baselines`` are the accuracies of models trained on the reference only, by set: with them, effective robustness on
    the shifts that they were measured on, None where the models have one accuracy on the reference. An accuracy of 0 or
    1, which has no place on the line's scale, counts as half a sample right or wrong, a baseline's and a model's own.
    """
    return tuple(
        RobustnessRecord(
            model,
            shift,
            gap=known.contrast(known.right[model], {reference: 1.0, shift: -1.0}),
            relative=None if model == "fine_tuned" else known.difference(model, "fine_tuned", shift).difference,
            effective=_effective(known, model, reference, shift, baselines)
            if baselines and shift in baselines
            else None,
        )
        for shift in known.right["zero_shot"]
        if shift != reference
        for model in MODELS
    )


def _effective(
    known: Correctness,
    model: str,
    reference: str,
    shift: str,
    baselines: Mapping[str, Sequence[float]],
) -> Measured | None:
    sets = {name: known.right[model][name] for name in (reference, shift)}
    line = (
        on_scale(baselines[reference], len(sets[reference])),
        on_scale(baselines[shift], len(sets[shift])),
    )
    if len(np.unique(line[0])) < 2:
        return None
    own = float(on_scale(sets[reference].mean(), len(sets[reference])))
    value = float(effective_robustness(own, sets[shift].mean(), fit_baseline(*line)))
    # What is all alike shows no spread, and what it does on the scale is not known.
    if not can_resample(sets, known.clusters) or any(right.all() or not right.any() for right in sets.values()):
        return Measured(value, None)
    drawn = resampled_means(sets, known.clusters, draws=1000)
    drawn[reference] = on_scale(drawn[reference], len(sets[reference]))
    return Measured(value, effective_interval((drawn[reference], drawn[shift]), line))


def find_by_class(evidence: Sequence[SetEvidence]) -> tuple[ClassesRecord, ...]:
    """Macro F1 and the worst group of every model on every set."""
    return tuple(_by_class(own, model) for own in evidence for model in MODELS)


def _by_class(own: SetEvidence, model: str) -> ClassesRecord:
    named = named_classes(own.logits[model])
    measured = _share(lambda weights: macro_f1(named, own.labels, weights), len(named), own.clusters)
    group, worst = _worst_group(named == own.labels, own) if own.groups else (None, None)
    return ClassesRecord(model, own.name, measured, group, worst)


def _share(
    statistic: Callable[[NDArray[np.float64]], float],
    n: int,
    clusters: NDArray[np.str_] | None,
    within: NDArray[np.bool_] | None = None,
) -> Measured:
    """What lies between 0 and 1 and is made of (N,) weights, with its interval, None where there is one cluster alone.

    Where no resample differs, the interval is ``alike_interval`` over the clusters, or over those ``within``.
    """
    value = statistic(np.ones(n))
    names = np.arange(n) if clusters is None else clusters
    if len(np.unique(names)) < 2:
        return Measured(value, None)
    low, high = statistic_interval(statistic, n, clusters)
    if low == high:
        count = len(np.unique(names if within is None else names[within]))
        low, high = alike_interval(value, count, (0.0, 1.0))
    return Measured(value, (max(low, 0.0), min(high, 1.0)))


def _worst_group(right: NDArray[np.bool_], own: SetEvidence) -> tuple[str, Measured]:
    """The group of the least accuracy, and the interval of that least accuracy, whichever group it is in a resample."""
    names, index = np.unique(np.asarray(own.groups), return_inverse=True)

    def accuracies(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes = np.bincount(index, weights, len(names))
        hits = np.bincount(index, weights * right, len(names))
        return np.where(sizes > 0, hits / np.maximum(sizes, 1), np.nan)

    worst = int(np.nanargmin(accuracies(np.ones(len(right)))))
    # Groups that are themselves what is resampled would drop out of a resample; then samples are drawn.
    clusters = None if own.clusters is None or np.array_equal(own.clusters, np.asarray(own.groups)) else own.clusters
    least = lambda weights: float(np.nanmin(accuracies(weights)))  # noqa: E731
    return str(names[worst]), _share(least, len(right), clusters, index == worst)


def find_confidence(evidence: Sequence[SetEvidence]) -> tuple[ConfidenceRecord, ...]:
    """Calibration and selective accuracy at every alpha of the path on every set."""
    return tuple(_confidence(own, alpha) for own in evidence for alpha in own.along)


def _confidence(own: SetEvidence, alpha: float) -> ConfidenceRecord:
    kept = own.along[alpha]
    right = np.asarray(kept.prediction == own.labels)
    selective = {}
    for coverage in COVERAGES:
        weights, value = (
            confident_share(kept.confidence, coverage),
            selective_accuracy(kept.confidence, right, coverage),
        )
        sure = weights > 0
        # Of a weighted mean every sample's influence is taken: their mean is the value.
        samples = value + weights[sure] / weights[sure].mean() * (right[sure] - value)
        among = None if own.clusters is None else own.clusters[sure]
        selective[f"{coverage:g}"] = measured_mean(samples, among, value, bounds=(0.0, 1.0))
    return ConfidenceRecord(
        alpha,
        own.name,
        BINS,
        calibration_error=_calibration(kept.confidence, right, own),
        nll=measured_mean(-kept.log_probability.astype(np.float64), own.clusters),
        brier=measured_mean(brier_scores(kept.log_probability, kept.square_sum), own.clusters, bounds=(0.0, 2.0)),
        selective=selective,
    )


def _calibration(confidence: NDArray[np.floating], right: NDArray[np.bool_], own: SetEvidence) -> Measured:
    several = len(right) > 1 if own.clusters is None else len(np.unique(own.clusters)) > 1
    value = calibration_error(confidence, right)
    low, high = calibration_interval(confidence, right, own.clusters) if several else (value, value)
    return Measured(value, (low, high) if low < high else None)


def find_temperatures(evidence: Sequence[SetEvidence], validation: SetEvidence) -> tuple[TemperatureRecord, ...]:
    """Every model's temperature, from the reference's validation split alone, and what it does on every set."""
    found = []
    for model in MODELS:
        temperature = fit_temperature(validation.logits[model], validation.labels)
        for own in evidence:
            confidence, right, loss = _scaled(own, model, temperature)
            error = _calibration(confidence, right, own)
            found.append(TemperatureRecord(model, own.name, temperature, error, measured_mean(loss, own.clusters)))
    return tuple(found)


def _scaled(
    own: SetEvidence, model: str, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """(N,) confidences, rights and losses of logits divided by a temperature."""
    parts, start = [], 0
    for block in logit_blocks(own.logits[model]):
        kept = scores(block / temperature, own.labels[start : start + len(block)])
        parts.append((kept.confidence, kept.prediction, -kept.log_probability.astype(np.float64)))
        start += len(block)
    confidence, prediction, loss = (np.concatenate(part) for part in zip(*parts, strict=True))
    return confidence, np.asarray(prediction == own.labels), loss
