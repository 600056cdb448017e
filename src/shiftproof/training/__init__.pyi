"""The parts that every training loop shares: settings, learning rates and the log of steps."""

from .engine import cosine_with_warmup, parameter_groups
from .hardware import LoopSettings
from .log import TrainingLog

__all__ = [
    "LoopSettings",
    "TrainingLog",
    "cosine_with_warmup",
    "parameter_groups",
]
