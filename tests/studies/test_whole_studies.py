"""Whole studies with Ray replaced by a loop in this process: scheduling, failures and soups."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.studies import fruit_study, read_record

import shiftproof as sp
from shiftproof import progress
from shiftproof.ensembling.batch_norm import reestimate_batch_norm
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.studies import StudyFailure, StudyMember
from shiftproof.records.summaries import member_json, study_from_json
from shiftproof.runs import file as runfile
from shiftproof.runs.directory import MemberDirectory
from shiftproof.runs.inputs import batch_norm_images, build_start, load_run_suite
from shiftproof.storage import locked, write_json, write_text
from shiftproof.studies import study
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.study import run_study


class TaskError(Exception):
    """What stands for Ray's error, with the task's own as its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a task failed: {cause}")
        self.cause = cause


@dataclass
class Played:
    """What a study asked of Ray, and how many threads its runs were given."""

    options: list[dict[str, Any]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=lambda: {"CPU": 2.0, "node:127.0.0.1": 1.0})


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Tasks run one after the other in this process, each when it is waited for."""
    seen = Played()

    def remote(**options: Any) -> Callable[..., SimpleNamespace]:
        seen.options.append(options)
        return lambda task: SimpleNamespace(remote=lambda *arguments: partial(task, *arguments))

    def get(task: Callable[[], object]) -> object:
        try:
            return task()
        except Exception as error:
            raise TaskError(error) from error

    ray = SimpleNamespace(
        remote=remote,
        get=get,
        wait=lambda tasks, num_returns, timeout=None: (tasks[:num_returns], tasks[num_returns:]),
        exceptions=SimpleNamespace(RayError=TaskError),
        # What is needed must be there on one machine; two have four processors together.
        nodes=lambda: [{"Alive": True, "Resources": seen.machine}] * 2 + [{"Alive": False, "Resources": {"CPU": 64.0}}],
    )
    monkeypatch.setattr(study, "ray_cluster", lambda address: contextlib.nullcontext(ray))
    monkeypatch.setattr(torch, "set_num_threads", seen.threads.append)
    return seen


Stub = Callable[[MemberRun, Path, str, int | None], None]


def stub(tiny: sp.models.Clip, failing: dict[str, Exception] | None = None) -> Stub:
    """A run that takes no step: its classifier is the start, moved a little, its accuracies are made up."""

    def run(run: MemberRun, directory: MemberDirectory, rule: str, threads: int | None) -> None:
        if error := (failing or {}).get(run.name):
            raise error
        zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
        share = 1 + len(run.configuration) / 100
        moved = {n: t * share if t.is_floating_point() else t for n, t in zero.state_dict().items()}
        sp.save_classifier(zero.with_weights(moved), directory.fine_tuned)
        values = {"reference": 0.5, "sketch": share / 2}
        points = tuple(PathPoint(a, 0.5, values, dict.fromkeys(values, (0.4, 0.6))) for a in (0.0, 0.5, 1.0))
        path = PathRecord("reference", ("sketch",), points)
        reported = StudyMember(run.name, run.configuration, run.changes, run.run_file.seed, path, 0.5, 1.0)
        write_text(directory.run_file, run.run_file.to_yaml())
        write_json(directory.record, member_json(reported))

    return run


@pytest.mark.slow
def test_runs_are_given_the_processors_asked_for(folders: Path, tmp_path: Path, played: Played) -> None:
    file = StudyFile.resolve(
        fruit_study(folders, cpus_per_run=2, configurations={"a": {}, "b": {"finetune.epochs": 2}})
    )
    record = run_study(file, tmp_path / "out")
    assert played.options == [{"num_cpus": 2, "num_gpus": 0.0, "max_retries": 0}]
    assert played.threads == [2, 2]
    assert [member.name for member in record.members] == ["a-seed-0", "b-seed-0"]
    assert [dict(member.changes) for member in record.members] == [{}, {"finetune.epochs": 2}]
    assert study_from_json(json.loads((tmp_path / "out" / "study.json").read_text())) == record
    assert StudyFile.read(tmp_path / "out" / "study.yaml") == file


@pytest.mark.slow
def test_runs_are_given_a_gpu_where_there_are_any(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def noted(run: MemberRun, *rest: Any) -> None:
        devices.append(run.run_file.device)
        stub(tiny)(run, *rest)

    monkeypatch.setattr(study, "run_member", noted)
    reported = fruit_study(folders)
    for number, (device, gpus, result) in enumerate(
        [("auto", 2, (1, "auto")), ("auto", 0, (0, "cpu")), ("cpu", 2, (0, "cpu"))]
    ):
        played.machine["GPU"] = gpus
        run_study(StudyFile.resolve(reported, [f"run.device={device}"]), tmp_path / str(number))
        assert (played.options[-1]["num_gpus"], devices[-1]) == result
    # Half a GPU each, or none at all.
    played.machine["GPU"] = 2
    for share, device in ((0.5, "auto"), (0, "cpu")):
        run_study(
            StudyFile.resolve(reported, ["run.device=auto", f"gpus_per_run={share}"]), tmp_path / f"share-{share}"
        )
        assert (played.options[-1]["num_gpus"], devices[-1]) == (share, device)


def test_a_run_of_other_settings_is_not_taken_for_this_study_s(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The study file is silent on the rate; what silence means may change from one version to the next.
    reported = fruit_study(folders, configurations={"a": {}})
    del reported["run"]["finetune"]["lr"]
    file = StudyFile.resolve(reported)
    monkeypatch.setattr(study, "run_member", stub(tiny))
    run_study(file, tmp_path / "out")
    monkeypatch.setitem(runfile.MODEL_SETTINGS, "tiny", {**runfile.MODEL_SETTINGS["tiny"], "lr": 0.5})
    with pytest.raises(sp.InputError, match="a-seed-0 holds a run with settings other than this study's"):
        run_study(file, tmp_path / "out", resume=True)


def test_a_study_that_could_not_begin_may_be_asked_for_anew(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    with pytest.raises(sp.InputError, match="cpus_per_run is 64"):
        run_study(StudyFile.resolve(fruit_study(folders, cpus_per_run=64)), tmp_path / "out")
    (tmp_path / "out" / ".study.tmp.json").write_text("what a killed process leaves", encoding="utf-8")
    assert run_study(StudyFile.resolve(fruit_study(folders)), tmp_path / "out").failures == ()


@pytest.mark.slow
def test_soups_that_fail_cost_no_result(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(study, "run_member", stub(tiny))
    monkeypatch.setattr("shiftproof.studies.soups.uniform_soup", full)
    file = StudyFile.resolve(fruit_study(folders, configurations={"a": {}, "b": {}}, soups=["uniform"]))
    with pytest.raises(MemoryError):
        run_study(file, tmp_path / "out")
    assert [member.name for member in read_record(tmp_path / "out").members] == ["a-seed-0", "b-seed-0"]


@pytest.mark.slow
def test_members_and_soups_re_estimate_batch_norm(folders: Path, tmp_path: Path, played: Played) -> None:
    run = {"model": "timm:test_resnet", "random_weights": True, "batch_norm": "re-estimated"}
    run["evaluation"] = {"precision": "bfloat16"}
    configurations = {"a": {}, "b": {"finetune.lr": 0.1}}
    asked = StudyFile.resolve(fruit_study(folders, run=run, configurations=configurations, soups=["uniform", "greedy"]))
    found = run_study(asked, tmp_path / "out")
    run_file = asked.members()[0].run_file
    suite = load_run_suite(run_file)
    start = build_start(run_file, suite)
    suite = suite.relabelled(start.classes)
    images = batch_norm_images(run_file, suite)
    assert images is not None and len(images) == 3  # one of each class, as the fine-tuning saw
    on: dict[str, Any] = {"device": "cpu", "precision": "bfloat16"}
    swept = partial(sp.sweep_alpha, suite=suite, alphas=[0, 0.5, 1], batch_norm_images=images, **on)
    folders_of = {name: tmp_path / "out" / "members" / name / "fine_tuned" for name in ("a-seed-0", "b-seed-0")}
    tuned = {name: sp.load_classifier(folder) for name, folder in folders_of.items()}
    for member in found.members:
        ends = start, tuned[member.name]
        assert member.path == swept(*ends)
    soup = reestimate_batch_norm(sp.ensembling.uniform_soup(list(tuned.values())), images)
    saved = sp.load_classifier(tmp_path / "out" / "soups" / "uniform" / "fine_tuned")
    assert sp.models.fingerprint(saved) == sp.models.fingerprint(soup)
    assert found.soups[0].path == swept(start, saved)
    greedy = sp.ensembling.greedy_soup(list(tuned.values()), suite.reference.validation, batch_norm_images=images, **on)
    chosen = sp.load_classifier(tmp_path / "out" / "soups" / "greedy" / "fine_tuned")
    assert sp.models.fingerprint(chosen) == sp.models.fingerprint(greedy.classifier)
    assert found.soups[1].members == tuple(list(tuned)[i] for i in greedy.record.members)


def test_a_run_that_no_machine_has_room_for_is_refused(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray itself would wait for such a machine for ever.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    for wish in ({"cpus_per_run": 3}, {"gpus_per_run": 1}):
        with pytest.raises(sp.InputError, match=next(iter(wish))):
            run_study(StudyFile.resolve(fruit_study(folders, **wish)), tmp_path / next(iter(wish)))


@pytest.mark.slow
def test_progress_counts_failures_too(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"b-seed-0": sp.InputError("it is so\nand so"), "c-seed-0": KeyError("")}
    monkeypatch.setattr(study, "run_member", stub(tiny, failing))
    file = StudyFile.resolve(fruit_study(folders, configurations={"a": {}, "b": {}, "c": {}, "d": {}}))
    events: list[progress.Event] = []
    with progress.listening(events.append):
        record = run_study(file, tmp_path / "out")
    reported = [(event.done, event.total, event.values.get("failed", 0)) for event in events if event.stage == "study"]
    assert reported == [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 2), (4, 4, 2)]
    assert [(failure.name, failure.error) for failure in record.failures] == [
        ("b-seed-0", "it is so"),
        ("c-seed-0", "KeyError: ''"),
    ]
    for name in ("b", "c"):
        assert "a task failed" in (tmp_path / f"out/members/{name}-seed-0/error.txt").read_text()
    # Those that ended are not run again.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    events.clear()
    with progress.listening(events.append):
        whole = run_study(file, tmp_path / "out", resume=True)
    assert [event.done for event in events if event.stage == "study"] == [2, 3, 4]
    assert [member.name for member in whole.members] == [f"{name}-seed-0" for name in "abcd"]
    assert whole.failures == ()


def test_a_study_of_which_all_runs_fail_says_why(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"a-seed-0": sp.InputError("the one reason"), "b-seed-0": ValueError("the other")}
    monkeypatch.setattr(study, "run_member", stub(tiny, failing))
    file = StudyFile.resolve(fruit_study(folders, configurations={"a": {}, "b": {}}))
    with pytest.raises(sp.ShiftproofError, match=r"a-seed-0: the one reason\n  b-seed-0: ValueError: the other"):
        run_study(file, tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()


def test_data_that_are_missing_are_told_before_anything_is_written(
    folders: Path, tmp_path: Path, played: Played
) -> None:
    settings = fruit_study(folders, configurations={"a": {}, "b": {}})
    settings["run"]["suite"]["reference"]["test"] = "folder:fotos"
    with pytest.raises(sp.InputError, match="the folder fotos does not exist"):
        run_study(StudyFile.resolve(settings), tmp_path / "out")
    assert not (tmp_path / "out" / "study.yaml").exists()
    assert played.options == []


@pytest.mark.slow
def test_a_directory_belongs_to_one_study(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    file = StudyFile.resolve(fruit_study(folders, configurations={"a": {}}))
    other = StudyFile.resolve(fruit_study(folders, configurations={"a": {}, "b": {}}))
    out = tmp_path / "out"
    run_study(file, out)
    before = (out / "study.json").read_bytes()
    with pytest.raises(sp.InputError, match="already holds a study"):
        run_study(file, out)
    with pytest.raises(sp.InputError, match="has other settings than this study"):
        run_study(other, out, resume=True)
    with pytest.raises(sp.InputError, match="Give one of the two"):
        run_study(file, out, resume=True, overwrite=True)
    with locked(out), pytest.raises(sp.InputError, match="in use by another"):
        run_study(file, out, resume=True)
    assert (out / "study.json").read_bytes() == before
    assert StudyFile.read(out / "study.yaml") == file
    assert [member.name for member in run_study(other, out, overwrite=True).members] == ["a-seed-0", "b-seed-0"]
    (out / "notes.txt").write_text("do not lose me", encoding="utf-8")
    for choice in ({}, {"overwrite": True}):
        with pytest.raises(sp.InputError, match=r"'notes\.txt', which no study wrote"):
            run_study(other, out, **choice)
    run_study(other, out, resume=True)  # deletes nothing, so that other files may stay
    assert (out / "notes.txt").is_file() and (out / "members" / "a-seed-0" / "member.json").is_file()


@pytest.mark.slow
def test_a_study_goes_on_with_others_soups_and_another_use_of_the_machine(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    settings = fruit_study(folders, configurations={"a": {}, "b": {}})
    before = run_study(StudyFile.resolve(settings), tmp_path / "out")
    changed = ["soups=[uniform]", "cpus_per_run=2", "run.finetune.accumulate=2", "run.finetune.checkpoint_every=1"]
    after = run_study(StudyFile.resolve(settings, changed), tmp_path / "out", resume=True)
    assert after.members == before.members
    assert [soup.name for soup in after.soups] == ["uniform soup"]
    assert StudyFile.read(tmp_path / "out" / "study.yaml") == StudyFile.resolve(settings, changed)
    for other in ("rule=tolerance", "run.finetune.lr=0.5", "run.limit=2", "configurations.b.finetune.epochs=9"):
        with pytest.raises(sp.InputError, match="has other settings than this study"):
            run_study(StudyFile.resolve(settings, [other]), tmp_path / "out", resume=True)


@pytest.mark.slow
def test_a_soup_that_cannot_be_is_told_and_costs_no_result(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise sp.InputError("they are of two architectures")

    monkeypatch.setattr(study, "run_member", stub(tiny))
    monkeypatch.setattr("shiftproof.studies.soups.uniform_soup", refused)
    file = StudyFile.resolve(fruit_study(folders, configurations={"a": {}, "b": {}}, soups=["uniform", "greedy"]))
    record = run_study(file, tmp_path / "out")
    assert record.failures == (StudyFailure("uniform soup", "they are of two architectures"),)
    assert [soup.name for soup in record.soups] == ["greedy soup"]
    assert read_record(tmp_path / "out") == record


@pytest.mark.slow
def test_a_soup_takes_in_what_a_resumed_study_adds(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurations = {"a": {}, "bcd": {}, "efghij": {}}
    file = StudyFile.resolve(fruit_study(folders, configurations=configurations, soups=["uniform"]))
    monkeypatch.setattr(study, "run_member", stub(tiny, {"bcd-seed-0": RuntimeError("not yet")}))
    (soup,) = run_study(file, tmp_path / "out").soups
    assert soup.members == ("a-seed-0", "efghij-seed-0")
    saved = (tmp_path / "out/soups/uniform/member.json").stat().st_mtime_ns
    # Another failure changes no soup; what stands is not made again.
    run_study(file, tmp_path / "out", resume=True)
    assert (tmp_path / "out/soups/uniform/member.json").stat().st_mtime_ns == saved
    monkeypatch.setattr(study, "run_member", stub(tiny))
    (soup,) = run_study(file, tmp_path / "out", resume=True).soups
    assert soup.members == ("a-seed-0", "bcd-seed-0", "efghij-seed-0")
    members = [sp.load_classifier(tmp_path / f"out/members/{name}/fine_tuned") for name in soup.members]
    mean = sp.average_weights([member.state_dict() for member in members])
    weights = sp.load_classifier(tmp_path / "out/soups/uniform/fine_tuned").state_dict()
    assert all(torch.equal(weights[name], entry) for name, entry in mean.items())


def test_soups_are_never_validated_on_images_that_a_member_was_trained_on(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without validation data every seed holds out a fifth of its own, which the other seeds' runs train on.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    settings = fruit_study(folders, seeds=[0, 1], soups=["greedy"])
    del settings["run"]["suite"]["reference"]["validation"]
    with pytest.raises(sp.InputError, match="validation"):
        run_study(StudyFile.resolve(settings), tmp_path / "out")


def test_a_cluster_that_does_not_answer_is_told_at_once(folders: Path, tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # nobody listens there
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        for address in (place, f"ray://{place}"):
            begun = time.monotonic()
            with pytest.raises(sp.InputError, match=f"no Ray cluster answers at '{address}'.*`address`"):
                run_study(StudyFile.resolve(fruit_study(folders)), tmp_path / "out", address=address)
            assert time.monotonic() - begun < 30
    assert not (tmp_path / "out").exists()


def test_without_ray_the_way_to_install_it_is_told(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shiftproof\[study\]'"):
        run_study(StudyFile.resolve(fruit_study(folders)), tmp_path / "out")
