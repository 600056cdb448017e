"""Every command that takes the name of a zero-shot model, with models of transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.commands import Call, data_flags
from support.transformers_models import theirs, write_model

import shiftproof as sp

pytestmark = pytest.mark.slow

QUICK = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=9", "--set", "finetune.warmup_steps=0"]


def test_start_fine_tuning_and_sweep(folders: Path, tmp_path: Path, call: Call) -> None:
    name = write_model(tmp_path / "model", "siglip2")
    data = data_flags(folders)
    assert call("zeroshot", name, *data, "--out", "zero").code == 0
    assert sp.load_classifier("zero").source == name
    ended = call("finetune", name, *data, *QUICK, "--set", "finetune.recipe=flyp", "--out", "tuned")
    assert ended.code == 0, ended.err
    ended = call("sweep", "zero", "tuned", *data, "--alphas", "0,0.5", "--out", "swept")
    assert ended.code == 0, ended.err
    assert sp.load_classifier("swept/ensemble").head == "rebuilt"
    ended = call("predict", "swept/ensemble", folders / "test/lemon/lemon-0.png", "--json")
    assert ended.code == 0, ended.err
    (answer,) = json.loads(ended.out)
    assert sum(entry["probability"] for entry in answer["top"]) == pytest.approx(1)


def test_a_run_reads_a_directory_beside_its_run_file_and_a_merge_writes_one(
    folders: Path, tmp_path: Path, call: Call
) -> None:
    for seed, folder in enumerate(("one", "other")):
        write_model(tmp_path / "configs" / folder, "siglip", seed)
    sets = {part: f"folder:{folders}/{part}" for part in ("train", "validation", "test")}
    settings = {
        "model": "hf:one",
        "suite": {"reference": sets, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}},
        "finetune": {"epochs": 1, "batch_size": 9, "warmup_steps": 0},
        "alphas": 3,
    }
    Path("configs/run.yaml").write_text(yaml.safe_dump(settings))
    ended = call("run", "configs/run.yaml", "--out", "out")
    assert ended.code == 0, ended.err
    assert sp.load_classifier("out/ensemble").source == "hf:configs/one"
    assert json.loads(Path("out/summary.json").read_text())["alpha"] == 0.5
    ended = call("merge", "configs/one", "configs/other", "--alpha", "0.25", "--out", "merged")
    assert ended.code == 0, ended.err
    ends = [theirs(f"configs/{folder}").state_dict() for folder in ("one", "other")]
    expected = sp.interpolate_weights(*ends, 0.25)
    tensors = theirs("merged").state_dict()
    assert all((tensor == expected[name]).all() for name, tensor in tensors.items())
    assert call("zeroshot", "hf:merged", *data_flags(folders), "--out", "zero").code == 0
