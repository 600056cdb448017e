"""Retrieval between images and texts, measured by recall at k."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence

from torch import Tensor

from shiftproof.errors import require_at_least


def recall_at(queries: Tensor, gallery: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[int, float]:
    """The fraction of queries whose gallery entry, the one in the same row, is among the k most similar, for each k.

    ``queries`` and ``gallery`` are (N, D) and normalised. Ties and NaN count against the query.

    >>> import torch
    >>> recall_at(torch.eye(3), torch.eye(3), ks=(1,))
    {1: 1.0}
    """
    similarity = queries @ gallery.T
    matches = similarity.diagonal()[:, None]
    ahead = (~(similarity < matches)).sum(1) - 1
    return {k: float((ahead < k).float().mean()) for k in ks}


class BestMatches:
    """The ``top`` best items of every query among any number of items, which come batch by batch.

    ``rows[q]`` are the pairs of similarity and item of query q, the best first; equal ones stay in their order.

    >>> import torch
    >>> best = BestMatches(queries=1, top=2)
    >>> best.add(torch.tensor([[0.1, 0.9]]), ["a", "b"])
    >>> best.add(torch.tensor([[0.5]]), ["c"])
    >>> [item for _, item in best.rows[0]], best.searched
    (['b', 'c'], 3)
    """

    def __init__(self, queries: int, top: int) -> None:
        self.top = int(require_at_least("top", top, 1))
        self.searched = 0
        self.rows: list[list[tuple[float, str]]] = [[] for _ in range(queries)]

    def add(self, similarity: Tensor, items: Sequence[str]) -> None:
        """Adds items by their (Q, B) similarity with the queries."""
        for q, row in enumerate(similarity.tolist()):
            candidates = itertools.chain(self.rows[q], zip(row, items, strict=True))
            self.rows[q] = heapq.nlargest(self.top, candidates, key=lambda pair: pair[0])
        self.searched += len(items)
