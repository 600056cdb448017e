"""What paths in run files and study files are relative to, and keys that are given twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.commands import Call, assert_mistake, quick_training_flags

import shiftproof as sp
from shiftproof.models.directories import save_classifier
from shiftproof.runs.file import SuiteFile
from shiftproof.runs.yaml_text import DuplicateKeyError, parse_yaml
from shiftproof.studies.file import StudyFile

pytestmark = pytest.mark.usefixtures("blank_figures")

RUN = """
model: zero
suite:
  reference: {train: folder:photos/train, test: csv:photos/test.csv}
  shifts: {noise: {data: "corrupted:noise:3:folder:photos/test"}, other: {data: emoji}}
pretrain: {data: csv:pairs.csv}
"""


def paths_of(run_file: sp.RunFile) -> list[str]:
    assert isinstance(run_file.suite, SuiteFile)
    assert run_file.pretrain is not None
    reference, shifts = run_file.suite.reference, run_file.suite.shifts
    return [reference.train, reference.test, shifts["noise"].data, shifts["other"].data, run_file.pretrain.data]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run file in the folder ``configs``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/run.yaml").write_text(RUN)
    return tmp_path


def fill(folder: Path) -> None:
    for name in ("photos/train", "photos/test"):
        (folder / name).mkdir(parents=True)
    for name in ("photos/test.csv", "pairs.csv"):
        (folder / name).write_text("filepath,label\n")


def test_paths_are_relative_to_the_folder_of_the_run_file(project: Path) -> None:
    fill(project / "configs")
    assert paths_of(sp.RunFile.read("configs/run.yaml")) == [
        "folder:configs/photos/train",
        "csv:configs/photos/test.csv",
        "corrupted:noise:3:folder:configs/photos/test",
        "emoji",
        "csv:configs/pairs.csv",
    ]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("wds:shards,split=val", "wds:configs/shards,split=val"),
        ("hf:./table,label=kind", "hf:configs/table,label=kind"),
        ("hf:photos/train", "hf:configs/photos/train"),  # a folder that exists
        ("hf:train.parquet", "hf:configs/train.parquet"),
        ("hf:org/name,split=test", "hf:org/name,split=test"),  # a name on the hub
    ],
)
def test_options_follow_a_path_and_names_on_the_hub_are_no_paths(project: Path, written: str, read: str) -> None:
    fill(project / "configs")
    (project / "configs/run.yaml").write_text(
        f"model: tiny\nsuite: {{reference: {{train: '{written}', test: emoji}}}}\n"
    )
    run_file = sp.RunFile.read("configs/run.yaml")
    assert isinstance(run_file.suite, SuiteFile)
    assert run_file.suite.reference.train == read


def test_the_image_cache_need_not_exist_and_is_beside_the_run_file(project: Path) -> None:
    (project / "configs/run.yaml").write_text("model: tiny\nimage_cache: pictures\n")
    assert sp.RunFile.read("configs/run.yaml").image_cache == "configs/pictures"
    assert sp.RunFile.read("configs/run.yaml", ["image_cache=pictures"]).image_cache == "pictures"


def test_a_missing_path_is_reported_where_it_was_expected(project: Path) -> None:
    assert paths_of(sp.RunFile.read("configs/run.yaml"))[0] == "folder:configs/photos/train"


def test_paths_that_exist_in_the_working_directory_only_still_work(project: Path) -> None:
    fill(project)
    assert paths_of(sp.RunFile.read("configs/run.yaml")) == [
        "folder:photos/train",
        "csv:photos/test.csv",
        "corrupted:noise:3:folder:photos/test",
        "emoji",
        "csv:pairs.csv",
    ]


def test_a_path_that_exists_in_both_places_is_refused(project: Path) -> None:
    fill(project)
    fill(project / "configs")
    with pytest.raises(sp.InputError, match=r"photos/train' leads to configs/photos/train.* and to .*Write it in full"):
        sp.RunFile.read("configs/run.yaml")


def test_one_folder_under_two_paths_is_no_ambiguity(project: Path) -> None:
    fill(project)
    for name in ("photos", "pairs.csv"):
        (project / "configs" / name).symlink_to(project / name)
    assert paths_of(sp.RunFile.read("configs/run.yaml"))[0] == "folder:photos/train"


def test_a_run_file_in_the_working_directory_is_read_as_it_stands(project: Path) -> None:
    (project / "run.yaml").write_text(RUN)
    for path in ("run.yaml", "./run.yaml", project / "run.yaml"):
        assert paths_of(sp.RunFile.read(path))[0] == "folder:photos/train"


def test_options_and_recorded_files_are_relative_to_the_working_directory(project: Path) -> None:
    fill(project / "configs")
    given = sp.RunFile.read("configs/run.yaml", ["suite.reference.train=folder:mine"])
    assert paths_of(given)[0] == "folder:mine"
    (project / "out").mkdir()
    (project / "out/run.yaml").write_text(given.to_yaml() + yaml.safe_dump({"versions": {"torch": "2"}}))
    assert sp.RunFile.read("out/run.yaml") == given


def test_the_home_directory_is_expanded_in_run_files_and_options(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    (project / "run.yaml").write_text(RUN.replace("photos/", "~/photos/").replace("zero", "~/zero"))
    read = sp.RunFile.read("run.yaml", ["pretrain.data=csv:~/pairs.csv"])
    assert paths_of(read) == [
        "folder:/home/me/photos/train",
        "csv:/home/me/photos/test.csv",
        "corrupted:noise:3:folder:/home/me/photos/test",
        "emoji",
        "csv:/home/me/pairs.csv",
    ]
    assert read.model == "/home/me/zero"
    assert sp.RunFile.resolve({"model": "local-dir:~/clip"}).model == "local-dir:/home/me/clip"
    monkeypatch.setenv("HOME", str(project))
    assert paths_of(sp.RunFile.read("~/run.yaml"))[1] == f"csv:{project}/photos/test.csv"


def test_a_classifier_directory_beside_the_run_file_is_the_model(project: Path, tiny: sp.models.Clip) -> None:
    assert sp.RunFile.read("configs/run.yaml").model == "zero"
    save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["a", "b"])), project / "configs/zero")
    read = sp.RunFile.read("configs/run.yaml")
    assert read.model == "configs/zero"
    assert read.finetune == sp.RunFile.resolve({"model": "tiny"}).finetune


def test_study_files_follow_the_same_rule(project: Path) -> None:
    fill(project / "configs")
    study = {
        "run": {"suite": yaml.safe_load(RUN)["suite"]},
        "configurations": {"a": {"model": "nets/a"}},
        "grid": {"model": ["tiny", "nets/b"]},
    }
    (project / "configs/study.yaml").write_text(yaml.safe_dump(study))
    read = StudyFile.read("configs/study.yaml")
    assert read.run["suite"]["reference"]["train"] == "folder:configs/photos/train"
    assert read.grid["model"] == ["tiny", "configs/nets/b"]
    assert read.configurations["a"]["model"] == "configs/nets/a"
    assert StudyFile.resolve(yaml.safe_load(read.to_yaml())) == read


@pytest.mark.slow
def test_a_run_file_in_another_folder_is_run_and_resumed(
    folders: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/photos").symlink_to(folders)
    text = (
        "model: tiny\nsuite: {reference: {train: folder:photos/train, test: folder:photos/test}}\nalphas: [0, 0.5, 1]\n"
    )
    (tmp_path / "configs/run.yaml").write_text(text)
    arguments = ["run", "configs/run.yaml", *quick_training_flags(), "--out", "~/out"]
    assert call(*arguments).code == 0
    recorded = yaml.safe_load((tmp_path / "out/run.yaml").read_text(encoding="utf-8"))
    assert recorded["suite"]["reference"]["train"] == f"folder:{Path.cwd()}/configs/photos/train"
    assert call(*arguments, "--resume").code == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: tiny\nseed: 1\nmodel: other\n", "'model' is given twice, on line 1 and on line 3"),
        ("finetune:\n  lr: 1\n  epochs: 2\n  lr: 3\n", "'lr' is given twice, on line 2 and on line 4"),
        ("finetune: {lr: 1, lr: 2}", "'lr' is given twice, on line 1 and on line 1"),
        ("shifts: [{data: a, data: b}]", "'data' is given twice"),
    ],
)
def test_a_key_that_is_given_twice_is_refused(tmp_path: Path, text: str, message: str, call: Call) -> None:
    with pytest.raises(DuplicateKeyError, match=message):
        parse_yaml(text)
    (tmp_path / "mine.yaml").write_text(text)
    for read in (sp.RunFile.read, StudyFile.read):
        with pytest.raises(sp.InputError, match=message) as caught:
            read(tmp_path / "mine.yaml")
        assert "mine.yaml" in str(caught.value)
    for command in ("run", "study", "pretrain"):
        assert_mistake(call(command, "mine.yaml"), message)


def test_a_key_of_an_option_that_is_given_twice_is_refused() -> None:
    with pytest.raises(sp.InputError, match="'lr' is given twice"):
        sp.RunFile.resolve({}, ["finetune={lr: 1, lr: 2}"])


def test_a_key_may_override_a_merged_one_and_occur_in_other_sections() -> None:
    text = "a: &a {lr: 1, seed: 2}\nb: &b {<<: *a, lr: 3}\nc: {<<: *b, lr: 4}\nd: [*a, *a]\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
