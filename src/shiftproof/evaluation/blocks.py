"""Logits in blocks of rows, so that arrays and files of any size are read in the same way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

ROWS = 1024  # a block of 1,000 classes is eight megabytes in float64


class RowBlocks(Protocol):
    """(N, K) logits that can be read repeatedly from the first row to the last, such as stored predictions."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def blocks(self, rows: int = ...) -> Iterator[NDArray[np.float32]]:
        """Yields the rows in order, ``rows`` at a time."""
        ...


Logits: TypeAlias = NDArray[np.floating] | RowBlocks


def logit_blocks(logits: Logits, rows: int = ROWS) -> Iterator[NDArray[np.floating]]:
    """The rows of (N, K) logits in order, ``rows`` at a time; the last block may be smaller.

    >>> [len(block) for block in logit_blocks(np.eye(5), 2)]
    [2, 2, 1]
    """
    if isinstance(logits, np.ndarray):
        return (logits[start : start + rows] for start in range(0, len(logits), rows))
    return logits.blocks(rows)
