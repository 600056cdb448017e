"""Checkpoints that a training resumes from (safetensors and JSON, complete or absent), and the signals that stop it."""

from __future__ import annotations

import contextlib
import errno
import shutil
import signal
import sys
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
from shiftproof.storage import read_json, require_no_pointer, sync_directory, write_json
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

_STEP = "step-"


@dataclass(frozen=True)
class TrainingState:
    """What a training needs to resume after ``step`` steps: tensors by part, and plain JSON values."""

    step: int
    parts: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def save_checkpoint(folder: Path, reached: TrainingState, keep_last: int = 1) -> Path:
    """Writes ``folder/step-00000500`` completely or not at all, then deletes all but the last ``keep_last``.

    Raises a TrainingError where the directory cannot be written, for example because the disk is full. The older
    checkpoints remain in that case.
    """
    target = folder / f"{_STEP}{reached.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _delete(folder.glob(f".{_STEP}*"))  # leftovers of an interruption
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
    _delete(_checkpoints(folder)[:-keep_last])
    return target


def load_checkpoint(folder: Path) -> TrainingState | None:
    """The last checkpoint in a folder, or None where there is none; an InputError names a damaged one."""
    checkpoints = _checkpoints(folder)
    if not checkpoints:
        return None
    last = checkpoints[-1]
    for file in (path for path in last.glob("*") if path.is_file()):
        require_no_pointer(file)
    try:
        state = dict(read_json(last / "state.json"))
        parts = {part: read_state_dict(last / f"{part}.safetensors") for part in state.pop("parts")}
        step = int(state.pop("step"))
    except (InputError, KeyError, TypeError, ValueError) as error:
        reason = f"state.json has no entry {error}" if isinstance(error, KeyError) else error
        earlier = len(_checkpoints(last.parent)) > 1
        way_out = "resume from the one before" if earlier else "train from the start, since there is no other"
        raise InputError(f"the checkpoint {last} is damaged ({reason}). Delete it to {way_out}.") from error
    return TrainingState(step, parts, state)


def require_same_training(
    recorded: Mapping[str, Any], requested: Mapping[str, Any], folder: Path, earlier: Mapping[str, Any] | None = None
) -> None:
    """Raises an InputError that names the differences if a checkpoint is of another training than the requested one.

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
    """The tensors of an optimiser's state, named ``PARAMETER.ENTRY``; its groups are rebuilt from the settings."""
    moments = optimizer.state_dict()["state"]
    return {
        f"{i}.{key}": value for i, entry in moments.items() for key, value in entry.items() if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors that ``optimizer_tensors`` returned into an optimiser of the same parameters."""
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
def noticing_stop_signals(active: bool = True, notice: str = "") -> Iterator[Callable[[], int]]:
    """Yields a function that returns the number of the first SIGINT (Ctrl-C) or SIGTERM that has arrived, or 0.

    Inside the block, these signals have no other effect, apart from a second SIGINT, which raises a KeyboardInterrupt
    at once. If the block ends without an exception although one has arrived, so that nobody has acted on it, the signal
    has its usual effect then. At the first SIGINT, ``notice`` is printed to stderr. A SIGINT that the process ignores
    stays ignored, as it does for a job in the background of a shell. Only the main thread can handle signals; in other
    threads, they keep their usual effect.
    """
    arrived: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and number in arrived:
            raise KeyboardInterrupt
        arrived.append(number)
        if number == signal.SIGINT and notice:
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # stderr is closed, or in the middle of a line
                print(notice, file=sys.stderr, flush=True)

    watched = [signal.SIGTERM, *([] if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else [signal.SIGINT])]
    if not active or threading.current_thread() is not threading.main_thread():
        watched = []
    before = {number: signal.signal(number, handle) for number in watched}
    try:
        yield lambda: arrived[0] if arrived else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if arrived:
        signal.raise_signal(arrived[0])


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_STEP}*"))


def _delete(paths: Any) -> None:
    for path in list(paths):
        shutil.rmtree(path, ignore_errors=True)


def _unwritten(error: Exception, target: Path) -> TrainingError:
    # safetensors names the error of the system in its message only, in one of these forms.
    full = getattr(error, "errno", None) == errno.ENOSPC or any(f in str(error) for f in ("os error 28", "code: 28"))
    why = "the disk is full" if full else str(error)
    before = _checkpoints(target.parent)
    remaining = f"The last checkpoint is {before[-1]}." if before else "There is no checkpoint yet."
    return TrainingError(
        f"the checkpoint {target} could not be written: {why}. {remaining} "
        f"{'Free some space' if full else 'Make the folder writable'} and continue with `resume=True`."
    )
