"""The page on inputs holds the tables that are generated from the tests' cases."""

from __future__ import annotations

from support.inputs import PAGE, page_with, tables


def test_the_tables_of_the_page_are_up_to_date() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert page_with(content) == content, "run python tools/inputs.py"


def test_a_stale_table_is_noticed() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert all(table in content for table in tables().values())
    assert page_with(content.replace("| 8-bit grey |", "| grey |")) == content
