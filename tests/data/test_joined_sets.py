"""Image sets that are joined, and the images of some classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.windows import CLASSES, toy_set

import shiftproof as sp
from shiftproof.data.sets import joined


@given(parts=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4))
def test_joined_sets_keep_order_labels_pixels_and_masks(parts: list[list[int]]) -> None:
    sets = [toy_set(labels, first=50 * number) for number, labels in enumerate(parts)]
    result = joined(sets, "all")
    assert (result.name, result.classes, result.in_memory) == ("all", CLASSES, True)
    assert result.labels.tolist() == [label for labels in parts for label in labels]
    assert len(set(result.ids)) == len(result)
    assert result.mask is not None
    values = [50 * number + i for number, labels in enumerate(parts) for i in range(len(labels))]
    assert [int(result.read(i)[0, 0, 0]) for i in range(len(result))] == values
    assert [int(result.mask(i)[0, 0]) for i in range(len(result))] == [255 - value for value in values]


def test_joined_sets_must_share_classes_and_lose_masks_that_some_lack() -> None:
    assert joined([toy_set([0]), toy_set([1], masks=False)], "all").mask is None
    turned = sp.ClassSpace.from_ids(["green", "red", "blue"])
    with pytest.raises(sp.InputError, match="the parts of all are labelled in different class spaces"):
        joined([toy_set([0]), toy_set([0], turned)], "all")


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=12).filter(lambda x: {0, 2} & set(x)))
def test_the_images_of_some_classes_keep_ids_pixels_and_class(labels: list[int]) -> None:
    some = sp.ClassSpace.from_ids(["blue", "red"])
    images = toy_set(labels).of_classes(some)
    saved = [i for i, label in enumerate(labels) if label != 1]
    assert images.classes == some
    assert images.ids == tuple(map(str, saved))
    assert [some.ids[k] for k in images.labels] == [CLASSES.ids[labels[i]] for i in saved]
    assert images.mask is not None
    assert [int(images.read(i)[0, 0, 0]) for i in range(len(images))] == saved
    assert [int(images.mask(i)[0, 0]) for i in range(len(images))] == [255 - i for i in saved]


def test_no_image_of_the_wanted_classes_is_an_error() -> None:
    with pytest.raises(sp.InputError, match="toy holds no image"):
        toy_set([1, 1]).of_classes(sp.ClassSpace.from_ids(["blue", "red"]))


def test_groups_and_crops_are_those_of_the_parts() -> None:
    parts = [replace(toy_set([0, 1]), groups=("a", "b"), precropped=True) for _ in range(2)]
    both = joined(parts, "both")
    assert (both.groups, both.precropped) == (("a", "b", "a", "b"), True)
    mixed = joined([parts[0], toy_set([0, 1])], "mixed")
    assert (mixed.groups, mixed.precropped) == (None, False)
