"""Domains of one task, in the layout of DomainBed: ``DOMAIN/CLASS/IMAGE``; any of them can be the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shiftproof.data.families.folders import labelled_set
from shiftproof.data.formats.folder import read_folder
from shiftproof.data.labels import ClassSpace
from shiftproof.data.paths import require_folder
from shiftproof.data.pictures import skip_reason
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError, listed
from shiftproof.seeding import child_generator

PARTS = ("train", "test", "all")
_TEST_SHARE = 0.2
_SEED = 20260  # which images of a domain are its test part is the same in every run


def read_domain(root: Path, part: str) -> ImageSet:
    """The images of one domain, ``root/CLASS/IMAGE``: "all", or the fifth of every class that is its "test" part.

    Without the test part, it is the "train" part. The parts are drawn with a fixed seed.
    """
    if names := _domains_in(root):
        raise InputError(
            f"{root} holds the domains {listed(names)}. Name one of them, as in domains:{root / names[0]}."
        )
    entries = read_folder(root)
    classes = ClassSpace.from_ids(sorted({entry.class_id for entry in entries}))
    images = labelled_set(f"domains:{part}:{root}", entries, classes)
    if part == "all":
        return images
    generator = child_generator(_SEED, "domain", root.name)
    tested: set[int] = set()
    for label in range(len(classes)):
        of_class = np.flatnonzero(images.labels == label)
        order = torch.randperm(len(of_class), generator=generator).numpy()
        tested |= set(of_class[order[: max(1, round(_TEST_SHARE * len(of_class)))]].tolist())
    return images.subset([i for i in range(len(images)) if (i in tested) == (part == "test")])


def sibling_domains(root: Path) -> list[Path]:
    """The other domains beside one; raises an InputError if there are none."""
    require_folder(root, "It must be a domain, as in domains:PATH/photo.")
    read_domain(root, "all")
    others = [folder for folder in _folders(root.parent) if folder.name != root.name]
    if not others:
        raise InputError(f"there is no other domain beside {root}. The layout is DOMAIN/CLASS/IMAGE.")
    return others


def _domains_in(root: Path) -> list[str]:
    """The folders of a folder if these have folders themselves, so that they are domains rather than classes."""
    require_folder(root, "It must be a domain, as in domains:PATH/photo.")
    folders = _folders(root)
    return [folder.name for folder in folders] if folders and all(map(_folders, folders)) else []


def _folders(root: Path) -> list[Path]:
    return sorted(child for child in root.iterdir() if child.is_dir() and not skip_reason(child.name))
