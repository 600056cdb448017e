"""The strong-edge study: windows, measures against rigged networks, planted studies, and the commands a user calls."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import chisquare
from support.commands import Call, CommandResult
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.cli.console import print_table
from shiftproof.data.batches import decoded_once, evaluation_batches, read_resized_mask
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set, joined
from shiftproof.diagnosis.baselines import train_from_scratch, untrained
from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    MEASURES,
    WindowMeasurements,
    _of_other_classes,
    _share,
    _width,
    measure_windows,
    strong_edge_study,
    window_examples,
)
from shiftproof.diagnosis.windows import CONTENTS, PLACES, Window, WindowSettings, paste_windows, place_windows
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.models.classifier import Network
from shiftproof.models.encoders import own_class_space
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.backgrounds import BackgroundStudy
from shiftproof.records.codec import document, from_json
from shiftproof.records.windows import StrongEdgeStudy, WindowSummary
from shiftproof.report import save_figure
from shiftproof.report.windows import (
    background_table,
    clean_table,
    contrast_table,
    edge_name,
    strong_edge_verdict,
    window_figure,
    window_kinds,
    window_table,
)
from shiftproof.runs import interventions as diagnosing
from shiftproof.runs.file import DEMO_FILE, MIXED_SETTINGS
from shiftproof.runs.interventions import DiagnosisFile, run_strong_edge
from shiftproof.storage import locked

Pixels = NDArray[np.uint8]
SIZE = 16
CLASSES = sp.ClassSpace.from_ids(["red", "green", "blue"])
GREY, NOISE, OTHER = (Window(content, 0.0, 0.375, "away") for content in CONTENTS)
FEW = WindowSettings(contents=("noise",), edges=(0.0, 0.5), sides=(0.35,), places=("away",))


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
    kept = images.clone()
    pasted, weights = paste_windows(images, window, *centred(2, 9.0, 4.0), others, generator(7))
    assert torch.equal(images, kept)
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
    ("settings", "said"),
    [
        ({"content": "gray"}, "unknown window content 'gray'. Did you mean 'grey'"),
        ({"place": "outside"}, "unknown window place 'outside'"),
        ({"edge": -0.1}, "edge is -0.1"),
        ({"edge": math.nan}, "edge is nan"),
        ({"side": 0.0}, "side is 0.0; it must lie between 0 and 1"),
        ({"side": 1.0}, "side is 1.0"),
    ],
)
def test_a_window_that_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
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
    return values.map(lambda found: torch.tensor(found).reshape(shape))


@given(maps=maps_of(), weights=maps_of().map(lambda found: found / 100))
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
    found = _of_other_classes(np.array(labels), seed)
    assert all(labels[partner] != label for partner, label in zip(found, labels, strict=True))
    assert np.array_equal(found, _of_other_classes(np.array(labels), seed))


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
    with pytest.raises(sp.InputError, match="the images are of one class.*needs a second one"):
        _of_other_classes(np.array([3, 3, 3]), 0)


# Rigged networks: their maps are known


class Gazer(nn.Module):
    """A network as timm builds them whose last map, one channel a class, is what it says of every pixel.

    "window": grey of exactly 0.5, evidence for the first class. "object": the pixel's strong colour, evidence for its
    class. "everywhere": the same for all classes.
    """

    def __init__(self, at: str) -> None:
        super().__init__()
        self.at = at

    def forward_features(self, images: Tensor) -> Tensor:
        if self.at == "everywhere":
            return torch.ones_like(images)
        if self.at == "object":
            return ((images > 0.7) & (images.sum(1, keepdim=True) < 1.1)).float()
        grey = (images == 0.5).all(1).float()
        return torch.stack([grey, torch.zeros_like(grey), torch.zeros_like(grey)], dim=1)

    def forward_head(self, places: Tensor) -> Tensor:
        return places.mean((2, 3))

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


def gazing(at: str, classes: sp.ClassSpace = CLASSES) -> sp.Classifier:
    """Every class's logit is ten times the mean of its channel; red is the first channel, whatever its label."""
    head = nn.Linear(3, len(classes))
    with torch.no_grad():
        head.weight.copy_(torch.stack([10.0 * torch.eye(3)[CLASSES.ids.index(name)] for name in classes.ids]))
        head.bias.zero_()
    return sp.Classifier(
        network=Network(Gazer(at), head, normalised=False).eval(),
        classes=classes,
        preprocessing=Preprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="squash"),
        architecture={"name": at},
        source="rigged",
        prompts=(),
        head="trained",
        logit_scale=1.0,
    )


def squares(labels: Sequence[int], sides: Sequence[int] = (4, 5, 6)) -> sp.ImageSet:
    """A square of the label's colour in the middle of black."""

    def cover(i: int) -> Pixels:
        found = np.zeros((SIZE, SIZE), dtype=np.uint8)
        side = sides[i % len(sides)]
        found[6 : 6 + side, 6 : 6 + side] = 255
        return found

    def read(i: int) -> Pixels:
        found = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
        found[..., labels[i]] = np.where(cover(i) > 0, 250, 0)
        return found

    ids = tuple(f"square-{i}" for i in range(len(labels)))
    return sp.ImageSet("squares", CLASSES, ids, np.array(labels), read, mask=cover)


LABELS = [0, 1, 2, 2, 1, 0, 0, 1]


def softmax(logits: Sequence[float]) -> list[float]:
    powers = [math.exp(x) for x in logits]
    return [p / math.fsum(powers) for p in powers]


def test_a_network_that_looks_at_the_window_has_its_whole_map_there() -> None:
    settings = WindowSettings(contents=("grey",), edges=(0.0,), sides=(0.25, 0.375))
    found = measure_windows(gazing("window"), squares(LABELS), settings)
    for window in found.windows:
        values = found.values[window.name]
        side = 2 * round(window.side * SIZE / 2)
        assert values["window_share"].tolist() == pytest.approx([1] * 8)
        assert values["object_share"].tolist() == pytest.approx([0] * 8)  # what the window covers is none
        assert values["area"].tolist() == values["width"].tolist() == pytest.approx([side**2 / SIZE**2] * 8)
        scores = softmax([10 * side**2 / SIZE**2, 0, 0])
        expected = [scores[label] for label in LABELS]
        assert values["score"].tolist() == pytest.approx(expected)
        assert values["score_drop"].tolist() == pytest.approx([1 / 3 - score for score in expected])
        assert values["correct"].tolist() == [label == 0 for label in LABELS]
    assert found.map_kind == "cam"
    assert found.classes.tolist() == LABELS


def test_a_map_of_zeros_is_left_out_of_the_means() -> None:
    settings = WindowSettings(contents=("grey", "noise"), edges=(0.0,), sides=(0.375,), places=("away",))
    found = measure_windows(gazing("window"), squares(LABELS), settings)
    assert np.isnan(found.values[CLEAN]["width"]).all()
    assert np.isnan(found.values[NOISE.name]["window_share"]).all()  # no pixel of noise is grey
    windows = strong_edge_study({"window": found}, set_name="squares").models["window"]
    assert windows[NOISE.name].means["window_share"] == MeanRecord(None, None, 0)
    assert windows[GREY.name].means["window_share"] == MeanRecord(1.0, (1.0, 1.0), 8)
    assert windows[GREY.name].means["share_before"] == MeanRecord(None, None, 0)
    assert windows[NOISE.name].means["score_drop"].n == 8


def test_a_network_that_looks_at_the_object_has_nothing_in_the_window() -> None:
    sides = [(2, 5, 6)[i % 3] for i in range(8)]
    found = measure_windows(
        gazing("object"), squares(LABELS, sides), WindowSettings(contents=("grey",), edges=(0.0, 0.5), sides=(0.25,))
    )
    clean = found.values[CLEAN]
    assert clean["object_share"].tolist() == pytest.approx([1] * 8)
    assert clean["width"].tolist() == pytest.approx([side**2 / SIZE**2 for side in sides])
    assert clean["correct"].tolist() == [1] * 8
    full = [softmax([10 * side**2 / SIZE**2, 0, 0])[0] for side in sides]
    assert clean["score"].tolist() == pytest.approx(full)
    away, over = (found.values[f"grey-hard-0.25-{place}"] for place in ("away", "over"))
    assert away["window_share"].tolist() == away["share_before"].tolist() == [0] * 8
    assert away["object_share"].tolist() == pytest.approx([1] * 8)
    assert away["score_drop"].tolist() == pytest.approx([0] * 8, abs=1e-7)
    assert away["accuracy_drop"].tolist() == [0] * 8
    # Over the object a window hides some of it, all of the smallest; the rest is looked at.
    hidden = [round(share * side**2) for share, side in zip(over["share_before"], sides, strict=True)]
    assert over["share_before"].tolist() == pytest.approx([n / s**2 for n, s in zip(hidden, sides, strict=True)])
    assert all(0 < n <= 16 for n in hidden)
    gone = [n == side**2 for n, side in zip(hidden, sides, strict=True)]
    assert any(gone) and not all(gone)
    assert np.isnan(over["window_share"]).tolist() == gone
    assert np.isnan(over["object_share"]).tolist() == gone
    assert over["correct"].tolist() == [not none or label == 0 for none, label in zip(gone, LABELS, strict=True)]
    left = [softmax([10 * (side**2 - n) / SIZE**2, 0, 0])[0] for n, side in zip(hidden, sides, strict=True)]
    assert over["score"].tolist() == pytest.approx(left)
    assert over["score_drop"].tolist() == pytest.approx([a - b for a, b in zip(full, left, strict=True)], abs=1e-7)
    assert over["accuracy_drop"].tolist() == [none and label != 0 for none, label in zip(gone, LABELS, strict=True)]
    for i in np.flatnonzero(np.logical_not(gone)):
        assert over["window_share"][i] == 0
        assert over["share_drawn"][i] == -over["share_before"][i]
    assert found.values["grey-soft0.5-0.25-over"]["area"].min() > over["area"].max() == 16 / SIZE**2


def test_an_even_map_has_the_areas_share_of_everything() -> None:
    images, settings = squares(LABELS), WindowSettings(contents=("grey",), edges=(0.0, 0.5), sides=(0.25,))
    found, looked = (measure_windows(gazing(at), images, settings) for at in ("everywhere", "object"))
    objects = np.array([[16, 25, 36][i % 3] / SIZE**2 for i in range(8)])
    assert found.values[CLEAN]["object_share"] == pytest.approx(objects)
    assert set(found.values[CLEAN]) == {"object_share", "width", "score", "correct"}
    for window in found.windows:
        values = found.values[window.name]
        assert list(values) == list(MEASURES)
        assert values["width"] == pytest.approx(np.ones(8))
        assert values["window_share"] == pytest.approx(values["area"])
        assert values["share_drawn"] == pytest.approx(np.zeros(8), abs=1e-9)
        # A map that is even on the object tells how much of the object the window hides.
        hidden = looked.values[window.name]["share_before"]
        assert values["object_share"] == pytest.approx(objects * (1 - hidden))


def test_windows_are_the_same_for_every_model_and_class_space() -> None:
    """The object's colour counts in an image window, too, so a moved window or partner would show."""
    images, settings = squares(LABELS * 2, (9, 10)), WindowSettings(sides=(0.375,))
    other = gazing("object", sp.ClassSpace.from_ids(["blue", "red", "green"]))
    first = measure_windows(gazing("object"), images, settings, seed=3)
    second = measure_windows(other, images.relabelled(other.classes), settings, seed=3)
    for window, values in first.values.items():
        for name, expected in values.items():
            assert second.values[window][name] == pytest.approx(expected, abs=1e-6, nan_ok=True), (window, name)
    moved = measure_windows(gazing("object"), images, settings, seed=4)
    assert not np.array_equal(
        moved.values["image-hard-0.375-over"]["score"], first.values["image-hard-0.375-over"]["score"]
    )


def test_all_contents_and_edges_of_a_side_and_place_stand_at_the_same_spot() -> None:
    found = measure_windows(gazing("object"), squares(LABELS, (9, 10)), WindowSettings(edges=(0.0,), sides=(0.5,)))
    for place in ("away", "over"):
        before = [found.values[f"{content}-hard-0.5-{place}"]["share_before"].tolist() for content in CONTENTS]
        assert before[0] == before[1] == before[2]


def test_without_masks_windows_stand_anywhere_and_objects_are_not_measured() -> None:
    found = measure_windows(gazing("everywhere"), replace(squares(LABELS), mask=None), FEW)
    assert [window.name for window in found.windows] == ["noise-hard-0.35-anywhere", "noise-soft0.5-0.35-anywhere"]
    assert all("object_share" not in values for values in found.values.values())


def test_pixels_and_masks_go_once_through_a_transform_that_keeps_the_centre() -> None:
    """A white square in the middle keeps its place: a second crop would enlarge it."""
    whole = np.zeros((40, 40, 3), dtype=np.uint8)
    whole[15:25, 15:25] = 255
    wanted = Preprocessing(size=20, mean=(0, 0, 0), std=(1, 1, 1), crop_share=0.5)
    images = array_set(
        "white", CLASSES, ["0"], np.array([0]), lambda: whole[None], masks=lambda: whole[None, ..., 0].copy()
    )
    ready = decoded_once(images, wanted)
    assert np.array_equal(ready.read(0), whole[10:30, 10:30])
    assert ready.mask is not None
    assert np.array_equal(ready.mask(0), whole[10:30, 10:30, 0])
    for some in (images, ready, decoded_once(ready, wanted), ready.subset([0])):
        assert torch.equal(next(evaluation_batches(some, wanted, 1))[0, 0] * 255, torch.tensor(whole[10:30, 10:30, 0]))
        assert np.array_equal(read_resized_mask(some, 0, wanted), whole[10:30, 10:30, 0])
    smaller = replace(wanted, size=10)
    assert decoded_once(ready, smaller).read(0).shape == (10, 10, 3)


# Planted measurements


WINDOWS = (*(Window(c, 0.0, 0.2, "away") for c in ("grey", "noise")), Window("grey", 0.5, 0.2, "away"))


def planted(shift: float = 0.0, classes: Sequence[int] = (0, 0, 1, 1, 2, 2, 3, 3), seed: int = 0) -> WindowMeasurements:
    """Random values that differ more between classes than within."""
    random = np.random.default_rng(seed)
    base = np.linspace(0.1, 0.4, 4)[list(classes)]

    def values(names: Sequence[str], number: int) -> dict[str, NDArray[np.float64]]:
        return {name: base + shift * (number + 1) + 0.02 * random.random(len(classes)) for name in names}

    found = {CLEAN: values(("object_share", "width", "score", "correct"), 0)}
    found |= {window.name: values(MEASURES, number) for number, window in enumerate(WINDOWS)}
    return WindowMeasurements("cam", np.array(classes), WINDOWS, found)


def test_means_are_over_defined_values_and_intervals_over_classes() -> None:
    found = planted()
    name = WINDOWS[0].name
    found.values[name]["window_share"][[1, 4]] = np.nan
    record = strong_edge_study({"a": found}, set_name="x").models["a"][name].means
    kept = [0, 2, 3, 5, 6, 7]
    values = found.values[name]["window_share"][kept]
    assert record["window_share"].value == pytest.approx(math.fsum(values) / 6)
    assert record["window_share"].n == 6
    assert record["window_share"].interval == bootstrap_interval(values, found.classes[kept])
    assert record["window_share"].interval != bootstrap_interval(values)
    for measure, mean in record.items():
        assert mean.interval is not None and mean.value is not None
        assert mean.interval[0] <= mean.value <= mean.interval[1], measure
    # With classes that go across, the values vary less between them.
    mixed = replace(found, classes=np.array([0, 1, 2, 3, 3, 2, 1, 0]))
    across = strong_edge_study({"a": mixed}, set_name="x").models["a"][name].means["score"].interval
    along = record["score"].interval
    assert across is not None and along is not None
    assert across[1] - across[0] < along[1] - along[0]


def test_one_class_with_a_value_gives_no_mean() -> None:
    found = planted()
    found.values[CLEAN]["width"][2:] = np.nan
    assert strong_edge_study({"a": found}, set_name="x").models["a"][CLEAN].means["width"] == MeanRecord(None, None, 2)


def test_summaries_average_the_windows_of_a_place_and_edge_first() -> None:
    found = planted()
    found.values[WINDOWS[1].name]["width"][0] = np.nan
    study = strong_edge_study({"a": found}, set_name="x")
    assert [(s.model, s.second, s.place, s.edge) for s in study.summaries] == [
        ("a", None, "away", 0.0),
        ("a", None, "away", 0.5),
    ]
    hard, soft = (study.summary("a", "away", edge) for edge in (0, 0.5))
    first, second, third = (found.values[window.name] for window in WINDOWS)
    for name in MEASURES:
        average = (first[name] + second[name]) / 2
        kept = average[1:] if name == "width" else average
        classes = found.classes[1:] if name == "width" else found.classes
        assert hard.means[name].value == pytest.approx(kept.mean())
        assert hard.means[name].interval == pytest.approx(bootstrap_interval(kept, classes))
        assert hard.means[name].n == len(kept)
        assert soft.means[name].value == pytest.approx(third[name].mean())


def test_a_contrast_is_paired() -> None:
    first, second = planted(0.1, seed=1), planted(seed=2)
    found = strong_edge_study({"a": first, "b": second}, [("a", "b")], set_name="x")
    assert [(c.model, c.second, c.edge) for c in found.contrasts] == [("a", "b", 0.0), ("a", "b", 0.5)]
    hard = found.contrasts[0].means
    for name in MEASURES:
        values = [found.summary(model, "away", 0).means[name].value for model in ("a", "b")]
        assert values[0] is not None and values[1] is not None
        assert hard[name].value == pytest.approx(values[0] - values[1])
        assert hard[name].value == pytest.approx(0.15, abs=0.02)
        # Classes differ by far more than models; pairs take that out.
        assert hard[name].interval is not None
        assert hard[name].interval[1] - hard[name].interval[0] < 0.05
    # A sample counts where both have a value.
    first.values[WINDOWS[0].name]["width"][3] = np.nan
    second.values[WINDOWS[1].name]["width"][[3, 6]] = np.nan
    found = strong_edge_study({"a": first, "b": second}, [("a", "b")], set_name="x")
    assert found.contrasts[0].means["width"].n == 6
    assert (found.summary("a", "away", 0).means["width"].n, found.summary("b", "away", 0).means["width"].n) == (7, 6)


def test_a_study_comes_back_from_json() -> None:
    first = planted()
    first.values[CLEAN]["width"][:] = np.nan  # None in the file
    study = strong_edge_study({"a": first, "b": planted(0.1)}, [("b", "a")], set_name="x", seed=4)
    text = json.dumps(document(study), allow_nan=False)
    assert from_json(StrongEdgeStudy, json.loads(text)) == study
    assert (study.seed, study.level, study.kinds) == (4, 0.95, {"a": "cam", "b": "cam"})
    assert {w.name: (w.content, w.edge, w.side, w.place) for w in WINDOWS} | {CLEAN: (None,) * 4} == {
        name: (w.content, w.edge, w.side, w.place) for name, w in study.models["b"].items()
    }


# Tables, words and the figure


def told(mean: MeanRecord | None, signed: bool) -> str:
    """A mean in per cent or points, as a person would write it."""
    if mean is None or mean.value is None or mean.interval is None:
        return "–"
    numbers = [mean.value, *mean.interval]
    texts = [f"{100 * x:.1f}" if not signed else f"{100 * x:+.1f}".replace("-", "−") for x in numbers]
    texts = ["0.0" if signed and float(t.replace("−", "-")) == 0 else t for t in texts]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if signed else f"{texts[0]} ({texts[1]}–{texts[2]})"


TITLED = {
    "window_share": "map in window",
    "share_drawn": "drawn there",
    "object_share": "map on object",
    "width": "width of map",
    "score_drop": "score drop",
    "accuracy_drop": "accuracy drop",
}
SIGNED = ("share_drawn", "score_drop", "accuracy_drop")


@pytest.fixture(scope="module")
def study() -> StrongEdgeStudy:
    """Three models, one without a width, one whose scores rise under windows; treat it as immutable."""
    hard, soft, plain = planted(0.1, seed=1), planted(seed=2), planted(seed=3)
    for name, values in plain.values.items():
        values["width"][:] = np.nan
        if name != CLEAN:
            values["score_drop"] *= -1
            values["accuracy_drop"] *= 1e-4 * np.array([1, -1] * 4)  # rounds to nothing, whichever sign
    measured = {"hard": hard, "soft": soft, "plain": replace(plain, map_kind="grad-cam")}
    return strong_edge_study(measured, [("hard", "soft"), ("hard", "plain")], set_name="fruit")


def test_the_tables_say_what_the_records_say(study: StrongEdgeStudy) -> None:
    clean = clean_table(study)
    assert clean.title == "Without a window, on fruit, in per cent"
    assert clean.header == ("model", "maps", "accuracy", "score of the true class", "map on object", "width")
    for row, (model, windows) in zip(clean.rows, study.models.items(), strict=True):
        means = windows[CLEAN].means
        expected = [told(means[name], False) for name in ("correct", "score", "object_share", "width")]
        assert row == (model, study.kinds[model], *expected)
    assert clean.rows[2][5] == "–"

    assert window_kinds(study) == (("away", 0.0), ("away", 0.5))
    for place, edge in window_kinds(study):
        table, pairs = window_table(study, place, edge), contrast_table(study, place, edge)
        assert table.header == ("model", "area", *TITLED.values())
        assert table.title.startswith(f"{edge_name(edge).capitalize()} windows away from the object, on fruit")
        for row, model in zip(table.rows, study.models, strict=True):
            means = study.summary(model, place, edge).means
            assert row == (model, told(means["area"], False), *(told(means[n], n in SIGNED) for n in TITLED))
        assert pairs is not None
        for row, second in zip(pairs.rows, ("soft", "plain"), strict=True):
            means = next(c for c in study.contrasts if (c.second, c.edge) == (second, edge)).means
            assert row == (f"hard − {second}", *(told(means[name], True) for name in TITLED))
    assert all("95 % bootstrap intervals" in table.note for table in (clean, table, pairs))
    assert not any("-" in cell for cell in window_table(study, "away", 0).rows[2])  # neither a hyphen nor minus nothing


def test_tables_leave_out_what_was_not_asked_for_or_not_measured() -> None:
    bare = planted()
    for values in bare.values.values():
        values.pop("object_share")
    study = strong_edge_study({"a": bare}, set_name="x")
    assert contrast_table(study, "away", 0.0) is None
    assert "map on object" not in clean_table(study).header + window_table(study, "away", 0.0).header
    assert strong_edge_verdict(study) == ""


def judged(window: MeanRecord, drawn: MeanRecord, place: str = "away", edge: float = 0.0) -> StrongEdgeStudy:
    def ends(model: str, share: float) -> WindowSummary:
        return WindowSummary(model, None, place, edge, {"window_share": MeanRecord(share, (share, share), 9)})

    contrast = WindowSummary("cut", "smooth", place, edge, {"window_share": window, "share_drawn": drawn})
    return StrongEdgeStudy("x", 0, 0.95, {}, {}, (ends("cut", 0.372), ends("smooth", 0.251)), (contrast,))


def test_the_verdict_says_more_less_or_neither_by_the_interval() -> None:
    more, less = MeanRecord(0.121, (0.08, 0.15), 9), MeanRecord(-0.03, (-0.05, -0.01), 9)
    assert strong_edge_verdict(judged(more, less)) == (
        "cut puts 37.2 % of its map into a hard window away from the object, smooth 25.1 %: it attends the window "
        "more, +12.1 points (+8.0 to +15.0). Beyond what lay there before, it is drawn less, −3.0 points "
        "(−5.0 to −1.0)."
    )
    chance, touching = MeanRecord(0.02, (-0.01, 0.05), 9), MeanRecord(-0.02, (-0.04, 0.0), 9)
    assert strong_edge_verdict(judged(chance, touching, "anywhere")) == (
        "cut puts 37.2 % of its map into a hard window anywhere, smooth 25.1 %: it attends the window neither more nor "
        "less beyond chance, +2.0 points (−1.0 to +5.0). Beyond what lay there before, it is drawn neither more nor "
        "less beyond chance, −2.0 points (−4.0 to 0.0)."
    )
    assert "could not be measured" in strong_edge_verdict(judged(MeanRecord(None, None, 0), more))
    assert strong_edge_verdict(judged(more, more, "over")) == ""
    assert strong_edge_verdict(judged(more, more, edge=0.5)) == ""


def test_the_verdict_of_a_measured_study_is_that_of_its_networks() -> None:
    settings = WindowSettings(contents=("grey",), edges=(0.0,), sides=(0.375,), places=("away",))
    measured = {at: measure_windows(gazing(at), squares(LABELS), settings) for at in ("everywhere", "object")}
    pairs = [("everywhere", "object"), ("object", "everywhere"), ("object", "object")]
    first, second, third = strong_edge_verdict(strong_edge_study(measured, pairs, set_name="x")).splitlines()
    area = 100 * 36 / SIZE**2
    assert f"everywhere puts {area:.1f} % of its map into a hard window away from the object, object 0.0 %" in first
    assert f"it attends the window more, +{area:.1f} points" in first
    assert f"it attends the window less, −{area:.1f} points" in second
    assert third.count("neither more nor less beyond chance, 0.0 points (0.0 to 0.0)") == 2


def test_a_table_too_wide_for_its_place_is_folded_and_loses_nothing(
    study: StrongEdgeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"hard": "scratch-smoothmix-square", "soft": "scratch-smoothmix-circle", "plain": "scratch-none"}
    named = replace(study, summaries=tuple(replace(s, model=names[s.model]) for s in study.summaries))
    table = window_table(named, "away", 0.0)
    print_table(table)
    lines = [line.strip("│┃").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) > 3
    for column in range(len(table.header)):
        shown = "".join("".join(line[column].split()) for line in lines)
        assert shown == "".join("".join(row[column].split()) for row in table.rows)


# Examples


def test_examples_are_drawn_by_the_seed_and_shown_as_measured() -> None:
    images = squares(LABELS, (5, 6))
    models = {"sees": gazing("object"), "guesses": gazing("everywhere")}
    window = Window("grey", 0.0, 0.375, "away")
    found = window_examples(models, images, window, 3, seed=1)
    assert len(found) == 3
    whole = window_examples(models, images, window, 99, seed=1)  # more than there are: all, in the same order
    assert len(whole) == 8
    assert Counter(example.label for example in whole) == {"red": 3, "green": 3, "blue": 2}
    for example, again in zip(found, whole, strict=False):
        for entry in fields(example):
            value, other = getattr(example, entry.name), getattr(again, entry.name)
            if isinstance(value, dict):
                assert all(np.array_equal(value[model], other[model]) for model in models)
            else:
                assert np.array_equal(value, other)
        assert example.image.shape == example.windowed.shape == (SIZE, SIZE, 3)
        assert example.image.dtype == example.windowed.dtype == np.uint8
        assert any(np.array_equal(example.image, images.read(i)) for i in range(8))
        changed = (example.image != example.windowed).any(-1)
        assert changed.sum() == 36
        assert (example.windowed[changed] == 128).all()
        assert example.window == window.name
        for grid in example.maps.values():
            assert grid.shape == (SIZE, SIZE)
            assert (grid.min(), grid.max()) >= (0, 1)
        assert np.array_equal(example.maps["sees"] > 0, example.image.max(-1) == 250)
        named, probability, right = example.answers["sees"]
        assert (named, right) == (example.label, True)
        assert 1 / 3 < probability < 1
        assert example.answers["guesses"] == ("red", pytest.approx(1 / 3), example.label == "red")
    other = window_examples(models, images, window, 3, seed=2)
    assert any(not np.array_equal(a.windowed, b.windowed) for a, b in zip(found, other, strict=True))


def test_an_answer_is_right_by_class_also_where_a_model_numbers_classes_its_own_way() -> None:
    turned = sp.ClassSpace.from_ids(["blue", "red", "green"])
    models = {"same": gazing("object"), "turned": gazing("object", turned)}
    for example in window_examples(models, squares(LABELS, (5, 6)), GREY, 8):
        assert example.answers["turned"] == example.answers["same"]
        assert example.answers["turned"][2]


def test_the_figure_has_a_row_an_example_and_a_column_a_map(tmp_path: Path) -> None:
    models = {"sees": gazing("object"), "guesses-all-day": gazing("everywhere")}
    images = squares(LABELS, (5, 6))
    for count in (1, 2):
        examples = window_examples(models, images, GREY, count)
        figure = window_figure(examples, tuple(models))
        assert len(figure.axes) == count * 4
        assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "with a window", "sees", "guesses all day"]
        captions = [axes.get_xlabel() for axes in figure.axes]
        for row, example in enumerate(examples):
            named, probability, _ = example.answers["sees"]
            assert captions[4 * row : 4 * row + 3] == [example.label, GREY.name, f"{named}\n{100 * probability:.0f} %"]
            assert [len(axes.images) for axes in figure.axes[4 * row : 4 * row + 4]] == [1, 1, 2, 2]
    save_figure(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as drawn:
        width, height = figure.get_size_inches()
        assert drawn.size == (int(144 * width), int(144 * height))
        pixels = np.asarray(drawn.convert("RGB"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7].tolist()}
    assert len(colours) > 100
    assert (128, 128, 128) in colours  # the window


# Networks that saw the reference only


def fruit_suite(folders: Path) -> sp.ShiftSuite:
    return sp.own_suite({split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}, {})


def test_an_untrained_network_has_the_starts_shape_and_weights_of_its_own(tiny: sp.models.Clip) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    before = sp.models.fingerprint(start)
    first, again, other = (untrained(start, seed=seed) for seed in (0, 0, 1))
    assert sp.models.fingerprint(start) == before
    assert sp.models.fingerprint(first) == sp.models.fingerprint(again) != sp.models.fingerprint(other)
    for kept in ("architecture", "classes", "preprocessing"):
        assert getattr(first, kept) == getattr(start, kept)
    assert (first.head, first.parents, first.alpha, dict(first.training)) == ("trained", (), None, {})
    lengths = first.network.head.weight.norm(dim=1).tolist()
    assert lengths == pytest.approx([first.logit_scale] * 3, rel=1e-5)
    random = {name: tensor for name, tensor in first.state_dict().items() if tensor.ndim > 1}
    assert random.keys() == {name for name, tensor in start.state_dict().items() if tensor.ndim > 1}
    for name, tensor in random.items():
        assert not torch.equal(tensor, start.state_dict()[name]), name
        assert not torch.equal(tensor, other.state_dict()[name]), name


def test_an_untrained_timm_network_depends_on_the_seed(timm_resnet: sp.Classifier) -> None:
    first, again, other = (untrained(timm_resnet, seed=seed).network.encoder.state_dict() for seed in (1, 1, 2))
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name]), name
        assert tensor.ndim != 4 or not torch.equal(tensor, other[name]), name


def test_training_from_scratch_learns_the_reference(folders: Path, tiny: sp.models.Clip) -> None:
    suite = fruit_suite(folders)
    start = sp.zero_shot_classifier(tiny, suite.classes)
    settings = sp.FinetuneSettings(epochs=25, lr=4e-3, batch_size=18, warmup_steps=3, weight_decay=0.05)
    found = train_from_scratch(start, suite, settings)
    right = sum(
        sp.evaluation.accuracy(sp.predict(found, images).logits, images.labels) * len(images)
        for images in (suite.reference.train, suite.reference.test)
    )
    assert right >= 19  # of 27; blind guessing has that many once in 10,000 times
    assert found.parents[0]["source"] == "untrained tiny"


def test_training_from_scratch_never_reads_the_starts_weights(folders: Path, tiny: sp.models.Clip) -> None:
    suite = fruit_suite(folders)
    start = sp.zero_shot_classifier(tiny, suite.classes)
    nothing = start.with_weights({name: torch.full_like(x, math.nan) for name, x in start.state_dict().items()})
    settings = sp.FinetuneSettings(epochs=1, lr=1e-3, batch_size=9)
    first, second = (train_from_scratch(begun, suite, settings, seed=2) for begun in (start, nothing))
    assert (
        sp.models.fingerprint(first) == sp.models.fingerprint(second) != sp.models.fingerprint(untrained(start, seed=2))
    )


# Sets put together and taken apart


def toy_set(labels: Sequence[int], classes: sp.ClassSpace = CLASSES, first: int = 0, masks: bool = True) -> sp.ImageSet:
    """Images of one byte each, ``first`` and onwards; a mask is its image's complement."""
    values = np.arange(first, first + len(labels), dtype=np.uint8)
    pixels = np.broadcast_to(values[:, None, None, None], (len(labels), 2, 2, 3))
    covers = 255 - pixels[..., 0]
    ids = [str(i) for i in range(len(labels))]
    return array_set("toy", classes, ids, np.array(labels), lambda: pixels, masks=(lambda: covers) if masks else None)


@given(parts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4))
def test_joined_sets_keep_order_labels_pixels_and_masks(parts: list[list[int]]) -> None:
    sets = [toy_set(labels, first=50 * number) for number, labels in enumerate(parts)]
    found = joined(sets, "all")
    assert (found.name, found.classes, found.in_memory) == ("all", CLASSES, True)
    assert found.labels.tolist() == [label for labels in parts for label in labels]
    assert len(set(found.ids)) == len(found)
    assert found.mask is not None
    values = [50 * number + i for number, labels in enumerate(parts) for i in range(len(labels))]
    assert [int(found.read(i)[0, 0, 0]) for i in range(len(found))] == values
    assert [int(found.mask(i)[0, 0]) for i in range(len(found))] == [255 - value for value in values]


def test_joined_sets_must_share_classes_and_lose_masks_that_some_lack() -> None:
    assert joined([toy_set([0]), toy_set([1], masks=False)], "all").mask is None
    turned = sp.ClassSpace.from_ids(["green", "red", "blue"])
    with pytest.raises(sp.InputError, match="the parts of all are labelled in different class spaces"):
        joined([toy_set([0]), toy_set([0], turned)], "all")


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=12).filter(lambda x: {0, 2} & set(x)))
def test_the_images_of_some_classes_keep_ids_pixels_and_class(labels: list[int]) -> None:
    some = sp.ClassSpace.from_ids(["blue", "red"])
    found = toy_set(labels).of_classes(some)
    kept = [i for i, label in enumerate(labels) if label != 1]
    assert found.classes == some
    assert found.ids == tuple(map(str, kept))
    assert [some.ids[k] for k in found.labels] == [CLASSES.ids[labels[i]] for i in kept]
    assert found.mask is not None
    assert [int(found.read(i)[0, 0, 0]) for i in range(len(found))] == kept
    assert [int(found.mask(i)[0, 0]) for i in range(len(found))] == [255 - i for i in kept]


def test_no_image_of_the_wanted_classes_is_an_error() -> None:
    with pytest.raises(sp.InputError, match="toy holds no image"):
        toy_set([1, 1]).of_classes(sp.ClassSpace.from_ids(["blue", "red"]))


# Which images


@given(labels=st.lists(st.integers(0, 4), min_size=3, max_size=30), asked=st.integers(2, 30), seed=st.integers(0, 1000))
def test_images_are_spread_over_the_classes(labels: list[int], asked: int, seed: int) -> None:
    space = sp.ClassSpace.from_ids(["a", "b", "c", "d", "e"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosing, "load_data", lambda _: toy_set(labels, space))
        found = diagnosing._images(DiagnosisFile(data="x", images=asked, seed=seed))
        again = diagnosing._images(DiagnosisFile(data="x", images=asked, seed=seed))
    assert found.ids == again.ids == tuple(sorted(set(found.ids), key=int))
    assert len(found) == min(asked, len(labels))
    assert [labels[int(i)] for i in found.ids] == found.labels.tolist()
    every, taken = Counter(labels), Counter(found.labels.tolist())
    most = max(taken.values())
    # No class is passed over for another's further image, unless it has no more.
    assert all(taken[label] >= min(most - 1, every[label]) for label in every)


def test_another_seed_takes_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "load_data", lambda _: toy_set([0] * 20 + [1] * 20))
    taken = {diagnosing._images(DiagnosisFile(data="x", images=10, seed=seed)).ids for seed in range(5)}
    assert len(taken) == 5
    with pytest.raises(sp.InputError, match="the number of images is 1"):
        DiagnosisFile(images=1)
    with pytest.raises(sp.InputError, match="unknown head 'owned'. Did you mean 'own'"):
        DiagnosisFile(head="owned")


# The study of networks of its own


FRUIT = sp.ClassSpace.from_ids(["lemon", "kiwi", "pear", "grape"])


def picture_set(split: str, views: int, seed: int) -> sp.ImageSet:
    """A plain square of the class's colour at a random place on white, with its mask."""
    colours = np.array([[240, 210, 40], [110, 90, 50], [120, 190, 60], [110, 50, 130]])
    labels = np.repeat(np.arange(4), views)
    random = np.random.default_rng([seed, *split.encode()])
    corners = random.integers(4, 28, (len(labels), 2))

    def drawn() -> tuple[Pixels, Pixels]:
        pixels = np.full((len(labels), 64, 64, 3), 255, dtype=np.uint8)
        covers = np.zeros((len(labels), 64, 64), dtype=np.uint8)
        for i, (y, x) in enumerate(corners):
            pixels[i, y : y + 30, x : x + 30] = colours[labels[i]]
            covers[i, y : y + 30, x : x + 30] = 255
        return pixels, covers

    ids = [f"{FRUIT.ids[label]}-{split}-{i % views}" for i, label in enumerate(labels)]
    return array_set(split, FRUIT, ids, labels, lambda: drawn()[0], masks=lambda: drawn()[1])


def picture_suite(name: str = "emoji", seed: int = 0) -> sp.ShiftSuite:
    """As in the embedded suites, the seed moves the training views only."""
    parts = (picture_set("train", 2, seed), picture_set("validation", 1, 99), picture_set("test", 3, 99))
    return sp.ShiftSuite(name, FRUIT, sp.data.Reference("colour", *parts), ())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of every second of four classes in two draws of views, one step a training; what is trained is listed."""
    trained: list[str] = []
    quick = sp.FinetuneSettings(epochs=1, lr=1e-3, batch_size=8)
    monkeypatch.setattr(diagnosing, "load_suite", picture_suite)
    for name, value in {"STUDY_CLASSES": 2, "STUDY_DRAWS": 2, "SCRATCH_SETTINGS": quick, "_EXAMPLES": 1}.items():
        monkeypatch.setattr(diagnosing, name, value)
    monkeypatch.setattr(diagnosing, "TUNED_SETTINGS", replace(quick, lr=2e-3))
    for begun, function in (("scratch", "train_from_scratch"), ("tuned", "finetune")):
        train = getattr(diagnosing, function)

        def recorded(start: sp.Classifier, *rest: Any, train: Any = train, begun: str = begun, **more: Any) -> Any:
            trained.append(f"{begun}-{rest[1].mixing}")
            return train(start, *rest, **more)

        monkeypatch.setattr(diagnosing, function, recorded)
    return trained


MIXED = ("none", "cutmix", "smoothmix-square", "smoothmix-circle")
NETWORKS = [f"{start}-{mixing}" for start in ("scratch", "tuned") for mixing in MIXED]


def stamps(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_studys_reference_is_a_part_of_the_classes_in_several_draws(small: list[str]) -> None:
    suite = diagnosing._study_suite("emoji", 3)
    assert suite.classes.ids == ("lemon", "pear")
    drawn = [picture_suite("emoji", seed).reference.train for seed in (6, 7)]
    train = suite.reference.train
    assert (len(train), len(suite.reference.validation), len(suite.reference.test)) == (8, 2, 6)
    assert len(set(train.ids)) == 8
    expected = [part.read(i) for part in drawn for i in (0, 1, 4, 5)]
    assert all(np.array_equal(train.read(i), pixels) for i, pixels in enumerate(expected))
    assert not np.array_equal(train.read(0), train.read(4))
    assert train.labels.tolist() == [0, 0, 1, 1] * 2


@contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = stamps(folder)
    yield
    assert stamps(folder) == before


class Stopped(Exception):  # noqa: N818
    """Someone has stopped the study."""


def stopped(*_: Any, **__: Any) -> Any:
    raise Stopped


def study_in(folder: str | Path) -> StrongEdgeStudy:
    return from_json(StrongEdgeStudy, json.loads(Path(folder, "strong_edge.json").read_text(encoding="utf-8")))


def test_a_study_of_own_networks_writes_what_it_found(small: list[str], tmp_path: Path) -> None:
    study = run_strong_edge(DiagnosisFile(images=4, seed=1, device="cpu"), tmp_path, settings=FEW)
    assert small == list(study.models) == NETWORKS
    assert {path.name for path in tmp_path.iterdir()} == {
        *("strong_edge.json", "measurements.npz", "figures", "networks", ".lock")
    }
    assert study_in(tmp_path) == study
    assert set(study.kinds.values()) == {"cam"}
    assert list(dict.fromkeys((c.model, c.second) for c in study.contrasts)) == [
        (f"{start}-cutmix", f"{start}-{other}")
        for start in ("scratch", "tuned")
        for other in ("smoothmix-square", "smoothmix-circle", "none")
    ]
    for name in NETWORKS:
        training = sp.load_classifier(tmp_path / "networks" / name).training
        assert training["settings"]["mixing"] == name.partition("-")[2]
        assert training["settings"]["mixing_probability"] == (None if name.endswith("none") else 0.5)
        assert (training["seed"], training["settings"]["lr"]) == (1, 1e-3 if name.startswith("scratch") else 2e-3)
    for start in ("scratch", "tuned"):
        with Image.open(tmp_path / "figures" / f"strong-edge-{start}.png") as figure:
            assert figure.size[0] > 3 * figure.size[1]  # one example, six columns
            assert len(np.unique(np.asarray(figure.convert("L")))) > 50

    # Every number can be had again from the measures of every image, which no pickle is needed to read.
    with np.load(tmp_path / "measurements.npz", allow_pickle=False) as kept:
        assert set(kept["ids"].tolist()) <= set(diagnosing._study_suite("emoji", 1).reference.test.ids)
        assert kept["classes"].tolist() == [sample.partition("-")[0] for sample in kept["ids"].tolist()]
        assert Counter(kept["classes"].tolist()) == {"lemon": 2, "pear": 2}
        windows = [window.name for window in FEW.windows(with_masks=True)]
        names = {f"{model}|{window}|{name}" for model in NETWORKS for window in windows for name in MEASURES}
        names |= {f"{m}|clean|{name}" for m in NETWORKS for name in ("object_share", "width", "score", "correct")}
        assert set(kept.files) == {"ids", "classes", *names}
        for model, records in study.models.items():
            for window, record in records.items():
                for name, mean in record.means.items():
                    values = kept[f"{model}|{window}|{name}"]
                    assert (len(values), mean.n) == (4, np.isfinite(values).sum())
                    assert mean.value is None or mean.value == pytest.approx(np.nanmean(values), abs=1e-6)


def test_a_study_goes_on_where_it_was_stopped(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = DiagnosisFile(images=4, seed=1, device="cpu")
    monkeypatch.setattr(diagnosing, "window_figure", stopped)
    with pytest.raises(Stopped):
        run_strong_edge(asked, tmp_path, settings=FEW)
    assert (tmp_path / "measurements.npz").is_file()  # so late was that
    monkeypatch.setattr(diagnosing, "measure_windows", stopped)  # only trainings matter from here on

    def again(asked: DiagnosisFile, **how: Any) -> list[str]:
        small.clear()
        with pytest.raises(Stopped):
            run_strong_edge(asked, tmp_path, settings=FEW, **how)
        return list(small)

    networks = tmp_path / "networks"
    before = stamps(networks)
    assert again(asked) == []
    assert stamps(networks) == before
    # What is missing is trained; what is there of another seed is not taken for this one's.
    (networks / "tuned-cutmix" / "classifier.json").unlink()
    assert again(asked) == ["tuned-cutmix"]
    assert stamps(networks) == before
    with pytest.raises(sp.InputError, match="scratch-none holds a network that was trained with another seed"):
        run_strong_edge(replace(asked, seed=2), tmp_path, settings=FEW)
    assert stamps(networks) == before
    assert again(replace(asked, seed=2), overwrite=True) == NETWORKS
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "networks"}


@pytest.mark.parametrize("written", ["strong_edge.json", "backgrounds.json"])
def test_a_finished_diagnosis_is_kept_and_so_is_what_no_diagnosis_wrote(
    small: list[str], tmp_path: Path, written: str
) -> None:
    asked = DiagnosisFile(images=4)
    (tmp_path / written).write_text("{}")
    with nothing_changes(tmp_path):
        with pytest.raises(sp.InputError, match="already holds a diagnosis.*`overwrite=True`"):
            run_strong_edge(asked, tmp_path)
        with locked(tmp_path), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
            run_strong_edge(asked, tmp_path, overwrite=True)
    (tmp_path / "notes.txt").write_text("mine")
    with nothing_changes(tmp_path):
        for overwrite in (True, False):
            with pytest.raises(sp.InputError, match="already holds 'notes.txt', which no diagnosis wrote"):
                run_strong_edge(asked, tmp_path, overwrite=overwrite)
    assert small == []


# Named models and classifier directories, as a user calls them


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A command in this process, in an empty directory, with one window and one example."""
    monkeypatch.setattr(diagnosing, "WindowSettings", lambda: replace(FEW, edges=(0.0,)))
    monkeypatch.setattr(diagnosing, "_EXAMPLES", 1)
    return call


@pytest.fixture(scope="module")
def timm_resnet() -> sp.Classifier:
    """A small timm model with random weights and its own head; treat it as immutable."""
    return sp.own_head_classifier(sp.load_encoder("timm:test_resnet"))


@pytest.fixture(scope="module")
def wnids(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fruit's test images in folders named as ImageNet names its classes, and masks beside; read only."""
    root = tmp_path_factory.mktemp("wnids")
    for fruit, class_id in zip(("lemon", "pear", "red_apple"), own_class_space(1000).ids[950:700:-100], strict=True):
        for path in sorted((folders / "test" / fruit).iterdir()):
            for part in ("images", "masks"):
                (root / part / class_id).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                pixels = np.asarray(image)
            Image.fromarray(pixels).save(root / "images" / class_id / path.name)
            cover = np.where(pixels.min(-1) < 200, 255, 0).astype(np.uint8)
            Image.fromarray(cover).save(root / "masks" / class_id / path.name)
    return root


def test_the_study_of_own_networks_is_told_in_tables_and_a_verdict(
    small: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftproof.cli.console._WIDTH_IN_FILES", 300)
    ended = call("diagnose", "strong-edge", "--images", "4", "--device", "cpu", "--out", "study")
    assert ended.code == 0, ended.err
    study = study_in("study")
    assert strong_edge_verdict(study) in ended.out
    assert len(strong_edge_verdict(study).splitlines()) == 6
    for table in (clean_table(study), window_table(study, "away", 0.0)):
        assert table.title in ended.out
        for row in table.rows:
            assert all(re.search(rf"{re.escape(row[0])} .*{re.escape(cell)}", ended.out) for cell in row[1:])
    assert f"numbers: {Path('study', 'strong_edge.json')}; figures: {Path('study', 'figures')}" in ended.out
    assert "fine-tune" in ended.err


def test_own_images_directories_and_a_named_model(folders: Path, tiny: sp.models.Clip, call: Call) -> None:
    data, turned = f"folder:{folders}/test", sp.ClassSpace.from_ids(["pear", "red_apple", "lemon"])
    zero = sp.zero_shot_classifier(tiny, turned)
    for folder in ("a/zero", "b/zero"):
        sp.save_classifier(zero, folder)
    ended = call(
        "diagnose",
        "strong-edge",
        "a/zero",
        "b/zero",
        "--model",
        "tiny",
        "--data",
        data,
        "--seed",
        "3",
        "--out",
        "found",
    )
    assert ended.code == 0, ended.err
    study = study_in("found")
    assert (study.set, study.seed, list(study.models)) == (data, 3, ["zero", "b-zero", "tiny"])
    assert {(c.model, c.second, c.place) for c in study.contrasts} == {
        ("b-zero", "zero", "anywhere"),
        ("tiny", "zero", "anywhere"),
    }
    # They are one model, whatever order its classes have.
    for name, record in study.models["zero"].items():
        for measure, mean in record.means.items():
            for other in ("b-zero", "tiny"):
                found = study.models[other][name].means[measure]
                assert found.n == mean.n
                assert found.value == pytest.approx(mean.value, abs=1e-5)
    with np.load("found/measurements.npz", allow_pickle=False) as kept:
        assert kept["ids"].tolist() == list(sp.data.load_set(data).ids)
        score = kept["zero|clean|score"]
    images = sp.data.load_set(data, turned)
    expected = torch.tensor(sp.predict(zero, images).logits).softmax(1)[torch.arange(9), torch.tensor(images.labels)]
    assert score == pytest.approx(expected.numpy(), abs=1e-5)
    with Image.open("found/figures/strong-edge.png") as figure:
        assert figure.size[0] > 2 * figure.size[1]  # one example, five columns


def test_directories_are_told_apart_by_name_or_refused(
    tiny: sp.models.Clip, folders: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", f"folder:{folders}/test"]
    for folder in ("x/b/zero", "y/b/zero", "tiny", "zero"):
        sp.save_classifier(
            sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), folder
        )
    for models in (
        ("--model", "tiny", "--model", "tiny"),
        ("tiny", "--model", "tiny"),
        ("zero", "x/b/zero", "y/b/zero"),
    ):
        assert call("diagnose", "strong-edge", *models, *data, "--out", "found") == CommandResult(
            2, "", "shiftproof: two of the models have one name. Name every model once, or rename a directory.\n"
        )
    assert not Path("found").exists()
    asked = DiagnosisFile(classifiers=(Path("zero"), Path("x/b/zero")), data=data[1])
    assert list(diagnosing._models(asked, diagnosing._images(asked))) == ["zero", "b-zero"]
    monkeypatch.chdir("zero")
    assert list(diagnosing._models(replace(asked, classifiers=(Path(),)), diagnosing._images(asked))) == ["zero"]


def test_timm_models_with_their_own_heads_on_ones_own_images_with_masks(wnids: Path, call: Call) -> None:
    models = ["--model", "timm:test_resnet", "--model", "timm:test_vit", "--head", "own"]
    data = ["--data", f"folder:{wnids}/images", "--masks", f"{wnids}/masks"]
    ended = call("diagnose", "strong-edge", *models, *data, "--images", "6", "--out", "found")
    assert ended.code == 0, ended.err
    study = study_in("found")
    assert study.kinds == {"timm:test_resnet": "cam", "timm:test_vit": "grad-cam"}
    assert {(s.place, s.edge) for s in study.summaries} == {("away", 0.0)}
    assert "object_share" in study.models["timm:test_vit"]["clean"].means
    assert all(entry in ended.out for entry in ("timm:test_resnet", "grad-cam", "map on object", "timm:test_vit puts"))
    # What is measured is what the model says of these pictures by itself.
    own = sp.own_head_classifier(sp.load_encoder("timm:test_resnet"))
    with np.load("found/measurements.npz", allow_pickle=False) as kept:
        ids, score = kept["ids"].tolist(), kept["timm:test_resnet|clean|score"]
        assert Counter(kept["classes"].tolist()) == {path.name: 2 for path in (wnids / "images").iterdir()}
    images = sp.data.load_set(f"folder:{wnids}/images", own.classes, partial=True)
    images = images.subset([images.ids.index(name) for name in ids])
    expected = torch.tensor(sp.predict(own, images).logits).softmax(1)[torch.arange(6), torch.tensor(images.labels)]
    assert score == pytest.approx(expected.numpy(), rel=1e-3)


def test_what_cannot_be_diagnosed_is_told_and_costs_no_older_diagnosis(
    wnids: Path, folders: Path, tiny: sp.models.Clip, call: Call
) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "plum"])), "fruit")
    data, named = ["--data", f"folder:{folders}/test"], ["--data", f"folder:{wnids}/images"]
    old = Path("old")
    old.mkdir()
    (old / "strong_edge.json").write_text("{}")
    mistakes: list[tuple[list[str], str]] = [
        (
            ["--model", "timm:test_resnet", "--head", "own", *data],
            r"classes that .* lacks: 'lemon', 'pear', 'red_apple'",
        ),
        (["fruit", *data], r"lacks: 'pear', 'red_apple'"),
        (["--model", "timm:test_resnet", *named], "has no text tower"),
        (["--model", "timm:test_rasnet", "--head", "own", *named], "Did you mean 'test_resnet"),
        (["--model", "tiny", "--head", "own", *named], "unknown encoder 'tiny'"),
        (["--model", "tiny", "--head", "owned", *named], "unknown head 'owned'"),
        (["fruit/none", *named], "is no classifier directory"),
        (["--model", "tiny", "--data", "folder:nowhere"], "the folder nowhere does not exist"),
        (
            ["--model", "tiny", *named, "--masks", "nowhere"],
            "the folder nowhere does not exist. It must hold the masks",
        ),
        (["--model", "tiny", *data, "--masks", f"{wnids}/masks"], "These samples lack theirs: 'lemon/lemon-0.png'"),
        (["--model", "tiny", *data, "--device", "abacus"], "abacus"),
        (["--suite", "emojis", "--model", "tiny"], "Did you mean 'emoji'"),
    ]
    with nothing_changes(old):
        for arguments, said in mistakes:
            ended = call("diagnose", "strong-edge", *arguments, "--out", "old", "--overwrite")
            assert (ended.code, ended.out) == (2, ""), arguments
            assert re.search(said, ended.err), (arguments, ended.err)
            assert ended.err.count("\n") == 1
        ended = call("diagnose", "strong-edge", "--model", "tiny", *data, "--out", "old")
        assert (ended.code, "already holds a diagnosis" in ended.err) == (2, True)
    assert call("diagnose", "strong-edge", *data, "--out", "new") == CommandResult(
        2,
        "",
        "shiftproof: --data and --shift need a model to look at it. Name classifiers, or models with --model.\n",
    )
    assert not Path("new").exists()


# Backgrounds


def background_in(folder: str | Path) -> BackgroundStudy:
    return from_json(BackgroundStudy, json.loads(Path(folder, "backgrounds.json").read_text(encoding="utf-8")))


def test_backgrounds_of_ones_own_images(wnids: Path, tiny: sp.models.Clip, call: Call) -> None:
    data = ["--data", f"folder:{wnids}/images", "--masks", f"{wnids}/masks"]
    ids = [path.name for path in sorted((wnids / "images").iterdir())]
    sp.save_classifier(
        sp.zero_shot_classifier(tiny, sp.ClassSpace(tuple(ids[::-1]), ("apple", "pear", "lemon"))), "zero"
    )
    ended = call("diagnose", "backgrounds", "zero", *data, "--out", "found")  # its classes have another order
    assert ended.code == 0, ended.err
    study = background_in("found")
    table = background_table(study)
    assert table.title in ended.out
    cells = re.findall(r"[+−]?\d+\.\d", " ".join(table.rows[0][1:]))
    assert all(cell in ended.out for cell in cells)
    assert len(cells) == 18
    zero, images = sp.load_classifier("zero"), sp.data.load_set(f"folder:{wnids}/images")
    found = sp.predict(zero, images.relabelled(zero.classes))
    accuracy = float((found.logits.argmax(1) == found.labels).mean())
    assert study.models["zero"].variants["original"].accuracy == pytest.approx(accuracy)
    assert study.chance == pytest.approx(1 / 3)
    assert "numbers: " in ended.out

    ended = call("diagnose", "backgrounds", "zero", *data, "--out", "found")
    assert (ended.code, "already holds a diagnosis" in ended.err) == (2, True)
    own = ["--model", "timm:test_resnet", "--head", "own"]  # a thousand classes, three of which are there
    assert call("diagnose", "backgrounds", *own, *data, "--out", "found", "--overwrite").code == 0
    again = background_in("found")
    assert (list(again.models), again.chance) == (["timm:test_resnet"], 1 / 1000)
    assert again.models["timm:test_resnet"].variants["mixed-random"].n == 9


def test_backgrounds_on_emoji(tiny: sp.models.Clip, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    suite = sp.load_suite("emoji")
    some = sp.ClassSpace(suite.classes.ids[:4], suite.classes.names[:4])
    test = suite.reference.test.of_classes(some)
    part = sp.ShiftSuite("emoji", some, sp.data.Reference("colour", test, test, test), ())
    monkeypatch.setattr(diagnosing, "load_suite", lambda name, seed: part)
    sp.save_classifier(sp.zero_shot_classifier(tiny, suite.classes), "whole")  # knows all 267
    ended = call("diagnose", "backgrounds", "whole", "--images", "12", "--seed", "2", "--out", "found")
    assert ended.code == 0, ended.err
    study = background_in("found")
    assert (study.set, study.seed) == ("the reference of emoji", 2)
    record = study.models["whole"]
    assert {variant.n for variant in record.variants.values()} == {12}
    assert record.variants["original"].accuracy > 0.7
    assert record.gap == 0  # all stand on white


def test_backgrounds_need_a_model_and_masks(folders: Path, call: Call) -> None:
    ended = call("diagnose", "backgrounds", "--out", "found")
    assert ended == CommandResult(
        2, "", "shiftproof: no model to diagnose. Name classifiers, or models with --model.\n"
    )
    ended = call("diagnose", "backgrounds", "--model", "tiny", "--data", f"folder:{folders}/test", "--out", "found")
    assert (ended.code, ended.out) == (2, "")
    assert "has no object masks" in ended.err


# demo --mixing


@pytest.fixture
def demanded(monkeypatch: pytest.MonkeyPatch) -> list[sp.RunFile]:
    """What the demo would run."""
    asked: list[sp.RunFile] = []

    def recorded(run: sp.RunFile, *_: Any, **__: Any) -> None:
        asked.append(run)
        raise typer.Exit

    monkeypatch.setattr("shiftproof.runs.pipeline.run_pipeline", recorded)
    return asked


@pytest.mark.parametrize("mixing", ["smoothmix-circle", "smoothmix-square", "cutmix", "cutout", "mixup"])
def test_the_demo_mixes_in_the_regime_that_was_found_for_the_model(
    mixing: str, call: Call, demanded: list[sp.RunFile]
) -> None:
    assert call("demo", "--mixing", mixing).code == 0
    (run,) = demanded
    assert run.finetune.mixing == mixing
    for name, value in MIXED_SETTINGS["tiny"].items():
        assert getattr(run.finetune, name) == value
    assert run.finetune.mixer is not None
    assert run.finetune.mixer.probability == MIXED_SETTINGS["tiny"]["mixing_probability"]
    plain = sp.RunFile.read(DEMO_FILE)
    assert replace(run.finetune, mixing="none", mixing_probability=None, label_smoothing=0.0) == plain.finetune


def test_what_is_set_goes_before_the_regime(call: Call, demanded: list[sp.RunFile]) -> None:
    settings = ["--set", "finetune.mixing_probability=0.75", "--set", "finetune.label_smoothing=0"]
    assert call("demo", "--mixing", "cutmix", *settings).code == 0
    assert call("demo", "--mixing", "none").code == 0
    assert call("demo").code == 0
    found = [(run.finetune.mixing, run.finetune.mixing_probability, run.finetune.label_smoothing) for run in demanded]
    assert found == [("cutmix", 0.75, 0), ("none", None, 0), ("none", None, 0)]


def test_an_unknown_mixing_is_a_mistake(call: Call, demanded: list[sp.RunFile]) -> None:
    ended = call("demo", "--mixing", "smoothmix-circel")
    assert (ended.code, ended.out) == (2, "")
    assert "unknown finetune.mixing 'smoothmix-circel'. Did you mean 'smoothmix-circle'?" in ended.err
    assert demanded == []


def test_the_regime_is_the_tiny_models_and_leaves_a_probability_that_is_given() -> None:
    def resolved(mixing: Any, model: str = "tiny") -> sp.FinetuneSettings:
        return sp.RunFile.resolve({"model": model, "finetune": {"mixing": mixing}}).finetune

    own = resolved({"method": "cutmix", "probability": 0.9})
    assert own.mixer is not None
    assert own.mixer.probability == 0.9
    assert own.label_smoothing == MIXED_SETTINGS["tiny"]["label_smoothing"]
    weighed = resolved({"smoothmix-circle": 2, "cutmix": 1}).mixer
    assert weighed is not None
    assert weighed.probability == MIXED_SETTINGS["tiny"]["mixing_probability"]
    other = resolved("cutmix", "open_clip:ViT-B-32/openai")
    assert (other.mixing_probability, other.label_smoothing) == (None, 0)
