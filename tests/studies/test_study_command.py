"""The command ``study run`` on a real Ray cluster, killed and resumed."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from support import processes
from support.processes import ForkedProcess
from support.studies import fruit_study, in_yaml, read_record

import shiftproof as sp
from shiftproof.records.studies import StudyRecord
from shiftproof.records.summaries import member_from_json
from shiftproof.report.studies import (
    study_verdict,
)
from shiftproof.runs.inputs import build_start, load_run_suite
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.spreads import measure_spreads

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def killed_within(folder: Path, launched: ForkedProcess) -> None:
    """Kills the process that fine-tunes in a directory, as a system out of memory would, after its first checkpoint."""
    until = time.monotonic() + 600
    while time.monotonic() < until and launched.poll() is None:
        if list(folder.glob("checkpoints/step-*")):
            os.kill(holder(folder / ".lock"), signal.SIGKILL)
            return
        time.sleep(0.02)
    launched.kill()
    pytest.fail(f"no checkpoint in {folder}: {launched.communicate()}")


def holder(lock: Path) -> int:
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(lock):
                return int(link.parts[2])
    raise AssertionError(f"nobody holds {lock}")


def written(out: Path, names: Sequence[str]) -> dict[Path, int]:
    """When each file of some runs was written."""
    files = [file for name in names for file in sorted((out / "members" / name).rglob("*")) if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


def assert_failures_are_told(record: StudyRecord, out: Path, message: str, complained: str) -> None:
    assert "Traceback" not in message + complained
    assert complained.count("shiftproof: ") == 1
    for failure in record.failures:
        assert f"{failure.name}: {failure.error}" in complained
        assert (out / "members" / failure.name / "error.txt").read_text(encoding="utf-8").strip()


def assert_members_are_swept_as_here(record: StudyRecord, out: Path, runs: Mapping[str, MemberRun]) -> None:
    """What members and soups say is what a sweep in this process finds, and soups are their members' mean."""
    some = runs[record.members[0].name].run_file
    suite = load_run_suite(some)
    start, ends = build_start(some, suite), {}
    for member in record.members:
        folder, settings = out / "members" / member.name, runs[member.name].run_file
        ends[member.name] = sp.load_classifier(folder / "fine_tuned")
        assert member.path == sp.sweep_alpha(start, ends[member.name], suite, [0, 0.5, 1])
        assert member.chosen == sp.choose_alpha(member.path, record.rule)
        assert ends[member.name].training["settings"]["lr"] == settings.finetune.lr
        reported = json.loads((folder / "member.json").read_text(encoding="utf-8"))
        assert member == member_from_json("reference", ("sketch",), reported)
        assert not list(folder.rglob("step-*"))
    uniform, greedy = record.soups
    assert uniform.members == tuple(ends)
    assert greedy.members and set(greedy.members) <= set(ends)
    for soup, kind in ((uniform, "uniform"), (greedy, "greedy")):
        mean = sp.average_weights([ends[name].state_dict() for name in ends if name in soup.members])
        saved = sp.load_classifier(out / "soups" / kind / "fine_tuned")
        assert all(torch.equal(saved.state_dict()[name], entry) for name, entry in mean.items())
        assert soup.path == sp.sweep_alpha(start, saved, suite, [0, 0.5, 1])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the process to kill through /proc")
def test_a_study_from_the_command_line(folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    configurations = {
        "killed": {"finetune": {"epochs": 10}},
        "Plain": {},
        "quick": {"finetune.lr": 2e-3},
        "broken": {"finetune.lr": 1e30},
    }
    settings = {"epochs": 1, "batch_size": 3, "lr": 5e-4, "checkpoint_every": 1, "shots": 2}
    run = {"finetune": settings, "limit": 6}
    file = in_yaml(tmp_path, fruit_study(folders, run=run, configurations=configurations, soups=["uniform", "greedy"]))
    arguments = ["study", "grid.yaml", "--set", "cpus_per_run=1", "--out", "out"]
    launched = processes.start("module", "shiftproof", *arguments, cwd=tmp_path)
    out = (tmp_path / "out").resolve()
    killed_within(out / "members" / "killed-seed-0", launched)
    message, complained = launched.communicate(timeout=600)
    assert launched.returncode == 2, complained

    record = read_record(out)
    assert [member.name for member in record.members] == ["plain-seed-0", "quick-seed-0"]
    assert [member.configuration for member in record.members] == ["Plain", "quick"]
    failures = {failure.name: failure.error for failure in record.failures}
    assert set(failures) == {"killed-seed-0", "broken-seed-0"}
    assert failures["broken-seed-0"].startswith("fine-tuning stopped at step ")
    assert "died" in failures["killed-seed-0"]
    assert_failures_are_told(record, out, message, complained)
    assert "Fewer than three configurations finished" in message
    assert f"numbers: {Path('out', 'study.json')}" in message
    assert (out / "figures" / "study.png").read_bytes().startswith(b"\x89PNG")
    with (out / "study.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    reported = [(row["configuration"], float(row["alpha"]), row["set"], float(row["accuracy"])) for row in rows]
    assert reported == [
        (member.configuration, point.alpha, name, value)
        for member in (*record.members, *record.soups)
        for point in member.path.points
        for name, value in (("validation", point.validation), *point.accuracy.items())
    ]
    chosen = {(row["name"], float(row["alpha"])) for row in rows if row["chosen"] == "1"}
    assert chosen == {(member.name, member.chosen) for member in (*record.members, *record.soups)}
    runs = {run.name: run for run in StudyFile.read(file).members()}
    assert_members_are_swept_as_here(record, out, runs)

    # Going on does what is missing only; a fault that is no ShiftproofError holds up no other run either.
    before = written(out, ["plain-seed-0", "quick-seed-0"])
    (out / "members" / "broken-seed-0" / "run.yaml").unlink()
    (out / "members" / "broken-seed-0" / "run.yaml").mkdir()
    ended = processes.run("module", "shiftproof", *arguments, "--resume", cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    whole = read_record(out)
    assert [member.name for member in whole.members] == ["killed-seed-0", "plain-seed-0", "quick-seed-0"]
    assert whole.members[1:] == record.members
    (failure,) = whole.failures
    assert failure.name == "broken-seed-0" and failure.error.startswith("IsADirectoryError: ")
    assert_failures_are_told(whole, out, ended.stdout, ended.stderr)
    assert written(out, ["plain-seed-0", "quick-seed-0"]) == before
    assert not (out / "members" / "killed-seed-0" / "error.txt").exists()
    assert len(sp.load_classifier(out / "members" / "killed-seed-0" / "fine_tuned").training["history"]) == 10
    assert whole.spreads == measure_spreads(whole.members, "reference", ("sketch",))
    assert study_verdict(whole) in ended.stdout.replace("\n", " ")
