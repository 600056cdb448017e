"""Probabilities by hand, and the logits that a sweep of alpha hands out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


def softmax(logits: Sequence[float]) -> list[float]:
    """The probabilities of one row of logits, number by number."""
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def collecting(collected: dict[tuple[float, str], np.ndarray]) -> Callable[[float, str], Any]:
    """A ``keep`` for ``sweep_alpha`` that collects the logits by alpha and set, put together again."""

    @contextlib.contextmanager
    def keep(alpha: float, name: str) -> Iterator[Callable[[np.ndarray], None]]:
        rows: list[np.ndarray] = []
        yield rows.append
        assert (alpha, name) not in collected
        collected[alpha, name] = np.concatenate(rows)

    return keep
