"""Records of comparisons of two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OverrideRecord:
    """Which model an ensemble follows where the zero-shot and the fine-tuned model disagree (WiSE-FT, sec. 5.1).

    ``zero_shot``, ``fine_tuned`` and ``neither`` are fractions of the ``disagreements`` among ``n`` samples and sum to
    1; without a disagreement all three are 0. They do not depend on which model was right.
    """

    zero_shot: float
    fine_tuned: float
    neither: float
    disagreements: int
    n: int


@dataclass(frozen=True)
class ConnectivityRecord:
    """How an alpha path's error on one set compares with the straight line between its ends, and with their mean.

    ``above_line`` is the accuracy at every alpha minus the line's; ``intervals`` are its paired bootstrap intervals if
    the predictions were given. ``barrier_over_line`` is the largest excess of the error over the line, which occurs at
    ``barrier_alpha``, and ``barrier_over_mean`` that over the mean of the ends' errors; both are at least 0, since the
    ends are on the path. ``best_alpha`` is the first with the highest accuracy, ``gain`` that accuracy minus the better
    end's; as it was chosen on the same set, its interval lies somewhat high. ``mean_interval`` is that of
    ``barrier_over_mean``. ``ends`` are the accuracies of the two ends, None without predictions and in files of version
    0.1.
    """

    set: str
    alphas: tuple[float, ...]
    above_line: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...] | None
    barrier_over_line: float
    barrier_alpha: float
    barrier_over_mean: float
    best_alpha: float
    gain: float
    gain_interval: tuple[float, float] | None = None
    mean_interval: tuple[float, float] | None = None
    ends: tuple[Measured, Measured] | None = None

    @property
    def observation_1(self) -> bool:
        """Whether the accuracy at every alpha is on or above the line between the ends (WiSE-FT, sec. 4)."""
        return min(self.above_line) >= 0

    @property
    def observation_2(self) -> bool:
        """Whether the accuracy at some alpha is above that of both ends (WiSE-FT, sec. 4)."""
        return self.gain > 0

    @property
    def lowest(self) -> tuple[float, Measured]:
        """The alpha between the ends at which the path is lowest relative to the line, and its height above the line.

        If there is no alpha between the ends, it is one of the ends.
        """
        inner = range(1, len(self.alphas) - 1) or range(len(self.alphas))
        index = min(inner, key=lambda i: self.above_line[i])
        return self.alphas[index], Measured(self.above_line[index], self.intervals[index] if self.intervals else None)

    @property
    def clearly_under(self) -> tuple[float, ...]:
        """The alphas at which the whole interval lies below the line, so that observation 1 clearly fails."""
        bounds = self.intervals or ()
        return tuple(a for a, interval in zip(self.alphas, bounds, strict=False) if interval and interval[1] < 0)


@dataclass(frozen=True)
class MovementRecord:
    """How far fine-tuning moved the weights of one layer.

    ``distance`` is Euclidean, ``relative`` the distance divided by the norm at the start (None if that is 0), ``share``
    the layer's fraction of the sum of all squared distances, ``cosine`` that between the layer's task vector and the
    one of another fine-tuning run (None if none was given, or if one of them is zero).
    """

    layer: str
    distance: float
    relative: float | None
    share: float
    cosine: float | None


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval, which is None if there is only one cluster and nothing to resample."""

    value: float
    interval: tuple[float, float] | None

    def negative(self) -> Measured:
        """Minus the number, with its interval."""
        return self._moved(0.0)

    def one_minus(self) -> Measured:
        """1 minus the number, with its interval."""
        return self._moved(1.0)

    def _moved(self, start: float) -> Measured:
        interval = None if self.interval is None else (start - self.interval[1], start - self.interval[0])
        return Measured(start - self.value, interval)


@dataclass(frozen=True)
class LossRecord:
    """How an alpha path's mean loss (nats) on one set compares with the straight line between its ends.

    ``above_line`` is the height of the loss above that line at every alpha; the barriers are defined as in
    ``ConnectivityRecord``, with the loss in place of the error.
    """

    set: str
    alphas: tuple[float, ...]
    loss: tuple[Measured, ...]
    above_line: tuple[Measured, ...]
    barrier_over_line: float
    barrier_alpha: float
    barrier_over_mean: float


@dataclass(frozen=True)
class CkaRecord:
    """The linear CKA of two models' outputs on ``n`` samples of one set, in its original and in debiased forms.

    ``debiased`` omits pairs of a sample with itself, and ``corrected`` all pairs of samples in one cluster, such as two
    views of a drawing. The interval is that of ``corrected``, on which it is centred; it is also beside ``biased``,
    which may lie above it. Each is None if it is undefined, because the samples are too few or the outputs do not vary;
    ``corrected`` is None in files of version 0.1, whose intervals are centred on the biased CKA.
    """

    n: int
    biased: Measured | None
    debiased: float | None
    corrected: Measured | None = None

    @property
    def best(self) -> Measured | None:
        """The form to show: the corrected one, or the biased one in files of version 0.1."""
        return self.biased if self.corrected is None else self.corrected


@dataclass(frozen=True)
class AgreementRecord:
    """How much two models differ on ``n`` samples of one set, with intervals.

    The measures are those of ``diagnosis.agreement``; ``kl_forward`` is KL(first || second), ``kl_backward`` is
    KL(second || first), both in nats, and ``margin_difference`` is the mean of the first model's margin minus the
    second's. Measures that need labels are None without them.
    """

    n: int
    disagreement: Measured
    kappa_complement: Measured
    kl_forward: Measured
    kl_backward: Measured
    margin_difference: Measured
    prediction_diversity: Measured | None
    error_consistency: Measured | None


@dataclass(frozen=True)
class FollowedRecord:
    """The ``override_rates`` on one set with intervals; with labels, ``by_right`` splits them by which model was right.

    A rate is None if there was no disagreement. ``lead`` is the rate of zero-shot minus that of fine-tuned, the paper's
    second contrast, which is above 0 where zero-shot overrides. ``beyond_both`` is the share on which zero-shot errs,
    too, of the samples that the ensemble gets right and fine-tuned does not; it is None without labels or such samples.
    """

    disagreements: int
    n: int
    zero_shot: Measured | None
    fine_tuned: Measured | None
    neither: Measured | None
    by_right: Mapping[str, FollowedRecord]
    beyond_both: Measured | None = None
    lead: Measured | None = None


@dataclass(frozen=True)
class LayersRecord:
    """The linear CKA of every layer of one classifier with every layer of another, on ``n`` images of one set.

    ``values[i][j]`` is the CKA of ``first[i]`` with ``second[j]``. It is None if it is undefined, because a layer does
    not vary on these images or because they are too few for ``debiased`` values, which may be below 0.
    """

    set: str
    n: int
    first: tuple[str, ...]
    second: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    debiased: bool


@dataclass(frozen=True)
class PlanePoint:
    """One model of a plane: its coordinates, its error with its interval, and its mean loss in nats.

    The loss is None if an output is not finite, which counts as an error.
    """

    x: float
    y: float
    error: float
    interval: tuple[float, float]
    loss: float | None


@dataclass(frozen=True)
class PlaneRecord:
    """Error and mean loss (nats) over the plane through three models' weights, on ``n`` images of one set.

    ``axes`` are the grid's coordinates x and y, Euclidean distances from the origin's weights: x points to the first
    model, y is orthogonal to it. ``points`` are the three models (zero_shot, first and second). ``error[j][i]``,
    ``intervals[j][i]`` and ``loss[j][i]`` belong to the point ``axes[0][i]``, ``axes[1][j]``.
    """

    set: str
    n: int
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    points: Mapping[str, PlanePoint]
    error: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[tuple[float, float], ...], ...]
    loss: tuple[tuple[float | None, ...], ...]
