"""Output directories that exist, and requests that must leave them alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from support.commands import Call, assert_mistake, data_flags

import shiftproof as sp

pytestmark = pytest.mark.usefixtures("blank_figures")


@pytest.mark.slow
def test_a_misspelt_request_costs_no_older_run(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    reference = {"train": f"folder:{folders}/train", "test": f"folder:{folders}/test"}
    settings = {"model": "tiny", "suite": {"reference": reference}}
    quick_training_flags = [
        "--set",
        "finetune.epochs=1",
        "--set",
        "finetune.batch_size=9",
        "--set",
        "alphas=2",
        "--out",
        "old",
    ]
    Path("run.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert call("run", "run.yaml", *quick_training_flags).code == 0
    summary = Path("old/summary.json").read_bytes()
    missing = ["--set", "suite.reference.test=folder:nowhere"]
    for wrong, message in (
        (missing, "nowhere"),
        (["--set", "model=tinny"], "tiny"),
        (["--resume"], "Give one of the two"),
    ):
        ended = call("run", "run.yaml", *quick_training_flags, *wrong, "--overwrite")
        assert_mistake(ended, message)
        assert Path("old/summary.json").read_bytes() == summary


def test_a_stage_overwrites_what_a_stage_wrote(folders: Path, call: Call) -> None:
    data = data_flags(folders, shift=False)
    assert call("zeroshot", "tiny", *data, "--out", "out").code == 0
    assert_mistake(call("zeroshot", "tiny", *data, "--out", "out"), "add --overwrite")
    assert call("zeroshot", "tiny", *data, "--prompts", "short", "--out", "out", "--overwrite").code == 0
    assert len(sp.load_classifier("out").prompts) == 7


def test_a_sweep_refuses_to_validate_on_images_that_were_trained_on(
    folders: Path, call: Call, tiny: sp.models.Clip
) -> None:
    data = ["--reference", f"folder:{folders}/train", "--test", f"folder:{folders}/test"]
    quick_training_flags = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=9"]
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    assert call("finetune", "zero", *data, *quick_training_flags, "--seed", "1", "--out", "tuned").code == 0
    assert_mistake(call("sweep", "zero", "tuned", *data, "--alphas", "2", "--out", "swept"), "--seed 1")
    assert call("sweep", "zero", "tuned", *data, "--alphas", "2", "--seed", "1", "--out", "swept").code == 0


def test_sets_of_one_name_are_refused(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    twice = ["--shift", f"a=folder:{folders}/test", "--shift", f"a=folder:{folders}/sketch"]
    assert_mistake(call("evaluate", "zero", *twice), "two sets are named 'a'")


def test_markup_in_a_name_is_shown_as_it_stands(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), "zero")
    ended = call("evaluate", "zero", "--shift", f"[/x]=folder:{folders}/test")
    assert ended.code == 0
    assert "[/x]" in ended.out
