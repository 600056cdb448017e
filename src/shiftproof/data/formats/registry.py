"""The data formats by the name that precedes the colon in ``folder:PATH``; a new format is added here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shiftproof.data.formats.csv import read_csv
from shiftproof.data.formats.entries import Entry
from shiftproof.data.formats.folder import read_folder

FORMATS: dict[str, Callable[[Path], list[Entry]]] = {"folder": read_folder, "csv": read_csv}
