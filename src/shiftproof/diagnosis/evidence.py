"""What a run kept of its predictions, and all that can be found from that alone: no model is run, nothing trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shiftproof.diagnosis.agreement import measure_agreement, measured_mean, named_classes, overrides_of
from shiftproof.diagnosis.cka import measure_cka
from shiftproof.diagnosis_records import FollowedRecord, Measured
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
from shiftproof.evaluation.intervals import can_resample, contrast_interval, resampled_means, statistic_interval
from shiftproof.evaluation.metrics import Scores, macro_f1, scores
from shiftproof.evaluation.robustness import effective_interval, effective_robustness, fit_baseline
from shiftproof.evaluation.significance import holm_correction, mcnemar_test
from shiftproof.records import MODELS
from shiftproof.run_diagnosis_records import (
    AverageRecord,
    ClassesRecord,
    ConfidenceRecord,
    DifferenceRecord,
    PairRecord,
    RobustnessRecord,
    TemperatureRecord,
)

COVERAGES = (0.5, 0.8)
_EDGE = 1e-4


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
    return tuple(
        PairRecord(
            first,
            second,
            own.name,
            measure_agreement(own.logits[first], own.logits[second], own.labels, own.clusters),
            measure_cka(own.logits[first], own.logits[second], own.clusters),
        )
        for own in evidence
        for first, second in itertools.combinations(own.logits, 2)
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
        """A weighted sum of sets' means with its interval, None where a set has one cluster alone."""
        value = sum(weight * float(values[name].mean()) for name, weight in weights.items())
        known = can_resample({name: values[name] for name in weights}, self.clusters)
        interval = contrast_interval(values, weights, self.clusters) if known else None
        return Measured(value, interval)

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
        corrected = holm_correction({record.sets[0]: record.p or 0.0 for record in single})
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
    the shifts that they were measured on. Models of accuracy 0 or 1 are left out; where fewer than two remain, it is
    None.
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
    pairs = zip(baselines[reference], baselines[shift], strict=True)
    # A network that is right on nothing, or on everything, has no place on the scale.
    usable = [pair for pair in pairs if min(pair) > 0 and max(pair) < 1]
    line = [pair[0] for pair in usable], [pair[1] for pair in usable]
    if len(set(line[0])) < 2:
        return None
    on_reference = float(np.clip(sets[reference].mean(), _EDGE, 1 - _EDGE))
    value = float(effective_robustness(on_reference, sets[shift].mean(), fit_baseline(*line)))
    if not can_resample(sets, known.clusters):
        return Measured(value, None)
    drawn = resampled_means(sets, known.clusters, draws=1000)
    return Measured(value, effective_interval((drawn[reference], drawn[shift]), line))


def find_by_class(evidence: Sequence[SetEvidence]) -> tuple[ClassesRecord, ...]:
    """Macro F1 and the worst group of every model on every set."""
    return tuple(_by_class(own, model) for own in evidence for model in MODELS)


def _by_class(own: SetEvidence, model: str) -> ClassesRecord:
    named, n = named_classes(own.logits[model]), len(own.labels)
    several = n > 1 if own.clusters is None else len(np.unique(own.clusters)) > 1
    value = macro_f1(named, own.labels)
    interval = _share_interval(lambda w: macro_f1(named, own.labels, w), n, own.clusters) if several else None
    group, worst = _worst_group(named == own.labels, own) if own.groups else (None, None)
    return ClassesRecord(model, own.name, Measured(value, interval), group, worst)


def _share_interval(
    share: Callable[[NDArray[np.float64]], float], n: int, clusters: NDArray[np.str_] | None
) -> tuple[float, float]:
    """The interval of what lies between 0 and 1."""
    low, high = statistic_interval(share, n, clusters)
    return max(low, 0.0), min(high, 1.0)


def _worst_group(right: NDArray[np.bool_], own: SetEvidence) -> tuple[str, Measured]:
    """The group of the least accuracy, and the interval of that least accuracy, whichever group it is in a resample."""
    names, index = np.unique(np.asarray(own.groups), return_inverse=True)

    def accuracies(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        sizes = np.bincount(index, weights, len(names))
        hits = np.bincount(index, weights * right, len(names))
        return np.where(sizes > 0, hits / np.maximum(sizes, 1), np.nan)

    found = accuracies(np.ones(len(right)))
    worst = int(np.nanargmin(found))
    # Groups that are themselves what is resampled would drop out of a resample; then samples are drawn.
    clusters = None if own.clusters is None or np.array_equal(own.clusters, np.asarray(own.groups)) else own.clusters
    several = len(right) > 1 if clusters is None else len(np.unique(clusters)) > 1
    least = lambda weights: float(np.nanmin(accuracies(weights)))  # noqa: E731
    interval = _share_interval(least, len(right), clusters) if several else None
    return str(names[worst]), Measured(float(found[worst]), interval)


def find_confidence(evidence: Sequence[SetEvidence]) -> tuple[ConfidenceRecord, ...]:
    """Calibration and selective accuracy at every alpha of the path on every set."""
    return tuple(_confidence(own, alpha) for own in evidence for alpha in own.along)


def _confidence(own: SetEvidence, alpha: float) -> ConfidenceRecord:
    kept = own.along[alpha]
    right = np.asarray(kept.prediction == own.labels)
    selective = {}
    for coverage in COVERAGES:
        sure = confident_share(kept.confidence, coverage)
        among = None if own.clusters is None else own.clusters[sure]
        value = selective_accuracy(kept.confidence, right, coverage)
        selective[f"{coverage:g}"] = measured_mean(right[sure], among, value)
    return ConfidenceRecord(
        alpha,
        own.name,
        BINS,
        calibration_error=_calibration(kept.confidence, right, own),
        nll=measured_mean(-kept.log_probability.astype(np.float64), own.clusters),
        brier=measured_mean(brier_scores(kept.log_probability, kept.square_sum), own.clusters),
        selective=selective,
    )


def _calibration(confidence: NDArray[np.floating], right: NDArray[np.bool_], own: SetEvidence) -> Measured:
    several = len(right) > 1 if own.clusters is None else len(np.unique(own.clusters)) > 1
    interval = calibration_interval(confidence, right, own.clusters) if several else None
    return Measured(calibration_error(confidence, right), interval)


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
