"""Checks on the logits of several models, the classes that they name, and which of these are right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks

_AT_ONCE = 1 << 20  # logits that are held in float64 together


def block_rows(logits: Logits) -> int:
    """How many rows of (N, K) logits are read at once, so that a block fits in memory whatever K is."""
    return max(_AT_ONCE // logits.shape[1], 1)


def named_classes(logits: Logits) -> NDArray[np.int64]:
    """(N,) the classes that (N, K) logits name; kept predictions are read block by block.

    >>> named_classes(np.eye(3)).tolist()
    [0, 1, 2]
    """
    rows = block_rows(logits)
    blocks = enumerate(logit_blocks(logits, rows))
    return np.concatenate([checked_logits(block, start=number * rows)[0].argmax(1) for number, block in blocks])


def correct_logits(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,) whether the largest of each sample's (N, K) logits is that of its label (N,)."""
    return correct_predictions(logits.argmax(1), labels)


def correct_predictions(named: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """(N,) whether each named class (N,) is the label (N,); raises an InputError for unlabelled images."""
    require_equal_length("predictions and labels", named, labels)
    if len(labels) and labels.min() < 0:
        raise InputError(f"a label is {labels.min()}, which no class has: the images are unlabelled. Leave labels out.")
    return np.asarray(named == labels)


def checked_logits(*several: NDArray[np.floating], start: int = 0) -> tuple[NDArray[np.floating], ...]:
    """The logits, once they are finite and of the same samples and classes; ``start`` is the first sample's number."""
    require_alike(*several)
    for logits in several:
        if not np.isfinite(logits).all():
            row = start + int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
            raise InputError(f"the logits of sample {row} are not finite. The model's weights are broken.")
    return several


def require_alike(*several: Logits) -> None:
    """Raises an InputError unless all logits have the same shape (N, K), with N >= 1 and K >= 2."""
    for logits in several:
        if len(logits.shape) != 2 or logits.shape[1] < 2:
            raise InputError(f"logits have the shape {logits.shape}; they must be (N, K) with two classes at least.")
        if tuple(logits.shape) != tuple(several[0].shape):
            raise InputError(
                f"the logits have the shapes {several[0].shape} and {logits.shape}; they must be of the same samples "
                "and classes. Align them by sample id and class id first."
            )
        require_at_least("the number of samples", logits.shape[0], 1)
