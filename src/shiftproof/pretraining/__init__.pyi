"""Contrastive pretraining of an image tower and a text tower."""

from .loop import pretrain
from .loss import contrastive_loss
from .recall import held_out_recall
from .settings import PretrainSettings

__all__ = [
    "PretrainSettings",
    "contrastive_loss",
    "held_out_recall",
    "pretrain",
]
