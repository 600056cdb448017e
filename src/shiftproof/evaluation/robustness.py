"""Robustness beyond what accuracy on the reference explains, from points alone (Taori et al. 2020; WiSE-FT, sec. 2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_choice, require_equal_length

SCALES = ("logit", "probit")


@dataclass(frozen=True)
class Baseline:
    """beta: the accuracy under a shift that models have which were trained on the reference only.

    A line, ``slope`` x + ``intercept``, between accuracies that are put on the ``scale`` logit or probit.
    """

    scale: str
    slope: float
    intercept: float

    def expected(self, reference: ArrayLike) -> NDArray[np.float64]:
        """The accuracies under the shift that these accuracies on the reference let expect, as fractions in (0, 1)."""
        return _unscaled(self.slope * _scaled(reference, self.scale) + self.intercept, self.scale)


def fit_baseline(reference: ArrayLike, shift: ArrayLike, scale: str = "logit") -> Baseline:
    """The least-squares line through (N,) models' accuracies on the reference and under a shift, both scaled.

    The models must have been trained on the reference only. An InputError refuses fewer than two models, models of one
    accuracy, and accuracies of 0 and 1, which have no place on the scale.

    >>> fit_baseline([0.2, 0.5, 0.8], [0.2, 0.5, 0.8]).slope
    1.0
    """
    x, y = _scaled(reference, scale), _scaled(shift, scale)
    require_equal_length("the accuracies on the reference and under the shift", x, y)
    if len(x) < 2 or np.ptp(x) == 0:
        raise InputError(
            f"the baseline has {len(np.unique(x))} accuracies on the reference; a line needs two that differ. "
            "Train models of other sizes."
        )
    slope = float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))
    return Baseline(scale, slope, float(y.mean() - slope * x.mean()))


def effective_robustness(reference: ArrayLike, shift: ArrayLike, baseline: Baseline) -> NDArray[np.float64]:
    """Rho = accuracy under the shift minus what the baseline expects for that on the reference (WiSE-FT, sec. 2).

    >>> float(effective_robustness(0.7, 0.6, Baseline("logit", 1.0, 0.0)).round(6))
    -0.1
    """
    return np.asarray(np.asarray(shift, dtype=np.float64) - baseline.expected(reference))


def relative_robustness(shift: ArrayLike, standard_shift: ArrayLike) -> NDArray[np.float64]:
    """Tau = accuracy under the shift minus that of the same model without the intervention (Taori et al. 2020)."""
    return np.asarray(np.asarray(shift, dtype=np.float64) - np.asarray(standard_shift, dtype=np.float64))


def robustness_gap(reference: ArrayLike, shift: ArrayLike) -> NDArray[np.float64]:
    """Accuracy on the reference minus that under the shift."""
    return np.asarray(np.asarray(reference, dtype=np.float64) - np.asarray(shift, dtype=np.float64))


def _scaled(accuracies: ArrayLike, scale: str) -> NDArray[np.float64]:
    from scipy.special import logit, ndtri

    require_choice("scale", scale, SCALES)
    found = np.asarray(accuracies, dtype=np.float64)
    if not ((found > 0) & (found < 1)).all():
        raise InputError(
            f"an accuracy is {found[~((found > 0) & (found < 1))].flat[0]}; on the {scale} scale it must lie between 0 "
            "and 1, both excluded. Leave that model out, or measure it on more images."
        )
    return np.asarray(logit(found) if scale == "logit" else ndtri(found))


def _unscaled(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    from scipy.special import expit, ndtr

    return np.asarray(expit(values) if scale == "logit" else ndtr(values))
