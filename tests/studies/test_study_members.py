"""One run of a study: resumed, locked and tracked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.classifiers import weight_bytes
from support.commands import Steps
from support.studies import fruit_study, in_yaml
from support.transformers_models import write_model

import shiftproof as sp
from shiftproof.runs.directory import MemberDirectory
from shiftproof.runs.file import RunFile
from shiftproof.storage import locked
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.members import cached_suite, run_member, start_key, start_of

pytestmark = pytest.mark.slow


def the_member(settings: Mapping[str, Any]) -> MemberRun:
    (run,) = StudyFile.resolve(settings).members()
    return run


def test_a_run_goes_on_from_its_checkpoints_and_deletes_them(folders: Path, tmp_path: Path, steps: Steps) -> None:
    settings = {"epochs": 3, "batch_size": 3, "lr": 1e-3, "checkpoint_every": 2, "shots": 2}
    run = the_member(fruit_study(folders, run={"finetune": settings}, seeds=[4]))
    run_member(run, MemberDirectory(tmp_path / "whole"), "reference")
    assert steps.taken == [0, 1, 2, 3, 4, 5]
    steps.taken, steps.stop = [], 3
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        run_member(run, MemberDirectory(tmp_path / "broken"), "reference")
    assert not (tmp_path / "broken" / "member.json").exists()
    (tmp_path / "broken" / "error.txt").write_text("what the failed run left", encoding="utf-8")
    steps.taken, steps.stop = [], None
    run_member(run, MemberDirectory(tmp_path / "broken"), "reference")
    assert steps.taken == [2, 3, 4, 5]
    first, second = (sp.load_classifier(tmp_path / name / "fine_tuned") for name in ("whole", "broken"))
    assert sp.models.fingerprint(first) == sp.models.fingerprint(second)
    for name in ("whole", "broken"):
        assert not list((tmp_path / name).rglob("step-*"))
        assert not (tmp_path / name / "error.txt").exists()
        assert RunFile.read(tmp_path / name / "run.yaml") == run.run_file
    reported = [json.loads((tmp_path / name / "member.json").read_text()) for name in ("whole", "broken")]
    for entry in reported:
        assert entry.pop("seconds") > 0
    assert reported[0] == reported[1]
    assert (reported[0]["name"], reported[0]["seed"]) == ("run-seed-4", 4)


def test_runs_that_differ_in_the_statistics_of_ensembles_train_once(
    folders: Path, tmp_path: Path, steps: Steps
) -> None:
    settings = {
        "model": "timm:test_resnet",
        "random_weights": True,
        "finetune": {"epochs": 1, "batch_size": 6, "lr": 1e-3, "shots": 2},
    }
    configurations = {"averaged": {}, "re-estimated": {"batch_norm": "re-estimated"}}
    runs = StudyFile.resolve(fruit_study(folders, run=settings, configurations=configurations)).members()
    for run in runs:
        run_member(run, MemberDirectory(tmp_path / run.name), "reference")
    assert steps.taken == [0]
    first, second = (MemberDirectory(tmp_path / run.name) for run in runs)
    assert weight_bytes(sp.load_classifier(first.fine_tuned)) == weight_bytes(sp.load_classifier(second.fine_tuned))
    paths = [json.loads(directory.record.read_text(encoding="utf-8"))["path"] for directory in (first, second)]
    assert paths[0][0] == paths[1][0] and paths[0][-1] == paths[1][-1]


def test_a_run_whose_directory_is_in_use_is_refused(folders: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
        run_member(the_member(fruit_study(folders)), MemberDirectory(tmp_path / "run"), "reference")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_what_a_run_told_its_trackers_outlasts_it(folders: Path, tmp_path: Path) -> None:
    run_member(
        the_member(fruit_study(folders, run={"report_to": "tensorboard"})),
        MemberDirectory(tmp_path / "run"),
        "reference",
    )
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "run").rglob("step-*"))


@pytest.mark.parametrize("place", ["run", "grid"])
def test_a_member_starts_from_a_directory_of_transformers_beside_the_study_file(
    folders: Path, tmp_path: Path, place: str
) -> None:
    configs = tmp_path / "configs"
    name = write_model(configs / "clip", "clip")
    model = {"run": {"model": "hf:clip"}} if place == "run" else {"grid": {"model": ["hf:clip"]}}
    (run,) = StudyFile.read(in_yaml(configs, fruit_study(folders, **model))).members()
    suite = cached_suite(start_key(run.run_file))
    start = start_of(run.run_file, suite)
    assert (start.source, start.head) == (name, "zero-shot")
    expected = sp.zero_shot_classifier(sp.load_clip(name), suite.classes, "photo")
    assert weight_bytes(start) == weight_bytes(expected)
