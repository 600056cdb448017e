"""Image sets from folders and CSV files: labels, classes, images and subsets."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.image_sets import same_pixels

import shiftproof as sp
from shiftproof.data.decoding import decode


@given(ids=st.lists(st.text("abcdef_", min_size=1), min_size=1, max_size=6, unique=True), data=st.data())
def test_labels_are_matched_by_name_in_whatever_order(ids: list[str], data: st.DataObject) -> None:
    space = sp.ClassSpace.from_ids(data.draw(st.permutations(ids)))
    settings = data.draw(st.lists(st.sampled_from(ids), min_size=1))
    result = space.labels_of(settings, "the set")
    assert [space.ids[label] for label in result] == settings


def test_a_folder_is_labelled_in_the_space_it_is_given(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["red_apple", "lemon", "pear"])
    images = sp.data.load_set(f"folder:{folders / 'test'}", space)
    assert len(images) == 9
    for label, sample in zip(images.labels, images.ids, strict=True):
        assert sample.startswith(space.ids[label] + "/")
    own = sp.data.load_set(f"folder:{folders / 'test'}")
    assert own.classes.ids == ("lemon", "pear", "red_apple")
    assert own.classes.names == ("lemon", "pear", "red apple")
    assert same_pixels(own, images)


def test_a_class_that_the_reference_lacks_is_an_error(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["lemon", "pear", "red_aple"])
    with pytest.raises(sp.InputError, match=r"lacks: 'red_apple'. Did you mean 'red_aple'\?"):
        sp.data.load_set(f"folder:{folders / 'test'}", space, partial=True)


def test_a_class_that_the_set_lacks_is_an_error_unless_partial(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple", "plum", "fig"])
    spec = f"folder:{folders / 'test'}"
    with pytest.raises(sp.InputError, match=r"lacks classes of the reference: 'fig', 'plum'.*only a shift may lack"):
        sp.data.load_set(spec, space)
    assert len(sp.data.load_set(spec, space, partial=True)) == 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: (root / "lemon").mkdir(parents=True), "class folder .*lemon contains no image"),
        (lambda root: (root.mkdir(), (root / "lemon.png").write_bytes(b"")), "has no class folders"),
    ],
)
def test_a_folder_without_images_is_an_error(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "mine")
    with pytest.raises(sp.InputError, match=message) as caught:
        sp.data.load_set(f"folder:{tmp_path / 'mine'}")
    assert str(tmp_path / "mine") in str(caught.value)


@pytest.mark.parametrize("content", [b"no image", b"", "cut"])
def test_an_image_that_does_not_decode_is_named(folders: Path, tmp_path: Path, content: bytes | str) -> None:
    whole = (folders / "test" / "lemon" / "lemon-0.png").read_bytes()
    path = tmp_path / "lemon" / "broken.png"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    with pytest.raises(sp.InputError, match=r"broken.png cannot be decoded"):
        sp.data.load_set(f"folder:{tmp_path}").read(0)
    with pytest.raises(sp.InputError, match=r"none.png does not exist"):
        decode(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_kind_of_image_becomes_three_channels(tmp_path: Path, mode: str) -> None:
    suffix = "tif" if mode == "CMYK" else "png"
    Image.new("RGB", (5, 4), "white").convert(mode).save(tmp_path / f"image.{suffix}")
    result = decode(tmp_path / f"image.{suffix}")
    assert result.shape == (4, 5, 3)
    assert (result == 255).all()


def test_images_in_folders_below_and_hidden_folders(folders: Path, tmp_path: Path) -> None:
    image = folders / "test" / "lemon" / "lemon-0.png"
    for name in ("lemon/a/1.png", "lemon/2.PNG", "pear/1.png", ".trash/9.png", "lemon/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    with pytest.warns(UserWarning, match="2 files were skipped"):
        images = sp.data.load_set(f"folder:{tmp_path}")
    assert images.classes.ids == ("lemon", "pear")
    assert sorted(images.ids) == ["lemon/2.PNG", "lemon/a/1.png", "pear/1.png"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_names_files_beside_it(folders: Path, mark: str) -> None:
    rows = ["filepath,label", "test/pear/pear-1.png,pear", "sketch/lemon/lemon-0.png,lemon"]
    path = folders / f"some{len(mark)}.csv"
    path.write_text(mark + "\n".join(rows), encoding="utf-8")
    images = sp.data.load_set(f"csv:{path}")
    assert images.ids == ("test/pear/pear-1.png", "sketch/lemon/lemon-0.png")
    assert [images.classes.ids[label] for label in images.labels] == ["pear", "lemon"]
    assert np.array_equal(images.read(1), decode(folders / "sketch" / "lemon" / "lemon-0.png"))
    path.unlink()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "needs 'filepath' and 'label'"),
        ("path,label\na.png,lemon", "needs 'filepath' and 'label'"),
        ("filepath,label\n", "has no rows"),
        ("filepath,label\na.png,lemon\na.png,pear", "names a file twice"),
        ("filepath,label\na.png,lemon\nb.png", "line 3 .*lacks its label"),
        ("filepath,label\na.png,", "line 2 .*lacks its label"),
        ("filepath,label,mask\na.png,lemon,m.png\nb.png,lemon,", "line 3 .*lacks its mask"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(sp.InputError, match=message) as caught:
        sp.data.load_set(f"csv:{path}")
    assert str(path) in str(caught.value)


def test_class_ids_are_unique_and_named() -> None:
    with pytest.raises(sp.InputError, match="occur twice: 'pear'"):
        sp.ClassSpace.from_ids(["pear", "lemon", "pear"])
    with pytest.raises(sp.InputError, match="2 class ids and 1 names"):
        sp.ClassSpace(("a", "b"), ("a",))


def test_a_subset_keeps_what_belongs_together(folders: Path) -> None:
    whole = sp.data.load_set(f"folder:{folders / 'test'}")
    some = whole.subset([7, 2, 4])
    assert some.ids == tuple(whole.ids[i] for i in (7, 2, 4))
    assert some.labels.tolist() == whole.labels[[7, 2, 4]].tolist()
    assert np.array_equal(some.subset([1]).read(0), whole.read(2))


def test_relabelling_goes_by_class_id(folders: Path) -> None:
    whole = sp.data.load_set(f"folder:{folders / 'test'}")
    other = sp.ClassSpace.from_ids(["red_apple", "plum", "pear", "lemon"])
    result = whole.relabelled(other)
    assert [other.ids[label] for label in result.labels] == [whole.classes.ids[label] for label in whole.labels]
    with pytest.raises(sp.InputError, match="lacks: 'lemon'"):
        whole.relabelled(sp.ClassSpace.from_ids(["pear", "red_apple"]))
