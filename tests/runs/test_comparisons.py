"""Two classifiers compared on any data, from the command line and from Python, with labels and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import shiftproof as sp
from shiftproof.cli.app import app
from shiftproof.evaluation.metrics import scores
from shiftproof.report.agreement import pair_tables
from shiftproof.runs.comparisons import PairFile, compare_agreement, compare_path, compare_weights
from shiftproof.runs.interventions import DiagnosisFile

pytestmark = pytest.mark.slow

CLASSES = ("lemon", "pear", "red_apple")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures of noise a class, and the same without classes."""
    root = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    for name in CLASSES:
        for i in range(6):
            pixels = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8))
            for path in (root / "photos" / name / f"{i}.png", root / "met" / f"{name}{i}.png"):
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels.save(path)
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A zero-shot classifier, one whose weights moved, and their ensemble."""
    root = tmp_path_factory.mktemp("models")
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(CLASSES))
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: entry + 0.05 * entry.std() * torch.randn(entry.shape, generator=generator) if entry.numel() > 1 else entry
        for name, entry in zero.state_dict().items()
    }
    tuned = zero.with_weights(moved, head="trained")
    result = {"zero": zero, "tuned": tuned, "both": sp.wise_ft(zero, tuned, 0.5)}
    return {name: sp.save_classifier(classifier, root / name) for name, classifier in result.items()}


def asked(models: dict[str, Path], folders: Path, names: str = "zero tuned both", **changes: object) -> PairFile:
    data = None if "unlabelled" in changes else f"folder:{folders}/photos"
    return replace(PairFile(tuple(str(models[n]) for n in names.split()), data=data), **changes)  # type: ignore[arg-type]


def test_agreement_is_that_of_the_predictions(models: dict[str, Path], folders: Path) -> None:
    measured = compare_agreement(asked(models, folders))
    images = sp.load_data(f"folder:{folders}/photos")
    logits = {n: sp.predict(sp.load_classifier(path), images).logits for n, path in models.items()}
    assert [(p.first, p.second) for p in measured.pairs] == [("zero", "tuned"), ("zero", "both"), ("tuned", "both")]
    for pair in measured.pairs:
        expected = sp.diagnosis.measure_agreement(logits[pair.first], logits[pair.second], images.labels)
        assert pair.agreement == expected
    (overrides,) = measured.overrides.values()
    assert overrides == sp.diagnosis.measure_overrides(*logits.values(), labels=images.labels)
    header = {
        name for table in pair_tables(measured.pairs, measured.overrides, measured.clusters) for name in table.header
    }
    assert {"zero prevails", "tuned prevails"} <= header and "zero-shot prevails" not in header


def test_what_needs_no_labels_is_the_same_without_them(models: dict[str, Path], folders: Path) -> None:
    known = compare_agreement(asked(models, folders)).pairs[0].agreement
    met = compare_agreement(asked(models, folders, unlabelled=folders / "met")).pairs[0].agreement
    assert met.n == known.n == 18
    assert met.disagreement.value == known.disagreement.value
    assert met.margin_difference.value == pytest.approx(known.margin_difference.value)
    assert met.prediction_diversity is None and met.error_consistency is None
    with pytest.raises(sp.InputError, match="needs labels"):
        compare_path(asked(models, folders, "zero tuned", unlabelled=folders / "met"))
    with pytest.raises(sp.InputError, match=r"`data` and `unlabelled`"):
        asked(models, folders, data="emoji", unlabelled=folders / "met")
    for others in ({"data": "emoji"}, {"unlabelled": folders / "met"}):
        with pytest.raises(sp.InputError, match=r"`shift` names images of `suite`"):
            asked(models, folders, shift="sketch", **{"data": None, **others})
    with pytest.raises(sp.InputError, match=r"`shift` names images of a suite"):
        DiagnosisFile(shift="sketch", data="emoji")
    with pytest.raises(sp.InputError, match=r"zer holds no classifier\.json"):
        compare_agreement(replace(asked(models, folders), models=(f"{models['zero']}/../zer", str(models["zero"]))))
    with pytest.raises(sp.InputError, match="contains no image"):
        compare_agreement(asked(models, folders, unlabelled=models["zero"]))
    with pytest.raises(sp.InputError, match="do not name the classes"):
        compare_agreement(PairFile(("tiny", "tiny"), unlabelled=folders / "met"))


def test_classes_are_matched_by_name_and_not_by_order(models: dict[str, Path], folders: Path, tmp_path: Path) -> None:
    zero = sp.load_classifier(models["zero"])
    turned = zero.in_order_of(sp.ClassSpace.from_ids(CLASSES[::-1]))
    assert turned.classes.ids == CLASSES[::-1]
    images = sp.load_data(f"folder:{folders}/photos")
    there = sp.predict(turned, images.relabelled(turned.classes)).logits
    np.testing.assert_allclose(there[:, ::-1], sp.predict(zero, images).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(turned.in_order_of(zero.classes).network.head.weight, zero.network.head.weight)
    sp.save_classifier(turned, tmp_path / "turned")
    measured = compare_agreement(asked({**models, "turned": tmp_path / "turned"}, folders, "zero turned"))
    assert measured.pairs[0].agreement.disagreement.value == 0
    fruit = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(["lemon", "plum"]))
    with pytest.raises(sp.InputError, match="'pear', 'plum', 'red_apple'"):
        fruit.in_order_of(zero.classes)


def test_the_path_between_two_is_the_sweep_s(models: dict[str, Path], folders: Path) -> None:
    measured = compare_path(asked(models, folders, "zero tuned"), alphas=3)
    images = sp.load_data(f"folder:{folders}/photos")
    right = {
        alpha: sp.evaluation.accuracy(sp.predict(sp.load_classifier(models[name]), images).logits, images.labels)
        for alpha, name in ((0.0, "zero"), (0.5, "both"), (1.0, "tuned"))
    }
    line = (right[0.0] + right[1.0]) / 2
    assert measured.connectivity[0].above_line == pytest.approx((0, right[0.5] - line, 0))
    assert len(measured.losses[0].loss) == 3


def test_movement_is_that_of_the_weights(models: dict[str, Path]) -> None:
    measured = compare_weights(PairFile(tuple(str(models[n]) for n in ("zero", "tuned", "both"))))
    assert sum(layer.share for layer in measured) == pytest.approx(1)
    assert all(layer.cosine == pytest.approx(1, abs=1e-4) for layer in measured if layer.share > 0.01)


def test_groups_of_a_csv_are_read_and_resampled(models: dict[str, Path], folders: Path) -> None:
    rows = [f"photos/{name}/{i}.png,{name},clinic {i % 3}" for name in CLASSES for i in range(6)]
    (folders / "grouped.csv").write_text("\n".join(["filepath,label,group", *rows]), encoding="utf-8")
    images = sp.load_data(f"csv:{folders}/grouped.csv")
    assert images.groups is not None and set(images.groups) == {"clinic 0", "clinic 1", "clinic 2"}
    measured = compare_agreement(asked(models, folders, data=f"csv:{folders}/grouped.csv"))
    assert set(measured.clusters.values()) == {"group"}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("agreement {zero} {tuned} {both} --data folder:{photos}", "Which model the ensemble follows"),
        ("agreement {zero} {tuned} --unlabelled {met}", "How zero and tuned differ"),
        ("connectivity {zero} {tuned} --data folder:{photos} --alphas 3", "Is the path connected?"),
        ("movement {zero} {tuned}", "Which layers moved"),
    ],
)
def test_each_part_is_a_command(
    models: dict[str, Path], folders: Path, tmp_path: Path, command: str, message: str
) -> None:
    places = {**models, "photos": folders / "photos", "met": folders / "met"}
    words = [word.format(**places) for word in command.split()]
    answer = CliRunner().invoke(app, ["diagnose", *words, "--out", str(tmp_path)])
    assert answer.exit_code == 0, answer.output
    assert message in answer.output
    (file,) = tmp_path.glob("*.json")
    assert json.loads(file.read_text(encoding="utf-8"))


def test_unlabelled_labels_serve_for_nothing(folders: Path) -> None:
    classes = sp.ClassSpace.from_ids(CLASSES)
    images = sp.data.unlabelled_set(folders / "met", classes)
    assert (images.labels == -1).all()
    logits = np.random.default_rng(0).normal(size=(len(images), 3))
    with pytest.raises(sp.InputError, match="the images are unlabelled"):
        sp.diagnosis.measure_agreement(logits, logits, images.labels)
    with pytest.raises(sp.InputError, match="labels range from -1"):
        scores(logits, images.labels)
