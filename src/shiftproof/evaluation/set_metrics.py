"""The metrics of sets beside accuracy, by the names that a ``Protocol`` gives them, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.families.corruptions import ALEXNET_ERRORS, MEAN, SEVERITIES
from shiftproof.data.families.wilds import OTHER
from shiftproof.evaluation.intervals import can_resample, contrast_interval, share_interval
from shiftproof.evaluation.metrics import clusters_within, macro_accuracy, macro_f1
from shiftproof.evaluation.proportions import worst_group_interval

MACRO_ACCURACY = "macro accuracy"
_UNEQUAL = 0.25  # the standard deviation, relative to the mean, from which the sizes of classes are called unequal
_DRAWS = 500  # as in ``share_interval``
_Interval: TypeAlias = tuple[float, float]
# The weights of a sum over groups, by the names of the groups; empty where a group that it needs is missing.
_Weights: TypeAlias = Callable[[Collection[str]], Mapping[str, float]]


@dataclass(frozen=True)
class Answers:
    """What a model answered on N samples: ``prediction`` and ``labels`` (N,), and the groups and clusters, if any."""

    prediction: NDArray[np.integer]
    labels: NDArray[np.integer]
    groups: Sequence[str] | None = None
    clusters: NDArray[Any] | None = None

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether each sample is right."""
        return np.asarray(self.prediction == self.labels)

    @property
    def group_names(self) -> NDArray[np.str_]:
        """(N,) the groups of the samples; an empty array where they have none."""
        return np.asarray(self.groups or (), dtype=str)


class Metric(Protocol):
    """A metric of a model's answers: its value, NaN where it is not defined, and its 95 % interval, if it has one."""

    def value(self, answers: Answers) -> float: ...
    def interval(self, answers: Answers) -> _Interval | None: ...


def measure_metrics(names: Sequence[str], answers: Answers) -> dict[str, float]:
    """The named metrics, as fractions; one that is not defined for these samples is left out.

    >>> measure_metrics(["macro F1"], Answers(np.array([0, 0]), np.array([0, 1])))
    {'macro F1': 0.3333333333333333}
    """
    values = {name: METRICS[name].value(answers) for name in names}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def metric_intervals(names: Sequence[str], answers: Answers) -> dict[str, tuple[float, float]]:
    """The 95 % intervals of the named metrics, without those that are not defined or whose samples are one cluster.

    Macro accuracy and macro F1 have that of ``share_interval``, the worst region that of ``worst_group_interval``, and
    sums over groups that of ``contrast_interval``, in which all versions of one picture are resampled together.

    >>> predicted, labels = np.array([0] * 9 + [1]), np.array([0] * 10)
    >>> [round(end, 2) for end in metric_intervals(["macro accuracy"], Answers(predicted, labels))["macro accuracy"]]
    [0.7, 1.0]
    """
    defined = measure_metrics(names, answers)
    intervals = {name: METRICS[name].interval(answers) for name in defined}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def is_imbalanced(labels: NDArray[np.integer]) -> bool:
    """Whether the classes that occur among (N,) labels have unequally many samples.

    They do if the standard deviation of their numbers of samples exceeds a quarter of the mean number.

    >>> is_imbalanced(np.array([0] * 66 + [1] * 34)), is_imbalanced(np.array([0] * 55 + [1] * 45))
    (True, False)
    """
    counts = np.bincount(labels)
    counts = counts[counts > 0]
    return bool(counts.std() > _UNEQUAL * counts.mean())


@dataclass(frozen=True)
class _OverClasses:
    """A statistic in [0, 1] of predictions, labels and the weights of the samples, such as a mean over the classes."""

    statistic: Callable[..., float]

    def value(self, answers: Answers) -> float:
        return self.statistic(answers.prediction, answers.labels)

    def interval(self, answers: Answers) -> _Interval | None:
        statistic = partial(self.statistic, answers.prediction, answers.labels)
        return share_interval(statistic, len(answers.labels), answers.clusters)


class _WorstRegion:
    """The lowest accuracy on a region that has images; images whose country is in none are left out (FMoW)."""

    def value(self, answers: Answers) -> float:
        names, correct = answers.group_names, answers.correct
        return min((float(correct[names == name].mean()) for name in _regions(names)), default=float("nan"))

    def interval(self, answers: Answers) -> _Interval | None:
        names, clusters = answers.group_names, clusters_within(answers.group_names, answers.clusters)
        inside = np.isin(names, _regions(names))
        return worst_group_interval(
            answers.correct[inside], names[inside], None if clusters is None else clusters[inside]
        )


@dataclass(frozen=True)
class _OverGroups:
    """A weighted sum of the accuracies on the groups, or of their errors."""

    weights: _Weights
    of_errors: bool = False

    def value(self, answers: Answers) -> float:
        samples, weights = self._samples(answers)
        if not weights:
            return float("nan")
        return math.fsum(weight * float(samples[name].mean()) for name, weight in weights.items())

    def interval(self, answers: Answers) -> _Interval | None:
        samples, weights = self._samples(answers)
        names, of_samples = answers.group_names, clusters_within(answers.group_names, answers.clusters)
        clusters = {} if of_samples is None else {name: of_samples[names == name] for name in weights}
        if not can_resample(samples, clusters):
            return None
        return contrast_interval(samples, weights, clusters, bounds=(0.0, 1.0), draws=_DRAWS)

    def _samples(self, answers: Answers) -> tuple[dict[str, NDArray[np.float64]], Mapping[str, float]]:
        """By group, what the sum is over, 1 for a right sample or, of errors, for a wrong one; and the weights."""
        names = answers.group_names
        weights = self.weights(np.unique(names).tolist())
        counted = answers.correct != self.of_errors
        return {name: counted[names == name].astype(np.float64) for name in weights}, weights


def mean_weights(groups: Collection[str]) -> dict[str, float]:
    """The weights of the plain mean over corruptions, each averaged over its severities.

    >>> mean_weights(["fog-1", "fog-2", "snow-1"])
    {'fog-1': 0.25, 'fog-2': 0.25, 'snow-1': 0.5}
    """
    severities = _severities(groups)
    shares = {name: 1 / (len(severities) * len(present)) for name, present in severities.items()}
    return {group: shares[group.rpartition("-")[0]] for group in groups}


def mce_weights(groups: Collection[str]) -> dict[str, float]:
    """The weights of mCE, the mean over the 15 corruptions of the error relative to AlexNet's, over five severities.

    This is Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261), Sec. 4.2; 1 is AlexNet, lower is better. There are
    none unless all 15 corruptions are there at all five severities.
    """
    present, count = _severities(groups), len(ALEXNET_ERRORS) * len(SEVERITIES)
    if any(present.get(name, set()) != set(SEVERITIES) for name in ALEXNET_ERRORS):
        return {}
    return {f"{name}-{number}": 1 / (count * error) for name, error in ALEXNET_ERRORS.items() for number in SEVERITIES}


def gap_weights(groups: Collection[str]) -> dict[str, float]:
    """The weights of BG-gap: how much higher the accuracy is with a background of the same class than of a random one.

    This is Xiao et al. (ICLR 2021, arXiv 2006.09994), Sec. 3. There are none unless both variants are there.
    """
    weights = {"mixed_same": 1.0, "mixed_rand": -1.0}
    return weights if weights.keys() <= set(groups) else {}


def _regions(names: NDArray[np.str_]) -> list[str]:
    return [str(name) for name in np.unique(names) if name != OTHER]


def _severities(groups: Collection[str]) -> dict[str, set[int]]:
    """The severities of each corruption, of groups such as ``fog-3``."""
    present: dict[str, set[int]] = {}
    for group in groups:
        corruption, _, severity = group.rpartition("-")
        present.setdefault(corruption, set()).add(int(severity))
    return present


METRICS: Mapping[str, Metric] = {
    "macro F1": _OverClasses(macro_f1),
    MACRO_ACCURACY: _OverClasses(macro_accuracy),
    "worst region": _WorstRegion(),
    MEAN: _OverGroups(mean_weights),
    "mCE": _OverGroups(mce_weights, of_errors=True),
    "background gap": _OverGroups(gap_weights),
}
