"""Mistakes of users: one message on stderr, no traceback, exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from support.commands import Call, assert_mistake, data_flags

import shiftproof as sp


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
    "class that the test data lacks": (["--test", "folder:lacking"], "lacks classes of the reference: 'pear'"),
    "class that a shift has too many": (["--shift", "sketch=folder:extra"], "the reference lacks: 'plum'"),
    "image that cannot be decoded": (["--shift", "s=folder:damaged"], "damaged/lemon/lemon-1.png cannot be decoded"),
    "shift without a name": (["--shift", "folder:extra"], "must look like sketch=folder:PATH"),
    "two sets of one name": (["--shift", "reference=folder:{folders}/sketch"], "'reference'"),
    "set kind": (["--test", "foldr:x"], "'foldr'. Did you mean 'folder'?"),
    "corruption": (["--corrupt", "noice:3"], "corruption 'noice'. Did you mean 'noise'?"),
    "severity": (["--corrupt", "noise:9"], "has the severity '9'; it must be one of 1, 2, 3, 4, 5, as in noise:3"),
    "severity in words": (["--corrupt", "noise:x"], "has the severity 'x'; it must be one of 1, 2, 3, 4, 5"),
    "no severity": (["--corrupt", "blur"], "--corrupt 'blur' has no severity; it must be one of 1, 2, 3, 4, 5"),
    "unknown corruption": (["--corrupt", "fog"], "unknown corruption 'fog'. Known: 'noise', 'blur'"),
    "severity of a data name": (["--shift", "n=corrupted:noise:9:emoji"], "has the severity '9'; it must be one of 1"),
    "key of a sweep": (["--set", "alphas=5"], "`zeroshot` has no use for the key 'alphas', which belongs to"),
    "prompt set": (["--prompts", "foto"], "prompt set 'foto'. Did you mean 'photo'?"),
    "template": (["--prompts", "a {} of {}"], "'a {} of {}'"),
    "run-file key": (["--set", "finetune.epoch=3"], "key 'finetune.epoch'. Did you mean 'epochs'?"),
    "run-file value": (["--set", "finetune.lr=fast"], "'finetune.lr' is 'fast'"),
    "device": (["--device", "gpu"], "the device 'gpu' cannot be used here"),
    "suite": (["--suite", "emojy"], "Omit it to give"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_data_or_the_settings(folders: Path, call: Call, mistake: str) -> None:
    broken_copies(folders)
    changes, message = MISTAKES[mistake]
    flags = data_flags(folders, shift=False)
    for flag, value in zip(changes[::2], changes[1::2], strict=True):
        filled = value.replace("{folders}", str(folders))
        if flag in flags:
            flags[flags.index(flag) + 1] = filled
        else:
            flags += [flag, filled]
    ended = call("zeroshot", "tiny", *flags, "--out", "out")
    assert_mistake(ended, message)


@pytest.mark.parametrize(
    ("arguments", "message"),
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
        (["predict", "absent", "x.png"], "absent is not a classifier directory: it does not exist"),
        (["evaluate", "absent", "--suite", "emoji"], "absent is not a classifier directory: it does not exist"),
        (["sweep", "absent", "other", "--suite", "emoji"], "absent is not a classifier directory: it does not exist"),
        (["report", "absent"], "absent/summary.json does not exist"),
        (["study", "absent.yaml"], "the study file absent.yaml does not exist"),
        (["study", "plain.yaml"], "plain.yaml is a run file, since it has the key 'model'"),
        (["run", "grid.yaml"], "grid.yaml is a study file, since it has the key 'run', and a run file is needed here"),
        (["pretrain", "grid.yaml"], "Run it with shiftproof study grid.yaml."),
        (["doctor", "grid.yaml"], "Run it with shiftproof study grid.yaml."),
        (["run", "folder"], "folder is a directory; a run file in YAML is needed here"),
        (["sweep", "a", "b", "--suite", "emoji", "--set", "finetune.lr=1"], "belongs to 'run', 'demo', 'finetune'"),
        (["run", "plain.yaml", "--set", "pretrain={data: x}"], "'pretrain', which belongs to 'pretrain'"),
        (["demo", "--set", "pretrain.data=x"], "has no use for the key 'pretrain.data'"),
        (
            ["finetune", "tiny", "--suite", "emoji", "--set", "alpha_rule=fixed"],
            "which belongs to 'run', 'demo', 'sweep'",
        ),
        (["pretrain", "words.yaml", "--set", "limit=3"], "`pretrain` has no use for the key 'limit'"),
        (["doctor", "tiny", "--set", "seed=3"], "'tiny' is checked as model, which has none"),
        (["sweep", "a", "b", "--suite", "emoji", "--alphas", "1"], "--alphas is 1; a path needs at least two"),
        (["sweep", "a", "b", "--suite", "emoji", "--alpha", "1.5"], "1.5 is not between 0 and 1"),
        (["finetune", "tiny", "--suite", "emoji", "--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
        (["export-suite", "emojis", "--out", "x"], "unknown suite 'emojis'. Did you mean 'emoji'?"),
    ],
)
def test_a_mistake_in_a_name(call: Call, arguments: list[str], message: str) -> None:
    Path("plain.yaml").write_text("model: tiny\n", encoding="utf-8")
    Path("grid.yaml").write_text("run: {model: tiny}\nseeds: [0, 1]\n", encoding="utf-8")
    Path("words.yaml").write_text("model: tiny\npretrain: {data: csv:words.csv}\n", encoding="utf-8")
    Path("folder").mkdir()
    assert_mistake(call(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zeroshoot"], "Did you mean 'zeroshot'?"),
        (["zeroshot"], "Missing argument"),
        (["predict", "x"], "name images to predict, or a folder with --folder"),
        (["predict", "x", "--data", "wds:y"], "or other data with --data NAME, and a file for them with --csv OUT"),
        (["predict", "x", "--data", "wds:y", "--folder", "z", "--csv", "o"], "name images to predict, or a folder"),
        (["predict", "x", "y.png", "--top", "0"], "--top"),
        (["zeroshot", "tiny", "--seed", "-1"], "--seed"),
        (["demo", "--sede", "1"], "--seed"),
    ],
)
def test_a_mistake_in_the_usage(call: Call, arguments: list[str], message: str) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_a_run_file_s_mistakes_are_told_before_anything_is_written(folders: Path, call: Call) -> None:
    settings = {"modell": "tiny", "suite": {"reference": {"trian": "folder:a", "test": "folder:b"}}, "alphas": 1}
    Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    ended = call("run", "run.yaml", "--out", "out")
    assert_mistake(ended, "suite.reference.train")
    for message in ("'modell'. Did you mean 'model'?", "'suite.reference.trian'. Did you mean 'train'?"):
        assert message in ended.err
    assert sorted(path.name for path in Path().iterdir()) == ["run.yaml"]


@pytest.mark.parametrize("command", ["zeroshot", "finetune", "sweep", "evaluate"])
def test_an_occupied_folder_is_left_alone(folders: Path, call: Call, tiny: sp.models.Clip, command: str) -> None:
    Path("out").mkdir()
    Path("out/notes.txt").write_text("do not lose me", encoding="utf-8")
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    sp.save_classifier(zero, "zero")
    operands = {"zeroshot": ["tiny"], "finetune": ["zero"], "sweep": ["zero", "zero"], "evaluate": ["zero"]}[command]
    flags = data_flags(folders, shift=False)
    ended = call(command, *operands, *(flags[4:] if command == "evaluate" else flags), "--out", "out")
    assert_mistake(ended, "out already holds 'notes.txt'")
    assert [path.name for path in Path("out").iterdir() if path.name != ".lock"] == ["notes.txt"]


def test_an_image_that_cannot_be_predicted_is_named(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"])), "zero")
    Path("notes.png").write_text("no picture", encoding="utf-8")
    good = folders / "test/pear/pear-0.png"
    assert_mistake(call("predict", "zero", good, "notes.png"), "the image notes.png cannot be decoded")
    assert_mistake(call("predict", "zero", good, "absent.png"), "the image absent.png does not exist")


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_an_image_of_any_colour_mode_is_predicted(call: Call, tiny: sp.models.Clip, mode: str) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"])), "zero")
    Image.new("RGB", (50, 20), (240, 210, 40)).convert(mode).save("image.tif")
    ended = call("predict", "zero", "image.tif", "--json")
    assert ended.code == 0, ended.err
    assert len(json.loads(ended.out)[0]["top"]) == 2
    assert ("1 of 1 picture read had to be converted" in ended.err) == (mode == "CMYK")


def test_a_training_that_breaks_says_where_the_good_weights_are(folders: Path, call: Call) -> None:
    broken = ["--set", "finetune.lr=1e20", "--set", "finetune.batch_size=9"]
    ended = call("finetune", "tiny", *data_flags(folders), *broken, "--out", "out")
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
        call("zeroshot", "tiny", *data_flags(folders))
