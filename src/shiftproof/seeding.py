"""Named child generators from one seed, so that a draw added in one place never moves a draw in another."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def child_seed(seed: int, *path: str | int) -> int:
    """A 63-bit seed that depends on the seed and on every part of the path.

    >>> child_seed(0, "order", 3) == child_seed(0, "order", 3)
    True
    >>> child_seed(0, "order", 3) == child_seed(0, "order", 4)
    False
    """
    text = "/".join([str(int(seed)), *(str(part) for part in path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def global_draws(seed: int, *path: str | int, device: str = "cpu") -> Iterator[None]:
    """Seeds torch's global state, of the CPU and of one device, inside the block and restores it after.

    Layers such as dropout and stochastic depth take no generator; this makes their draws repeatable.
    """
    place, own = torch.device(device), child_seed(seed, *path)
    if place.type == "cpu":
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(own)
            yield
        return
    with torch.random.fork_rng(devices=(place,), device_type=place.type), place:
        torch.default_generator.manual_seed(own)
        torch.get_device_module(place).manual_seed(own)
        yield


def child_generator(seed: int, *path: str | int) -> torch.Generator:
    """A CPU generator of its own for the named use, e.g. ``child_generator(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(child_seed(seed, *path))
