"""Linear connectivity: the error along an alpha path compared with the line between its ends (Frankle et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.means import measured_mean
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.proportions import measure_proportion
from shiftproof.records.comparisons import ConnectivityRecord, LossRecord, Measured
from shiftproof.records.paths import PathRecord

_ROUNDING = 1e-12  # smaller distances from the line count as none


def error_barrier(alphas: Sequence[float], errors: Sequence[float]) -> float:
    """Returns the largest height of the error above the straight line between a path's ends (Frankle et al. 2020).

    ``alphas`` rise from 0 to 1, and ``errors`` are fractions in [0, 1], one for each alpha. The result is 0 where the
    path has no barrier. Raises an InputError for other alphas and where the lengths differ.

    >>> round(error_barrier([0, 0.5, 1], [0.2, 0.5, 0.4]), 12)
    0.2
    """
    return max(0.0, -min(_above_line(alphas, [1 - error for error in errors])))


def measure_connectivity(
    path: PathRecord,
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]] | None = None,
    clusters: Mapping[str, ArrayLike] | None = None,
) -> tuple[ConnectivityRecord, ...]:
    """Compares every set's accuracy along a path with the line between its ends.

    The record holds the paper's two observations: the height above the line (WiSE-FT, Observation 1) and the gain over
    the better end (Observation 2), all as fractions in [-1, 1]. ``correct[alpha][set]`` are (N,) booleans that tell
    which samples are classified correctly; with them, the record has paired 95 % bootstrap intervals.
    ``clusters[set]`` (N,) name the samples that are resampled together. Raises an InputError unless the path's alphas
    rise from 0 to 1.
    """
    return tuple(
        _connectivity(
            name,
            path.alphas,
            [point.accuracy[name] for point in path.points],
            None if correct is None else [correct[alpha][name] for alpha in path.alphas],
            (clusters or {}).get(name),
        )
        for name in (path.reference, *path.shifts)
    )


def connectivity_of(
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]], clusters: Mapping[str, ArrayLike] | None = None
) -> tuple[ConnectivityRecord, ...]:
    """Returns what ``measure_connectivity`` does, from ``correct[alpha][set]`` (N,) alone.

    These booleans tell which samples are classified correctly at each alpha.

    >>> correct = {0.0: {"photo": np.array([True, False])}, 1.0: {"photo": np.array([True, True])}}
    >>> connectivity_of(correct)[0].best_alpha
    1.0
    """
    alphas = sorted(correct)
    return tuple(
        _connectivity(
            name,
            alphas,
            [float(correct[alpha][name].mean()) for alpha in alphas],
            [correct[alpha][name] for alpha in alphas],
            (clusters or {}).get(name),
        )
        for name in correct[alphas[0]]
    )


def _connectivity(
    name: str,
    alphas: Sequence[float],
    accuracies: Sequence[float],
    correct: Sequence[NDArray[np.bool_]] | None,
    clusters: ArrayLike | None,
) -> ConnectivityRecord:
    above = _above_line(alphas, accuracies)
    best, better = accuracies.index(max(accuracies)), 0 if accuracies[0] >= accuracies[-1] else -1
    intervals = gain_interval = mean_interval = ends = None
    if correct is not None:
        values = [right.astype(np.float64) for right in correct]
        lines = [(1 - alpha) * values[0] + alpha * values[-1] for alpha in alphas]
        intervals = tuple(
            _interval(value - line, clusters, exact=alpha in (0, 1))
            for alpha, value, line in zip(alphas, values, lines, strict=True)
        )
        gain_interval = _interval(values[best] - values[better], clusters, exact=values[best] is values[better])
        lowest = values[accuracies.index(min(accuracies))]
        mean_interval = _interval((values[0] + values[-1]) / 2 - lowest, clusters)
        ends = _accuracy(correct[0], clusters), _accuracy(correct[-1], clusters)
    return ConnectivityRecord(
        set=name,
        alphas=tuple(alphas),
        above_line=tuple(above),
        intervals=intervals,
        barrier_over_line=max(0.0, -min(above)),
        barrier_alpha=alphas[above.index(min(above))],
        barrier_over_mean=max(0.0, (accuracies[0] + accuracies[-1]) / 2 - min(accuracies)),
        best_alpha=alphas[best],
        gain=max(accuracies) - accuracies[better],
        gain_interval=gain_interval,
        mean_interval=mean_interval,
        ends=ends,
    )


def _accuracy(right: NDArray[np.bool_], clusters: ArrayLike | None) -> Measured:
    proportion = measure_proportion(right, clusters)
    return Measured(proportion.value, proportion.interval)


def _interval(
    values: NDArray[np.float64], clusters: ArrayLike | None, *, exact: bool = False
) -> tuple[float, float] | None:
    """Returns the interval of a mean difference in correctness; ``exact`` means that it is 0 for any samples."""
    return (0.0, 0.0) if exact else measured_mean(values, clusters, bounds=(-1.0, 1.0)).interval


def measure_loss_connectivity(
    losses: Mapping[float, Mapping[str, NDArray[np.floating]]], clusters: Mapping[str, ArrayLike] | None = None
) -> tuple[LossRecord, ...]:
    """Compares every set's mean loss along a path with the line between its ends.

    ``losses[alpha][set]`` are the (N,) losses of the samples, in nats, at alphas that rise from 0 to 1.
    ``clusters[set]`` (N,) name the samples that are resampled together. The record holds 95 % bootstrap intervals of
    the mean loss, and paired ones of its height above the line. Raises an InputError for other alphas.
    """
    alphas = sorted(losses)
    records = []
    for name in losses[alphas[0]]:
        by_alpha = {alpha: losses[alpha][name].astype(np.float64) for alpha in alphas}
        means = [float(by_alpha[alpha].mean()) for alpha in alphas]
        above = [-height for height in _above_line(alphas, [-mean for mean in means])]
        groups = (clusters or {}).get(name)
        line = {alpha: (1 - alpha) * by_alpha[alphas[0]] + alpha * by_alpha[alphas[-1]] for alpha in alphas}
        records.append(
            LossRecord(
                set=name,
                alphas=tuple(alphas),
                loss=tuple(measured_mean(by_alpha[alpha], groups) for alpha in alphas),
                above_line=tuple(
                    Measured(0.0, (0.0, 0.0))
                    if alpha in (0, 1)
                    else measured_mean(by_alpha[alpha] - line[alpha], groups, height)
                    for alpha, height in zip(alphas, above, strict=True)
                ),
                barrier_over_line=max(0.0, *above),
                barrier_alpha=alphas[above.index(max(above))],
                barrier_over_mean=max(0.0, max(means) - (means[0] + means[-1]) / 2),
            )
        )
    return tuple(records)


def _above_line(alphas: Sequence[float], accuracies: Sequence[float]) -> list[float]:
    require_equal_length("alphas and accuracies", alphas, accuracies)
    if len(alphas) < 2 or alphas[0] != 0 or alphas[-1] != 1 or sorted(set(alphas)) != list(alphas):
        raise InputError(f"the alphas are {list(alphas)}; they must rise from 0 to 1. Measure both ends as well.")
    line = [(1 - alpha) * accuracies[0] + alpha * accuracies[-1] for alpha in alphas]
    above = [accuracy - on_line for accuracy, on_line in zip(accuracies, line, strict=True)]
    return [0.0 if abs(distance) < _ROUNDING else distance for distance in above]
