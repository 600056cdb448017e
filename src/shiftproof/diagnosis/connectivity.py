"""Linear connectivity: an alpha path's error against the line between its ends (Frankle et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.means import measured_mean
from shiftproof.errors import InputError, require_equal_length
from shiftproof.records.comparisons import ConnectivityRecord, LossRecord, Measured
from shiftproof.records.paths import PathRecord

_ROUNDING = 1e-12  # less than that under the line is none


def error_barrier(alphas: Sequence[float], errors: Sequence[float]) -> float:
    """The largest error above the straight line between a path's ends: 0 where it has no barrier.

    ``alphas`` rise from 0 to 1, ``errors`` are fractions.

    >>> round(error_barrier([0, 0.5, 1], [0.2, 0.5, 0.4]), 12)
    0.2
    """
    return max(0.0, -min(_above_line(alphas, [1 - error for error in errors])))


def measure_connectivity(
    path: PathRecord,
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]] | None = None,
    clusters: Mapping[str, ArrayLike] | None = None,
) -> tuple[ConnectivityRecord, ...]:
    """Every set's accuracy along a path against the line between its ends, and the paper's two observations.

    ``correct`` says for every alpha and set which of its (N,) samples were named right: with it come paired bootstrap
    intervals, by the ``clusters`` of a set where these are given. The path must hold alpha 0 and 1.
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
    """``measure_connectivity`` of ``correct[alpha][set]`` (N,) alone: which samples each alpha names right.

    >>> right = {0.0: {"photo": np.array([True, False])}, 1.0: {"photo": np.array([True, True])}}
    >>> connectivity_of(right)[0].best_alpha
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
    intervals = gain_interval = mean_interval = None
    if correct is not None:
        values = [right.astype(np.float64) for right in correct]
        lines = [(1 - alpha) * values[0] + alpha * values[-1] for alpha in alphas]
        intervals = tuple(
            _interval(own - line, clusters, exact=alpha in (0, 1))
            for alpha, own, line in zip(alphas, values, lines, strict=True)
        )
        gain_interval = _interval(values[best] - values[better], clusters, exact=values[best] is values[better])
        lowest = values[accuracies.index(min(accuracies))]
        mean_interval = _interval((values[0] + values[-1]) / 2 - lowest, clusters)
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
    )


def _interval(
    values: NDArray[np.float64], clusters: ArrayLike | None, *, exact: bool = False
) -> tuple[float, float] | None:
    """Of a mean of differences of correctness; ``exact`` says that it is 0, whatever the samples."""
    return (0.0, 0.0) if exact else measured_mean(values, clusters, bounds=(-1.0, 1.0)).interval


def measure_loss_connectivity(
    losses: Mapping[float, Mapping[str, NDArray[np.floating]]], clusters: Mapping[str, ArrayLike] | None = None
) -> tuple[LossRecord, ...]:
    """Every set's mean loss along a path against the line between its ends; ``losses[alpha][set]`` are (N,) in nats.

    Intervals are those of the mean loss, and paired ones of its height above the line.
    """
    alphas = sorted(losses)
    found = []
    for name in losses[alphas[0]]:
        own = {alpha: losses[alpha][name].astype(np.float64) for alpha in alphas}
        means = [float(own[alpha].mean()) for alpha in alphas]
        above = [-height for height in _above_line(alphas, [-mean for mean in means])]
        among = (clusters or {}).get(name)
        line = {alpha: (1 - alpha) * own[alphas[0]] + alpha * own[alphas[-1]] for alpha in alphas}
        found.append(
            LossRecord(
                set=name,
                alphas=tuple(alphas),
                loss=tuple(measured_mean(own[alpha], among) for alpha in alphas),
                above_line=tuple(
                    Measured(0.0, (0.0, 0.0)) if alpha in (0, 1) else measured_mean(own[alpha] - line[alpha], among, h)
                    for alpha, h in zip(alphas, above, strict=True)
                ),
                barrier_over_line=max(0.0, *above),
                barrier_alpha=alphas[above.index(max(above))],
                barrier_over_mean=max(0.0, max(means) - (means[0] + means[-1]) / 2),
            )
        )
    return tuple(found)


def _above_line(alphas: Sequence[float], accuracies: Sequence[float]) -> list[float]:
    require_equal_length("alphas and accuracies", alphas, accuracies)
    if len(alphas) < 2 or alphas[0] != 0 or alphas[-1] != 1 or sorted(set(alphas)) != list(alphas):
        raise InputError(f"the alphas are {list(alphas)}; they must rise from 0 to 1. Measure the ends, too.")
    line = [(1 - alpha) * accuracies[0] + alpha * accuracies[-1] for alpha in alphas]
    above = [accuracy - there for accuracy, there in zip(accuracies, line, strict=True)]
    return [0.0 if abs(distance) < _ROUNDING else distance for distance in above]
