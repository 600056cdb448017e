"""Linear connectivity: an alpha path's error against the line between its ends (Frankle et al. 2020)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis_records import ConnectivityRecord
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.records import PathRecord

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
    found = []
    for name in (path.reference, *path.shifts):
        accuracies = [point.accuracy[name] for point in path.points]
        above = _above_line(path.alphas, accuracies)
        lowest, best = min(above), max(accuracies)
        found.append(
            ConnectivityRecord(
                set=name,
                alphas=tuple(path.alphas),
                above_line=tuple(above),
                intervals=None if correct is None else _intervals(path.alphas, correct, name, clusters),
                barrier_over_line=max(0.0, -lowest),
                barrier_alpha=path.alphas[above.index(lowest)],
                barrier_over_mean=max(0.0, (accuracies[0] + accuracies[-1]) / 2 - min(accuracies)),
                best_alpha=path.alphas[accuracies.index(best)],
                gain=best - max(accuracies[0], accuracies[-1]),
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


def _intervals(
    alphas: Sequence[float],
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]],
    name: str,
    clusters: Mapping[str, ArrayLike] | None,
) -> tuple[tuple[float, float], ...]:
    ends = [correct[alpha][name].astype(np.float64) for alpha in (alphas[0], alphas[-1])]
    return tuple(
        bootstrap_interval(correct[alpha][name] - (1 - alpha) * ends[0] - alpha * ends[1], (clusters or {}).get(name))
        for alpha in alphas
    )
