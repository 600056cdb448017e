"""Random changes of training images by name, which torchvision makes and whose random numbers come from a generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, require_at_least, require_between, require_choice

Augment = Callable[[NDArray[np.uint8], Generator], NDArray[np.uint8]]
# The settings of each augmentation, with their defaults: those of torchvision, and for the jitter those of timm.
AUGMENTATIONS: Mapping[str, Mapping[str, Any]] = {
    "flip": {"p": 0.5},
    "vertical-flip": {"p": 0.5},
    "randaugment": {"num_ops": 2, "magnitude": 9},
    "color-jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.0},
    "random-erasing": {"p": 0.5, "scale": (0.02, 0.33), "ratio": (0.3, 3.3)},
}
_TRANSFORMS: Mapping[str, Callable[..., Any]] = {
    "flip": v2.RandomHorizontalFlip,
    "vertical-flip": v2.RandomVerticalFlip,
    "randaugment": v2.RandAugment,
    "color-jitter": v2.ColorJitter,
    "random-erasing": v2.RandomErasing,
}
_LARGEST_MAGNITUDE = 30
_DRAWING = {torch.rand, torch.randint, torch.randperm, Tensor.uniform_, Tensor.normal_}


def augmentation_specs(specs: Any, what: str = "augment") -> tuple[Any, ...]:
    """Augmentations in the order in which they are applied, as plain values: names, or mappings with settings.

    They are given as ``none``, as a name, as several names separated by commas, or as a list whose entries are names or
    methods with settings (``{method: randaugment, magnitude: 5}``). Raises an InputError for unknown names and settings
    and for values of the wrong type or range, naming them as ``what``.

    >>> augmentation_specs("flip,randaugment")
    ('flip', 'randaugment')
    """
    if isinstance(specs, str):
        specs = [] if specs == "none" else [name.strip() for name in specs.split(",")]
    if isinstance(specs, Mapping) or not isinstance(specs, Sequence):
        raise InputError(f"{what} is {specs!r}; it must be none, names, or a list such as [flip, randaugment].")
    plain = tuple(dict(spec) if isinstance(spec, Mapping) else spec for spec in specs)
    for spec in plain:
        _transform(spec, what, (0, 0, 0))
    return plain


def augmentation(specs: Sequence[Any], preprocessing: Preprocessing) -> Augment | None:
    """A function that applies the augmentations to (H, W, 3) uint8 pixels, or None where there are none.

    All of its random numbers come from the generator that it is given. What random erasing removes is filled with the
    mean colour of ``preprocessing``, which is 0 after normalisation, and what RandAugment moves in is black.

    >>> pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> flip = augmentation([{"method": "flip", "p": 1.0}], Preprocessing(size=2))
    >>> bool((flip(pixels, Generator()) == pixels[:, ::-1]).all())
    True
    """
    if not specs:
        return None
    colour = tuple(round(255 * mean) for mean in preprocessing.mean)
    transforms = [_transform(spec, "augment", colour) for spec in specs]

    def apply(pixels: NDArray[np.uint8], generator: Generator) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels)
        with _DrawingFrom(generator):
            for transform in transforms:
                image = transform(image)
        return np.asarray(image)

    return apply


class _DrawingFrom(TorchFunctionMode):
    """Makes the calling thread take the random numbers of torch's functions from a generator inside the block.

    torchvision's transforms take no generator, and the global one is shared by all threads.
    """

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = {"generator": self._generator} if func in _DRAWING else {}
        return func(*args, **(kwargs or {}), **drawn)


def _transform(spec: Any, what: str, colour: tuple[int, ...]) -> Callable[[Any], Any]:
    """The transform of torchvision that a name, or a method with its settings, describes."""
    settings = dict(spec) if isinstance(spec, Mapping) else {"method": spec}
    method = require_choice(what, str(settings.pop("method", None)), AUGMENTATIONS)
    for key in settings:
        require_choice(f"setting of {method}", str(key), AUGMENTATIONS[method])
    if method == "randaugment":
        require_between(f"{what}: the magnitude of randaugment", settings.get("magnitude", 0), 0, _LARGEST_MAGNITUDE)
        require_at_least(f"{what}: num_ops of randaugment", settings.get("num_ops", 0), 0)
    fill = {"value": colour} if method == "random-erasing" else {}
    try:
        return _TRANSFORMS[method](**{**AUGMENTATIONS[method], **settings, **fill})  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise InputError(f"{what}: {method} cannot have the settings {settings} ({error}).") from error
