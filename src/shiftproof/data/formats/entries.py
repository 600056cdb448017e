"""What every format is read into."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One labelled image: its file, its class, the id of the sample and, if there are any, its mask and its group."""

    path: Path
    class_id: str
    sample: str
    mask: Path | None = None
    group: str | None = None
