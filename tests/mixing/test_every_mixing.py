"""What holds for every mixing: seeds, buffers, layouts, batches and gradients."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mixings import (
    ANY,
    DTYPES,
    FLOATS,
    LAYOUTS,
    SEEDS,
    batches,
    laid_out,
    plan_for,
    raw,
    same_bits,
    same_plan,
    seeded,
)
from torch import Tensor

from shiftproof.mixing.methods import Mixing, SmoothMix
from shiftproof.mixing.named import MIXINGS
from shiftproof.mixing.plans import MixPlan, anchor_weights, mix_images
from shiftproof.mixing.targets import mix_targets


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
    result = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.random.get_rng_state()
        result.append(mixing(images, labels, generator=seeded(seed)))
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all(same_bits(first, second) for first, second in zip(*result, strict=True))


@given(ANY, batches(), SEEDS)
def test_without_a_generator_draws_come_from_the_global_state(mixing: Mixing, images: Tensor, seed: int) -> None:
    torch.manual_seed(seed)
    result = mixing(images, torch.eye(len(images)))
    expected = mixing(images, torch.eye(len(images)), generator=seeded(seed))
    assert all(same_bits(first, second) for first, second in zip(result, expected, strict=True))


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
    (result,) = torch.autograd.grad(mixed.sum(), leaf)
    weights = anchor_weights(plan).to(images.dtype)
    expected = torch.zeros_like(images)
    for i, filling in enumerate(plan.fillings):
        if filling == "partner":
            expected[i] += weights[i]
            expected[plan.partners[i]] += 1 - weights[i]
        elif filling == "zero":
            expected[i] += weights[i]
    flat = torch.tensor([filling in ("mean", "noise") for filling in plan.fillings])
    torch.testing.assert_close(result[~flat], expected[~flat], rtol=0, atol=1e-5)


def test_without_gradients_there_is_no_graph() -> None:
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    with torch.no_grad():
        mixed, _ = SmoothMix()(images, torch.eye(4))
    assert not mixed.requires_grad
