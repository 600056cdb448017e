"""A run counts the pictures that it had to convert, also where it is resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import shiftproof as sp
from shiftproof.data import decoding

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*had to be converted:UserWarning")]


@pytest.fixture
def drawings(folders: Path, tmp_path: Path) -> Path:
    """The fruit, with one sketch in 16-bit grey."""
    copy = Path(shutil.copytree(folders, tmp_path / "fruit"))
    grey = np.full((32, 40), 40_000, dtype=np.uint16)
    Image.fromarray(grey).save(next(iter(sorted((copy / "sketch" / "pear").iterdir()))))
    return copy


def test_the_summary_counts_converted_pictures(drawings: Path, tmp_path: Path) -> None:
    reference = {split: f"folder:{drawings}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": reference, "shifts": {"sketch": {"data": f"folder:{drawings}/sketch"}}}
    training = {"epochs": 1, "batch_size": 9, "lr": 1e-3, "recipe": "head-only"}
    run_file = sp.RunFile.resolve({"model": "tiny", "suite": suite, "finetune": training, "alphas": 2, "device": "cpu"})
    expected = {f"folder:{drawings}/sketch": {decoding.SIXTEEN_BITS: 1}}
    record = sp.run_pipeline(run_file, tmp_path / "out")
    assert record.conversions == expected
    assert json.loads((tmp_path / "out/summary.json").read_text(encoding="utf-8"))["conversions"] == expected
    # A resumed run reads none of the pictures again.
    assert sp.run_pipeline(run_file, tmp_path / "out", resume=True).conversions == expected
