"""Tar shards in the layout of CLIP_benchmark: what is read from where they lie, and what is refused."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.image_sets import pixels_of
from support.shard_cases import BROKEN_SHARDS, ShardCase, write_test_shard
from support.shards import add_member, labelled_pictures, write_shards

import shiftproof as sp
from shiftproof.data.duplicates import find_shared_files
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.formats.wds import find_shards

NAMES = ("pear", "lemon", "red_apple")  # neither sorted nor in the order of the folders


@pytest.fixture
def shards(folders: Path, tmp_path: Path) -> Path:
    return write_shards(tmp_path / "fruit", "test", labelled_pictures(folders / "test"), NAMES)


def test_labels_follow_the_numbers_and_pixels_the_files(shards: Path, folders: Path) -> None:
    images = sp.load_data(f"wds:{shards}")
    pictures = labelled_pictures(folders / "test")
    assert images.classes == sp.ClassSpace(NAMES, ("pear", "lemon", "red apple"))
    assert [images.classes.ids[label] for label in images.labels] == [name for name, _ in pictures]
    assert images.ids[:5] == ("0/s0000000", "0/s0000001", "0/s0000002", "0/s0000003", "1/s0000000")
    for pixels, (_, file) in zip(pixels_of(images), pictures, strict=True):
        assert np.array_equal(pixels, sp.data.decoding.decode(file))


def test_samples_are_read_in_any_order_and_matched_to_other_classes_by_name(shards: Path, folders: Path) -> None:
    reference = sp.load_data(f"folder:{folders}/test")
    images = sp.load_data(f"wds:{shards}", reference.classes)
    backwards = images.subset(range(len(images) - 1, -1, -1))
    for i, label in enumerate(backwards.labels):
        assert backwards.classes.ids[label] == labelled_pictures(folders / "test")[::-1][i][0]
    assert np.array_equal(backwards.read(0), images.read(len(images) - 1))


def test_a_class_without_images_is_no_class_of_the_set(folders: Path, tmp_path: Path) -> None:
    root = write_shards(tmp_path / "fruit", "test", labelled_pictures(folders / "test"), ("fig", *NAMES))
    assert sp.load_data(f"wds:{root}").classes.ids == NAMES


def test_each_split_of_a_reference_has_its_own_shards(shards: Path, folders: Path) -> None:
    for split, folder in (("train", "train"), ("val", "validation")):
        write_shards(shards, split, labelled_pictures(folders / folder), NAMES)
    data = f"wds:{shards}"
    suite = sp.own_suite({"train": data, "validation": data, "test": data}, {})
    assert [len(part) for part in (suite.reference.train, suite.reference.validation, suite.reference.test)] == [
        18,
        9,
        9,
    ]
    assert len(sp.load_data(f"wds:{shards},split=train")) == 18
    with pytest.raises(
        sp.InputError, match=r"has no split 'shift'; its splits are 'test', 'train', 'val'\. Name one: .*split=test"
    ):
        sp.load_data(f"wds:{shards},split=shift")
    with pytest.raises(sp.InputError, match=r"unknown option 'spilt'. Did you mean 'split'"):
        sp.load_data(f"wds:{shards},spilt=train")


def test_a_split_that_is_missing_is_never_replaced_by_another_one(shards: Path) -> None:
    with pytest.raises(sp.InputError, match=r"has no split 'train'; its splits are 'test'\. Name one"):
        sp.load_data(f"wds:{shards}", split="train")


def test_the_folder_of_one_split_and_a_single_shard_can_be_named(shards: Path) -> None:
    for place in (shards / "test", shards / "test/0.tar"):
        assert sp.load_data(f"wds:{place}", split="train").classes.ids == NAMES


def test_shards_are_ordered_by_number(tmp_path: Path, folders: Path) -> None:
    root = write_shards(tmp_path / "fruit", "train", labelled_pictures(folders / "train"), NAMES, per_shard=1)
    (root / "train/nshards.txt").unlink()
    assert [shard.name for shard in find_shards(str(root), "train")] == [f"{number}.tar" for number in range(18)]


def test_pictures_without_labels_are_listed_one_by_one(shards: Path) -> None:
    pictures = list(FORMATS["wds"].pictures(str(shards), "test"))
    assert [picture.sample for picture in pictures] == list(sp.load_data(f"wds:{shards}").ids)


def test_pictures_that_two_sets_share_are_found(shards: Path, folders: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders / "test", other)
    sets = {"train": sp.load_data(f"folder:{other}"), "test": sp.load_data(f"wds:{shards}")}
    shared = find_shared_files(sets, [("train", "test")])
    assert [(pair.count, pair.total) for pair in shared] == [(9, 9)]
    assert str(shared[0].example[1]).endswith(f".png in {shards}/test/0.tar")


def test_captions_are_read_from_shards(tmp_path: Path, folders: Path) -> None:
    file = folders / "test/pear/pear-0.png"
    (tmp_path / "pairs").mkdir()
    with tarfile.open(tmp_path / "pairs/0.tar", "w") as archive:
        add_member(archive, "a/0.png", file.read_bytes())
        add_member(archive, "a/0.txt", b"a pear\n")
    pairs = sp.data.load_captioned_set(f"wds:{tmp_path}/pairs")
    assert (len(pairs), pairs.captions) == (1, (("a pear",),))  # type: ignore[attr-defined]
    with tarfile.open(tmp_path / "pairs/1.tar", "w") as archive:
        add_member(archive, "7.png", file.read_bytes())
    with pytest.raises(sp.InputError, match=r"the sample 7 in .*1\.tar has no caption"):
        sp.data.load_captioned_set(f"wds:{tmp_path}/pairs")


@pytest.mark.parametrize("case", BROKEN_SHARDS, ids=lambda case: case.what)
def test_broken_shards_stop_with_the_file_and_the_sample(case: ShardCase, shards: Path) -> None:
    case.damage(shards)
    with pytest.raises(sp.InputError, match=case.message):
        sp.load_data(f"wds:{shards}")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_skipped_and_counted(shards: Path, kind: bytes) -> None:
    write_test_shard(shards, ("0.png", b""), ("0.cls", b""), type=kind, linkname="/etc/passwd")
    with pytest.warns(UserWarning, match=r"2 files were skipped: 2 links, devices or sparse files in an archive"):
        assert len(sp.load_data(f"wds:{shards}")) == 9


def test_class_names_may_repeat_and_hold_slashes() -> None:
    classes = sp.ClassSpace.from_names(["crane", "C/V van", "crane", "apple_pie"])
    assert classes.ids == ("crane", "C-V van", "crane (2)", "apple_pie")
    assert classes.names == ("crane", "C/V van", "crane", "apple pie")


def test_an_address_on_the_web_is_refused() -> None:
    with pytest.raises(sp.InputError, match="is not on this machine"):
        sp.load_data("wds:https://example.org/0.tar")
