"""Files that are complete or absent: atomic writes, readers of JSON and CSV, the lock of a run directory, the cache."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from shiftproof.errors import InputError

_POINTER = b"version https://git-lfs.github.com/spec/"
# Suffixes of files that no command writes as a directory: an output of such a name is a misunderstanding.
OTHER_FILES = (
    *(".pt", ".pth", ".bin", ".ckpt", ".onnx", ".npz", ".h5"),
    *(".zip", ".tar", ".gz", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".html", ".png", ".pdf"),
)


def require_directory_name(out: Path, writer: str) -> None:
    """Raises an InputError if an output directory has the name of a file, such as model.pt, and does not exist yet."""
    if out.suffix.lower() in (".safetensors", *OTHER_FILES) and not out.is_dir():
        raise InputError(
            f"{str(out)!r} is the name of a file, and {writer} writes a directory. Choose {str(out.with_suffix(''))!r}."
        )


def cache_directory() -> Path:
    """``$SHIFTPROOF_CACHE``, or else the user's cache directory: on Linux ``$XDG_CACHE_HOME/shiftproof``.

    Without either variable, it is ``~/.cache/shiftproof`` on Linux and the system's default elsewhere.
    """
    if directory := os.environ.get("SHIFTPROOF_CACHE"):
        return expanded(directory)
    import platformdirs

    return platformdirs.user_cache_path("shiftproof", appauthor=False)


def packaged_path(package: str, *parts: str) -> Path:
    """The path of a file or folder that an installed package contains.

    Raises a ModuleNotFoundError if the package is not installed. Packages are read from folders, never from a zip file,
    since SVG renderers and checkpoint readers need real files.

    >>> packaged_path("shiftproof", "assets", "demo.yaml").is_file()
    True
    """
    return Path(str(resources.files(package).joinpath(*parts)))


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets ``write`` fill a temporary file beside the target, syncs it to disk and renames it into place."""
    with atomically(path) as temporary:
        write(temporary)
    return Path(path)


@contextlib.contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """A temporary file beside the target, synced to disk and renamed into place unless the block raises."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file has the same suffix, because matplotlib and numpy choose the format by it.
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """An empty directory beside ``out`` for output that ``move_into_place`` then renames to ``out`` as a whole.

    Its name is fixed, so that the next process clears away what a killed one has left. Its lock is held, so that two
    processes cannot write the same output; an InputError says so.
    """
    staging = out.with_name(f".{out.name}.partial")
    with locked(staging):
        if (aside := interrupted(out)) != out:
            aside.rename(out)
        content = staging / "made"
        for leftover in (content, _replaced(out)):
            _remove(leftover)
        content.mkdir()
        try:
            yield content
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def move_into_place(content: Path, out: Path) -> None:
    """Renames a staged file or directory to ``out``; what it replaces is deleted once the new one is in place."""
    if content.is_dir() and out.exists():
        out.rename(_replaced(out))
    try:
        os.replace(content, out)
    except OSError:
        if (aside := interrupted(out)) != out:
            aside.rename(out)
        raise
    sync_directory(out.parent)
    _remove(_replaced(out))


def _remove(path: Path) -> None:
    """Deletes a file or a directory, whichever is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Syncs a directory, so that renames in it survive a power failure; Windows cannot do this."""
    if sys.platform != "win32":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def interrupted(out: Path) -> Path:
    """The path of an output's content: ``out``, or the backup if a process was killed between the two renames."""
    return _replaced(out) if _replaced(out).exists() and not out.exists() else out


def _replaced(out: Path) -> Path:
    return out.with_name(f".{out.name}.replaced")


def expanded(path: str | Path) -> Path:
    """The path with a leading ``~`` replaced by the home directory.

    >>> expanded("~/photos") == Path.home() / "photos"
    True
    """
    return Path(os.path.expanduser(path))


def write_text(path: str | Path, text: str) -> Path:
    """Writes UTF-8 text atomically."""
    return write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any) -> Path:
    """Writes JSON atomically; raises a ValueError for NaN and infinity, since other JSON readers refuse them."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """The text of a JSON file, in the style that the project writes."""
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def read_json(path: str | Path) -> Any:
    """Reads a JSON file; raises an InputError that names the file if it does not exist or is not valid JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist. Check the path.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        require_no_pointer(Path(path))
        raise InputError(f"{path} is not valid JSON ({error}). Regenerate or restore it.") from error


class Row(NamedTuple):
    """One row of a CSV file: the number of its first line, counted from 1, and its fields by column."""

    line: int
    fields: Mapping[str, str]


def require_no_pointer(file: Path) -> None:
    """Raises an InputError if a file is the pointer that Git LFS puts in place of a file that was not downloaded."""
    if is_pointer(file):
        raise InputError(
            f"{file} is a Git LFS pointer: it stands for a file that was not downloaded. "
            "Run `git lfs pull` in its repository, and try again."
        )


def is_pointer(file: Path) -> bool:
    """Whether a file is the pointer that Git LFS puts in place of a file that was not downloaded."""
    with file.open("rb") as opened:
        return opened.read(len(_POINTER)) == _POINTER


def read_header(path: Path) -> tuple[str, ...]:
    """The column names of a CSV file, none if it is empty; raises an InputError as ``read_rows`` does."""
    return next((fields for _, fields in _records(path)), ())


def read_rows(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = (), *, multiline: tuple[str, ...] = ()
) -> list[Row]:
    """The given columns of a CSV file with a header, and those of the ``optional`` columns that it has, row by row.

    Only fields of the ``multiline`` columns may contain line breaks. Raises an InputError, which names the file and the
    line, if the file does not exist, is not UTF-8 text, has a stray quotation mark, lacks a column, or has a row with
    an empty field or with more fields than the header.
    """
    records = _records(path)
    header = next((fields for _, fields in records), ())
    if not set(columns) <= set(header):
        separated = " Separate the columns by commas." if len(header) == 1 and {";", "\t"} & set(header[0]) else ""
        needed = " and ".join(map(repr, columns))
        raise InputError(f"{path} has the columns {list(header)}; it needs {needed}.{separated}")
    wanted = (*columns, *(name for name in optional if name in header))
    rows = []
    for line, fields in records:
        if any(fields[len(header) :]):
            raise InputError(
                f"line {line} of {path} has {len(fields)} fields, its header {len(header)}. Put a field that contains "
                "a comma into quotation marks."
            )
        row = dict(zip(header, fields, strict=False))
        if lacking := [name for name in wanted if not row.get(name)]:
            raise InputError(f"line {line} of {path} lacks its {' and its '.join(lacking)}. Fill it in or remove it.")
        if broken := [name for name in wanted if name not in multiline and len(row[name].splitlines()) > 1]:
            raise InputError(f"the {broken[0]} on line {line} of {path} runs over several lines. {_STRAY_QUOTE}")
        rows.append(Row(line, {name: row[name] for name in wanted}))
    return rows


_STRAY_QUOTE = (
    "Most likely, a quotation mark there is never closed. Remove it, or write a mark that belongs to the text twice."
)


def _records(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields the first line and the fields of every record of a CSV file, the header included; skips blank lines."""
    reader = csv.reader(io.StringIO(_utf8_text(path), newline=""), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"the row on line {line} of {path} is not valid CSV ({error}). {_STRAY_QUOTE}") from error
        if fields:
            yield line, tuple(fields)


def _utf8_text(path: Path) -> str:
    if not path.is_file():
        raise InputError(f"the file {path} does not exist. Check the path.")
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"line {line} of {path} is not UTF-8 text ({error}). Save the file as UTF-8.") from error


@contextlib.contextmanager
def locked(directory: str | Path) -> Iterator[None]:
    """Holds the lock of a directory, which is created if needed, so that two processes cannot write the same run.

    The lock is the file ``.lock`` in the directory. The system frees it when the process ends, however it ends.
    Raises an InputError if the lock is already held, by another process or in this one.
    """
    import filelock

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    try:
        # The mere presence of a file would outlive a killed process; a lock of the system does not.
        lock = filelock.FileLock(directory / ".lock").acquire(timeout=0)
    except filelock.Timeout as error:
        raise InputError(
            f"{directory} is in use by another shiftproof process. Wait for it to end, or choose another `out`."
        ) from error
    with lock:
        yield


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
