"""The errors for data names and paths that cannot be read, with hints at the name that was meant."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shiftproof.errors import InputError, nearest
from shiftproof.storage import expanded

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")


def require_folder(path: Path, role: str) -> None:
    """Raises an InputError that says what stands at a path in place of a folder; ``role`` says what it must hold."""
    if path.is_dir():
        return
    if not path.is_file():
        raise InputError(f"the folder {path} does not exist. {role}")
    raise InputError(f"{path} is a file, not a folder. {_way_out(path) or role}")


def require_table(path: Path) -> None:
    """Raises an InputError for a folder or an archive in place of a CSV file; one that is missing is not refused."""
    if path.is_dir():
        raise InputError(f"{path} is a folder, not a CSV file. For images in class folders, write folder:{path}.")
    if path.is_file() and path.suffix.lower() in (*_ARCHIVES, ".xls", ".xlsx", ".ods"):
        raise InputError(f"{path} is not a CSV file. Unpack it, or save the table as CSV text in UTF-8.")
    if path.is_file() and path.suffix.lower() == ".parquet":
        raise InputError(f"{path} is not a CSV file. {_way_out(path)}")


def require_known_kind(what: str, spec: str, kind: str, known: Iterable[str]) -> None:
    """Raises an InputError unless ``kind``, with which a data name begins, is known; a mere path gets a hint."""
    known = list(known)
    if kind in known:
        return
    raise InputError(f"unknown {what} {kind!r}. {_hint_at_path(spec) or nearest(kind, known)}")


def _hint_at_path(spec: str) -> str | None:
    """How to name the data that stands at a path, or None if the text does not look like one."""
    path = expanded(spec)
    if path.is_dir():
        return f"It is a folder: write folder:{spec}."
    if path.is_file():
        return _way_out(path) or f"It is a file: name the folder of class folders it is in, as in folder:{path.parent}."
    if ":" not in spec and ("/" in spec or "\\" in spec):
        return f"A path needs the format of its data before it, as in folder:{spec}; there is nothing at this path yet."
    return None


def _way_out(path: Path) -> str | None:
    """What to do with a file that is named in place of a folder."""
    if path.suffix.lower() == ".tar":
        return f"For a shard with pairs such as 0.jpg and 0.cls, write wds:{path}; unpack any other archive."
    if path.suffix.lower() == ".parquet":
        return f"For a parquet file, write hf:{path}."
    if path.suffix.lower() in _ARCHIVES:
        return f"Unpack the archive, and name the folder, as in folder:{path.with_suffix('')}."
    return f"For a CSV file, write csv:{path}." if path.suffix.lower() in (".csv", ".tsv") else None
