"""Networks with random weights see the training views of several seeds, where a suite has other views by seed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import shiftproof as sp
from shiftproof.runs.networks import _with_many_views


@pytest.fixture
def domains(tmp_path: Path) -> str:
    """Two domains of two classes with ten pictures each."""
    for domain in ("photo", "sketch"):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / domain / name).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (8, 8), (25 * i, 100 * k, 0)).save(tmp_path / domain / name / f"{i}.png")
    return f"domains:{tmp_path}/photo"


def many_views(name: str, suite: sp.ShiftSuite) -> sp.ShiftSuite:
    run = SimpleNamespace(suite=suite, run_file=SimpleNamespace(suite=name, seed=0))
    return _with_many_views(run)  # type: ignore[arg-type]


def test_a_suite_that_holds_out_other_images_by_seed_keeps_its_training_images(domains: str) -> None:
    suite = sp.load_suite(domains, seed=0)
    assert many_views(domains, suite) is suite


def test_the_emoji_have_other_views_of_the_same_classes_by_seed() -> None:
    suite = sp.load_suite("emoji-development-1", seed=0)
    joined = many_views("emoji-development-1", suite)
    assert len(joined.reference.train) == 8 * len(suite.reference.train)
    assert joined.reference.validation is suite.reference.validation
