"""Fine-tuning of a classifier on the reference data, end to end or by a cheaper recipe."""

from .loop import few_shot, finetune
from .probe import logistic_head
from .recipes import class_targets, classification_loss, distillation_loss
from .settings import FinetuneSettings

__all__ = [
    "FinetuneSettings",
    "class_targets",
    "classification_loss",
    "distillation_loss",
    "few_shot",
    "finetune",
    "logistic_head",
]
