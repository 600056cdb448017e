"""How to fine-tune, as one frozen object."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from shiftproof.errors import InputError, require_at_least, require_between, require_choice
from shiftproof.training import LARGEST

RECIPES = ("end-to-end", "head-only")
MIXINGS = ("none",)


@dataclass(frozen=True)
class FinetuneSettings:
    """The end-to-end recipe of WiSE-FT (sec. 3) is the default; ``recipe="head-only"`` keeps the encoder.

    AdamW at the peak rate ``lr`` after ``warmup_steps`` (at most a tenth of all steps), a cosine down to 0,
    gradients clipped to the global norm ``clip_norm``, crops of a random ``crop_scale`` share of the area.
    Biases, norms and scales are not decayed.
    """

    # A dictionary is all that pydantic needs to refuse unknown keys of a run file.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    recipe: str = "end-to-end"
    epochs: int = 10
    lr: float = 3e-5
    batch_size: int = 512
    weight_decay: float = 0.1
    warmup_steps: int = 500
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    crop_scale: tuple[float, float] = (0.9, 1.0)
    mixing: str = "none"

    def __post_init__(self) -> None:
        require_choice("finetune.recipe", self.recipe, RECIPES)
        require_choice("finetune.mixing", self.mixing, MIXINGS)
        require_at_least("finetune.epochs", self.epochs, 1)
        require_at_least("finetune.batch_size", self.batch_size, 1)
        require_between("finetune.lr", self.lr, 0, LARGEST)
        require_between("finetune.weight_decay", self.weight_decay, 0, LARGEST)
        require_at_least("finetune.warmup_steps", self.warmup_steps, 0)
        require_between("finetune.clip_norm", self.clip_norm, 1e-12, LARGEST)
        require_between("finetune.label_smoothing", self.label_smoothing, 0, 1)
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"finetune.crop_scale is {self.crop_scale}; it must be two rising shares in (0, 1].")

    def steps(self, images: int) -> int:
        """How many steps the epochs take; the last batch is filled from the next permutation.

        >>> FinetuneSettings(epochs=2, batch_size=4).steps(10)
        5
        """
        return math.ceil(self.epochs * images / self.batch_size)

    def warmup(self, steps: int) -> int:
        """The warm-up that fits into so many steps."""
        return min(self.warmup_steps, steps // 10)
