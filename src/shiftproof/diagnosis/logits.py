"""Checks on the logits of several models, the classes that they predict, and which predictions are right."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, require_at_least, require_equal_length
from shiftproof.evaluation.blocks import Logits, logit_blocks

_BLOCK_SIZE = 1 << 20  # the number of logits that are converted to float64 at a time


def block_rows(logits: Logits) -> int:
    """Returns how many rows of (N, K) logits are read at a time, so that a block fits in memory for any K."""
    return max(_BLOCK_SIZE // logits.shape[1], 1)


def named_classes(logits: Logits) -> NDArray[np.int64]:
    """Returns the (N,) classes that (N, K) logits predict; predictions on disk are read block by block.

    Raises an InputError where a logit is not finite, and for other shapes than (N, K) with N >= 1 and K >= 2.

    >>> named_classes(np.eye(3)).tolist()
    [0, 1, 2]
    """
    rows = block_rows(logits)
    blocks = enumerate(logit_blocks(logits, rows))
    return np.concatenate([checked_logits(block, start=number * rows)[0].argmax(1) for number, block in blocks])


def correct_logits(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Returns (N,) booleans: whether the largest of a sample's (N, K) logits is that of its label (N,).

    Raises an InputError for unlabelled images.
    """
    return correct_predictions(logits.argmax(1), labels)


def correct_predictions(named: NDArray[np.integer], labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Returns (N,) booleans: whether the predicted class (N,) is the label (N,).

    Raises an InputError for unlabelled images and where the lengths differ.
    """
    require_equal_length("predictions and labels", named, labels)
    if len(labels) and labels.min() < 0:
        raise InputError(f"a label is {labels.min()}, so the images are unlabelled. Omit the labels.")
    return np.asarray(named == labels)


def checked_logits(*several: NDArray[np.floating], start: int = 0) -> tuple[NDArray[np.floating], ...]:
    """Returns the (N, K) logits after checking that they are finite and have one shape.

    ``start`` is the position of the first sample, for the message of the InputError.
    """
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
            raise InputError(f"logits have the shape {logits.shape}; they must be (N, K) with at least two classes.")
        if tuple(logits.shape) != tuple(several[0].shape):
            raise InputError(
                f"the logits have the shapes {several[0].shape} and {logits.shape}; all must hold the same samples "
                "and classes. Align them by sample id and class id first."
            )
        require_at_least("the number of samples", logits.shape[0], 1)
