"""Ctrl-C at the command line: a real signal to a real process, and what remains."""

from __future__ import annotations

import csv
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import processes
from support.commands import Call, data_flags, logged_steps, quick_training_flags
from support.processes import ForkedProcess
from support.studies import fruit_study, in_yaml

QUICK = ["--set", "limit=3", *quick_training_flags(recipe="head-only", epochs=80, checkpoint_every=500)]


def finetune_command(folder: Path, folders: Path) -> list[str]:
    return ["finetune", "tiny", *data_flags(folders), *QUICK]


def run_command(folder: Path, folders: Path) -> list[str]:
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    settings = {"model": "tiny", "suite": {"reference": splits}, "alphas": 2}
    (folder / "run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["run", "run.yaml", *QUICK]


def pretrain_command(folder: Path, folders: Path) -> list[str]:
    with (folder / "pairs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        rows.writerows([path, f"a {path.parent.name}"] for path in sorted((folders / "train").rglob("*.png")))
    pretrain = {"data": "csv:pairs.csv", "steps": 100, "batch_size": 4, "checkpoint_every": 500}
    settings = {"model": "open_clip:shiftproof-tiny", "pretrain": pretrain}
    (folder / "pre.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["pretrain", "pre.yaml"]


COMMANDS: dict[str, Callable[[Path, Path], list[str]]] = {
    "finetune": finetune_command,
    "run": run_command,
    "pretrain": pretrain_command,
}


def launch(arguments: list[str], folder: Path) -> ForkedProcess:
    """Starts a command in a group of processes of its own, as a shell does in the foreground of a terminal."""
    return processes.start("module", "shiftproof", *arguments, cwd=folder, start_new_session=True)


def wait_for(launched: ForkedProcess, reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 600
    while not reached() and launched.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def press_ctrl_c(launched: ForkedProcess) -> None:
    """Sends SIGINT to the whole group, as a terminal does."""
    os.killpg(launched.pid, signal.SIGINT)


@pytest.mark.long
@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_leaves_a_checkpoint_of_a_training_shorter_than_their_distance(
    name: str, folders: Path, tmp_path: Path
) -> None:
    log = tmp_path / "out/checkpoints/training.jsonl"
    arguments = [*COMMANDS[name](tmp_path, folders), "--out", "out"]
    launched = launch(arguments, tmp_path)
    wait_for(launched, lambda: log.is_file() and log.stat().st_size > 0)
    press_ctrl_c(launched)
    out, err = launched.communicate(timeout=600)
    assert (launched.returncode, out) == (130, ""), err
    match = re.search(r"^shiftproof: \S+ was interrupted after step (\d+) of (\d+)\. (.*)$", err, re.MULTILINE)
    assert match is not None and "Traceback" not in err, err
    assert "out/checkpoints" in match[3] and "--resume" in match[3]
    assert "press Ctrl-C again" in err
    taken, planned = int(match[1]), int(match[2])
    assert 0 < taken < planned < 500
    assert (tmp_path / f"out/checkpoints/step-{taken:08d}/state.json").is_file()
    resumed = processes.run("module", "shiftproof", *arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert logged_steps(tmp_path / "out") == list(range(1, planned + 1))


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_step(folders: Path, tmp_path: Path) -> None:
    """The step takes a minute, and the second Ctrl-C ends it."""
    script = tmp_path / "slow_step.py"
    script.write_text(
        "import time\n"
        "from shiftproof.training.engine import Trainer\n"
        "from shiftproof.cli.app import main\n"
        "def take(*_):\n"
        "    open('started', 'w').close()\n"
        "    time.sleep(300)\n"
        "Trainer.take = take\n"
        "main()\n",
        encoding="utf-8",
    )
    launched = processes.start("script", script, *finetune_command(tmp_path, folders), "--out", "out", cwd=tmp_path)
    wait_for(launched, (tmp_path / "started").is_file)
    launched.send_signal(signal.SIGINT)
    time.sleep(1)
    assert launched.poll() is None
    began = time.monotonic()
    launched.send_signal(signal.SIGINT)
    _, err = launched.communicate(timeout=100)
    assert time.monotonic() - began < 60
    assert launched.returncode == 130, err
    assert "shiftproof: interrupted. Continue with --resume." in err and "Traceback" not in err


@pytest.mark.slow
@pytest.mark.ray
def test_ctrl_c_stops_every_run_of_a_study_after_its_step(folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    settings = {"epochs": 30, "batch_size": 3, "lr": 5e-4, "checkpoint_every": 10_000, "shots": 2}
    in_yaml(tmp_path, fruit_study(folders, run={"finetune": settings, "limit": 6}, seeds=[0, 1, 2]))
    arguments = ["study", "grid.yaml", "--set", "cpus_per_run=1", "--out", "out"]
    launched = launch(arguments, tmp_path)

    def logs() -> list[Path]:
        return [log for log in tmp_path.glob("out/members/*/checkpoints/training.jsonl") if log.stat().st_size]

    wait_for(launched, lambda: bool(logs()))
    press_ctrl_c(launched)
    out, err = launched.communicate(timeout=600)
    assert (launched.returncode, out) == (130, ""), err
    assert "shiftproof: the study was interrupted after 0 of 3 runs. Continue with --resume" in err
    assert "Traceback" not in err
    for log in logs():
        taken = len(log.read_text(encoding="utf-8").splitlines())
        (checkpoint,) = log.parent.glob("step-*")
        saved = int(checkpoint.name.removeprefix("step-"))
        # Of a step that ends an epoch, whose validation was interrupted, the line is written when the run is continued.
        assert saved == taken or (saved == taken + 1 and saved % 2 == 0)
    assert not (tmp_path / "out/study.json").exists()
    resumed = processes.run("module", "shiftproof", *arguments, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    with (tmp_path / "out/study.csv").open(encoding="utf-8", newline="") as table:
        assert {row["seed"] for row in csv.DictReader(table)} == {"0", "1", "2"}


@pytest.mark.parametrize(
    ("function", "arguments", "remedy"),
    [
        ("sweeps.run_sweep", ["sweep", "zero", "tuned", "--suite", "emoji"], " Continue with --resume."),
        ("stages.run_zero_shot", ["zeroshot", "tiny", "--suite", "emoji"], ""),
    ],
)
def test_ctrl_c_outside_a_training_ends_with_a_message(
    call: Call, monkeypatch: pytest.MonkeyPatch, function: str, arguments: list[str], remedy: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"shiftproof.runs.{function}", interrupted)
    ended = call(*arguments)
    assert (ended.code, ended.out, ended.err) == (130, "", f"shiftproof: interrupted.{remedy}\n")
