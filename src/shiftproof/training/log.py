"""The log of a training: always a JSONL file, and trackers (TensorBoard, W&B) on request."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shiftproof.errors import InputError, TrainingError, require_choice
from shiftproof.storage import write_text
from shiftproof.training.distributed import is_main_process

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

TRACKERS = ("tensorboard", "wandb")
LOG = "training.jsonl"


def trackers_from(text: str) -> tuple[str, ...]:
    """The trackers in a list such as ``tensorboard,wandb``; ``none`` stands for no tracker.

    Raises an InputError where a tracker is unknown or not installed.

    >>> trackers_from("none")
    ()
    """
    names = tuple(name for name in (part.strip() for part in text.split(",")) if name not in ("", "none"))
    for name in names:
        require_choice("tracker", name, (*TRACKERS, "none"))
        if importlib.util.find_spec(name) is None:
            raise InputError(f"the tracker {name!r} is not installed. Install it: pip install 'shiftproof[track]'.")
    return names


class TrainingLog:
    """Writes a line of ``folder/training.jsonl`` for every step, and the same numbers to trackers.

    Without a folder, nothing is written. A training that resumes after ``step`` steps drops the lines of later steps,
    since it will write them again. Raises an InputError for an unknown tracker, or one without a folder, and a
    TrainingError where the file cannot be written.
    """

    def __init__(self, folder: Path | None, step: int, trackers: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._file: TextIO | None = None
        self._trackers: list[GeneralTracker] = []
        for name in trackers:
            require_choice("tracker", name, TRACKERS)
        if trackers and folder is None:
            raise InputError(f"the tracker {trackers[0]!r} needs a folder to write to. Pass `checkpoints`, too.")
        if folder is None or not is_main_process():
            return
        self._path = folder / LOG
        with self._written():
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".training.*.jsonl"):
                leftover.unlink()
            _truncate_after(self._path, step)
            self._file = self._path.open("a", encoding="utf-8")
        self._trackers = [_tracker(name, folder, settings) for name in trackers]

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = "the disk is full" if error.errno == errno.ENOSPC else str(error)
            raise TrainingError(
                f"{self._path} could not be written: {why}. Free some space and continue with `resume=True`."
            ) from error

    def line(self, step: int, values: Mapping[str, float]) -> None:
        """Logs what was measured at a step."""
        if self._file is not None:
            with self._written():
                self._file.write(json.dumps({"step": step, **values}) + "\n")
                self._file.flush()
        for tracker in self._trackers:
            tracker.log(dict(values), step=step)

    def close(self) -> None:
        """Closes the file and finishes the trackers."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a failure to write has been reported already
                self._file.close()
        for tracker in self._trackers:
            tracker.finish()


def _truncate_after(file: Path, step: int) -> None:
    if not file.is_file():
        return
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines += [line] if json.loads(line)["step"] <= step else []
        except json.JSONDecodeError:  # the last line of a process that was killed
            break
    write_text(file, "".join(f"{line}\n" for line in lines))


def _tracker(name: str, folder: Path, settings: Mapping[str, Any]) -> GeneralTracker:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        tracker: GeneralTracker = TensorBoardTracker("tensorboard", logging_dir=folder)
    else:
        tracker = WandBTracker("shiftproof", dir=str(folder))
    tracker.start()
    # TensorBoard accepts plain values only.
    tracker.store_init_configuration({key: str(value) for key, value in settings.items()})
    return tracker
