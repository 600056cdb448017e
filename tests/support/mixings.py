"""Mixings and batches drawn by hypothesis, and comparisons of plans to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor

from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.plans import MixPlan

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.uint8)
LAYOUTS = ("contiguous", "channels last", "transposed", "every other column", "batch inside")
SEEDS = st.integers(0, 2**32)
SIZES = st.tuples(st.integers(1, 11), st.integers(1, 11))
SHARES = st.sampled_from([0.0, 1.0]) | st.floats(0, 1)
CONCENTRATIONS = st.sampled_from([1.0, 0.2]) | st.floats(1e-3, 1e3)
COMMON = {"probability": st.sampled_from([1.0, 1.0, 0.5, 0.0]), "label_smoothing": st.sampled_from([0.0, 0.1, 1.0])}
SMOOTHMIXES = st.builds(
    SmoothMix,
    kind=st.sampled_from(["circle", "square"]),
    spread=st.lists(st.floats(0.01, 3), min_size=2, max_size=2).map(sorted).map(tuple),
    concentration=CONCENTRATIONS,
    edge=st.none() | SHARES,
    **COMMON,
)
CUTMIXES = st.builds(CutMix, concentration=CONCENTRATIONS, edge=SHARES, **COMMON)
MIXUPS = st.builds(MixUp, concentration=CONCENTRATIONS, **COMMON)
FILLS = ("zero", "mean", "noise", "partner")
CUTOUTS = st.builds(Cutout, side=SHARES, fill=st.sampled_from(FILLS), edge=SHARES, **COMMON)


def choices(members: st.SearchStrategy[Mixing]) -> st.SearchStrategy[Mixing]:
    def weighted(mixings: list[Mixing]) -> st.SearchStrategy[Mixing]:
        counts = st.lists(st.integers(0, 3), min_size=len(mixings), max_size=len(mixings)).filter(any)
        return st.builds(MixChoice, mixings=st.just(mixings), weights=st.none() | counts, **COMMON)

    return st.lists(members, min_size=1, max_size=3).flatmap(weighted)


SINGLE = SMOOTHMIXES | CUTMIXES | MIXUPS
FOLLOWED = SINGLE | choices(SINGLE)  # the label follows the pixels
ANY = FOLLOWED | CUTOUTS | choices(FOLLOWED | CUTOUTS)


@st.composite
def batches(draw: st.DrawFn, dtypes: Sequence[torch.dtype] = DTYPES, counts: Sequence[int] = (1, 2, 3, 5, 8)) -> Tensor:
    shape = (draw(st.sampled_from(counts)), draw(st.integers(1, 4)), *draw(SIZES))
    generator, dtype = seeded(draw(SEEDS)), draw(st.sampled_from(dtypes))
    if dtype == torch.uint8:
        images = torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    else:
        images = (3 * torch.randn(shape, generator=generator)).to(dtype)
    return laid_out(images, draw(st.sampled_from(LAYOUTS)))


def laid_out(images: Tensor, layout: str) -> Tensor:
    """The same values elsewhere in memory."""
    if layout == "channels last":
        return images.contiguous(memory_format=torch.channels_last)
    if layout == "transposed":
        return images.mT.contiguous().mT
    if layout == "every other column":
        return images.repeat_interleave(2, 3)[..., ::2]
    if layout == "batch inside":
        return images.transpose(0, 1).contiguous().transpose(0, 1)
    return images.contiguous()


def seeded(seed: int) -> Generator:
    return Generator().manual_seed(seed)


def plan_for(mixing: Mixing, images: Tensor, seed: int) -> MixPlan:
    return mixing.plan(len(images), (images.shape[2], images.shape[3]), seeded(seed))


def same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and first.shape == second.shape and raw(first) == raw(second)


def raw(tensor: Tensor) -> bytes:
    plain = tensor.detach().clone(memory_format=torch.contiguous_format)
    return plain.view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def same_plan(first: MixPlan, second: MixPlan) -> bool:
    pairs = [(getattr(first, entry.name), getattr(second, entry.name)) for entry in fields(MixPlan)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def one_colour(count: int, channels: int, size: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    colours = torch.rand(count, channels, 1, 1, generator=seeded(seed))
    colours = (255 * colours).round() if dtype == torch.uint8 else 6 * colours - 3
    return colours.to(dtype).repeat(1, 1, *size)
