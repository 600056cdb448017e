"""How to pretrain, as one frozen object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shiftproof.errors import InputError, require_at_least, require_between
from shiftproof.training.engine import LARGEST
from shiftproof.training.hardware import LoopSettings


@dataclass(frozen=True)
class PretrainSettings(LoopSettings):
    """How to pretrain: ``steps`` batches of ``batch_size`` pairs at the peak rate ``lr``.

    AdamW with ``weight_decay`` on matrices, ``warmup_steps`` of a linear rise to ``lr``, a cosine down to 0, gradients
    clipped to the global norm ``clip_norm``. ``photometric`` changes the colour and sharpness of the training images
    at random. ``LoopSettings`` describes the other settings; ``accumulate`` must be 1, since every pair serves as a
    negative for all others in its batch. Raises an InputError that names the setting whose value is out of range.

    >>> PretrainSettings(steps=10).batch_size
    256
    """

    # pydantic needs only a dictionary to refuse unknown keys of a run file.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 3000
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    clip_norm: float = 1.0
    photometric: bool = True

    def __post_init__(self) -> None:
        require_at_least("pretrain.steps", self.steps, 1)
        if self.batch_size < 2:
            raise InputError(
                f"pretrain.batch_size is {self.batch_size}; it must be at least 2, since the contrastive loss compares "
                "each image with the captions of others and is 0 without them. Raise it."
            )
        require_between("pretrain.lr", self.lr, 0, LARGEST)
        require_between("pretrain.weight_decay", self.weight_decay, 0, LARGEST)
        require_between("pretrain.clip_norm", self.clip_norm, 1e-12, LARGEST)
        require_at_least("pretrain.warmup_steps", self.warmup_steps, 0)
        self.check_loop("pretrain")
        if self.accumulate != 1:
            raise InputError(
                f"pretrain.accumulate is {self.accumulate}; a contrastive batch must stay whole. "
                "Set pretrain.gradient_checkpointing to save memory."
            )
