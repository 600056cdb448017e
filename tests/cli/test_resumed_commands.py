"""Commands that are stopped and resumed."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from support import processes
from support.commands import Call, Steps, assert_mistake, data_flags, logged_steps, quick_training_flags

import shiftproof as sp

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_figures")]


@pytest.mark.long
def test_a_fine_tuning_goes_on_and_ends_as_if_it_had_never_stopped(folders: Path, call: Call, steps: Steps) -> None:
    settings = ["finetune", "tiny", *data_flags(folders), *quick_training_flags(), "--seed", "3"]
    assert call(*settings, "--out", "whole").code == 0
    steps.again(stop=3)
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        call(*settings, "--out", "broken")
    assert not Path("broken/classifier.json").exists()
    assert_mistake(call(*settings, "--out", "broken"), "broken already holds")
    assert_mistake(call(*settings, "--out", "broken", "--resume", "--overwrite"), "Give one of the two")
    for other in (["--set", "finetune.lr=2e-3"], ["--seed", "4"], ["--prompts", "short"]):
        assert_mistake(call(*settings, *other, "--out", "broken", "--resume"), "has other settings")
    steps.again()
    assert call(*settings, "--out", "broken", "--resume").code == 0
    assert steps.taken == [2, 3, 4, 5]
    first, second = sp.load_classifier("whole"), sp.load_classifier("broken")
    assert sp.models.fingerprint(first) == sp.models.fingerprint(second)
    assert first.training == second.training
    assert Path("whole/results.jsonl").read_bytes() == Path("broken/results.jsonl").read_bytes()
    assert logged_steps("whole") == logged_steps("broken") == [1, 2, 3, 4, 5, 6]
    # A finished one stays as it is; --resume of one that never began begins it.
    steps.again()
    assert call(*settings, "--out", "broken", "--resume").code == 0
    assert steps.taken == []
    assert sp.models.fingerprint(sp.load_classifier("broken")) == sp.models.fingerprint(first)
    assert call(*settings, "--out", "new", "--resume", "--set", "finetune.epochs=1").code == 0


def test_a_run_goes_on_inside_its_fine_tuning(folders: Path, call: Call, steps: Steps) -> None:
    settings = {
        "model": "tiny",
        "suite": {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}},
        "alphas": 2,
    }
    Path("fruit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    command = ["run", "fruit.yaml", "--shots", "2", *quick_training_flags(recipe="head-only"), "--out", "out"]
    steps.again(stop=5)
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        call(*command)
    assert not Path("out/fine_tuned").exists()
    assert_mistake(call(*command), "already holds a run")
    steps.again()
    ended = call(*command, "--resume")
    assert (ended.code, steps.taken) == (0, [4, 5])
    assert Path("out/report.html").is_file()
    run = sp.RunFile.read("out/run.yaml")
    suite = sp.own_suite({split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}, {})
    unbroken = sp.finetune(sp.load_classifier("out/zero_shot"), suite, run.finetune, seed=run.seed)
    assert sp.models.fingerprint(sp.load_classifier("out/fine_tuned")) == sp.models.fingerprint(unbroken)


def test_a_fine_tuning_takes_few_shots_and_tells_a_tracker(folders: Path, call: Call, steps: Steps) -> None:
    settings = [*data_flags(folders, shift=False), *quick_training_flags(recipe="head-only", epochs=1), "--shots", "1"]
    ended = call("finetune", "tiny", *settings, "--report-to", "tensorboard", "--out", "out")
    assert ended.code == 0, ended.err
    assert (sp.RunFile.read("out/run.yaml").finetune.shots, steps.taken) == (1, [0])
    assert sp.load_classifier("out").training["settings"]["shots"] == 1
    assert list(Path("out/checkpoints").rglob("events.out.tfevents*"))


def test_sigterm_ends_a_fine_tuning_politely(folders: Path, tmp_path: Path, call: Call) -> None:
    settings = ["finetune", "tiny", *data_flags(folders)]
    settings += quick_training_flags(recipe="head-only", epochs=30, checkpoint_every=1)
    started = processes.start("module", "shiftproof", *settings, "--out", "out", cwd=tmp_path)
    until = time.monotonic() + 600
    while not list(Path("out").glob("checkpoints/step-*")) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=600)
    assert (started.returncode, out) == (143, ""), err
    (message,) = [line for line in err.splitlines() if not re.match(r"fine-tune: (\d+|precision) |warning: ", line)]
    match = re.fullmatch(r"shiftproof: fine-tune was interrupted after step (\d+) of 60\. (.*)", message)
    assert match is not None, err
    assert "out/checkpoints" in match[2] and "--resume" in match[2]
    step = int(match[1])
    assert step < 60
    # Of a step that ends an epoch, whose validation was interrupted, the line is written when the run is continued.
    unlogged = set(range(1, step + 1)) ^ set(logged_steps("out"))
    assert unlogged == set() or (unlogged == {step} and step % 2 == 0)
    ended = call(*settings, "--out", "out", "--resume")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "the classifier is out"
    assert logged_steps("out") == list(range(1, 61))
    assert sp.load_classifier("out").training["settings"]["shots"] == 2
