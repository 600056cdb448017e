"""Retrieval between images and texts, measured by recall at k."""

from __future__ import annotations

from torch import Tensor


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
