"""Cutout: where the square is, and what it is filled with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mixings import (
    ANY,
    DTYPES,
    FILLS,
    SEEDS,
    SHARES,
    SIZES,
    batches,
    laid_out,
    one_colour,
    plan_for,
    same_bits,
    seeded,
)
from torch import Tensor

from shiftproof.mixing.masks import hard_mask
from shiftproof.mixing.methods import Cutout, Mixing
from shiftproof.mixing.plans import mix_images


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
        result = mixed[i][:, inside[i]]
        assert result.shape[1] > 1500
        torch.testing.assert_close(result.mean(1), centre.double(), rtol=0, atol=1.5)
        torch.testing.assert_close(result.std(1), spread.double(), rtol=0.08, atol=0)
    assert not torch.equal(mixed[0][:, inside[0] & inside[1]], mixed[1][:, inside[0] & inside[1]])


def test_noise_of_bytes_stays_within_them() -> None:
    # Half black, half white: the deviation is 127.5, so that a third of the noise lies beyond 0..255.
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[..., 32:] = 255
    plan = Cutout(side=1.0, fill="noise").plan(2, (64, 64), seeded(1))
    for layout in ("contiguous", "channels last"):
        result = mix_images(laid_out(images, layout), plan).float()
        expected = mix_images(images.float(), plan).clamp(0, 255)
        torch.testing.assert_close(result, expected, rtol=0, atol=0.51)


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
