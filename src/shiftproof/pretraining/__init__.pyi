"""Contrastive pretraining of an image tower and a text tower."""

from .loop import PretrainSettings, contrastive_loss, held_out_recall, pretrain

__all__ = [
    "PretrainSettings",
    "contrastive_loss",
    "held_out_recall",
    "pretrain",
]
