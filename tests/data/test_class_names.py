"""Spellings of class names: the same name is one class, and a name that may be the same gives a warning."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.data.spelling import difference, likenesses, normal_name

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


def labelled(rows: list[tuple[Path, str]], path: Path) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("filepath", "label"), *rows])
    return f"csv:{path}"


def images_of(folders: Path) -> list[Path]:
    return sorted((folders / "test" / "lemon").iterdir())


@pytest.mark.parametrize("other", [DECOMPOSED, f"{COMPOSED} ", f"  {DECOMPOSED}\u00a0"])
def test_spellings_of_one_name_in_a_csv_are_one_class(folders: Path, tmp_path: Path, other: str) -> None:
    first, second, third = images_of(folders)
    spec = labelled([(first, COMPOSED), (second, other), (third, "pear")], tmp_path / "mine.csv")
    images = sp.data.load_set(spec)
    assert images.classes.ids == (COMPOSED, "pear")
    assert images.labels.tolist() == [0, 0, 1]


def test_folders_of_one_name_are_one_class(folders: Path, tmp_path: Path) -> None:
    for name in (COMPOSED, DECOMPOSED, "pear"):
        shutil.copytree(folders / "test" / "lemon", tmp_path / name)
    images = sp.data.load_set(f"folder:{tmp_path}")
    assert images.classes.ids == (COMPOSED, "pear")
    assert np.bincount(images.labels).tolist() == [6, 3]
    assert len(set(images.ids)) == 9


def test_training_and_test_data_match_in_either_form(folders: Path, tmp_path: Path) -> None:
    for split, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        for class_name in (name, "pear"):
            shutil.copytree(folders / "test" / "lemon", tmp_path / split / class_name)
    suite = sp.own_suite({"train": f"folder:{tmp_path}/train", "test": f"folder:{tmp_path}/test"}, {})
    assert suite.reference.test.classes == suite.classes
    assert suite.reference.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_classifier_directory_with_a_decomposed_name_is_read_and_matched(
    folders: Path, tmp_path: Path, tiny: sp.models.Clip
) -> None:
    old = sp.ClassSpace((DECOMPOSED, "pear "), (DECOMPOSED, "pear "))
    sp.save_classifier(sp.zero_shot_classifier(tiny, old), tmp_path / "old")
    classifier = sp.load_classifier(tmp_path / "old")
    assert json.loads((tmp_path / "old" / "classifier.json").read_text("utf-8"))["classes"]["ids"] == [*old.ids]
    first, second, _ = images_of(folders)
    spec = labelled([(first, "pear"), (second, COMPOSED)], tmp_path / "mine.csv")
    images = sp.load_data(spec, classifier.classes)
    assert images.labels.tolist() == [1, 0]
    assert sp.predict(classifier, images).logits.shape == (2, 2)
    ensemble = sp.wise_ft(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids([COMPOSED, "pear"])), classifier, 0.5)
    assert ensemble.classes.ids == (COMPOSED, "pear")


def test_a_mask_is_found_under_either_form_of_its_name(folders: Path, tmp_path: Path) -> None:
    from PIL import Image

    for root, name, colour in (("images", COMPOSED, "red"), ("masks", DECOMPOSED, "white")):
        path = tmp_path / root / "pear" / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(path)
    images = sp.data.with_masks(sp.data.load_set(f"folder:{tmp_path}/images"), tmp_path / "masks")
    assert images.mask is not None
    assert (images.mask(0) == 255).all()


@pytest.mark.parametrize(
    ("first", "second", "differing"),
    [
        ("Lemon", "lemon", "'L' (U+004C LATIN CAPITAL LETTER L) and 'l' (U+006C LATIN SMALL LETTER L)"),
        ("red apple", "red_apple", "' ' (U+0020 SPACE) and '_' (U+005F LOW LINE)"),
        ("red apple", "red-apple", "U+002D HYPHEN-MINUS"),
        ("red  apple", "red apple", "' ' (U+0020 SPACE) and nothing"),
        ("lemon", "l\u0435mon", "U+0435 CYRILLIC SMALL LETTER IE"),
        ("Bus", "\u0412us", "U+0412 CYRILLIC CAPITAL LETTER VE"),
        ("adam's apple", "adam\u2019s apple", "U+2019 RIGHT SINGLE QUOTATION MARK"),
        ("lemon", "le\u200bmon", "nothing and '\\u200b' (U+200B ZERO WIDTH SPACE)"),
        ("lemon", "\uff4cemon", "U+FF4C FULLWIDTH LATIN SMALL LETTER L"),
    ],
)
def test_names_that_may_be_the_same_warn_with_the_characters_that_differ(
    folders: Path, tmp_path: Path, first: str, second: str, differing: str
) -> None:
    one, two, three = images_of(folders)
    spec = labelled([(one, first), (two, second), (three, "pear")], tmp_path / "mine.csv")
    with pytest.warns(UserWarning, match="may be the same") as caught:
        images = sp.data.load_set(spec)
    (warning,) = [str(entry.message) for entry in caught]
    assert repr(first) in warning and repr(second) in warning
    assert differing in warning or " and ".join(reversed(differing.split(" and "))) in warning
    assert len(images.classes) == 3


@pytest.mark.parametrize(
    "names", [["1", "-1"], ["1-2", "12"], ["schon", "sch\u00f6n"], ["lemon", "lemons"], ["a b", "ab"], ["0", "O"]]
)
def test_other_names_do_not_warn(names: list[str]) -> None:
    assert likenesses(names) == []


def test_many_similar_names_are_one_line(folders: Path, tmp_path: Path) -> None:
    names = [*"abcdefgh", *"ABCDEFGH"]
    files = [tmp_path / f"{number}.png" for number in range(len(names))]
    for file in files:
        shutil.copy(images_of(folders)[0], file)
    spec = labelled(list(zip(files, names, strict=True)), tmp_path / "mine.csv")
    with pytest.warns(UserWarning, match="may be the same") as caught:
        sp.data.load_set(spec)
    messages = [str(entry.message) for entry in caught]
    assert len(messages) == 4
    assert "may be the same, too: 'D / d', 'E / e'" in messages[-1]


def test_a_class_of_another_spelling_in_the_test_data_is_suggested(folders: Path, tmp_path: Path) -> None:
    spec = labelled([(images_of(folders)[0], "Lemon")], tmp_path / "mine.csv")
    with pytest.raises(sp.InputError, match=r"Did you mean 'lemon'\? It differs only in 'l' .*LATIN CAPITAL LETTER L"):
        sp.data.load_set(spec, sp.ClassSpace.from_ids(["lemon", "pear"]), partial=True)


@given(st.text(min_size=1, max_size=8))
def test_a_normal_name_is_a_fixed_point_whatever_the_form(name: str) -> None:
    normal = normal_name(name)
    assert normal_name(normal) == normal
    assert normal_name(f" {unicodedata.normalize('NFD', name)}\t") == normal_name(unicodedata.normalize("NFC", name))
    assert likenesses([normal, normal]) == []


@given(st.text(max_size=6), st.text(max_size=6))
def test_a_difference_names_characters_exactly_where_names_differ(first: str, second: str) -> None:
    assert (difference(first, second) == "") == (first == second)


def test_equal_rows_of_the_head_warn_whatever_the_names(tiny: sp.models.Clip) -> None:
    with pytest.warns(UserWarning, match="rows of the classes 'Lemon' and 'lemon' are equal .*U\\+004C"):
        sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["Lemon", "lemon", "pear"]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "lemons", "pear"]))


def test_a_numbered_name_is_not_the_name_of_another_class() -> None:
    space = sp.ClassSpace.from_names(["crane", "crane (2)", "crane"])
    assert space.ids == ("crane", "crane (2)", "crane (3)")


@pytest.mark.parametrize("load", [sp.load_data, sp.load_clip])
def test_the_home_of_an_unknown_user_is_an_unknown_name(load: Callable[[str], object]) -> None:
    with pytest.raises(sp.InputError, match="unknown"):
        load("~nosuchuser/photos")
