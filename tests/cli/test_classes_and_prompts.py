"""``--classes`` and ``--prompts`` with files, and new classes for a fine-tuned classifier, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from support.commands import Call, assert_mistake, data_flags

import shiftproof as sp

pytestmark = pytest.mark.slow


def test_names_and_prompts_come_from_files(folders: Path, call: Call, tiny: sp.models.Clip) -> None:
    Path("names.csv").write_text("id,name\nred_apple,apple\nlemon,citrus fruit\npear,green pear\n")
    prompts = {"apple": ["a red apple", "one {}"], "lemon": ["a sour {}"], "PEAR": ["a pear"]}
    Path("cupl.json").write_text(json.dumps(prompts))
    ended = call(
        *("zeroshot", "tiny", *data_flags(folders), "--classes", "names.csv", "--prompts", "cupl.json", "--out", "out")
    )
    assert ended.code == 0, ended.err
    built = sp.load_classifier("out")
    assert built.classes == sp.ClassSpace(("red_apple", "lemon", "pear"), ("apple", "citrus fruit", "green pear"))
    expected = sp.zero_shot_classifier(tiny, built.classes, prompts)
    assert torch.equal(built.network.head.weight, expected.network.head.weight)
    (line,) = [json.loads(text) for text in Path("out/results.jsonl").read_text().splitlines() if '"reference"' in text]
    images = sp.data.load_set(f"folder:{folders}/test", built.classes)
    assert line["accuracy"] == sp.evaluation.accuracy(sp.predict(built, images).logits, images.labels)


def test_a_run_file_names_files_beside_it_and_may_have_more_classes_than_the_data(folders: Path, call: Call) -> None:
    Path("configs").mkdir()
    Path("configs/names.txt").write_text("lemon\nplum\npear\tgreen pear\nRed Apple\n")
    Path("configs/templates.txt").write_text("a drawing of a {}.\none {c}\n")
    sets = {part: f"folder:{folders}/{part}" for part in ("train", "validation", "test")}
    settings = {
        "model": "tiny",
        "suite": {"reference": sets},
        "classes": "names.txt",
        "prompts": "templates.txt",
        "finetune": {"epochs": 1, "batch_size": 9, "recipe": "flyp"},
        "alphas": 2,
    }
    Path("configs/run.yaml").write_text(yaml.safe_dump(settings))
    ended = call("run", "configs/run.yaml", "--out", "out")
    assert ended.code == 0, ended.err
    tuned = sp.load_classifier("out/fine_tuned")
    assert tuned.classes.ids == ("lemon", "plum", "pear", "red_apple")
    assert tuned.classes.names == ("lemon", "plum", "green pear", "Red Apple")
    assert tuned.prompts == ("a drawing of a {}.", "one {}")


def test_a_fine_tuned_classifier_takes_new_classes_with_and_without_data(folders: Path, call: Call) -> None:
    quick = ["--set", "finetune.epochs=1", "--set", "finetune.batch_size=9"]
    assert call("finetune", "tiny", *data_flags(folders), *quick, "--out", "tuned").code == 0
    Path("fruit.txt").write_text("plum\nlemon\npear\nred_apple\n")
    ended = call("zeroshot", "tuned", "--classes", "fruit.txt", "--prompts", "short", "--out", "more")
    assert ended.code == 0, ended.err
    assert "not scored" in ended.out
    more, tuned = sp.load_classifier("more"), sp.load_classifier("tuned")
    assert more.classes.ids == ("plum", "lemon", "pear", "red_apple")
    assert len(more.prompts) == 7
    before, after = tuned.state_dict(), more.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before if name.startswith("encoder."))
    ended = call("zeroshot", "tuned", *data_flags(folders), "--classes", "fruit.txt", "--out", "scored")
    assert ended.code == 0, ended.err
    assert "sketch" in ended.out
    assert call("predict", "more", folders / "test/lemon/lemon-0.png").code == 0


def test_mistakes_in_classes_and_prompts(folders: Path, call: Call) -> None:
    Path("two.txt").write_text("lemon\npear\n")
    command = ("zeroshot", "tiny", *data_flags(folders), "--out", "out")
    assert_mistake(call(*command, "--classes", "two.txt"), "two.txt lacks classes of the data: 'red_apple'")
    assert_mistake(call(*command, "--classes", "none.txt"), "none.txt does not exist")
    assert_mistake(call(*command, "--prompts", "none.json"), "none.json does not exist")
    assert_mistake(call("zeroshot", "tiny", "--out", "out"), "there is no data")
    assert not Path("out").exists()
