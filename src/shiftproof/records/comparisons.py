"""The results of comparing two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class OverrideRecord:
    """Whom an ensemble follows where zero-shot and fine-tuned disagree (WiSE-FT, sec. 5.1).

    ``zero_shot``, ``fine_tuned`` and ``neither`` are fractions of the ``disagreements`` and sum to 1; without a
    disagreement all three are 0. Who was right plays no part in them.
    """

    zero_shot: float
    fine_tuned: float
    neither: float
    disagreements: int
    n: int


@dataclass(frozen=True)
class ConnectivityRecord:
    """How an alpha path's error on one set compares with the straight line between its ends, and with their mean.

    ``above_line`` is the accuracy at every alpha minus the line's, ``intervals`` its paired bootstrap intervals, where
    the predictions were given. ``barrier_over_line`` is the largest error above the line, at ``barrier_alpha``, and
    ``barrier_over_mean`` that above the mean of the ends' errors; both are 0 or more, since the ends are on the path.
    ``best_alpha`` is the first with the highest accuracy, ``gain`` that accuracy minus the better end's; it was found
    by reading the set, so that its interval lies somewhat high. ``mean_interval`` is that of the barrier over the mean.
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

    @property
    def observation_1(self) -> bool:
        """No alpha is under the line between the ends (WiSE-FT, sec. 4): no barrier."""
        return min(self.above_line) >= 0

    @property
    def observation_2(self) -> bool:
        """Some alpha is above both ends (WiSE-FT, sec. 4)."""
        return self.gain > 0

    @property
    def lowest(self) -> tuple[float, Measured]:
        """The alpha between the ends, or an end where there is none, at which the path is lowest over the line."""
        inner = range(1, len(self.alphas) - 1) or range(len(self.alphas))
        place = min(inner, key=lambda i: self.above_line[i])
        return self.alphas[place], Measured(self.above_line[place], self.intervals[place] if self.intervals else None)

    @property
    def clearly_under(self) -> tuple[float, ...]:
        """The alphas whose accuracy is under the line beyond its interval: where observation 1 fails for certain."""
        bounds = self.intervals or ()
        return tuple(a for a, interval in zip(self.alphas, bounds, strict=False) if interval and interval[1] < 0)


@dataclass(frozen=True)
class MovementRecord:
    """How far one layer moved in a fine-tuning.

    ``distance`` is Euclidean, ``relative`` that divided by the start's norm (None where that is 0), ``share`` the
    layer's part of all squared distances, ``cosine`` that of its task vector with another fine-tuning's (None where
    none was given, or one of them stood still).
    """

    layer: str
    distance: float
    relative: float | None
    share: float
    cosine: float | None


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval; None where one cluster alone leaves nothing to resample."""

    value: float
    interval: tuple[float, float] | None

    def negative(self) -> Measured:
        """The number with its sign turned, and its interval."""
        return self._moved(0.0)

    def one_minus(self) -> Measured:
        """1 minus the number, and its interval."""
        return self._moved(1.0)

    def _moved(self, start: float) -> Measured:
        interval = None if self.interval is None else (start - self.interval[1], start - self.interval[0])
        return Measured(start - self.value, interval)


@dataclass(frozen=True)
class LossRecord:
    """How an alpha path's mean loss (nats) on one set compares with the straight line between its ends.

    ``above_line`` is the height of the loss above that line at every alpha; the barriers are those of
    ``ConnectivityRecord``, of loss.
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
    """The linear CKA of two models' outputs on ``n`` samples of one set: as it was defined, and of unbiased estimates.

    Each is None where it is not defined: too few samples, or outputs that do not vary.
    """

    n: int
    biased: Measured | None
    debiased: float | None


@dataclass(frozen=True)
class AgreementRecord:
    """How much two models differ on ``n`` samples of one set, with intervals.

    The measures of ``diagnosis.agreement``; ``kl_forward`` is KL(first || second), ``kl_backward`` the other way round,
    ``margin_difference`` the mean of the first's margin minus the second's. What needs labels is None without them.
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
    """``override_rates`` on one set with intervals; ``by_right`` splits them by who was right, where labels are given.

    A rate is None where there was no disagreement. ``lead`` is zero-shot's rate minus fine-tuned's, the paper's second
    contrast: above 0 where zero-shot overrides. ``beyond_both`` is, of the samples that the ensemble gets right and
    fine-tuned does not, the share that zero-shot errs on as well; None without labels or such samples.
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

    ``values[i][j]`` is that of ``first[i]`` with ``second[j]``: None where it is not defined, since a layer does not
    vary on these images, or ``debiased`` on too few of them. Debiased values may be below 0.
    """

    set: str
    n: int
    first: tuple[str, ...]
    second: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    debiased: bool


@dataclass(frozen=True)
class PlanePoint:
    """One model of a plane: its place, its error with a Clopper-Pearson interval, and its mean loss in nats.

    The loss is None where an output is not finite, which counts as an error.
    """

    x: float
    y: float
    error: float
    interval: tuple[float, float]
    loss: float | None


@dataclass(frozen=True)
class PlaneRecord:
    """Error and mean loss (nats) over the plane through three models' weights, on ``n`` images of one set.

    ``axes`` are the grid's coordinates, x and then y: Euclidean distances from the origin's weights, x along the way
    to the first model, y at a right angle to it. ``points`` are the three models (zero_shot, first and second).
    ``error[j][i]``, ``intervals[j][i]`` and ``loss[j][i]`` are those at ``axes[0][i]``, ``axes[1][j]``.
    """

    set: str
    n: int
    axes: tuple[tuple[float, ...], tuple[float, ...]]
    points: Mapping[str, PlanePoint]
    error: tuple[tuple[float, ...], ...]
    intervals: tuple[tuple[tuple[float, float], ...], ...]
    loss: tuple[tuple[float | None, ...], ...]
