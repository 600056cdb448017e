"""``diagnose strong-edge`` on named models, classifier directories and folders of images."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import Call, CommandResult
from support.windows import nothing_changes, study_in

import shiftproof as sp
from shiftproof.report.windows import (
    clean_table,
    strong_edge_verdict,
    window_table,
)
from shiftproof.runs import interventions as diagnosing
from shiftproof.runs.interventions import DiagnosisFile

pytestmark = pytest.mark.slow


def test_the_study_of_own_networks_is_told_in_tables_and_a_verdict(
    small: list[str], call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shiftproof.cli.console._WIDTH_IN_FILES", 300)
    ended = call("diagnose", "strong-edge", "--images", "4", "--device", "cpu", "--out", "study")
    assert ended.code == 0, ended.err
    study = study_in("study")
    assert strong_edge_verdict(study) in ended.out
    assert len(strong_edge_verdict(study).splitlines()) == 6
    for table in (clean_table(study), window_table(study, "away", 0.0)):
        assert table.title in ended.out
        for row in table.rows:
            assert all(re.search(rf"{re.escape(row[0])} .*{re.escape(cell)}", ended.out) for cell in row[1:])
    assert f"numbers: {Path('study', 'strong_edge.json')}; figures: {Path('study', 'figures')}" in ended.out
    assert "fine-tune" in ended.err


def test_own_images_directories_and_a_named_model(folders: Path, tiny: sp.models.Clip, call: Call) -> None:
    data, turned = f"folder:{folders}/test", sp.ClassSpace.from_ids(["pear", "red_apple", "lemon"])
    zero = sp.zero_shot_classifier(tiny, turned)
    for folder in ("a/zero", "b/zero"):
        sp.save_classifier(zero, folder)
    ended = call(
        "diagnose",
        "strong-edge",
        "a/zero",
        "b/zero",
        "--model",
        "tiny",
        "--data",
        data,
        "--seed",
        "3",
        "--out",
        "found",
    )
    assert ended.code == 0, ended.err
    study = study_in("found")
    assert (study.set, study.seed, list(study.models)) == (data, 3, ["zero", "b-zero", "tiny"])
    assert {(c.model, c.second, c.place) for c in study.contrasts} == {
        ("b-zero", "zero", "anywhere"),
        ("tiny", "zero", "anywhere"),
    }
    # They are one model, whatever order its classes have.
    for name, record in study.models["zero"].items():
        for measure, mean in record.means.items():
            for other in ("b-zero", "tiny"):
                result = study.models[other][name].means[measure]
                assert result.n == mean.n
                assert result.value == pytest.approx(mean.value, abs=1e-5)
    with np.load("found/measurements.npz", allow_pickle=False) as saved:
        assert saved["ids"].tolist() == list(sp.data.load_set(data).ids)
        score = saved["zero|clean|score"]
    images = sp.data.load_set(data, turned)
    expected = torch.tensor(sp.predict(zero, images).logits).softmax(1)[torch.arange(9), torch.tensor(images.labels)]
    assert score == pytest.approx(expected.numpy(), abs=1e-5)
    with Image.open("found/figures/strong-edge.png") as figure:
        assert figure.size[0] > 2 * figure.size[1]  # one example, five columns


def test_directories_are_told_apart_by_name_or_refused(
    tiny: sp.models.Clip, folders: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ["--data", f"folder:{folders}/test"]
    for folder in ("x/b/zero", "y/b/zero", "tiny", "zero"):
        sp.save_classifier(
            sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])), folder
        )
    for models in (
        ("--model", "tiny", "--model", "tiny"),
        ("tiny", "--model", "tiny"),
        ("zero", "x/b/zero", "y/b/zero"),
    ):
        assert call("diagnose", "strong-edge", *models, *data, "--out", "found") == CommandResult(
            2, "", "shiftproof: two of the models have the same name. Name every model once, or rename a directory.\n"
        )
    assert not Path("found").exists()
    file = DiagnosisFile(classifiers=(Path("zero"), Path("x/b/zero")), data=data[1])
    assert list(diagnosing._models(file, diagnosing._images(file))) == ["zero", "b-zero"]
    monkeypatch.chdir("zero")
    assert list(diagnosing._models(replace(file, classifiers=(Path(),)), diagnosing._images(file))) == ["zero"]


def test_timm_models_with_their_own_heads_on_ones_own_images_with_masks(wnids: Path, call: Call) -> None:
    models = ["--model", "timm:test_resnet", "--model", "timm:test_vit", "--head", "own", "--random-weights"]
    data = ["--data", f"folder:{wnids}/images", "--masks", f"{wnids}/masks"]
    ended = call("diagnose", "strong-edge", *models, *data, "--images", "6", "--out", "found")
    assert ended.code == 0, ended.err
    study = study_in("found")
    assert study.kinds == {"timm:test_resnet": "cam", "timm:test_vit": "grad-cam"}
    assert {(s.place, s.edge) for s in study.summaries} == {("away", 0.0)}
    assert "object_share" in study.models["timm:test_vit"]["clean"].means
    assert all(entry in ended.out for entry in ("timm:test_resnet", "grad-cam", "map on object", "timm:test_vit puts"))
    # What is measured is what the model says of these pictures by itself.
    own = sp.own_head_classifier(sp.load_encoder("timm:test_resnet"))
    with np.load("found/measurements.npz", allow_pickle=False) as saved:
        ids, score = saved["ids"].tolist(), saved["timm:test_resnet|clean|score"]
        assert Counter(saved["classes"].tolist()) == {path.name: 2 for path in (wnids / "images").iterdir()}
    images = sp.data.load_set(f"folder:{wnids}/images", own.classes, partial=True)
    images = images.subset([images.ids.index(name) for name in ids])
    expected = torch.tensor(sp.predict(own, images).logits).softmax(1)[torch.arange(6), torch.tensor(images.labels)]
    assert score == pytest.approx(expected.numpy(), rel=1e-3)


def test_what_cannot_be_diagnosed_is_told_and_costs_no_older_diagnosis(
    wnids: Path, folders: Path, tiny: sp.models.Clip, call: Call
) -> None:
    sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "plum"])), "fruit")
    data, named = ["--data", f"folder:{folders}/test"], ["--data", f"folder:{wnids}/images"]
    old = Path("old")
    old.mkdir()
    (old / "strong_edge.json").write_text("{}")
    mistakes: list[tuple[list[str], str]] = [
        (
            ["--model", "timm:test_resnet", "--head", "own", "--random-weights", *data],
            r"classes that .* lacks: 'lemon', 'pear', 'red_apple'",
        ),
        (["fruit", *data], r"lacks: 'pear', 'red_apple'"),
        (["--model", "timm:test_resnet", *named], "has no text tower"),
        (["--model", "timm:test_rasnet", "--head", "own", *named], "Did you mean 'test_resnet"),
        (["--model", "tiny", "--head", "own", *named], "the head 'own' is for models without a text tower"),
        (["--model", "tiny", "--head", "owned", *named], "unknown --head 'owned'"),
        (["fruit/none", *named], "is not a classifier directory"),
        (["--model", "tiny", "--data", "folder:nowhere"], "the folder nowhere does not exist"),
        (
            ["--model", "tiny", *named, "--masks", "nowhere"],
            "the folder nowhere does not exist. It must hold the masks",
        ),
        (["--model", "tiny", *data, "--masks", f"{wnids}/masks"], "These samples lack theirs: 'lemon/lemon-0.png'"),
        (["--model", "tiny", *data, "--device", "abacus"], "abacus"),
        (["--suite", "emojis", "--model", "tiny"], "Did you mean 'emoji'"),
    ]
    with nothing_changes(old):
        for arguments, message in mistakes:
            ended = call("diagnose", "strong-edge", *arguments, "--out", "old", "--overwrite")
            assert (ended.code, ended.out) == (2, ""), arguments
            assert re.search(message, ended.err), (arguments, ended.err)
            assert ended.err.count("\n") == 1
        ended = call("diagnose", "strong-edge", "--model", "tiny", *data, "--out", "old")
        assert (ended.code, "already holds a diagnosis" in ended.err) == (2, True)
    assert call("diagnose", "strong-edge", *data, "--out", "new") == CommandResult(
        2,
        "",
        "shiftproof: --data and --shift need a model to diagnose. Name classifiers, or models with --model.\n",
    )
    assert not Path("new").exists()
