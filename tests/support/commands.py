"""Runs of the command line, in this process or in one of their own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import processes


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Call = Callable[..., CommandResult]  # the fixture ``call``: runs a command in this process


def run_in_process(*arguments: str | Path, cwd: Path) -> CommandResult:
    """Runs a command in a process of its own."""
    done = processes.run("module", "shiftproof", *arguments, cwd=cwd)
    return CommandResult(done.returncode, done.stdout, done.stderr)


def data_flags(folders: Path, *, shift: bool = True) -> list[str]:
    flags = ["--reference", f"folder:{folders}/train", "--validation", f"folder:{folders}/validation"]
    flags += ["--test", f"folder:{folders}/test"]
    return [*flags, "--shift", f"sketch=folder:{folders}/sketch"] if shift else flags


def quick_training_flags(**changes: Any) -> list[str]:
    """Six steps of three images each, with a checkpoint after every second."""
    settings = {"epochs": 3, "batch_size": 3, "lr": 1e-3, "shots": 2, "checkpoint_every": 2, **changes}
    return [part for key, value in settings.items() for part in ("--set", f"finetune.{key}={value}")]


@dataclass
class Steps:
    """Which steps were taken; the step ``stop`` breaks off, as a bug or a power failure would."""

    taken: list[int] = field(default_factory=list)
    stop: int | None = None

    def again(self, stop: int | None = None) -> None:
        self.taken, self.stop = [], stop


def logged_steps(folder: str | Path) -> list[int]:
    lines = Path(folder, "checkpoints/training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def assert_mistake(ended: CommandResult, message: str) -> None:
    assert (ended.code, ended.out) == (2, "")
    beside = ("warning: ", "fine-tune: ")  # a mistake may be found after a training has begun
    messages = [line for line in ended.err.splitlines() if not line.endswith(" done") and not line.startswith(beside)]
    assert messages[0].startswith("shiftproof: ")
    assert ended.err.count("shiftproof: ") == 1
    assert message in messages[0]
    assert "Traceback" not in ended.err
