"""Augmentations: they are torchvision's, and their random numbers come from the generator alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

import shiftproof as sp
from shiftproof.data.augmentations import AUGMENTATIONS, augmentation, augmentation_specs
from shiftproof.data.batches import training_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set

WANTED = Preprocessing(size=24, mean=(0.5, 0.25, 0.75))
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
ALL = tuple(AUGMENTATIONS)
THEIRS = {
    "flip": v2.RandomHorizontalFlip(),
    "vertical-flip": v2.RandomVerticalFlip(),
    "randaugment": v2.RandAugment(),
    "color-jitter": v2.ColorJitter(0.4, 0.4, 0.4),
    "random-erasing": v2.RandomErasing(value=(128, 64, 191)),
}


def changed(specs: Sequence[Any], seed: int, pixels: np.ndarray = PIXELS) -> np.ndarray:
    change = augmentation(specs, WANTED)
    assert change is not None
    return change(pixels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 2**31))
def test_each_is_what_torchvision_draws_from_a_global_generator_of_the_same_seed(name: str, seed: int) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        expected = np.asarray(THEIRS[name](Image.fromarray(PIXELS)))
    assert (changed([name], seed) == expected).all()


@pytest.mark.parametrize("name", ALL)
def test_the_global_generators_are_neither_read_nor_advanced(name: str) -> None:
    outcomes = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.random.get_rng_state()
        outcomes.append([changed([name], seed) for seed in range(8)])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert all((a == b).all() for a, b in zip(*outcomes, strict=True))
    assert not all((outcome == outcomes[0][0]).all() for outcome in outcomes[0])


def test_threads_do_not_take_each_others_draws() -> None:
    alone = [changed(ALL, seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda seed: changed(ALL, seed), range(64)))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_erased_pixels_have_the_mean_colour_and_the_input_is_not_changed() -> None:
    before = PIXELS.copy()
    erased = changed([{"method": "random-erasing", "p": 1.0, "scale": [0.2, 0.3]}], 0)
    share = (erased == (128, 64, 191)).all(-1).mean()
    assert 0.15 < share < 0.35
    assert (before == PIXELS).all()


def test_they_are_applied_in_their_order() -> None:
    flip, fade = {"method": "flip", "p": 1.0}, {"method": "color-jitter", "brightness": [0.5, 0.5]}
    erase = {"method": "random-erasing", "p": 1.0}
    assert (changed([flip], 0) == PIXELS[:, ::-1]).all()
    assert not (changed([erase, fade], 3) == changed([fade, erase], 3)).all()


def squares(count: int = 12) -> sp.ImageSet:
    drawn = np.random.default_rng(1).integers(0, 256, (count, 30, 26, 3), dtype=np.uint8)
    return array_set(
        "squares", sp.ClassSpace.from_ids(["a"]), [str(i) for i in range(count)], np.zeros(count), lambda: drawn
    )


def batches(images: sp.ImageSet, **options: Any) -> list[torch.Tensor]:
    places = [[0, 5, 3, 7], [0, 5, 3, 7], [1, 2, 4, 6]][options.get("first", 0) :]
    return list(training_batches(images, WANTED, places, (0.5, 1.0), **{"seed": 0, "augment": ALL, **options}))


def test_a_batch_is_the_same_whenever_and_by_whichever_process_it_is_made() -> None:
    images = squares()
    whole = batches(images)
    assert all(torch.equal(a, b) for a, b in zip(whole, batches(images), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], batches(images, first=1), strict=True))
    shares = [batches(images, share=part) for part in (slice(0, 1), slice(1, 4))]
    assert all(torch.equal(w, torch.cat([a, b])) for w, a, b in zip(whole, *shares, strict=True))
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], batches(images, seed=1)[0])
    assert not torch.equal(whole[0], batches(images, augment=())[0])


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("none", ()),
        ([], ()),
        ("flip", ("flip",)),
        ("flip, randaugment", ("flip", "randaugment")),
        (["flip", {"method": "randaugment", "magnitude": 5}], ("flip", {"method": "randaugment", "magnitude": 5})),
    ],
)
def test_they_are_named_in_several_ways(given: Any, expected: tuple[Any, ...]) -> None:
    assert sp.FinetuneSettings(augment=given).augment == expected
    file = sp.RunFile.resolve({"finetune": {"augment": given}})
    assert file.finetune.augment == expected
    assert sp.RunFile.resolve(sp.runs.file.parse_yaml(file.to_yaml())).finetune.augment == expected
    assert sp.RunFile.resolve({}, ["finetune.augment=[flip,randaugment]"]).finetune.augment == ("flip", "randaugment")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("flop", "unknown finetune.augment 'flop'. Did you mean 'flip'"),
        ("colour-jitter", "Did you mean 'color-jitter'"),
        ({"method": "flip"}, "must be none, names, or a list"),
        (3, "finetune.augment is 3"),
        ([{"method": "flip", "q": 1}], "unknown setting of flip 'q'"),
        ([{"method": "flip", "p": 2}], "flip cannot have the settings {'p': 2}"),
        ([{"method": "randaugment", "magnitude": 31}], "magnitude of randaugment is 31; it must lie between 0 and 30"),
        ([{"method": "randaugment", "num_ops": -1}], "num_ops of randaugment is -1; it must be at least 0"),
        ([{"p": 1}], "unknown finetune.augment 'None'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: Any, message: str) -> None:
    with pytest.raises(sp.InputError) as error:
        sp.FinetuneSettings(augment=given)
    assert message in str(error.value)


def test_specs_do_not_share_what_the_caller_owns() -> None:
    mine = {"method": "flip", "p": 1.0}
    (spec,) = augmentation_specs([mine])
    mine["p"] = 0.0
    assert spec == {"method": "flip", "p": 1.0}
