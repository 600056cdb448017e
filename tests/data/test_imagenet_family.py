"""ImageNet and its shifts, read from miniatures of their layouts with the traps that they have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.miniatures import (
    colour,
    imagenet_space,
    number_of,
    reader,
    share_right,
    write_folders,
    write_picture,
)

import shiftproof as sp
from shiftproof.data import load_data
from shiftproof.data.families.classes import SUPER_CLASSES, imagenet_classes, objectnet_classes

WNIDS = imagenet_classes().wnids


@pytest.fixture(scope="module")
def space() -> sp.ClassSpace:
    return imagenet_space()


def test_the_tables_of_classes_have_the_published_sizes() -> None:
    classes = imagenet_classes()
    assert len(classes.wnids) == len(set(classes.wnids)) == len(set(classes.names)) == 1000
    assert list(classes.wnids) == sorted(classes.wnids)
    assert (len(classes.in_a), len(classes.in_r)) == (200, 200)
    assert set(classes.in_a) != set(classes.in_r)
    sizes = {name: list(classes.super_classes.values()).count(name) for name in SUPER_CLASSES}
    assert list(sizes.values()) == [116, 52, 42, 36, 35, 27, 26, 20, 16]
    ids = [wnid for members in objectnet_classes().values() for wnid in members]
    assert (len(objectnet_classes()), len(ids), len(set(ids))) == (113, 125, 125)
    assert set(ids) <= set(classes.wnids)


def test_the_folders_of_v2_are_numbers_although_they_sort_as_text(tmp_path: Path, space: sp.ClassSpace) -> None:
    numbers = [0, 1, 2, 10, 100, 999]
    by_folder = sorted(map(str, numbers))
    for variant in ("matched-frequency", "threshold0.7", "top-images"):
        write_folders(tmp_path / f"imagenetv2-{variant}-format-val", {str(k): k for k in numbers}, count=2)
    for name in (
        f"imagenet-v2:{tmp_path}",
        f"imagenet-v2:top-images:{tmp_path}",
        f"imagenet-v2:{tmp_path / 'imagenetv2-threshold0.7-format-val'}",
    ):
        images = load_data(name, space, partial=True)
        assert len(images) == 12
        assert share_right(reader(space), images) == 1.0
        assert share_right(reader(space, lambda k: {by_folder.index(str(k)): 9.0}), images) < 1.0


@pytest.mark.parametrize("family", ["imagenet-r", "imagenet-a"])
def test_r_and_a_are_matched_by_their_ids(tmp_path: Path, space: sp.ClassSpace, family: str) -> None:
    wnids = imagenet_classes().in_r[::40] if family == "imagenet-r" else imagenet_classes().in_a[::40]
    write_folders(tmp_path / family, {wnid: number_of(wnid) for wnid in wnids})
    (tmp_path / family / "README.txt").write_text("not a picture")
    images = load_data(f"{family}:{tmp_path / family}", space, partial=True)
    assert share_right(reader(space), images) == 1.0
    assert share_right(reader(space, lambda k: {wnids.index(WNIDS[k]): 9.0}), images) < 1.0


def test_the_classes_of_the_other_family_are_refused(tmp_path: Path) -> None:
    only_r = next(wnid for wnid in imagenet_classes().in_r if wnid not in imagenet_classes().in_a)
    write_folders(tmp_path, {only_r: number_of(only_r)})
    with pytest.raises(sp.InputError, match=f"1 classes that imagenet-a lacks, the first of them '{only_r}'"):
        load_data(f"imagenet-a:{tmp_path}")


def test_validation_pictures_in_one_folder_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    write_picture(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", 3)
    with pytest.raises(sp.InputError, match="come in one folder"):
        load_data(f"imagenet:{tmp_path}")
    write_folders(tmp_path / "other" / "val", {WNIDS[0]: 0, "tench": 0})
    with pytest.raises(sp.InputError, match="'tench'"):
        load_data(f"imagenet:{tmp_path / 'other'}")
    with pytest.raises(sp.InputError, match="it does not exist"):
        load_data(f"imagenet:{tmp_path / 'missing'}")
    with pytest.raises(sp.InputError, match="no validation images"):
        load_data(f"imagenet:{tmp_path}", split="validation")


def test_objectnet_without_its_border_is_right_under_any_of_its_ids(tmp_path: Path, space: sp.ClassSpace) -> None:
    folders = {"alarm_clock": 1, "chair": 2, "t-shirt": 0, "full_sized_towel": 0}
    for folder, member in folders.items():
        number = number_of(objectnet_classes()[folder][member])
        for i in range(2):
            write_picture(tmp_path / "images" / folder / f"{i}.png", number, border=2, side=20)
    write_picture(tmp_path / "images" / "air_freshener" / "0.png", 5, border=2, side=20)  # no class of ImageNet
    for protocol in ("113-way", "masked", "1000-way"):
        images = load_data(f"objectnet:{protocol}:{tmp_path}", space, partial=True)
        assert len(images) == 8
        assert images.read(0).shape == (16, 16, 3)
        assert np.array_equal(images.read(0)[0, 0], colour(number_of(objectnet_classes()["alarm_clock"][1])))
        assert images.protocol is not None
        assert protocol in images.protocol.name


def test_imagenet_c_is_not_cropped_again(tmp_path: Path, space: sp.ClassSpace) -> None:
    folder = tmp_path / "weather" / "fog" / "3" / WNIDS[7]
    write_picture(folder / "ILSVRC2012_val_00000001.JPEG", 7, border=1)
    write_picture(tmp_path / "extra" / "spatter" / "1" / WNIDS[7] / "ILSVRC2012_val_00000001.JPEG", 7)
    images = load_data(f"imagenet-c:{tmp_path}", space, partial=True)
    assert (images.ids, images.groups) == (
        (f"fog/3/{WNIDS[7]}/ILSVRC2012_val_00000001.JPEG",),
        ("fog-3",),
    )
    (batch,) = sp.data.evaluation_batches(images, reader(space).preprocessing, 4)
    assert np.array_equal((batch[0].permute(1, 2, 0) * 255).round().byte().numpy(), images.read(0))
    assert load_data(f"imagenet-c:extra:{tmp_path}").groups == ("spatter-1",)
    assert load_data(f"imagenet-c:{folder.parent}").ids == images.ids
    write_picture(tmp_path / "weather" / "fog" / "6" / WNIDS[7] / "a.JPEG", 7)
    with pytest.raises(sp.InputError, match="no severity"):
        load_data(f"imagenet-c:{tmp_path}")


def test_imagenet_9_takes_any_class_of_the_super_class(tmp_path: Path, space: sp.ClassSpace) -> None:
    folders = {f"{i:02d}_{name}": name for i, name in enumerate(SUPER_CLASSES)}
    for variant in ("mixed_same", "mixed_rand"):
        for folder, name in folders.items():
            members = [wnid for wnid in WNIDS if imagenet_classes().super_classes.get(wnid) == name]
            number = number_of(members[-1])
            file = f"fg_{members[-1]}_11_bg_{WNIDS[1]}_3.JPEG"
            write_picture(tmp_path / variant / "val" / folder / file, number)
    images = load_data(f"imagenet-9:{tmp_path}", space, partial=True)
    assert len(images) == 18
    assert images.clusters.count == 9
    assert set(images.groups or ()) == {"mixed_same", "mixed_rand"}
    one = load_data(f"imagenet-9:{tmp_path / 'mixed_rand'}", space, partial=True)
    assert (len(one), one.groups) == (9, None)
    assert load_data(f"imagenet-9:{tmp_path / 'mixed_rand' / 'val'}").ids == one.ids


def test_the_map_of_imagenet_9_is_read_where_it_is_given(tmp_path: Path, space: sp.ClassSpace) -> None:
    write_picture(tmp_path / "original" / "val" / "00_dog" / "n02085782_1.JPEG", 0)
    (tmp_path / "in_to_in9.json").write_text(json.dumps({str(k): (0 if k == 999 else -1) for k in range(1000)}))
    images = load_data(f"imagenet-9:{tmp_path / 'original'}", space, partial=True)
    assert images.labels.tolist() == [999]


def test_a_suite_has_the_shifts_that_lie_beside_imagenet(tmp_path: Path) -> None:
    numbers = {WNIDS[k]: k for k in (1, 6, 107, 409)}
    write_folders(tmp_path / "imagenet" / "train", numbers, count=5)
    write_folders(tmp_path / "imagenet" / "val", numbers, count=2)
    write_folders(tmp_path / "imagenetv2-matched-frequency-format-val", {str(k): k for k in numbers.values()})
    write_folders(tmp_path / "imagenet-r", {WNIDS[k]: k for k in (1, 107)})
    write_folders(tmp_path / "sketch", numbers)
    write_picture(tmp_path / "objectnet-1.0" / "images" / "alarm_clock" / "0.png", 409, border=2)
    suite = sp.load_suite(f"imagenet:{tmp_path}")
    assert [suite.reference.name, *(shift.name for shift in suite.shifts)] == [
        *("imagenet", "imagenet-v2-matched-frequency", "imagenet-r", "imagenet-sketch", "objectnet"),
    ]
    assert suite.classes.names == ("goldfish", "stingray", "jellyfish", "analog clock")
    assert (len(suite.reference.train), len(suite.reference.validation), len(suite.reference.test)) == (16, 4, 8)
