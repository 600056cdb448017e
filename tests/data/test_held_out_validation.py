"""The validation split that is held out of the training images: a fifth of every class, in whole groups."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Call, data_flags, quick_training_flags

import shiftproof as sp
from shiftproof.data.held_out import hold_out
from shiftproof.data.sets import array_set


def images_of(labels: list[int], groups: list[str] | None = None) -> sp.ImageSet:
    classes = sp.ClassSpace.from_ids([f"class{k}" for k in range(max(labels) + 1)])
    pixels = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return array_set("mine", classes, list(map(str, range(len(labels)))), np.array(labels), lambda: pixels, groups)


@given(st.data())
def test_no_group_is_on_both_sides_and_every_class_is_trained_on(data: st.DataObject) -> None:
    labels = data.draw(st.lists(st.integers(0, 3), min_size=8, max_size=60))
    labels = [sorted(set(labels)).index(label) for label in labels]
    groups = [
        f"g{group}" for group in data.draw(st.lists(st.integers(0, 9), min_size=len(labels), max_size=len(labels)))
    ]
    train = images_of(labels, groups)
    try:
        remaining, validation, record = hold_out(train, seed=data.draw(st.integers(0, 5)))
    except sp.InputError:
        return
    assert remaining.groups is not None
    assert validation.groups is not None
    assert not set(remaining.groups) & set(validation.groups)
    assert sorted(remaining.ids + validation.ids) == sorted(train.ids)
    assert set(remaining.labels.tolist()) == set(labels)
    assert record.groups == len(set(validation.groups))
    assert set(record.absent_classes) == {
        train.classes.ids[label] for label in set(labels) - set(validation.labels.tolist())
    }


def test_the_share_of_every_class_is_near_a_fifth_where_groups_are_small() -> None:
    draw_from = random.Random(0)
    labels = [label for label, count in enumerate((400, 100, 50)) for _ in range(count)]
    groups = [f"{draw_from.randrange(120)}" for _ in labels]
    for seed in range(5):
        _, validation, _ = hold_out(images_of(labels, groups), seed=seed)
        counts = Counter(validation.labels.tolist())
        for label, count in enumerate((400, 100, 50)):
            assert counts[label] / count == pytest.approx(0.2, abs=0.05)


def test_a_class_with_two_large_groups_has_one_of_them_in_each_split() -> None:
    labels, groups = [0] * 10 + [1] * 20, ["a"] * 5 + ["b"] * 5 + [f"c{i // 2}" for i in range(20)]
    remaining, validation, record = hold_out(images_of(labels, groups), seed=0)
    assert (remaining.labels == 0).sum() == (validation.labels == 0).sum() == 5
    assert record.absent_classes == ()


def test_a_class_in_a_single_group_is_named() -> None:
    labels, groups = [0] * 10 + [1] * 20, ["a"] * 10 + [f"c{i // 2}" for i in range(20)]
    _, validation, record = hold_out(images_of(labels, groups), seed=0)
    assert 0 not in validation.labels
    assert record.absent_classes == ("class0",)
    assert "it has none of 'class0', whose images are in too few groups" in str(record)


def test_images_of_one_group_cannot_be_split() -> None:
    with pytest.raises(sp.InputError, match="the training images have too few groups to hold any out"):
        hold_out(images_of([0, 0, 1, 1], ["a"] * 4), seed=0)


def test_another_seed_draws_another_split_and_the_same_seed_the_same() -> None:
    train = images_of([0, 1] * 50, [str(i // 2) for i in range(100)])
    splits = [hold_out(train, seed=seed)[1].ids for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.slow
def test_a_training_says_what_was_held_out_and_records_it(folders: Path, call: Call, tmp_path: Path) -> None:
    data = [flag for flag in data_flags(folders, shift=False) if "validation" not in flag]
    ended = call("finetune", "tiny", *data, *quick_training_flags(epochs=1), "--seed", "3", "--out", "tuned")
    assert ended.code == 0, ended.err
    line = "3 of the 18 training images, held out of every class with seed 3, because no validation data were named"
    assert f"validation: {line}" in ended.err.splitlines()
    assert sp.load_classifier(tmp_path / "tuned").training["validation"]["images"] == 3


def test_groups_of_a_csv_are_held_out_as_wholes(folders: Path, tmp_path: Path) -> None:
    rows = ["filepath,label,group"]
    for file in sorted((folders / "train").rglob("*.png")):
        shutil.copy(file, tmp_path / file.name)
        rows.append(f"{file.name},{file.parent.name},{file.stem[-1]}")
    (tmp_path / "train.csv").write_text("\n".join(rows))
    suite = sp.own_suite({"train": f"csv:{tmp_path}/train.csv", "test": f"folder:{folders}/test"}, {}, seed=0)
    reference = suite.reference
    assert reference.held_out is not None
    assert reference.held_out.groups == len(set(reference.validation.groups or ())) == 1
    assert not set(reference.train.groups or ()) & set(reference.validation.groups or ())


def test_views_of_one_source_are_on_one_side() -> None:
    images = images_of([i % 2 for i in range(50)])
    images = replace(images, sources=tuple(f"slide{i // 10}" for i in range(50)))
    remaining, validation, record = hold_out(images, seed=0)
    assert not set(remaining.sources or ()) & set(validation.sources or ())
    assert record.groups == len(set(validation.sources or ()))


def test_a_class_of_two_images_is_validated_on_one_and_a_class_of_one_is_named() -> None:
    remaining, validation, record = hold_out(images_of([0, 0, 1, *[2] * 10]), seed=0)
    assert ((remaining.labels == 0).sum(), (validation.labels == 0).sum()) == (1, 1)
    assert "it has none of 'class1', which have too few images" in str(record)
