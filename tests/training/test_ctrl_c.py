"""Ctrl-C during a training, and a checkpoint wherever a training stops between two steps."""

from __future__ import annotations

import dataclasses
import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.classifiers import weight_bytes
from support.resumed_trainings import SUITE, after_step, dropout_classifier, eight_steps, trained, unbroken

import shiftproof as sp
from shiftproof.data.batches import evaluation_batches
from shiftproof.errors import TrainingInterruptedError
from shiftproof.evaluation import inference
from shiftproof.training.checkpoints import noticing_stop_signals


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture
def previous_handler() -> Iterator[Callable[..., None]]:
    """A handler of SIGINT that the caller has set."""

    def handler(*_: object) -> None:
        raise AssertionError("the caller's handler was called")

    before = signal.signal(signal.SIGINT, handler)
    yield handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_writes_a_checkpoint_and_the_training_continues_from_it(
    tmp_path: Path, previous_handler: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        after_step(3, press),
        pytest.raises(TrainingInterruptedError, match=rf"step 3 of 8\. .*`resume=True`: .* in {tmp_path}") as stopped,
    ):
        trained(tmp_path, checkpoint_every=100)
    assert stopped.value.signal_number == signal.SIGINT
    assert "press Ctrl-C again to stop at once" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is previous_handler
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    assert weight_bytes(trained(tmp_path, checkpoint_every=100)) == unbroken(checkpoint_every=100)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, previous_handler: Callable[..., None]) -> None:
    def press_twice() -> None:
        press()
        press()

    with after_step(3, press_twice), pytest.raises(KeyboardInterrupt):
        trained(tmp_path, checkpoint_every=100)
    assert not list(tmp_path.glob("step-*"))
    assert signal.getsignal(signal.SIGINT) is previous_handler


def test_ctrl_c_after_sigterm_is_not_the_second_one(tmp_path: Path) -> None:
    def stop() -> None:
        signal.raise_signal(signal.SIGTERM)
        press()

    with after_step(3, stop), pytest.raises(TrainingInterruptedError) as stopped:
        trained(tmp_path, checkpoint_every=100)
    assert stopped.value.signal_number == signal.SIGTERM
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]


def test_ctrl_c_in_the_last_step_stops_what_would_follow_the_training(tmp_path: Path) -> None:
    with after_step(8, press), pytest.raises(TrainingInterruptedError, match=r"step 8 of 8\. .*`resume=True`"):
        trained(tmp_path)
    assert weight_bytes(trained(tmp_path)) == unbroken()


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_ctrl_c_does_not_wait_for_the_end_of_a_validation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    """The validation that was stopped is made up for, with the same bits and the same log as without a stop."""
    settings: dict[str, Any] = {"early_stopping": 4, "ema_decay": 0.5}
    whole = trained(tmp_path / "whole", **settings)
    batches = 0

    def pressed(images: Any, *arguments: Any) -> Iterator[Any]:
        nonlocal batches
        for batch in evaluation_batches(images, *arguments):
            batches += 1
            if batches == epoch:
                press()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(inference, "evaluation_batches", pressed)
        with pytest.raises(TrainingInterruptedError, match=rf"step {2 * epoch} of 8\. .*`resume=True`"):
            trained(tmp_path / "stopped", **settings)
    lines = (tmp_path / "stopped/training.jsonl").read_text().splitlines()
    assert len(lines) == 2 * epoch - 1
    resumed = trained(tmp_path / "stopped", **settings)
    assert weight_bytes(resumed) == weight_bytes(whole)
    assert resumed.training == whole.training
    lines_of = {name: (tmp_path / name / "training.jsonl").read_text().splitlines() for name in ("whole", "stopped")}
    logs = [[{**json.loads(line), "images_per_second": 0} for line in lines] for lines in lines_of.values()]
    assert logs[0] == logs[1]


def test_a_signal_that_nobody_has_acted_on_is_not_lost(previous_handler: Callable[..., None]) -> None:
    with pytest.raises(AssertionError, match="caller's handler"), noticing_stop_signals():
        press()
    assert signal.getsignal(signal.SIGINT) is previous_handler


def test_without_checkpoints_ctrl_c_is_the_caller_s(previous_handler: Callable[..., None]) -> None:
    with after_step(3, press), pytest.raises(AssertionError, match="caller's handler"):
        trained()


def test_a_job_in_the_background_ignores_ctrl_c(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with after_step(3, press):
            tuned = trained(tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert weight_bytes(tuned) == unbroken()


def test_signals_are_not_noticed_in_other_threads() -> None:
    result: list[int] = []

    def watch() -> None:
        with noticing_stop_signals() as stop_signal:
            result.append(stop_signal())

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert result == [0]


def test_a_training_shorter_than_the_distance_of_checkpoints_leaves_one(tmp_path: Path) -> None:
    trained(tmp_path, checkpoint_every=100)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000008"]


def test_an_image_that_breaks_during_a_training_costs_no_step(tmp_path: Path) -> None:
    train = SUITE.reference.train
    reads = 0

    def read(i: int) -> NDArray[np.uint8]:
        nonlocal reads
        reads += 1
        if reads > 3 * eight_steps().batch_size:
            raise sp.InputError("the image lemon.png cannot be decoded. Fix or remove it.")
        return train.read(i)

    broken = dataclasses.replace(train, read=read)
    suite = dataclasses.replace(SUITE, reference=dataclasses.replace(SUITE.reference, train=broken))
    settings = eight_steps(checkpoint_every=100)
    with pytest.raises(sp.InputError, match=r"lemon\.png cannot be decoded"):
        sp.finetune(dropout_classifier(), suite, settings, checkpoints=tmp_path)
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-00000003"]
    assert weight_bytes(trained(tmp_path, checkpoint_every=100)) == unbroken(checkpoint_every=100)
