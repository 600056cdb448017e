"""``csv:PATH``: a CSV file with the columns ``filepath,label`` and, optionally, ``mask`` and ``group``."""

from __future__ import annotations

from pathlib import Path

from shiftproof.data.formats.entries import Entry
from shiftproof.errors import InputError
from shiftproof.storage import read_rows


def read_csv(path: Path) -> list[Entry]:
    """One entry per row; paths are relative to the CSV's folder.

    Raises an InputError if the file does not exist, lacks a column, has no row or names an image twice.
    """
    rows = read_rows(path, ("filepath", "label"), ("mask",))
    groups = [group for _, *group in read_rows(path, ("filepath",), ("group",))]
    entries = [
        Entry(path.parent / file, label, file, path.parent / mask[0] if mask else None, *group)
        for (file, label, *mask), group in zip(rows, groups, strict=True)
    ]
    if not entries:
        raise InputError(f"{path} has no rows. It needs one row per labelled image.")
    if len({entry.sample for entry in entries}) < len(entries):
        raise InputError(f"{path} names a file twice. Every image may occur in it only once.")
    return entries
