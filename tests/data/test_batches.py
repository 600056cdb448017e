"""Batches of images, and the random crops of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.data.batches import decoded_once, evaluation_batches, training_batches
from shiftproof.data.loading import Preprocessing, random_resized_crop


def test_batches_do_not_depend_on_what_is_kept_in_memory(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}")
    wanted = Preprocessing(size=24)
    saved = decoded_once(images, wanted)
    assert decoded_once(images, wanted, limit=10) is images
    whole = torch.cat(list(evaluation_batches(images, wanted, 5)))
    assert whole.shape == (18, 3, 24, 24)
    assert torch.equal(whole, torch.cat(list(evaluation_batches(saved, wanted, 7))))


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
