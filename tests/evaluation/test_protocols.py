"""How the logits of a model are scored on public sets: the field's protocols, against slow twins."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.miniatures import imagenet_space, number_of, reader, write_folders, write_picture

import shiftproof as sp
from shiftproof.data import load_data
from shiftproof.data.families.classes import SUPER_CLASSES, imagenet_classes, objectnet_classes
from shiftproof.data.protocols import Projection, Protocol
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.predictions import Predictions, load_predictions, open_predictions, save_predictions
from shiftproof.records.accuracy import MASKED, OVER_ALL, REFERENCE_MASKED, REFERENCE_OVER_ALL, AccuracyRecord
from shiftproof.runs.stages import run_evaluate

CLASSES = tuple("abcdefgh")
GROUPS = (("b", "d"), ("e",), ("f", "g", "a"))


def slow_answer(row: NDArray[np.float64], others: bool) -> int:
    """The index of the group that has the class of the largest permitted logit, or -1 for a class of none."""
    permitted = [k for k, name in enumerate(CLASSES) if others or any(name in group for group in GROUPS)]
    best = CLASSES[max(permitted, key=lambda k: row[k])]
    return next((number for number, group in enumerate(GROUPS) if best in group), -1)


@given(st.lists(st.floats(-50, 50, width=32), min_size=8, max_size=8, unique=True), st.booleans(), st.booleans())
def test_an_answer_is_any_class_of_its_group(row: list[float], others: bool, pooled: bool) -> None:
    logits = np.array([row])
    projection = Protocol(answers=GROUPS, others=others, pooled=pooled).projection(CLASSES)
    assert projection is not None
    projected = projection.apply(logits)
    firsts = [CLASSES.index(group[0]) for group in GROUPS]
    chosen, expected = int(projected[0].argmax()), slow_answer(logits[0], others)
    assert (firsts.index(chosen) if chosen in firsts else -1) == expected
    assert projection.choices == len(GROUPS) + (2 if others else 0)
    groups = [[CLASSES.index(name) for name in group] for group in GROUPS]
    for first, members in zip(firsts, groups, strict=True):
        assert projected[0, first] == logits[0, members].max()
    permitted = [logits[0, m].max() for m in groups] if pooled else [logits[0, k] for m in groups for k in m]
    permitted += [logits[0, k] for k in (2, 7)] if others else []
    probability = np.exp(permitted - max(permitted)) / np.exp(permitted - max(permitted)).sum()
    compact = scores(projected, np.array([chosen]))
    assert compact.confidence[0] == pytest.approx(probability.max(), rel=1e-5)
    assert np.array_equal(logits, [row])  # the caller's logits are as they were


def test_a_protocol_without_effect_projects_nothing() -> None:
    assert Protocol().projection(CLASSES) is None
    assert Protocol(answers=(("a",), ("c",))).projection(CLASSES) is None
    assert Protocol(answers=tuple((name,) for name in CLASSES), others=False).projection(CLASSES) is None


def test_a_file_keeps_the_logits_of_the_model_and_is_read_by_the_protocol(tmp_path: Path) -> None:
    logits = np.array([[1, 2, 9], [3, 0, 9]], dtype=np.float32)
    projection = Projection(np.array([0, 0, -1]), pooled=True)
    predictions = Predictions.of(("x", "y"), np.array([0, 0]), logits, None, projection)
    file = save_predictions(predictions, tmp_path / "p.npz")
    stored = open_predictions(file)
    assert np.array_equal(np.concatenate(list(stored.model_blocks())), logits)
    (block,) = stored.blocks()
    assert block.tolist() == [[2, -10000, -10000], [3, -10000, -10000]]
    assert block.dtype == np.float32
    loaded = load_predictions(file)
    assert np.array_equal(loaded.logits, block)
    assert loaded.model_logits is not None
    assert np.array_equal(loaded.model_logits, logits)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ImageNet, R and ObjectNet with two pictures each of a few classes."""
    root = tmp_path_factory.mktemp("data")
    wnids = imagenet_classes().wnids
    only_r = [number_of(wnid) for wnid in imagenet_classes().in_r[:3]]
    clocks = [number_of(wnid) for wnid in objectnet_classes()["alarm_clock"]]
    numbers = {wnids[k]: k for k in (0, *only_r, *clocks)}
    write_folders(root / "imagenet" / "val", numbers, count=2)
    write_folders(root / "imagenet-r", {wnids[k]: k for k in only_r}, count=2)
    for i, number in enumerate(clocks):
        write_picture(root / "objectnet-1.0" / "images" / "alarm_clock" / f"{i}.png", number, border=2, side=20)
    return root


def saved(classifier: sp.Classifier, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A name under which ``run_evaluate`` gets the classifier, which is of no architecture that could be saved."""
    monkeypatch.setattr("shiftproof.runs.stages.load_scored", lambda _: classifier)
    return Path("the-reader")


def evaluated(
    classifier: sp.Classifier, data: Path, monkeypatch: pytest.MonkeyPatch, **sets: str
) -> dict[str, AccuracyRecord]:
    records = run_evaluate(saved(classifier, monkeypatch), sets or None, suite=f"imagenet:{data}", device="cpu")
    return {record.set: record for record in records}


def test_a_suite_is_evaluated_without_its_training_images(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = evaluated(reader(imagenet_space()), data, monkeypatch)
    assert {name: record.accuracy for name, record in records.items()} == dict.fromkeys(
        ("imagenet", "imagenet-r", "objectnet"), 1.0
    )
    assert set(records["imagenet"].variants) == {OVER_ALL, MASKED}  # the miniature has six of the classes
    assert records["imagenet-r"].protocol == "masked to the 200 classes of imagenet-r"
    assert (records["imagenet-r"].class_count, records["objectnet"].class_count) == (200, 113)


def test_scores_on_some_classes_come_masked_and_over_all_with_the_reference_on_the_same_classes(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It is sure of tench, which ImageNet-R lacks, and knows the right answer otherwise, but for one class.
    wrong = number_of(imagenet_classes().in_r[0])
    other = number_of(imagenet_classes().in_r[1])
    classifier = reader(imagenet_space(), lambda k: {0: 9.0, other if k == wrong else k: 5.0})
    records = evaluated(classifier, data, monkeypatch)
    variants = {name: (v.accuracy, v.n) for name, v in records["imagenet-r"].variants.items()}
    assert records["imagenet-r"].accuracy == pytest.approx(4 / 6)
    assert variants == {
        OVER_ALL: (0.0, 6),
        MASKED: (pytest.approx(4 / 6), 6),
        REFERENCE_OVER_ALL: (0.0, 6),
        REFERENCE_MASKED: (pytest.approx(4 / 6), 6),
    }
    assert records["imagenet"].accuracy == pytest.approx(2 / 12)


def test_the_protocols_of_objectnet_differ_in_what_may_be_answered(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (number_of(wnid) for wnid in objectnet_classes()["alarm_clock"])
    classifier = reader(imagenet_space(), lambda _: {0: 9.0, first: 5.0, second: 6.0})
    names = {
        protocol.replace("-", "_"): f"objectnet:{protocol}:{data / 'objectnet-1.0'}"
        for protocol in ("113-way", "masked", "1000-way")
    }
    records = evaluated(classifier, data, monkeypatch, **names)
    assert [records[name].accuracy for name in names] == [1.0, 1.0, 0.0]
    assert [records[name].class_count for name in names] == [113, 113, 988]
    assert [records[name].protocol for name in names] == [
        "objectnet, 113-way",
        "objectnet, masked",
        "objectnet, 1000-way",
    ]
    images = {name: load_data(spec, imagenet_space(), partial=True) for name, spec in names.items()}
    sure = {
        name: scores(*_logits_and_labels(classifier, image_set)).confidence[0] for name, image_set in images.items()
    }
    over_objects, over_ids = np.exp([6.0, *[0.0] * 112]), np.exp([6.0, 5.0, *[0.0] * 123])
    assert sure["113_way"] == pytest.approx(over_objects[0] / over_objects.sum(), rel=1e-5)
    assert sure["masked"] == pytest.approx(over_ids[0] / over_ids.sum(), rel=1e-5)


def _logits_and_labels(classifier: sp.Classifier, images: sp.ImageSet) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    predictions = sp.predict(classifier, images, device="cpu")
    return predictions.logits, predictions.labels


def test_imagenet_9_counts_any_class_of_the_super_class_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = imagenet_classes()
    members = {name: [w for w in classes.wnids if classes.super_classes.get(w) == name] for name in SUPER_CLASSES}
    for i, name in enumerate(SUPER_CLASSES):
        for variant, wnid in (("mixed_same", members[name][-1]), ("mixed_rand", classes.wnids[409])):
            folder = tmp_path / variant / "val" / f"{i:02d}_{name}"
            write_picture(folder / f"fg_{members[name][0]}_11_bg_n01440764_3.JPEG", number_of(wnid))
    directory = saved(reader(imagenet_space()), monkeypatch)
    (record,) = run_evaluate(directory, {"in9": f"imagenet-9:{tmp_path}"}, device="cpu")
    assert {name: group.accuracy for name, group in record.groups.items()} == {"mixed_rand": 0.0, "mixed_same": 1.0}
    assert record.metrics == {"background gap": 1.0}


def test_your_own_partial_shift_has_the_same_variants(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = sp.ClassSpace.from_ids(["fig", "lemon", "pear", "red_apple"])
    directory = saved(reader(classes, lambda _: {0: 9.0, 1: 5.0}), monkeypatch)
    (tmp_path / "lemons" / "lemon").mkdir(parents=True)
    for file in (folders / "test" / "lemon").iterdir():
        (tmp_path / "lemons" / "lemon" / file.name).write_bytes(file.read_bytes())
    sets = {"test": f"folder:{folders / 'test'}", "lemons": f"folder:{tmp_path / 'lemons'}"}
    with pytest.warns(UserWarning, match="has no image of"):
        test, lemons = run_evaluate(directory, sets, device="cpu", out=tmp_path / "out")
    assert {name: variant.accuracy for name, variant in lemons.variants.items()} == {
        OVER_ALL: 0.0,
        MASKED: 1.0,
        REFERENCE_OVER_ALL: 0.0,
        REFERENCE_MASKED: 1.0,
    }
    assert (lemons.accuracy, test.variants[MASKED].accuracy) == (0.0, pytest.approx(1 / 3))
    lines = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["variants"][MASKED]["accuracy"] == 1.0
