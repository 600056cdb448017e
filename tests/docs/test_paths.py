"""The paths and functions that CONTRIBUTING.md and the layout in docs/decisions.md name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "shiftproof"
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
LAYOUT = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").split("## Layout\n")[1].split("\n## ")[0]
PATH = re.compile(r"`((?:python )?[\w./-]+(?:/|\.(?:py|md|yaml|toml)))`")
FUNCTIONS = re.compile(r"((?:`\w+`(?: and |, )?)+) in `([\w/]+\.py)`")


def paths_in(text: str) -> list[str]:
    """Every folder and file that a text names in backticks."""
    return [path.removeprefix("python ") for path in PATH.findall(text)]


@pytest.mark.parametrize("text", [CONTRIBUTING, LAYOUT], ids=["contributing", "layout"])
def test_every_path_exists(text: str) -> None:
    paths = paths_in(text)
    assert len(paths) > 10
    missing = [path for path in paths if not (ROOT / path).exists() and not (PACKAGE / path).exists()]
    assert missing == []


def test_every_function_stands_in_the_module_that_is_named() -> None:
    mentions = FUNCTIONS.findall(CONTRIBUTING)
    assert len(mentions) > 8
    for functions, module in mentions:
        source = (PACKAGE / module).read_text(encoding="utf-8")
        for function in re.findall(r"\w+", functions.replace(" and ", " ")):
            assert re.search(rf"^(?:def|class) {function}\b", source, re.MULTILINE), f"{function} in {module}"


def test_the_layout_describes_every_package() -> None:
    packages = {f"{init.parent.relative_to(PACKAGE)}/" for init in PACKAGE.rglob("*/__init__.py")}
    assert packages <= set(paths_in(LAYOUT))
    modules = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    assert modules <= set(re.findall(r"`(\w+)`", LAYOUT))


@pytest.mark.parametrize(
    ("topic", "path"),
    [
        ("choice of alpha", "ensembling/"),
        ("claiming a run directory", "runs/directory.py"),
        ("data formats", "data/formats/"),
        ("label weight", "mixing/methods.py"),
    ],
)
def test_a_newcomer_is_sent_to_the_right_place(topic: str, path: str) -> None:
    (row,) = [line for line in CONTRIBUTING.splitlines() if line.startswith("|") and topic in line]
    assert path in row
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
