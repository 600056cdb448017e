"""Identical picture files in several sets are found by their bytes, whatever they are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shiftproof.data import ClassSpace, ImageSet
from shiftproof.data.duplicates import SharedFiles, find_shared_files
from shiftproof.data.sets import joined, load_set
from shiftproof.data.suites import corrupted


def file_set(paths: list[Path]) -> ImageSet:
    labels = np.zeros(len(paths), dtype=np.int64)
    return ImageSet(
        "s", ClassSpace.from_ids(["a", "b"]), tuple(map(str, paths)), labels, lambda i: np.zeros((1, 1, 3), np.uint8),
        files=tuple(paths),
    )  # fmt: skip


@given(st.lists(st.lists(st.binary(max_size=3), min_size=1, max_size=6), min_size=2, max_size=3))
def test_shared_files_are_those_of_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[bytes]]
) -> None:
    root, sets = tmp_path_factory.mktemp("pictures"), {}
    for number, content in enumerate(contents):
        paths = [root / f"{number}-{i}.png" for i in range(len(content))]
        for path, data in zip(paths, content, strict=True):
            path.write_bytes(data)
        sets[str(number)] = file_set(paths)
    expected = sum(data in contents[0] for data in contents[1])
    shared = find_shared_files(sets, [("0", "1")])
    assert [(each.count, each.total) for each in shared] == ([(expected, len(contents[1]))] if expected else [])
    for each in shared:
        assert each.example[0].read_bytes() == each.example[1].read_bytes()


def test_long_files_that_differ_in_one_early_byte_are_different(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    first.write_bytes(b"x" + bytes(9000))
    second.write_bytes(b"y" + bytes(9000))
    assert find_shared_files({"train": file_set([first]), "test": file_set([second])}, [("train", "test")]) == ()
    second.write_bytes(b"x" + bytes(9000))
    assert find_shared_files({"train": file_set([first]), "test": file_set([second])}, [("train", "test")]) == (
        SharedFiles("train", "test", 1, 1, (first, second)),
    )


def test_a_missing_file_is_passed_over(tmp_path: Path) -> None:
    present = tmp_path / "a.png"
    present.write_bytes(b"x")
    sets = {"train": file_set([present, tmp_path / "gone.png"]), "test": file_set([present])}
    assert [shared.count for shared in find_shared_files(sets, [("train", "test")])] == [1]


def test_a_set_keeps_the_files_that_it_is_read_from(folders: Path) -> None:
    images = load_set(f"folder:{folders}/test")
    assert images.files is not None and [
        path.relative_to(folders / "test").as_posix() for path in images.files
    ] == list(images.ids)
    assert images.subset([2, 0]).files == (images.files[2], images.files[0])
    assert joined([images, images], "both").files == (*images.files, *images.files)
    assert corrupted(images, "noise", 1).data.files == images.files  # what a corruption hides is still the same picture
