"""Linear centred kernel alignment of two models' features, exact in one pass (Kornblith et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from shiftproof.diagnosis.agreement import measured_mean
from shiftproof.diagnosis_records import CkaRecord
from shiftproof.errors import InputError, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks

Floats = NDArray[np.float64]
_ROWS = 4096


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
    require_equal_length("the features", first, second)
    sums = CkaSums()
    for start in range(0, len(first), _ROWS):
        sums.add(first[start : start + _ROWS], second[start : start + _ROWS])
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
        first, second = _features(x), _features(y)
        require_equal_length("the features", first, second)
        if not self.n:
            # Neither CKA depends on an offset; near the mean no digit is lost to it.
            self._offset = first.mean(0), second.mean(0)
            self._widths = first.shape[1], second.shape[1]
            self._products = np.zeros((sum(self._widths),) * 2)
            self._columns = np.zeros(sum(self._widths))
            self._norms = np.zeros(2)
            self._by_norms = np.zeros((sum(self._widths), 2))
            self._norm_products = np.zeros((2, 2))
        if (first.shape[1], second.shape[1]) != self._widths:
            raise InputError(
                f"this block has {first.shape[1]} and {second.shape[1]} columns, those before {self._widths[0]} and "
                f"{self._widths[1]}. Take all blocks from the same two layers."
            )
        first, second = first - self._offset[0], second - self._offset[1]
        both, norms = np.hstack([first, second]), np.stack([(first**2).sum(1), (second**2).sum(1)], axis=1)
        self.n += len(both)
        self._products += both.T @ both
        self._columns += both.sum(0)
        self._norms += norms.sum(0)
        self._by_norms += both.T @ norms
        self._norm_products += norms.T @ norms

    def biased(self) -> float:
        """The CKA as it was defined."""
        if self.n < 2:
            raise InputError(f"{self.n} sample(s) have no CKA; give two at least.")
        return _ratio({pair: self._biased(*pair) for pair in _PAIRS})

    def debiased(self) -> float:
        """The CKA of unbiased estimates."""
        if self.n < 4:
            raise InputError(f"{self.n} samples have no debiased CKA; give four at least.")
        return _ratio({pair: self._debiased(*pair) for pair in _PAIRS})

    def influences(self, x: ArrayLike, y: ArrayLike) -> Floats:
        """(n,) values of some of the samples; over all that were taken in their mean is the biased CKA.

        Each is the CKA moved by its sample's influence on it (the derivative by the sample's weight), so that a
        resample's mean is the CKA of the resample, to first order.
        """
        centred = [
            _features(values) - offset - self._columns[self._part(which)] / self.n
            for which, (values, offset) in enumerate(zip((x, y), self._offset, strict=True))
        ]
        value, parts = self.biased(), {}
        for one, other in _PAIRS:
            rows, columns = self._part(one), self._part(other)
            covariance = self._products[rows, columns] / self.n
            covariance -= np.outer(self._columns[rows], self._columns[columns]) / self.n**2
            whole = float((covariance**2).sum())
            own = ((centred[one] @ covariance) * centred[other]).sum(1)
            parts[one, other] = 2 * (own / whole - 1) if whole else np.zeros(len(own))
        return np.asarray(value * (1 + parts[0, 1] - (parts[0, 0] + parts[1, 1]) / 2))

    def _part(self, which: int) -> slice:
        return slice(0, self._widths[0]) if which == 0 else slice(self._widths[0], None)

    def _biased(self, one: int, other: int) -> float:
        """||X'Y||^2 of centred features."""
        rows, columns = self._part(one), self._part(other)
        mean = np.outer(self._columns[rows], self._columns[columns]) / self.n
        return float(((self._products[rows, columns] - mean) ** 2).sum())

    def _debiased(self, one: int, other: int) -> float:
        """N (n - 3) times the unbiased HSIC of the kernels XX' and YY' without their diagonals."""
        n, rows, columns = self.n, self._part(one), self._part(other)
        x, y, cross = self._columns[rows], self._columns[columns], self._products[rows, columns]
        diagonal = self._norm_products[one, other]
        trace = float((cross**2).sum() - diagonal)
        sums = (x @ x - self._norms[one]) * (y @ y - self._norms[other])
        chained = x @ cross @ y - x @ self._by_norms[rows, other] - y @ self._by_norms[columns, one] + diagonal
        return trace + float(sums / ((n - 1) * (n - 2)) - 2 * chained / (n - 2))


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
    return CkaRecord(sums.n, measured_mean(samples, clusters, value), debiased)


def _both(first: Logits, second: Logits) -> Iterator[tuple[NDArray[np.floating], NDArray[np.floating]]]:
    require_equal_length("the outputs", range(first.shape[0]), range(second.shape[0]))
    return zip(logit_blocks(first, _ROWS), logit_blocks(second, _ROWS), strict=True)


_PAIRS = ((0, 1), (0, 0), (1, 1))


def _ratio(found: dict[tuple[int, int], float]) -> float:
    own = found[0, 0], found[1, 1]
    if min(own) <= 0:
        which = "first" if own[0] <= 0 else "second"
        raise InputError(f"the {which} features do not vary, or too little for so few samples; CKA is not defined.")
    return found[0, 1] / math.sqrt(own[0]) / math.sqrt(own[1])


def _features(values: ArrayLike) -> Floats:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise InputError(f"features have the shape {found.shape}; they must be (N, P). Flatten what a sample has.")
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found).all(1))[0])
        raise InputError(f"the features of sample {row} are not finite. The model's weights are broken.")
    return found
