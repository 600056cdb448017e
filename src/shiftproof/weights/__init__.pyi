"""Arithmetic on state dicts, readers and writers of checkpoint files, and alphas that differ by layer."""

from .arithmetic import average_weights, interpolate_weights, model_stock, weight_distance
from .checkpoints import Checkpoint, SafetensorsWriter, open_checkpoint, read_state_dict, write_state_dict
from .schedules import alphas_by_depth, alphas_by_pattern

__all__ = [
    "Checkpoint",
    "SafetensorsWriter",
    "alphas_by_depth",
    "alphas_by_pattern",
    "average_weights",
    "interpolate_weights",
    "model_stock",
    "open_checkpoint",
    "read_state_dict",
    "weight_distance",
    "write_state_dict",
]
