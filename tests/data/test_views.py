"""Views of drawings: placements, backgrounds and coverage."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.data.emoji.drawings import sprites
from shiftproof.data.emoji.views import BACKGROUNDS, ViewGeometry, compose, draw_backgrounds, draw_placements


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), count=st.integers(1, 2))
def test_a_view_is_the_drawing_sampled_where_its_placement_says(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawings = torch.rand(count, 4, 5, 5, generator=generator)
    placements = draw_placements(count, ViewGeometry(degrees=40, spill=0.4), generator)
    backgrounds = torch.rand(count, 3, 7, 9, generator=generator)
    images, masks = compose(drawings, placements, backgrounds)
    assert images.shape == (count, 3, 7, 9)
    for b in range(count):
        source, place = drawings[b].tolist(), placements[b].tolist()
        for row in range(7):
            for column in range(9):
                # Pixel centres in [-1, 1], carried from the image to the drawing by the inverse map.
                x, y = (2 * column + 1) / 9 - 1, (2 * row + 1) / 7 - 1
                u = place[0][0] * x + place[0][1] * y + place[0][2]
                v = place[1][0] * x + place[1][1] * y + place[1][2]
                left, top = ((u + 1) * 5 - 1) / 2, ((v + 1) * 5 - 1) / 2
                coverage, colour = 0.0, [0.0, 0.0, 0.0]
                for j in (math.floor(top), math.floor(top) + 1):
                    for i in (math.floor(left), math.floor(left) + 1):
                        if 0 <= i < 5 and 0 <= j < 5:
                            share = (1 - abs(left - i)) * (1 - abs(top - j)) * source[3][j][i]
                            coverage += share
                            colour = [c + share * source[k][j][i] for k, c in enumerate(colour)]
                assert masks[b, row, column].item() == pytest.approx(coverage, abs=1e-4)
                for k in range(3):
                    expected = colour[k] + (1 - coverage) * backgrounds[b, k, row, column].item()
                    assert images[b, k, row, column].item() == pytest.approx(expected, abs=1e-4)


def test_the_mask_of_an_upright_drawing_is_its_coverage() -> None:
    drawings = torch.tensor(sprites()[[3, 500], 0]).permute(0, 3, 1, 2).float() / 255
    upright = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    images, masks = compose(drawings, upright, torch.ones(2, 3, 64, 64))
    torch.testing.assert_close(masks, drawings[:, 3], rtol=0, atol=1e-5)
    clear = drawings[:, 3] == 0
    assert clear.any()
    torch.testing.assert_close(images.permute(0, 2, 3, 1)[clear], torch.ones(int(clear.sum()), 3))


def test_a_white_background_stays_white_outside_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    drawings = torch.tensor(sprites()[:40, 0]).permute(0, 3, 1, 2).float() / 255
    images, masks = compose(
        drawings, draw_placements(40, ViewGeometry(), generator), draw_backgrounds("white", 40, 64, generator)
    )
    outside = masks == 0
    assert 0.2 < outside.float().mean() < 0.98
    assert (images.permute(0, 2, 3, 1)[outside] == 1).all()
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6


def test_a_clear_pixels_colour_never_bleeds_into_the_edge() -> None:
    drawing_ = torch.zeros(1, 4, 4, 4)
    drawing_[:, 0] = 1.0  # clear red around
    drawing_[:, :, 1:3, 1:3] = torch.tensor([0.0, 0, 0, 1]).view(1, 4, 1, 1)  # black in the middle
    images, _ = compose(drawing_, torch.tensor([[[1.3, 0.2, 0], [-0.2, 1.3, 0]]]), torch.ones(1, 3, 16, 16))
    assert torch.allclose(images[:, 0], images[:, 1], atol=1e-6)


@given(
    low=st.floats(0.1, 1.2),
    span=st.floats(0, 0.5),
    degrees=st.floats(0, 90),
    spill=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
def test_placements_keep_to_their_geometry(low: float, span: float, degrees: float, spill: float, seed: int) -> None:
    geometry = ViewGeometry((low, low + span), degrees, spill)
    for (a, b, c), (d, e, f) in draw_placements(16, geometry, torch.Generator().manual_seed(seed)).tolist():
        determinant = a * e - b * d
        scale = 1 / math.sqrt(determinant)
        assert low - 1e-4 <= scale <= low + span + 1e-4
        assert abs(math.degrees(math.atan2(b, a))) <= degrees + 1e-2
        assert (a, b) == pytest.approx((e, -d), abs=1e-4)  # a turn, no shear
        # The drawing's centre is what the inverse map sends to the origin.
        x, y = (b * f - e * c) / determinant, (d * c - a * f) / determinant
        for place in (x, y):
            leaves = max(abs(place) + scale - 1, 0) if abs(place) > 1e-4 else 0
            assert leaves <= spill * scale + 1e-3


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_what_they_are_called(kind: str) -> None:
    result = draw_backgrounds(kind, 6, 32, torch.Generator().manual_seed(0))
    again = draw_backgrounds(kind, 6, 32, torch.Generator().manual_seed(0))
    assert result.shape == (6, 3, 32, 32)
    assert torch.equal(result, again)
    assert result.min() >= 0
    assert result.max() <= 1
    spread = result.flatten(2).std(2)
    assert (spread > 0.02).all() if kind == "busy" else (spread < 1e-6).all()
    assert (result == 1).all() if kind == "white" else not torch.equal(result[0], result[1])
    with pytest.raises(sp.InputError, match="Did you mean"):
        draw_backgrounds(kind + "s", 1, 8, torch.Generator())
