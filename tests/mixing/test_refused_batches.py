"""Labels, images, plans, buffers and settings that are refused, and the smallest batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from support.mixings import ANY, CUTOUTS, FOLLOWED, SEEDS, batches, plan_for, same_bits, seeded
from torch import Tensor

import shiftproof as sp
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS
from shiftproof.mixing.plans import mix_images
from shiftproof.mixing.targets import mix_targets

LABELS = torch.arange(4)


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
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
def test_wrong_labels_are_refused(name: str, labels: Tensor, num_classes: int | None, message: str) -> None:
    mixing = replace(MIXINGS[name], num_classes=num_classes)
    with pytest.raises(sp.InputError, match=message):
        mixing(torch.rand(4, 3, 6, 6), labels)


@pytest.mark.parametrize(
    ("images", "message"),
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
def test_images_that_cannot_be_mixed_are_refused(name: str, images: Tensor, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        replace(MIXINGS[name], num_classes=4)(images, LABELS[: len(images)])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 3, 6, 7), "plan is for 4 images of 6 x 7 pixels, but the batch has 3 of 6 x 7"),
        ((4, 3, 7, 6), "plan is for 4 images of 6 x 7 pixels, but the batch has 4 of 7 x 6"),
        ((4, 6, 7), r"shape \(4, 6, 7\)"),
    ],
)
def test_a_plan_is_for_one_size(shape: tuple[int, ...], message: str) -> None:
    plan = SmoothMix().plan(4, (6, 7), seeded(0))
    with pytest.raises(sp.InputError, match=message):
        mix_images(torch.zeros(shape), plan)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(4, 3, 6, 5), r"`out` is \(4, 3, 6, 5\)"),
        (torch.zeros(3, 3, 6, 6), r"`out` is \(3, 3, 6, 6\)"),
        (torch.zeros(4, 3, 6, 6, dtype=torch.float16), r"`out` is \(4, 3, 6, 6\) torch\.float16"),
        (torch.zeros(4, 3, 6, 6, device="meta"), "on meta"),
    ],
)
def test_another_buffer_is_refused(out: Tensor, message: str) -> None:
    plan = SmoothMix().plan(4, (6, 6), seeded(0))
    with pytest.raises(sp.InputError, match=message):
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
        with pytest.raises(sp.InputError, match="`out` shares memory with the images"):
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
    ("make", "message"),
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
        (lambda: MixChoice(mixings=(MixUp(),), weights=(1, 2)), "1 mixings and 2 weights"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(0, 0)), r"weights are \(0, 0\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(2, -1)), r"weights are \(2, -1\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(1, math.nan)), r"weights are \(1, nan\)"),
        (lambda: MixChoice(mixings=(MixUp(), CutMix()), weights=(1, math.inf)), r"weights are \(1, inf\)"),
        (lambda: replace(MixUp().plan(1, (2, 2)), shapes=("disc",)), "shape 'disc'"),
        (lambda: replace(MixUp().plan(1, (2, 2)), fillings=("gray",)), "filling 'gray'"),
        (lambda: mix_targets(LABELS, MixUp().plan(4, (2, 2)), 4, label_smoothing=2.0), r"label_smoothing is 2\.0"),
    ],
)
def test_a_mixing_out_of_range_is_refused_by_name(make: Callable[[], object], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        make()
