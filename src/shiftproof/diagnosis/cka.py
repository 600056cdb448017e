"""Linear centred kernel alignment of two models' features, exact in one pass (Kornblith et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.means import measured_mean
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.records.comparisons import CkaRecord

Floats = NDArray[np.float64]
_STILL = 1e-6  # of a layer's size; about 8 roundings of the float32 that networks work in


def linear_cka(x: ArrayLike, y: ArrayLike, *, debiased: bool = False) -> float:
    """The linear CKA of (N, P) and (N, Q) features of the same samples, in float64.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) of column-centred features, in [0, 1]: 1 for features that are a rotation, scaling and
    shift of each other (Kornblith et al. 2019, Eq. 4). With few samples and many columns it is large for unrelated
    features, too; ``debiased`` takes the unbiased HSIC in its place (Song et al. 2012; Nguyen et al. 2021), which is
    about 0 then and may be below. An InputError refuses features that are constant or not finite.

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
    """The sums of which both CKAs are made, taken in block by block: memory of (P + Q)^2, whatever N.

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
        """Takes in (n, P) and (n, Q) features of n more samples."""
        both = _features(x), _features(y)
        require_equal_length("the features", *both)
        widths = both[0].shape[1], both[1].shape[1]
        if not self.n:
            # Neither CKA depends on an offset; near the mean no digit is lost to it.
            self._offset = both[0].mean(0), both[1].mean(0)
            self._widths = widths
            self._pairs = {(one, other): _Products(widths[one], widths[other]) for one, other in _PAIRS}
        if widths != self._widths:
            raise InputError(
                f"this block has {widths[0]} and {widths[1]} columns, those before {self._widths[0]} and "
                f"{self._widths[1]}. Take all blocks from the same two layers."
            )
        self.n += len(both[0])
        near = both[0] - self._offset[0], both[1] - self._offset[1]
        for (one, other), products in self._pairs.items():
            products.add(near[one], near[other])

    def biased(self) -> float:
        """The CKA as it was defined."""
        if self.n < 2:
            raise InputError(f"{self.n} sample(s) have no CKA; give two at least.")
        self._require_variation()
        return _ratio({pair: products.biased() for pair, products in self._pairs.items()})

    def debiased(self) -> float:
        """The CKA of unbiased estimates."""
        if self.n < 4:
            raise InputError(f"{self.n} samples have no debiased CKA; give four at least.")
        self._require_variation()
        return _ratio({pair: products.debiased() for pair, products in self._pairs.items()})

    def influences(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """(n,) values of some of the samples; over all that were taken in their mean is the biased CKA.

        Each is the CKA moved by its sample's influence on it (the derivative by the sample's weight), so that a
        resample's mean is the CKA of the resample, to first order.
        """
        value, parts = self.biased(), {}
        centred = [
            _features(values) - offset - columns / self.n
            for values, offset, columns in zip((x, y), self._offset, self._pairs[0, 1].columns, strict=True)
        ]
        for (one, other), products in self._pairs.items():
            covariance = products.centred() / self.n
            whole = float((covariance**2).sum())
            own = ((centred[one] @ covariance) * centred[other]).sum(1)
            parts[one, other] = 2 * (own / whole - 1) if whole else np.zeros(len(own))
        return np.asarray(value * (1 + parts[0, 1] - (parts[0, 0] + parts[1, 1]) / 2))

    def _require_variation(self) -> None:
        for side, which in enumerate(("first", "second")):
            if not self._pairs[side, side].varies(self._offset[side]):
                raise InputError(f"the {which} features do not vary beyond rounding; CKA is not defined.")


class CkaTable:
    """Every layer of one model with every layer of another, block by block: ``CkaSums`` for many, at P x Q memory.

    P and Q are the columns of all layers of the one and of the other. Every layer's products with itself are summed
    once, not again for every pair.

    >>> x = np.random.default_rng(0).normal(size=(20, 3))
    >>> table = CkaTable()
    >>> table.add([x, np.ones((20, 2))], [-x])
    >>> [row[0] if row[0] is None else round(row[0], 12) for row in table.values()]
    [1.0, None]
    """

    def __init__(self) -> None:
        self.n = 0

    def add(self, first: Sequence[ArrayLike], second: Sequence[ArrayLike]) -> None:
        """Takes in n more samples: the first model's layers, (n, P_i) each, and the second's, (n, Q_j) each."""
        ones, others = [_features(layer) for layer in first], [_features(layer) for layer in second]
        for layer in (*ones, *others):
            require_equal_length("the layers", ones[0], layer)
        if not self.n:
            self._offsets = [[layer.mean(0) for layer in layers] for layers in (ones, others)]
            self._own = [[_Products(len(o), len(o)) for o in offsets] for offsets in self._offsets]
            self._cross = [[_Products(len(o), len(p)) for p in self._offsets[1]] for o in self._offsets[0]]
        self.n += len(ones[0])
        near = [_less(ones, self._offsets[0]), _less(others, self._offsets[1])]
        for layers, kept in zip(near, self._own, strict=True):
            for layer, products in zip(layers, kept, strict=True):
                products.add(layer, layer)
        for x, row in zip(near[0], self._cross, strict=True):
            for y, products in zip(near[1], row, strict=True):
                products.add(x, y)

    def values(self, debiased: bool = False) -> tuple[tuple[float | None, ...], ...]:
        """The CKAs, a row for each of the first's layers: None where one does not vary, or too little for so few."""
        if self.n < (least := 4 if debiased else 2):
            raise InputError(f"{self.n} sample(s) are too few for this CKA; give {least} at least.")
        norms = [
            [
                _of(products, debiased) if products.varies(offset) else 0.0
                for products, offset in zip(*pair, strict=True)
            ]
            for pair in zip(self._own, self._offsets, strict=True)
        ]
        return tuple(
            tuple(
                _of(products, debiased) / math.sqrt(one) / math.sqrt(other) if min(one, other) > 0 else None
                for products, other in zip(row, norms[1], strict=True)
            )
            for row, one in zip(self._cross, norms[0], strict=True)
        )


class _Products:
    """What HSIC needs of (N, P) and (N, Q) features, X and Y, whose rows' squared lengths are a and b."""

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
        """(P, Q) X'Y of centred features."""
        return np.asarray(self.cross - np.outer(*self.columns) / self.n)

    def biased(self) -> float:
        """||X'Y||^2 of centred features."""
        return float((self.centred() ** 2).sum())

    def debiased(self) -> float:
        """N (n - 3) times the unbiased HSIC of the kernels XX' and YY' without their diagonals."""
        n, (x, y) = self.n, self.columns
        trace = float((self.cross**2).sum() - self.diagonal)
        sums = (x @ x - self.norms[0]) * (y @ y - self.norms[1])
        chained = x @ self.cross @ y - x @ self.by_norms[0] - y @ self.by_norms[1] + self.diagonal
        return trace + float(sums / ((n - 1) * (n - 2)) - 2 * chained / (n - 2))

    def varies(self, offset: Floats) -> bool:
        """Whether features paired with themselves, from which ``offset`` (P,) was taken, vary beyond rounding."""
        whole = self.norms[0] + 2 * offset @ self.columns[0] + self.n * (offset @ offset)
        return bool(self.norms[0] - (self.columns[0] ** 2).sum() / self.n > _STILL**2 * whole)


def _less(layers: Sequence[Floats], offsets: Sequence[Floats]) -> list[Floats]:
    return [layer - offset for layer, offset in zip(layers, offsets, strict=True)]


def _of(products: _Products, debiased: bool) -> float:
    return products.debiased() if debiased else products.biased()


def measure_cka(first: Logits, second: Logits, clusters: ArrayLike | None = None) -> CkaRecord:
    """The linear CKA of two models' (N, K) outputs, biased and debiased, with a 95 % interval of the biased one.

    What the paper compares for classifiers on one frozen encoder, whose features are equal (WiSE-FT, app. E). Arrays or
    kept predictions, read twice: the second time for every sample's influence on the CKA, whose mean is resampled, by
    ``clusters`` (N,) where they are given. Outputs that do not vary, and too few samples, give None.

    >>> outputs = np.random.default_rng(0).normal(size=(20, 3))
    >>> found = measure_cka(outputs, 2 * outputs)
    >>> round(found.biased.value, 12), round(found.debiased, 12)
    (1.0, 1.0)
    """
    sums = CkaSums()
    for x, y in _both(first, second):
        sums.add(x, y)
    try:
        value = sums.biased()
    except InputError:
        return CkaRecord(sums.n, None, None)
    samples = np.concatenate([sums.influences(x, y) for x, y in _both(first, second)])
    try:
        debiased = sums.debiased()
    except InputError:
        debiased = None
    return CkaRecord(sums.n, measured_mean(samples, clusters, value, bounds=(0.0, 1.0)), debiased)


def _both(first: Logits, second: Logits) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    require_equal_length("the features", range(first.shape[0]), range(second.shape[0]))
    return zip(logit_blocks(first), logit_blocks(second), strict=True)


_PAIRS = ((0, 1), (0, 0), (1, 1))


def _ratio(found: dict[tuple[int, int], float]) -> float:
    own = found[0, 0], found[1, 1]
    if min(own) <= 0:
        which = "first" if own[0] <= 0 else "second"
        raise InputError(f"the {which} features vary too little for so few samples; CKA is not defined.")
    return found[0, 1] / math.sqrt(own[0]) / math.sqrt(own[1])


def _features(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise InputError(f"features have the shape {found.shape}; they must be (N, P). Flatten what a sample has.")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise InputError(f"the features of sample {row} are not finite. The model's weights are broken.")
    return found
