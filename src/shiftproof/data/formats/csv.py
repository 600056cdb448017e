"""``csv:PATH``: a file with the columns ``filepath`` and ``label``, and optionally ``mask`` and ``group``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from shiftproof.data.formats.entries import Entry, NamedPicture
from shiftproof.data.paths import require_table
from shiftproof.data.pictures import LEFTOVER, SkippedFiles, is_leftover
from shiftproof.errors import InputError
from shiftproof.storage import expanded, read_rows


def read_csv(path: Path) -> list[Entry]:
    """One entry per row; paths are relative to the CSV's folder, and a leading ``~`` is the home directory.

    Raises an InputError if the file does not exist, lacks a column, has no row or names an image twice.
    """
    require_table(path)
    entries: list[Entry] = []
    first_rows: dict[str, tuple[int, str]] = {}  # of each file: its first line and how it is written there
    skipped = SkippedFiles()
    for line, fields in read_rows(path, ("filepath", "label"), ("mask", "group")):
        sample = fields["filepath"]
        if is_leftover(sample):
            skipped.add(LEFTOVER, sample)
            continue
        image = path.parent / expanded(sample)
        earlier, name = first_rows.setdefault(os.path.abspath(image), (line, sample))
        if earlier != line:
            raise InputError(
                f"{path} names a file twice: {name!r} on line {earlier} and {sample!r} on line {line}. Every image may "
                "occur in it only once."
            )
        mask = path.parent / expanded(fields["mask"]) if "mask" in fields else None
        entries.append(Entry(image, fields["label"], sample, mask, fields.get("group")))
    if not entries:
        raise InputError(f"{path} has no rows. It needs one row per labelled image.")
    skipped.warn(f"csv:{path}")
    return entries


def csv_pictures(path: Path) -> Iterator[NamedPicture]:
    """The pictures of the column ``filepath`` one by one; other columns are not needed."""
    require_table(path)
    for _, fields in read_rows(path, ("filepath",)):
        if not is_leftover(fields["filepath"]):
            yield NamedPicture(fields["filepath"], path.parent / expanded(fields["filepath"]))
