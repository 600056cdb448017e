"""Batches of images, and the random crops of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

import shiftproof as sp
from shiftproof.data.batches import decoded_once, evaluation_batches, training_batches
from shiftproof.data.loading import Preprocessing, model_inputs, normalise, random_resized_crop, to_unit_range


def test_batches_do_not_depend_on_what_is_kept_in_memory(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}")
    wanted = Preprocessing(size=24)
    saved = decoded_once(images, wanted)
    assert decoded_once(images, wanted, limit=10) is images
    whole = torch.cat(list(evaluation_batches(images, wanted, 5)))
    assert whole.shape == (18, 3, 24, 24)
    assert torch.equal(whole, torch.cat(list(evaluation_batches(saved, wanted, 7))))


@pytest.mark.parametrize("batch_size", [1, 31, 40, 64, 100])
@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_hold_all_images_in_order_however_threads_share_them(batch_size: int, in_memory: bool) -> None:
    classes = sp.ClassSpace.from_ids(["grey"])
    labels, wanted = np.zeros(70, dtype=np.int64), Preprocessing(size=2)
    images = sp.ImageSet(
        "greys",
        classes,
        tuple(map(str, range(70))),
        labels,
        lambda i: np.full((2, 2, 3), i, np.uint8),
        in_memory=in_memory,
    )
    batches = list(evaluation_batches(images, wanted, batch_size))
    assert [len(batch) for batch in batches] == [len(labels[i : i + batch_size]) for i in range(0, 70, batch_size)]
    levels = torch.arange(70.0)[:, None, None, None].expand(70, 3, 2, 2) / 255
    assert torch.equal(torch.cat(batches), normalise(levels, wanted))


@given(
    pixels=arrays(np.uint8, st.tuples(st.integers(0, 9), st.integers(1, 5), st.integers(1, 5), st.just(3))),
    std=st.floats(0.1, 2),
)
def test_inputs_are_made_in_place_with_the_bits_of_the_formula(pixels: NDArray[np.uint8], std: float) -> None:
    wanted = Preprocessing(mean=(0.1, 0.5, 0.48145466), std=(std, 0.3, 1.0))
    expected = normalise(to_unit_range(pixels), wanted)
    assert torch.equal(model_inputs(pixels, wanted), expected)
    assert torch.equal(model_inputs(pixels, wanted, out=torch.full(expected.shape, torch.nan)), expected)


def test_training_crops_depend_on_seed_and_batch_alone(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}")
    wanted = Preprocessing(size=24)

    def drawn(seed: int) -> list[torch.Tensor]:
        return list(training_batches(images, wanted, [[0, 5], [0, 5]], (0.5, 1.0), seed=seed))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


@given(seed=st.integers(0, 100), height=st.integers(1, 50), width=st.integers(1, 50))
def test_a_crop_of_everything_shows_nothing_but_the_image(seed: int, height: int, width: int) -> None:
    pixels = np.full((height, width, 3), (10, 200, 90), dtype=np.uint8)
    generator = torch.Generator().manual_seed(seed)
    result = random_resized_crop(pixels, Preprocessing(size=16), (0.2, 1.0), generator)
    assert result.shape == (16, 16, 3)
    assert (result == pixels[0, 0]).all()
