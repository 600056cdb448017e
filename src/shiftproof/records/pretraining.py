"""The record of a contrastive pretraining run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LossPoint:
    """The running mean of the training loss after ``step`` steps."""

    step: int
    loss: float


@dataclass(frozen=True)
class PretrainRecord:
    """The settings and results of a pretraining run; ``card.json`` is its JSON form.

    ``settings`` are all fields of the ``PretrainSettings``, ``pairs_seen`` counts image-text pairs, ``history`` has
    the loss at every checkpoint, and ``seconds`` include the time before an interruption. ``recall[direction]`` has
    recall@1, recall@5 and recall@10 in [0, 1] for image_to_text and text_to_image; ``recall_on`` describes the images.
    """

    model: str
    data: str
    settings: Mapping[str, Any]
    pairs_seen: int
    seed: int
    seconds: float
    machine: str
    final_loss: float
    history: tuple[LossPoint, ...]
    recall_on: str
    recall: Mapping[str, Mapping[str, float]]
