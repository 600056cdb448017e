"""The entries that the readers of all formats return."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One labelled image: its file, its class, its sample id and, where given, its mask and its group."""

    path: Path
    class_id: str
    sample: str
    mask: Path | None = None
    group: str | None = None
