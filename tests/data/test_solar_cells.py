"""The suite of photographed solar cells."""

from __future__ import annotations

import importlib.resources
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import shiftproof as sp
from shiftproof.data import solar_cells
from shiftproof.data.solar_cells import CELL_PARTS, cell_set, read_cells


@pytest.fixture(scope="module")
def suite() -> sp.ShiftSuite:
    return sp.load_suite("solar-cells")


def test_the_suite_has_all_photographs_once(suite: sp.ShiftSuite) -> None:
    reference = suite.reference
    parts = (reference.train, reference.validation, reference.test, suite.shifts[0].data)
    assert [len(part) for part in parts] == [644, 215, 215, 1550]
    ids = [sample for part in parts for sample in part.ids]
    assert len(ids) == len(set(ids)) == 2624
    assert suite.classes.ids == ("defective", "functional")
    assert [(shift.name, shift.kind) for shift in suite.shifts] == [
        ("polycrystalline", "natural"),
        *((f"{name}-3", "synthetic") for name in ("noise", "blur", "contrast", "pixelation", "jpeg")),
    ]


def test_classes_and_groups_are_those_of_the_published_table(suite: sp.ShiftSuite) -> None:
    # The counts by defect probability (0, 1/3, 2/3, 1) and module type of labels.csv.
    verdicts = ("functional-certain", "functional-uncertain", "defective-uncertain", "defective-certain")
    reference = suite.reference
    mono = Counter(reference.train.groups) + Counter(reference.validation.groups) + Counter(reference.test.groups)
    assert mono == dict(zip(verdicts, (588, 117, 56, 313), strict=True))
    shift = suite.shifts[0].data
    assert Counter(shift.groups) == dict(zip(verdicts, (920, 178, 50, 402), strict=True))
    for images in (reference.train, shift):
        assert images.groups is not None
        named = [suite.classes.ids[label] for label in images.labels]
        assert named == [group.partition("-")[0] for group in images.groups]


def test_the_split_is_stratified_and_does_not_depend_on_the_seed(suite: sp.ShiftSuite) -> None:
    reference, again = suite.reference, sp.load_suite("solar-cells", seed=5).reference
    for split in ("train", "validation", "test"):
        assert getattr(again, split).ids == getattr(reference, split).ids
        assert abs(getattr(reference, split).labels.mean() - 705 / 1074) < 0.005
    # These are the first cells of the test split, wherever and whenever it is drawn.
    assert reference.test.ids[:3] == FIRST


FIRST = ("cell0002.png", "cell0007.png", "cell0014.png")


def test_intervals_resample_cells_and_not_verdicts(suite: sp.ShiftSuite) -> None:
    assert {images.clusters.kind for images in suite.test_sets.values()} == {"sample"}
    assert suite.limited(9).reference.test.clusters.kind == "sample"


def test_a_photograph_is_read_as_rgb_and_a_corruption_changes_it(suite: sp.ShiftSuite) -> None:
    pixels, noisy = suite.reference.test.read(0), suite.test_sets["noise-3"].read(0)
    assert pixels.shape == noisy.shape == (300, 300, 3)
    assert (pixels == pixels[..., :1]).all() and not np.array_equal(pixels, noisy)
    assert suite.conversions() == {}


def test_its_data_name_gives_its_splits() -> None:
    assert sp.load_data("solar-cells", split="train").ids == cell_set("train").ids
    assert sp.load_data("solar-cells").ids == cell_set("test").ids


def test_without_its_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(package: str) -> None:
        raise ModuleNotFoundError(f"No module named {package!r}")

    monkeypatch.setattr(importlib.resources, "files", missing)
    with pytest.raises(sp.InputError, match=r"elpv-dataset, which is not installed.*pip install 'shiftproof\[solar\]'"):
        sp.load_suite("solar-cells")


@pytest.mark.parametrize("row", ["images/a.png 0.5 mono", "images/a.png 2.0 mono", "images/a.png 1.0 thin", "a.png"])
def test_a_table_of_another_form_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"images/b.png   1.0   mono\n{row}\n")
    monkeypatch.setattr(solar_cells, "packaged_path", lambda *parts: table)
    with pytest.raises(sp.InputError, match=r"line 2 of .*labels.csv.*Install the pinned version"):
        read_cells()


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(sp.InputError, match="unknown part of the solar cells 'tests'. Did you mean 'test'"):
        cell_set("tests")
    assert "test" in CELL_PARTS


def test_an_export_carries_the_attribution(suite: sp.ShiftSuite, tmp_path: Path) -> None:
    few = suite.limited(2)
    reference = few.reference
    tiny = sp.data.Reference(reference.name, reference.test, reference.validation, reference.test)
    sp.data.export_suite(sp.ShiftSuite(few.name, few.classes, tiny, few.shifts[:1]), tmp_path / "out")
    assert "CC BY-NC-SA 4.0" in (tmp_path / "out" / "ATTRIBUTION.txt").read_text(encoding="utf-8")
