"""The lowest versions: every package has one, the page lists them, and pip can be held to them."""

from __future__ import annotations

import re

import pytest
from oldest import PAGE, by_extra, constraints, floors, page_with_table, project


def test_the_page_lists_the_lowest_versions() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert page_with_table(content) == content, "run python tools/oldest.py"
    described = set(re.findall(r"^\| `(\w+)` \|", content.split("what it is for")[1], re.MULTILINE))
    assert described == set(project()["optional-dependencies"])


def test_constraints_hold_every_package_to_its_lowest_version() -> None:
    lines = constraints(project()).splitlines()
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    required = set(project()["dependencies"]) | set(project()["optional-dependencies"]["hf"])
    assert required - {line.replace("==", ">=") for line in lines} == {"huggingface_hub>=0.34"}  # an extra needs more
    assert "huggingface_hub==1.5" in lines
    assert not any(line.startswith("pytest==") for line in lines)
    assert next(iter(by_extra(project()))) == ""  # what is always needed comes first


def test_a_requirement_without_a_lowest_version_is_noticed() -> None:
    assert floors(["numpy>=1.26", "own[extra]", "exact==1.2.post1"], "own") == {"numpy": "1.26", "exact": "1.2.post1"}
    with pytest.raises(ValueError, match="numpy has no lowest version"):
        floors(["numpy"], "own")
