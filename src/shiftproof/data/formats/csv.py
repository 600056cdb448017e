"""``csv:PATH``: a CSV file with the columns ``filepath,label`` and, optionally, ``mask`` and ``group``."""

from __future__ import annotations

from pathlib import Path

from shiftproof.data.formats.entries import Entry
from shiftproof.errors import InputError
from shiftproof.storage import read_rows


def read_csv(path: Path) -> list[Entry]:
    """Every row; paths are relative to the CSV's folder."""
    rows = read_rows(path, ("filepath", "label"), ("mask",))
    groups = [group for _, *group in read_rows(path, ("filepath",), ("group",))]
    entries = [
        Entry(path.parent / file, label, file, path.parent / mask[0] if mask else None, *group)
        for (file, label, *mask), group in zip(rows, groups, strict=True)
    ]
    if not entries:
        raise InputError(f"{path} holds no row. It needs one a labelled image.")
    if len({entry.sample for entry in entries}) < len(entries):
        raise InputError(f"{path} names a file twice. Every image may stand in it once.")
    return entries
