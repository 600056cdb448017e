"""The device that a model runs on."""

from __future__ import annotations

import torch

from shiftproof.errors import InputError


def resolve_device(device: str | torch.device) -> str:
    """Returns the name of the torch device that ``device`` means; "auto" is the GPU if there is one, else the CPU.

    Raises an InputError if torch cannot use the device on this machine.

    >>> resolve_device("cpu"), resolve_device(torch.device("cpu"))
    ('cpu', 'cpu')
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"the device {str(device)!r} cannot be used here. Use auto, cpu or, where there is one, cuda."
        ) from error
    return str(device)
