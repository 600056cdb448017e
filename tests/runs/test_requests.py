"""What ``run.yaml`` records: paths that lead to the same data from everywhere, and the versions that were used."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import shiftproof as sp
from shiftproof.errors import ResultWarning
from shiftproof.runs import requests
from shiftproof.runs.directory import TRAINING, claim
from shiftproof.runs.requests import recorded_request, recorded_versions, request_of

RELATIVE: dict[str, Any] = {
    "model": "runs/mine/zero_shot",
    "suite": {
        "reference": {"train": "folder:photos/train", "test": "csv:photos/test.csv"},
        "shifts": {"noise": {"data": "corrupted:noise:3:folder:photos/test"}, "drawings": {"data": "emoji"}},
    },
    "classes": "names.txt",
    "image_cache": "cache",
}


def test_a_recorded_request_leads_to_the_same_data_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = sp.RunFile.resolve(RELATIVE)
    Path("run.yaml").write_text(recorded_request(asked, None), encoding="utf-8")
    (tmp_path / "elsewhere").mkdir()
    assert asked.gives_the_same_results(sp.RunFile.read("run.yaml"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    recorded = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    assert recorded["model"] == f"{tmp_path}/runs/mine/zero_shot"
    assert recorded["classes"] == f"{tmp_path}/names.txt"
    suite = recorded["suite"]
    assert suite["reference"]["train"] == f"folder:{tmp_path}/photos/train"
    assert suite["reference"]["test"] == f"csv:{tmp_path}/photos/test.csv"
    assert suite["shifts"]["noise"]["data"] == f"corrupted:noise:3:folder:{tmp_path}/photos/test"
    assert suite["shifts"]["drawings"]["data"] == "emoji"
    here = sp.RunFile.read(tmp_path / "run.yaml")  # whose words name other data
    assert not asked.gives_the_same_results(here)
    assert sp.RunFile.resolve({"model": "tiny"}).with_full_paths() == sp.RunFile.resolve({"model": "tiny"})


def test_a_continued_run_keeps_the_versions_that_began_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, file = sp.RunFile.resolve({"model": "tiny"}), tmp_path / "run.yaml"
    (tmp_path / "checkpoints").mkdir()
    first = requests.versions()
    with claim(tmp_path, TRAINING, request_of(asked), overwrite=True):
        (tmp_path / "checkpoints").mkdir()
    with claim(tmp_path, TRAINING, request_of(asked), resume=True):
        assert recorded_versions(file) == (first,)
    later = {**first, "torch": "99.0"}
    monkeypatch.setattr(requests, "versions", lambda: later)
    changed = re.escape(f"torch {first['torch']} (now 99.0)")
    with (
        pytest.warns(ResultWarning, match=changed),
        claim(tmp_path, TRAINING, request_of(asked), resume=True),
    ):
        assert recorded_versions(file) == (first, later)
    with claim(tmp_path, TRAINING, request_of(asked), resume=True):  # no news
        assert recorded_versions(file) == (first, later)
    assert sp.RunFile.read(file).gives_the_same_results(asked)
    with claim(tmp_path, TRAINING, request_of(asked), overwrite=True):
        assert recorded_versions(file) == (later,)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.filterwarnings("ignore::shiftproof.errors.ResultWarning")
def test_a_run_is_diagnosed_and_resumed_from_another_directory(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    reference = {split: f"folder:{split}" for split in ("train", "validation", "test")}
    suite = {"reference": reference, "shifts": {"sketch": {"data": "folder:sketch"}}}
    settings = {"epochs": 1, "batch_size": 9, "recipe": "head-only"}
    asked = sp.RunFile.resolve({"suite": suite, "alphas": 3, "device": "cpu", "finetune": settings})
    first = requests.versions()
    sp.run_pipeline(asked, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert sp.diagnose_run("run", (), device="cpu").sets == ("reference", "sketch")
    monkeypatch.setattr(requests, "versions", lambda: {**first, "numpy": "99.0"})
    sp.run_pipeline(sp.RunFile.read("run/run.yaml"), "run", resume=True)
    summary = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))
    assert (summary["versions"], summary["later_versions"]) == (first, [{**first, "numpy": "99.0"}])
