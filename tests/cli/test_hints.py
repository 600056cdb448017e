"""What the messages of common mistakes name: the key that is wrong, the place in the file, and what was meant."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from support.commands import Call, assert_mistake, data_flags

import shiftproof as sp
from shiftproof.runs.file import RunFile


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"epochs": -1}, "finetune.epochs"),
        ({"epochs": 0, "mixing": "mixup", "mixing_off_epochs": 0}, "finetune.epochs"),
        ({"epochs": -1, "mixing": "mixup", "mixing_off_epochs": 2}, "finetune.epochs"),
        ({"epochs": 3, "mixing": "mixup", "mixing_off_epochs": 4}, "finetune.mixing_off_epochs"),
        ({"batch_size": 0, "accumulate": 4}, "finetune.batch_size"),
    ],
)
def test_the_key_that_is_wrong_is_blamed(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(sp.InputError, match=f"^{key} is"):
        sp.FinetuneSettings(**settings)


@pytest.mark.parametrize("section", ["", "finetune", "pretrain"])
def test_all_keys_of_a_section_are_listed(section: str) -> None:
    unknown = {"zzzzzzzz": 1}
    plain: dict[str, Any] = {section: {"data": "emoji", **unknown} if section == "pretrain" else unknown}
    with pytest.raises(sp.InputError) as caught:
        RunFile.resolve(plain if section else unknown)
    known = {
        "": set(RunFile.model_fields),
        "finetune": {entry.name for entry in fields(sp.FinetuneSettings)},
        "pretrain": {entry.name for entry in fields(sp.PretrainSettings)} | {"data"},
    }
    message = str(caught.value)
    assert {name for name in known[section] if f"'{name}'" not in message} == set()
    assert " more" not in message
    assert "docs/run-file.md" in message


def test_a_run_file_without_a_model_is_refused(folders: Path, call: Call) -> None:
    suite = {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}}
    Path("run.yaml").write_text(yaml.safe_dump({"suite": suite}))
    Path("grid.yaml").write_text(yaml.safe_dump({"run": {"suite": suite}}))
    assert_mistake(call("run", "run.yaml", "--out", "out"), "the run file run.yaml names no model")
    assert_mistake(call("study", "grid.yaml", "--out", "out"), "the study file grid.yaml names no model")
    assert not Path("out").exists()
    assert RunFile.read("run.yaml", ["model=tiny"]).model == "tiny"
    Path("typo.yaml").write_text("modell: tiny\n")
    assert_mistake(call("run", "typo.yaml"), "'modell'. Did you mean 'model'?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: tiny\nfinetune:\n\tepochs: 3\n", "is not valid YAML: line 3 has a tab. YAML is indented by spaces"),
        ("model: tiny\nfinetune:\n  lr: 1\n\tepochs: 3\n", "line 4 has a tab"),
        ("model: tiny\n  epochs: 3\n", "at line 2, column 9. Check the indentation"),
        ("model: [tiny\n", "line 2"),
        ("model: 'tiny\n", "Check the indentation, colons, brackets and quotes"),
    ],
)
def test_a_mistake_in_yaml_names_its_line(call: Call, text: str, message: str) -> None:
    Path("run.yaml").write_text(text)
    ended = call("run", "run.yaml")
    assert_mistake(ended, "run.yaml is not valid YAML")
    assert message in ended.err
    assert "unicode string" not in ended.err
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sweep", "zero", "zero", "--alphas", "0,3"], "3 is not between 0 and 1"),
        (["merge", "a.safetensors", "b.safetensors", "--alpha", "0,5", "--out", "c"], "Write a decimal point: 0.5."),
        (["merge", "a.safetensors", "b.safetensors", "--layer", "w=0,5", "--out", "c"], "Write a decimal point: 0.5."),
        (["merge", "a.safetensors", "b.safetensors", "--depth", "0,2:0,8", "--out", "c"], "a decimal point: 0.2."),
        (["finetune", "tiny", "--set", "finetune.lr=0,001"], "Write a decimal point: 0.001."),
    ],
)
def test_a_comma_in_place_of_the_decimal_point(folders: Path, call: Call, command: list[str], message: str) -> None:
    ended = call(*command, *(data_flags(folders) if command[0] in ("sweep", "finetune") else []))
    assert ended.code == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            "folder:test.zip",
            "test.zip is a file, not a folder. Unpack the archive, and name the folder, as in folder:test.",
        ),
        ("folder:mine.csv", "For a CSV file, write csv:mine.csv."),
        ("csv:textile/test", "is a folder, not a CSV file. For images in class folders, write folder:textile/test."),
        ("csv:table.xlsx", "table.xlsx is not a CSV file"),
        ("textile/test", "It is a folder: write folder:textile/test."),
        ("mine.csv", "For a CSV file, write csv:mine.csv."),
        ("test.zip", "as in folder:test."),
        ("textile/absent", "as in folder:textile/absent"),
        ("foldr:textile", "Did you mean 'folder'?"),
    ],
)
def test_data_under_another_name_than_was_meant(folders: Path, call: Call, data: str, message: str) -> None:
    shutil.copytree(folders / "test", "textile/test")
    for name in ("test.zip", "mine.csv", "table.xlsx"):
        Path(name).write_text("filepath,label\n")
    flags = data_flags(folders, shift=False)
    flags[flags.index("--test") + 1] = data
    assert_mistake(call("zeroshot", "tiny", *flags, "--out", "out"), message)
    assert not Path("out").exists()


@pytest.mark.parametrize("suite", ["textile", "folder:textile", "textile/test"])
def test_a_suite_of_ones_own_data_is_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("textile").mkdir()
    with pytest.raises(sp.InputError, match="Your own data are a reference with its shifts: a section"):
        sp.load_suite(suite)


@pytest.mark.parametrize("name", ["ab.pt", "ab.bin", "ab.zip", "ab.PTH"])
def test_a_merge_writes_no_torch_file_and_no_directory_of_its_name(call: Call, name: str) -> None:
    for file, value in (("a", 0.0), ("b", 1.0)):
        save_file({"w": torch.full((3,), value)}, f"{file}.safetensors")
    ended = call("merge", "a.safetensors", "b.safetensors", "--out", name)
    assert_mistake(ended, "a merge writes safetensors files or a directory")
    assert "'ab.safetensors'" in ended.err
    assert "--out is" in ended.err
    assert not Path(name).exists()


@pytest.mark.parametrize("command", ["zeroshot", "finetune"])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "report.html"])
def test_no_directory_has_the_name_of_a_file(folders: Path, call: Call, command: str, name: str) -> None:
    ended = call(command, "tiny", *data_flags(folders), "--out", name)
    assert_mistake(ended, "is the name of a file")
    assert not Path(name).exists()


@pytest.mark.filterwarnings("default")
def test_a_shift_that_lacks_a_class_is_scored_by_every_command(folders: Path, call: Call) -> None:
    shutil.copytree(folders / "sketch", "lacking")
    shutil.rmtree("lacking/pear")
    shift = ["--shift", "sketch=folder:lacking"]
    built = call("zeroshot", "tiny", *data_flags(folders, shift=False), *shift, "--out", "zero")
    scored = call("evaluate", "zero", "--test", f"folder:{folders}/test", *shift)
    for ended in (built, scored):
        assert ended.code == 0, ended.err
        assert "warning: sketch has no image of 'pear'; its accuracy is over the others." in ended.err
