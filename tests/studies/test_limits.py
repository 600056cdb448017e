"""Held-out sets that are limited to some images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import shiftproof as sp


def held_out(suite: sp.ShiftSuite) -> dict[str, sp.ImageSet]:
    return {"validation": suite.reference.validation, **suite.test_sets}


def test_a_limited_suite_has_fewer_images_in_every_held_out_set() -> None:
    suite = sp.load_suite("emoji")
    few = suite.limited(7)
    assert few.reference.train is suite.reference.train
    assert (few.name, few.classes) == (suite.name, suite.classes)
    assert [(shift.name, shift.kind) for shift in few.shifts] == [(shift.name, shift.kind) for shift in suite.shifts]
    for name, images in held_out(few).items():
        whole = held_out(suite)[name]
        places = [whole.ids.index(sample) for sample in images.ids]
        assert len(images) == 7 and places == sorted(set(places))
        assert images.labels.tolist() == whole.labels[places].tolist()
    # Drawn at random: the sets do not begin alike, and more are wanted of more.
    assert len({images.ids[0].rsplit("-", 2)[0] for images in held_out(few).values()}) > 1
    assert len(held_out(suite.limited(500))["sketch"]) == 500
    assert suite.limited(None) is suite


def test_a_limit_takes_the_same_images_whatever_the_seed(folders: Path) -> None:
    def ids(suite: sp.ShiftSuite) -> dict[str, tuple[str, ...]]:
        return {name: images.ids for name, images in held_out(suite.limited(5)).items()}

    assert (
        ids(sp.load_suite("emoji", seed=0))
        == ids(sp.load_suite("emoji", seed=0))
        == ids(sp.load_suite("emoji", seed=9))
    )
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    sketches = {"sketch": {"data": f"folder:{folders}/sketch"}}
    assert ids(sp.own_suite(splits, sketches)) == ids(sp.own_suite(splits, sketches, seed=4))


def test_a_limit_leaves_pixels_and_small_sets_as_they_are(folders: Path) -> None:
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = sp.own_suite(splits, {})
    test, few = suite.reference.test, suite.limited(4).reference.test
    for i, sample in enumerate(few.ids):
        assert np.array_equal(few.read(i), test.read(test.ids.index(sample)))
    assert suite.limited(9).reference.test is test
