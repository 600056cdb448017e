"""Greedy soups of checkpoint files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.commands import Call
from support.folders import assert_unchanged
from support.weights import SIZE, all_equal_bits, pieces_of, save_checkpoint, save_pair

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.weights.checkpoints import open_checkpoint


@pytest.mark.parametrize("out", ["soup", "soup.safetensors"])
def test_a_greedy_soup_of_files_is_the_mean_of_its_members(tmp_path: Path, out: str) -> None:
    """What is nearest to a target is best: the two whose errors cancel are taken, the far one is left out."""
    target = torch.randn(30)
    noise = torch.randn(30)
    thetas = [
        {"w": target + 5 + torch.randn(30), "n": torch.tensor(1)},
        {"w": target + 0.4 * noise, "n": torch.tensor(2)},
        {"w": target - 0.5 * noise, "n": torch.tensor(3)},
    ]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    scored: list[Path] = []

    def score(path: Path) -> float:
        scored.append(path)
        return -float((open_checkpoint(path).tensors["w"] - target).norm())

    with pieces_of(SIZE):
        (record,) = merge_files(*inputs, out=tmp_path / out, settings=MergeSettings(method="greedy"), score=score)
    stored = tmp_path / out / "model.safetensors" if out == "soup" else tmp_path / out
    assert record.members == (1, 2)
    assert all_equal_bits(load_file(stored), sp.average_weights(thetas[1:]))
    assert scored[:3] == inputs
    assert len(scored) == 5
    assert [(trial["candidate"], trial["taken"]) for trial in record.scores] == [(1, True), (2, True), (0, False)]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or "trial" in path.name]
    report = tmp_path / out / "merge.json" if out == "soup" else tmp_path / "soup.merge.json"
    assert json.loads(report.read_text())["members"] == [1, 2]
    card = (tmp_path / out / "README.md" if out == "soup" else tmp_path / "soup.md").read_text()
    assert f"Members: `{inputs[1]}`, `{inputs[2]}`." in card


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data())
def test_greedy_soups_of_files_take_what_their_scores_say(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any scores, ties among them: the recipe in five lines is the twin."""
    folder = tmp_path_factory.mktemp("greedy")
    thetas = [{"w": torch.full((3,), 2.0**number)} for number in range(4)]
    inputs = [save_checkpoint(theta, folder / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    score_of: dict[float, float] = {}
    draw = st.integers(0, 3)

    def score(path: Path) -> float:
        key = float(open_checkpoint(path).tensors["w"][0])
        if key not in score_of:
            score_of[key] = float(data.draw(draw))
        return score_of[key]

    def of(members: list[int]) -> float:
        return score_of[float(sp.average_weights([thetas[i] for i in sorted(members)])["w"][0])]

    (record,) = merge_files(*inputs, out=folder / "soup", settings=MergeSettings(method="greedy"), score=score)
    order = sorted(range(4), key=lambda i: -score_of[2.0**i])
    members = order[:1]
    for candidate in order[1:]:
        if of([*members, candidate]) >= of(members):
            members.append(candidate)
    assert list(record.members) == members
    tensors = load_file(folder / "soup" / "model.safetensors")
    assert all_equal_bits(tensors, sp.average_weights([thetas[i] for i in sorted(members)]))


def test_a_greedy_soup_needs_a_score_and_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    inputs = save_pair(tmp_path)
    how = MergeSettings(method="greedy")

    def broken(path: Path) -> float:
        if path in inputs:
            return 0.5
        raise ValueError("no images")

    with assert_unchanged(tmp_path):
        with pytest.raises(sp.InputError, match="Pass `score`, or name validation data"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how)
        with pytest.raises(ValueError, match="no images"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how, score=broken)
        with pytest.raises(sp.InputError, match="not finite"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how, score=lambda _: math.nan)


def test_a_soup_whose_score_is_nan_is_left_out(tmp_path: Path) -> None:
    """Two good models may make a soup that gives NaN; the better of them remains."""
    inputs = save_pair(tmp_path)
    (record,) = merge_files(
        *inputs,
        out=tmp_path / "soup",
        settings=MergeSettings(method="greedy"),
        score=lambda path: {inputs[0]: 0.4, inputs[1]: 0.6}.get(path, math.nan),
    )
    assert record.members == (1,)
    assert all_equal_bits(load_file(tmp_path / "soup" / "model.safetensors"), load_file(inputs[1]))
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["members"] == [1]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory, tiny: sp.models.Clip) -> list[Path]:
    """Three classifier directories: the zero-shot one, one near it, one whose head names other classes, loudly."""
    root = tmp_path_factory.mktemp("members")
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    generator = torch.Generator().manual_seed(3)
    made = []
    for name, noise in (("zero", 0.0), ("near", 1e-4), ("broken", 0.0)):
        weights = {
            key: tensor + noise * torch.randn(tensor.shape, generator=generator)
            for key, tensor in zero.state_dict().items()
        }
        if name == "broken":
            weights["head.weight"] = 50 * weights["head.weight"].roll(1, 0)
        made.append(sp.save_classifier(zero.with_weights(weights), root / name))
    return made


def test_the_command_chooses_a_greedy_soup_on_validation_images(
    call: Call, members: list[Path], folders: Path, tmp_path: Path
) -> None:
    ended = call(
        "merge", *members, "--method", "greedy", "--validation", f"folder:{folders}/validation", "--out", "soup"
    )
    assert ended.code == 0, ended.err
    classifiers = [sp.load_classifier(path) for path in members]
    images = sp.load_data(f"folder:{folders}/validation", classifiers[0].classes)
    greedy = sp.greedy_soup(classifiers, images)
    want, record = greedy.classifier, greedy.record
    loaded = sp.load_classifier(tmp_path / "soup")
    assert sp.models.fingerprint(loaded) == sp.models.fingerprint(want)
    stored = json.loads((tmp_path / "soup" / "merge.json").read_text())
    assert tuple(stored["members"]) == record.members
    assert 2 not in record.members
    assert [trial["soup"] for trial in stored["scores"]] == [trial.soup for trial in record.trials]
    assert ended.out.count("taken") == len(record.members)
    assert f"{members[2]}: " in ended.out
    assert "left out" in ended.out
    assert {path.name for path in tmp_path.iterdir()} == {"soup"}


def test_the_command_wants_validation_images_for_a_greedy_soup(call: Call, members: list[Path], tmp_path: Path) -> None:
    ended = call("merge", *members, "--method", "greedy", "--out", "soup")
    assert ended.code == 2
    assert "Give --validation folder:PATH, or --suite emoji" in ended.err
    both = ("--validation", f"folder:{tmp_path}", "--suite", "emoji")
    assert call("merge", *members, "--method", "greedy", *both, "--out", "soup").code == 2
    absent = call("merge", *members, "--method", "greedy", "--validation", "folder:none", "--out", "soup")
    assert absent.code == 2
    assert "none" in absent.err
    a, b = save_pair(tmp_path / "in")
    plain = call("merge", a, b, "--method", "greedy", "--suite", "emoji", "--out", "soup")
    assert plain.code == 2
    assert "is not a classifier directory" in plain.err
    assert not (tmp_path / "soup").exists()
