"""Every command takes a public data set by its name and path alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import Call
from support.miniatures import write_folders

import shiftproof as sp

QUICK = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=8", "--set", "finetune.lr=1e-3"]


def results(folder: str) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in Path(folder, "results.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["set"]: line for line in lines if line["model"] != "path"}


@pytest.fixture
def domains(tmp_path: Path) -> Path:
    """Three domains of two classes; the last domain lacks one of them."""
    for domain in ("photo", "sketch"):
        write_folders(tmp_path / "pacs" / domain, {"dog": 100, "horse": 900}, count=10)
    write_folders(tmp_path / "pacs" / "cartoon", {"dog": 100}, count=3)
    return tmp_path / "pacs"


@pytest.mark.long
def test_the_stages_and_the_whole_run_take_a_suite_of_domains(domains: Path, call: Call) -> None:
    suite = ["--suite", f"domains:{domains / 'photo'}"]
    assert call("zeroshot", "tiny", *suite, "--out", "zero").code == 0
    assert list(results("zero")) == ["photo", "cartoon", "sketch"]
    assert call("finetune", "zero", *suite, *QUICK, "--out", "tuned").code == 0
    swept = call("sweep", "zero", "tuned", *suite, "--alphas", "3", "--out", "swept")
    assert swept.code == 0, swept.err
    assert call("evaluate", "swept/ensemble", *suite, "--out", "scored").code == 0
    path = json.loads(Path("swept/path.json").read_text(encoding="utf-8"))
    assert {name: entry["accuracy"] for name, entry in results("scored").items()} == path[1]["accuracy"]

    # The path in a run file is relative to its folder.
    Path("configs").mkdir()
    text = "model: tiny\nsuite: domains:../pacs/photo\nalphas: 3\nfinetune: {epochs: 1, batch_size: 8, lr: 1.e-3}\n"
    Path("configs/run.yaml").write_text(text, encoding="utf-8")
    done = call("run", "configs/run.yaml", "--out", "whole")
    assert done.code == 0, done.err
    summary = json.loads(Path("whole/summary.json").read_text(encoding="utf-8"))
    assert (summary["suite"], summary["reference"], summary["shifts"]) == ("domains", "photo", ["cartoon", "sketch"])
    assert summary["alpha_path"] == path
    cartoon = summary["models"]["ensemble"]["cartoon"]
    assert len(cartoon["variants"]) == 4  # it lacks a class
    assert "photo" in done.out


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_set_with_some_classes_is_shown_masked_and_over_all(domains: Path, call: Call) -> None:
    flags = [f"--reference=folder:{domains / 'photo'}", f"--test=folder:{domains / 'photo'}"]
    flags.append(f"--shift=cartoon=folder:{domains / 'cartoon'}")
    printed = call("zeroshot", "tiny", *flags, "--out", "zero")
    assert printed.code == 0, printed.err
    assert "cartoon has no image of 'horse'" in printed.err
    variants = results("zero")["cartoon"]["variants"]
    assert variants["masked to the classes of the set"]["accuracy"] == 1.0  # there is one class to answer
    assert variants["reference, same classes, masked to the classes of the set"]["n"] == 10
    assert "masked to the classes of the set" in printed.out


def test_the_metric_of_a_set_is_in_its_results(tmp_path: Path, call: Call, tiny: sp.models.Clip) -> None:
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(names)), "zero")
    (tmp_path / "CIFAR-10-C").mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (10, 32, 32, 3), dtype=np.uint8)
    for name in ("fog", "snow"):
        np.save(tmp_path / "CIFAR-10-C" / f"{name}.npy", pixels)
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile([2, 8], 5))
    printed = call("evaluate", "zero", "--shift", f"c=cifar10-c:{tmp_path}", "--out", "scored")
    assert printed.code == 0, printed.err
    line = results("scored")["c"]
    assert set(line["metrics"]) == {"mean of corruptions"}
    assert line["metrics"]["mean of corruptions"] == pytest.approx(line["accuracy"])
    assert (line["clusters"], len(line["groups"]), line["protocol"]) == (2, 10, "cifar10-c")
    assert "mean of corruptions" in printed.out


def test_a_wrong_name_says_what_a_suite_looks_like(tmp_path: Path, call: Call) -> None:
    printed = call("zeroshot", "tiny", "--suite", "imagnet:data", "--out", "zero")
    assert (printed.code, "imagenet:PATH" in printed.err) == (2, True)
    printed = call("zeroshot", "tiny", "--suite", f"domains:{tmp_path / 'none'}", "--out", "zero")
    assert (printed.code, "does not exist" in printed.err) == (2, True)
