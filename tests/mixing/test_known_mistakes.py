"""Mistakes of public implementations that these mixings do not make, and use in a data loader."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from support.mixings import DTYPES, one_colour, plan_for, raw, same_bits, seeded
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate

from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS
from shiftproof.mixing.plans import anchor_weights, mix_images

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
