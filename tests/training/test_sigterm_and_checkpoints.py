"""SIGTERM during a training, and the checkpoints that it leaves."""

from __future__ import annotations

import dataclasses
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.classifiers import tensor_bytes
from support.killed_trainings import digests, log_of
from support.resumed_trainings import (
    SUITE,
    after_step,
    dropout_classifier,
    eight_steps,
    stopped_after,
    trained,
    unbroken,
)

import shiftproof as sp
from shiftproof.errors import TrainingInterruptedError
from shiftproof.finetuning import probe

# SIGTERM.


@pytest.fixture
def own_handler() -> Iterator[Callable[..., None]]:
    """A handler of SIGTERM that the caller has set."""

    def handler(*_: object) -> None:
        raise AssertionError("the caller's handler was called")

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_sigterm_writes_a_checkpoint_and_the_caller_s_handler_comes_back(
    tmp_path: Path, own_handler: Callable[..., None]
) -> None:
    whole = trained(ema_decay=0.5, checkpoint_every=100)
    with (
        after_step(3, lambda: signal.raise_signal(signal.SIGTERM)),
        pytest.raises(TrainingInterruptedError, match=rf"step 3 of 8\. .*`resume=True`: .* in {tmp_path}"),
    ):
        trained(tmp_path, ema_decay=0.5, checkpoint_every=100)
    assert signal.getsignal(signal.SIGTERM) is own_handler
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-00000003"]
    resumed = trained(tmp_path, ema_decay=0.5, checkpoint_every=100)
    assert tensor_bytes(resumed.state_dict()) == tensor_bytes(whole.state_dict())
    assert resumed.training == whole.training
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_sigterm_in_the_last_step_stops_what_would_follow(tmp_path: Path, own_handler: Callable[..., None]) -> None:
    with (
        after_step(8, lambda: signal.raise_signal(signal.SIGTERM)),
        pytest.raises(TrainingInterruptedError, match=r"step 8 of 8\. "),
    ):
        trained(tmp_path)
    assert tensor_bytes(trained(tmp_path).state_dict()) == unbroken()
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_without_checkpoints_sigterm_is_the_caller_s(own_handler: Callable[..., None]) -> None:
    with (
        after_step(3, lambda: signal.raise_signal(signal.SIGTERM)),
        pytest.raises(AssertionError, match="caller's handler"),
    ):
        trained()


def test_the_handler_comes_back_after_a_failure_too(tmp_path: Path, own_handler: Callable[..., None]) -> None:
    stopped_after(tmp_path, 3)
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_thread_that_cannot_take_signals_trains_too(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        tuned = pool.submit(trained, tmp_path).result()
    assert tensor_bytes(tuned.state_dict()) == unbroken()


# The checkpoints.


@pytest.mark.parametrize("saved", [1, 3])
def test_the_last_checkpoints_are_kept_and_what_a_kill_left_is_cleared(tmp_path: Path, saved: int) -> None:
    stopped_after(tmp_path, 4, checkpoints_kept=saved)
    assert [file.name for file in sorted(tmp_path.glob("step-*"))] == [f"step-0000000{i}" for i in range(4 - saved, 4)]
    (tmp_path / ".step-dead").mkdir()
    (tmp_path / ".step-dead" / ".model.half.safetensors").write_bytes(b"half")
    trained(tmp_path, checkpoints_kept=saved)
    expected = [f"step-0000000{i}" for i in range(9 - saved, 9)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*expected, "training.jsonl"]


def test_what_saves_memory_may_be_raised_where_it_was_too_little(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4)
    reached = trained(tmp_path, accumulate=2, checkpoint_every=3, checkpoints_kept=1)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 9))
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000008"]
    assert reached.training["settings"]["accumulate"] == 2


@pytest.mark.parametrize("change", ["labels", "images"])
def test_other_images_of_the_same_number_are_refused(tmp_path: Path, change: str) -> None:
    stopped_after(tmp_path, 4)
    train = SUITE.reference.train
    reported = (
        {"labels": np.roll(train.labels, 1)} if change == "labels" else {"ids": tuple(f"new-{i}" for i in train.ids)}
    )
    other = dataclasses.replace(
        SUITE, reference=dataclasses.replace(SUITE.reference, train=dataclasses.replace(train, **reported))
    )
    with pytest.raises(sp.InputError, match="are of another training; these differ: 'images'"):
        sp.finetune(dropout_classifier(), other, eight_steps(), checkpoints=tmp_path)


def test_a_probe_that_came_first_is_the_same_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PENALTIES", (1e-1, 1e-2))
    settings = {"recipe": "lp-ft", "shots": 3, "distillation": 0.5}
    stopped_after(tmp_path, 2, **settings)
    assert tensor_bytes(trained(tmp_path, **settings).state_dict()) == tensor_bytes(trained(**settings).state_dict())


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", "cut"),
        ("optimizer.safetensors", "gone"),
        ("average.safetensors", "empty"),
        ("average.safetensors", "gone"),
        ("state.json", "cut"),
        ("state.json", "gone"),
        ("state.json", "{}"),
        ("state.json", "[]"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_good(tmp_path: Path, file: str, damage: str) -> None:
    stopped_after(tmp_path, 6, ema_decay=0.5)
    damaged = tmp_path / "step-00000005"
    content = (damaged / file).read_bytes()
    if damage == "gone":
        (damaged / file).unlink()
    else:
        written = {"cut": content[: len(content) // 2], "empty": b""}.get(damage, damage.encode())
        (damaged / file).write_bytes(written)
    with pytest.raises(sp.InputError, match=r"step-00000005 is damaged(.|\n)*Delete it to resume from the one before"):
        trained(tmp_path, ema_decay=0.5)
    shutil.rmtree(damaged)
    assert tensor_bytes(trained(tmp_path, ema_decay=0.5).state_dict()) == unbroken(ema_decay=0.5)
    steps = [line["step"] for line in log_of(tmp_path)]
    assert steps == list(range(1, 9))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 2e-2}, ["lr"]),
        ({"seed": 1}, ["seed"]),
        ({"start": dropout_classifier(1)}, ["start"]),
        ({"mixing": "cutmix", "ema_decay": 0.5}, ["ema_decay", "mixing"]),
        ({"crop_scale": (0.5, 1.0)}, ["crop_scale"]),
        ({"recipe": "head-only"}, ["recipe"]),
        ({"shots": 5}, ["images", "shots"]),
    ],
)
def test_checkpoints_of_another_training_are_refused(tmp_path: Path, changes: dict[str, Any], named: list[str]) -> None:
    stopped_after(tmp_path, 3)
    before, lines = digests(tmp_path), log_of(tmp_path)
    message = re.escape(f"these differ: {', '.join(map(repr, named))}.")
    with pytest.raises(sp.InputError, match=rf"{tmp_path} are of another training; {message}.*`out`"):
        trained(tmp_path, **changes)
    assert (digests(tmp_path), log_of(tmp_path)) == (before, lines)
