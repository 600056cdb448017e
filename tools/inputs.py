"""Writes the tables of docs/inputs.md and docs/exporting.md from the cases of the tests (tests/support).

With --check, it only compares.

python tools/inputs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support import export_table, inputs

PAGES = {inputs.PAGE: inputs.page_with, export_table.PAGE: export_table.page_with_table}


def main() -> int:
    stale = False
    for page, page_with in PAGES.items():
        present = page.read_text(encoding="utf-8")
        current = page_with(present)
        stale |= current != present
        if "--check" not in sys.argv[1:]:
            page.write_text(current, encoding="utf-8")
    return int(stale and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
