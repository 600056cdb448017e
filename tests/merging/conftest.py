"""Fixtures for merges of files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.weights import SIZE, pieces_of


@pytest.fixture
def small_pieces() -> Iterator[None]:
    with pieces_of(SIZE):
        yield
