"""Named child generators of one seed, so that a draw added in one place never changes the draws in another."""

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
    """Seeds torch's global generators, of the CPU and of one device, inside the block and restores them afterwards.

    Layers such as dropout and stochastic depth take no generator; this makes their draws reproducible.
    """
    torch_device, block_seed = torch.device(device), child_seed(seed, *path)
    if torch_device.type == "cpu":
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(block_seed)
            yield
        return
    with torch.random.fork_rng(devices=(torch_device,), device_type=torch_device.type), torch_device:
        torch.default_generator.manual_seed(block_seed)
        torch.get_device_module(torch_device).manual_seed(block_seed)
        yield


def child_generator(seed: int, *path: str | int) -> torch.Generator:
    """A separate CPU generator for the named use, e.g. ``child_generator(seed, "order", epoch)``."""
    return torch.Generator().manual_seed(child_seed(seed, *path))
