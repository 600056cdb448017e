"""Runs of the command line, in this process or in a fresh one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CommandResult:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


Call = Callable[..., CommandResult]  # the fixture ``call``: runs a command in this process


def run_in_process(*arguments: str | Path, cwd: Path) -> CommandResult:
    """Runs a command in a process of its own."""
    command = [sys.executable, "-m", "shiftproof.cli.app", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", check=False)
    return CommandResult(done.returncode, done.stdout, done.stderr)
