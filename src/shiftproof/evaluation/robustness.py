"""Robustness beyond what accuracy on the reference explains (Taori et al. 2020; WiSE-FT, sec. 2)."""

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
    """The function beta: the accuracy under a shift that is expected of a model trained on the reference only.

    It is a line, ``slope`` x + ``intercept``, between accuracies on the ``scale`` "logit" or "probit" (Taori et al.
    2020, arXiv 2007.00644, sec. 2).
    """

    scale: str
    slope: float
    intercept: float

    def expected(self, reference: ArrayLike) -> NDArray[np.float64]:
        """The accuracies under the shift to expect from these accuracies on the reference, as fractions in (0, 1)."""
        return _unscaled(self.slope * _scaled(reference, self.scale) + self.intercept, self.scale)


def fit_baseline(reference: ArrayLike, shift: ArrayLike, scale: str = "logit") -> Baseline:
    """The least-squares line through the (N,) accuracies of N models on the reference and under a shift, both scaled.

    The models must have been trained on the reference only (Taori et al. 2020, arXiv 2007.00644). Accuracies are
    fractions. Raises an InputError for fewer than two models, for models of equal accuracy, and for accuracies of 0 and
    1, which are infinite on the scale.

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
    """Accuracies on ``n`` samples that are finite on every scale: 0 and 1 are replaced by half a sample right or wrong.

    The result has the shape of ``accuracies``. Raises an InputError if ``n`` is below 1.

    >>> on_scale([0.0, 0.5, 1.0], 10).tolist()
    [0.05, 0.5, 0.95]
    """
    require_at_least("the number of samples", n, 1)
    return np.clip(np.asarray(accuracies, dtype=np.float64), 0.5 / n, 1 - 0.5 / n)


def effective_robustness(reference: ArrayLike, shift: ArrayLike, baseline: Baseline) -> NDArray[np.float64]:
    """The accuracy under the shift minus the one that the baseline expects from the accuracy on the reference.

    It is rho in WiSE-FT (arXiv 2109.01903, sec. 2). Accuracies are fractions of equal shape. Raises an InputError for
    an accuracy of 0 or 1 on the reference.

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
    """The percentile interval of effective robustness, which resamples the model's accuracies and the baseline's line.

    ``drawn`` are (D,) resampled accuracies of the model on the reference and under the shift. ``baselines`` are the
    (M,) accuracies of M baseline models on both; for each of the D, M of these models are drawn with replacement, and
    drawn again if all have the same accuracy, through which there is no line. The interval is too narrow if the
    baseline models are few. Raises an InputError in the same cases as ``fit_baseline``.

    >>> resampled = np.full(200, 0.7), np.full(200, 0.6)
    >>> low, high = effective_interval(resampled, ([0.2, 0.4, 0.6, 0.8], [0.2, 0.4, 0.6, 0.8]))
    >>> round(low, 6), round(high, 6)
    (-0.1, -0.1)
    """
    require_between("level", level, 0, 1)
    x, y = (_scaled(side, scale) for side in baselines)
    fit_baseline(*baselines, scale=scale)  # raises an InputError if there is no line
    # A resample may have an accuracy of 0 or 1, which is infinite on the scale.
    scaled_references = _scaled(np.clip(drawn[0], _EDGE, 1 - _EDGE), scale)
    generator, robustness = np.random.default_rng(seed), []
    for reference, shift in zip(scaled_references, drawn[1], strict=True):
        picked = generator.integers(len(x), size=len(x))
        while np.ptp(x[picked]) == 0:
            picked = generator.integers(len(x), size=len(x))
        slope, intercept = _line(x[picked], y[picked])
        robustness.append(float(shift - _unscaled(slope * reference + intercept, scale)))
    tail = (1 - level) / 2
    low, high = np.quantile(robustness, [tail, 1 - tail])
    return float(low), float(high)


def read_baselines(path: str | Path, sets: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Reads the accuracies of models trained on the reference only, by set, from a CSV file ``model,SET,SET,...``.

    The file has one row per model, a column for the first of ``sets``, which is the reference, and columns for those of
    the others that were measured. Accuracies are fractions or, if any is above 1, all per cent; other columns are
    ignored. For ImageNet, the ImageNet testbed provides such a table (Taori et al. 2020). Returns fractions. Raises an
    InputError if columns are missing, if there are fewer than two models or if a value is not an accuracy.
    """
    path = Path(path)
    known = read_header(path)
    measured = [name for name in sets[1:] if name in known]
    if sets[1:] and not measured:
        raise InputError(
            f"{path} has the columns {listed(known)}; beside 'model' and {sets[0]!r} it needs at least one of "
            f"{listed(sets[1:])}."
        )
    sets = [sets[0], *measured]
    rows = read_rows(path, ("model", *sets))
    try:
        numbers = np.array([[float(row.fields[name]) for name in sets] for row in rows])
    except ValueError as error:
        raise InputError(f"{path} has an accuracy that is not a number ({error}). Write 0.763 or 76.3.") from error
    if len(rows) < 2:
        raise InputError(f"{path} has {len(rows)} model(s); a line needs at least two.")
    largest = dict(zip(sets, numbers.max(axis=0).tolist(), strict=True))
    per_cent = [name for name in sets if largest[name] > 1]
    fractions = [name for name in sets if 0 < largest[name] <= 1]
    if per_cent and fractions:
        raise InputError(
            f"{path} has {per_cent[0]} in per cent and {fractions[0]} in fractions. Use only one of the two."
        )
    numbers = numbers / 100 if per_cent else numbers
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise InputError(f"{path} has an accuracy outside 0 to 1, or 0 to 100 per cent. Fix the table.")
    return {name: tuple(column.tolist()) for name, column in zip(sets, numbers.T, strict=True)}


def relative_robustness(shift: ArrayLike, standard_shift: ArrayLike) -> NDArray[np.float64]:
    """The accuracy under the shift minus that of the same model without the intervention, as fractions.

    It is tau in Taori et al. 2020 (arXiv 2007.00644, sec. 2). The accuracies are of equal shape.
    """
    return np.asarray(np.asarray(shift, dtype=np.float64) - np.asarray(standard_shift, dtype=np.float64))


def robustness_gap(reference: ArrayLike, shift: ArrayLike) -> NDArray[np.float64]:
    """The accuracy on the reference minus the accuracy under the shift, as fractions of equal shape."""
    return np.asarray(np.asarray(reference, dtype=np.float64) - np.asarray(shift, dtype=np.float64))


def _line(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    slope = float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))
    return slope, float(y.mean() - slope * x.mean())


def _scaled(accuracies: ArrayLike, scale: str) -> NDArray[np.float64]:
    from scipy.special import logit, ndtri

    require_choice("scale", scale, SCALES)
    fractions = np.asarray(accuracies, dtype=np.float64)
    if not (finite := (fractions > 0) & (fractions < 1)).all():
        raise InputError(
            f"an accuracy is {fractions[~finite].flat[0]}; on the {scale} scale it must lie between 0 and 1, both "
            "excluded. Measure it on more images, or count half an image as right or wrong (on_scale)."
        )
    return np.asarray(logit(fractions) if scale == "logit" else ndtri(fractions))


def _unscaled(values: NDArray[np.float64], scale: str) -> NDArray[np.float64]:
    from scipy.special import expit, ndtr

    return np.asarray(expit(values) if scale == "logit" else ndtr(values))
