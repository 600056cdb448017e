"""Where windows with a strong edge stand, what is in them, and which image they show."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from support.windows import GREY, OTHER
from torch import Tensor

import shiftproof as sp
from shiftproof.diagnosis.strong_edge import (
    _of_other_classes,
    _share,
    _width,
)
from shiftproof.diagnosis.windows import CONTENTS, PLACES, Window, WindowSettings, paste_windows, place_windows


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def centred(count: int, middle: float, half: float) -> tuple[Tensor, Tensor]:
    return torch.full((count, 2), middle), torch.full((count, 2), half)


# Where windows stand


@given(
    size=st.integers(2, 12),
    side=st.floats(0.01, 0.99),
    count=st.integers(1, 3),
    place=st.sampled_from(PLACES),
    seed=st.integers(0, 1000),
)
def test_windows_stand_inside_and_cover_least_or_most_of_the_object(
    size: int, side: float, count: int, place: str, seed: int
) -> None:
    masks = (torch.rand(count, size, size, generator=generator(seed + 1)) > 0.6).float()
    window = Window("grey", 0.0, side, place)
    centres, halves = place_windows(count, size, window, generator(seed), masks)
    half = max(round(side * size / 2), 1)
    assert halves.tolist() == [[half, half]] * count
    corners = (centres - halves).int()
    assert (corners >= 0).all()
    assert (corners + 2 * half <= size).all()
    # The candidates, drawn anew, and what each of them covers, in plain sums.
    drawn = (torch.rand(count, 64, 2, generator=generator(seed)) * (size - 2 * half + 1)).int()
    for mask, candidates, (top, left) in zip(masks.tolist(), drawn.tolist(), corners.tolist(), strict=True):

        def covered(y: int, x: int, mask: list[list[float]] = mask) -> float:
            return sum(mask[v][u] for v in range(y, y + 2 * half) for u in range(x, x + 2 * half))

        assert [top, left] in candidates
        if place == "anywhere":
            assert [top, left] == candidates[0]
        else:
            extreme = min if place == "away" else max
            assert covered(top, left) == extreme(covered(*corner) for corner in candidates)


def test_a_window_can_stand_at_every_pixel_and_its_place_comes_from_the_generator() -> None:
    window = Window("grey", 0.0, 0.5, "anywhere")
    first, again, other = (place_windows(500, 8, window, generator(seed))[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert Counter(map(tuple, (first - 2).int().tolist())).keys() == {(y, x) for y in range(5) for x in range(5)}


@pytest.mark.parametrize("place", ["away", "over"])
def test_a_window_with_regard_to_the_object_needs_masks(place: str) -> None:
    with pytest.raises(sp.InputError, match=f"windows {place} the object need object masks.*'anywhere'"):
        place_windows(2, 8, Window("grey", 0.0, 0.5, place), generator())


# What is in them


def border_twin(window: Window, y: int, x: int, centre: float, half: float) -> float:
    """The weight at a pixel's centre: 1 up to the side, then linear down to 0."""
    weight = 1.0
    for at in (y, x):
        beyond = abs(at + 0.5 - centre) - half
        if beyond > 0:
            weight *= max(1 - beyond / (window.edge * half), 0) if window.edge else 0
    return weight


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("edge", [0.0, 0.3, 1.0])
def test_a_window_is_pasted_pixel_by_pixel(content: str, edge: float) -> None:
    window = Window(content, edge, 0.4, "anywhere")
    images = torch.rand(2, 3, 20, 20, generator=generator(1))
    others = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.8, 0.6]])[..., None, None].expand(2, 3, 20, 20)
    original = images.clone()
    pasted, weights = paste_windows(images, window, *centred(2, 9.0, 4.0), others, generator(7))
    assert torch.equal(images, original)
    noise = torch.rand(2, 3, 20, 20, generator=generator(7))
    filling = {"grey": torch.full_like(images, 0.5), "noise": noise, "image": others}[content]
    for y in range(20):
        for x in range(20):
            weight = border_twin(window, y, x, 9.0, 4.0)
            assert weights[:, y, x].tolist() == pytest.approx([weight, weight], abs=1e-6)
            expected = (1 - weight) * images[..., y, x] + weight * filling[..., y, x]
            torch.testing.assert_close(pasted[..., y, x], expected, rtol=0, atol=1e-6)
            if weight == 0:
                assert torch.equal(pasted[..., y, x], images[..., y, x])
    between = (weights > 0) & (weights < 1)
    assert bool(between.any()) == (edge > 0)
    assert 0 <= pasted.min() <= pasted.max() <= 1


def test_noise_is_uniform_and_comes_from_the_generator() -> None:
    window, black = Window("noise", 0.0, 0.9, "anywhere"), torch.zeros(4, 3, 32, 32)
    first, again, other = (
        paste_windows(black, window, *centred(4, 16.0, 16.0), black, generator(seed))[0] for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    counts = torch.histc(first, bins=8, min=0, max=1)
    assert counts.sum() == first.numel()
    assert chisquare(counts.tolist()).pvalue > 1e-4


def test_another_image_is_shown_whole_upright_and_in_its_colours() -> None:
    other = torch.zeros(1, 3, 32, 32)
    other[:, 0, :16], other[:, 1, :, :16], other[:, 2] = 1, 1, 0.3  # red above, green on the left, some blue
    other[:, :, 6:10, 20:26] = torch.rand(1, 3, 4, 6, generator=generator(3))
    white = torch.ones(1, 3, 32, 32)
    pasted, _ = paste_windows(white, OTHER, *centred(1, 14.0, 6.0), other, generator())
    inside = pasted[:, :, 8:20, 8:20]
    torch.testing.assert_close(inside.mean((0, 2, 3)), other.mean((0, 2, 3)), rtol=0, atol=0.02)
    assert inside[0, 0, 2, 2] == inside[0, 1, 2, 2] > 0.99  # red and green at the upper left
    assert inside[0, 0, -2, -2] == inside[0, 1, -2, -2] == 0
    assert torch.equal(pasted[:, :, 20:], white[:, :, 20:])


def test_another_image_is_cut_and_not_moved_where_its_soft_border_leaves_the_image() -> None:
    window, other = Window("image", 0.5, 0.4, "anywhere"), torch.rand(1, 3, 20, 20, generator=generator(2))
    black = torch.zeros(1, 3, 20, 20)
    whole, _ = paste_windows(black, window, *centred(1, 10.0, 4.0), other, generator())
    cut, weights = paste_windows(black, window, *centred(1, 4.0, 4.0), other, generator())
    assert weights[0, 0, 0] > 0
    torch.testing.assert_close(cut[..., :14, :14], whole[..., 6:, 6:])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"content": "gray"}, "unknown window content 'gray'. Did you mean 'grey'"),
        ({"place": "outside"}, "unknown window place 'outside'"),
        ({"edge": -0.1}, "edge is -0.1"),
        ({"edge": math.nan}, "edge is nan"),
        ({"side": 0.0}, "side is 0.0; it must lie between 0 and 1"),
        ({"side": 1.0}, "side is 1.0"),
    ],
)
def test_a_window_that_cannot_be_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        Window(**{"content": "grey", "edge": 0.0, "side": 0.2, "place": "away", **settings})


def test_settings_give_every_combination_once_under_a_name_of_its_own() -> None:
    settings = WindowSettings(contents=("grey", "noise"), edges=(0.0, 0.25, 0.5), sides=(0.2, 0.35))
    windows = settings.windows(with_masks=True)
    assert {(w.content, w.edge, w.side, w.place) for w in windows} == {
        (c, e, s, p) for c in ("grey", "noise") for e in (0.0, 0.25, 0.5) for s in (0.2, 0.35) for p in ("away", "over")
    }
    assert len({w.name for w in windows}) == len(windows) == 24
    assert {w.place for w in settings.windows(with_masks=False)} == {"anywhere"}
    assert GREY.name == "grey-hard-0.375-away"


# Measures of a map


def maps_of(shape: tuple[int, int, int] = (2, 5, 4)) -> st.SearchStrategy[Tensor]:
    values = st.lists(st.floats(0, 100, width=32), min_size=math.prod(shape), max_size=math.prod(shape))
    return values.map(lambda result: torch.tensor(result).reshape(shape))


@given(maps=maps_of(), weights=maps_of().map(lambda result: result / 100))
def test_shares_and_widths_equal_their_slow_twins(maps: Tensor, weights: Tensor) -> None:
    shares, widths = _share(maps, weights), _width(maps)
    for number, (grid, under) in enumerate(zip(maps.tolist(), weights.tolist(), strict=True)):
        cells = [(m, w) for row, of_row in zip(grid, under, strict=True) for m, w in zip(row, of_row, strict=True)]
        total = math.fsum(m for m, _ in cells)
        if total == 0:
            assert math.isnan(shares[number])
            assert math.isnan(widths[number])
            continue
        assert shares[number].item() == pytest.approx(math.fsum(m * w for m, w in cells) / total)
        if (squares := math.fsum(m * m for m, _ in cells)) > 0:
            assert widths[number].item() == pytest.approx(total**2 / (len(cells) * squares))
            assert 1 / len(cells) - 1e-9 <= widths[number] <= 1 + 1e-9
        assert -1e-9 <= shares[number] <= 1 + 1e-9


@given(where=st.lists(st.booleans(), min_size=20, max_size=20).filter(any), height=st.floats(0.01, 100))
def test_a_map_that_is_even_on_a_share_of_the_area_is_so_wide(where: list[bool], height: float) -> None:
    even = torch.tensor(where).reshape(1, 5, 4)
    assert _width(height * even).item() == pytest.approx(sum(where) / 20)
    # And an even map has as much in a window as the window has of the area.
    assert _share(torch.full((1, 5, 4), height), even).item() == pytest.approx(sum(where) / 20)


# Partners


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=25).filter(lambda x: len(set(x)) > 1), seed=st.integers()
)
def test_no_window_shows_an_image_of_the_own_class(labels: list[int], seed: int) -> None:
    result = _of_other_classes(np.array(labels), seed)
    assert all(labels[partner] != label for partner, label in zip(result, labels, strict=True))
    assert np.array_equal(result, _of_other_classes(np.array(labels), seed))


def test_all_images_of_other_classes_are_equally_likely() -> None:
    labels = np.array([2, 0, 0, 1, 2, 2])
    drawn = np.stack([_of_other_classes(labels, seed) for seed in range(1500)])
    for i, label in enumerate(labels):
        counts = np.bincount(drawn[:, i], minlength=6)
        assert not counts[labels == label].any()
        assert chisquare(counts[labels != label]).pvalue > 1e-4


@given(
    labels=st.lists(st.integers(0, 4), min_size=2, max_size=25).filter(lambda x: len(set(x)) > 1), seed=st.integers()
)
def test_partners_do_not_depend_on_how_classes_are_numbered(labels: list[int], seed: int) -> None:
    renumbered = np.array([7, 3, 900, 0, 5])[labels]
    assert np.array_equal(_of_other_classes(np.array(labels), seed), _of_other_classes(renumbered, seed))


def test_images_of_one_class_are_refused() -> None:
    with pytest.raises(sp.InputError, match="the images are all of one class.*needs a second class"):
        _of_other_classes(np.array([3, 3, 3]), 0)
