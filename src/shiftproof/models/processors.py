"""Image processors of transformers as a preprocessing, and the other way round."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError

_FILTERS = {2: "bilinear", 3: "bicubic"}  # by Pillow's numbers, which image processors store
_PROCESSORS = {"clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "siglip2": "Siglip2ImageProcessor"}


def preprocessing_of(name: str, processor: Mapping[str, Any], config: Any) -> Preprocessing:
    """What an image processor of transformers does to an image; ``name`` is that of the model, for errors.

    Raises an InputError for rectangular images, for other pixel scales or filters, and where the image size is not the
    one that the model takes.
    """
    scaled = processor.get("do_rescale", True) and math.isclose(processor.get("rescale_factor", 1 / 255), 1 / 255)
    interpolation = _FILTERS.get(int(processor.get("resample") or 3))
    if not scaled or interpolation is None:
        raise InputError(
            f"the image processor of {name!r} has the rescale_factor {processor.get('rescale_factor')} and the filter "
            f"{processor.get('resample')}; only 1/255 with bilinear (2) or bicubic (3) is supported. "
            "Choose another model."
        )
    normalised = processor.get("do_normalize", True)
    common: dict[str, Any] = {
        "mean": tuple(processor["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        "std": tuple(processor["image_std"]) if normalised else (1.0, 1.0, 1.0),
        "interpolation": interpolation,
    }
    if config.model_type == "siglip2":
        # Images of any aspect ratio would differ in their number of patches: here all are resized to a square.
        side = math.isqrt(int(processor.get("max_num_patches") or config.vision_config.num_patches))
        return Preprocessing(size=side * int(config.vision_config.patch_size), resize_mode="squash", **common)
    resized, cropped = _sides(name, processor)
    taken = config.vision_config.image_size
    if cropped != taken:
        raise InputError(
            f"the image processor of {name!r} makes images of {cropped} pixels, and the model takes {taken}. "
            "Correct the size in preprocessor_config.json."
        )
    if resized is None:
        return Preprocessing(size=cropped, resize_mode="squash", **common)
    return Preprocessing(size=cropped, crop_share=cropped / resized, **common)


def processor_config(kind: str, preprocessing: Preprocessing, patch_size: int) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of an image processor of transformers, from which ``preprocessing_of`` follows.

    ``kind`` is clip, siglip or siglip2. Raises an InputError for a preprocessing that it cannot describe.
    """
    if preprocessing.resize_mode == "longest":
        raise InputError(
            "the images are padded to a square, which image processors of transformers do not do. "
            "Choose another format."
        )
    side = preprocessing.size
    square = {"height": side, "width": side}
    shortest = preprocessing.resize_mode == "shortest"
    sizes: dict[str, Any] = {
        "do_center_crop": shortest,
        "crop_size": square,
        "size": {"shortest_edge": math.floor(side / preprocessing.crop_share)} if shortest else square,
    }
    if kind == "siglip2":
        sizes = {"patch_size": patch_size, "max_num_patches": (side // patch_size) ** 2}
    return {
        "image_processor_type": _PROCESSORS[kind if not shortest or kind == "siglip2" else "clip"],
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": next(number for number, name in _FILTERS.items() if name == preprocessing.interpolation),
        **sizes,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _sides(name: str, processor: Mapping[str, Any]) -> tuple[int | None, int]:
    """The length that the shorter side is resized to, None where the aspect ratio is ignored, and the final side."""
    size, crop = processor.get("size") or {}, processor.get("crop_size") or {}
    crop = crop if processor.get("do_center_crop") else {}
    height, width = (crop or size).get("height"), (crop or size).get("width")
    shortest = size.get("shortest_edge")
    fixed = not crop or size == crop
    if height is None or height != width or not processor.get("do_resize", True) or not (shortest or fixed):
        raise InputError(
            f"the image processor of {name!r} resizes to {dict(size)} and crops to {dict(crop) or 'nothing'}; the "
            "result must be a square of one size. Choose another model."
        )
    return shortest, int(height)
