"""SmoothMix and its family: weights against their formulas, labels against pixels, and what others get wrong."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Generator, Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset, default_collate
from torchvision.transforms import v2

import shiftproof as sp
from shiftproof.mixing.masks import PAPER_EDGES, hard_mask, mask_means, soft_mask
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS, mixing_from, mixing_settings
from shiftproof.mixing.plans import MixPlan, anchor_weights, mix_images
from shiftproof.mixing.targets import contrastive_targets, mix_targets, one_hot, soft_cross_entropy

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*FLOATS, torch.uint8)
LAYOUTS = ("contiguous", "channels last", "transposed", "every other column", "batch inside")

# What is drawn.

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


FOLLOWED = SMOOTHMIXES | CUTMIXES | MIXUPS  # the label follows the pixels
FOLLOWED |= choices(FOLLOWED)
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


# Masks.


def slow_weight(
    kind: str,
    pixel: tuple[int, int],
    centre: Sequence[float],
    extent: Sequence[float],
    edge: float,
    slack: float = 0.0,
) -> float:
    """One pixel's weight; ``slack`` moves it outwards by so little that rounding explains it."""
    distances = [abs(p + 0.5 - c) for p, c in zip(pixel, centre, strict=True)]
    distances = [max(0.0, d + slack * (1 + d)) for d in distances]
    if kind == "circle":
        quotient = sum(d**2 / (2 * s**2) for d, s in zip(distances, extent, strict=True))
        if edge == 0:
            return float(quotient <= 1)
        if quotient > 1 and math.log(quotient) / edge > 50:
            return 0.0
        return math.exp(-(quotient ** (1 / edge)))
    weight = 1.0
    for d, half in zip(distances, extent, strict=True):
        if d > half:
            weight *= max(0.0, 1 - (d - half) / (edge * half)) if edge * half > 0 else 0.0
    return weight


@given(
    kind=st.sampled_from(["circle", "square"]),
    size=SIZES,
    edge=st.none() | SHARES | st.floats(0.01, 0.2),
    data=st.data(),
)
def test_masks_are_what_their_formula_says(
    kind: str, size: tuple[int, int], edge: float | None, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, 3))
    places = [st.floats(-1, length + 1, width=32) | st.integers(0, length).map(float) for length in size]
    lengths = st.floats(0.125, 12, width=32) | st.integers(kind == "circle", 6).map(float)
    centres = data.draw(st.lists(st.tuples(*places), min_size=count, max_size=count))
    extents = data.draw(st.lists(st.tuples(lengths, lengths), min_size=count, max_size=count))
    found = soft_mask(kind, size, torch.tensor(centres).view(-1, 2), torch.tensor(extents).view(-1, 2), edge)
    used = PAPER_EDGES[kind] if edge is None else edge
    assert found.shape == (count, *size)
    assert found.dtype == torch.float32
    for mask, centre, extent in zip(found.tolist(), centres, extents, strict=True):
        for y, row in enumerate(mask):
            for x, weight in enumerate(row):
                outer = slow_weight(kind, (y, x), centre, extent, used, 1e-5)
                inner = slow_weight(kind, (y, x), centre, extent, used, -1e-5)
                assert outer - 2e-6 <= weight <= inner + 2e-6


def test_every_sample_may_have_an_edge_of_its_own() -> None:
    centres, extents = torch.tensor([[3.2, 4.1]]).repeat(3, 1), torch.tensor([[1.5, 2.0]]).repeat(3, 1)
    for kind in ("circle", "square"):
        together = soft_mask(kind, (7, 9), centres, extents, torch.tensor([0.0, 0.4, 1.0]))
        for mask, edge in zip(together, (0.0, 0.4, 1.0), strict=True):
            alone = soft_mask(kind, (7, 9), centres[:1], extents[:1], edge)[0]
            torch.testing.assert_close(mask, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_masks_come_in_every_floating_dtype(dtype: torch.dtype) -> None:
    given_ones = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 2.0]])
    found = soft_mask("circle", (7, 9), *given_ones, 0.5, dtype=dtype)
    assert found.dtype == dtype
    assert torch.equal(found, soft_mask("circle", (7, 9), *given_ones, 0.5).to(dtype))


@given(edge=SHARES, s=st.floats(4, 8), stretch=st.floats(0.7, 1.4))
def test_an_uncut_mask_has_the_area_that_its_integral_gives(edge: float, s: float, stretch: float) -> None:
    extents = torch.tensor([[s, s * stretch]])
    area = s * s * stretch
    disc = soft_mask("circle", (120, 130), torch.tensor([[60.3, 64.8]]), extents, edge).sum().item()
    # The integral of exp(-q ** (1 / e)) over the plane, of which edge 0 and 1 give the same.
    assert disc == pytest.approx(2 * math.pi * area * math.gamma(1 + edge), rel=0.03)
    box = soft_mask("square", (120, 130), torch.tensor([[60.3, 64.8]]), extents, edge).sum().item()
    assert box == pytest.approx((2 + edge) ** 2 * area, rel=0.15 if edge < 0.2 else 0.06)


@given(
    kind=st.sampled_from(["circle", "square"]),
    centre=st.tuples(st.floats(0, 48), st.floats(0, 64)),
    extent=st.tuples(st.floats(6, 24), st.floats(6, 24)),
)
def test_the_edge_goes_from_hard_to_soft_in_small_steps(
    kind: str, centre: tuple[float, float], extent: tuple[float, float]
) -> None:
    edges = torch.linspace(0, 1, 201)
    places = torch.tensor([centre]).expand(201, 2), torch.tensor([extent]).expand(201, 2)
    masks = soft_mask(kind, (48, 64), *places, edges)
    assert torch.equal(masks[0], hard_mask(kind, (48, 64), *(x[:1] for x in places))[0])
    steps = (masks[1:] - masks[:-1]).abs().mean((1, 2))
    # A convex border inside the image is no longer than the image's own. Pixels right outside a hard one jump to 1 in
    # the first step, and by a half at most in every later one.
    ring = 2 * (48 + 64) / (48 * 64)
    assert steps.max() < ring
    assert steps[1:].max() < ring / 2
    assert steps.sum() > 0.01


@given(size=SIZES, seed=SEEDS)
def test_edge_0_is_hard(size: tuple[int, int], seed: int) -> None:
    draws = torch.rand(5, 4, generator=seeded(seed))
    centres, extents = draws[:, :2] * torch.tensor(size), 0.3 + 5 * draws[:, 2:]
    down = (torch.arange(size[0]) + 0.5)[None, :, None] - centres[:, 0, None, None]
    across = (torch.arange(size[1]) + 0.5)[None, None, :] - centres[:, 1, None, None]
    high, wide = extents[:, 0, None, None], extents[:, 1, None, None]
    disc = (down / high) ** 2 + (across / wide) ** 2 <= 2
    box = (down.abs() <= high) & (across.abs() <= wide)
    for kind, inside in (("circle", disc), ("square", box)):
        found = hard_mask(kind, size, centres, extents)
        assert torch.equal(found, inside.float())
        assert torch.equal(soft_mask(kind, size, centres, extents, 0.0), found)


@given(kind=st.sampled_from(["circle", "square"]), size=SIZES, edge=SHARES, seed=SEEDS)
def test_mask_means_are_the_means_of_the_masks(kind: str, size: tuple[int, int], edge: float, seed: int) -> None:
    draws = torch.rand(11, 5, generator=seeded(seed))
    centres, extents = draws[:, :2] * torch.tensor(size), 0.3 + 5 * draws[:, 2:4]
    edges = torch.where(draws[:, 4] < 0.5, edge, draws[:, 4])
    found = mask_means(kind, size, centres, extents, edges)
    expected = soft_mask(kind, size, centres, extents, edges).mean((1, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


ONE = torch.tensor([[1.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: soft_mask("disc", (2, 2), ONE, ONE), "unknown mask kind 'disc'"),
        (lambda: soft_mask("circle", (0, 2), ONE, ONE), "height and width is 0"),
        (lambda: soft_mask("circle", (2, 2), ONE[0], ONE), r"shapes \(2,\) and \(1, 2\)"),
        (lambda: soft_mask("circle", (2, 2), ONE, ONE.repeat(2, 1)), r"shapes \(1, 2\) and \(2, 2\)"),
        (lambda: soft_mask("circle", (2, 2), ONE, 0 * ONE), "extents must be above 0"),
        (lambda: soft_mask("circle", (2, 2), ONE, math.nan * ONE), "extents must be above 0"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, 1.5), r"edges are 1\.5"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, -0.5), r"edges are -0\.5"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, math.nan), "edges are nan"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, torch.tensor([2.0])), r"edges are \[2\.0\]"),
    ],
)
def test_a_mask_that_cannot_be_made_says_why(call: Callable[[], Tensor], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        call()


# Labels and pixels.


def one_colour(count: int, channels: int, size: tuple[int, int], dtype: torch.dtype, seed: int) -> Tensor:
    colours = torch.rand(count, channels, 1, 1, generator=seeded(seed))
    colours = (255 * colours).round() if dtype == torch.uint8 else 6 * colours - 3
    return colours.to(dtype).repeat(1, 1, *size)


@given(
    mixing=FOLLOWED,
    count=st.sampled_from([1, 2, 3, 5, 8]),
    channels=st.integers(1, 4),
    size=SIZES,
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(LAYOUTS),
    seed=SEEDS,
)
@example(SmoothMix(), 5, 3, (9, 11), torch.float32, "contiguous", 0)
@example(SmoothMix(kind="square"), 5, 3, (9, 11), torch.uint8, "channels last", 0)
@example(CutMix(), 5, 3, (11, 9), torch.float64, "contiguous", 0)
@example(MixUp(concentration=0.2), 5, 3, (9, 11), torch.bfloat16, "channels last", 0)
def test_label_weights_are_not_swapped(
    mixing: Mixing, count: int, channels: int, size: tuple[int, int], dtype: torch.dtype, layout: str, seed: int
) -> None:
    # Each image is of one colour and of a class of its own: the mean colour says how much of which class is there.
    images = laid_out(one_colour(count, channels, size, dtype, seed), layout)
    mixing = replace(mixing, label_smoothing=0.0, num_classes=count)
    mixed, targets = mixing(images, torch.arange(count), generator=seeded(seed))
    colours = images[:, :, 0, 0].double()
    tolerance = 0.51 if dtype == torch.uint8 else 6 * torch.finfo(dtype).eps + 2e-5
    torch.testing.assert_close(mixed.double().mean((2, 3)), targets.double() @ colours, rtol=0, atol=tolerance)


def test_label_weights_are_means_and_not_sums() -> None:
    # Sums over the pixels would give weights of hundreds; these are the bounds for the paper's spread.
    weights = SmoothMix().plan(20000, (224, 224), seeded(0)).weights
    assert weights.mean().item() == pytest.approx(0.43, abs=0.005)
    assert (weights < 0.5).float().mean().item() == pytest.approx(0.69, abs=0.01)
    assert weights.min() >= 0.098 - 5e-4
    assert weights.max() <= 0.732 + 5e-4
    corner, middle = torch.tensor([[0.0, 0.0], [112.0, 112.0]])
    low = mask_means("circle", (224, 224), corner[None], torch.full((1, 2), 56.0), torch.ones(1))
    high = mask_means("circle", (224, 224), middle[None], torch.full((1, 2), 112.0), torch.ones(1))
    assert low.item() == pytest.approx(0.098, abs=5e-4)
    assert high.item() == pytest.approx(0.732, abs=5e-4)


@given(ANY, batches(), SEEDS)
def test_targets_sum_to_1_and_are_float32(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.randint(7, (len(images),), generator=seeded(seed))
    _, targets = replace(mixing, num_classes=7)(images, labels, generator=seeded(seed))
    assert targets.dtype == torch.float32
    assert targets.shape == (len(images), 7)
    assert targets.min() >= 0
    torch.testing.assert_close(targets.sum(1), torch.ones(len(images)), rtol=0, atol=2e-6)


@given(ANY, batches(), SEEDS)
def test_positions_and_one_hot_rows_give_the_same_targets(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.randint(4, (len(images),), generator=seeded(seed))
    plan = plan_for(mixing, images, seed)
    smoothing = mixing.label_smoothing
    found = mix_targets(labels, plan, 4, label_smoothing=smoothing)
    for rows in (functional.one_hot(labels, 4), functional.one_hot(labels, 4).bool(), one_hot(labels, 4).half()):
        torch.testing.assert_close(mix_targets(rows, plan, label_smoothing=smoothing), found, rtol=0, atol=1e-6)
    for kind in (torch.uint8, torch.int32):
        assert same_bits(mix_targets(labels.to(kind), plan, 4, label_smoothing=smoothing), found)
    for i, row in enumerate(found.tolist()):
        weight, partner = plan.weights[i].item(), plan.partners[i].item()
        for k, share in enumerate(row):
            own = (labels[i] == k).item() * weight + (labels[partner] == k).item() * (1 - weight)
            assert share == pytest.approx((1 - smoothing) * own + smoothing / 4, abs=1e-6)


def test_soft_labels_stay_soft() -> None:
    soft = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    plan = replace(MixUp().plan(2, (2, 2), seeded(0)), weights=torch.tensor([0.25, 1.0]))
    expected = torch.tensor([[0.175, 0.45, 0.375], [0.0, 0.5, 0.5]])
    torch.testing.assert_close(mix_targets(soft, plan), expected)


# Pixels.


@given(ANY, batches(FLOATS), SEEDS)
def test_every_pixel_is_the_weighted_sum_of_two(mixing: Mixing, images: Tensor, seed: int) -> None:
    plan = plan_for(mixing, images, seed)
    weights, found = anchor_weights(plan).double(), mix_images(images, plan).double()
    for i, (shape, filling) in enumerate(zip(plan.shapes, plan.fillings, strict=True)):
        anchor = images[i].double()
        if shape == "none" or (filling == "partner" and plan.partners[i] == i):
            assert torch.equal(found[i], anchor)
            continue
        if filling == "noise":
            continue  # see the tests of Cutout
        other = {
            "partner": images[plan.partners[i]].double(),
            "zero": torch.zeros_like(anchor),
            "mean": anchor.mean((1, 2), keepdim=True).expand_as(anchor),
        }[filling]
        tolerance = 4 * torch.finfo(images.dtype).eps * max(anchor.abs().max(), other.abs().max()) + 4e-6
        expected = weights[i] * anchor + (1 - weights[i]) * other
        torch.testing.assert_close(found[i], expected, rtol=0, atol=tolerance.item())


@given(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, st.integers(1, 5), SIZES, SEEDS)
def test_weights_of_a_plan_are_what_its_fields_say(
    mixing: Mixing, count: int, size: tuple[int, int], seed: int
) -> None:
    plan = mixing.plan(count, size, seeded(seed))
    for i, found in enumerate(anchor_weights(plan)):
        shape, weight = plan.shapes[i], plan.weights[i]
        if shape in ("none", "even"):
            assert (found == (1 if shape == "none" else weight)).all()
            continue
        place = plan.centres[i : i + 1], plan.extents[i : i + 1], plan.edges[i : i + 1]
        inside = soft_mask(shape, size, *place)[0]
        assert bool(plan.anchor_inside[i]) == isinstance(mixing, SmoothMix)
        assert torch.equal(found, inside if isinstance(mixing, SmoothMix) else 1 - inside)
        expected = torch.tensor(1.0) if isinstance(mixing, Cutout) else found.mean()
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_smoothmix_circle_is_the_paper_s_formula() -> None:
    images = torch.randn(3, 2, 9, 14, generator=seeded(1))
    plan = SmoothMix(spread=(0.3, 0.6)).plan(3, (9, 14), seeded(2))
    found = mix_images(images, plan).tolist()
    for i in range(3):
        (cy, cx), (s, other_s), partner = plan.centres[i].tolist(), plan.extents[i].tolist(), int(plan.partners[i])
        assert s == other_s
        assert 0.3 * 9 <= s <= 0.6 * 9
        total = 0.0
        for y in range(9):
            for x in range(14):
                g = math.exp(-((x + 0.5 - cx) ** 2) / (2 * s * s)) * math.exp(-((y + 0.5 - cy) ** 2) / (2 * s * s))
                total += g
                for c in range(2):
                    pixel = g * images[i, c, y, x].item() + (1 - g) * images[partner, c, y, x].item()
                    assert found[i][c][y][x] == pytest.approx(pixel, abs=1e-5)
        assert plan.weights[i].item() == pytest.approx(total / (9 * 14), abs=1e-6)


def test_smoothmix_square_is_cutmix_s_box_with_a_ramp() -> None:
    images = torch.randn(3, 2, 40, 30, generator=seeded(1))
    plan = SmoothMix(kind="square").plan(3, (40, 30), seeded(7))
    assert plan.extents.min() >= 2
    found = mix_images(images, plan).tolist()
    for i in range(3):
        centre, halves, partner = plan.centres[i].tolist(), plan.extents[i].tolist(), int(plan.partners[i])
        total = 0.0
        for y in range(40):
            for x in range(30):
                g = 1.0
                for p, c, half in zip((y, x), centre, halves, strict=True):
                    beyond = abs(p + 0.5 - c) - half
                    g *= min(1.0, max(0.0, 1 - beyond / (0.1 * half)))
                total += g
                for c in range(2):
                    pixel = g * images[i, c, y, x].item() + (1 - g) * images[partner, c, y, x].item()
                    assert found[i][c][y][x] == pytest.approx(pixel, abs=1e-5)
        assert plan.weights[i].item() == pytest.approx(total / (40 * 30), abs=1e-6)


@given(
    count=st.integers(2, 5),
    size=st.tuples(st.integers(1, 24), st.integers(1, 24)),
    concentration=CONCENTRATIONS,
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from(DTYPES),
    seed=SEEDS,
)
def test_edge_0_of_the_square_is_torchvision_s_cutmix(
    count: int, size: tuple[int, int], concentration: float, layout: str, dtype: torch.dtype, seed: int
) -> None:
    images = laid_out((100 * torch.rand(count, 3, *size, generator=seeded(seed))).to(dtype), layout)
    plan = CutMix(concentration=concentration).plan(count, size, seeded(seed))
    masks = soft_mask("square", size, plan.centres, plan.extents, 0.0)
    theirs, labels = v2.CutMix(num_classes=count), torch.arange(count)
    rolled = replace(plan, partners=(labels - 1) % count)  # torchvision's partner
    mixed, targets = mix_images(images, rolled), mix_targets(labels, rolled, count)
    (height, width) = size
    for i in range(count):
        (r_y, r_x), (half_y, half_x) = plan.centres[i].int().tolist(), plan.extents[i].int().tolist()
        assert (0 <= r_y < height) and (0 <= r_x < width)
        # There is a lambda whose int(0.5 * sqrt(1 - lambda) * side) is the half side on both axes.
        shortest = max(2 * half_y / height, 2 * half_x / width)
        assert shortest < min(2 * (half_y + 1) / height, 2 * (half_x + 1) / width)
        assert shortest <= 1
        y1, y2 = max(r_y - half_y, 0), min(r_y + half_y, height)
        x1, x2 = max(r_x - half_x, 0), min(r_x + half_x, width)
        box = torch.zeros(size)
        box[y1:y2, x1:x2] = 1
        assert torch.equal(masks[i], box)
        lam = 1 - (x2 - x1) * (y2 - y1) / (width * height)
        params = {"box": (x1, y1, x2, y2), "lam_adjusted": lam, "labels": labels, "batch_size": count}
        assert same_bits(mixed[i], theirs.transform(images, params)[i])
        torch.testing.assert_close(targets[i], theirs.transform(labels, params)[i], rtol=0, atol=1e-6)


@given(batches(counts=(2, 3, 5)), CONCENTRATIONS, SEEDS)
def test_edge_0_of_the_square_is_cutmix_with_anchor_and_partner_exchanged(
    images: Tensor, concentration: float, seed: int
) -> None:
    square = plan_for(SmoothMix(kind="square", edge=0.0, concentration=concentration), images, seed)
    cut = plan_for(CutMix(concentration=concentration), images, seed)
    assert torch.equal(square.centres, cut.centres)
    assert torch.equal(square.extents, cut.extents)
    assert torch.equal(square.partners, cut.partners)
    torch.testing.assert_close(square.weights, 1 - cut.weights, rtol=0, atol=1e-6)
    exchanged = replace(cut, partners=cut.partners.argsort())
    assert same_bits(mix_images(images[cut.partners], exchanged), mix_images(images, square))


# What holds for every mixing.


@given(ANY, batches(), SEEDS)
def test_a_plan_replays_bit_for_bit(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.arange(len(images))
    mixing = replace(mixing, num_classes=len(images))
    plan = plan_for(mixing, images, seed)
    mixed, targets = mixing(images, labels, generator=seeded(seed))
    assert same_plan(plan, plan_for(mixing, images, seed))
    for _ in range(2):
        assert same_bits(mix_images(images, plan), mixed)
        again = mix_targets(labels, plan, len(images), label_smoothing=mixing.label_smoothing)
        assert same_bits(again, targets)


@given(ANY, batches(), SEEDS)
def test_draws_come_from_the_generator_alone(mixing: Mixing, images: Tensor, seed: int) -> None:
    labels = torch.eye(len(images))
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        found.append(mixing(images, labels, generator=seeded(seed)))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(same_bits(first, second) for first, second in zip(*found, strict=True))


@given(ANY, batches(), SEEDS)
def test_without_a_generator_draws_come_from_the_global_state(mixing: Mixing, images: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    found = mixing(images, torch.eye(len(images)))
    expected = mixing(images, torch.eye(len(images)), generator=seeded(seed))
    assert all(same_bits(first, second) for first, second in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", MIXINGS)
def test_another_seed_gives_another_plan(name: str) -> None:
    first, second = (MIXINGS[name].plan(6, (20, 30), seeded(seed)) for seed in (0, 1))
    assert not same_plan(first, second)


@given(ANY, batches(), SEEDS, st.booleans())
def test_the_input_is_left_as_it_was(mixing: Mixing, images: Tensor, seed: int, soft: bool) -> None:
    labels = torch.eye(len(images)) if soft else torch.arange(len(images))
    before = raw(images), raw(labels), images.stride(), images._version, labels._version
    mixed, targets = replace(mixing, num_classes=len(images))(images, labels, generator=seeded(seed))
    mixed.zero_()
    targets.zero_()
    assert (raw(images), raw(labels), images.stride(), images._version, labels._version) == before


@given(ANY, batches(), SEEDS)
def test_a_buffer_is_filled_with_the_same_bits_and_returned(mixing: Mixing, images: Tensor, seed: int) -> None:
    plan = plan_for(mixing, images, seed)
    fresh = mix_images(images, plan)
    assert (fresh.dtype, fresh.device, fresh.shape) == (images.dtype, images.device, images.shape)
    out = torch.full_like(images, 77)
    assert mix_images(images, plan, out=out) is out
    assert same_bits(out, fresh)
    called, _ = mixing(images, torch.eye(len(images)), generator=seeded(seed), out=out)
    assert called is out
    assert same_bits(out, fresh)


@given(ANY, batches(), SEEDS, st.sampled_from(LAYOUTS))
def test_neither_the_layout_of_the_images_nor_of_the_buffer_matters(
    mixing: Mixing, images: Tensor, seed: int, layout: str
) -> None:
    plan = plan_for(mixing, images, seed)
    expected = mix_images(images.contiguous(), plan).double()
    tolerance = 1 if images.dtype == torch.uint8 else 4 * torch.finfo(images.dtype).eps * images.abs().max().item()
    out = laid_out(torch.empty(images.shape, dtype=images.dtype), layout)
    assert mix_images(images, plan, out=out) is out
    # The order of additions may differ, nothing else; noise of 4 deviations may stand out.
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=5 * tolerance)


@given(ANY, batches(), SEEDS)
def test_a_batch_is_its_samples_one_by_one(mixing: Mixing, images: Tensor, seed: int) -> None:
    plan = plan_for(mixing, images, seed)
    together = mix_images(images, plan)
    for i in range(len(images)):
        pair = images[[i, int(plan.partners[i])]]
        alone = mix_images(pair, row_of(plan, i))
        tolerance = 1 if images.dtype == torch.uint8 else 4 * torch.finfo(images.dtype).eps * images.abs().max().item()
        torch.testing.assert_close(alone[0].double(), together[i].double(), rtol=0, atol=tolerance)


def row_of(plan: MixPlan, i: int) -> MixPlan:
    """One row of a plan as a plan for two images: the anchor, and its partner unless that is itself."""
    here = [i, i]
    changes = {
        entry.name: value[here] if isinstance(value, Tensor) else tuple(value[k] for k in here)
        for entry in fields(MixPlan)
        if entry.name != "size" and (value := getattr(plan, entry.name)) is not None
    }
    changes["partners"] = torch.tensor([int(plan.partners[i] != i), 1])
    return replace(plan, **changes)


@given(ANY, st.sampled_from(DTYPES), st.integers(2, 4), SEEDS)
def test_channels_last_stays_channels_last(mixing: Mixing, dtype: torch.dtype, channels: int, seed: int) -> None:
    images = (200 * torch.rand(4, channels, 6, 7)).to(dtype).contiguous(memory_format=torch.channels_last)
    mixed, _ = mixing(images, torch.eye(4), generator=seeded(seed))
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert mixed.stride() == images.stride()


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_batches_are_mixed_like_short_ones(name: str, dtype: torch.dtype) -> None:
    # More pixels than the masks of one run may have.
    images = (200 * torch.rand(11, 3, 260, 250, generator=seeded(0))).to(dtype)
    plan = MIXINGS[name].plan(11, (260, 250), seeded(1))
    for layout in ("contiguous", "channels last"):
        together = mix_images(laid_out(images, layout), plan)
        for i in (0, 5, 10):
            alone = mix_images(images[[i, int(plan.partners[i])]], row_of(plan, i))[0]
            tolerance = 1 if dtype == torch.uint8 else 800 * torch.finfo(dtype).eps
            torch.testing.assert_close(together[i].double(), alone.double(), rtol=0, atol=tolerance)


@given(ANY, batches(FLOATS[2:]), SEEDS, st.booleans())
def test_a_gradient_flows_to_anchor_and_partner(mixing: Mixing, images: Tensor, seed: int, buffered: bool) -> None:
    plan = plan_for(mixing, images, seed)
    leaf = images.clone().requires_grad_()
    mixed = mix_images(leaf, plan, out=torch.empty_like(images) if buffered else None)
    tolerance = 100 * torch.finfo(images.dtype).eps
    torch.testing.assert_close(mixed.detach(), mix_images(images, plan), rtol=0, atol=max(tolerance, 1e-5))
    (found,) = torch.autograd.grad(mixed.sum(), leaf)
    weights = anchor_weights(plan).to(images.dtype)
    expected = torch.zeros_like(images)
    for i, filling in enumerate(plan.fillings):
        if filling == "partner":
            expected[i] += weights[i]
            expected[plan.partners[i]] += 1 - weights[i]
        elif filling == "zero":
            expected[i] += weights[i]
    flat = torch.tensor([filling in ("mean", "noise") for filling in plan.fillings])
    torch.testing.assert_close(found[~flat], expected[~flat], rtol=0, atol=1e-5)


def test_without_gradients_there_is_no_graph() -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    with torch.no_grad():
        mixed, _ = SmoothMix()(images, torch.eye(4))
    assert not mixed.requires_grad


# Cutout.


@given(batches(), st.sampled_from(FILLS), SHARES, st.sampled_from([0.0, 1.0, 0.5]), SEEDS)
def test_cutout_covers_a_square_and_keeps_the_label(
    images: Tensor, fill: str, side: float, probability: float, seed: int
) -> None:
    mixing = Cutout(fill=fill, side=side, probability=probability, num_classes=len(images))
    plan = plan_for(mixing, images, seed)
    mixed, targets = mixing(images, torch.arange(len(images)), generator=seeded(seed))
    assert torch.equal(targets, torch.eye(len(images)))
    height, width = plan.size
    half = round(side * min(height, width) / 2)
    for i, shape in enumerate(plan.shapes):
        covered = torch.zeros(height, width, dtype=torch.bool)
        if shape != "none":
            y, x = plan.centres[i].int().tolist()
            assert (0 <= y < height) and (0 <= x < width)
            covered[max(y - half, 0) : y + half, max(x - half, 0) : x + half] = True
        assert same_bits(mixed[i][:, ~covered], images[i][:, ~covered])
        if fill == "zero":
            assert (mixed[i][:, covered] == 0).all()
        elif fill == "partner":
            assert same_bits(mixed[i][:, covered], images[plan.partners[i]][:, covered])
        elif fill == "mean":
            mean = images[i].double().mean((1, 2))[:, None].expand(-1, int(covered.sum()))
            tolerance = 0.51 if images.dtype == torch.uint8 else torch.finfo(images.dtype).eps * 10 + 1e-6
            torch.testing.assert_close(mixed[i][:, covered].double(), mean, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_noise_has_the_image_s_mean_and_deviation(dtype: torch.dtype, layout: str) -> None:
    # Channels of their own mean and deviation, far enough inside 0..255 that bytes cut nothing off.
    centre, spread = torch.tensor([60.0, 120.0, 160.0]), torch.tensor([5.0, 9.0, 14.0])
    images = centre[:, None, None] + spread[:, None, None] * torch.randn(2, 3, 80, 80, generator=seeded(0))
    images = laid_out(images.to(dtype), layout)
    plan = Cutout(side=1.0, fill="noise").plan(2, (80, 80), seeded(1))
    mixed = mix_images(images, plan).double()
    inside = hard_mask("square", (80, 80), plan.centres, plan.extents).bool()
    for i in range(2):
        found = mixed[i][:, inside[i]]
        assert found.shape[1] > 1500
        torch.testing.assert_close(found.mean(1), centre.double(), rtol=0, atol=1.5)
        torch.testing.assert_close(found.std(1), spread.double(), rtol=0.08, atol=0)
    assert not torch.equal(mixed[0][:, inside[0] & inside[1]], mixed[1][:, inside[0] & inside[1]])


def test_noise_of_bytes_stays_within_them() -> None:
    # Half black, half white: the deviation is 127.5, so that a third of the noise lies beyond 0..255.
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[..., 32:] = 255
    plan = Cutout(side=1.0, fill="noise").plan(2, (64, 64), seeded(1))
    for layout in ("contiguous", "channels last"):
        found = mix_images(laid_out(images, layout), plan).float()
        expected = mix_images(images.float(), plan).clamp(0, 255)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.51)


def test_noise_is_the_image_s_own_on_one_colour() -> None:
    images = one_colour(3, 3, (8, 8), torch.float32, 0)
    mixed, _ = Cutout(fill="noise", side=1.0)(images, torch.eye(3))
    torch.testing.assert_close(mixed, images)


@given(ANY, st.integers(2, 4), SIZES, SEEDS, st.tuples(st.floats(0.2, 5), st.floats(-3, 3)))
def test_normalised_images_are_not_clamped(
    mixing: Mixing, count: int, size: tuple[int, int], seed: int, scale: tuple[float, float]
) -> None:
    # Mixing before or after normalisation is the same, so nothing may be cut off at 0 or 1; zeros alone differ.
    images = torch.rand(count, 3, *size, generator=seeded(seed), dtype=torch.float64)
    plan = plan_for(mixing, images, seed)
    factor, shift = scale
    before, after = factor * mix_images(images, plan) + shift, mix_images(factor * images + shift, plan)
    alike = torch.tensor([filling != "zero" for filling in plan.fillings])
    torch.testing.assert_close(after[alike], before[alike], rtol=0, atol=1e-9)


def test_zeros_are_black_before_normalisation_and_the_mean_colour_after_it() -> None:
    mixing, labels = Cutout(fill="zero", side=1.0), torch.eye(2)
    images = torch.rand(2, 3, 8, 8)
    plan = mixing.plan(2, (8, 8), seeded(0))
    covered = hard_mask("square", (8, 8), plan.centres, plan.extents).bool()[:, None].expand_as(images)
    black, _ = mixing(images, labels, generator=seeded(0))
    grey, _ = mixing(images - 0.5, labels, generator=seeded(0))
    assert covered.any()
    assert (black[covered] == 0).all()
    assert ((grey + 0.5)[covered] == 0.5).all()


# Laws of the draws.


def far_from(found: Tensor, law: Any) -> float:
    """The p-value of a Kolmogorov-Smirnov test."""
    return float(stats.kstest(found.double().numpy(), law.cdf).pvalue)


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
def test_mixup_draws_its_weights_from_a_beta(concentration: float) -> None:
    weights = MixUp(concentration=concentration).plan(4000, (2, 2), seeded(0)).weights
    assert far_from(weights, stats.beta(concentration, concentration)) > 0.01
    assert weights.unique().numel() > 3500


@pytest.mark.parametrize("concentration", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("mixing", [CutMix, partial(SmoothMix, kind="square")])
def test_boxes_have_the_area_that_a_beta_gives(mixing: Callable[..., Mixing], concentration: float) -> None:
    width, count = 1000, 4000
    plan = mixing(concentration=concentration).plan(count, (1, width), seeded(1))
    halves = plan.extents[:, 1].numpy()
    thresholds = np.arange(1, width // 2 + 1)
    expected = stats.beta(concentration, concentration).sf((2 * thresholds / width) ** 2)
    found = (halves[:, None] >= thresholds).mean(0)
    assert np.abs(found - expected).max() < stats.kstwo.ppf(0.99, count)


def test_circles_stand_anywhere_and_spread_evenly() -> None:
    plan = SmoothMix(spread=(0.1, 0.4)).plan(4000, (50, 80), seeded(2))
    for axis, length in enumerate((50, 80)):
        assert far_from(plan.centres[:, axis], stats.uniform(0, length)) > 0.01
        assert far_from(plan.extents[:, axis], stats.uniform(5, 15)) > 0.01  # 0.1 to 0.4 of the shorter side
    assert torch.equal(plan.extents[:, 0], plan.extents[:, 1])
    drawn = torch.cat([plan.centres, plan.extents[:, :1]], 1).T
    assert (torch.corrcoef(drawn) - torch.eye(3)).abs().max() < 0.05


@pytest.mark.parametrize("mixing", [CutMix(), SmoothMix(kind="square"), Cutout()])
def test_boxes_stand_anywhere(mixing: Mixing) -> None:
    plan = mixing.plan(4000, (5, 8), seeded(3))
    for axis, length in enumerate((5, 8)):
        counts = np.bincount(plan.centres[:, axis].int().numpy(), minlength=length)
        assert len(counts) == length
        assert stats.chisquare(counts).pvalue > 0.01


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.75, 1.0])
def test_the_probability_is_the_share_of_samples_that_are_mixed(name: str, probability: float) -> None:
    # Once, not twice: 0.3 of 0.3 would be 0.09.
    plan = replace(MIXINGS[name], probability=probability).plan(3000, (4, 4), seeded(4))
    struck = sum(shape != "none" for shape in plan.shapes)
    assert stats.binomtest(struck, 3000, probability).pvalue > 0.01
    if probability in (0, 1):
        assert struck == 3000 * probability
    untouched = torch.tensor([shape == "none" for shape in plan.shapes])
    assert (plan.weights[untouched] == 1).all()


@given(ANY, batches(), SEEDS)
def test_with_probability_0_nothing_happens(mixing: Mixing, images: Tensor, seed: int) -> None:
    mixing = replace(mixing, probability=0.0, label_smoothing=0.0)
    mixed, targets = mixing(images, torch.eye(len(images)), generator=seeded(seed))
    assert same_bits(mixed, images)
    assert torch.equal(targets, torch.eye(len(images)))


@given(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, st.integers(2, 9), SEEDS)
def test_nobody_is_its_own_partner_and_everyone_serves_once(mixing: Mixing, count: int, seed: int) -> None:
    partners = replace(mixing, probability=1.0).plan(count, (3, 3), seeded(seed)).partners
    assert sorted(partners.tolist()) == list(range(count))
    assert (partners != torch.arange(count)).all()


def test_every_shift_of_the_batch_is_as_likely() -> None:
    generator = seeded(5)
    shifts = Counter(int(MixUp().plan(6, (1, 1), generator).partners[0]) for _ in range(1000))
    assert sorted(shifts) == [1, 2, 3, 4, 5]
    assert stats.chisquare(list(shifts.values())).pvalue > 0.01


def test_a_choice_draws_in_proportion_to_its_weights() -> None:
    mixings = (SmoothMix(), MixUp(), SmoothMix(kind="square"), Cutout(probability=0.5))
    plan = MixChoice(mixings=mixings, weights=(3, 1, 0, 4)).plan(4000, (4, 4), seeded(0))
    counts = Counter(plan.shapes)
    found = [counts["circle"], counts["even"], counts["square"], counts["none"]]
    assert sum(found) == 4000
    # The square is Cutout's alone, and half of its share is left unmixed.
    assert stats.chisquare(found, [1500, 500, 1000, 1000]).pvalue > 0.01
    assert all(
        bool(inside) is False for inside, s in zip(plan.anchor_inside, plan.shapes, strict=True) if s == "square"
    )
    even = Counter(MixChoice(mixings=mixings[:2]).plan(4000, (4, 4), seeded(7)).shapes)
    assert stats.binomtest(even["even"], 4000, 0.5).pvalue > 0.01


@given(st.lists(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, min_size=1, max_size=3), st.integers(0, 2), batches(), SEEDS)
def test_a_choice_with_one_weight_is_that_mixing_s_kind(
    mixings: list[Mixing], chosen: int, images: Tensor, seed: int
) -> None:
    chosen %= len(mixings)
    weights = [float(i == chosen) for i in range(len(mixings))]
    plan = plan_for(MixChoice(mixings=mixings, weights=weights), images, seed)
    member = replace(mixings[chosen], probability=1.0).plan(1, (2, 2), seeded(0))
    assert set(plan.shapes) <= {member.shapes[0], "none"}
    assert mixings[chosen].probability < 1 or set(plan.shapes) == {member.shapes[0]}


# The mistakes that public code makes.


@pytest.mark.parametrize("name", MIXINGS)
def test_every_sample_has_its_own_mask(name: str) -> None:
    plan = MIXINGS[name].plan(8, (40, 50), seeded(0))
    masks = anchor_weights(plan)
    assert len({raw(mask) for mask in masks}) == 8
    assert name == "cutout" or plan.weights.unique().numel() > 4


@pytest.mark.parametrize("name", MIXINGS)
def test_the_transform_moves_nothing_to_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("moved to a GPU")

    monkeypatch.setattr(Tensor, "cuda", refused)
    mixed, targets = replace(MIXINGS[name], num_classes=4)(torch.rand(4, 3, 8, 8), torch.arange(4))
    assert (mixed.device.type, targets.device.type) == ("cpu", "cpu")


@pytest.mark.parametrize("size", [(6, 40), (40, 6), (1, 40), (40, 1), (1, 1)])
def test_images_need_not_be_square(size: tuple[int, int]) -> None:
    plan = SmoothMix(spread=(0.5, 0.5)).plan(60, size, seeded(0))
    masks = anchor_weights(plan)
    assert masks.shape == (60, *size)
    assert torch.allclose(plan.extents, torch.tensor(min(size) / 2))
    for axis, length in enumerate(size):
        places = plan.centres[:, axis]
        assert 0 <= places.min() < 0.1 * length
        assert 0.9 * length < places.max() <= length
        # The mask's peak is in the pixel that holds the centre.
        peaks = masks.amax(2 - axis).argmax(1)
        assert ((peaks + 0.5 - places).abs() <= 0.5 + 1e-4).all()


EFFECTS: dict[str, Any] = {
    "probability": 0.4,
    "kind": "square",
    "spread": (0.6, 0.7),
    "concentration": 0.3,
    "edge": 0.4,
    "side": 0.9,
    "fill": "noise",
    "mixings": (MixUp(),),
    "weights": (1, 9),
}


@pytest.mark.parametrize(
    "mixing",
    [
        SmoothMix(),
        SmoothMix(kind="square"),
        CutMix(),
        MixUp(),
        Cutout(),
        MixChoice(mixings=(SmoothMix(), CutMix()), weights=(9, 1)),
    ],
)
def test_no_setting_is_without_effect(mixing: Mixing) -> None:
    images, labels = torch.rand(24, 3, 20, 30, generator=seeded(0)), torch.arange(24)
    plain = plan_for(mixing, images, 1)
    for entry in fields(mixing):
        if entry.name in ("num_classes", "label_smoothing"):
            continue  # of the labels
        if isinstance(mixing, SmoothMix) and entry.name in (
            ("concentration",) if mixing.kind == "circle" else ("spread", "kind")
        ):
            continue  # of the other kind
        value = EFFECTS[entry.name]
        changes = {entry.name: value, "weights": None} if entry.name == "mixings" else {entry.name: value}
        changed = plan_for(replace(mixing, **changes), images, 1)
        assert not torch.equal(mix_images(images, changed), mix_images(images, plain)), entry.name
    mixing = replace(mixing, num_classes=30)
    _, targets = mixing(images, labels, generator=seeded(1))
    _, smoothed = replace(mixing, label_smoothing=0.1)(images, labels, generator=seeded(1))
    torch.testing.assert_close(smoothed, 0.9 * targets + 0.1 / 30)


@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_are_not_cast_to_the_images_dtype(dtype: torch.dtype) -> None:
    _, targets = MixUp(num_classes=2)(torch.zeros(2, 3, 4, 4, dtype=dtype), torch.arange(2), generator=seeded(0))
    plan = MixUp().plan(2, (4, 4), seeded(0))
    assert torch.equal(targets.diag(), plan.weights)


# In a loader.


@pytest.mark.parametrize("soft", [False, True])
def test_it_works_in_a_loader_s_collate_fn(soft: bool) -> None:
    images = one_colour(10, 3, (6, 7), torch.float32, 0)
    labels = torch.eye(10) if soft else torch.arange(10)
    mixing = SmoothMix(num_classes=None if soft else 10)

    def collate(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return mixing(*default_collate(samples))

    def epoch(seed: int) -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(seed)
        return list(DataLoader(TensorDataset(images, labels), batch_size=4, shuffle=True, collate_fn=collate))

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert [len(batch) for batch, _ in first] == [4, 4, 2]
    for (mixed, targets), (mixed_again, targets_again) in zip(first, again, strict=True):
        assert same_bits(mixed, mixed_again)
        assert same_bits(targets, targets_again)
        torch.testing.assert_close(mixed.mean((2, 3)), targets @ images[:, :, 0, 0], rtol=0, atol=1e-5)
    assert not torch.equal(first[0][1], other[0][1])


# The losses.


def slow_cross_entropy(logits: list[float], targets: list[float]) -> float:
    high = max(logits)
    log_sum = high + math.log(sum(math.exp(z - high) for z in logits))
    return -sum(t * (z - log_sum) for t, z in zip(targets, logits, strict=True))


@given(seed=SEEDS, count=st.integers(1, 5), classes=st.integers(1, 5), dtype=st.sampled_from(FLOATS))
def test_soft_cross_entropy_is_its_formula(seed: int, count: int, classes: int, dtype: torch.dtype) -> None:
    generator = seeded(seed)
    logits = (5 * torch.randn(count, classes, generator=generator)).to(dtype)
    targets = torch.rand(count, classes, generator=generator)
    targets /= targets.sum(1, keepdim=True)
    expected = [slow_cross_entropy(z, t) for z, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    each = soft_cross_entropy(logits, targets, reduction="none")
    assert (each.dtype, each.shape) == (torch.float32, (count,))
    assert each.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(sum(expected) / count, rel=1e-4, abs=1e-5)


@given(seed=SEEDS, smoothing=st.floats(0, 1), mixing=FOLLOWED)
def test_label_smoothing_is_torch_s(seed: int, smoothing: float, mixing: Mixing) -> None:
    generator = seeded(seed)
    logits, labels = torch.randn(5, 4, generator=generator), torch.randint(4, (5,), generator=generator)
    plan = mixing.plan(5, (3, 3), generator)
    found = soft_cross_entropy(logits, mix_targets(labels, plan, 4, label_smoothing=smoothing))
    hard = mix_targets(labels, plan, 4)
    torch.testing.assert_close(found, functional.cross_entropy(logits, hard, label_smoothing=smoothing))
    unmixed = replace(mixing, probability=0.0).plan(5, (3, 3), generator)
    found = soft_cross_entropy(logits, mix_targets(labels, unmixed, 4, label_smoothing=smoothing))
    torch.testing.assert_close(found, functional.cross_entropy(logits, labels, label_smoothing=smoothing))


@pytest.mark.parametrize(
    ("logits", "targets"), [((2, 3), (2, 4)), ((2, 3), (3, 3)), ((2, 3), (2,)), ((3,), (3,)), ((2, 3, 4), (2, 3, 4))]
)
def test_losses_of_other_shapes_are_refused(logits: tuple[int, ...], targets: tuple[int, ...]) -> None:
    with pytest.raises(sp.InputError, match=re.escape(f"logits {logits} and targets {targets}")):
        soft_cross_entropy(torch.zeros(logits), torch.zeros(targets))


@given(mixing=ANY, count=st.integers(1, 6), seed=SEEDS, classes=st.none() | st.integers(1, 3))
def test_contrastive_targets_say_how_much_of_each_caption_is_there(
    mixing: Mixing, count: int, seed: int, classes: int | None
) -> None:
    plan = mixing.plan(count, (4, 4), seeded(seed))
    labels = None if classes is None else torch.randint(classes, (count,), generator=seeded(seed))
    found = contrastive_targets(plan, labels)
    assert (found.dtype, found.shape) == (torch.float32, (count, count))
    torch.testing.assert_close(found.sum(1), torch.ones(count))
    same = (torch.arange(count) if labels is None else labels).tolist()
    for i, row in enumerate(found.tolist()):
        weight, partner = plan.weights[i].item(), int(plan.partners[i])
        for j, share in enumerate(row):
            own = (same[j] == same[i]) / same.count(same[i])
            others = (same[j] == same[partner]) / same.count(same[partner])
            assert share == pytest.approx(weight * own + (1 - weight) * others, abs=1e-6)


def test_contrastive_targets_of_unmixed_images_are_their_own_captions() -> None:
    plan = SmoothMix(probability=0.0).plan(4, (4, 4), seeded(0))
    assert torch.equal(contrastive_targets(plan), torch.eye(4))
    pairs = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1]])
    assert torch.equal(contrastive_targets(plan, torch.tensor([7, 2, 7, 5])), pairs)
    with pytest.raises(sp.InputError, match=r"classes have the shape \(3,\)"):
        contrastive_targets(plan, torch.arange(3))


def towers(count: int, seed: int) -> tuple[Tensor, Tensor]:
    drawn = torch.randn(2, count, 5, generator=seeded(seed), dtype=torch.float64)
    images, texts = functional.normalize(drawn, dim=-1)
    return images, texts


def slow_contrastive_loss(similarities: list[list[float]], targets: list[list[float]]) -> float:
    """Both directions' mean cross-entropy with rows of sum 1, without those of sum 0."""
    directions = []
    for logits, wanted in ((similarities, targets), (list(zip(*similarities)), list(zip(*targets)))):  # noqa: B905
        rows = [
            slow_cross_entropy(list(z), [share / sum(t) for share in t])
            for z, t in zip(logits, wanted, strict=True)
            if sum(t) > 0
        ]
        directions.append(sum(rows) / len(rows))
    return sum(directions) / 2


@given(mixing=ANY, count=st.integers(1, 6), seed=SEEDS, scale=st.floats(0.1, 50), classes=st.none() | st.integers(1, 3))
def test_the_contrastive_loss_takes_mixed_targets(
    mixing: Mixing, count: int, seed: int, scale: float, classes: int | None
) -> None:
    images, texts = towers(count, seed)
    labels = None if classes is None else torch.randint(classes, (count,), generator=seeded(seed))
    targets = contrastive_targets(mixing.plan(count, (4, 4), seeded(seed)), labels)
    found = sp.pretraining.contrastive_loss(images, texts, torch.tensor(scale, dtype=torch.float64), targets)
    similarities = (scale * images @ texts.T).tolist()
    expected = slow_contrastive_loss(similarities, targets.double().tolist())
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@given(count=st.integers(1, 6), seed=SEEDS, scale=st.floats(0.1, 50))
def test_identity_targets_are_the_plain_contrastive_loss(count: int, seed: int, scale: float) -> None:
    images, texts = towers(count, seed)
    factor = torch.tensor(scale, dtype=torch.float64)
    plain = sp.pretraining.contrastive_loss(images, texts, factor)
    torch.testing.assert_close(sp.pretraining.contrastive_loss(images, texts, factor, torch.eye(count)), plain)
    logits, own = factor * images @ texts.T, torch.arange(count)
    expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    assert same_bits(sp.pretraining.contrastive_loss(images, texts, factor, None), expected)
    assert same_bits(plain, expected)


def test_captions_that_are_in_no_image_do_not_count() -> None:
    images, texts = towers(3, 0)
    factor = torch.tensor(4.0, dtype=torch.float64)
    targets = torch.tensor([[0.4, 0.0, 0.6], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    found = sp.pretraining.contrastive_loss(images, texts, factor, targets)
    expected = slow_contrastive_loss((factor * images @ texts.T).tolist(), targets.double().tolist())
    assert found.item() == pytest.approx(expected, rel=1e-6)
    assert math.isfinite(expected)


def test_swapped_weights_change_the_contrastive_loss() -> None:
    plan = SmoothMix().plan(4, (8, 8), seeded(0))
    images = torch.eye(4) * plan.weights[:, None] + torch.eye(4)[plan.partners] * (1 - plan.weights[:, None])
    images, texts, factor = functional.normalize(images, dim=1), torch.eye(4), torch.tensor(5.0)
    right = sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(plan))
    swapped = replace(plan, weights=1 - plan.weights)
    assert sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(swapped)) > right + 0.05
    # Rows are images and columns captions.
    turned = sp.pretraining.contrastive_loss(images, texts, factor, contrastive_targets(plan).T)
    assert (turned - right).abs() > 0.05


def test_contrastive_targets_of_another_shape_are_refused() -> None:
    images, texts = towers(3, 0)
    with pytest.raises(sp.InputError, match=r"targets have the shape \(3, 2\); they must be \(3, 3\)"):
        sp.pretraining.contrastive_loss(images, texts, torch.tensor(1.0), torch.ones(3, 2))


# What is refused, and what small batches do.

LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("labels", "num_classes", "said"),
    [
        (torch.tensor([0, 1, 2, 4]), 4, r"range from 0 to 4; they must be in 0\.\.3"),
        (torch.tensor([0, -1, 2, 3]), 4, r"range from -1 to 3; they must be in 0\.\.3"),
        (LABELS, None, "num_classes must be given"),
        (LABELS[:3], 4, "3 labels for a plan of 4 images"),
        (torch.eye(4)[:3], 4, "3 labels for a plan of 4 images"),
        (torch.zeros(4, 4, 4), 4, r"float32 of shape \(4, 4, 4\)"),
        (torch.zeros(4), 4, r"float32 of shape \(4,\)"),
        (torch.zeros(4, dtype=torch.bool), 4, r"bool of shape \(4,\)"),
        (torch.zeros(4, dtype=torch.complex64), 4, r"complex64 of shape \(4,\)"),
        (torch.tensor(3), 4, r"int64 of shape \(\)"),
        (torch.eye(4), 5, "4 columns, num_classes is 5"),
        (2 * torch.eye(4), 4, "sum to 1"),
        (torch.zeros(4, 4), None, "sum to 1"),
        (torch.eye(4) + torch.tensor([1.0, -1.0, 0.0, 0.0]), None, "at least 0"),
        (torch.full((4, 4), math.nan), None, "sum to 1"),
    ],
)
@pytest.mark.parametrize("name", MIXINGS)
def test_wrong_labels_are_refused(name: str, labels: Tensor, num_classes: int | None, said: str) -> None:
    mixing = replace(MIXINGS[name], num_classes=num_classes)
    with pytest.raises(sp.InputError, match=said):
        mixing(torch.rand(4, 3, 6, 6), labels)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (torch.zeros(4, 3, 6, 6, dtype=torch.int64), r"images are torch\.int64"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.bool), r"images are torch\.bool"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.complex64), r"images are torch\.complex64"),
        (torch.zeros(3, 6, 6), r"shape \(3, 6, 6\); they must be \(B, C, H, W\)"),
        (torch.zeros(4, 2, 3, 6, 6), r"shape \(4, 2, 3, 6, 6\)"),
        (torch.zeros(4, 3, 0, 6), r"0 x 6"),
        (torch.zeros(4, 3, 6, 0), r"6 x 0"),
    ],
)
@pytest.mark.parametrize("name", MIXINGS)
def test_images_that_cannot_be_mixed_are_refused(name: str, images: Tensor, said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        replace(MIXINGS[name], num_classes=4)(images, LABELS[: len(images)])


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((3, 3, 6, 7), "plan is for 4 images of 6 x 7, the batch holds 3 of 6 x 7"),
        ((4, 3, 7, 6), "plan is for 4 images of 6 x 7, the batch holds 4 of 7 x 6"),
        ((4, 6, 7), r"shape \(4, 6, 7\)"),
    ],
)
def test_a_plan_is_for_one_size(shape: tuple[int, ...], said: str) -> None:
    plan = SmoothMix().plan(4, (6, 7), seeded(0))
    with pytest.raises(sp.InputError, match=said):
        mix_images(torch.zeros(shape), plan)


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (torch.zeros(4, 3, 6, 5), r"out is \(4, 3, 6, 5\)"),
        (torch.zeros(3, 3, 6, 6), r"out is \(3, 3, 6, 6\)"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.float16), r"out is \(4, 3, 6, 6\) torch\.float16"),
        (torch.zeros(4, 3, 6, 6, device="meta"), "on meta"),
    ],
)
def test_another_buffer_is_refused(out: Tensor, said: str) -> None:
    plan = SmoothMix().plan(4, (6, 6), seeded(0))
    with pytest.raises(sp.InputError, match=said):
        mix_images(torch.zeros(4, 3, 6, 6), plan, out=out)


@pytest.mark.parametrize("name", MIXINGS)
def test_a_buffer_that_shares_memory_is_refused(name: str) -> None:
    array = np.random.default_rng(0).random((6, 3, 6, 6), dtype=np.float32)
    whole = torch.from_numpy(array)
    images = whole[:4]
    before = images.clone()
    plan = MIXINGS[name].plan(4, (6, 6), seeded(0))
    # The same tensor, a view, one that overlaps by two images, and one whose storage torch takes for another.
    for out in (images, images.view(4, 3, 36).view(4, 3, 6, 6), whole[2:], torch.from_numpy(array[2:])):
        with pytest.raises(sp.InputError, match="out shares its memory with images"):
            mix_images(images, plan, out=out)
        assert torch.equal(images, before)


def test_a_buffer_beside_the_images_is_taken() -> None:
    both = torch.rand(2, 4, 3, 6, 6)
    plan = SmoothMix().plan(4, (6, 6), seeded(0))
    expected = mix_images(both[0], plan)
    mix_images(both[0], plan, out=both[1])
    assert torch.equal(both[1], expected)


@given(FOLLOWED | CUTOUTS.filter(lambda cutout: cutout.fill == "partner"), batches(counts=[1]), SEEDS)
def test_a_batch_of_one_comes_back_unmixed(mixing: Mixing, images: Tensor, seed: int) -> None:
    mixed, targets = replace(mixing, label_smoothing=0.0)(images, torch.ones(1, 1), generator=seeded(seed))
    assert same_bits(mixed, images)
    assert targets.tolist() == [[1.0]]
    labelled = mix_targets(torch.tensor([2]), plan_for(mixing, images, seed), 4)
    torch.testing.assert_close(labelled, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), rtol=0, atol=1e-6)


@given(ANY, batches(counts=[0]), SEEDS)
def test_a_batch_of_zero_gives_one_of_zero(mixing: Mixing, images: Tensor, seed: int) -> None:
    mixing = replace(mixing, num_classes=5)
    for labels in (torch.zeros(0, dtype=torch.long), torch.zeros(0, 5)):
        for out in (None, torch.empty_like(images)):
            mixed, targets = mixing(images, labels, generator=seeded(seed), out=out)
            assert (mixed.shape, mixed.dtype) == (images.shape, images.dtype)
            assert targets.shape == (0, 5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: MixUp(probability=-0.1), r"probability is -0\.1"),
        (lambda: SmoothMix(probability=1.1), r"probability is 1\.1"),
        (lambda: Cutout(probability=math.nan), "probability is nan"),
        (lambda: CutMix(label_smoothing=1.5), r"label_smoothing is 1\.5"),
        (lambda: CutMix(label_smoothing=math.nan), "label_smoothing is nan"),
        (lambda: SmoothMix(kind="disc"), "kind 'disc'"),
        (lambda: SmoothMix(spread=(0.5, 0.25)), r"spread is \(0\.5, 0\.25\)"),
        (lambda: SmoothMix(spread=(0.0, 0.25)), r"spread is \(0\.0, 0\.25\)"),
        (lambda: SmoothMix(spread=(0.1, math.inf)), r"spread is \(0\.1, inf\)"),
        (lambda: SmoothMix(spread=(math.nan, 0.5)), r"spread is \(nan, 0\.5\)"),
        (lambda: SmoothMix(spread=(0.1, 0.2, 0.3)), r"spread is \(0\.1, 0\.2, 0\.3\)"),
        (lambda: SmoothMix(edge=1.01), r"edge is 1\.01"),
        (lambda: SmoothMix(edge=math.nan), "edge is nan"),
        (lambda: SmoothMix(concentration=0.0), r"concentration is 0\.0"),
        (lambda: CutMix(concentration=-1.0), r"concentration is -1\.0"),
        (lambda: CutMix(concentration=math.inf), "concentration is inf"),
        (lambda: CutMix(edge=-0.5), r"edge is -0\.5"),
        (lambda: MixUp(concentration=math.nan), "concentration is nan"),
        (lambda: Cutout(side=1.5), r"side is 1\.5"),
        (lambda: Cutout(side=math.nan), "side is nan"),
        (lambda: Cutout(edge=2.0), r"edge is 2\.0"),
        (lambda: Cutout(fill="gray"), "fill 'gray'"),
        (lambda: MixChoice(mixings=()), "0 mixings"),
        (lambda: MixChoice(mixings=(MixUp(),), weights=(1, 2)), "1 mixings with 2 weights"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(0, 0)), r"weights are \(0, 0\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(2, -1)), r"weights are \(2, -1\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(1, math.nan)), r"weights are \(1, nan\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(1, math.inf)), r"weights are \(1, inf\)"),
        (lambda: replace(MixUp().plan(1, (2, 2)), shapes=("disc",)), "shape 'disc'"),
        (lambda: replace(MixUp().plan(1, (2, 2)), fillings=("gray",)), "filling 'gray'"),
        (lambda: mix_targets(LABELS, MixUp().plan(4, (2, 2)), 4, label_smoothing=2.0), r"label_smoothing is 2\.0"),
    ],
)
def test_a_mixing_out_of_range_is_refused_by_name(make: Callable[[], object], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        make()


# By name.


@given(ANY | choices(ANY))
def test_settings_read_back_as_the_same_mixing(mixing: Mixing) -> None:
    plain = mixing_settings(mixing)
    for read in (json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain)), plain):
        found = mixing_from(read)
        assert found == mixing
        assert type(found) is type(mixing)
    assert mixing_from(mixing) is mixing


def test_names_are_the_papers_methods() -> None:
    assert {name: type(mixing) for name, mixing in MIXINGS.items()} == {
        "smoothmix-circle": SmoothMix,
        "smoothmix-square": SmoothMix,
        "cutmix": CutMix,
        "cutout": Cutout,
        "mixup": MixUp,
    }
    for name, mixing in MIXINGS.items():
        assert mixing_from(name) is mixing
        assert mixing.probability == 1
    assert mixing_from("none") is None
    assert mixing_from({"method": "smoothmix", "kind": "square"}) == MIXINGS["smoothmix-square"]
    assert mixing_settings(SmoothMix()) == {"method": "smoothmix"}


def test_names_with_weights_are_a_choice() -> None:
    found = mixing_from({"smoothmix-circle": 2, "cutmix": 1, "cutout": "0.5"})
    assert found == MixChoice(mixings=(SmoothMix(), CutMix(), Cutout()), weights=(2.0, 1.0, 0.5))
    members = [{"method": "cutmix", "edge": 0.5}, "mixup", {"mixup": 1, "cutout": 3}]
    nested = mixing_from({"method": "choice", "mixings": members, "weights": [1, 0, 2], "probability": 0.5})
    inner = MixChoice(mixings=(MixUp(), Cutout()), weights=(1.0, 3.0))
    assert nested == MixChoice(mixings=(CutMix(edge=0.5), MixUp(), inner), weights=(1, 0, 2), probability=0.5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("smothmix-circle", "unknown mixing 'smothmix-circle'. Did you mean 'smoothmix-circle'"),
        (None, "mixing is None"),
        (3, "mixing is 3"),
        ([], r"mixing is \[\]"),
        ({}, r"mixing is \{\}"),
        ({"smoothmix": 1}, "unknown mixing 'smoothmix'. Did you mean 'smoothmix-"),
        ({"cutmix": 1, "none": 1}, "unknown mixing 'none'"),
        ({"cutmix": "much"}, "weight 'much' is no number"),
        ({"cutmix": None}, "weight None is no number"),
        ({"cutmix": 0}, r"weights are \(0\.0,\)"),
        ({"cutmix": 1, "mixup": -2}, r"weights are \(1\.0, -2\.0\)"),
        ({"method": "cutmx"}, "unknown mixing method 'cutmx'. Did you mean 'cutmix'"),
        ({"method": "mixup", "alpha": 1}, "unknown setting of mixup 'alpha'"),
        ({"method": "mixup", "edge": 1}, "unknown setting of mixup 'edge'"),
        ({"method": "cutmix", "probability": "often"}, "'often'"),
        ({"method": "cutmix", "probability": 2}, "probability is 2"),
        ({"method": "smoothmix", "spread": 0.3}, "0.3"),
        ({"method": "choice"}, "mixings"),
        ({"method": "choice", "mixings": 5}, "5"),
        ({"method": "choice", "mixings": ["cutmix", "none"]}, "none"),
        ({"method": "choice", "mixings": ["cutmix"], "weights": ["a"]}, "'a'"),
    ],
)
def test_a_mixing_that_cannot_be_read_is_refused(asked: Any, said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        mixing_from(asked)


# On a GPU.


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_gives_what_the_cpu_gives(name: str, dtype: torch.dtype) -> None:
    images = (200 * torch.rand(5, 3, 20, 30, generator=seeded(0))).to(dtype)
    mixing = replace(MIXINGS[name], num_classes=5)
    expected, expected_targets = mixing(images, torch.arange(5), generator=seeded(1))
    found, targets = mixing(images.cuda(), torch.arange(5).cuda(), generator=seeded(1))
    assert (found.device.type, targets.device.type) == ("cuda", "cuda")
    tolerance = 1 if dtype == torch.uint8 else 1000 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.cpu().double(), expected.double(), rtol=0, atol=tolerance)
    torch.testing.assert_close(targets.cpu(), expected_targets)
    mixing(images.cuda(), torch.arange(5).cuda(), generator=Generator("cuda").manual_seed(0))
