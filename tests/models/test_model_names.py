"""Names of models that cannot be used: random weights, rectangular images, paths without a scheme."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import yaml
from support.commands import Call, assert_mistake, data_flags
from support.folders import tree_contents

import shiftproof as sp
from shiftproof.models.encoders import load_encoder

UNTAGGED = "open_clip:ViT-S-32-alt"


def small_model(folder: Path, image_size: int | list[int], *, weights: bool = True) -> str:
    """The name of an open_clip model in a directory: two transformers of one layer."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": image_size, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    if weights:
        from safetensors.torch import save_file

        model = open_clip.CLIP(**config)
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("command", ["zeroshot", "finetune"])
def test_random_weights_are_refused_before_anything_is_written(folders: Path, call: Call, command: str) -> None:
    ended = call(command, UNTAGGED, *data_flags(folders), "--out", "out")
    assert_mistake(ended, f"the model '{UNTAGGED}' has random weights, since its name has no tag")
    assert "add --random-weights if" in ended.err
    assert not Path("out").exists()


def test_random_weights_are_refused_in_runs_and_studies(folders: Path, call: Call) -> None:
    suite = {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}}
    Path("run.yaml").write_text(yaml.safe_dump({"model": UNTAGGED, "suite": suite}))
    Path("grid.yaml").write_text(yaml.safe_dump({"run": {"model": UNTAGGED, "suite": suite}}))
    for command in ("run", "study"):
        ended = call(command, f"{'run' if command == 'run' else 'grid'}.yaml", "--out", "out")
        assert_mistake(ended, f"'{UNTAGGED}' has random weights")
        assert "--random-weights" in ended.err
    assert not Path("out").exists()


def test_random_weights_are_refused_in_a_diagnosis(folders: Path, call: Call) -> None:
    data = ["--data", f"folder:{folders}/test"]
    ended = call("diagnose", "strong-edge", "--model", "timm:resnet18", "--head", "own", *data, "--out", "out")
    assert_mistake(ended, "'timm:resnet18' has random weights")
    assert "e.g. timm:resnet18." in ended.err
    assert_mistake(call("diagnose", "agreement", "tiny", UNTAGGED, *data), f"'{UNTAGGED}' has random weights")


@pytest.mark.slow
def test_random_weights_are_used_where_they_are_wanted(folders: Path, call: Call) -> None:
    name = "open_clip:shiftproof-tiny"
    ended = call("zeroshot", name, *data_flags(folders), "--out", "out", "--random-weights")
    assert ended.code == 0, ended.err
    assert sp.load_classifier("out").source == name
    assert sp.load_clip(name).name == name


def test_the_message_names_a_tag() -> None:
    with pytest.raises(sp.InputError, match="e.g. open_clip:ViT-B-32/openai, or add `random_weights=True`"):
        sp.load_clip("open_clip:ViT-B-32", random_weights=False)
    with pytest.raises(sp.InputError, match="e.g. timm:resnet18.a1_in1k"):
        load_encoder("timm:resnet18", random_weights=False)


def test_leave_for_random_weights_makes_no_other_run() -> None:
    one, other = (sp.RunFile.resolve({"model": UNTAGGED, "random_weights": leave}) for leave in (False, True))
    assert one.gives_the_same_results(other)


def test_a_directory_without_weights_is_not_filled_with_random_ones(tmp_path: Path) -> None:
    name = small_model(tmp_path / "model", 32, weights=False)
    with pytest.raises(sp.InputError, match="no weights file|cannot be loaded"):
        sp.load_clip(name)
    assert sp.load_clip(small_model(tmp_path / "whole", 32)).preprocessing.size == 32


def test_a_model_of_rectangular_images_is_refused_before_anything_is_written(folders: Path, call: Call) -> None:
    name = small_model(Path("wide").absolute(), [32, 64])
    ended = call("zeroshot", name, *data_flags(folders), "--out", "out")
    assert_mistake(ended, f"the model '{name}' takes images of 32 x 64 pixels; they must be square")
    assert not Path("out").exists()
    assert sp.load_clip(small_model(Path("square").absolute(), [32, 32])).preprocessing.size == 32


@pytest.mark.parametrize(
    ("files", "hint"),
    [
        ({"config.json": '{"model_type": "clip"}'}, "a transformers model: write hf:tinyclip"),
        ({"open_clip_config.json": "{}"}, "write local-dir:tinyclip"),
        ({"ensemble/classifier.json": "{}"}, "run directory: name one of its classifiers, e.g. tinyclip/ensemble"),
        ({"notes.txt": ""}, "without classifier.json or open_clip_config.json, so it holds no model"),
    ],
)
def test_a_directory_named_as_a_model_gets_a_hint_at_what_it_holds(
    files: dict[str, str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in files.items():
        path = Path("tinyclip", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    before = tree_contents(tmp_path)
    with pytest.raises(sp.InputError, match=f"unknown model 'tinyclip'.*{hint}"):
        sp.load_clip("tinyclip")
    assert tree_contents(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("weights.pt", "open_clip:ViT-B-32/weights.pt"),
        ("laion/CLIP-ViT-B-32", "hf-hub:laion/CLIP-ViT-B-32"),
        ("tinny", "Did you mean 'tiny'"),
    ],
)
def test_a_name_without_a_scheme_gets_a_hint_at_the_whole_name(name: str, hint: str) -> None:
    with pytest.raises(sp.InputError, match=hint):
        sp.load_clip(name)
