"""Small checkpoints, and comparisons of tensors to the bit."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from shiftproof.merging import files, streams

# Significand bits and the smallest exponent of a normal number, from the formats' definitions.
FORMATS = {
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float32: (24, -126),
    torch.float64: (53, -1022),
}
LARGEST = {torch.float16: 6.0e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
SIZE = 64  # bytes of a piece in most tests, so that every entry is cut


def half_unit(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Half a unit in the last place of a number near ``value``."""
    bits, smallest = FORMATS[dtype]
    exponent = smallest if value == 0 else max(math.frexp(float(abs(value)))[1] - 1, smallest)
    return Fraction(2) ** (exponent - bits + 1) / 2


def equal_bits(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, NaN and signs of zero included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(flattened(tensor).view(torch.uint8) for tensor in (one, other)))


def flattened(tensor: Tensor) -> Tensor:
    """The values one after the other, in memory of their own."""
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))


def all_equal_bits(result: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> bool:
    return result.keys() == want.keys() and all(equal_bits(result[name], want[name]) for name in want)


@contextlib.contextmanager
def pieces_of(size: int) -> Iterator[None]:
    """Pieces of so many bytes, so that small entries are cut as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", size)
        patch.setattr(files, "PIECE", size)
        yield


def save_checkpoint(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> Path:
    """A checkpoint file of the kind that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        plain = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, metadata={"format": "pt", **metadata})
    else:
        torch.save(dict(tensors), path)
    return path


def save_shards(
    tensors: Mapping[str, Tensor], folder: Path, of: Mapping[str, int], stem: str = "model.safetensors", **saved: Any
) -> Path:
    """A directory with shards and an index; ``of`` gives the number of every name's shard."""
    name, suffix = stem.split(".")
    file_of = {number: f"{name}-{number + 1:05d}-of-{max(of.values()) + 1:05d}.{suffix}" for number in of.values()}
    for number, file in file_of.items():
        save_checkpoint({key: tensors[key] for key in tensors if of[key] == number}, folder / file)
    index = {"metadata": {"total_size": 1, **saved}, "weight_map": {key: file_of[number] for key, number in of.items()}}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return folder


def save_pair(folder: Path, suffix: str = ".safetensors", size: int = 40, **more: Tensor) -> tuple[Path, Path]:
    """Two small checkpoints of one architecture."""
    made = []
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "head.weight": torch.randn(3, 4, generator=generator),
            "visual.blocks.0.weight": torch.randn(size, generator=generator),
            "visual.blocks.1.weight": torch.randn(5, generator=generator).half(),
            "steps": torch.tensor(seed + 7),
        }
        made.append(save_checkpoint({**tensors, **more}, folder / f"{name}{suffix}"))
    return made[0], made[1]
