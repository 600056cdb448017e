"""The commands for single stages on your own folders."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml
from support.commands import Call, CommandResult, assert_mistake, data_flags

import shiftproof as sp

pytestmark = pytest.mark.slow


def test_every_stage_works_on_one_s_own_folders(folders: Path, tmp_path: Path, call: Call) -> None:
    data, quick_training_flags = data_flags(folders), ["--set", "finetune.epochs=2", "--set", "finetune.batch_size=9"]
    zero = call("zeroshot", "tiny", *data, "--corrupt", "noise:3", "--out", "zero")
    assert (zero.code, zero.out.splitlines()[-1]) == (0, "the classifier is zero")
    assert all(name in zero.out for name in ("reference", "sketch", "noise-3"))
    tuned = call("finetune", "zero", *data, *quick_training_flags, "--out", "tuned")
    assert (tuned.code, tuned.out.splitlines()[-1]) == (0, "the classifier is tuned")
    swept = call("sweep", "zero", "tuned", *data, "--alphas", "0.25,0.5", "--rule", "reference", "--out", "swept")
    assert swept.code == 0, swept.err

    first, second = sp.load_classifier("zero"), sp.load_classifier("tuned")
    assert second.parents[0]["fingerprint"] == sp.models.fingerprint(first)
    assert second.training["settings"]["epochs"] == 2
    path = json.loads(Path("swept/path.json").read_text(encoding="utf-8"))
    assert [point["alpha"] for point in path] == [0.25, 0.5]
    best = max(path, key=lambda point: (point["validation"], -point["alpha"]))["alpha"]
    assert sp.load_classifier("swept/ensemble").alpha == best
    assert f"alpha {best:g} by the rule 'reference'" in swept.out

    # Evaluated alone, the ensemble has the accuracy that the sweep says, and so have both others.
    printed = call("evaluate", "swept/ensemble", *data[4:], "--out", "scored")
    assert printed.code == 0
    lines = [json.loads(line) for line in Path("scored/results.jsonl").read_text(encoding="utf-8").splitlines()]
    point = next(point for point in path if point["alpha"] == best)
    assert {line["set"]: line["accuracy"] for line in lines} == {
        "test": point["accuracy"]["reference"],
        "sketch": point["accuracy"]["sketch"],
    }
    assert {line["alpha"] for line in lines} == {best}
    for line in lines:
        assert f"{100 * line['accuracy']:.1f}" in printed.out
    for folder, classifier in (("zero", first), ("tuned", second)):
        for text in Path(folder, "results.jsonl").read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            if line["set"] == "sketch":
                images = sp.data.load_set(f"folder:{folders}/sketch", classifier.classes)
                assert line["accuracy"] == sp.evaluation.accuracy(sp.predict(classifier, images).logits, images.labels)


def test_a_model_is_fine_tuned_from_its_name_as_from_its_directory(folders: Path, tmp_path: Path, call: Call) -> None:
    data = [*data_flags(folders, shift=False), "--set", "finetune.epochs=1", "--set", "finetune.batch_size=18"]
    assert call("finetune", "tiny", *data, "--out", "a").code == 0
    assert call("zeroshot", "tiny", *data_flags(folders, shift=False), "--out", "zero").code == 0
    assert call("finetune", "zero", *data, "--out", "b").code == 0
    assert sp.models.fingerprint(sp.load_classifier("a")) == sp.models.fingerprint(sp.load_classifier("b"))


def test_classes_are_matched_by_name_where_a_classifier_has_its_own_order(
    folders: Path, tmp_path: Path, call: Call, tiny: sp.models.Clip
) -> None:
    order = ("red_apple", "lemon", "pear")  # folders come sorted
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(order)), "zero")
    quick_training_flags = ["--set", "finetune.epochs=6", "--set", "finetune.batch_size=9", "--set", "finetune.lr=1e-3"]
    assert call("finetune", "zero", *data_flags(folders), *quick_training_flags, "--out", "tuned").code == 0
    tuned = sp.load_classifier("tuned")
    assert tuned.classes.ids == order
    train = sp.data.load_set(f"folder:{folders}/train", tuned.classes)
    assert sp.evaluation.accuracy(sp.predict(tuned, train).logits, train.labels) > 0.9
    assert call("sweep", "zero", "tuned", *data_flags(folders), "--alphas", "2", "--out", "swept").code == 0
    path = json.loads(Path("swept/path.json").read_text(encoding="utf-8"))
    scored = [json.loads(line) for line in Path("tuned/results.jsonl").read_text(encoding="utf-8").splitlines()]
    assert path[-1]["accuracy"] == {line["set"]: line["accuracy"] for line in scored}


@pytest.mark.long
@pytest.mark.usefixtures("blank_figures")
def test_a_real_architecture_with_random_weights_runs(folders: Path, tmp_path: Path, call: Call) -> None:
    settings = {
        "model": "open_clip:ViT-S-32-alt",
        "random_weights": True,
        "suite": {
            "reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")},
            "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}},
        },
        "finetune": {"recipe": "head-only", "epochs": 1, "batch_size": 18, "lr": 1e-2},
        "alphas": 2,
    }
    Path("vit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    ended = call("run", "vit.yaml")
    assert ended.code == 0, ended.err
    ensemble = sp.load_classifier("runs/vit/ensemble")
    assert (ensemble.source, ensemble.preprocessing.size) == ("open_clip:ViT-S-32-alt", 224)
    answers = json.loads(call("predict", "runs/vit/ensemble", folders / "test/pear/pear-0.png", "--json").out)
    assert {entry["class"] for entry in answers[0]["top"]} == {"lemon", "pear", "red apple"}


def test_pretraining_makes_a_model_that_loads(folders: Path, tmp_path: Path, call: Call) -> None:
    with Path("pairs.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["filepath", "caption"])
        for path in sorted((folders / "train").rglob("*.png")):
            rows.writerow([path, f"a drawing of a {path.parent.name.replace('_', ' ')}"])
    settings = {
        "model": "open_clip:shiftproof-tiny",
        "pretrain": {"data": "csv:pairs.csv", "steps": 2, "batch_size": 6},
    }
    Path("pre.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    ended = call("pretrain", "pre.yaml", "--out", "pre")
    assert ended.code == 0, ended.err
    card = json.loads(Path("pre/card.json").read_text(encoding="utf-8"))
    assert (card["pairs_seen"], card["settings"]["steps"], card["seed"]) == (12, 2, 0)
    assert f"loss {card['final_loss']:.3f} after 12 pairs" in ended.out
    for direction in ("image_to_text", "text_to_image"):
        recalls = card["recall"][direction]
        assert 0 <= recalls["recall@1"] <= recalls["recall@5"] <= recalls["recall@10"] <= 1
        assert f"recall@1 {recalls['recall@1']:.3f}" in ended.out
    assert call("zeroshot", "local-dir:pre/model", *data_flags(folders), "--out", "zero").code == 0
    trained = sp.load_classifier("zero").state_dict()
    start = sp.zero_shot_classifier(sp.load_clip("open_clip:shiftproof-tiny"), sp.load_classifier("zero").classes)
    assert any(not bool((trained[name] == tensor).all()) for name, tensor in start.state_dict().items())
    # A finished pretraining is neither lost nor changed.
    before = Path("pre/model/open_clip_model.safetensors").read_bytes()
    assert_mistake(call("pretrain", "pre.yaml", "--out", "pre"), "pre already holds")
    assert_mistake(call("pretrain", "pre.yaml", "--out", "pre", "--resume", "--seed", "1"), "other settings")
    assert call("pretrain", "pre.yaml", "--out", "pre", "--resume").code == 0
    assert Path("pre/model/open_clip_model.safetensors").read_bytes() == before


def test_the_report_is_written_anew_and_for_several_seeds(folders: Path, tmp_path: Path, call: Call) -> None:
    settings = {
        "model": "tiny",
        "suite": {"reference": {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}},
        "finetune": {"epochs": 1, "batch_size": 18},
        "alphas": 2,
    }
    Path("fruit.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    for seed in ("0", "1"):
        assert call("run", "fruit.yaml", "--seed", seed, "--out", f"seed-{seed}").code == 0
    page = Path("seed-0/report.html")
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert call("report", "seed-0") == CommandResult(0, f"{page}\n", "")
    assert page.read_text(encoding="utf-8") == before
    assert call("report", "seed-0", "seed-1", "--out", "seeds.html") == CommandResult(0, "seeds.html\n", "")
    assert "<html" in Path("seeds.html").read_text(encoding="utf-8")
