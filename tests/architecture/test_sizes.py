"""Files, functions and classes stay small enough to be read at once."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "shiftproof"
LONGEST_FILE, LONGEST_TEST_FILE, LONGEST_FUNCTION, LONGEST_CLASS = 400, 700, 60, 150


def too_long(path: Path, longest_file: int) -> Iterator[str]:
    """What is longer than it may be in a file."""
    text = path.read_text(encoding="utf-8")
    if (lines := len(text.splitlines())) > longest_file:
        yield f"{path.name} has {lines} lines; split it by subject (at most {longest_file})"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            longest = LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION
            if lines > longest:
                yield f"{path.name}: {node.name} has {lines} lines (at most {longest})"


def test_the_source_stays_within_the_limits() -> None:
    assert [message for path in sorted(PACKAGE.rglob("*.py")) for message in too_long(path, LONGEST_FILE)] == []


def test_test_files_stay_within_the_limit() -> None:
    files = sorted((PACKAGE.parents[1] / "tests").rglob("*.py"))
    assert [path.name for path in files if len(path.read_text(encoding="utf-8").splitlines()) > LONGEST_TEST_FILE] == []


def test_what_is_too_long_is_named(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text("def lengthy():\n" + "    pass\n" * LONGEST_FUNCTION, encoding="utf-8")
    assert list(too_long(path, 10)) == [
        "module.py has 61 lines; split it by subject (at most 10)",
        "module.py: lengthy has 61 lines (at most 60)",
    ]
