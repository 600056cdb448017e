"""Cars, DTD, SUN397 and Food-101 in miniature, and domains, of which any can be the reference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from support.miniatures import numbering, reader, share_right, write_folders, write_picture

import shiftproof as sp
from shiftproof.data import load_data


def test_cars(tmp_path: Path) -> None:
    root = tmp_path / "stanford_cars"
    names = np.array(["Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"], dtype=object)
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names})
    for file, folder in (
        ("devkit/cars_train_annos.mat", "cars_train"),
        ("cars_test_annos_withlabels.mat", "cars_test"),
    ):
        labels = [2, 1] * (5 if folder == "cars_train" else 1)
        listed = [(f"{i:05d}.jpg", label) for i, label in enumerate(labels, 1)]
        savemat(root / file, {"annotations": np.array(listed, dtype=[("fname", object), ("class", int)])})
        for name, label in listed:
            write_picture(root / folder / name, label - 1)
    images = load_data(f"cars:{tmp_path}")
    assert (images.ids, images.labels.tolist()) == (("cars_test/00001.jpg", "cars_test/00002.jpg"), [1, 0])
    assert images.classes.ids[1] == "Ram C-V Cargo Van Minivan 2012"
    assert share_right(reader(images.classes), images) == 1.0
    assert share_right(numbering(images, [1, 0]), images) == 0.0  # the order in which the annotations name them
    suite = sp.load_suite(f"cars:{root}")
    assert (suite.name, suite.shifts, len(suite.reference.test)) == ("cars", (), 2)


def test_dtd_and_food101(tmp_path: Path) -> None:
    write_folders(tmp_path / "dtd" / "dtd" / "images", {"banded": 0, "dotted": 1})
    (tmp_path / "dtd" / "dtd" / "labels").mkdir()
    for part in ("train", "val", "test"):
        listing = "banded/banded_0.JPEG\ndotted/dotted_0.JPEG\n"
        (tmp_path / "dtd" / "dtd" / "labels" / f"{part}1.txt").write_text(listing)
    suite = sp.load_suite(f"dtd:{tmp_path}")
    assert [len(part) for part in (suite.reference.train, suite.reference.validation)] == [2, 2]
    assert suite.reference.test.ids == ("banded/banded_0.JPEG", "dotted/dotted_0.JPEG")
    assert share_right(reader(suite.classes), suite.reference.test) == 1.0
    for name, number in (("apple_pie", 0), ("waffles", 1)):
        write_picture(tmp_path / "food-101" / "images" / name / "7.jpg", number)
    (tmp_path / "food-101" / "meta").mkdir()
    for part in ("train", "test"):
        meta = {"waffles": ["waffles/7"], "apple_pie": ["apple_pie/7"]}
        (tmp_path / "food-101" / "meta" / f"{part}.json").write_text(json.dumps(meta))
    images = load_data(f"food101:{tmp_path / 'food-101'}")
    assert (images.ids, images.classes.names) == (("apple_pie/7.jpg", "waffles/7.jpg"), ("apple pie", "waffles"))
    assert share_right(reader(images.classes), images) == 1.0
    assert share_right(numbering(images, [1, 0]), images) == 0.0  # the order of the lists


def test_sun397_needs_the_lists_of_its_partition(tmp_path: Path) -> None:
    root = tmp_path / "SUN397"
    root.mkdir()
    (root / "ClassName.txt").write_text("/a/abbey\n/a/apartment_building/outdoor\n/b/beach\n")
    files = ["a/abbey/sun_a.jpg", "a/abbey/sun_b.jpg", "a/apartment_building/outdoor/sun_c.jpg", "b/beach/sun_d.jpg"]
    for file, number in zip(files, (0, 0, 1, 2), strict=True):
        write_picture(root / file, number)
    with pytest.raises(sp.InputError, match="has no Testing_01.txt"):
        load_data(f"sun397:{tmp_path}")
    (root / "Testing_01.txt").write_text(f"/{files[0]}\n/{files[2]}\n/{files[3]}\n")
    images = load_data(f"sun397:{tmp_path}")
    assert (images.ids, images.labels.tolist()) == ((files[0], files[2], files[3]), [0, 1, 2])
    assert images.classes.ids == ("abbey", "apartment_building-outdoor", "beach")
    assert images.classes.names == ("abbey", "apartment building outdoor", "beach")
    assert share_right(reader(images.classes), images) == 1.0
    assert share_right(numbering(images, [0, 2, 1]), images) < 1.0  # the order of the innermost folders
    assert load_data(f"sun397:all:{tmp_path}").ids == tuple(files)


def test_data_that_torchvision_does_not_find_are_not_downloaded(tmp_path: Path) -> None:
    for family in ("cars", "dtd", "sun397", "food101"):
        with pytest.raises(sp.InputError, match="Dataset not found"):
            load_data(f"{family}:{tmp_path}")


def test_any_domain_can_be_the_reference(tmp_path: Path) -> None:
    for domain in ("art painting", "photo", "sketch"):
        write_folders(tmp_path / domain, {"dog": 0, "horse": 1}, count=10)
    for reference in ("photo", "art painting"):
        suite = sp.load_suite(f"domains:{tmp_path / reference}")
        others = {"art_painting", "photo", "sketch"} - {suite.reference.name}
        assert suite.reference.name == reference.replace(" ", "_")
        assert {shift.name for shift in suite.shifts} == others
        parts = [suite.reference.train, suite.reference.validation, suite.reference.test]
        assert [len(part) for part in parts] == [12, 4, 4]
        assert len({sample for part in parts for sample in part.ids}) == 20
        assert [len(shift.data) for shift in suite.shifts] == [20, 20]
    write_folders(tmp_path / "cartoon", {"horse": 1}, count=2)  # without dogs: its first folder is the second class
    cartoon = load_data(f"domains:{tmp_path / 'cartoon'}", suite.classes, split="shift", partial=True)
    assert share_right(reader(suite.classes), cartoon) == 1.0
    assert share_right(numbering(cartoon, [1, 0]), cartoon) == 0.0
    with pytest.raises(
        sp.InputError, match="holds the domains 'art painting', 'cartoon', 'photo', 'sketch'. Name one of them"
    ):
        sp.load_suite(f"domains:{tmp_path}")


def test_a_family_without_training_images_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="imagenet-r is no suite, .* Did you mean 'imagenet'"):
        sp.load_suite(f"imagenet-r:{tmp_path}")
    with pytest.raises(sp.InputError, match="names no folder"):
        load_data("imagenet-r:")
    with pytest.raises(sp.InputError, match="has no train images of its own"):
        load_data(f"imagenet-r:{tmp_path}", split="train")
