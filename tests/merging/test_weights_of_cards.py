"""Classifier directories whose weights do not fit their card: a merge refuses what an evaluation refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.folders import assert_unchanged

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.models.identity import first_fingerprint
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict


@pytest.fixture
def pair(tmp_path: Path) -> list[Path]:
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(["lemon", "pear"]))
    moved = {name: t + 0.01 if t.is_floating_point() else t for name, t in zero.state_dict().items()}
    return [
        sp.save_classifier(zero, tmp_path / "zero"),
        sp.save_classifier(zero.with_weights(moved, head="trained"), tmp_path / "tuned"),
    ]


def edit_card(folder: Path, **changes: object) -> None:
    stored = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    (folder / "classifier.json").write_text(json.dumps(stored | changes), encoding="utf-8")


def change_weights(folder: Path) -> None:
    tensors = read_state_dict(folder / "model.safetensors")
    write_state_dict({**tensors, "head.bias": tensors["head.bias"] + 1}, folder / "model.safetensors")


def round_weights(folder: Path) -> None:
    tensors = read_state_dict(folder / "model.safetensors")
    rounded = {n: t.to(torch.bfloat16).float() if t.is_floating_point() else t for n, t in tensors.items()}
    write_state_dict(rounded, folder / "model.safetensors")


def add_a_class(folder: Path) -> None:
    edit_card(folder, classes={"ids": ["lemon", "pear", "plum"], "names": ["lemon", "pear", "plum"]})


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("method", ["linear", "uniform"])
@pytest.mark.parametrize("damage", [change_weights, round_weights])
def test_weights_that_are_not_those_of_the_card_are_refused(
    tmp_path: Path, pair: list[Path], damage: Callable[[Path], None], method: str, number: int
) -> None:
    damage(pair[number])
    with pytest.raises(sp.InputError, match="are not those that its classifier.json was written with") as by_evaluation:
        sp.load_classifier(pair[number])
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError) as by_merge:
        merge_files(*pair, out=tmp_path / "merged", settings=MergeSettings(method=method))
    assert str(by_merge.value) == str(by_evaluation.value)


def test_a_card_with_more_classes_than_its_head_is_refused(tmp_path: Path, pair: list[Path]) -> None:
    for folder in pair:
        add_a_class(folder)
    with pytest.raises(sp.InputError):
        sp.load_classifier(pair[0])
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="zero are not those"):
        merge_files(*pair, out=tmp_path / "merged")


def test_a_fingerprint_of_the_first_form_fits_too(tmp_path: Path, pair: list[Path]) -> None:
    for folder in pair:
        edit_card(folder, fingerprint=first_fingerprint(sp.load_classifier(folder)))
    merge_files(*pair, out=tmp_path / "merged")
    sp.load_classifier(tmp_path / "merged")


def test_quantised_weights_in_a_classifier_directory_are_called_so(pair: list[Path]) -> None:
    tensors = read_state_dict(pair[0] / "model.safetensors")
    write_state_dict({**tensors, "head.weight": tensors["head.weight"].char()}, pair[0] / "model.safetensors")
    for read in (sp.load_classifier, lambda folder: merge_files(*pair, out=folder.parent / "merged")):
        with pytest.raises(sp.InputError, match=r"contains quantised weights: 'head\.weight' \(int8\)"):
            read(pair[0])
