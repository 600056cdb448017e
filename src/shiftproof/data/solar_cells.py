"""The photographs of the suite ``solar-cells``: electroluminescence images of solar cells, from ``elpv-dataset``.

The package contains 2,624 cells of 44 modules as grey pictures of 300 x 300 pixels (Buerhop-Lutz et al. 2018). The
reference consists of the monocrystalline cells, and the polycrystalline ones are its natural shift: their crystal
grains look like defects to a model that has not seen any.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from shiftproof.data.labels import ClassSpace
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet, picture_set
from shiftproof.errors import InputError, require_choice
from shiftproof.seeding import child_generator
from shiftproof.storage import packaged_path

SOLAR_CELLS = "solar-cells"
CELL_PARTS = ("train", "validation", "test", "polycrystalline")
CELL_CLASSES = ClassSpace(("defective", "functional"), ("defective solar cell", "functional solar cell"))
CELL_ATTRIBUTION = (
    "Electroluminescence photographs of solar cells from https://github.com/zae-bayern/elpv-dataset (package "
    "elpv-dataset), by C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus and "
    "C. J. Brabec: A Benchmark for Visual Identification of Defective Solar Cells in Electroluminescence Imagery, EU "
    "PVSEC 2018. License: CC BY-NC-SA 4.0 (https://creativecommons.org/licenses/by-nc-sa/4.0/)."
)
# The published defect probability is in thirds, and encodes an expert's verdict with its certainty.
_VERDICTS = ("functional-certain", "functional-uncertain", "defective-uncertain", "defective-certain")
_TYPES = {"mono": "monocrystalline", "poly": "polycrystalline"}
_HELD_OUT_SHARE = 0.2  # of the monocrystalline cells, for validation and again for testing
_SPLIT_SEED = 20260


@dataclass(frozen=True)
class Cell:
    """One photograph: its file, the type of its module, and the verdict, 0 to 3, from functional to defective."""

    file: Path
    type: str
    verdict: int

    @property
    def label(self) -> int:
        """The position of its class in ``CELL_CLASSES``: a cell is defective from a probability of 1/2 on."""
        return CELL_CLASSES.ids.index(self.group.partition("-")[0])

    @property
    def group(self) -> str:
        """The verdict in words, such as "defective-uncertain"."""
        return _VERDICTS[self.verdict]


def cell_set(part: str) -> ImageSet:
    """The cells of one part: train, validation or test of the reference, or polycrystalline.

    The monocrystalline cells are split 60 : 20 : 20 within every verdict, and so within every class, by a fixed seed.
    Which cells come from one module is not published, so cells of one module may be on both sides of the split. Groups
    are the verdicts. Raises an InputError for an unknown part, or if the package is not installed or damaged.

    >>> cell_set("polycrystalline")
    ImageSet('polycrystalline', 1,550 images of 2 classes, with groups, sources)
    """
    require_choice("part of the solar cells", part, CELL_PARTS)
    cells = read_cells()
    if part == "polycrystalline":
        return _image_set(part, [cell for cell in cells if cell.type == part])
    return _image_set(part, _split([cell for cell in cells if cell.type == "monocrystalline"], part))


def read_cells() -> tuple[Cell, ...]:
    """All cells in the order of the package's table, whose columns are path, defect probability and module type.

    Raises an InputError if the package is not installed, or if its table or a photograph is not as published.
    """
    try:
        table = packaged_path("elpv_dataset", "data", "labels.csv")
    except ImportError as error:
        raise InputError(
            "the suite 'solar-cells' needs the photographs in elpv-dataset, which is not installed. "
            "Install it with: pip install 'shiftproof[solar]'"
        ) from error
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter=" ", skipinitialspace=True))
    return tuple(_cell(row, table, line) for line, row in enumerate(rows, 1) if row)


def _cell(row: Sequence[str], table: Path, line: int) -> Cell:
    try:
        path, probability, module_type = row
        verdict = 3 * float(probability)
        if abs(verdict - round(verdict)) > 0.01:
            raise ValueError(f"the probability {probability} is not in thirds")
        return Cell(table.parent / path, _TYPES[module_type], range(len(_VERDICTS))[round(verdict)])
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"line {line} of {table} is {' '.join(row)!r}; it must be a path, a defect probability in thirds, and mono "
            "or poly. Install the pinned version: pip install 'shiftproof[solar]'"
        ) from error


def _split(cells: Sequence[Cell], part: str) -> list[Cell]:
    """The cells of one split, in their order; every verdict is split on its own."""
    chosen: list[int] = []
    for verdict, group in enumerate(_VERDICTS):
        members = np.flatnonzero([cell.verdict == verdict for cell in cells])
        generator = child_generator(_SPLIT_SEED, SOLAR_CELLS, group)
        members = members[torch.randperm(len(members), generator=generator).numpy()]
        held_out = round(_HELD_OUT_SHARE * len(members))
        places = {
            "test": slice(held_out),
            "validation": slice(held_out, 2 * held_out),
            "train": slice(2 * held_out, None),
        }
        chosen += members[places[part]].tolist()
    return [cells[i] for i in sorted(chosen)]


def _image_set(name: str, cells: Sequence[Cell]) -> ImageSet:
    ids = tuple(cell.file.name for cell in cells)
    labels = np.array([cell.label for cell in cells], dtype=np.int64)
    images = picture_set(name, CELL_CLASSES, ids, labels, [cell.file for cell in cells])
    # A verdict is a stratum, not a cluster: with the ids as sources, intervals resample single cells.
    protocol = Protocol(metrics=("macro accuracy",))
    return replace(images, groups=tuple(cell.group for cell in cells), sources=ids, protocol=protocol)
