"""Mixed pixels against the formulas of the papers and of torchvision."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mixings import (
    ANY,
    CONCENTRATIONS,
    CUTMIXES,
    CUTOUTS,
    DTYPES,
    FLOATS,
    LAYOUTS,
    MIXUPS,
    SEEDS,
    SIZES,
    SMOOTHMIXES,
    batches,
    laid_out,
    plan_for,
    same_bits,
    seeded,
)
from torch import Tensor
from torchvision.transforms import v2

from shiftproof.mixing.masks import soft_mask
from shiftproof.mixing.methods import CutMix, Cutout, Mixing, SmoothMix
from shiftproof.mixing.plans import anchor_weights, mix_images
from shiftproof.mixing.targets import mix_targets


@given(ANY, batches(FLOATS), SEEDS)
def test_every_pixel_is_the_weighted_sum_of_two(mixing: Mixing, images: Tensor, seed: int) -> None:
    plan = plan_for(mixing, images, seed)
    weights, result = anchor_weights(plan).double(), mix_images(images, plan).double()
    for i, (shape, filling) in enumerate(zip(plan.shapes, plan.fillings, strict=True)):
        anchor = images[i].double()
        if shape == "none" or (filling == "partner" and plan.partners[i] == i):
            assert torch.equal(result[i], anchor)
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
        torch.testing.assert_close(result[i], expected, rtol=0, atol=tolerance.item())


@given(SMOOTHMIXES | CUTMIXES | MIXUPS | CUTOUTS, st.integers(1, 5), SIZES, SEEDS)
def test_weights_of_a_plan_are_what_its_fields_say(
    mixing: Mixing, count: int, size: tuple[int, int], seed: int
) -> None:
    plan = mixing.plan(count, size, seeded(seed))
    for i, result in enumerate(anchor_weights(plan)):
        shape, weight = plan.shapes[i], plan.weights[i]
        if shape in ("none", "even"):
            assert (result == (1 if shape == "none" else weight)).all()
            continue
        place = plan.centres[i : i + 1], plan.extents[i : i + 1], plan.edges[i : i + 1]
        inside = soft_mask(shape, size, *place)[0]
        assert bool(plan.anchor_inside[i]) == isinstance(mixing, SmoothMix)
        assert torch.equal(result, inside if isinstance(mixing, SmoothMix) else 1 - inside)
        expected = torch.tensor(1.0) if isinstance(mixing, Cutout) else result.mean()
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-6)


def test_smoothmix_circle_is_the_paper_s_formula() -> None:
    images = torch.randn(3, 2, 9, 14, generator=seeded(1))
    plan = SmoothMix(spread=(0.3, 0.6)).plan(3, (9, 14), seeded(2))
    result = mix_images(images, plan).tolist()
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
                    assert result[i][c][y][x] == pytest.approx(pixel, abs=1e-5)
        assert plan.weights[i].item() == pytest.approx(total / (9 * 14), abs=1e-6)


def test_smoothmix_square_is_cutmix_s_box_with_a_ramp() -> None:
    images = torch.randn(3, 2, 40, 30, generator=seeded(1))
    plan = SmoothMix(kind="square").plan(3, (40, 30), seeded(7))
    assert plan.extents.min() >= 2
    result = mix_images(images, plan).tolist()
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
                    assert result[i][c][y][x] == pytest.approx(pixel, abs=1e-5)
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
