"""Suites that are made of your own folders."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from support.image_sets import pixels_of, same_pixels

import shiftproof as sp


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Training folders of 10, 5, 3 and 1 images, every image of a grey of its own."""
    grey = 0
    for name, count in {"lemon": 10, "pear": 5, "plum": 3, "fig": 1}.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.new("RGB", (8, 8), (grey, grey, grey)).save(tmp_path / name / f"{number}.png")
            grey += 1
    return tmp_path


def test_without_validation_data_a_fifth_of_every_class_is_held_out(uneven: Path) -> None:
    data = {"train": f"folder:{uneven}", "test": f"folder:{uneven}"}
    first, again, other = (sp.own_suite(data, {}, seed=seed).reference for seed in (0, 0, 1))
    whole = sp.data.load_set(f"folder:{uneven}")
    counts = Counter(whole.classes.ids[label] for label in first.validation.labels)
    assert counts == {"lemon": 2, "pear": 1, "plum": 1}
    assert not set(first.train.ids) & set(first.validation.ids)
    assert sorted(first.train.ids + first.validation.ids) == sorted(whole.ids)
    assert first.validation.ids == again.validation.ids
    assert first.validation.ids != other.validation.ids
    greys = {int(image[0, 0, 0]) for image in pixels_of(first.train)}
    held = {int(image[0, 0, 0]) for image in pixels_of(first.validation)}
    assert greys | held == set(range(19))
    assert not greys & held


def test_too_few_images_to_hold_out_are_an_error(tmp_path: Path) -> None:
    for name in ("lemon", "pear"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(sp.InputError, match="too few training images"):
        sp.own_suite({"train": f"folder:{tmp_path}", "test": f"folder:{tmp_path}"}, {})


def test_ones_own_suite_labels_everything_in_the_training_classes(folders: Path) -> None:
    suite = sp.own_suite(
        {
            "name": "photo",
            **{split: f"folder:{folders / split}" for split in ("train", "validation", "test")},
        },
        {
            "sketch": {"data": f"folder:{folders / 'sketch'}"},
            "noise": {"data": f"corrupted:noise:3:folder:{folders / 'test'}", "kind": "synthetic"},
        },
    )
    assert list(suite.test_sets) == ["photo", "sketch", "noise"]
    assert [shift.kind for shift in suite.shifts] == ["natural", "synthetic"]
    assert (len(suite.reference.train), len(suite.reference.validation), len(suite.reference.test)) == (
        18,
        9,
        9,
    )
    assert all(images.classes == suite.classes for images in suite.test_sets.values())
    assert not same_pixels(suite.shifts[1].data, suite.reference.test)


def test_a_shift_of_some_classes_warns_unless_it_is_marked_partial(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "sketch" / "pear", tmp_path / "pear")
    reference: dict[str, str | None] = {
        "train": f"folder:{folders / 'train'}",
        "test": f"folder:{folders / 'test'}",
    }
    with pytest.warns(
        UserWarning, match="sketch has no image of 'lemon', 'red_apple'; its accuracy is over the others"
    ):
        sp.own_suite(reference, {"sketch": {"data": f"folder:{tmp_path}"}})
    suite = sp.own_suite(reference, {"sketch": {"data": f"folder:{tmp_path}", "partial": True}})
    result = suite.shifts[0].data
    assert {suite.classes.ids[label] for label in result.labels} == {"pear"}


@pytest.mark.parametrize(
    ("reference", "shifts", "message"),
    [
        ({"train": "folder:{}"}, {}, "has no test data"),
        ({"test": "folder:{}"}, {}, "has no train data"),
        (
            {"train": "folder:{}", "test": "folder:{}"},
            {"reference": {"data": "folder:{}"}},
            "must have different names",
        ),
        (
            {"train": "folder:{}", "test": "folder:{}"},
            {"validation": {"data": "folder:{}"}},
            "must have different names",
        ),
        ({"train": "folder:{}", "test": "folder:{}"}, {"a/b": {"data": "folder:{}"}}, "must consist of"),
        (
            {"train": "folder:{}", "test": "folder:{}"},
            {"s": {"data": "folder:{}", "kind": "wild"}},
            "shift kind",
        ),
        ({"train": "foldr:{}", "test": "folder:{}"}, {}, "Did you mean 'folder'"),
        ({"train": "folder:{}", "test": "corrupted:noise:9:folder:{}"}, {}, "severity '9'; it must be one of 1, 2"),
        ({"train": "folder:{}", "test": "corrupted:nois:1:folder:{}"}, {}, "Did you mean 'noise'"),
    ],
)
def test_a_suite_that_cannot_be_made_says_why(
    folders: Path, reference: dict[str, str], shifts: dict[str, dict[str, str]], message: str
) -> None:
    place = str(folders / "test")
    named = {name: spec.format(place) for name, spec in reference.items()}
    settings = {name: {k: v.format(place) for k, v in entry.items()} for name, entry in shifts.items()}
    with pytest.raises(sp.InputError, match=message):
        sp.own_suite(named, settings)
