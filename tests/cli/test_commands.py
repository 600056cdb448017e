"""The command line as a user meets it: what it prints, what it writes, how it exits."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image
from support.commands import Call, CommandResult, run_in_process

import shiftproof as sp
from shiftproof.cli import app as cli
from shiftproof.runs.file import DEMO_FILE
from shiftproof.training.engine import Trainer

COMMANDS = {
    "demo", "run", "pretrain", "zeroshot", "finetune", "sweep", "evaluate", "predict", "report", "export-suite",
    "merge", "study", "diagnose strong-edge", "diagnose backgrounds",
    "diagnose agreement", "diagnose connectivity", "diagnose movement", "diagnose cka", "diagnose cam",
    "diagnose run",
}  # fmt: skip
EMOJI = ("lemon", "pineapple", "tiger", "sailboat")


def own_data(folders: Path, *, shift: bool = True) -> list[str]:
    flags = ["--reference", f"folder:{folders}/train", "--validation", f"folder:{folders}/validation"]
    flags += ["--test", f"folder:{folders}/test"]
    return [*flags, "--shift", f"sketch=folder:{folders}/sketch"] if shift else flags


def softmax(logits: list[float]) -> list[float]:
    powers = np.exp(np.array(logits, dtype=np.float64) - max(logits))
    return list(powers / powers.sum())


# The whole way, each step in a process of its own.


def test_a_run_and_then_predictions_from_what_it_saved(folders: Path, tmp_path: Path, call: Call) -> None:
    shutil.copytree(folders, tmp_path / "fruit")
    (tmp_path / "run.yaml").write_text(
        """
model: open_clip:shiftproof-tiny
suite:
  reference: {train: "folder:fruit/train", validation: "folder:fruit/validation", test: "folder:fruit/test"}
  shifts: {sketch: {data: "folder:fruit/sketch"}}
finetune: {epochs: 2, batch_size: 9, lr: 1e-3}
alphas: 3
"""
    )
    ended = run_in_process("run", "run.yaml", "--set", "finetune.epochs=3", "--seed", "5", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    out = tmp_path / "runs" / "run"
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["seed"] == 5
    assert sp.RunFile.read(out / "run.yaml").finetune.epochs == 3
    assert Path("runs", "run", "report.html").as_posix() in ended.out
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        for entry in summary["models"][model].values():
            assert f"{100 * entry['accuracy']:.1f}" in ended.out

    # Nothing but the classifier's own directory is left.
    shutil.move(out / "ensemble", tmp_path / "mine")
    shutil.rmtree(tmp_path / "runs")
    images = ["fruit/test/lemon/lemon-0.png", "fruit/sketch/pear/pear-1.png"]
    classifier = sp.load_classifier(tmp_path / "mine")
    data = sp.data.load_set(f"folder:{tmp_path}/fruit/test", classifier.classes)
    logits = sp.predict(classifier, data).logits[data.ids.index("lemon/lemon-0.png")].tolist()
    expected = sorted(zip(softmax(logits), ["lemon", "pear", "red apple"], strict=True), reverse=True)

    told = run_in_process("predict", "mine", *images, "--json", cwd=tmp_path)
    assert (told.code, told.err) == (0, "")
    answers = json.loads(told.out)
    assert [answer["image"] for answer in answers] == images
    assert [entry["class"] for entry in answers[0]["top"]] == [name for _, name in expected]
    assert [entry["probability"] for entry in answers[0]["top"]] == pytest.approx([p for p, _ in expected], rel=1e-4)
    assert sum(entry["probability"] for entry in answers[1]["top"]) == pytest.approx(1)

    plain = call("predict", "mine", *images, "--top", "2")
    assert (plain.code, plain.err) == (0, "")
    lines = plain.out.splitlines()
    assert (lines[0], lines[3], len(lines)) == (*images, 6)
    for line, (probability, name) in zip(lines[1:3], expected, strict=False):
        assert line.split(maxsplit=2) == [f"{100 * probability:.1f}", "%", name]


def test_a_mistake_in_a_fresh_process(tmp_path: Path) -> None:
    ended = run_in_process("zeroshot", "tiny", "--reference", "folder:fotos", "--test", "folder:fotos", cwd=tmp_path)
    assert ended == CommandResult(
        2, "", "shiftproof: the folder fotos does not exist. Check the path after 'folder:'.\n"
    )


# Stage by stage.


def test_every_stage_works_on_one_s_own_folders(folders: Path, tmp_path: Path, call: Call) -> None:
    data, quick = own_data(folders), ["--set", "finetune.epochs=2", "--set", "finetune.batch_size=9"]
    zero = call("zeroshot", "tiny", *data, "--corrupt", "noise:3", "--out", "zero")
    assert (zero.code, zero.out.splitlines()[-1]) == (0, "the classifier is zero")
    assert all(name in zero.out for name in ("reference", "sketch", "noise-3"))
    tuned = call("finetune", "zero", *data, *quick, "--out", "tuned")
    assert (tuned.code, tuned.out.splitlines()[-1]) == (0, "the classifier is tuned")
    swept = call("sweep", "zero", "tuned", *data, "--alphas", "0.25,0.5", "--rule", "reference", "--out", "swept")
    assert swept.code == 0, swept.err

    first, second = sp.load_classifier("zero"), sp.load_classifier("tuned")
    assert second.parents[0]["fingerprint"] == sp.models.fingerprint(first)
    assert second.training["settings"]["epochs"] == 2
    path = json.loads(Path("swept/path.json").read_text(encoding="utf-8"))
    assert [point["alpha"] for point in path] == [0.25, 0.5]
    best = max(path, key=lambda point: (point["validation"], -point["alpha"]))["alpha"]
    assert sp.load_classifier("swept/ensemble").alpha == best
    assert f"alpha {best:g} by the rule 'reference'" in swept.out

    # Evaluated alone, the ensemble has the accuracy that the sweep says, and so have both others.
    told = call("evaluate", "swept/ensemble", *data[4:], "--out", "scored")
    assert told.code == 0
    lines = [json.loads(line) for line in Path("scored/results.jsonl").read_text(encoding="utf-8").splitlines()]
    point = next(point for point in path if point["alpha"] == best)
    assert {line["set"]: line["accuracy"] for line in lines} == {
        "test": point["accuracy"]["reference"],
        "sketch": point["accuracy"]["sketch"],
    }
    assert {line["alpha"] for line in lines} == {best}
    for line in lines:
        assert f"{100 * line['accuracy']:.1f}" in told.out
    for folder, classifier in (("zero", first), ("tuned", second)):
        for text in Path(folder, "results.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["set"] == "sketch":
                images = sp.data.load_set(f"folder:{folders}/sketch", classifier.classes)
                assert line["accuracy"] == sp.evaluation.accuracy(sp.predict(classifier, images).logits, images.labels)


def test_a_model_is_fine_tuned_from_its_name_as_from_its_directory(folders: Path, tmp_path: Path, call: Call) -> None:
    data = [*own_data(folders, shift=False), "--set", "finetune.epochs=1", "--set", "finetune.batch_size=18"]
    assert call("finetune", "tiny", *data, "--out", "a").code == 0
    assert call("zeroshot", "tiny", *own_data(folders, shift=False), "--out", "zero").code == 0
    assert call("finetune", "zero", *data, "--out", "b").code == 0
    assert sp.models.fingerprint(sp.load_classifier("a")) == sp.models.fingerprint(sp.load_classifier("b"))


def test_classes_are_matched_by_name_where_a_classifier_has_its_own_order(
    folders: Path, tmp_path: Path, call: Call, tiny: sp.models.Clip
) -> None:
    order = ("red_apple", "lemon", "pear")  # folders come sorted
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(order)), "zero")
    quick = ["--set", "finetune.epochs=6", "--set", "finetune.batch_size=9", "--set", "finetune.lr=1e-3"]
    assert call("finetune", "zero", *own_data(folders), *quick, "--out", "tuned").code == 0
    tuned = sp.load_classifier("tuned")
    assert tuned.classes.ids == order
    train = sp.data.load_set(f"folder:{folders}/train", tuned.classes)
    assert sp.evaluation.accuracy(sp.predict(tuned, train).logits, train.labels) > 0.9
    assert call("sweep", "zero", "tuned", *own_data(folders), "--alphas", "2", "--out", "swept").code == 0
    path = json.loads(Path("swept/path.json").read_text(encoding="utf-8"))
    scored = [json.loads(line) for line in Path("tuned/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert path[-1]["accuracy"] == {line["set"]: line["accuracy"] for line in scored}


def test_a_real_architecture_with_random_weights_runs(folders: Path, tmp_path: Path, call: Call) -> None:
    asked = {
        "model": "open_clip:ViT-S-32-alt",
        "suite": {
            "reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")},
            "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}},
        },
        "finetune": {"recipe": "head-only", "epochs": 1, "batch_size": 18, "lr": 1e-2},
        "alphas": 2,
    }
    Path("vit.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    ended = call("run", "vit.yaml")
    assert ended.code == 0, ended.err
    ensemble = sp.load_classifier("runs/vit/ensemble")
    assert (ensemble.source, ensemble.preprocessing.size) == ("open_clip:ViT-S-32-alt", 224)
    answers = json.loads(call("predict", "runs/vit/ensemble", folders / "test/pear/pear-0.png", "--json").out)
    assert {entry["class"] for entry in answers[0]["top"]} == {"lemon", "pear", "red apple"}


def test_pretraining_makes_a_model_that_loads(folders: Path, tmp_path: Path, call: Call) -> None:
    with Path("pairs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for path in sorted((folders / "train").rglob("*.png")):
            rows.writerow([path, f"a drawing of a {path.parent.name.replace('_', ' ')}"])
    asked = {"model": "open_clip:shiftproof-tiny", "pretrain": {"data": "csv:pairs.csv", "steps": 2, "batch_size": 6}}
    Path("pre.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    ended = call("pretrain", "pre.yaml", "--out", "pre")
    assert ended.code == 0, ended.err
    card = json.loads(Path("pre/card.json").read_text(encoding="utf-8"))
    assert (card["pairs_seen"], card["settings"]["steps"], card["seed"]) == (12, 2, 0)
    assert f"loss {card['final_loss']:.3f} after 12 pairs" in ended.out
    for direction in ("image_to_text", "text_to_image"):
        recalls = card["recall"][direction]
        assert 0 <= recalls["recall@1"] <= recalls["recall@5"] <= recalls["recall@10"] <= 1
        assert f"recall@1 {recalls['recall@1']:.3f}" in ended.out
    assert call("zeroshot", "local-dir:pre/model", *own_data(folders), "--out", "zero").code == 0
    trained = sp.load_classifier("zero").state_dict()
    start = sp.zero_shot_classifier(sp.load_clip("open_clip:shiftproof-tiny"), sp.load_classifier("zero").classes)
    assert any(not bool((trained[name] == tensor).all()) for name, tensor in start.state_dict().items())
    # A finished pretraining is neither lost nor changed.
    before = Path("pre/model/open_clip_model.safetensors").read_bytes()
    assert_mistake(call("pretrain", "pre.yaml", "--out", "pre"), "pre already holds")
    assert_mistake(call("pretrain", "pre.yaml", "--out", "pre", "--resume", "--seed", "1"), "other settings")
    assert call("pretrain", "pre.yaml", "--out", "pre", "--resume").code == 0
    assert Path("pre/model/open_clip_model.safetensors").read_bytes() == before


def test_the_report_is_written_anew_and_for_several_seeds(folders: Path, tmp_path: Path, call: Call) -> None:
    asked = {
        "suite": {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}},
        "finetune": {"epochs": 1, "batch_size": 18},
        "alphas": 2,
    }
    Path("fruit.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    for seed in ("0", "1"):
        assert call("run", "fruit.yaml", "--seed", seed, "--out", f"seed-{seed}").code == 0
    page = Path("seed-0/report.html")
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert call("report", "seed-0") == CommandResult(0, f"{page}\n", "")
    assert page.read_text(encoding="utf-8") == before
    assert call("report", "seed-0", "seed-1", "--out", "seeds.html") == CommandResult(0, "seeds.html\n", "")
    assert "<html" in Path("seeds.html").read_text(encoding="utf-8")


# The embedded suite, cut down.


@pytest.fixture(scope="session")
def few_emoji() -> sp.ShiftSuite:
    """Four classes of the emoji suite, with two of its shifts."""
    suite = sp.load_suite("emoji")
    classes = sp.ClassSpace(EMOJI, tuple(name.replace("_", " ") for name in EMOJI))

    def cut(images: sp.ImageSet) -> sp.ImageSet:
        kept = [i for i, label in enumerate(images.labels) if images.classes.ids[label] in EMOJI]
        return images.subset(kept).relabelled(classes)

    reference = sp.data.Reference(
        suite.reference.name, *(cut(getattr(suite.reference, split)) for split in ("train", "validation", "test"))
    )
    shifts = tuple(
        replace(shift, data=cut(shift.data)) for shift in suite.shifts if shift.name in ("sketch", "noise-3")
    )
    return sp.ShiftSuite("emoji", classes, reference, shifts)


def test_an_exported_suite_runs_as_folders(
    few_emoji: sp.ShiftSuite, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch, tiny: sp.models.Clip
) -> None:
    monkeypatch.setattr("shiftproof.runs.stages.load_suite", lambda name, seed: few_emoji)
    told = call("export-suite", "emoji", "--out", "exported")
    sets = [few_emoji.reference.train, few_emoji.reference.validation, *few_emoji.test_sets.values()]
    total = sum(map(len, sets))
    assert (told.code, told.out) == (0, f"{total} images under exported\n")
    assert {p.relative_to("exported").as_posix() for p in Path("exported").glob("*/*")} == {
        *(f"reference/{split}" for split in ("train", "validation", "test")),
        "shifts/sketch",
        "shifts/noise-3",
    }
    again = call("export-suite", "emoji", "--out", "exported")
    assert again.code == 2
    assert "exported is not empty" in again.err

    asked = {
        "suite": {
            "reference": {split: f"folder:exported/reference/{split}" for split in ("train", "validation", "test")},
            "shifts": {
                "sketch": {"data": "folder:exported/shifts/sketch"},
                "noise-3": {"data": "folder:exported/shifts/noise-3", "kind": "synthetic"},
            },
        },
        "finetune": {"epochs": 2, "batch_size": 10},
        "alphas": 2,
    }
    Path("emoji.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    assert call("run", "emoji.yaml").code == 0
    summary = json.loads(Path("runs/emoji/summary.json").read_text(encoding="utf-8"))
    # The files hold the very pixels: the zero-shot model is as right on them as on the suite itself.
    zero = sp.zero_shot_classifier(tiny, few_emoji.classes)
    names = {"colour": "reference", "sketch": "sketch", "noise-3": "noise-3"}
    for name, images in few_emoji.test_sets.items():
        entry = summary["models"]["zero_shot"][names[name]]
        assert entry["n"] == len(images)
        assert entry["accuracy"] == sp.evaluation.accuracy(sp.predict(zero, images).logits, images.labels)


def test_the_demo_runs_its_own_file_with_the_seed_asked_for(
    few_emoji: sp.ShiftSuite, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftproof.runs.pipeline.load_suite", lambda name, seed: few_emoji)
    told = call("demo", "--seed", "3")
    assert told.code == 0, told.err
    out = Path("runs/demo-3")
    assert sp.RunFile.read(out / "run.yaml") == sp.RunFile.read(DEMO_FILE, ["seed=3"])
    assert (out / "report.html").is_file()
    assert f"report: {out / 'report.html'}" in told.out
    # The groups of the renditions that pretraining saw and did not see are told apart.
    assert "withheld" in told.out
    assert_mistake(call("demo", "--seed", "3"), "already holds a run")
    assert call("demo", "--seed", "3", "--overwrite", "--set", "alphas=[0.5]", "--set", "finetune.epochs=1").code == 0
    assert json.loads((out / "summary.json").read_text(encoding="utf-8"))["alpha_path"][0]["alpha"] == 0.5


# Stopped, and gone on with.


def quick(**changes: Any) -> list[str]:
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


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    noted, take = Steps(), Trainer.take

    def watched(trainer: Trainer, step: int, losses: Any) -> float:
        if step == noted.stop:
            raise RuntimeError("the plug was pulled")
        noted.taken.append(step)
        return take(trainer, step, losses)

    monkeypatch.setattr(Trainer, "take", watched)
    return noted


def logged_steps(folder: str | Path) -> list[int]:
    lines = Path(folder, "checkpoints/training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_fine_tuning_goes_on_and_ends_as_if_it_had_never_stopped(folders: Path, call: Call, steps: Steps) -> None:
    asked = ["finetune", "tiny", *own_data(folders), *quick(), "--seed", "3"]
    assert call(*asked, "--out", "whole").code == 0
    steps.again(stop=3)
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        call(*asked, "--out", "broken")
    assert not Path("broken/classifier.json").exists()
    assert_mistake(call(*asked, "--out", "broken"), "broken already holds")
    assert_mistake(call(*asked, "--out", "broken", "--resume", "--overwrite"), "Give one of the two")
    for other in (["--set", "finetune.lr=2e-3"], ["--seed", "4"], ["--prompts", "short"]):
        assert_mistake(call(*asked, *other, "--out", "broken", "--resume"), "asks for other settings")
    steps.again()
    assert call(*asked, "--out", "broken", "--resume").code == 0
    assert steps.taken == [2, 3, 4, 5]
    first, second = sp.load_classifier("whole"), sp.load_classifier("broken")
    assert sp.models.fingerprint(first) == sp.models.fingerprint(second)
    assert first.training == second.training
    assert Path("whole/results.jsonl").read_bytes() == Path("broken/results.jsonl").read_bytes()
    assert logged_steps("whole") == logged_steps("broken") == [1, 2, 3, 4, 5, 6]
    # A finished one stays as it is; --resume of one that never began begins it.
    steps.again()
    assert call(*asked, "--out", "broken", "--resume").code == 0
    assert steps.taken == []
    assert sp.models.fingerprint(sp.load_classifier("broken")) == sp.models.fingerprint(first)
    assert call(*asked, "--out", "new", "--resume", "--set", "finetune.epochs=1").code == 0


def test_a_run_goes_on_inside_its_fine_tuning(folders: Path, call: Call, steps: Steps) -> None:
    asked = {
        "suite": {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}},
        "alphas": 2,
    }
    Path("fruit.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    command = ["run", "fruit.yaml", "--shots", "2", *quick(recipe="head-only"), "--out", "out"]
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
    asked = [*own_data(folders, shift=False), *quick(recipe="head-only", epochs=1), "--shots", "1"]
    ended = call("finetune", "tiny", *asked, "--report-to", "tensorboard", "--out", "out")
    assert ended.code == 0, ended.err
    assert (sp.RunFile.read("out/run.yaml").finetune.shots, steps.taken) == (1, [0])
    assert sp.load_classifier("out").training["settings"]["shots"] == 1
    assert list(Path("out/checkpoints").rglob("events.out.tfevents*"))


def test_sigterm_ends_a_fine_tuning_politely(tmp_path: Path, call: Call) -> None:
    asked = ["finetune", "tiny", "--suite", "emoji", "--shots", "1", "--set", "limit=5"]
    asked += quick(recipe="head-only", epochs=2, batch_size=16, shots=1, checkpoint_every=1)
    command = [sys.executable, "-m", "shiftproof", *asked, "--out", "out"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 600
    while not list(Path("out").glob("checkpoints/step-*")) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate(timeout=600)
    assert (started.returncode, out) == (143, ""), err
    (message,) = [line for line in err.splitlines() if not re.match(r"fine-tune: \d+ ", line)]
    told = re.fullmatch(r"shiftproof: fine-tune was interrupted after step (\d+) of 34\. (.*)", message)
    assert told is not None, err
    assert "out/checkpoints" in told[2] and "--resume" in told[2]
    assert logged_steps("out") == list(range(1, int(told[1]) + 1))
    assert int(told[1]) < 34
    ended = call(*asked, "--out", "out", "--resume")
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1] == "the classifier is out"
    assert logged_steps("out") == list(range(1, 35))
    assert sp.load_classifier("out").training["settings"]["shots"] == 1


# Shared by two processes.


def torchrun(*arguments: str | Path, cwd: Path) -> CommandResult:
    """A command in two processes that share the work."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "shiftproof", *map(str, arguments)]
    told = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=cwd, env=told, capture_output=True, text=True, encoding="utf-8", check=False)
    return CommandResult(ended.returncode, ended.stdout, ended.stderr)


def test_two_processes_fine_tune_as_one_does_and_one_of_them_speaks(folders: Path, tmp_path: Path, call: Call) -> None:
    asked = ["finetune", "tiny", *own_data(folders), *quick(batch_size=6)]
    shared = torchrun(*asked, "--out", "two", cwd=tmp_path)
    assert shared.code == 0, shared.err
    assert call(*asked, "--out", "one").code == 0
    assert shared.out.count("the classifier is two") == 1
    assert shared.out.count("Clopper-Pearson") == 1
    assert shared.err.count("fine-tune: 3 done") == 1
    one, two = (
        [json.loads(line) for line in Path(name, "results.jsonl").read_text(encoding="utf-8").splitlines()]
        for name in ("one", "two")
    )
    assert [(line["set"], line["n"]) for line in two] == [("reference", 9), ("sketch", 9)]
    for alone, together in zip(one, two, strict=True):
        assert together["n"] == alone["n"]
        assert together["accuracy"] == pytest.approx(alone["accuracy"], abs=1.5 / 9)
    assert logged_steps("two") == [1, 2, 3]
    # A refusal is told by one, and no other stays behind with a traceback of its own.
    refused = torchrun(*asked, "--out", "two", cwd=tmp_path)
    assert refused.code != 0
    assert refused.err.count("shiftproof: two already holds") == 1
    assert "gloo" not in refused.err and "all_reduce" not in refused.err
    # What is saved is what was scored.
    tuned = sp.load_classifier("two")
    sketches = sp.data.load_set(f"folder:{folders}/sketch", tuned.classes)
    assert sp.evaluation.accuracy(sp.predict(tuned, sketches).logits, sketches.labels) == two[1]["accuracy"]


def test_two_processes_share_the_fine_tuning_of_a_run(folders: Path, tmp_path: Path, call: Call) -> None:
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    asked = {"suite": {"reference": splits, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}}, "alphas": 3}
    Path("fruit.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    shared = torchrun("run", "fruit.yaml", *quick(batch_size=6), "--out", "out", cwd=tmp_path)
    assert shared.code == 0, shared.err
    assert shared.out.count("report: out/report.html") == 1
    assert shared.err.count("fine-tune: 3 done") == shared.err.count("sweep: 81 done") == 1
    for name in ("run.yaml", "stages.json", "path.json", "rules.json", "results.jsonl", "report.html"):
        assert Path("out", name).is_file()
    assert logged_steps("out") == [1, 2, 3]
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    for model in ("zero_shot", "fine_tuned", "ensemble"):
        classifier = sp.load_classifier(Path("out", model))
        for name, split in (("reference", "test"), ("sketch", "sketch")):
            images = sp.data.load_set(f"folder:{folders}/{split}", classifier.classes)
            told = summary["models"][model][name]
            assert (told["n"], told["accuracy"]) == (
                9,
                sp.evaluation.accuracy(sp.predict(classifier, images).logits, images.labels),
            )
    # Alone, the directory can be gone on with.
    assert call("run", "out/run.yaml", "--out", "out", "--resume").code == 0


# Mistakes: one message on stderr, no traceback, exit code 2.


def broken_copies(folders: Path) -> None:
    """Beside the test: an empty folder, and copies of the sketches that each break one rule."""
    Path("nothing").mkdir()
    for name in ("extra", "lacking", "hollow", "damaged"):
        shutil.copytree(folders / "sketch", name)
    shutil.copytree("extra/pear", "extra/plum")
    shutil.rmtree("lacking/pear")
    for image in Path("hollow/pear").iterdir():
        image.unlink()
    Path("damaged/lemon/lemon-1.png").write_bytes(Path("damaged/lemon/lemon-1.png").read_bytes()[:40])


MISTAKES: dict[str, tuple[list[str], str]] = {
    "missing folder": (["--reference", "folder:absent"], "the folder absent does not exist"),
    "empty folder": (["--reference", "folder:nothing"], "nothing has no class folders"),
    "missing csv": (["--test", "csv:absent.csv"], "the file absent.csv does not exist"),
    "class folder without images": (["--shift", "sketch=folder:hollow"], "hollow/pear contains no image"),
    "class that a shift lacks": (["--shift", "sketch=folder:lacking"], "lacks classes of the reference: 'pear'"),
    "class that a shift has too many": (["--shift", "sketch=folder:extra"], "the reference lacks: 'plum'"),
    "image that cannot be decoded": (["--shift", "s=folder:damaged"], "damaged/lemon/lemon-1.png cannot be decoded"),
    "shift without a name": (["--shift", "folder:extra"], "must look like sketch=folder:PATH"),
    "two sets of one name": (["--shift", "reference=folder:{folders}/sketch"], "'reference'"),
    "set kind": (["--test", "foldr:x"], "'foldr'. Did you mean 'folder'?"),
    "corruption": (["--corrupt", "noice:3"], "corruption 'noice'. Did you mean 'noise'?"),
    "severity": (["--corrupt", "noise:6"], "severity of 1 to 5"),
    "prompt set": (["--prompts", "foto"], "prompt set 'foto'. Did you mean 'photo'?"),
    "template": (["--prompts", "a {} of {}"], "'a {} of {}'"),
    "run-file key": (["--set", "finetune.epoch=3"], "key 'finetune.epoch'. Did you mean 'epochs'?"),
    "run-file value": (["--set", "finetune.lr=fast"], "'finetune.lr' is 'fast'"),
    "device": (["--device", "gpu"], "the device 'gpu' cannot be used here"),
    "suite": (["--suite", "emojy"], "leave it out"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_or_the_settings(folders: Path, call: Call, mistake: str) -> None:
    broken_copies(folders)
    changes, said = MISTAKES[mistake]
    flags = own_data(folders, shift=False)
    for flag, value in zip(changes[::2], changes[1::2], strict=True):
        filled = value.replace("{folders}", str(folders))
        if flag in flags:
            flags[flags.index(flag) + 1] = filled
        else:
            flags += [flag, filled]
    ended = call("zeroshot", "tiny", *flags, "--out", "out")
    assert_mistake(ended, said)


def assert_mistake(ended: CommandResult, said: str) -> None:
    assert (ended.code, ended.out) == (2, "")
    messages = [line for line in ended.err.splitlines() if not line.endswith(" done")]
    assert messages[0].startswith("shiftproof: ")
    assert ended.err.count("shiftproof: ") == 1
    assert said in messages[0]
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zeroshot", "tinny", "--suite", "emoji"], "unknown model 'tinny'. Did you mean 'tiny'?"),
        (["zeroshot", "open_clip:ViT-B-33", "--suite", "emoji"], "'ViT-B-33'. Did you mean 'ViT-B-32'?"),
        (["zeroshot", "open_clip:ViT-B-32/opena", "--suite", "emoji"], "tag 'opena'. Did you mean 'openai'?"),
        (["zeroshot", "local-dir:absent", "--suite", "emoji"], "'local-dir:absent' cannot be loaded"),
        (["zeroshot", "tiny", "--suite", "emojy"], "unknown suite 'emojy'. Did you mean 'emoji'?"),
        (["zeroshot", "tiny"], "no data"),
        (["zeroshot", "tiny", "--reference", "folder:a"], "no data"),
        (["run", "absent.yaml"], "the run file absent.yaml does not exist"),
        (["pretrain", "plain.yaml"], "no pretrain section"),
        (["predict", "absent", "x.png"], "absent is no classifier directory"),
        (["evaluate", "absent", "--suite", "emoji"], "absent is no classifier directory"),
        (["sweep", "absent", "other", "--suite", "emoji"], "absent is no classifier directory"),
        (["report", "absent"], "absent/summary.json does not exist"),
        (["study", "absent.yaml"], "the study file absent.yaml does not exist"),
        (["study", "plain.yaml"], "unknown run-file key 'model'"),
        (["finetune", "tiny", "--suite", "emoji", "--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["export-suite", "emojis", "--out", "x"], "unknown suite 'emojis'. Did you mean 'emoji'?"),
    ],
)
def test_a_mistake_in_a_name(call: Call, arguments: list[str], said: str) -> None:
    Path("plain.yaml").write_text("model: tiny\n", encoding="utf-8")
    assert_mistake(call(*arguments), said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["zeroshoot"], "Did you mean 'zeroshot'?"),
        (["zeroshot"], "Missing argument"),
        (["predict", "x"], "Missing argument"),
        (["predict", "x", "y.png", "--top", "0"], "--top"),
        (["zeroshot", "tiny", "--seed", "-1"], "--seed"),
        (["demo", "--sede", "1"], "--seed"),
    ],
)
def test_a_mistake_in_the_usage(call: Call, arguments: list[str], said: str) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err


def test_a_run_file_s_mistakes_are_told_before_anything_is_written(folders: Path, call: Call) -> None:
    asked = {"modell": "tiny", "suite": {"reference": {"trian": "folder:a", "test": "folder:b"}}, "alphas": 1}
    Path("run.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    ended = call("run", "run.yaml", "--out", "out")
    assert_mistake(ended, "suite.reference.train")
    for said in ("'modell'. Did you mean 'model'?", "'suite.reference.trian'. Did you mean 'train'?"):
        assert said in ended.err
    assert sorted(path.name for path in Path().iterdir()) == ["run.yaml"]


@pytest.mark.parametrize("command", ["zeroshot", "finetune", "sweep", "evaluate"])
def test_an_occupied_folder_is_left_alone(folders: Path, call: Call, tiny: sp.models.Clip, command: str) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("do not lose me", encoding="utf-8")
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    sp.save_classifier(zero, "zero")
    operands = {"zeroshot": ["tiny"], "finetune": ["zero"], "sweep": ["zero", "zero"], "evaluate": ["zero"]}[command]
    flags = own_data(folders, shift=False)
    ended = call(command, *operands, *(flags[4:] if command == "evaluate" else flags), "--out", "out")
    assert_mistake(ended, "out already holds 'notes.txt'")
    assert [path.name for path in Path("out").iterdir() if path.name != ".lock"] == ["notes.txt"]


def test_an_image_that_cannot_be_predicted_is_named(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"])), "zero")
    Path("notes.png").write_text("no picture", encoding="utf-8")
    good = folders / "test/pear/pear-0.png"
    assert_mistake(call("predict", "zero", good, "notes.png"), "the image notes.png cannot be decoded")
    assert_mistake(call("predict", "zero", good, "absent.png"), "the image absent.png does not exist")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_an_image_of_any_colour_mode_is_predicted(call: Call, tiny: sp.models.Clip, mode: str) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"])), "zero")
    Image.new("RGB", (50, 20), (240, 210, 40)).convert(mode).save("image.tif")
    ended = call("predict", "zero", "image.tif", "--json")
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)[0]["top"]) == 2


def test_a_training_that_breaks_says_where_the_good_weights_are(folders: Path, call: Call) -> None:
    broken = ["--set", "finetune.lr=1e20", "--set", "finetune.batch_size=9"]
    ended = call("finetune", "tiny", *own_data(folders), *broken, "--out", "out")
    assert_mistake(ended, "fine-tuning stopped at step 2")
    assert "out/checkpoints/last_good" in ended.err
    assert call("predict", "out/checkpoints/last_good", folders / "test/pear/pear-0.png").code == 0


def test_a_fault_of_ours_is_not_passed_off_as_the_user_s(
    folders: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*_: Any, **__: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("shiftproof.runs.stages.run_zero_shot", faulty)
    with pytest.raises(RuntimeError, match="a bug"):
        call("zeroshot", "tiny", *own_data(folders))


# Help.

GROUP = typer.main.get_command(cli.app)


def commands() -> dict[str, Any]:
    """Every command by what one types, those of groups too."""
    found: dict[str, Any] = {}
    for name, command in GROUP.commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        found |= {f"{name} {part}": inner for part, inner in parts.items()} if parts else {name: command}
    return found


def test_the_commands_are_those_promised() -> None:
    assert set(commands()) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_s_help_shows_an_example_that_parses(call: Call, name: str) -> None:
    for flag in ("--help", "-h"):
        told = call(*name.split(), flag)
        assert (told.code, told.err) == (0, "")
        assert f"Example: shiftproof {name}" in told.out
    command = commands()[name]
    example = next(line for line in command.help.splitlines() if line.startswith("Example: "))
    assert example.startswith(f"Example: shiftproof {name}")
    arguments = shlex.split(example.removeprefix(f"Example: shiftproof {name}"))
    # Parsed, not run: an unknown option or a missing argument would raise.
    command.make_context(name, arguments)


def test_the_version_is_that_of_the_package(call: Call) -> None:
    from importlib.metadata import version

    assert call("--version") == CommandResult(0, version("shiftproof") + "\n", "")


def test_the_package_is_a_command(tmp_path: Path) -> None:
    from importlib.metadata import version

    command = [sys.executable, "-m", "shiftproof", "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, version("shiftproof") + "\n", "")


# A light start.

LIGHT = """
import sys
import shiftproof
assert set(shiftproof.__all__) <= set(dir(shiftproof))
heavy = {"torch", "torchvision", "open_clip", "timm", "matplotlib", "scipy", "numpy"}
print(sorted(heavy & set(sys.modules)))
from shiftproof.cli import app as cli
for arguments in ARGUMENTS:
    sys.argv = ["shiftproof", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code
print(sorted(heavy & set(sys.modules)))
"""


def test_neither_the_package_nor_its_help_loads_torch(tmp_path: Path) -> None:
    asked = [["--help"], ["--version"], *([*name.split(), "--help"] for name in sorted(COMMANDS))]
    code = LIGHT.replace("ARGUMENTS", repr(asked))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]")


def test_a_misspelt_request_costs_no_older_run(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    asked = {"suite": {"reference": {"train": f"folder:{folders}/train", "test": f"folder:{folders}/test"}}}
    quick = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=9", "--set", "alphas=2", "--out", "old"]
    Path("run.yaml").write_text(yaml.safe_dump(asked), encoding="utf-8")
    assert call("run", "run.yaml", *quick).code == 0
    summary = Path("old/summary.json").read_bytes()
    missing = ["--set", "suite.reference.test=folder:nowhere"]
    for wrong, said in (
        (missing, "nowhere"),
        (["--set", "model=tinny"], "tiny"),
        (["--resume"], "Give one of the two"),
    ):
        ended = call("run", "run.yaml", *quick, *wrong, "--overwrite")
        assert_mistake(ended, said)
        assert Path("old/summary.json").read_bytes() == summary


def test_a_stage_overwrites_what_a_stage_wrote(folders: Path, call: Call) -> None:
    data = own_data(folders, shift=False)
    assert call("zeroshot", "tiny", *data, "--out", "out").code == 0
    assert_mistake(call("zeroshot", "tiny", *data, "--out", "out"), "add --overwrite")
    assert call("zeroshot", "tiny", *data, "--prompts", "short", "--out", "out", "--overwrite").code == 0
    assert len(sp.load_classifier("out").prompts) == 7


def test_a_sweep_refuses_to_validate_on_images_that_were_trained_on(
    folders: Path, call: Call, tiny: sp.models.Clip
) -> None:
    data = ["--reference", f"folder:{folders}/train", "--test", f"folder:{folders}/test"]
    quick = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=9"]
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    assert call("finetune", "zero", *data, *quick, "--seed", "1", "--out", "tuned").code == 0
    assert_mistake(call("sweep", "zero", "tuned", *data, "--alphas", "2", "--out", "swept"), "--seed 1")
    assert call("sweep", "zero", "tuned", *data, "--alphas", "2", "--seed", "1", "--out", "swept").code == 0


def test_sets_of_one_name_are_refused(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    twice = ["--shift", f"a=folder:{folders}/test", "--shift", f"a=folder:{folders}/sketch"]
    assert_mistake(call("evaluate", "zero", *twice), "two sets are named 'a'")


def test_markup_in_a_name_is_shown_as_it_stands(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    ended = call("evaluate", "zero", "--shift", f"[/x]=folder:{folders}/test")
    assert ended.code == 0
    assert "[/x]" in ended.out
