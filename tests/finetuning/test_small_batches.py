"""Batches that are too small for batch norm or for a contrastive loss are refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.recipes import two_convolutions, two_steps
from torch import nn

import shiftproof as sp
from shiftproof.pretraining.loss import contrastive_loss
from shiftproof.runs import stages
from shiftproof.training import engine
from shiftproof.training.engine import parts_of, process_share, require_images_for_batch_norm, smallest_part


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"batch_size": 8, "accumulate": 8},
            r"finetune\.batch_size is 8 and finetune\.accumulate is 8, so that some parts hold one image; .* at least "
            r"two in each\. Raise finetune\.batch_size to 16 or more, or lower finetune\.accumulate\.",
        ),
        ({"batch_size": 3, "accumulate": 2}, r"batch_size to 4 or more, or lower finetune\.accumulate"),
        ({"batch_size": 1}, r"finetune\.batch_size is 1, so that .* Raise finetune\.batch_size to 2 or more\.$"),
        ({"batch_size": 1, "recipe": "norms-and-biases"}, r"finetune\.batch_size is 1"),
        ({"batch_size": 1, "recipe": "lp-ft"}, r"finetune\.batch_size is 1"),
    ],
)
def test_batch_norm_with_one_image_is_refused(few: sp.ShiftSuite, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.finetune(two_convolutions(few.classes), few, two_steps(**settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1, "recipe": "head-only"},
        {"batch_size": 8, "accumulate": 8, "recipe": "lora", "lora_rank": 1},
        {"batch_size": 8, "accumulate": 4},
    ],
)
def test_frozen_statistics_and_two_images_are_enough(few: sp.ShiftSuite, settings: dict[str, Any]) -> None:
    tuned = sp.finetune(two_convolutions(few.classes), few, two_steps(**settings))
    assert len(tuned.training["history"]) == 1


@given(batch_size=st.integers(1, 40), accumulate=st.integers(1, 12), processes=st.integers(1, 5))
def test_the_smallest_part_is_that_of_all_processes(batch_size: int, accumulate: int, processes: int) -> None:
    if batch_size < processes:
        return
    sizes = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine, "process_count", lambda: processes)
        for index in range(processes):
            patched.setattr(engine, "process_index", lambda index=index: index)
            images = len(range(batch_size)[process_share(batch_size)])
            sizes += [part.stop - part.start for part in parts_of(images, accumulate)]
        assert smallest_part(batch_size, accumulate) == min(sizes)


def test_processes_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "process_count", lambda: 2)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    with pytest.raises(sp.InputError, match=r"batch_size is 2 and 2 processes share the batch, .* to 4 or more\.$"):
        require_images_for_batch_norm("pretrain", network, 2)
    require_images_for_batch_norm("pretrain", network, 4)
    require_images_for_batch_norm("pretrain", network.eval(), 2)
    require_images_for_batch_norm("pretrain", nn.Conv2d(3, 8, 3), 2)


def test_a_refused_fine_tuning_writes_nothing(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    finetune = {"batch_size": 8, "accumulate": 8}
    run_file = sp.RunFile.resolve({"suite": {"reference": splits}, "finetune": finetune, "device": "cpu"})
    monkeypatch.setattr(stages, "build_start", lambda _, suite: two_convolutions(suite.classes))
    with pytest.raises(sp.InputError, match=r"finetune\.accumulate is 8"):
        stages.run_finetune(run_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_contrastive_loss_of_one_pair_is_refused_wherever_it_is_asked_for() -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.batch_size is 1; .* at least 2.* another finetune\.recipe"):
        sp.FinetuneSettings(recipe="flyp", batch_size=1)
    with pytest.raises(sp.InputError, match=r"pretrain\.batch_size is 1; it must be at least 2"):
        sp.PretrainSettings(batch_size=1)
    for targets in (None, torch.ones(1, 1)):
        with pytest.raises(sp.InputError, match="the batch has 1 pair; .* at least 2"):
            contrastive_loss(torch.ones(1, 3), torch.ones(1, 3), torch.tensor(5.0), targets)
