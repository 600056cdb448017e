"""The diagnoses that need only the predictions a run has saved: no model is run or trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from shiftproof.evaluation.intervals import can_resample, contrast_interval, resampled_means, share_interval
from shiftproof.evaluation.metrics import Scores, macro_accuracy, macro_f1, scores
from shiftproof.evaluation.proportions import worst_group_interval
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
    """The saved predictions on one set of N samples, all in the same order.

    ``labels`` (N,) are class indices, ``logits[model]`` (N, K) arrays or predictions on disk, and ``along[alpha]`` the
    compact scores on the alpha path. ``groups`` (N,) split the set for reporting. ``clusters`` (N,) name the samples
    that are resampled together; without them, every sample is resampled by itself. Raises an InputError where the
    lengths of labels and logits differ.
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
        """Returns (N,) booleans that tell which samples a model classifies correctly."""
        return np.asarray(named_classes(self.logits[model]) == self.labels)


def find_pairs(evidence: Sequence[SetEvidence]) -> tuple[PairRecord, ...]:
    """Measures how much every two of the models differ on every set."""
    return tuple(pair for data in evidence for pair in pairs_of(data.logits, data.name, data.labels, data.clusters))


def pairs_of(
    logits: Mapping[str, Logits], name: str, labels: NDArray[np.integer] | None, clusters: NDArray[np.str_] | None
) -> tuple[PairRecord, ...]:
    """Measures how much every two of several models differ, from their (N, K) logits on the set ``name``."""
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
    """Measures which model the ensemble follows on every set."""
    return {
        data.name: overrides_of(
            *(named_classes(data.logits[model]) for model in MODELS), labels=data.labels, clusters=data.clusters
        )
        for data in evidence
    }


@dataclass(frozen=True)
class Correctness:
    """Which samples each model classifies correctly, and which samples are resampled together.

    ``right[model][set]`` are (N,) booleans, and ``clusters[set]`` (N,) names.
    """

    right: Mapping[str, Mapping[str, NDArray[np.bool_]]]
    clusters: Mapping[str, NDArray[np.str_]]

    @classmethod
    def of(cls, evidence: Sequence[SetEvidence]) -> Correctness:
        """Returns the correctness of all models on all sets, from their logits."""
        right = {model: {data.name: data.correct(model) for data in evidence} for model in MODELS}
        return cls(right, {data.name: data.clusters for data in evidence if data.clusters is not None})

    def contrast(self, values: Mapping[str, NDArray[Any]], weights: Mapping[str, float]) -> Measured:
        """Returns a weighted sum of the sets' means with its interval, None where a set has only one cluster.

        ``values[set]`` (N,) are correctness or differences in correctness, so they lie in [-1, 1].
        """
        value = sum(weight * float(values[name].mean()) for name, weight in weights.items())
        if not can_resample({name: values[name] for name in weights}, self.clusters):
            return Measured(value, None)
        bounds = (0.0, 1.0) if all(values[name].dtype == bool for name in weights) else (-1.0, 1.0)
        return Measured(value, contrast_interval(values, weights, self.clusters, bounds=bounds))

    def difference(self, first: str, second: str, *sets: str) -> DifferenceRecord:
        """Returns the difference of two models' accuracies on a set, or of their means over several sets.

        On a single set, it has the p-value of McNemar's test.
        """
        moved = {n: self.right[first][n].astype(np.float64) - self.right[second][n] for n in sets}
        p = None
        if len(sets) == 1:
            (name,) = sets
            p = mcnemar_test(self.right[first][name], self.right[second][name], self.clusters.get(name))
        return DifferenceRecord(first, second, sets, self.contrast(moved, dict.fromkeys(sets, 1 / len(sets))), p)


def find_differences(correctness: Correctness, means: Sequence[tuple[str, ...]]) -> tuple[DifferenceRecord, ...]:
    """Measures every two models' difference in accuracy on every set and in mean accuracy over several sets.

    ``means`` are the sets over which a mean is taken. The p-values on single sets are corrected with Holm's method.
    """
    records = []
    for first, second in (("fine_tuned", "zero_shot"), ("ensemble", "zero_shot"), ("ensemble", "fine_tuned")):
        single = [correctness.difference(first, second, name) for name in correctness.right[first]]
        corrected = holm_correction({record.sets[0]: record.p for record in single if record.p is not None})
        records += [
            DifferenceRecord(first, second, record.sets, record.difference, record.p, corrected[record.sets[0]])
            for record in single
        ]
        records += [correctness.difference(first, second, *sets) for sets in means]
    return tuple(records)


def find_averages(correctness: Correctness, means: Sequence[tuple[str, ...]]) -> tuple[AverageRecord, ...]:
    """Measures every model's mean accuracy over several sets, for each group of sets in ``means``."""
    return tuple(
        AverageRecord(model, sets, correctness.contrast(correctness.right[model], dict.fromkeys(sets, 1 / len(sets))))
        for model in MODELS
        for sets in means
    )


def find_robustness(
    correctness: Correctness, reference: str, baselines: Mapping[str, Sequence[float]] | None = None
) -> tuple[RobustnessRecord, ...]:
    """Measures every model's gap to the reference under every shift, and its lead over the fine-tuned model there.

    ``baselines`` are the accuracies, by set, of models that were trained on the reference only. With them, effective
    robustness (Taori et al. 2020) is measured on the shifts for which they are given; it is None where all baselines
    have the same accuracy on the reference. Accuracies of 0 and 1 have no place on the logit scale of the line, so in
    baselines and models alike they count as half a sample right or half a sample wrong.
    """
    return tuple(
        RobustnessRecord(
            model,
            shift,
            gap=correctness.contrast(correctness.right[model], {reference: 1.0, shift: -1.0}),
            relative=None if model == "fine_tuned" else correctness.difference(model, "fine_tuned", shift).difference,
            effective=_effective(correctness, model, reference, shift, baselines)
            if baselines and shift in baselines
            else None,
        )
        for shift in correctness.right["zero_shot"]
        if shift != reference
        for model in MODELS
    )


def _effective(
    correctness: Correctness,
    model: str,
    reference: str,
    shift: str,
    baselines: Mapping[str, Sequence[float]],
) -> Measured | None:
    sets = {name: correctness.right[model][name] for name in (reference, shift)}
    line = (
        on_scale(baselines[reference], len(sets[reference])),
        on_scale(baselines[shift], len(sets[shift])),
    )
    if len(np.unique(line[0])) < 2:
        return None
    on_reference = float(on_scale(sets[reference].mean(), len(sets[reference])))
    value = float(effective_robustness(on_reference, sets[shift].mean(), fit_baseline(*line)))
    # Where all samples are right or all are wrong, resampling shows no spread on the logit scale.
    if not can_resample(sets, correctness.clusters) or any(right.all() or not right.any() for right in sets.values()):
        return Measured(value, None)
    drawn = resampled_means(sets, correctness.clusters, draws=1000)
    drawn[reference] = on_scale(drawn[reference], len(sets[reference]))
    return Measured(value, effective_interval((drawn[reference], drawn[shift]), line))


def find_by_class(evidence: Sequence[SetEvidence]) -> tuple[ClassesRecord, ...]:
    """Measures macro accuracy, macro F1 and the worst group of every model on every set, all in [0, 1]."""
    return tuple(_by_class(data, model) for data in evidence for model in MODELS)


def _by_class(data: SetEvidence, model: str) -> ClassesRecord:
    named = named_classes(data.logits[model])
    statistics = [partial(measure, named, data.labels) for measure in (macro_f1, macro_accuracy)]
    f1, balanced = (_share(statistic, len(named), data.clusters) for statistic in statistics)
    group, worst = _worst_group(named == data.labels, data) if data.groups else (None, None)
    return ClassesRecord(model, data.name, f1, group, worst, balanced)


def _share(statistic: Callable[[NDArray[np.float64]], float], n: int, clusters: NDArray[np.str_] | None) -> Measured:
    """Measures a statistic in [0, 1] that is a function of (N,) weights."""
    return Measured(statistic(np.ones(n)), share_interval(statistic, n, clusters))


def _worst_group(right: NDArray[np.bool_], data: SetEvidence) -> tuple[str, Measured]:
    """Returns the group with the least accuracy, and the least accuracy of any group with its interval."""
    groups = np.asarray(data.groups)
    accuracies = {str(name): float(right[groups == name].mean()) for name in np.unique(groups)}
    worst = min(accuracies, key=accuracies.__getitem__)
    # Where the groups are the clusters, the samples of a group are independent within it.
    clusters = None if data.clusters is None or np.array_equal(data.clusters, groups) else data.clusters
    return worst, Measured(accuracies[worst], worst_group_interval(right, groups, clusters))


def find_confidence(evidence: Sequence[SetEvidence]) -> tuple[ConfidenceRecord, ...]:
    """Measures calibration and selective accuracy at every alpha of the path on every set."""
    return tuple(_confidence(data, alpha) for data in evidence for alpha in data.along)


def _confidence(data: SetEvidence, alpha: float) -> ConfidenceRecord:
    compact = data.along[alpha]
    right = np.asarray(compact.prediction == data.labels)
    selective = {}
    for coverage in COVERAGES:
        weights, value = (
            confident_share(compact.confidence, coverage),
            selective_accuracy(compact.confidence, right, coverage),
        )
        sure = weights > 0
        # A weighted mean is linearised: each sample has the value plus its influence, and their mean is the value.
        samples = value + weights[sure] / weights[sure].mean() * (right[sure] - value)
        among = None if data.clusters is None else data.clusters[sure]
        selective[f"{coverage:g}"] = measured_mean(samples, among, value, bounds=(0.0, 1.0))
    return ConfidenceRecord(
        alpha,
        data.name,
        BINS,
        calibration_error=_calibration(compact.confidence, right, data),
        nll=measured_mean(-compact.log_probability.astype(np.float64), data.clusters),
        brier=measured_mean(
            brier_scores(compact.log_probability, compact.square_sum), data.clusters, bounds=(0.0, 2.0)
        ),
        selective=selective,
    )


def _calibration(confidence: NDArray[np.floating], right: NDArray[np.bool_], data: SetEvidence) -> Measured:
    several = len(right) > 1 if data.clusters is None else len(np.unique(data.clusters)) > 1
    value = calibration_error(confidence, right)
    low, high = calibration_interval(confidence, right, data.clusters) if several else (value, value)
    return Measured(value, (low, high) if low < high else None)


def find_temperatures(evidence: Sequence[SetEvidence], validation: SetEvidence) -> tuple[TemperatureRecord, ...]:
    """Fits every model's temperature on the reference's validation split, and measures its effect on every set.

    The records hold calibration errors in [0, 1] and losses in nats (Guo et al. 2017, sec. 4.2).
    """
    records = []
    for model in MODELS:
        temperature = fit_temperature(validation.logits[model], validation.labels)
        for data in evidence:
            confidence, right, loss = _scaled(data, model, temperature)
            error = _calibration(confidence, right, data)
            records.append(TemperatureRecord(model, data.name, temperature, error, measured_mean(loss, data.clusters)))
    return tuple(records)


def _scaled(
    data: SetEvidence, model: str, temperature: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Returns (N,) confidences, correctness and losses in nats of the logits divided by a temperature."""
    parts, start = [], 0
    for block in logit_blocks(data.logits[model]):
        compact = scores(block / temperature, data.labels[start : start + len(block)])
        parts.append((compact.confidence, compact.prediction, -compact.log_probability.astype(np.float64)))
        start += len(block)
    confidence, prediction, loss = (np.concatenate(part) for part in zip(*parts, strict=True))
    return confidence, np.asarray(prediction == data.labels), loss
