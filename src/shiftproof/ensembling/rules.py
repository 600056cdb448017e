"""Where alpha is chosen: the rules that pick a point on the alpha path, and what each choice gives on every set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_between, require_choice, require_equal_length
from shiftproof.evaluation.intervals import LEVEL, can_resample, contrast_interval
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.rules import RuleRecord, RulesRecord

FIXED_ALPHA = 0.5
RULES = ("fixed", "reference", "tolerance")
MEAN = "mean"


def choose_alpha(path: PathRecord, rule: str = "fixed", *, tolerance: float = 0.01) -> float:
    """Chooses an alpha from 0 to 1 by a rule that never reads a shift.

    ``fixed`` returns 0.5, the alpha of WiSE-FT where nothing else is known (Wortsman et al. 2022, arXiv 2109.01903).
    ``reference`` returns the alpha with the best accuracy on the reference's validation split, the smallest where
    several are best. ``tolerance`` returns the smallest alpha whose validation accuracy is at most
    ``tolerance``, a fraction from 0 to 1, below the best. Raises an InputError for another rule or tolerance.

    >>> points = [PathPoint(alpha, held_out, {}, {}) for alpha, held_out in ((0, 0.70), (0.5, 0.79), (1, 0.8))]
    >>> [choose_alpha(PathRecord("photo", (), tuple(points)), rule, tolerance=0.01) for rule in RULES]
    [0.5, 1, 0.5]
    """
    require_choice("alpha rule", rule, RULES)
    if rule == "fixed":
        return FIXED_ALPHA
    best = max(point.validation for point in path.points)
    allowed = require_between("tolerance", tolerance, 0, 1) if rule == "tolerance" else 0.0
    # In floating point 0.8 - 0.1 exceeds 0.7, hence the slack; no two different accuracies lie that close together.
    return min(point.alpha for point in path.points if point.validation >= best - allowed - 1e-12)


def compare_alphas(
    path: PathRecord,
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]],
    averaged: Sequence[str] | None = None,
    clusters: Mapping[str, NDArray[np.str_]] | None = None,
    *,
    tolerance: float = 0.01,
    seed: int = 0,
) -> RulesRecord:
    """Measures the accuracy of each rule's alpha on every set, and its difference to that of alpha 0.5.

    ``correct[alpha][set]`` (N,) holds which samples an alpha classifies correctly. ``averaged`` names the shifts that
    the reported mean is over, all of them by default. ``clusters[set]`` (N,) names the group that each sample is
    resampled with, as in ``contrast_interval``. Accuracies and differences are fractions; the intervals, of level 0.95,
    are of a paired bootstrap that ``seed`` determines. Beside the rules stand the oracles, which choose the alpha that
    is best on a set or on that mean; they are marked. Raises an InputError if alpha 0.5 is not on the path or samples
    are missing.

    >>> points = [PathPoint(alpha, 0.5, {"photo": share}, {}) for alpha, share in ((0.5, 0.5), (1.0, 1.0))]
    >>> right = {0.5: {"photo": np.array([True, False])}, 1.0: {"photo": np.array([True, True])}}
    >>> oracle = compare_alphas(PathRecord("photo", (), tuple(points)), right).rule("oracle", "photo")
    >>> oracle.alpha, oracle.difference["photo"].value, oracle.oracle
    (1.0, 0.5, True)
    """
    averaged = path.shifts if averaged is None else tuple(averaged)
    path.at(FIXED_ALPHA)
    _require_samples(path, correct)
    choices = _choices(path, averaged, tolerance)
    names = (path.reference, *path.shifts)
    moved = {
        alpha: {name: correct[alpha][name].astype(np.float64) - correct[FIXED_ALPHA][name] for name in names}
        for alpha in {alpha for _, alpha, _ in choices}
    }
    # An alpha does not differ from itself, whatever the samples.
    bounds = {alpha: None if alpha == FIXED_ALPHA else (-1.0, 1.0) for alpha in moved}
    differences = {a: _differences(moves, averaged, clusters, bounds[a], seed) for a, moves in moved.items()}
    records = tuple(_rule_record(path, averaged, choice, *differences[choice[1]]) for choice in choices)
    return RulesRecord(path.reference, path.shifts, averaged, tolerance, LEVEL, records)


def _choices(path: PathRecord, averaged: Sequence[str], tolerance: float) -> list[tuple[str, float, str | None]]:
    """Returns every rule with its alpha, and each oracle with its alpha and the set that it reads."""
    chosen: list[tuple[str, float, str | None]] = [
        (rule, choose_alpha(path, rule, tolerance=tolerance), None) for rule in RULES
    ]
    chosen += [("oracle", alpha, name) for name, alpha in path.oracle().items()]
    if averaged:
        best = max(path.points, key=lambda point: (_mean(point, averaged), -point.alpha))
        chosen.append(("oracle", best.alpha, MEAN))
    return chosen


def _rule_record(
    path: PathRecord,
    averaged: Sequence[str],
    choice: tuple[str, float, str | None],
    difference: Mapping[str, MeanRecord],
    mean_difference: MeanRecord | None,
) -> RuleRecord:
    rule, alpha, of_set = choice
    point = path.at(alpha)
    return RuleRecord(
        rule=rule,
        alpha=alpha,
        accuracy={name: point.accuracy[name] for name in (path.reference, *path.shifts)},
        difference=difference,
        mean=_mean(point, averaged) if averaged else None,
        mean_difference=mean_difference,
        oracle=of_set is not None,
        set=of_set,
    )


def _differences(
    moved: Mapping[str, NDArray[np.float64]],
    averaged: Sequence[str],
    clusters: Mapping[str, NDArray[np.str_]] | None,
    bounds: tuple[float, float] | None,
    seed: int,
) -> tuple[dict[str, MeanRecord], MeanRecord | None]:
    """Returns the mean of (N,) changes of correctness (-1, 0 or 1) on every set, and over several sets together."""

    def contrast(*names: str) -> MeanRecord:
        weights, some = dict.fromkeys(names, 1 / len(names)), {name: moved[name] for name in names}
        resampled = can_resample(some, clusters)
        interval = contrast_interval(some, weights, clusters, bounds=bounds, seed=seed) if resampled else None
        mean = sum(weight * float(moved[name].mean()) for name, weight in weights.items())
        return MeanRecord(mean, interval, sum(map(len, some.values())))

    return {name: contrast(name) for name in moved}, contrast(*averaged) if averaged else None


def _mean(point: PathPoint, sets: Sequence[str]) -> float:
    return sum(point.accuracy[name] for name in sets) / len(sets)


def _require_samples(path: PathRecord, correct: Mapping[float, Mapping[str, NDArray[np.bool_]]]) -> None:
    """Raises an InputError if an alpha has no samples of a set, or not as many as alpha 0.5 has."""
    for alpha in path.alphas:
        for name in (path.reference, *path.shifts):
            samples = correct.get(alpha, {}).get(name)
            if samples is None:
                raise InputError(
                    f"the predictions of alpha {alpha:g} on {name} are missing. "
                    "Collect them with `keep` of `sweep_alpha`."
                )
            require_equal_length(f"the predictions of two alphas on {name}", samples, correct[FIXED_ALPHA][name])
