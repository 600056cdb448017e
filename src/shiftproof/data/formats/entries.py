"""What the readers of all formats return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from shiftproof.data.labels import ClassSpace
from shiftproof.data.sources import Source


class Entry(NamedTuple):
    """One labelled image: its bytes, its class, its sample id and, where given, its mask and its group."""

    picture: Source
    class_id: str
    sample: str
    mask: Path | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """The labelled images at an address.

    ``classes``, where the format has a list of its own, are all classes in the order of its label numbers, with the
    names for prompts; images need not show all of them.
    """

    entries: Sequence[Entry]
    classes: ClassSpace | None = None


class NamedPicture(NamedTuple):
    """One image whose class is not asked for: its sample id and its bytes."""

    sample: str
    picture: Source
