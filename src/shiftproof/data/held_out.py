"""A validation split that is held out of the training images, where a reference comes without one."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator

from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError
from shiftproof.records.runs import HeldOutRecord
from shiftproof.seeding import child_generator

_SHARE = 0.2


def hold_out(train: ImageSet, *, seed: int) -> tuple[ImageSet, ImageSet, HeldOutRecord]:
    """Splits off a validation split: the remaining training images, the split, and the record of what was done.

    A fifth of every class is drawn with the seed, and at least one image of a class that has two. Where images belong
    together, as those of one patient or the views of one drawing do (``ImageSet.clusters``), whole groups are drawn, so
    that no group is on both sides; the share of a class is then as near to a fifth as its groups allow. A class keeps
    at least one image for training. Raises an InputError if no image can be held out.
    """
    generator = child_generator(seed, "hold-out")
    clusters = train.clusters.names
    groups = None if clusters is None else tuple(clusters.tolist())
    positions = _of_every_class(train, generator) if groups is None else _whole_groups(train, groups, generator)
    if not positions:
        reason = "there are too few training images" if groups is None else "the training images have too few groups"
        raise InputError(f"{reason} to hold any out for validation. Name validation data.")
    validation = train.subset(sorted(positions))
    absent = sorted(set(train.labels.tolist()) - set(validation.labels.tolist()))
    record = HeldOutRecord(
        images=len(positions),
        total=len(train),
        seed=seed,
        groups=None if groups is None else len({groups[i] for i in positions}),
        absent_classes=tuple(train.classes.ids[label] for label in absent),
    )
    return train.subset(sorted(set(range(len(train))) - set(positions))), validation, record


def _of_every_class(train: ImageSet, generator: Generator) -> list[int]:
    positions: list[int] = []
    for label in range(len(train.classes)):
        of_class = np.flatnonzero(train.labels == label)
        order = torch.randperm(len(of_class), generator=generator).numpy()
        count = max(round(_SHARE * len(of_class)), int(len(of_class) > 1))
        positions += of_class[order[:count]].tolist()
    return positions


def _whole_groups(train: ImageSet, groups: tuple[str, ...], generator: Generator) -> list[int]:
    """Draws groups in random order; one is taken if the classes' shares come nearer to a fifth by it.

    A class that has none then gets its smallest group, unless that would leave the class without training images.
    """
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    total = np.bincount(train.labels, minlength=len(train.classes)).astype(np.float64)
    members = [Counter[int]() for _ in names]
    for group, label in zip(group_of.tolist(), train.labels.tolist(), strict=True):
        members[group][label] += 1
    drawn = np.zeros_like(total)
    chosen: set[int] = set()

    def leaves_training_images(group: int) -> bool:
        return all(drawn[label] + count < total[label] for label, count in members[group].items())

    def take(group: int) -> None:
        chosen.add(group)
        for label, count in members[group].items():
            drawn[label] += count

    order = torch.randperm(len(names), generator=generator).tolist()
    for group in order:
        if leaves_training_images(group) and _change(members[group], drawn, total) < 0:
            take(group)
    for group in sorted(order, key=lambda group: members[group].total()):
        if any(drawn[label] == 0 for label in members[group]) and leaves_training_images(group):
            take(group)
    return np.flatnonzero(np.isin(group_of, sorted(chosen))).tolist()


def _change(group: Counter[int], drawn: NDArray[np.float64], total: NDArray[np.float64]) -> float:
    """By how much a group's images raise the sum, over the classes, of the squared distance from the wanted share."""
    change = 0.0
    for label, count in group.items():
        before = drawn[label] / total[label] - _SHARE
        change += (before + count / total[label]) ** 2 - before**2
    return change
