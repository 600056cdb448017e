"""The export of a suite as folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from support.image_sets import pixels_of, same_pixels

import shiftproof as sp


def test_an_exported_suite_comes_back_as_folders(folders: Path, tmp_path: Path) -> None:
    reference: dict[str, str | None] = {split: f"folder:{folders / split}" for split in ("train", "validation", "test")}
    shifts = {
        "sketch": {"data": f"folder:{folders / 'sketch'}"},
        "noise-3": {"data": f"corrupted:noise:3:folder:{folders / 'test'}", "kind": "synthetic"},
    }
    suite = sp.own_suite(reference, shifts)
    sp.data.export_suite(suite, tmp_path / "out")
    back = {
        **{name: f"reference/{name}" for name in ("train", "validation", "test")},
        **{name: f"shifts/{name}" for name in ("sketch", "noise-3")},
    }
    parts = {
        "train": suite.reference.train,
        "validation": suite.reference.validation,
        "test": suite.reference.test,
        **{shift.name: shift.data for shift in suite.shifts},
    }
    for name, place in back.items():
        images = sp.data.load_set(f"folder:{tmp_path / 'out' / place}")
        assert images.classes == suite.classes
        assert images.labels.tolist() == parts[name].labels.tolist()
        assert same_pixels(images, parts[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_export_loses_no_image_where_names_are_equal(folders: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    greys = iter(range(100))
    for name in ("lemon/a/1.png", "lemon/b/1.png", "lemon/1.png", "lemon/1.bmp", "pear/1.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (next(greys),) * 3).save(source / name)
    data: dict[str, str | None] = dict.fromkeys(("train", "validation", "test"), f"folder:{source}")
    sp.data.export_suite(sp.own_suite(data, {}), tmp_path / "out")
    images = sp.data.load_set(f"folder:{tmp_path / 'out' / 'reference' / 'test'}")
    assert sorted(int(image[0, 0, 0]) for image in pixels_of(images)) == [0, 1, 2, 3, 4]


def test_an_export_never_mixes_with_what_is_there_and_leaves_no_half(folders: Path, tmp_path: Path) -> None:
    data: dict[str, str | None] = dict.fromkeys(("train", "validation", "test"), f"folder:{folders / 'test'}")
    suite = sp.own_suite(data, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(sp.InputError, match="full is not empty"):
        sp.data.export_suite(suite, tmp_path / "full")
    broken = sp.own_suite(data, {"bad": {"data": f"folder:{folders / 'sketch'}"}})

    def fail(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        raise RuntimeError("the disk is full")

    shift = sp.data.Shift("bad", "natural", broken.shifts[0].data.mapped(fail, "bad"))
    with pytest.raises(RuntimeError, match="disk is full"):
        sp.data.export_suite(sp.ShiftSuite("own", broken.classes, broken.reference, (shift,)), tmp_path / "half")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_images_whose_names_collide_are_all_written(tmp_path: Path) -> None:
    classes = sp.ClassSpace.from_ids(["lemon"])
    pixels = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((3, 2, 2, 3), np.uint8)
    ids = ["x.png", "x-2.png", "x.jpg"]
    images = sp.data.sets.array_set("mine", classes, ids, np.zeros(3, np.int64), lambda: pixels)
    suite = sp.ShiftSuite("mine", classes, sp.data.Reference("photo", images, images, images), ())
    sp.data.export_suite(suite, tmp_path / "out")
    values = {int(np.asarray(Image.open(file)).max()) for file in (tmp_path / "out/reference/train").rglob("*.png")}
    assert values == {0, 1, 2}
