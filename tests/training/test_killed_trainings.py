"""Trainings that are killed, stopped or out of memory resume from the last checkpoint and end with the same bits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import processes
from support.classifiers import tensor_bytes
from support.killed_trainings import CASES, DEATHS, digests, log_of

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the script, which has run."""
    work = tmp_path_factory.mktemp("died")
    run_script(work)
    return work


def run_script(work: Path) -> None:
    alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    private = {f"WANDB_{name}_DIR": str(work / "private") for name in ("CACHE", "CONFIG", "DATA")}
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    ended = processes.run("module", "support.killed_trainings", work, env={**os.environ, **alone, **private, **offline})
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (work / "said.txt").write_text(ended.stdout + ended.stderr, encoding="utf-8")


def result_in(folder: Path) -> tuple[dict[str, bytes], Any]:
    reported = json.loads((folder / "end.json").read_text(encoding="utf-8"))
    return tensor_bytes(load_file(folder / "end.safetensors")), reported


RANDOM_TOO = [
    (case, where) for case in CASES for where in ("planned", "anywhere") if where == "planned" or DEATHS[case][1]
]


@pytest.mark.parametrize(("case", "where"), RANDOM_TOO)
def test_a_training_that_was_killed_ends_with_the_same_bits(died: Path, case: str, where: str) -> None:
    ends = json.loads((died / case / "ends.json").read_text(encoding="utf-8"))
    messages = (died / "said.txt").read_text(encoding="utf-8")
    assert ends["whole"] == [["none", "the end"]], messages
    if where == "planned":
        expected = {"SIGTERM": "asked to stop", "memory": "failed", "none": "the end"}
        assert ends[where] == [[name, expected.get(name, "killed")] for name, _ in ends[where]], messages
    else:
        assert {end for _, end in ends[where]} == {"killed", "the end"}, messages
    assert result_in(died / case / where) == result_in(died / case / "whole")
    whole, broken = (died / case / run / "checkpoints" for run in ("whole", where))
    lines = log_of(whole)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert log_of(broken) == lines
    # What is left is what the unbroken one leaves, to the last byte.
    assert digests(broken).items() >= digests(whole).items()
    more = {file.name for file in broken.iterdir()} - {file.name for file in whole.iterdir()}
    # Of the time when memory was full, and of a death while older ones went, after the last step.
    assert {name for name in more if not name.startswith("step-")} <= {"last_good"}


def test_the_killed_trainings_had_state_to_lose(died: Path) -> None:
    _, reported = result_in(died / "adamw" / "whole")
    scores = [entry["validation"] for entry in reported["training"]["history"]]
    assert len(scores) < reported["training"]["settings"]["epochs"]
    assert max(scores[:-1]) > scores[-1]
    stored = {file.stem for file in (died / "adamw" / "whole" / "checkpoints").glob("step-*/*")}
    assert stored == {"average", "best", "model", "optimizer", "state"}


@pytest.mark.parametrize("case", CASES)
def test_one_that_has_ended_gives_its_result_again(died: Path, case: str) -> None:
    ends = json.loads((died / case / "ends.json").read_text(encoding="utf-8"))
    assert ends["over"] == [["none", "the end"], ["refused", "failed"], ["unchanged", "True"]]
    assert tensor_bytes(load_file(died / case / "first.safetensors")) == tensor_bytes(
        load_file(died / case / "planned/end.safetensors")
    )


@pytest.mark.parametrize("case", CASES)
def test_one_that_was_asked_to_stop_says_how_to_go_on(died: Path, case: str) -> None:
    messages = (died / case / "SIGTERM.txt").read_text(encoding="utf-8")
    assert "was interrupted after step 1 of " in messages
    assert "`resume=True`" in messages
    assert str(died / case / "planned" / "checkpoints") in messages


@pytest.mark.parametrize("case", CASES)
def test_other_settings_are_refused_by_name(died: Path, case: str) -> None:
    messages = (died / case / "refused.txt").read_text(encoding="utf-8")
    assert "'lr'" in messages
    assert str(died / case / "planned" / "checkpoints") in messages


@pytest.mark.parametrize("case", CASES)
def test_full_memory_names_what_to_lower(died: Path, case: str) -> None:
    messages = (died / case / "memory.txt").read_text(encoding="utf-8")
    section = "pretrain" if case.startswith("pretraining") else "finetune"
    assert "stopped at step 3: out of memory (CUDA out of memory.)" in messages
    assert f"{section}.batch_size" in messages
    assert f"{section}.gradient_checkpointing" in messages
    # A contrastive batch must stay whole: there the settings refuse what the message would advise.
    assert (f"{section}.accumulate" in messages) == (case not in ("flyp", "pretraining", "pretraining, channels last"))
    # And no lower rate makes room.
    assert f"{section}.lr" not in messages


def test_no_checkpoint_is_a_pickle(died: Path) -> None:
    files = [file for file in died.glob("*/*/checkpoints/**/*") if file.is_file()]
    assert len(files) > 50
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jsonl"}


def test_wandb_offline_is_told_of_every_step(died: Path) -> None:
    if not (died / "wandb" / "end.json").exists():
        pytest.skip("wandb takes more than 15 s here")
    (run,) = died.glob("wandb/wandb/offline-run-*/*.wandb")
    content = run.read_bytes()
    assert all(key in content for key in (b"loss", b"lr", b"images_per_second", b"shiftproof"))
