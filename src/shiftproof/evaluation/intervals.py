"""Confidence intervals of accuracies, and bootstrap intervals of means, contrasts and other statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.errors import InputError, require_at_least, require_between, require_equal_length

LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 20  # the number of drawn clusters that are in memory at a time
_NORMAL_FROM = 20_000  # with more clusters than this, the normal limit replaces resampling


def accuracy_interval(correct: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """The Clopper-Pearson interval of ``correct`` successes in ``n`` trials, as fractions in [0, 1].

    Its coverage is at least ``level``, a probability; with none or all correct, one end is 0 or 1 (Clopper & Pearson
    1934). Raises an InputError unless 0 <= ``correct`` <= ``n`` and ``n`` >= 1.

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
    """The interval of a mean with ``n`` known values, all equal to ``value``; others may lie anywhere in ``bounds``.

    Resampling equal values shows no spread, however few they are. The Clopper-Pearson interval bounds the share of
    different values that would not have occurred among ``n``; at worst, these lie at a bound. Raises an InputError if
    the value lies outside its bounds.

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

    ``clusters`` (N,) are labels of any type; all values of a cluster are drawn together, so that values which share a
    class or a source image do not count as independent. Without clusters, the values are drawn one by one. A
    resample's mean is over its values, so that a large cluster weighs more. The same seed gives the same interval. The
    coverage is too low with few clusters (as a rule of thumb, under 30); with more than 20,000, resampling has reached
    the normal limit, which is used instead (Efron & Tibshirani 1993, ch. 13). Raises an InputError for values that are
    not finite, and for fewer than two clusters, which would resample to themselves.

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

    A resample takes the same items of every series, so that deviations can be compared draw by draw. Percentiles of
    them cover too little if the items are few: about 90 % instead of 95 % with 13 items. Raises an InputError for
    series of different lengths, or of fewer than three items.

    >>> drawn = bootstrap_spreads({"a": [0.0, 1.0, 2.0, 3.0], "b": [0.0, 2.0, 4.0, 6.0]})
    >>> bool(np.allclose(2 * drawn["a"], drawn["b"]))
    True
    """
    series = {name: np.asarray(entry, dtype=np.float64) for name, entry in values.items()}
    counts = {len(entry) for entry in series.values()}
    if len(counts) != 1 or min(counts) < 3:
        raise InputError(f"the series have {sorted(counts)} items; the numbers must be equal and at least three.")
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
    """The percentile interval of a weighted sum of several sets' means, such as their mean or a difference of two.

    ``values`` (N_s,), ``weights`` and ``clusters`` (N_s,) are given by set. A cluster of the same name is drawn or
    omitted in all sets together, so that sets of the same drawings do not count as independent; a set without clusters
    is resampled separately, value by value. A set whose values are all equal does not vary between resamples; if the
    ``bounds`` of a value are given, its contribution is the interval of ``alike_interval``. The coverage is too low
    where values are expected to differ in fewer than two or three of the samples, such as the differences of two models
    that almost always agree (about 88 % for a nominal 95 %). Raises an InputError in the same cases as
    ``bootstrap_interval``.

    >>> both = {"photo": [1.0] * 9, "sketch": [0.0] * 9}
    >>> contrast_interval(both, {"photo": 1.0, "sketch": -1.0})
    (1.0, 1.0)
    """
    require_between("level", level, 0, 1)
    require_at_least("draws", draws, 1)
    known = clusters or {}
    means = resampled_means({name: values[name] for name in weights}, known, draws=draws, seed=seed)
    tail = (1 - level) / 2
    low, high = np.quantile(sum(weight * means[name] for name, weight in weights.items()), [tail, 1 - tail])
    for name, weight in weights.items() if bounds else ():
        series = np.asarray(values[name], dtype=np.float64)
        if bounds and np.ptp(series) == 0:
            n = len(np.unique(known[name]) if name in known else series)
            ends = alike_interval(float(series[0]), n, bounds, level=level)
            parts = [weight * (end - series[0]) for end in ends]
            low, high = low + min(parts), high + max(parts)
    return float(low), float(high)


def can_resample(values: Mapping[str, ArrayLike], clusters: Mapping[str, ArrayLike] | None = None) -> bool:
    """Whether every set has at least the two clusters that resampling needs.

    >>> can_resample({"photo": [0.5, 0.7]}), can_resample({"photo": [0.5, 0.7]}, {"photo": ["a", "a"]})
    (True, False)
    """
    known = clusters or {}
    clustered = (np.unique(known[name]) if name in known else np.asarray(series) for name, series in values.items())
    return all(len(items) > 1 for items in clustered)


def resampled_means(
    values: Mapping[str, ArrayLike],
    clusters: Mapping[str, ArrayLike] | None = None,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, NDArray[np.float64]]:
    """(draws,) means of every set's (N_s,) values, resampled as by ``contrast_interval``, with the same errors.

    >>> resampled_means({"photo": [0.5, 0.5]}, draws=2)["photo"].tolist()
    [0.5, 0.5]
    """
    known, generator = clusters or {}, np.random.default_rng(seed)
    clustered = {name: (series, known[name]) for name, series in values.items() if name in known}
    means = _joint_means(clustered, draws, generator)
    for name, series in values.items():
        if name not in means:
            means[name] = _set_means(*_cluster_sums(np.asarray(series, dtype=np.float64), None), draws, generator)
    return means


def statistic_interval(
    statistic: Callable[[NDArray[np.float64]], float],
    n: int,
    clusters: ArrayLike | None = None,
    *,
    level: float = LEVEL,
    draws: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """A bootstrap interval of the value of ``statistic``, a function of the (n,) weights of ``n`` samples.

    It serves statistics that are not means over samples, such as macro F1. A weight is the number of times that a
    sample was drawn. Resamples of such a statistic lie to one side of the measured value on average, as the measured
    value does of the true one. The interval therefore spans two: the resamples' percentiles moved onto the measured
    value, and their reflection in it (the basic interval; Davison and Hinkley 1997, Eq. 5.6), which also corrects the
    measured value for that bias. Either alone covers too little, on one side or the other. Resamples for which the
    statistic is undefined (NaN) are ignored. ``clusters`` (n,) are drawn as wholes. Raises an InputError for fewer than
    two of them.

    >>> values = np.arange(100.0)
    >>> low, high = statistic_interval(lambda weights: float(weights @ values / weights.sum()), 100)
    >>> bool(low < values.mean() < high)
    True
    """
    require_between("level", level, 0, 1)
    resamples = [statistic(weights) for weights in resampled_weights(n, clusters, draws=draws, seed=seed)]
    return centred_interval(statistic(np.ones(n)), resamples, level=level)


def share_interval(
    statistic: Callable[[NDArray[np.float64]], float], n: int, clusters: ArrayLike | None = None
) -> tuple[float, float] | None:
    """The 95 % interval of a statistic in [0, 1], by ``statistic_interval``; None if all samples are one cluster.

    Where no resample differs, it is that of ``alike_interval`` over the clusters.

    >>> [round(end, 4) for end in share_interval(lambda weights: 0.0, 10) or ()]
    [0.0, 0.3085]
    """
    count = n if clusters is None else len(np.unique(np.asarray(clusters)))
    if count < 2:
        return None
    low, high = statistic_interval(statistic, n, clusters)
    if low == high:
        low, high = alike_interval(low, count, (0.0, 1.0))
    return max(low, 0.0), min(high, 1.0)


def centred_interval(value: float, resamples: Sequence[float], *, level: float = LEVEL) -> tuple[float, float]:
    """The interval of ``statistic_interval`` from the value on all samples and those on resamples, NaN left out.

    >>> [round(end, 2) for end in centred_interval(1.0, [1.0, 2.0, 3.0], level=0.999)]
    [-1.0, 2.0]
    """
    tail = (1 - level) / 2
    lowest, highest = map(float, np.nanquantile(resamples, [tail, 1 - tail]))
    bias = float(np.nanmean(resamples)) - value
    return min(lowest - bias, 2 * value - highest), max(highest - bias, 2 * value - lowest)


def resampled_weights(
    n: int, clusters: ArrayLike | None = None, *, draws: int, seed: int
) -> Iterator[NDArray[np.float64]]:
    """Yields (n,) weights, the number of times that each of ``n`` samples was drawn, once per resample.

    ``clusters`` (n,) are drawn as wholes. Raises an InputError for fewer than two of them.

    >>> [float(weights.sum()) for weights in resampled_weights(4, draws=2, seed=0)]
    [4.0, 4.0]
    """
    require_at_least("draws", draws, 1)
    _, index = np.unique(np.arange(n) if clusters is None else np.asarray(clusters), return_inverse=True)
    require_equal_length("samples and clusters", range(n), index)
    if (count := int(index.max()) + 1) < 2:
        raise InputError(f"the samples form {count} cluster(s); resampling needs at least two.")
    generator, shares = np.random.default_rng(seed), np.full(count, 1 / count)
    for _ in range(draws):
        yield generator.multinomial(count, shares)[index].astype(np.float64)


def _joint_means(
    sets: Mapping[str, tuple[ArrayLike, ArrayLike]], draws: int, generator: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """(draws,) means of several sets' values, whose clusters of the same name are resampled together."""
    if not sets:
        return {}
    clusters = np.unique(np.concatenate([np.asarray(names) for _, names in sets.values()]))
    if len(clusters) < 2:
        raise InputError(f"the values form {len(clusters)} cluster(s); resampling needs at least two.")
    parts = {name: _cluster_sums(np.asarray(values, dtype=np.float64), names) for name, (values, names) in sets.items()}
    positions = {name: np.searchsorted(clusters, np.unique(np.asarray(names))) for name, (_, names) in sets.items()}
    all_means = {name: np.empty(draws) for name in sets}
    step = max(_DRAWS_AT_ONCE // len(clusters), 1)
    for start in range(0, draws, step):
        block = slice(start, min(start + step, draws))
        shares = np.full(len(clusters), 1 / len(clusters))
        counts = generator.multinomial(len(clusters), shares, size=block.stop - block.start).astype(np.float64)
        for name, (sums, sizes) in parts.items():
            set_counts = counts[:, positions[name]]
            drawn_values = set_counts @ sizes
            means = set_counts @ sums / np.maximum(drawn_values, 1)
            # If a resample contains no value of a set, the set is resampled separately for that draw.
            if (empty := drawn_values == 0).any():
                means[empty] = _set_means(sums, sizes, int(empty.sum()), generator)
            all_means[name][block] = means
    return all_means


def _set_means(
    sums: NDArray[np.float64], sizes: NDArray[np.intp], draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """(draws,) means over resampled clusters, from the (C,) sums and numbers of the clusters' values."""
    count = len(sums)
    if count > _NORMAL_FROM:
        mean = sums.sum() / sizes.sum()
        return generator.normal(mean, np.sqrt(((sums - mean * sizes) ** 2).sum()) / sizes.sum(), draws)
    means = np.empty(draws)
    step = max(_DRAWS_AT_ONCE // count, 1)
    for start in range(0, draws, step):
        picked = generator.integers(count, size=(min(step, draws - start), count))
        means[start : start + step] = sums[picked].sum(1) / sizes[picked].sum(1)
    return means


def _cluster_sums(
    values: NDArray[np.float64], clusters: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """The (C,) sums and the (C,) numbers of the values of every cluster; raises an InputError for unsuitable values."""
    names = np.arange(values.size) if clusters is None else np.asarray(clusters)
    if not values.ndim == names.ndim == 1:
        raise InputError(f"values and clusters have the shapes {values.shape} and {names.shape}; both must be (N,).")
    require_equal_length("values and clusters", values, names)
    if not np.isfinite(values).all():
        raise InputError(f"value {np.flatnonzero(~np.isfinite(values))[0]} is not finite. Leave it out or fix it.")
    _, index = np.unique(names, return_inverse=True)
    sizes = np.bincount(index)
    if len(sizes) < 2:
        raise InputError(f"the values form {len(sizes)} cluster(s); resampling needs at least two.")
    return np.bincount(index, weights=values).astype(np.float64), sizes
