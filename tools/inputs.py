"""Writes the tables of docs/inputs.md from the cases of the tests (tests/support); --check only compares.

python tools/inputs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.inputs import PAGE, page_with


def main() -> int:
    present = PAGE.read_text(encoding="utf-8")
    current = page_with(present)
    if "--check" in sys.argv[1:]:
        return 0 if current == present else 1
    PAGE.write_text(current, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
