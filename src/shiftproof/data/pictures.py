"""Which files are pictures, by one rule for every format, and how many others were skipped for which reason."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePath

from PIL import Image, features

from shiftproof.errors import InputError, counted, listed

# Formats of photographs, scans and drawings. Pillow registers others as well, such as HDF5, PostScript and icons.
# HEIF is read only if a plugin such as pillow-heif has registered itself with Pillow.
_FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
_OPTIONAL = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}  # formats that a build of Pillow may lack
_SYSTEM = frozenset({"__macosx", ".ds_store", ".ipynb_checkpoints", "desktop.ini", "thumbs.db"})
LEFTOVER = "left by an operating system or a tool"
_NAMED = 3  # examples that a message gives for each reason


class SkippedFiles:
    """The files and folders that were skipped because they are no pictures, by the reason."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}  # the first few, since a folder may hold millions of other files

    def add(self, reason: str, name: str) -> None:
        """Notes a file, or a folder as a whole, under a reason such as "hidden"."""
        self._note(reason, 1, [name])

    def update(self, other: SkippedFiles) -> None:
        """Adds the files that were noted elsewhere."""
        for reason, count in other._counts.items():
            self._note(reason, count, other._examples[reason])

    def _note(self, reason: str, count: int, examples: list[str]) -> None:
        self._counts[reason] += count
        known = self._examples.setdefault(reason, [])
        known += examples[: _NAMED - len(known)]

    def __bool__(self) -> bool:
        return bool(self._counts)

    def __str__(self) -> str:
        total = self._counts.total()
        reasons = [
            f"{count:,} {reason} ({listed(self._examples[reason], of=count)})" for reason, count in self._counts.items()
        ]
        return f"{counted(total, 'file')} {'was' if total == 1 else 'were'} skipped: {', '.join(reasons)}"

    def warn(self, name: str) -> None:
        """Warns, in one line, that files of the data ``name`` were skipped, if there are any."""
        if self:
            warnings.warn(f"{name}: {self}.", stacklevel=3)


def picture_suffixes() -> frozenset[str]:
    """The suffixes of pictures that the installed Pillow decodes, in lower case, each with its dot.

    >>> {".jpg", ".jfif", ".png", ".webp"} <= picture_suffixes()
    True
    """
    readable = set(_readable_formats())
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in readable)


def find_pictures(folder: Path, skipped: SkippedFiles, *, companions: frozenset[str] = frozenset()) -> list[Path]:
    """Every picture under a folder, at any depth, sorted; what is no picture is added to ``skipped``.

    The rules are those of ``iterate_pictures``.
    """
    return sorted(iterate_pictures(folder, skipped, companions=companions))


def iterate_pictures(
    folder: Path, skipped: SkippedFiles, *, companions: frozenset[str] = frozenset()
) -> Iterator[Path]:
    """The pictures under a folder one by one, at any depth, sorted; what is no picture is added to ``skipped``.

    Hidden files and folders are skipped at every depth, and so are those that operating systems leave. Links to folders
    are followed. A file without a suffix is a picture if its content is. Files with the suffixes of ``companions``,
    such as captions, belong beside pictures and are not counted as skipped. Raises an InputError for a link to a folder
    that contains it, and for a link to nothing.
    """
    for path, reason in _walk(folder, (folder.resolve(),), picture_suffixes()):
        if reason is None:
            yield path
        elif path.suffix.lower() not in companions:
            skipped.add(reason, path.name)


def named_pictures(paths: Iterable[Path], skipped: SkippedFiles) -> list[Path]:
    """The pictures that a user names: files as they are, and every picture under a folder.

    Raises an InputError for a folder without pictures, and if no picture remains.
    """
    pictures: list[Path] = []
    for path in paths:
        if is_leftover(path):
            skipped.add(LEFTOVER, str(path))
        elif path.is_dir():
            pictures += require_pictures(find_pictures(path, skipped), f"the folder {path}", skipped)
        else:
            pictures.append(path)
    return require_pictures(pictures, "the list of images", skipped)


def require_pictures(pictures: list[Path], what: str, skipped: SkippedFiles) -> list[Path]:
    """Returns the pictures, or raises an InputError that says what was skipped if there are none."""
    if not pictures:
        reasons = f" ({skipped})" if skipped else ""
        raise InputError(f"{what} contains no image{reasons}. Fill it or remove it.")
    return pictures


def is_leftover(path: PurePath | str) -> bool:
    """Whether a path is, or lies in, what macOS, Windows or Jupyter leave beside pictures.

    >>> is_leftover("__MACOSX/lemon/._1.jpg"), is_leftover("lemon/1.jpg")
    (True, False)
    """
    return any(part.startswith("._") or part.lower() in _SYSTEM for part in PurePath(path).parts)


def require_target(path: Path) -> Path:
    """Returns a path, or raises an InputError if it is a link to nothing."""
    if path.is_symlink() and not path.exists():
        raise InputError(f"{path} is a link to {os.readlink(path)}, which does not exist. Restore or remove it.")
    return path


def skip_reason(name: str) -> str | None:
    """Why a file or a folder is skipped by its name alone, or None.

    >>> skip_reason(".git"), skip_reason("Thumbs.db"), skip_reason("lemon")
    ('hidden', 'left by an operating system or a tool', None)
    """
    if is_leftover(name):
        return LEFTOVER
    return "hidden" if name.startswith(".") else None


def _readable_formats() -> list[str]:
    Image.init()
    known = [kind for kind in _FORMATS if kind in Image.OPEN]
    return [kind for kind in known if kind not in _OPTIONAL or features.check(_OPTIONAL[kind])]


def _walk(folder: Path, above: tuple[Path, ...], suffixes: frozenset[str]) -> Iterator[tuple[Path, str | None]]:
    """Yields everything under a folder, each with the reason to skip it or None for a picture.

    ``above`` are the folders on the way to it and itself, with links resolved.
    """
    names, folders, links = [], set(), set()  # of a million files, the names alone fit well into memory
    with os.scandir(folder) as entries:
        for entry in entries:
            names.append(entry.name)
            if entry.is_symlink():
                links.add(entry.name)
            elif entry.is_dir():
                folders.add(entry.name)
    for name in sorted(names):
        path = folder / name
        if reason := skip_reason(name):
            yield path, reason
        elif name in folders or (name in links and require_target(path).is_dir()):
            yield from _walk(path, (*above, _require_no_loop(path, above)), suffixes)
        else:
            yield path, _content_reason(path, suffixes)


def _require_no_loop(folder: Path, above: tuple[Path, ...]) -> Path:
    resolved = folder.resolve() if folder.is_symlink() else above[-1] / folder.name
    if any(other.is_relative_to(resolved) for other in above):
        raise InputError(f"the link {folder} leads back to {resolved}, a folder that contains it. Remove the link.")
    return resolved


def _content_reason(path: Path, suffixes: frozenset[str]) -> str | None:
    suffix = path.suffix.lower()
    if suffix in suffixes:
        return None
    if suffix:
        return f"with the suffix {suffix}, which the installed Pillow does not read as a picture"
    try:
        with Image.open(path, formats=_readable_formats()):
            return None
    except Image.DecompressionBombError:
        return None  # it is a picture; reading it says that it is too large
    except Exception:  # Pillow's parsers raise almost anything for content that only looks like theirs
        return "without a suffix whose content is no picture"
