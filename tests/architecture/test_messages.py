"""Messages of the library name arguments, in backticks: options exist on the command line only."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "shiftproof"
OPTION = re.compile(r"(?<![-\w])--(?=[a-z])|\s--$")


def options_in(source: str) -> list[str]:
    """The string literals of a module, parts of f-strings among them, that mention an option with dashes."""
    literals = (node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant))
    return [literal for literal in literals if isinstance(literal, str) and OPTION.search(literal)]


def test_the_library_mentions_no_option() -> None:
    mentions = {
        str(path.relative_to(PACKAGE)): options
        for path in sorted(PACKAGE.rglob("*.py"))
        if "cli" not in path.relative_to(PACKAGE).parts and (options := options_in(path.read_text(encoding="utf-8")))
    }
    assert mentions == {}


@pytest.mark.parametrize(
    ("source", "mentioned"),
    [
        ('raise ValueError("choose another --out")', True),
        ('raise ValueError(f"{out} exists; add --overwrite")', True),
        ('raise ValueError(f"add --{name}")', True),
        ('raise ValueError("choose another `out`")', False),
        ('print("a -- b")', False),
        ('LINE_STYLE = "--"', False),
    ],
)
def test_a_planted_option_is_noticed(source: str, mentioned: bool) -> None:
    assert bool(options_in(source)) == mentioned
