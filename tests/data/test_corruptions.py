"""Corruptions of images against their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import shiftproof as sp
from shiftproof.data.corruptions import CORRUPTIONS
from shiftproof.data.emoji.drawings import concepts, sprites
from shiftproof.data.emoji.views import ViewGeometry, compose, draw_backgrounds, draw_placements
from shiftproof.data.suites import corrupted


def drawing(seed: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """Coarse blocks of colour with some fine texture."""
    draw_from = np.random.default_rng(seed)
    blocks = draw_from.integers(0, 256, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    return (blocks + draw_from.integers(-20, 21, blocks.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("severity", "saved"), [(1, 0.4), (2, 0.3), (3, 0.2), (4, 0.1), (5, 0.05)])
def test_contrast_shrinks_the_distance_to_each_channels_mean(severity: int, saved: float) -> None:
    pixels = drawing(3)[:13, :21]
    images = sp.data.corrupt(pixels, "contrast", severity, torch.Generator())
    values = pixels.tolist()
    for channel in range(3):
        every = [row[x][channel] for row in values for x in range(21)]
        mean = sum(every) / len(every)
        for y in range(13):
            for x in range(21):
                expected = mean + saved * (values[y][x][channel] - mean)
                assert abs(int(images[y, x, channel]) - expected) <= 0.5 + 1e-6


def test_pixelation_means_over_blocks_and_repeats_them() -> None:
    pixels = drawing(4)
    images = sp.data.corrupt(pixels, "pixelation", 2, torch.Generator())  # half the side
    for y in range(0, 32, 2):
        for x in range(0, 32, 2):
            for channel in range(3):
                block = [int(pixels[y + i, x + j, channel]) for i in (0, 1) for j in (0, 1)]
                for i in (0, 1):
                    for j in (0, 1):
                        assert abs(int(images[y + i, x + j, channel]) - sum(block) / 4) <= 1


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_noise_has_the_deviation_that_it_says_and_is_clipped(severity: int, deviation: float) -> None:
    grey = np.full((150, 150, 3), 128, dtype=np.uint8)
    noise = (sp.data.corrupt(grey, "noise", severity, torch.Generator().manual_seed(0)) - 128.0) / 255
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(deviation, rel=0.06)
    white = sp.data.corrupt(np.full((150, 150, 3), 255, np.uint8), "noise", severity, torch.Generator().manual_seed(0))
    assert (white == 255).mean() > 0.45


def test_blur_spreads_an_edge_as_wide_as_the_image_is_large() -> None:
    def width(size: int) -> int:
        edge = np.zeros((size, size, 3), dtype=np.uint8)
        edge[:, size // 2 :] = 255
        row = sp.data.corrupt(edge, "blur", 5, torch.Generator())[size // 2, :, 0]
        return int(((row > 12) & (row < 243)).sum())

    assert 3 <= width(64) <= 9
    assert width(224) == pytest.approx(3.5 * width(64), rel=0.3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_each_severity_is_farther_from_the_images(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(concepts()), generator=generator)[:24]
    drawings = torch.tensor(sprites()[some.numpy(), 0]).permute(0, 3, 1, 2).float() / 255
    views, _ = compose(
        drawings, draw_placements(24, ViewGeometry(), generator), draw_backgrounds("busy", 24, 64, generator)
    )
    images = (views.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    distances = []
    for severity in range(1, 6):
        result = np.stack([sp.data.corrupt(image, name, severity, generator) for image in images])
        assert result.shape == images.shape
        assert result.dtype == np.uint8
        distances.append(float(((result.astype(float) - images) ** 2).mean()))
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[4] > 1.3 * distances[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_the_input_of_any_shape_stays_as_it_was(name: str, height: int, width: int) -> None:
    pixels = drawing(1)[:height, :width].copy()
    original = pixels.copy()
    pixels.flags.writeable = False
    images = sp.data.corrupt(pixels, name, 5, torch.Generator().manual_seed(0))
    assert images.shape == (height, width, 3)
    assert np.array_equal(pixels, original)
    assert not np.shares_memory(images, pixels)


def test_a_samples_corruption_depends_on_its_id_and_not_on_its_place(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'test'}")
    whole = corrupted(images, "noise", 3).data
    turned = corrupted(images.subset(range(8, -1, -1)), "noise", 3).data
    assert all(np.array_equal(whole.read(i), turned.read(8 - i)) for i in (8, 0, 4))
    assert np.array_equal(whole.read(2), whole.read(2))
    noise = [whole.read(i).astype(int) - images.read(i) for i in range(2)]
    assert not np.array_equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("blurr", 3, "Did you mean 'blur'"),
        ("noise", 0, "severity 0"),
        ("noise", 6, "severity 6"),
        ("noise", 2.5, "2.5"),
    ],
)
def test_an_unknown_corruption_or_severity_is_refused(name: str, severity: int, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.data.corrupt(drawing(), name, severity, torch.Generator())
