"""Precision, the state of accelerate, and trackers."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support.classifiers import tensor_bytes
from support.killed_trainings import log_of
from support.resumed_trainings import Mouth, raises, stopped_after, trained, unbroken

import shiftproof as sp
from shiftproof.errors import TrainingError
from shiftproof.training.log import trackers_from

# Precision, and accelerate's state.


def test_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="float16 needs a GPU. Use bfloat16 or float32"):
        trained(tmp_path, precision="float16")
    assert not list(tmp_path.iterdir())


def accelerate_state() -> list[Any]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    of_torch = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_autocast_enabled("cpu"))
    shared = [dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)]
    return [*shared, dict(os.environ), of_torch, signal.getsignal(signal.SIGTERM)]


def test_one_process_trains_in_one_precision_after_the_other() -> None:
    before = accelerate_state()
    first, half, again, other = (trained(precision=p) for p in ("float32", "bfloat16", "float32", "bfloat16"))
    assert accelerate_state() == before
    assert tensor_bytes(first.state_dict()) == tensor_bytes(again.state_dict())
    assert tensor_bytes(half.state_dict()) == tensor_bytes(other.state_dict())
    assert tensor_bytes(first.state_dict()) != tensor_bytes(half.state_dict())
    assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_accelerate_is_left_as_the_caller_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    plain = trained()
    try:
        own = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=4)
        before = accelerate_state()
        tuned = trained(tmp_path / "whole")
        stopped_after(tmp_path / "stopped", 3)
        monkeypatch.setattr(Mouth, "bite", raises(MemoryError()))
        with pytest.raises(TrainingError):
            trained(tmp_path / "failed")
        with pytest.raises(sp.InputError):
            trained(precision="float16")
        assert accelerate_state() == before
        assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
        assert own.state.distributed_type is not None
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
    assert tensor_bytes(tuned.state_dict()) == tensor_bytes(plain.state_dict())


@pytest.mark.parametrize(
    ("name", "value"), [("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_MIXED_PRECISION", "bf16")]
)
def test_accelerate_s_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    plain = trained()
    monkeypatch.setenv(name, value)
    tuned = trained()
    assert tensor_bytes(tuned.state_dict()) == tensor_bytes(plain.state_dict())
    assert tuned.training == plain.training


# Trackers.


def test_tensorboard_is_told_of_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_after(tmp_path, 5, trackers=("tensorboard",), checkpoint_every=3)
    tuned = trained(tmp_path, trackers=("tensorboard",), checkpoint_every=3)
    assert tensor_bytes(tuned.state_dict()) == unbroken(checkpoint_every=3)
    reported: dict[str, dict[int, float]] = {}
    for file in sorted(tmp_path.glob("tensorboard/**/events.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            reported.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for name in ("loss", "lr", "validation"):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert reported[name] == pytest.approx(expected, rel=1e-6)
    assert set(reported["images_per_second"]) == set(range(1, 9))


def test_trackers_are_asked_for_by_name() -> None:
    assert trackers_from("tensorboard, wandb") == ("tensorboard", "wandb")
    assert trackers_from("") == trackers_from("none") == ()
    with pytest.raises(sp.InputError, match="unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        trackers_from("wandb,tensorbord")


def test_a_tracker_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(sp.InputError, match=r"'wandb' is not installed. .*shiftproof\[track\]"):
        trackers_from("wandb")


def test_a_training_without_a_folder_has_none_for_trackers_either() -> None:
    with pytest.raises(sp.InputError, match="the tracker 'tensorboard' needs a folder"):
        trained(trackers=("tensorboard",))


def test_a_training_refuses_a_tracker_that_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(sp.InputError, match="unknown tracker 'tensorbord'"):
        trained(tmp_path, trackers=("tensorbord",))
