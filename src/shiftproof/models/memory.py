"""The memory format of a network's weights: channels-last where it is convolutional, else contiguous."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
# The devices whose convolutions have kernels for both formats.
_DEVICES = ("cpu", "cuda")


def uses_channels_last(module: nn.Module, device: str | torch.device, setting: bool | None = None) -> bool:
    """Whether a network runs with (O, I, H, W) weights in channels-last memory on a device.

    A ``setting`` other than None decides. Otherwise, convolutional networks do, since convolutions are faster in this
    format, depthwise ones most of all. They are recognised by a convolution with overlapping windows. The patch
    embedding of a transformer has none, so transformers stay contiguous. The answer depends on nothing but the
    architecture and the kind of device, so that results can be reproduced: those of the two formats differ in the last
    bits.

    >>> uses_channels_last(nn.Conv2d(3, 8, kernel_size=3), "cpu")
    True
    >>> uses_channels_last(nn.Conv2d(3, 8, kernel_size=16, stride=16), "cpu")
    False
    """
    if setting is not None:
        return setting
    return torch.device(device).type in _DEVICES and any(map(_overlaps, module.modules()))


def is_laid_out(module: nn.Module, channels_last: bool) -> bool:
    """Whether all (O, I, H, W) weights are in a format already."""
    memory_format = _format(channels_last)
    return all(entry.is_contiguous(memory_format=memory_format) for entry in module.parameters() if entry.ndim == 4)


def lay_out(module: Module, channels_last: bool) -> Module:
    """Moves a module's (O, I, H, W) weights into a format, in place, and returns the module.

    >>> lay_out(nn.Conv2d(3, 8, 3), channels_last=True).weight.is_contiguous(memory_format=torch.channels_last)
    True
    """
    return module.to(memory_format=_format(channels_last))


def _format(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _overlaps(module: nn.Module) -> bool:
    """Whether a module is a convolution of images whose windows overlap."""
    if not isinstance(module, nn.Conv2d):
        return False
    return any(size > step for size, step in zip(module.kernel_size, module.stride, strict=True))
