"""How to fine-tune, as one frozen object."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from shiftproof.data.augmentations import augmentation_specs
from shiftproof.errors import InputError, require_at_least, require_between, require_choice
from shiftproof.mixing.methods import Mixing
from shiftproof.mixing.named import mixing_from, mixing_settings
from shiftproof.training.engine import LARGEST
from shiftproof.training.hardware import LoopSettings

RECIPES = (
    "end-to-end",
    "head-only",
    "linear-probe",
    "lp-ft",
    "flyp",
    "frozen-head",
    "lora",
    "norms-and-biases",
)
OPTIMIZERS = ("adamw", "sgd")
# Settings that were added after checkpoints and classifiers had been written without them.
_LATER = ("augment",)
# Settings without effect where no step is taken.
_UNSTEPPED = ("mixing", "ema_decay", "l2_to_start", "distillation", "early_stopping", "label_smoothing")
# Settings of the steps, which recipes that take none share with others in a study; they are ignored with a note.
_OF_STEPS = ("epochs", "lr", "batch_size", "optimizer", "momentum", "weight_decay", "warmup_steps", "clip_norm")


@dataclass(frozen=True)
class FinetuneSettings(LoopSettings):
    """How to fine-tune. The default is the end-to-end recipe of WiSE-FT (Wortsman et al. 2022, sec. 3).

    ``recipe`` selects what is trained (docs/hyper-parameters.md compares the results). "end-to-end" trains everything
    and "head-only" the head. "linear-probe" trains the head by logistic regression on cached features, with a penalty
    chosen on the validation split, and "lp-ft" everything after such a probe (Kumar et al. 2022). "flyp" trains both
    towers by the contrastive loss on class captions and rebuilds the head (FLYP, Goyal et al. 2023). "frozen-head"
    trains all but the head (PAINT, Ilharco et al. 2022), "lora" adapters of rank ``lora_rank`` and scale
    ``lora_scale`` in the encoder (Hu et al. 2022), and "norms-and-biases" these only. The ``locked_layers`` lowest
    layers are frozen. ``layer_decay`` below 1 multiplies the learning rate by that factor from each layer to the next
    lower one.

    The optimiser is AdamW, or SGD with ``momentum``. The rate rises to ``lr`` during ``warmup_steps`` (at most a tenth
    of all steps), then falls to 0 along a cosine. Gradients are clipped to the global norm ``clip_norm``, and crops
    cover a random share of the area in the range ``crop_scale``. ``augment`` are augmentations of the crops by name, in
    their order: flip, vertical-flip, randaugment, color-jitter and random-erasing, or methods with settings
    (``augmentation_specs``). ``weight_decay`` applies to matrices only.

    ``l2_to_start`` pulls the weights to the start's by (l2 / 2) ||theta - theta_0||^2, in a separate step after the
    optimiser's, as AdamW applies weight decay. ``distillation`` is the weight w in the loss (1 - w) cross-entropy +
    w T^2 KL(start || network) at the temperature T = ``distillation_temperature``. With ``ema_decay`` above 0, the
    result is the debiased exponential moving average of the weights (``debiased_ema``). With ``early_stopping`` above
    0, training ends after this many epochs without a better one, and the result has the weights of the epoch that is
    best on the validation split. ``shots`` limits the training images per class, drawn with the seed.

    ``mixing`` is none, smoothmix-circle, smoothmix-square, cutmix, cutout or mixup, or anything else that
    ``mixing_from`` accepts: a weighted choice, a method with its settings, a ``SmoothMix`` object. A sample is mixed
    with ``mixing_probability`` (None: that of the mixing, which is 1 by default); the last ``mixing_off_epochs`` epochs
    do not mix. Raises an InputError that names the key of a value out of range, or that the recipe cannot use.

    >>> from shiftproof.mixing.methods import SmoothMix
    >>> FinetuneSettings(mixing=SmoothMix(kind="square")).mixing
    {'method': 'smoothmix', 'kind': 'square'}
    """

    # pydantic needs only a dictionary to refuse unknown keys of a run file.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    recipe: str = "end-to-end"
    epochs: int = 10
    lr: float = 3e-5
    batch_size: int = 512
    optimizer: str = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.1
    warmup_steps: int = 500
    clip_norm: float = 1.0
    label_smoothing: float = 0.0
    crop_scale: tuple[float, float] = (0.9, 1.0)
    augment: Any = ()
    mixing: Any = "none"
    mixing_probability: float | None = None
    mixing_off_epochs: int = 0
    ema_decay: float = 0.0
    l2_to_start: float = 0.0
    distillation: float = 0.0
    distillation_temperature: float = 1.0
    layer_decay: float = 1.0
    locked_layers: int = 0
    lora_rank: int = 8
    lora_scale: float = 1.0
    early_stopping: int = 0
    shots: int | None = None

    def __post_init__(self) -> None:
        require_choice("finetune.recipe", self.recipe, RECIPES)
        require_choice("finetune.optimizer", self.optimizer, OPTIMIZERS)
        if isinstance(self.mixing, Mixing):  # settings are written to files, so they hold plain values only
            object.__setattr__(self, "mixing", mixing_settings(self.mixing))
        object.__setattr__(self, "augment", augmentation_specs(self.augment, "finetune.augment"))
        _check_ranges(self)  # first: the range of mixing_off_epochs depends on the epochs
        _check_mixing(self)
        self.check_loop("finetune")
        _check_recipe(self)

    @property
    def mixer(self) -> Mixing | None:
        """The mixing as an object; None where nothing is mixed."""
        mixer = mixing_from(self.mixing)
        if mixer is None or self.mixing_probability is None:
            return mixer
        return replace(mixer, probability=self.mixing_probability)

    def mixes_at(self, step: int, images: int) -> bool:
        """Whether the step is in the epochs that mix.

        >>> settings = FinetuneSettings(epochs=2, batch_size=4, mixing="mixup", mixing_off_epochs=1)
        >>> [settings.mixes_at(step, 10) for step in range(settings.steps(10))]
        [True, True, True, False, False]
        """
        return step * self.batch_size < (self.epochs - self.mixing_off_epochs) * images

    def steps(self, images: int) -> int:
        """The number of steps in all epochs; the last batch is filled from the next permutation.

        >>> FinetuneSettings(epochs=2, batch_size=4).steps(10)
        5
        """
        return math.ceil(self.epochs * images / self.batch_size)

    def ignored(self) -> list[str]:
        """The settings other than their defaults that have no effect here, although they are not refused.

        >>> FinetuneSettings(momentum=0.5).ignored(), FinetuneSettings(recipe="linear-probe", lr=1e-3).ignored()
        (['momentum'], ['lr'])
        """
        idle = list(_OF_STEPS) if self.recipe == "linear-probe" else []
        if self.recipe == "norms-and-biases":
            idle.append("weight_decay")  # it applies to matrices, of which none is trained
        if self.optimizer != "sgd":
            idle.append("momentum")
        default = {field.name: field.default for field in fields(self)}
        return [name for name in dict.fromkeys(idle) if getattr(self, name) != default[name]]

    def recorded(self) -> dict[str, Any]:
        """The settings as plain values, without those that earlier versions did not have where they are unused."""
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value}

    def warmup(self, steps: int) -> int:
        """The number of warm-up steps in a training of ``steps`` steps."""
        return min(self.warmup_steps, steps // 10)


def _check_mixing(settings: FinetuneSettings) -> None:
    mixer = mixing_from(settings.mixing, "finetune.mixing")
    if mixer is not None and mixer.label_smoothing:
        raise InputError("the mixing has a label_smoothing. Set finetune.label_smoothing instead.")
    if mixer is None and (settings.mixing_probability is not None or settings.mixing_off_epochs):
        raise InputError(
            "finetune.mixing_probability and mixing_off_epochs need a mixing. Set finetune.mixing, "
            "e.g. to smoothmix-circle."
        )
    if settings.mixing_probability is not None:
        require_between("finetune.mixing_probability", settings.mixing_probability, 0, 1)
    require_between("finetune.mixing_off_epochs", settings.mixing_off_epochs, 0, settings.epochs)


def _check_ranges(settings: FinetuneSettings) -> None:
    for name in ("epochs", "batch_size", "lora_rank"):
        require_at_least(f"finetune.{name}", getattr(settings, name), 1)
    for name in ("warmup_steps", "locked_layers", "early_stopping"):
        require_at_least(f"finetune.{name}", getattr(settings, name), 0)
    for name in ("lr", "weight_decay", "l2_to_start"):
        require_between(f"finetune.{name}", getattr(settings, name), 0, LARGEST)
    for name in ("clip_norm", "distillation_temperature", "lora_scale"):
        require_between(f"finetune.{name}", getattr(settings, name), 1e-12, LARGEST)
    for name in ("label_smoothing", "distillation", "momentum"):
        require_between(f"finetune.{name}", getattr(settings, name), 0, 1)
    require_between("finetune.layer_decay", settings.layer_decay, 1e-12, 1)
    if settings.shots is not None:
        require_at_least("finetune.shots", settings.shots, 1)
    if not 0 <= settings.ema_decay < 1:
        raise InputError(
            f"finetune.ema_decay is {settings.ema_decay}; it must be 0 (no averaging) or more and below 1, e.g. 0.99."
        )
    if len(settings.crop_scale) != 2 or not 0 < settings.crop_scale[0] <= settings.crop_scale[1] <= 1:
        raise InputError(f"finetune.crop_scale is {settings.crop_scale}; it must be two rising shares in (0, 1].")


def _check_recipe(settings: FinetuneSettings) -> None:
    """Refuses settings that the recipe would ignore, so that no user believes that they had an effect.

    Those of ``FinetuneSettings.ignored`` are not refused: the runs of a study share them, whatever their recipes.
    """
    idle: dict[str, tuple[str, ...]] = {
        "linear-probe": (*_UNSTEPPED, "layer_decay", "locked_layers"),
        "flyp": ("distillation", "label_smoothing", "layer_decay", "locked_layers"),
        "lora": ("l2_to_start", "ema_decay", "layer_decay", "locked_layers"),
        "head-only": ("layer_decay", "locked_layers"),
    }
    default = {field.name: field.default for field in fields(settings)}
    if given := [n for n in idle.get(settings.recipe, ()) if getattr(settings, n) != default[n]]:
        raise InputError(
            f"the recipe {settings.recipe!r} has no use for finetune.{given[0]} ({getattr(settings, given[0])!r}). "
            "Leave it out, or choose another finetune.recipe."
        )
    if settings.recipe != "lora" and (settings.lora_rank, settings.lora_scale) != (
        default["lora_rank"],
        default["lora_scale"],
    ):
        raise InputError(
            f"finetune.lora_rank and lora_scale belong to the recipe 'lora', and this one is {settings.recipe!r}. "
            "Leave them out, or set finetune.recipe to lora."
        )
    if not settings.distillation and settings.distillation_temperature != default["distillation_temperature"]:
        raise InputError("finetune.distillation_temperature has no use without finetune.distillation. Set that too.")
    if settings.recipe == "flyp" and settings.batch_size < 2:
        raise InputError(
            f"finetune.batch_size is {settings.batch_size}; the recipe 'flyp' needs at least 2, since its contrastive "
            "loss compares each image with the captions of others and is 0 without them. Raise it, or choose another "
            "finetune.recipe."
        )
    if settings.recipe == "flyp" and settings.accumulate > 1:
        raise InputError(
            f"finetune.accumulate is {settings.accumulate}; a contrastive batch must stay whole. "
            "Set finetune.gradient_checkpointing to save memory."
        )
