"""The metrics of public data sets beside accuracy, by the names that a ``Protocol`` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.families.corruptions import ALEXNET_ERRORS, MEAN, SEVERITIES
from shiftproof.data.families.wilds import OTHER
from shiftproof.evaluation.metrics import macro_f1

# A metric of (N,) predictions, their labels and their groups; NaN where it is not defined.
Metric = Callable[[NDArray[np.integer], NDArray[np.integer], Sequence[str]], float]


def metrics_of(
    names: Sequence[str], prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str] | None
) -> dict[str, float]:
    """The named metrics of (N,) predictions, as fractions; one that is not defined for these images is left out.

    >>> metrics_of(["macro F1"], np.array([0, 0]), np.array([0, 1]), None)
    {'macro F1': 0.3333333333333333}
    """
    values = {name: METRICS[name](prediction, labels, groups or ()) for name in names}
    return {name: value for name, value in values.items() if np.isfinite(value)}


def worst_region(prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]) -> float:
    """The lowest accuracy on a region that has images; images whose country is in none are left out (FMoW).

    >>> worst_region(np.array([0, 1, 1]), np.array([0, 0, 0]), ["Asia", "Asia", "Other"])
    0.5
    """
    accuracies = [value for name, value in _by_group(prediction, labels, groups).items() if name != OTHER]
    return min(accuracies, default=float("nan"))


def mean_of_corruptions(prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]) -> float:
    """The plain mean of the accuracies over corruptions, each averaged over its severities.

    >>> mean_of_corruptions(np.array([0, 1, 0]), np.array([0, 0, 0]), ["fog-1", "fog-2", "snow-1"])
    0.75
    """
    return fmean(fmean(by_severity.values()) for by_severity in _corruptions(prediction, labels, groups).values())


def mean_corruption_error(prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]) -> float:
    """mCE: the mean over the 15 corruptions of the error relative to AlexNet's, both averaged over five severities.

    This is Hendrycks and Dietterich (ICLR 2019, arXiv 1903.12261), Sec. 4.2; 1 is AlexNet, lower is better. It is NaN
    unless all 15 corruptions are there at all five severities.
    """
    measured = _corruptions(prediction, labels, groups)
    complete = all(set(measured.get(name, ())) == set(SEVERITIES) for name in ALEXNET_ERRORS)
    if not complete:
        return float("nan")
    return fmean((1 - fmean(measured[name].values())) / error for name, error in ALEXNET_ERRORS.items())


def background_gap(prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]) -> float:
    """BG-gap: how much higher the accuracy is with a background of the same class than with a random one.

    This is Xiao et al. (ICLR 2021, arXiv 2006.09994), Sec. 3, in fractions; NaN unless both variants are there.
    """
    accuracies = _by_group(prediction, labels, groups)
    return accuracies.get("mixed_same", float("nan")) - accuracies.get("mixed_rand", float("nan"))


def _by_group(prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]) -> dict[str, float]:
    correct, names = prediction == labels, np.asarray(groups)
    return {str(name): float(correct[names == name].mean()) for name in np.unique(names)}


def _corruptions(
    prediction: NDArray[np.integer], labels: NDArray[np.integer], groups: Sequence[str]
) -> dict[str, dict[int, float]]:
    """The accuracy by corruption and severity, of groups such as ``fog-3``."""
    measured: dict[str, dict[int, float]] = {}
    for group, accuracy in _by_group(prediction, labels, groups).items():
        corruption, _, severity = group.rpartition("-")
        measured.setdefault(corruption, {})[int(severity)] = accuracy
    return measured


METRICS: Mapping[str, Metric] = {
    "macro F1": lambda prediction, labels, _: macro_f1(prediction, labels),
    "worst region": worst_region,
    MEAN: mean_of_corruptions,
    "mCE": mean_corruption_error,
    "background gap": background_gap,
}
