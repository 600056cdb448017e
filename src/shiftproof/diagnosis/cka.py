"""Linear centred kernel alignment of two models' features, exact in one pass (Kornblith et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.means import measured_mean
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.records.comparisons import CkaRecord, Measured

Floats = NDArray[np.float64]
_STILL = 1e-6  # relative to a layer's norm; about 8 rounding errors of float32, in which networks compute


def linear_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = False) -> float:
    """Returns the linear CKA of (N, P) and (N, Q) features of the same samples, computed in float64.

    It is ||Y'X||^2 / (||X'X|| ||Y'Y||) of column-centred features and lies in [0, 1]; it is 1 where the features are a
    rotation, scaling and shift of each other (Kornblith et al. 2019, Eq. 4). With few samples and many columns it is
    large even for unrelated features. ``debiased`` uses the unbiased HSIC instead (Song et al. 2012; Nguyen et al.
    2021), for which the result is then about 0 and may be negative. Raises an InputError where features are constant
    or not finite, and for fewer than 2 samples (4 if debiased).

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> round(linear_cka(x, 2 * x[:, ::-1] + 1), 12)
    1.0
    """
    first, second = _features(x), _features(y)
    sums = CkaSums()
    for one, other in _both(first, second):
        sums.add(one, other)
    return sums.debiased() if debiased else sums.biased()


class CkaSums:
    """The sums from which both CKAs are computed, accumulated block by block in (P + Q)^2 numbers for any N.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> sums = CkaSums()
    >>> sums.add(x[:9], -x[:9])
    >>> sums.add(x[9:], -x[9:])
    >>> round(sums.debiased(), 12)
    1.0
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, x: ArrayLike, y: ArrayLike) -> None:
        """Adds (n, P) and (n, Q) features of n more samples; raises an InputError where P or Q changes."""
        both = _features(x), _features(y)
        require_equal_length("the features", *both)
        widths = both[0].shape[1], both[1].shape[1]
        if not self.n:
            # Neither CKA depends on an offset, and near the mean no digits are lost to one.
            self._offset = both[0].mean(0), both[1].mean(0)
            self._widths = widths
            self._pairs = {(one, other): _Products(widths[one], widths[other]) for one, other in _PAIRS}
        if widths != self._widths:
            raise InputError(
                f"this block has {widths[0]} and {widths[1]} columns, and the blocks before it {self._widths[0]} and "
                f"{self._widths[1]}. Take all blocks from the same two layers."
            )
        self.n += len(both[0])
        near = both[0] - self._offset[0], both[1] - self._offset[1]
        for (one, other), products in self._pairs.items():
            products.add(near[one], near[other])

    def biased(self) -> float:
        """Returns the CKA as it was defined, in [0, 1]; raises an InputError for fewer than 2 samples."""
        if self.n < 2:
            raise InputError(f"the number of samples is {self.n}; CKA needs at least 2.")
        self._require_variation()
        return _ratio(self.squared_norms())

    def debiased(self) -> float:
        """Returns the CKA of unbiased estimates, at most 1; raises an InputError for fewer than 4 samples."""
        if self.n < 4:
            raise InputError(f"the number of samples is {self.n}; debiased CKA needs at least 4.")
        self._require_variation()
        return _ratio({pair: products.debiased() for pair, products in self._pairs.items()})

    def influences(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """Returns (n,) values for some of the samples; their mean over all samples is the biased CKA.

        Each value is the CKA plus the sample's influence on it (the derivative with respect to the sample's weight), so
        that the mean over a resample is the CKA of that resample to first order.
        """
        value, parts, centred = self.biased(), {}, self.centred(x, y)
        for (one, other), products in self._pairs.items():
            covariance = products.centred() / self.n
            whole = float((covariance**2).sum())
            of_samples = ((centred[one] @ covariance) * centred[other]).sum(1)
            parts[one, other] = 2 * (of_samples / whole - 1) if whole else np.zeros(len(of_samples))
        return np.asarray(value * (1 + parts[0, 1] - (parts[0, 0] + parts[1, 1]) / 2))

    def centred(self, x: ArrayLike, y: ArrayLike) -> tuple[Floats, Floats]:
        """Returns the (n, P) and (n, Q) features of some of the samples, less their means over all samples."""
        one, other = (
            _features(values) - offset - columns / self.n
            for values, offset, columns in zip((x, y), self._offset, self._pairs[0, 1].columns, strict=True)
        )
        return one, other

    def squared_norms(self) -> dict[tuple[int, int], float]:
        """Returns ||Y'X||^2, ||X'X||^2 and ||Y'Y||^2 of the centred features, from which the biased CKA follows."""
        return {pair: products.biased() for pair, products in self._pairs.items()}

    def _require_variation(self) -> None:
        for side, which in enumerate(("first", "second")):
            if not self._pairs[side, side].varies(self._offset[side]):
                raise InputError(f"the {which} features do not vary beyond rounding, so CKA is not defined.")


class CkaTable:
    """The CKA of every layer of one model with every layer of another, accumulated block by block.

    It holds P x Q numbers, where P and Q are the columns of all layers of the two models. Every layer's products with
    itself are summed only once rather than for every pair.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> table = CkaTable()
    >>> table.add([x, np.ones((20, 2))], [-x])
    >>> [row[0] if row[0] is None else round(row[0], 12) for row in table.values()]
    [1.0, None]
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> None:
        """Adds n more samples: the first model's layers, (n, P_i) each, and the second's, (n, Q_j) each.

        Raises an InputError if the layers have different numbers of samples.
        """
        ones, others = [_features(layer) for layer in first], [_features(layer) for layer in second]
        for layer in (*ones, *others):
            require_equal_length("the layers", ones[0], layer)
        if not self.n:
            self._offsets = [[layer.mean(0) for layer in layers] for layers in (ones, others)]
            self._squares = [[_Products(len(o), len(o)) for o in offsets] for offsets in self._offsets]
            self._cross = [[_Products(len(o), len(p)) for p in self._offsets[1]] for o in self._offsets[0]]
        self.n += len(ones[0])
        near = [_less(ones, self._offsets[0]), _less(others, self._offsets[1])]
        for layers, squares in zip(near, self._squares, strict=True):
            for layer, products in zip(layers, squares, strict=True):
                products.add(layer, layer)
        for x, row in zip(near[0], self._cross, strict=True):
            for y, products in zip(near[1], row, strict=True):
                products.add(x, y)

    def values(self, debiased: bool = False) -> tuple[tuple[float | None, ...], ...]:
        """Returns the CKAs with one row for each layer of the first model.

        A value is None where a layer does not vary, or varies too little for so few samples. Raises an InputError for
        fewer than 2 samples (4 if debiased).
        """
        if self.n < (least := 4 if debiased else 2):
            raise InputError(f"the number of samples is {self.n}; this CKA needs at least {least}.")
        norms = [
            [
                _of(products, debiased) if products.varies(offset) else 0.0
                for products, offset in zip(*pair, strict=True)
            ]
            for pair in zip(self._squares, self._offsets, strict=True)
        ]
        return tuple(
            tuple(
                _of(products, debiased) / math.sqrt(one) / math.sqrt(other) if min(one, other) > 0 else None
                for products, other in zip(row, norms[1], strict=True)
            )
            for row, one in zip(self._cross, norms[0], strict=True)
        )


class _Products:
    """The sums that HSIC needs of (N, P) features X and (N, Q) features Y, whose rows have squared lengths a and b."""

    def __init__(self, p: int, q: int) -> None:
        self.n = 0
        self.cross = np.zeros((p, q))  # X'Y
        self.columns = np.zeros(p), np.zeros(q)
        self.norms = np.zeros(2)  # the sums of a and b
        self.by_norms = np.zeros(p), np.zeros(q)  # X'b and Y'a
        self.diagonal = 0.0  # a'b

    def add(self, x: Floats, y: Floats) -> None:
        a, b = (x**2).sum(1), (y**2).sum(1)
        self.n += len(x)
        self.cross += x.T @ y
        self.norms += a.sum(), b.sum()
        self.diagonal += float(a @ b)
        new = x.sum(0), y.sum(0), b @ x, a @ y
        for total, part in zip((*self.columns, *self.by_norms), new, strict=True):
            np.add(total, part, out=total)

    def centred(self) -> Floats:
        """Returns X'Y (P, Q) of the centred features."""
        return np.asarray(self.cross - np.outer(*self.columns) / self.n)

    def biased(self) -> float:
        """Returns ||X'Y||^2 of the centred features."""
        return float((self.centred() ** 2).sum())

    def debiased(self) -> float:
        """Returns n (n - 3) times the unbiased HSIC of the kernels XX' and YY' without their diagonals."""
        n, (x, y) = self.n, self.columns
        trace = float((self.cross**2).sum() - self.diagonal)
        sums = (x @ x - self.norms[0]) * (y @ y - self.norms[1])
        chained = x @ self.cross @ y - x @ self.by_norms[0] - y @ self.by_norms[1] + self.diagonal
        return trace + float(sums / ((n - 1) * (n - 2)) - 2 * chained / (n - 2))

    def varies(self, offset: Floats) -> bool:
        """Whether features that were paired with themselves, after ``offset`` (P,) was subtracted, vary."""
        whole = self.norms[0] + 2 * offset @ self.columns[0] + self.n * (offset @ offset)
        return bool(self.norms[0] - (self.columns[0] ** 2).sum() / self.n > _STILL**2 * whole)


def _less(layers: Sequence[Floats], offsets: Sequence[Floats]) -> list[Floats]:
    return [layer - offset for layer, offset in zip(layers, offsets, strict=True)]


def _of(products: _Products, debiased: bool) -> float:
    return products.debiased() if debiased else products.biased()


def measure_cka(first: Logits, second: Logits, clusters: ArrayLike | None = None) -> CkaRecord:
    """Measures the linear CKA of two models' (N, K) outputs in three forms, with a 95 % interval.

    The paper compares outputs because classifiers on one frozen encoder have equal features (WiSE-FT, app. E). Outputs
    are arrays or predictions on disk, and are read in several passes. ``clusters`` (N,) name the samples that belong
    together, such as the views of one drawing.

    The biased CKA is above the CKA of the distribution, since it counts pairs of a sample with itself; the more
    columns and the fewer samples, the more. The debiased one omits these pairs (Song et al. 2012), and the
    ``corrected`` one omits all pairs within a cluster, which are alike as well. Without clusters, both are the same.
    The interval is centred on the corrected CKA. Its width comes from the influence of every sample on the CKA, which
    is resampled by clusters. It covers the CKA of the distribution where that is at least 0.1 and where there are at
    least 50 clusters and more of them than columns; where outputs are almost unrelated, it may cover too little.

    The record holds None where outputs do not vary or the samples are too few. Raises an InputError where outputs are
    not finite or the numbers of samples differ.

    >>> outputs = np.random.default_rng(0).normal(size=(20, 3))
    >>> cka = measure_cka(outputs, 2 * outputs)
    >>> round(cka.biased.value, 12), round(cka.debiased, 12), round(cka.corrected.value, 12)
    (1.0, 1.0, 1.0)
    """
    sums = CkaSums()
    for x, y in _both(first, second):
        sums.add(x, y)
    try:
        value = sums.biased()
    except InputError:
        return CkaRecord(sums.n, None, None)
    try:
        debiased = sums.debiased()
    except InputError:
        return CkaRecord(sums.n, Measured(value, None), None)
    corrected = debiased if clusters is None else _over_different_clusters(sums, _both(first, second), clusters)
    if corrected is None:
        return CkaRecord(sums.n, Measured(value, None), debiased)
    samples = np.concatenate([sums.influences(x, y) for x, y in _both(first, second)])
    interval = measured_mean(samples, clusters, value, bounds=(0.0, 1.0)).interval
    if interval is not None:
        low, high = (float(np.clip(end + corrected - value, 0.0, 1.0)) for end in interval)
        interval = low, high
    return CkaRecord(sums.n, Measured(value, interval), debiased, Measured(corrected, interval))


def _over_different_clusters(
    sums: CkaSums, blocks: Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]], clusters: ArrayLike
) -> float | None:
    """The CKA without the pairs of samples in one cluster, or None if it is not defined for so few clusters.

    The squared norm of a sum over clusters c of X_c'Y_c is the sum of <X_c'Y_c, X_d'Y_d> over all c and d. Only those
    with c = d are biased, so that their sum is subtracted; features are centred by their means over all samples.
    """
    _, index = np.unique(np.asarray(clusters), return_inverse=True)
    require_equal_length("samples and clusters", range(sums.n), index)
    missing = np.bincount(index)  # the samples of a cluster that no block has had yet
    waiting: dict[int, list[tuple[Floats, Floats]]] = {}
    within, start = dict.fromkeys(_PAIRS, 0.0), 0
    for block in blocks:
        both = sums.centred(*block)
        codes = index[start : start + len(both[0])]
        start += len(codes)
        for code in np.unique(codes).tolist():
            rows = codes == code
            waiting.setdefault(code, []).append((both[0][rows], both[1][rows]))
            missing[code] -= rows.sum()
            if not missing[code]:
                sides = [np.concatenate(parts) for parts in zip(*waiting.pop(code), strict=True)]
                for one, other in _PAIRS:
                    within[one, other] += _squared_norm(sides[one], sides[other])
    products = {pair: total - within[pair] for pair, total in sums.squared_norms().items()}
    if len(missing) < 2 or min(products[0, 0], products[1, 1]) <= 0:
        return None
    return _ratio(products)


def _squared_norm(x: Floats, y: Floats) -> float:
    """||X'Y||^2 of (m, P) and (m, Q) features, by way of the smaller of the two products that give it."""
    if len(x) ** 2 < x.shape[1] * y.shape[1]:
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float(((x.T @ y) ** 2).sum())


def _both(first: Logits, second: Logits) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    require_equal_length("the features", range(first.shape[0]), range(second.shape[0]))
    return zip(logit_blocks(first), logit_blocks(second), strict=True)


_PAIRS = ((0, 1), (0, 0), (1, 1))


def _ratio(products: dict[tuple[int, int], float]) -> float:
    norms = products[0, 0], products[1, 1]
    if min(norms) <= 0:
        which = "first" if norms[0] <= 0 else "second"
        raise InputError(
            f"the {which} features vary too little for so few samples, so CKA is not defined. Give more samples."
        )
    return products[0, 1] / math.sqrt(norms[0]) / math.sqrt(norms[1])


def _features(values: ArrayLike) -> Floats:
    features = np.asarray(values, dtype=np.float64)
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"features have the shape {features.shape}; they must be (N, P). Flatten each sample.")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(1))[0])
        raise InputError(f"the features of sample {row} are not finite. The model's weights are broken.")
    return features
