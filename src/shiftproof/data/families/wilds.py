"""iWildCam, FMoW and Camelyon17 of WILDS (arXiv 2012.07421), read from the tables that they come with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shiftproof.data.labels import ClassSpace
from shiftproof.data.paths import require_folder
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet, picture_set
from shiftproof.errors import InputError
from shiftproof.storage import Row, read_rows

PARTS = ("train", "id_val", "id_test", "val", "test")
CAMELYON_PARTS = ("train", "id_val", "val", "test")
OTHER = "Other"
_VAL_HOSPITAL, _TEST_HOSPITAL = "1", "2"
_FIRST_OOD_YEARS = {"val": 2013, "test": 2016}


def read_iwildcam(root: Path, part: str) -> ImageSet:
    """A part of iWildCam 2020, version 2.0: photographs of camera traps, scored by macro F1.

    "val" and "test" are other cameras than the rest; the images of one camera belong together in intervals.
    """
    folder = _folder(root, "iwildcam_v2.0", "metadata.csv")
    table = folder / "metadata.csv"
    rows = read_rows(table, ("split", "filename", "y", "location_remapped"))
    numbers = [_number(row, "y", table) for row in rows]
    classes = _species(folder / "categories.csv", 1 + max(numbers, default=0))
    chosen = [i for i, row in enumerate(rows) if row.fields["split"] == part]
    images = _pictures(
        f"iwildcam:{part}:{root}",
        classes,
        [rows[i].fields["filename"] for i in chosen],
        [numbers[i] for i in chosen],
        folder / "train",
    )
    locations = tuple(rows[i].fields["location_remapped"] for i in chosen)
    return replace(
        images, sources=locations, source_kind="location", protocol=Protocol("iwildcam", metrics=("macro F1",))
    )


def read_fmow(root: Path, part: str) -> ImageSet:
    """A part of FMoW, version 1.1: satellite images by region, scored by the accuracy on the worst of five regions.

    Images before 2013 are in distribution; "val" is 2013 to 2015 and "test" from 2016 on. The number of a row counts
    all rows of the table, also those of the sequestered images.
    """
    folder = _folder(root, "fmow_v1.1", "rgb_metadata.csv")
    table, countries = folder / "rgb_metadata.csv", folder / "country_code_mapping.csv"
    regions = {row.fields["alpha-3"]: row.fields["region"] for row in read_rows(countries, ("alpha-3", "region"))}
    rows = read_rows(table, ("split", "category", "country_code", "timestamp"), ("img_filename",))
    names = sorted({row.fields["category"] for row in rows})
    classes, label = ClassSpace.from_ids(names), {name: k for k, name in enumerate(names)}
    chosen = [i for i, row in enumerate(rows) if _fmow_part(row, table) == part]
    images = _pictures(
        f"fmow:{part}:{root}",
        classes,
        [f"rgb_img_{i}.png" for i in chosen],
        [label[rows[i].fields["category"]] for i in chosen],
        folder / "images",
    )
    return replace(
        images,
        groups=tuple(regions.get(rows[i].fields["country_code"], OTHER) for i in chosen),
        sources=tuple(_scene(rows[i], i) for i in chosen),
        source_kind="scene",
        protocol=Protocol("fmow", metrics=("worst region",)),
    )


def read_camelyon17(root: Path, part: str) -> ImageSet:
    """A part of Camelyon17, version 1.0: patches of lymph nodes with and without tumor, scored by accuracy.

    "val" and "test" are other hospitals than the rest; the patches of one slide belong together in intervals.
    """
    folder = _folder(root, "camelyon17_v1.0", "metadata.csv")
    table = folder / "metadata.csv"
    columns = ("patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split")
    chosen = [row for row in read_rows(table, columns) if _camelyon_part(row) == part]
    files = []
    for row in chosen:
        of = row.fields
        place = f"patient_{of['patient']}_node_{of['node']}"
        files.append(f"{place}/patch_{place}_x_{of['x_coord']}_y_{of['y_coord']}.png")
    labels = [_number(row, "tumor", table) for row in chosen]
    classes = ClassSpace.from_ids(["normal", "tumor"])
    images = _pictures(f"camelyon17:{part}:{root}", classes, files, labels, folder / "patches")
    return replace(images, sources=tuple(row.fields["slide"] for row in chosen), source_kind="slide")


def _folder(root: Path, name: str, table: str) -> Path:
    """``root/name`` or ``root``, whichever has the table."""
    require_folder(root, f"It must hold {name} of WILDS.")
    for folder in (root / name, root):
        if (folder / table).is_file():
            return folder
    raise InputError(f"{root} has no {name}/{table}. Name the folder that holds {name}, or that folder.")


def _pictures(name: str, classes: ClassSpace, files: Sequence[str], labels: Sequence[int], folder: Path) -> ImageSet:
    if not files:
        raise InputError(f"{name} has no row of this part. Check the table of the data set.")
    if outside := sorted({label for label in labels if not 0 <= label < len(classes)}):
        raise InputError(f"{name} has the label {outside[0]}; there are {len(classes)} classes, counted from 0.")
    return picture_set(name, classes, files, np.array(labels, dtype=np.int64), [folder / file for file in files])


def _species(categories: Path, count: int) -> ClassSpace:
    """The classes of iWildCam from the table ``y, name``; a name that occurs twice is told apart by its number."""
    rows = read_rows(categories, ("y", "name"))
    names: Mapping[int, str] = {_number(row, "y", categories): row.fields["name"] for row in rows}
    if lacking := [y for y in range(count) if y not in names]:
        raise InputError(f"{categories} has no name of the class {lacking[0]}, which occurs in metadata.csv.")
    ordered = [names[y] for y in range(count)]
    repeated = Counter(ordered)
    ids = tuple(f"{name}-{y}" if repeated[name] > 1 else name for y, name in enumerate(ordered))
    return ClassSpace(ids, tuple(ordered))


def _fmow_part(row: Row, table: Path) -> str | None:
    """The part that a row belongs to: by its split, and by its year in or out of distribution."""
    text = row.fields["timestamp"][:4]
    if not text.isdigit():
        raise InputError(
            f"line {row.line} of {table} has the timestamp {row.fields['timestamp']!r}; it must begin with a year."
        )
    year, split = int(text), row.fields["split"]
    if year < _FIRST_OOD_YEARS["val"]:
        return {"train": "train", "val": "id_val", "test": "id_test"}.get(split)
    period = "test" if year >= _FIRST_OOD_YEARS["test"] else "val"
    return period if split == period else None


def _camelyon_part(row: Row) -> str:
    hospital = row.fields["center"].removesuffix(".0")
    if hospital in (_VAL_HOSPITAL, _TEST_HOSPITAL):
        return "val" if hospital == _VAL_HOSPITAL else "test"
    return "train" if row.fields["split"].removesuffix(".0") == "0" else "id_val"


def _scene(row: Row, number: int) -> str:
    """The place that an image shows, of which there may be images of several dates; the image itself if unknown."""
    file = row.fields.get("img_filename")  # such as airport_12_3_rgb.jpg: a place, then the number of the image
    return f"{row.fields['split']}/{file.rsplit('_', 2)[0]}" if file else str(number)


def _number(row: Row, column: str, table: Path) -> int:
    text = row.fields[column].removesuffix(".0")
    if not text.isdigit():
        raise InputError(f"line {row.line} of {table} has the {column} {row.fields[column]!r}; it must be a number.")
    return int(text)
