"""The tables of the changelog lead from every public name of version 0.1 to one that exists today."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import shiftproof as sp

CHANGELOG = (Path(__file__).parents[2] / "CHANGELOG.md").read_text(encoding="utf-8")
OLD_NAMES = (Path(__file__).parent / "public_names_0.1.txt").read_text(encoding="utf-8").split()
MOVES = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", CHANGELOG, re.MULTILINE))


def test_new_names_can_be_imported() -> None:
    assert len(MOVES) > 100
    for name in MOVES.values():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_public_name_of_version_0_1_is_still_there_or_listed() -> None:
    assert len(OLD_NAMES) == 169
    gone = [name for name in OLD_NAMES if not hasattr(sp, name) and f"shiftproof.{name}" not in MOVES]
    assert gone == []


def test_names_that_have_not_moved_are_not_listed() -> None:
    names = [name.removeprefix("shiftproof.") for name in MOVES]
    assert [name for name in names if "." not in name and hasattr(sp, name)] == []
