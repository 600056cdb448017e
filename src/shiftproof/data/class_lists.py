"""Files of class names: which classes a zero-shot head has, and the words that stand for them in prompts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from shiftproof.data.labels import ClassSpace
from shiftproof.data.spelling import normal_name
from shiftproof.errors import InputError, listed
from shiftproof.storage import expanded, read_header, read_json, read_rows

_WNID_LINE = re.compile(r"(n\d{8})\s+(\S.*)")
_ID_COLUMNS = ("id", "label", "wnid", "folder")


class ListedClass(NamedTuple):
    """One class of a file: its id, which is None where the file gives a name only, its name, and where it stands."""

    id: str | None
    name: str
    place: str


def read_class_list(path: str | Path) -> list[ListedClass]:
    """Reads the classes of a file, in its order.

    A text file has a class on each line: a name, an id and a name separated by a tab, or a WordNet id and a name. JSON
    is a list of names, or maps ids to names or, as ImageNet's class index does, numbers to pairs of an id and a name.
    A CSV file has the column ``name`` and optionally one of ``id``, ``label``, ``wnid`` and ``folder``.

    Raises an InputError that names the line or entry if the file is missing, empty or of another form, or names a class
    twice.
    """
    path = expanded(path)
    reader = {".json": _from_json, ".csv": _from_csv}.get(path.suffix.lower(), _from_text)
    classes = [ListedClass(i and normal_name(i), normal_name(name), place) for i, name, place in reader(path)]
    if not classes:
        raise InputError(f"{path} names no class. Write one name on each line.")
    first: dict[str, str] = {}
    for entry in classes:
        if not entry.name:
            raise InputError(f"{entry.place} of {path} has no name. Fill it in or remove it.")
        key = entry.id or entry.name
        if (earlier := first.setdefault(key, entry.place)) != entry.place:
            raise InputError(f"{path} has the class {key!r} twice, {earlier} and {entry.place}. Remove one of them.")
    return classes


def load_class_space(path: str | Path, known: ClassSpace | None = None) -> ClassSpace:
    """The class space of a file of class names (``read_class_list``).

    A name without an id belongs to the class of ``known`` that has this id or name, apart from case; where there is
    none, the id is the name itself, with hyphens in place of slashes. Raises an InputError where ``known`` has classes
    that the file lacks.
    """
    entries = read_class_list(path)
    by_name: dict[str, str] = {}
    if known is not None:
        by_name = {name.casefold(): i for i, name in reversed(list(zip(known.ids, known.names, strict=True)))}
        by_name |= {i.casefold(): i for i in known.ids}
    ids = [e.id or by_name.get(e.name.casefold()) or re.sub(r"[/\\]", "-", e.name) for e in entries]
    classes = ClassSpace(tuple(ids), tuple(e.name.replace("_", " ") for e in entries))
    if known is not None and (lacking := sorted(set(known.keys) - set(classes.keys))):
        raise InputError(
            f"{path} lacks classes of the data: {listed(lacking)}. Give each a line with its id, a tab and its name."
        )
    return classes


def _from_text(path: Path) -> Iterator[tuple[str | None, str, str]]:
    for number, line in enumerate(_lines(path), 1):
        class_id, tab, name = line.partition("\t")
        if pair := _WNID_LINE.fullmatch(line.strip()):
            yield pair[1], pair[2], f"line {number}"
        elif tab:
            yield class_id, name, f"line {number}"
        elif line.strip():
            yield None, line, f"line {number}"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise InputError(f"the file of class names {path} does not exist. Check the path.") from error
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{path} is not a file of UTF-8 text ({error}). Name a file of class names.") from error


def _from_csv(path: Path) -> Iterator[tuple[str | None, str, str]]:
    column = next((name for name in _ID_COLUMNS if name in read_header(path)), None)
    for line, fields in read_rows(path, ("name",) if column is None else (column, "name")):
        yield fields[column] if column else None, fields["name"], f"line {line}"


def _from_json(path: Path) -> Iterator[tuple[str | None, str, str]]:
    stored = read_json(path)
    pairs: Iterable[tuple[Any, Any]]
    if isinstance(stored, dict):
        pairs = [value if _is_pair(value) else (key, value) for key, value in stored.items()]
    else:
        pairs = [(None, name) for name in stored] if isinstance(stored, list) else []
    for number, (class_id, name) in enumerate(pairs, 1):
        if not isinstance(name, str) or not isinstance(class_id, str | None):
            raise InputError(
                f"entry {number} of {path} is {name!r}; it must be a class name. "
                "Write a list of names, or a mapping of ids to names."
            )
        yield class_id, name, f"entry {number}"


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
