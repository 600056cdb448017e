"""Masks of image sets, from arrays, CSV files and parallel folders."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import shiftproof as sp
from shiftproof.data.batches import decoded_once
from shiftproof.data.decoding import decode
from shiftproof.data.loading import Preprocessing, resize_mask
from shiftproof.data.sets import array_set, require_masks, with_masks
from shiftproof.data.suites import corrupted


def masked(images: sp.ImageSet) -> sp.ImageSet:
    """The set with its own red channel as mask, so that a mask tells which pixels it belongs to."""
    return replace(images, mask=lambda i: images.read(i)[..., 0])


def test_masks_stay_with_their_images(folders: Path) -> None:
    whole = masked(sp.data.load_set(f"folder:{folders / 'test'}"))
    some = whole.subset([7, 2, 4]).subset([2, 0])
    other = whole.relabelled(sp.ClassSpace.from_ids(["red_apple", "plum", "pear", "lemon"]))
    dark = whole.mapped(lambda i, pixels: pixels // 2, "dark")
    blurred = corrupted(whole, "blur", 5).data
    for images, places in ((some, [4, 7]), (other, range(9)), (dark, range(9)), (blurred, range(9))):
        assert len(images) == len(places)
        for i, place in enumerate(places):
            assert np.array_equal(require_masks(images)(i), whole.read(place)[..., 0])
    bare = sp.data.load_set(f"folder:{folders / 'test'}")
    assert (bare.mask, bare.subset([0]).mask, decoded_once(bare, Preprocessing(size=8)).mask) == (None, None, None)
    with pytest.raises(sp.InputError, match=r"has no object masks.*column 'mask'.*with_masks"):
        require_masks(bare)


@settings(max_examples=20)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    size=st.integers(1, 24),
    mode=st.sampled_from(["shortest", "squash", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.sampled_from([0, 255]),
)
def test_masks_are_resized_as_the_pixels_are(
    height: int, width: int, size: int, mode: str, interpolation: str, fill: int
) -> None:
    grey = np.random.default_rng(height + 31 * width).integers(0, 256, (1, height, width, 1)).astype(np.uint8)
    images = array_set(
        "grey",
        sp.ClassSpace.from_ids(["a"]),
        ["0"],
        np.array([0]),
        lambda: grey.repeat(3, 3),
        None,
        lambda: grey[..., 0],
    )
    wanted = Preprocessing(size=size, resize_mode=mode, interpolation=interpolation, fill=fill)
    result = decoded_once(images, wanted)
    mask = require_masks(result)(0)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
    assert np.array_equal(mask, decoded_once(images, replace(wanted, fill=0)).read(0)[..., 0])
    padded = resize_mask(np.full((height, width), 255, np.uint8), wanted) == 0
    assert (result.read(0)[padded] == fill).all()


def test_a_masks_array_is_made_once_and_only_when_asked_for() -> None:
    made: list[str] = []

    def make(what: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        made.append(what)
        return np.arange(math.prod(shape), dtype=np.uint8).reshape(shape)

    images = array_set(
        "mine",
        sp.ClassSpace.from_ids(["a"]),
        ["0", "1"],
        np.array([0, 0]),
        lambda: make("pixels", (2, 3, 4, 3)),
        None,
        lambda: make("masks", (2, 3, 4)),
    )
    assert made == []
    assert np.array_equal(require_masks(images)(1), np.arange(12, 24).reshape(3, 4))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(images.read, [0, 1] * 8))
    assert made == ["masks", "pixels"]


@pytest.fixture
def drawn(folders: Path, tmp_path: Path) -> Path:
    """Two images and, beside them, a mask of each: white where the fruit is."""
    for name in ("lemon", "pear"):
        pixels = decode(folders / "test" / name / f"{name}-0.png")
        cover = np.where((pixels < 255).any(2), 255, 0).astype(np.uint8)
        for place, array in (("images", pixels), ("masks", cover)):
            (tmp_path / place / name).mkdir(parents=True)
            Image.fromarray(array).save(tmp_path / place / name / f"{name}.1.png")
    return tmp_path


def test_a_csv_may_name_masks(drawn: Path) -> None:
    rows = ["mask,filepath,label", *(f"masks/{n}/{n}.1.png,images/{n}/{n}.1.png,{n}" for n in ("pear", "lemon"))]
    (drawn / "mine.csv").write_text("\n".join(rows))
    images = sp.data.load_set(f"csv:{drawn / 'mine.csv'}")
    for i in range(2):
        assert np.array_equal(require_masks(images)(i) == 255, (images.read(i) < 255).any(2))
    (drawn / "plain.csv").write_text("filepath,label,comment\nimages/pear/pear.1.png,pear,")
    assert sp.data.load_set(f"csv:{drawn / 'plain.csv'}").mask is None


def test_a_folder_gets_masks_from_a_parallel_one(drawn: Path) -> None:
    images = sp.data.load_set(f"folder:{drawn / 'images'}")
    assert images.mask is None
    (drawn / "masks" / "pear" / "notes.txt").write_text("by hand")
    mask = drawn / "masks" / "lemon" / "lemon.1.png"
    Image.open(mask).convert("1").save(mask.with_suffix(".TIF"))
    mask.unlink()
    with pytest.warns(UserWarning, match=r"masks: 1 file was skipped: 1 with the suffix \.txt"):
        result = with_masks(images, drawn / "masks")
    for i in range(2):
        assert np.array_equal(require_masks(result)(i) == 255, (images.read(i) < 255).any(2))


def test_a_folders_masks_that_cannot_be_used_say_why(drawn: Path) -> None:
    images = sp.data.load_set(f"folder:{drawn / 'images'}")
    with pytest.raises(sp.InputError, match=r"nowhere does not exist. It must hold the masks"):
        with_masks(images, drawn / "nowhere")
    mask = drawn / "masks" / "pear" / "pear.1.png"
    shutil.copy(mask, mask.with_suffix(".bmp"))
    with pytest.raises(sp.InputError, match=r"pear.1.bmp and .*pear.1.png are masks of the same image"):
        with_masks(images, drawn / "masks")
    mask.unlink()
    mask.with_suffix(".bmp").unlink()
    with pytest.raises(sp.InputError, match=r"masks/pear/pear.1.png does not exist.*lack theirs: 'pear/pear.1.png'"):
        with_masks(images, drawn / "masks")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda mask: mask.unlink(), "the mask .*pear.1.png does not exist"),
        (lambda mask: mask.write_bytes(b"no image"), "the mask .*pear.1.png cannot be decoded"),
        (lambda mask: Image.new("L", (32, 40), 255).save(mask), "pear.1.png is 32 x 40 .*pear.1.png 40 x 32;"),
        (lambda mask: Image.new("L", (40, 32), 1).save(mask), "brightest pixel of the mask .*pear.1.png is 1;.*by 255"),
        (lambda mask: Image.new("L", (40, 32), 0).save(mask), "brightest pixel of the mask .*pear.1.png is 0;"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(drawn: Path, spoil: Callable[[Path], object], message: str) -> None:
    (drawn / "mine.csv").write_text("filepath,label,mask\nimages/pear/pear.1.png,pear,masks/pear/pear.1.png")
    from_folder = with_masks(sp.data.load_set(f"folder:{drawn / 'images'}"), drawn / "masks").subset([1])
    spoil(drawn / "masks" / "pear" / "pear.1.png")
    for images in (sp.data.load_set(f"csv:{drawn / 'mine.csv'}"), from_folder):
        with pytest.raises(sp.InputError, match=message):
            require_masks(images)(0)
