"""Confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length

LEVEL = 0.95
METHOD = "clopper-pearson"
_AT_ONCE = 1 << 20  # picked clusters that are held in memory together
_MANY = 20_000  # clusters, from which on the normal limit serves


def accuracy_interval(correct: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The Clopper-Pearson interval of ``correct`` successes in ``n`` trials, as fractions.

    It never covers less than ``level``; with none or all correct, one end is 0 or 1.

    >>> accuracy_interval(0, 10)[0], round(accuracy_interval(0, 10)[1], 4)
    (0.0, 0.3085)
    """
    from scipy.stats import beta

    require_between("level", level, 0, 1)
    if not (n >= 1 and 0 <= correct <= n):
        raise InputError(f"correct is {correct} of n = {n}; it must lie between 0 and n, and n be at least 1.")
    tail = (1 - level) / 2
    low = 0.0 if correct == 0 else float(beta.ppf(tail, correct, n - correct + 1))
    high = 1.0 if correct == n else float(beta.ppf(1 - tail, correct + 1, n - correct))
    return low, high


def alike_interval(value: float, n: int, bounds: tuple[float, float], *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a mean of which ``n`` values are known, all of them ``value``, that could be any in ``bounds``.

    Resampling what is all alike shows no spread, however little of it there is. Clopper-Pearson says how large a share
    may be different that was never seen in ``n``; at worst it lies at a bound.

    >>> alike_interval(0.0, 10, (0.0, 1.0)) == accuracy_interval(0, 10)
    True
    >>> [round(end, 4) for end in alike_interval(0.0, 10, (-1.0, 1.0))]
    [-0.3085, 0.3085]
    """
    low, high = bounds
    if not low <= value <= high:
        raise InputError(f"the value is {value}; it must lie within its bounds, {low} to {high}.")
    share = accuracy_interval(0, n, level=level)[1]
    return value - share * (value - low), value + share * (high - value)


def bootstrap_interval(
    values: ArrayLike, clusters: ArrayLike | None = None, *, level: float = LEVEL, draws: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile interval of the mean of (N,) values, by resampling clusters with replacement.

    ``clusters`` (N,) are labels of any kind; all values of a cluster are drawn together, so that values which share a
    class or a source image count as no more evidence than they are. Without, every value is drawn by itself. A
    resample's mean is over its values, so a large cluster weighs more. One seed gives one interval. It covers too
    little with few clusters (as a rule of thumb, under 30); over 20,000 of them the mean's normal limit is taken, which
    resampling has reached there. An InputError refuses values that are not finite and fewer than two clusters, which
    would resample to themselves.

    >>> bootstrap_interval([0.5] * 40)
    (0.5, 0.5)
    >>> bootstrap_interval([0.0, 1.0] * 40, ["a", "b"] * 40)
    (0.0, 1.0)
    """
    require_between("level", level, 0, 1)
    require_at_least("draws", draws, 1)
    sums, sizes = _cluster_sums(np.asarray(values, dtype=np.float64), clusters)
    generator = np.random.default_rng(seed)
    means = _set_means(sums, sizes, draws, generator)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_spreads(
    values: Mapping[str, ArrayLike], *, draws: int = 2000, seed: int = 0
) -> dict[str, NDArray[np.float64]]:
    """(draws,) standard deviations of each of several (C,) series over the same C items, resampled together.

    One resample takes the same items of every series, so that deviations may be compared draw by draw. Percentiles of
    them cover too little where items are few: about 90 % in place of 95 % at 13. An InputError
    refuses fewer than three.

    >>> drawn = bootstrap_spreads({"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0, 2.0, 4.0, 6.0]})
    >>> bool(np.allclose(2 * drawn["a"], drawn["b"]))
    True
    """
    series = {name: np.asarray(entry, dtype=np.float64) for name, entry in values.items()}
    counts = {len(entry) for entry in series.values()}
    if len(counts) != 1 or min(counts) < 3:
        raise InputError(f"the series have {sorted(counts)} items; they must be equally many, and three at least.")
    (count,) = counts
    picked = np.random.default_rng(seed).integers(count, size=(draws, count))
    return {name: entry[picked].std(axis=1, ddof=1) for name, entry in series.items()}


def contrast_interval(
    values: Mapping[str, ArrayLike],
    weights: Mapping[str, float],
    clusters: Mapping[str, ArrayLike] | None = None,
    *,
    bounds: tuple[float, float] | None = None,
    level: float = LEVEL,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """The percentile interval of a weighted sum of several sets' means: their mean, say, or one minus another.

    ``values`` (N_s,) by set, ``weights`` by set; ``clusters`` (N_s,) by set name what goes together. A cluster of one
    name is drawn or left out in all sets at once, so that sets of the same drawings are not taken for independent; a
    set without clusters is resampled by itself, value by value. A set whose values are all alike varies in no resample;
    with the ``bounds`` of a value, its part is that of ``alike_interval``. An InputError refuses what
    ``bootstrap_interval`` does.

    >>> both = {"photo": [1.0] * 9, "sketch": [0.0] * 9}
    >>> contrast_interval(both, {"photo": 1.0, "sketch": -1.0})
    (1.0, 1.0)
    """
    require_between("level", level, 0, 1)
    require_at_least("draws", draws, 1)
    known = clusters or {}
    drawn = resampled_means({name: values[name] for name in weights}, known, draws=draws, seed=seed)
    tail = (1 - level) / 2
    low, high = np.quantile(sum(weight * drawn[name] for name, weight in weights.items()), [tail, 1 - tail])
    for name, weight in weights.items() if bounds else ():
        own = np.asarray(values[name], dtype=np.float64)
        if bounds and np.ptp(own) == 0:
            n = len(np.unique(known[name]) if name in known else own)
            parts = [weight * (end - own[0]) for end in alike_interval(float(own[0]), n, bounds, level=level)]
            low, high = low + min(parts), high + max(parts)
    return float(low), float(high)


def can_resample(values: Mapping[str, ArrayLike], clusters: Mapping[str, ArrayLike] | None = None) -> bool:
    """Whether every set has the two clusters that resampling needs at least.

    >>> can_resample({"photo": [0.5, 0.7]}), can_resample({"photo": [0.5, 0.7]}, {"photo": ["a", "a"]})
    (True, False)
    """
    known = clusters or {}
    return all(len(np.unique(known[name]) if name in known else np.asarray(own)) > 1 for name, own in values.items())


def resampled_means(
    values: Mapping[str, ArrayLike],
    clusters: Mapping[str, ArrayLike] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """(draws,) means of every set's values, resampled as ``contrast_interval`` does.

    >>> resampled_means({"photo": [0.5, 0.5]}, draws=2)["photo"].tolist()
    [0.5, 0.5]
    """
    known, generator = clusters or {}, np.random.default_rng(seed)
    found = _joint_means({name: (own, known[name]) for name, own in values.items() if name in known}, draws, generator)
    for name, own in values.items():
        if name not in found:
            found[name] = _set_means(*_cluster_sums(np.asarray(own, dtype=np.float64), None), draws, generator)
    return found


def statistic_interval(
    statistic: Callable[[NDArray[np.float64]], float],
    n: int,
    clusters: ArrayLike | None = None,
    *,
    level: float = LEVEL,
    draws: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """An interval of what ``statistic`` makes of (N,) sample weights, by resampling clusters.

    For what is no mean over samples: macro F1, the worst group, the calibration error. A weight says how often a sample
    was drawn. Resamples of such a statistic lie off it on average (a calibration error of resampled samples is larger),
    so their percentiles are moved by that bias: the interval lies around what was measured. Resamples for which the
    statistic is not defined (NaN) are left out.

    >>> values = np.arange(100.0)
    >>> low, high = statistic_interval(lambda weights: float(weights @ values / weights.sum()), 100)
    >>> bool(low < values.mean() < high)
    True
    """
    require_between("level", level, 0, 1)
    require_at_least("draws", draws, 1)
    _, index = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)
    require_equal_length("samples and clusters", range(n), index)
    if (count := int(index.max()) + 1) < 2:
        raise InputError(f"the samples form {count} cluster(s); resampling needs two at least.")
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    found = [statistic(generator.multinomial(count, shares)[index].astype(np.float64)) for _ in range(draws)]
    tail = (1 - level) / 2
    low, high = np.nanquantile(found, [tail, 1 - tail]) + statistic(np.ones(n)) - np.nanmean(found)
    return float(low), float(high)


def _joint_means(
    sets: Mapping[str, tuple[ArrayLike, ArrayLike]], draws: int, generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """(draws,) means of several sets' values whose clusters are resampled together, by their names."""
    if not sets:
        return {}
    every = np.unique(np.concatenate([np.asarray(names) for _, names in sets.values()]))
    if len(every) < 2:
        raise InputError(f"the values form {len(every)} cluster(s); resampling needs two at least.")
    parts = {name: _cluster_sums(np.asarray(values, dtype=np.float64), names) for name, (values, names) in sets.items()}
    places = {name: np.searchsorted(every, np.unique(np.asarray(names))) for name, (_, names) in sets.items()}
    found = {name: np.empty(draws) for name in sets}
    step = max(_AT_ONCE // len(every), 1)
    for start in range(0, draws, step):
        some = slice(start, min(start + step, draws))
        shares = np.full(len(every), 1 / len(every))
        counts = generator.multinomial(len(every), shares, size=some.stop - some.start).astype(np.float64)
        for name, (sums, sizes) in parts.items():
            own = counts[:, places[name]]
            drawn = own @ sizes
            means = own @ sums / np.maximum(drawn, 1)
            # A resample that holds nothing of a set says nothing about it: then the set is resampled by itself.
            if (none := drawn == 0).any():
                means[none] = _set_means(sums, sizes, int(none.sum()), generator)
            found[name][some] = means
    return found


def _set_means(
    sums: NDArray[np.float64], sizes: NDArray[np.intp], draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(draws,) means of resampled clusters."""
    count = len(sums)
    if count > _MANY:
        mean = sums.sum() / sizes.sum()
        return generator.normal(mean, np.sqrt(((sums - mean * sizes) ** 2).sum()) / sizes.sum(), draws)
    found = np.empty(draws)
    step = max(_AT_ONCE // count, 1)
    for start in range(0, draws, step):
        picked = generator.integers(count, size=(min(step, draws - start), count))
        found[start : start + step] = sums[picked].sum(1) / sizes[picked].sum(1)
    return found


def _cluster_sums(
    values: NDArray[np.float64], clusters: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The sum and the number of the values of every cluster."""
    names = np.arange(values.size) if clusters is None else np.asarray(clusters)
    if not values.ndim == names.ndim == 1:
        raise InputError(f"values and clusters have the shapes {values.shape} and {names.shape}; both must be (N,).")
    require_equal_length("values and clusters", values, names)
    if not np.isfinite(values).all():
        raise InputError(f"value {np.flatnonzero(~np.isfinite(values))[0]} is not finite. Leave it out, or mend it.")
    _, index = np.unique(names, return_inverse=True)
    sizes = np.bincount(index)
    if len(sizes) < 2:
        raise InputError(f"the values form {len(sizes)} cluster(s); resampling needs two at least.")
    return np.bincount(index, weights=values).astype(np.float64), sizes
