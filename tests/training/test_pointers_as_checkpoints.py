"""A checkpoint of a training run whose files Git LFS did not download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.checkpoint_cases import POINTER

import shiftproof as sp
from shiftproof.training.checkpoints import TrainingState, load_checkpoint, save_checkpoint


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_a_pointer_is_no_damage_and_nothing_is_to_be_deleted(tmp_path: Path, file: str) -> None:
    step = save_checkpoint(tmp_path, TrainingState(3, {"model": {"w": torch.zeros(2)}}, {}))
    (step / file).write_text(POINTER, encoding="utf-8")
    with pytest.raises(sp.InputError, match=rf"{file} is a Git LFS pointer: .*Run `git lfs pull`") as caught:
        load_checkpoint(tmp_path)
    assert "Delete" not in str(caught.value)
