"""A model's preprocessing as a function of one image, for data loaders and scripts of other libraries."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from shiftproof.data.decoding import pixels_of
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range


@dataclass(frozen=True)
class ImageTransform:
    """Turns a Pillow image into the (3, size, size) float32 input of a model, to the last bit as evaluation does.

    It can be pickled, so the worker processes of a data loader can use it, and it fits wherever torchvision takes a
    ``transform``. Raises what ``pixels_of`` raises.

    >>> ImageTransform(Preprocessing(size=8))(Image.new("RGB", (20, 10))).shape
    torch.Size([3, 8, 8])
    """

    preprocessing: Preprocessing

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = resize(pixels_of(image), self.preprocessing)
        return normalise(to_unit_range([pixels]), self.preprocessing)[0]
