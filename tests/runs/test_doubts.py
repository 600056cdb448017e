"""Warnings that a command prints: models that guess, a loss that hardly moved, and pictures that leak."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Call, data_flags

import shiftproof as sp
from shiftproof.errors import ResultWarning
from shiftproof.runs.doubts import warn_of_loss

pytestmark = pytest.mark.usefixtures("blank_figures")


def issued(training: dict[str, Any], classes: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_loss(training, classes)
    return [str(warning.message) for warning in caught]


def trained(*losses: float, recipe: str = "end-to-end") -> dict[str, Any]:
    return {"settings": {"recipe": recipe}, "history": [{"step": 1, "loss": loss} for loss in losses]}


@pytest.mark.parametrize(
    ("training", "classes", "part"),
    [
        (trained(1.098), 3, "ended at 1.1, and guessing among 3 classes gives 1.1"),
        (trained(1.5, 1.49), 267, "hardly moved, from 1.5 in the first epoch to 1.49 in the last"),
        (trained(5.58, 5.1), 267, None),
        (trained(1.5, 1.2), 267, None),
        (trained(1.5), 267, None),
        (trained(0.02, 0.02), 267, None),
        (trained(math.log(3), 0.8, recipe="flyp"), 3, None),
        (trained(2.0, 1.99, recipe="flyp"), 3, "hardly moved"),
        ({"history": []}, 3, None),
        ({}, 3, None),
    ],
)
def test_a_loss_is_doubted_where_it_is_that_of_guessing_or_hardly_moved(
    training: dict[str, Any], classes: int, part: str | None
) -> None:
    messages = issued(training, classes)
    assert len(messages) == (part is not None)
    assert all(part in message and "raise finetune.lr" in message for message in messages if part)


@pytest.fixture
def random_start(tiny: sp.models.Clip, tmp_path: Path) -> Path:
    """A directory with a classifier whose head gives every class the same logit, up to noise."""
    classifier = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    weights = classifier.state_dict()
    name = next(key for key in weights if key.startswith("head") and key.endswith("weight"))
    weights[name] = 1e-3 * torch.randn(weights[name].shape, generator=torch.Generator().manual_seed(0))
    return sp.save_classifier(classifier.with_weights(weights), tmp_path / "start")


@pytest.mark.slow
def test_the_commands_warn_of_a_start_at_chance_and_of_a_loss_that_did_not_move(
    folders: Path, random_start: Path, tmp_path: Path, call: Call
) -> None:
    still = ["--set", "finetune.epochs=2", "--set", "finetune.batch_size=9", "--set", "finetune.lr=1e-9"]
    tuned = call("finetune", random_start, *data_flags(folders), *still, "--out", "tuned")
    assert tuned.code == 0, tuned.err
    assert "warning: The start " in tuned.err
    assert "warning: The training loss ended at 1.1" in tuned.err
    assert "warning: Fine-tuned " in tuned.err
    swept = call("sweep", random_start, "tuned", *data_flags(folders), "--alphas", "2", "--out", "swept")
    assert "warning: The start, at alpha 0, " in swept.err
    assert "warning: The training loss ended at 1.1" in swept.err


@pytest.mark.slow
def test_a_run_warns_of_its_start_and_says_first_that_it_guessed(
    folders: Path, random_start: Path, tmp_path: Path, call: Call
) -> None:
    shifts = f"{{sketch: {{data: 'folder:{folders}/sketch'}}}}"
    reference = ", ".join(f"{split}: 'folder:{folders}/{split}'" for split in ("train", "validation", "test"))
    (tmp_path / "run.yaml").write_text(
        f"model: {random_start}\nsuite: {{reference: {{{reference}}}, shifts: {shifts}}}\n"
        "finetune: {epochs: 2, batch_size: 9, lr: 1.0e-9}\nalphas: 3\ndevice: cpu\n",
        encoding="utf-8",
    )
    ended = call("run", tmp_path / "run.yaml", "--out", "out")
    assert ended.code == 0, ended.err
    assert "warning: The start " in ended.err
    assert "warning: The training loss ended at 1.1" in ended.err
    assert "so it keeps" not in ended.out
    assert "Fine-tuning did not learn the task" in " ".join(ended.out.split())


def test_zero_shot_at_chance_is_a_warning(folders: Path, random_start: Path, call: Call) -> None:
    ended = call("zeroshot", random_start, *data_flags(folders), "--out", "zero")
    assert ended.code == 0, ended.err
    assert "warning: Zero-shot " in ended.err


def test_pictures_of_several_splits_are_a_warning_with_counts_and_two_names(
    folders: Path, tmp_path: Path, call: Call
) -> None:
    data = tmp_path / "data"
    shutil.copytree(folders, data)
    for number in (0, 1):
        shutil.copy(data / f"train/lemon/lemon-{number}.png", data / f"test/lemon/copy-{number}.png")
    shutil.copy(data / "train/pear/pear-0.png", data / "sketch/pear/copy.png")
    quick = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=18"]
    ended = call("finetune", "tiny", *data_flags(data), *quick, "--out", "tuned")
    assert ended.code == 0, ended.err
    assert "2 of the 11 pictures of test are also in train (" in ended.err
    assert f"{data}/test/lemon/copy-0.png is {data}/train/lemon/lemon-0.png" in ended.err
    assert "1 of the 10 pictures of the shift sketch are also in train" in ended.err
    assert "of validation are also" not in ended.err


def test_the_warnings_have_a_category_of_their_own() -> None:
    assert issubclass(ResultWarning, UserWarning)
