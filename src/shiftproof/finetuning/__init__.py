"""Fine-tuning a classifier on the reference."""

from shiftproof.finetuning.loop import finetune
from shiftproof.finetuning.settings import FinetuneSettings

__all__ = ["FinetuneSettings", "finetune"]
