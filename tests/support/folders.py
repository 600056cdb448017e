"""What folders hold, and whether it stays the same."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path


def tree_contents(folder: Path) -> dict[str, str]:
    """Everything under a folder, hidden files too, with the bytes of files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def assert_unchanged(folder: Path) -> Iterator[None]:
    before = tree_contents(folder)
    yield
    assert tree_contents(folder) == before
