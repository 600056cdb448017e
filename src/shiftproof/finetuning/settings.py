"""How to fine-tune, as one frozen object."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from shiftproof.augmentation.mixing import Mixing
from shiftproof.augmentation.named import mixing_from, mixing_settings
from shiftproof.errors import InputError, require_at_least, require_between, require_choice
from shiftproof.training import LARGEST

RECIPES = ("end-to-end", "head-only")


@dataclass(frozen=True)
class FinetuneSettings:
    """The end-to-end recipe of WiSE-FT (sec. 3) is the default; ``recipe="head-only"`` keeps the encoder.

    AdamW at the peak rate ``lr`` after ``warmup_steps`` (at most a tenth of all steps), a cosine down to 0,
    gradients clipped to the global norm ``clip_norm``, crops of a random ``crop_scale`` share of the area.
    Biases, norms and scales are not decayed.

    ``mixing`` is none, smoothmix-circle, smoothmix-square, cutmix, cutout or mixup, or whatever else ``mixing_from``
    takes: a weighted choice, a method with its settings, a ``SmoothMix`` object. ``mixing_probability`` is that of a
    sample to be mixed (None: the mixing's own, 1 unless set); the last ``mixing_off_epochs`` epochs do not mix.

    With ``ema_decay`` above 0 the result is the debiased exponential moving average of the weights (``debiased_ema``).

    >>> from shiftproof.augmentation.mixing import SmoothMix
    >>> FinetuneSettings(mixing=SmoothMix(kind="square")).mixing
    {'method': 'smoothmix', 'kind': 'square'}
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
    mixing: Any = "none"
    mixing_probability: float | None = None
    mixing_off_epochs: int = 0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        require_choice("finetune.recipe", self.recipe, RECIPES)
        self._check_mixing()
        require_at_least("finetune.epochs", self.epochs, 1)
        require_at_least("finetune.batch_size", self.batch_size, 1)
        require_between("finetune.lr", self.lr, 0, LARGEST)
        require_between("finetune.weight_decay", self.weight_decay, 0, LARGEST)
        require_at_least("finetune.warmup_steps", self.warmup_steps, 0)
        require_between("finetune.clip_norm", self.clip_norm, 1e-12, LARGEST)
        require_between("finetune.label_smoothing", self.label_smoothing, 0, 1)
        if not 0 <= self.ema_decay < 1:
            raise InputError(
                f"finetune.ema_decay is {self.ema_decay}; it must be 0 (no averaging) or more and below 1, e.g. 0.99."
            )
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise InputError(f"finetune.crop_scale is {self.crop_scale}; it must be two rising shares in (0, 1].")

    @property
    def mixer(self) -> Mixing | None:
        """The mixing as an object; None where nothing is mixed."""
        mixer = mixing_from(self.mixing)
        if mixer is None or self.mixing_probability is None:
            return mixer
        return replace(mixer, probability=self.mixing_probability)

    def mixes_at(self, step: int, images: int) -> bool:
        """Whether a step belongs to the epochs that mix.

        >>> settings = FinetuneSettings(epochs=2, batch_size=4, mixing="mixup", mixing_off_epochs=1)
        >>> [settings.mixes_at(step, 10) for step in range(settings.steps(10))]
        [True, True, True, False, False]
        """
        return step * self.batch_size < (self.epochs - self.mixing_off_epochs) * images

    def steps(self, images: int) -> int:
        """How many steps the epochs take; the last batch is filled from the next permutation.

        >>> FinetuneSettings(epochs=2, batch_size=4).steps(10)
        5
        """
        return math.ceil(self.epochs * images / self.batch_size)

    def warmup(self, steps: int) -> int:
        """The warm-up that fits into so many steps."""
        return min(self.warmup_steps, steps // 10)

    def _check_mixing(self) -> None:
        mixer = mixing_from(self.mixing, "finetune.mixing")
        if isinstance(self.mixing, Mixing):  # settings go into files, so they hold plain values only
            object.__setattr__(self, "mixing", mixing_settings(self.mixing))
        if mixer is not None and mixer.label_smoothing:
            raise InputError("the mixing has a label_smoothing of its own. Set finetune.label_smoothing instead.")
        if mixer is None and (self.mixing_probability is not None or self.mixing_off_epochs):
            raise InputError(
                "finetune.mixing_probability and mixing_off_epochs need a mixing. Set finetune.mixing, "
                "e.g. to smoothmix-circle."
            )
        if self.mixing_probability is not None:
            require_between("finetune.mixing_probability", self.mixing_probability, 0, 1)
        require_between("finetune.mixing_off_epochs", self.mixing_off_epochs, 0, self.epochs)
