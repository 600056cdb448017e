"""The metrics of LAION's CLIP_benchmark for classification: acc1, acc5 and the mean recall of the classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks
from shiftproof.records.benchmarks import BenchmarkMetrics

_FIVE = 5


def measure_benchmark(logits: Logits, labels: NDArray[np.integer]) -> BenchmarkMetrics:
    """The metrics of (N, K) logits with their (N,) labels.

    Of equal logits, the first class counts as the more probable one. Classes without images have no recall. Raises an
    InputError for arrays that are empty or of different lengths.

    >>> measure_benchmark(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2])).acc1
    0.6666666666666666
    """
    require_equal_length("labels and logits", labels, range(logits.shape[0]))
    require_at_least("the number of samples", len(labels), 1)
    places, start = np.empty(len(labels), dtype=np.int64), 0
    for block in logit_blocks(logits):
        if not np.isfinite(block).all():
            raise InputError("some logits are not finite. The model's weights are broken.")
        places[start : start + len(block)] = _places(block, labels[start : start + len(block)])
        start += len(block)
    hits, counts = (np.bincount(labels[mask], minlength=logits.shape[1]) for mask in (places == 0, places >= 0))
    return BenchmarkMetrics(
        acc1=float((places == 0).mean()),
        acc5=float((places < _FIVE).mean()) if logits.shape[1] >= _FIVE else None,
        mean_per_class_recall=float((hits[counts > 0] / counts[counts > 0]).mean()),
    )


def _places(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """How many classes each sample's logits place before its label, (N,)."""
    of_label = np.take_along_axis(logits, labels[:, None], axis=1)
    earlier = np.arange(logits.shape[1]) < labels[:, None]
    return np.asarray(((logits > of_label) | ((logits == of_label) & earlier)).sum(1))
