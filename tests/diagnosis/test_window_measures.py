"""What class activation maps do in a window, measured on rigged networks whose maps are known."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from support.predictions import softmax
from support.windows import CLASSES, FEW, GREY, LABELS, NOISE, SIZE, gazing, squares

import shiftproof as sp
from shiftproof.data.batches import decoded_once, evaluation_batches, read_resized_mask
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    MEASURES,
    measure_windows,
    strong_edge_study,
    window_examples,
)
from shiftproof.diagnosis.windows import CONTENTS, Window, WindowSettings
from shiftproof.records.accuracy import MeanRecord

# Rigged networks: their maps are known


def test_a_network_that_looks_at_the_window_has_its_whole_map_there() -> None:
    settings = WindowSettings(contents=("grey",), edges=(0.0,), sides=(0.25, 0.375))
    measured = measure_windows(gazing("window"), squares(LABELS), settings)
    for window in measured.windows:
        values = measured.values[window.name]
        side = 2 * round(window.side * SIZE / 2)
        assert values["window_share"].tolist() == pytest.approx([1] * 8)
        assert values["object_share"].tolist() == pytest.approx([0] * 8)  # what the window covers is none
        assert values["area"].tolist() == values["width"].tolist() == pytest.approx([side**2 / SIZE**2] * 8)
        scores = softmax([10 * side**2 / SIZE**2, 0, 0])
        expected = [scores[label] for label in LABELS]
        assert values["score"].tolist() == pytest.approx(expected)
        assert values["score_drop"].tolist() == pytest.approx([1 / 3 - score for score in expected])
        assert values["correct"].tolist() == [label == 0 for label in LABELS]
    assert measured.map_kind == "cam"
    assert measured.classes.tolist() == LABELS


def test_a_map_of_zeros_is_left_out_of_the_means() -> None:
    settings = WindowSettings(contents=("grey", "noise"), edges=(0.0,), sides=(0.375,), places=("away",))
    measured = measure_windows(gazing("window"), squares(LABELS), settings)
    assert np.isnan(measured.values[CLEAN]["width"]).all()
    assert np.isnan(measured.values[NOISE.name]["window_share"]).all()  # no pixel of noise is grey
    windows = strong_edge_study({"window": measured}, set_name="squares").models["window"]
    assert windows[NOISE.name].means["window_share"] == MeanRecord(None, None, 0)
    assert windows[GREY.name].means["window_share"] == MeanRecord(1.0, (1.0, 1.0), 8)
    assert windows[GREY.name].means["share_before"] == MeanRecord(None, None, 0)
    assert windows[NOISE.name].means["score_drop"].n == 8


def test_a_network_that_looks_at_the_object_has_nothing_in_the_window() -> None:
    sides = [(2, 5, 6)[i % 3] for i in range(8)]
    measured = measure_windows(
        gazing("object"), squares(LABELS, sides), WindowSettings(contents=("grey",), edges=(0.0, 0.5), sides=(0.25,))
    )
    clean = measured.values[CLEAN]
    assert clean["object_share"].tolist() == pytest.approx([1] * 8)
    assert clean["width"].tolist() == pytest.approx([side**2 / SIZE**2 for side in sides])
    assert clean["correct"].tolist() == [1] * 8
    full = [softmax([10 * side**2 / SIZE**2, 0, 0])[0] for side in sides]
    assert clean["score"].tolist() == pytest.approx(full)
    away, over = (measured.values[f"grey-hard-0.25-{place}"] for place in ("away", "over"))
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
    assert measured.values["grey-soft0.5-0.25-over"]["area"].min() > over["area"].max() == 16 / SIZE**2


def test_an_even_map_has_the_areas_share_of_everything() -> None:
    images, settings = squares(LABELS), WindowSettings(contents=("grey",), edges=(0.0, 0.5), sides=(0.25,))
    result, looked = (measure_windows(gazing(at), images, settings) for at in ("everywhere", "object"))
    objects = np.array([[16, 25, 36][i % 3] / SIZE**2 for i in range(8)])
    assert result.values[CLEAN]["object_share"] == pytest.approx(objects)
    assert set(result.values[CLEAN]) == {"object_share", "width", "score", "correct"}
    for window in result.windows:
        values = result.values[window.name]
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
    measured = measure_windows(gazing("object"), squares(LABELS, (9, 10)), WindowSettings(edges=(0.0,), sides=(0.5,)))
    for place in ("away", "over"):
        before = [measured.values[f"{content}-hard-0.5-{place}"]["share_before"].tolist() for content in CONTENTS]
        assert before[0] == before[1] == before[2]


def test_without_masks_windows_stand_anywhere_and_objects_are_not_measured() -> None:
    measured = measure_windows(gazing("everywhere"), replace(squares(LABELS), mask=None), FEW)
    assert [window.name for window in measured.windows] == ["noise-hard-0.35-anywhere", "noise-soft0.5-0.35-anywhere"]
    assert all("object_share" not in values for values in measured.values.values())


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


# Examples


def test_examples_are_drawn_by_the_seed_and_shown_as_measured() -> None:
    images = squares(LABELS, (5, 6))
    models = {"sees": gazing("object"), "guesses": gazing("everywhere")}
    window = Window("grey", 0.0, 0.375, "away")
    result = window_examples(models, images, window, 3, seed=1)
    assert len(result) == 3
    whole = window_examples(models, images, window, 99, seed=1)  # more than there are: all, in the same order
    assert len(whole) == 8
    assert Counter(example.label for example in whole) == {"red": 3, "green": 3, "blue": 2}
    for example, again in zip(result, whole, strict=False):
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
    assert any(not np.array_equal(a.windowed, b.windowed) for a, b in zip(result, other, strict=True))


def test_an_answer_is_right_by_class_also_where_a_model_numbers_classes_its_own_way() -> None:
    turned = sp.ClassSpace.from_ids(["blue", "red", "green"])
    models = {"same": gazing("object"), "turned": gazing("object", turned)}
    for example in window_examples(models, squares(LABELS, (5, 6)), GREY, 8):
        assert example.answers["turned"] == example.answers["same"]
        assert example.answers["turned"][2]
