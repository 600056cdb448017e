"""The device that a model runs on."""

from __future__ import annotations

import torch

from shiftproof.errors import InputError


def resolve_device(device: str) -> str:
    """The torch device that ``device`` names; "auto" is the GPU where there is one, and the CPU elsewhere.

    Raises an InputError where torch cannot use the device on this machine.

    >>> resolve_device("cpu")
    'cpu'
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {device!r} cannot be used here. Use auto, cpu or, where there is one, cuda."
        ) from error
    return device
