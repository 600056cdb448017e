"""``hf:NAME`` and ``hf:PATH``: image data sets of the Hugging Face hub, and parquet files on disk in the same layout.

``datasets`` downloads them and converts them once to a memory-mapped table, in which every picture has a place of its
own; reading one picture of a parquet file would decode a whole group of rows.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import xxhash

from shiftproof.data.formats.addresses import Address, parse_address
from shiftproof.data.formats.entries import Entry, Listing, NamedPicture
from shiftproof.data.formats.splits import choose_split
from shiftproof.data.labels import ClassSpace
from shiftproof.data.sources import Source, StoredPicture
from shiftproof.errors import InputError, listed, require_choice
from shiftproof.storage import expanded, require_no_pointer

HF_OPTIONS = ("split", "config", "revision", "image", "label", "group", "caption")
# The names that columns have in most data sets, the usual ones first.
_IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "webp")
_LABELS = ("label", "labels", "class", "target", "cls")
_CAPTIONS = ("caption", "captions", "text")
_LONGEST_CAUSE = 300


@dataclass(frozen=True)
class RowPicture(StoredPicture):
    """A picture in a row of a memory-mapped table."""

    table: str
    row: int
    content: Any = field(repr=False, compare=False)  # a column of bytes, or of structures with bytes

    @property
    def name(self) -> str:
        return str(self.row)

    @property
    def size(self) -> int:
        return len(self._bytes())

    @property
    def stamp(self) -> str:
        return xxhash.xxh3_128_hexdigest(self._bytes())  # the file that the table was made from is not known here

    def read(self) -> bytes:
        return bytes(self._bytes())

    def _bytes(self) -> memoryview:
        cell = self.content[self.row]
        return memoryview((cell["bytes"] if hasattr(cell, "keys") else cell).as_buffer())

    def __str__(self) -> str:
        return f"in row {self.row} of {self.table}"


@dataclass(frozen=True)
class Table:
    """The rows of one split: ``name`` is for messages, ``rows`` is the data set, and ``address`` may name columns."""

    name: str
    rows: Any
    address: Address

    def column(self, role: str, names: Sequence[str], suits: Callable[[Any], bool]) -> str:
        """The column that the address gives a role, or else the one that it can only be.

        Raises an InputError that lists the columns where none, or several, can be.
        """
        features = self.rows.features
        if role in self.address.options:
            return require_choice(f"column of {self.name}", self.address.options[role], features)
        suitable = [name for name, feature in features.items() if suits(feature)]
        usual = [name for name in names if name in suitable]
        if usual or len(suitable) == 1:
            return (usual or suitable)[0]
        which = f"several that may be the {role} ({listed(suitable)})" if suitable else f"no column for the {role}"
        raise InputError(
            f"{self.name} has {which}; its columns are {listed(features, 20)}. Name it: hf:{self.address.place},"
            f"{role}=COLUMN."
        )

    def values(self, column: str) -> list[Any]:
        """The entries of a column, row by row; raises an InputError for an empty one."""
        values: list[Any] = self.rows.data.column(column).to_pylist()
        for row, value in enumerate(values):
            if value is None:
                raise InputError(f"row {row} of {self.name} has no {column!r}. Fill it in, or remove the row.")
        return values

    def pictures(self) -> Iterator[Source]:
        """The picture of every row: its bytes where the table holds them, or else the file that it names."""
        column = self.rows.data.column(self.column("image", _IMAGES, _is_image))
        missing = _without_bytes(column)
        for row in range(len(self.rows)):
            yield self._file(column[row], row) if row in missing else RowPicture(self.name, row, column)

    def _file(self, cell: Any, row: int) -> Path:
        path = cell["path"].as_py() if hasattr(cell, "keys") and cell.is_valid else None
        if not path or "://" in path:
            raise InputError(f"row {row} of {self.name} has no picture but {path!r}. Download it, or remove the row.")
        place = expanded(self.address.place)
        return (place.parent if place.is_file() else place) / expanded(path)


def names_file(place: str) -> bool:
    """Whether a place is a path by its spelling alone; other names may be those of data sets on the hub.

    >>> names_file("photos/train.parquet"), names_file("./photos"), names_file("org/cars")
    (True, True, False)
    """
    return place.endswith(".parquet") or place.startswith(("/", ".", "~", "\\"))


def read_hf(address: str, split: str) -> Listing:
    """One entry for every row of a split; a sample's id is the number of its row, counted from 0.

    Classes are the names of the label column if it has them, and its values otherwise. Raises an InputError that names
    the data, and the row where there is one, for data that cannot be read, for columns that are missing or ambiguous,
    and for labels that are missing or out of range.
    """
    table = open_table(address, split)
    labels = table.column("label", _LABELS, _is_label)
    classes, class_ids = _classes(table, labels)
    groups: Sequence[str | None] = [None] * len(class_ids)
    if "group" in table.address.options or "group" in table.rows.features:
        groups = [str(value) for value in table.values(table.address.options.get("group", "group"))]
    rows = zip(table.pictures(), class_ids, groups, strict=True)
    entries = [Entry(picture, name, str(row), None, group) for row, (picture, name, group) in enumerate(rows)]
    return Listing(entries, classes)


def hf_pictures(address: str, split: str) -> Iterator[NamedPicture]:
    """The pictures of a split one by one, whether they have labels or not; errors are those of ``read_hf``."""
    for row, picture in enumerate(open_table(address, split).pictures()):
        yield NamedPicture(str(row), picture)


def hf_captions(address: str) -> Iterator[tuple[Source, list[str]]]:
    """The pictures of the training split, each with its captions: a text, or a list of texts."""
    table = open_table(address, "train")
    captions = table.values(table.column("caption", _CAPTIONS, _is_caption))
    for picture, texts in zip(table.pictures(), captions, strict=True):
        yield picture, [texts] if isinstance(texts, str) else list(texts)


def open_table(address: str, split: str) -> Table:
    """Opens a split of a data set of the hub, of a folder, or of a parquet file, which has one only.

    Raises an InputError for data that cannot be read or are not of pictures.
    """
    parsed = parse_address(address, HF_OPTIONS)
    path, name, datasets = expanded(parsed.place), f"hf:{parsed.place}", _datasets()
    if names_file(parsed.place) and not path.exists():
        raise InputError(f"{path} does not exist. Check the path after 'hf:'.")
    with _quiet(datasets), _explained(name, path):
        if path.is_file():
            require_no_pointer(path)
            rows = datasets.load_dataset("parquet", data_files=str(path), split="train")  # its name for a lone file
        else:
            source = str(path) if path.exists() else parsed.place
            chosen = _split(parsed, split, path, datasets, source)
            name = f"{name}, split {chosen}"
            rows = datasets.load_dataset(source, split=chosen, **_version(parsed))
    if not len(rows):
        raise InputError(f"{name} has no rows. Name another split.")
    return Table(name, rows, parsed)


def _version(address: Address) -> dict[str, str | None]:
    return {"name": address.options.get("config"), "revision": address.options.get("revision")}


def _split(address: Address, split: str, path: Path, datasets: ModuleType, source: str) -> str:
    if path.is_dir() and not (files := sorted(path.rglob("*.parquet"))):
        raise InputError(f"{path} contains no parquet file. For images in class folders, write folder:{path}.")
    for file in files if path.is_dir() else ():
        require_no_pointer(file)
    version = {"config_name": address.options.get("config"), "revision": address.options.get("revision")}
    splits = datasets.get_dataset_split_names(source, **version)
    # Files whose names say nothing of a split are called "train"; they are whatever they are wanted for.
    unnamed = path.is_dir() and not any("train" in file.relative_to(path).as_posix() for file in files)
    if unnamed and splits == ["train"] and "split" not in address.options:
        return "train"
    return choose_split(f"hf:{address.place}", splits, split, address.options.get("split"))


def _classes(table: Table, column: str) -> tuple[ClassSpace | None, list[str]]:
    """The classes that the label column lists, None if it lists none, and the class id of every row."""
    values = table.values(column)
    names = getattr(table.rows.features[column], "names", None)
    if names is None:
        return None, [str(value) for value in values]
    classes = ClassSpace.from_names(names)
    for row, label in enumerate(values):
        if not 0 <= label < len(classes):
            way_out = "Labels of -1 are withheld: name another split." if label == -1 else "Correct the row."
            rule = f"it must be from 0 to {len(classes) - 1}"
            raise InputError(f"row {row} of {table.name} has the {column} {label}; {rule}. {way_out}")
    return classes, [classes.ids[label] for label in values]


def _is_image(feature: Any) -> bool:
    if isinstance(feature, dict):
        return "bytes" in feature
    return type(feature).__name__ == "Image" or str(getattr(feature, "dtype", "")) in ("binary", "large_binary")


def _is_label(feature: Any) -> bool:
    dtype = str(getattr(feature, "dtype", ""))
    return type(feature).__name__ == "ClassLabel" or dtype == "string" or dtype.startswith(("int", "uint", "bool"))


def _is_caption(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else feature)
    return str(getattr(inner, "dtype", "")) in ("string", "large_string")


def _without_bytes(column: Any) -> frozenset[int]:
    """The rows whose picture is not in the table."""
    import pyarrow.compute as pc
    from pyarrow import types

    content = pc.struct_field(column, "bytes") if types.is_struct(column.type) else column
    return frozenset(pc.indices_nonzero(content.is_null()).to_pylist())


def _datasets() -> ModuleType:
    try:
        return importlib.import_module("datasets")
    except ModuleNotFoundError as error:
        raise InputError("hf: data need the package datasets. Install it: pip install 'shiftproof[hf]'.") from error


@contextlib.contextmanager
def _quiet(datasets: ModuleType) -> Iterator[None]:
    """Hides the progress bars of ``datasets``, which would break those of this program, and its log."""
    shown, level = not datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _explained(name: str, path: Path) -> Iterator[None]:
    """Turns an error of ``datasets``, pyarrow or the hub's client into an InputError with its actual cause."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # these libraries raise almost anything for files that they cannot read
        why = _cause(error)
        if file := _odd_file(path):
            why = f"{file}: {why}"
        way_out = "Restore the files." if path.exists() else "Check the name, the network, and `huggingface-cli login`."
        if "script" in why:
            way_out = f"Use its parquet files: {name},revision=refs/convert/parquet."
        raise InputError(f"{name} cannot be read ({why}). {way_out}") from error


def _cause(error: BaseException) -> str:
    """The reason that the libraries give, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= _LONGEST_CAUSE else f"{words[:_LONGEST_CAUSE]} ..."


def _odd_file(folder: Path) -> Path | None:
    """The first parquet file in a folder that pyarrow cannot read, or that has other columns than the one before it."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    columns = None
    for file in sorted(folder.rglob("*.parquet")):
        try:
            with ParquetFile(file) as opened:
                for _ in opened.iter_batches():
                    pass
                names = opened.schema_arrow.names
        except (ArrowException, OSError):
            return file
        if columns is not None and names != columns:
            return file
        columns = names
    return None
