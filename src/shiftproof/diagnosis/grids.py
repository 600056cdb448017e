"""The outputs of an encoder's layers as maps of channels, rows and columns."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.errors import InputError


def timm_trunk(encoder: Any) -> tuple[Any, list[nn.Module]]:
    """Returns the part of an encoder that follows timm's protocol, and the modules that open_clip adds after it.

    The part is None where no part follows the protocol.
    """
    if hasattr(encoder, "forward_features") and hasattr(encoder, "forward_head"):
        return encoder, []
    if hasattr(encoder, "trunk") and hasattr(encoder.trunk, "forward_head"):
        return encoder.trunk, list(encoder.head)
    return None, []


def layer_grid(output: Any, hints: Any, image_size: torch.Size) -> Tensor:
    """Returns a layer's output as (B, C, h, w).

    Channels are moved to the second axis, and tokens are laid out on their grid without class and register tokens.
    ``hints`` is the module whose attributes describe the layout. Raises an InputError for other outputs.
    """
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        description = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the layer returns {description}; it must return a map (B, C, h, w) or tokens (B, N, C). Name another "
            "layer."
        )
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if _channels_last(output.shape, hints, image_size) else output
    prefix, height, width = _token_grid(output.shape[1], hints, image_size)
    return output[:, prefix:].transpose(1, 2).reshape(len(output), -1, height, width)


def _channels_last(shape: torch.Size, hints: Any, image_size: torch.Size) -> bool:
    # A map has the image's proportions; where both layouts do, the model's ``output_fmt`` decides.
    first = shape[2] * image_size[1] == shape[3] * image_size[0]
    last = shape[1] * image_size[1] == shape[2] * image_size[0]
    return last if first != last else getattr(hints, "output_fmt", "") == "NHWC"


def _token_grid(count: int, hints: Any, image_size: torch.Size) -> tuple[int, int, int]:
    """Returns how many tokens come before the patches, and the patches' rows and columns."""
    embed = getattr(hints, "patch_embed", hints)
    for prefix in (getattr(hints, "num_prefix_tokens", 0), 0, 1, 2):
        if (places := count - prefix) < 2:  # a class token alone does not make a map
            continue
        grids = [getattr(embed, "grid_size", None), _proportioned(places, image_size)]
        patch = getattr(embed, "patch_size", None)
        if isinstance(patch, tuple):  # the image may have another size than the model's usual one
            grids.insert(0, (image_size[0] // patch[0], image_size[1] // patch[1]))
        for grid in grids:
            if grid and grid[0] * grid[1] == places:
                return prefix, grid[0], grid[1]
    raise InputError(f"{count} tokens do not fill a grid of the image's proportions. Name a layer that returns a map.")


def _proportioned(places: int, image_size: torch.Size) -> tuple[int, int] | None:
    rows = max(round(math.sqrt(places * image_size[0] / image_size[1])), 1)
    columns = places // rows
    return (rows, columns) if rows * image_size[1] == columns * image_size[0] else None
