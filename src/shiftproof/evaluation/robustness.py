"""Robustness beyond what accuracy on the reference explains, from points alone (Taori et al. 2020; WiSE-FT, sec. 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import (
    InputError,
    listed,
    require_at_least,
    require_between,
    require_choice,
    require_equal_length,
)
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.storage import read_header, read_rows

SCALES = ("logit", "probit")
_EDGE = 1e-4


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
    return Baseline(scale, *_line(x, y))


def on_scale(accuracies: ArrayLike, n: int) -> NDArray[np.float64]:
    """Accuracies on ``n`` samples with a place on every scale: 0 and 1 count as half a sample right, or wrong.

    >>> on_scale([0.0, 0.5, 1.0], 10).tolist()
    [0.05, 0.5, 0.95]
    """
    require_at_least("the number of samples", n, 1)
    return np.clip(np.asarray(accuracies, dtype=np.float64), 0.5 / n, 1 - 0.5 / n)


def effective_robustness(reference: ArrayLike, shift: ArrayLike, baseline: Baseline) -> NDArray[np.float64]:
    """Rho = accuracy under the shift minus what the baseline expects for that on the reference (WiSE-FT, sec. 2).

    >>> float(effective_robustness(0.7, 0.6, Baseline("logit", 1.0, 0.0)).round(6))
    -0.1
    """
    return np.asarray(np.asarray(shift, dtype=np.float64) - baseline.expected(reference))


def effective_interval(
    drawn: tuple[NDArray[np.floating], NDArray[np.floating]],
    baselines: tuple[ArrayLike, ArrayLike],
    scale: str = "logit",
    *,
    level: float = LEVEL,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of effective robustness: of the model's own accuracies and of the baseline's line.

    ``drawn`` are (D,) resampled accuracies of the model on the reference and under the shift, ``baselines`` the (M,)
    baseline models' accuracies on both, of which so many are drawn with replacement each time; a draw of models of one
    accuracy, which has no line, is drawn again. Few baseline models make it too narrow.

    >>> own = np.full(200, 0.7), np.full(200, 0.6)
    >>> low, high = effective_interval(own, ([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]))
    >>> round(low, 6), round(high, 6)
    (-0.1, -0.1)
    """
    require_between("level", level, 0, 1)
    x, y = (_scaled(side, scale) for side in baselines)
    fit_baseline(*baselines, scale=scale)  # which says where no line can be drawn
    # A resample may be right on everything, or on nothing, which has no place on the scale.
    own = _scaled(np.clip(drawn[0], _EDGE, 1 - _EDGE), scale)
    generator, found = np.random.default_rng(seed), []
    for reference, shift in zip(own, drawn[1], strict=True):
        picked = generator.integers(len(x), size=len(x))
        while np.ptp(x[picked]) == 0:
            picked = generator.integers(len(x), size=len(x))
        slope, intercept = _line(x[picked], y[picked])
        found.append(float(shift - _unscaled(slope * reference + intercept, scale)))
    tail = (1 - level) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return float(low), float(high)


def read_baselines(path: Path, sets: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """The accuracies of models that were trained on the reference only, by set, from a CSV: ``model,SET,SET,...``.

    One row a model; a column for the first of ``sets``, the reference, and for those of the others that were measured;
    in fractions or, where any is above 1, all in per cent. Further columns are left alone. For ImageNet such a table is
    the ImageNet testbed's (Taori et al. 2020).
    """
    known = read_header(path)
    measured = [name for name in sets[1:] if name in known]
    if sets[1:] and not measured:
        raise InputError(
            f"{path} has the columns {listed(known)}; beside 'model' and {sets[0]!r} it needs one of "
            f"{listed(sets[1:])} at least."
        )
    sets = [sets[0], *measured]
    rows = read_rows(path, ("model", *sets))
    try:
        numbers = np.array([[float(cell) for cell in cells] for _, *cells in rows])
    except ValueError as error:
        raise InputError(f"{path} holds an accuracy that is no number ({error}). Write 0.763, or 76.3.") from error
    if len(rows) < 2:
        raise InputError(f"{path} holds {len(rows)} model(s); a line needs two at least.")
    if numbers.max() > 1 >= numbers[:, 0].max() > 0:
        raise InputError(f"{path} has {sets[0]} in fractions and another set in per cent. Write all in one of the two.")
    numbers = numbers / 100 if numbers.max() > 1 else numbers
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise InputError(f"{path} holds an accuracy outside 0 to 1, or 0 to 100 per cent. Mend the table.")
    return {name: tuple(column.tolist()) for name, column in zip(sets, numbers.T, strict=True)}


def relative_robustness(shift: ArrayLike, standard_shift: ArrayLike) -> NDArray[np.float64]:
    """Tau = accuracy under the shift minus that of the same model without the intervention (Taori et al. 2020)."""
    return np.asarray(np.asarray(shift, dtype=np.float64) - np.asarray(standard_shift, dtype=np.float64))


def robustness_gap(reference: ArrayLike, shift: ArrayLike) -> NDArray[np.float64]:
    """Accuracy on the reference minus that under the shift."""
    return np.asarray(np.asarray(reference, dtype=np.float64) - np.asarray(shift, dtype=np.float64))


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    slope = float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))
    return slope, float(y.mean() - slope * x.mean())


def _scaled(accuracies: ArrayLike, scale: str) -> NDArray[np.float64]:
    from scipy.special import logit, ndtri

    require_choice("scale", scale, SCALES)
    found = np.asarray(accuracies, dtype=np.float64)
    if not ((found > 0) & (found < 1)).all():
        raise InputError(
            f"an accuracy is {found[~((found > 0) & (found < 1))].flat[0]}; on the {scale} scale it must lie between 0 "
            "and 1, both excluded. Measure it on more images, or count half of one as right (on_scale)."
        )
    return np.asarray(logit(found) if scale == "logit" else ndtri(found))


def _unscaled(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    from scipy.special import expit, ndtr

    return np.asarray(expit(values) if scale == "logit" else ndtr(values))
