"""Checkpoints to resume a training from: whole or absent, safetensors and JSON, and a polite end on SIGTERM."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from shiftproof.errors import InputError, TrainingError, listed
from shiftproof.storage import read_json, sync_directory, write_json
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

_STEP = "step-"


@dataclass(frozen=True)
class TrainingState:
    """What a training needs to go on after ``step`` steps: tensors by part (model, optimizer), the rest JSON."""

    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, reached: TrainingState, kept: int = 1) -> Path:
    """Writes ``folder/step-00000500`` whole or not at all, and then deletes all but the last ``kept``.

    Raises a TrainingError where the disk is full; the older checkpoints are still there then.
    """
    target = folder / f"{_STEP}{reached.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete(folder.glob(f".{_STEP}*"))  # what an interruption left
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{_STEP}"))
        for part, tensors in reached.parts.items():
            write_state_dict(tensors, temporary / f"{part}.safetensors")
        write_json(temporary / "state.json", {"step": reached.step, "parts": sorted(reached.parts), **reached.state})
        _delete([target] if target.exists() else [])
        temporary.rename(target)
    except (OSError, SafetensorError) as error:
        _delete(folder.glob(f".{_STEP}*"))
        raise _unwritten(error, target) from error
    sync_directory(folder)
    _delete(_checkpoints(folder)[:-kept])
    return target


def load_checkpoint(folder: Path) -> TrainingState | None:
    """The last checkpoint in a folder, or None where there is none; an InputError names a damaged file."""
    found = _checkpoints(folder)
    if not found:
        return None
    try:
        state = dict(read_json(found[-1] / "state.json"))
        parts = {part: read_state_dict(found[-1] / f"{part}.safetensors") for part in state.pop("parts")}
        step = int(state.pop("step"))
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"the checkpoint {found[-1]} is damaged ({error}). Delete that directory to go on from the one before."
        ) from error
    return TrainingState(step, parts, state)


def require_same_training(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], folder: Path, earlier: Mapping[str, Any] | None = None
) -> None:
    """Raises an InputError that names what differs where a checkpoint is of another training than the requested one.

    ``earlier`` holds the requested values that an earlier version of this package recorded in another form.
    """
    accepted = [requested, {**requested, **(earlier or {})}]
    if differing := sorted(
        key for key in {*recorded, *requested} if all(recorded.get(key) != values.get(key) for values in accepted)
    ):
        raise InputError(
            f"the checkpoints in {folder} are of another training; these differ: {listed(differing)}. "
            "Choose another `out`, or delete that folder."
        )


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimiser's state, named ``PARAMETER.ENTRY``; its groups are made anew from the settings."""
    moments = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": value for i, entry in moments.items() for key, value in entry.items() if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts what ``optimizer_tensors`` gave into an optimiser of the same parameters."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, state in optimizer.state.items():  # a fused optimiser reads memory, not strides
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                state[key] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@contextlib.contextmanager
def noticing_sigterm(active: bool = True) -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM has come; inside the block that signal does nothing else.

    Only the main thread can take signals, so that elsewhere SIGTERM keeps its effect.
    """
    came = threading.Event()
    if not active or threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def notice(_: int, __: FrameType | None) -> None:
        came.set()

    before = signal.signal(signal.SIGTERM, notice)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STEP}*"))


def _delete(paths: Any) -> None:
    for path in list(paths):
        shutil.rmtree(path, ignore_errors=True)


def _unwritten(error: Exception, target: Path) -> TrainingError:
    full = getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error)
    why = "the disk is full" if full else str(error)
    before = _checkpoints(target.parent)
    kept = f"The last checkpoint is {before[-1]}." if before else "There is no checkpoint yet."
    return TrainingError(
        f"the checkpoint {target} could not be written: {why}. {kept} Free some space and go on with `resume=True`."
    )
