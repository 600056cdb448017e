"""The whole diagnosis of a run: what it trains, what it keeps, what the page shows, and the baseline's accuracies."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import shiftproof as sp
from shiftproof.cli.app import app
from shiftproof.data.sets import array_set
from shiftproof.models.tiny import TINY_SIZES
from shiftproof.records.codec import from_json
from shiftproof.records.diagnosis import HALVES
from shiftproof.runs import diagnose as run_diagnosis
from shiftproof.runs import networks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_figures")]  # but for the fixture `finished`

CLASSES = ("lemon", "pear", "red_apple")


def suite_file(root: Path) -> dict[str, Any]:
    """Folders of noise in three colours, of which any network learns something at once."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, count in (("train", 6), ("validation", 4), ("test", 6), ("sketch", 6)):
        for number, name in enumerate(CLASSES):
            for i in range(count):
                pixels = generator.integers(0, 120, (64, 64, 3), dtype=np.uint8)
                pixels[..., number] += 90 if part == "sketch" else 135
                path = root / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    reference = {split: f"folder:{root}/{split}" for split in ("train", "validation", "test")}
    shifts = {"sketch": {"data": f"folder:{root}/sketch", "kind": "natural"}}
    return {"name": "colours", "reference": {"name": "photos", **reference}, "shifts": shifts}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("diagnosed")
    settings = {"epochs": 1, "batch_size": 9, "lr": 1e-3, "warmup_steps": 0}
    file = sp.RunFile.resolve({"suite": suite_file(root / "data"), "finetune": settings, "alphas": 3, "device": "cpu"})
    sp.run_pipeline(file, root / "run")
    return root / "run"


def read(run: Path) -> sp.records.DiagnosisRecord:
    return from_json(sp.records.DiagnosisRecord, json.loads((run / "diagnosis.json").read_text(encoding="utf-8")))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_every_run_is_diagnosed_from_what_it_kept(finished: Path) -> None:
    record = from_json(
        sp.records.DiagnosisRecord, json.loads((finished / "diagnosis.json").read_text(encoding="utf-8"))
    )
    assert record.sets == ("photos", "sketch")
    logits = {
        model: {
            name: sp.evaluation.load_predictions(finished / "predictions" / model / f"{name}.npz")
            for name in record.sets
        }
        for model in ("zero_shot", "fine_tuned", "ensemble")
    }
    for name in record.sets:
        one, other = logits["zero_shot"][name], logits["fine_tuned"][name]
        pair = record.pair("zero_shot", "fine_tuned", name)
        assert pair is not None
        assert pair.agreement == sp.diagnosis.measure_agreement(one.logits, other.logits, one.labels)
        difference = record.difference("fine_tuned", "zero_shot", name)
        assert difference is not None
        right = [sp.evaluation.accuracy(p.logits, p.labels) for p in (other, one)]
        assert difference.difference.value == pytest.approx(right[0] - right[1])
    page = (finished / "report.html").read_text(encoding="utf-8")
    for message in (
        "Why: what the diagnoses show",
        "Which model the ensemble follows",
        "Is the path connected?",
        "Robustness",
    ):
        assert message in page
    assert record.cluster_counts == {"photos": 18, "sketch": 18}
    assert "intervals are too narrow on sets with few units to resample: 18 on photos, 18 on sketch." in page
    assert {path.name for path in (finished / "figures").iterdir()} >= {"overrides.png", "connectivity.png"}


@pytest.mark.long
def test_the_slow_parts_train_once_and_reach_the_page(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "_SCRATCH", replace(networks._SCRATCH, epochs=1))
    answer = CliRunner().invoke(
        app, ["diagnose", "run", str(run), "--parts", "layers,strong-edge,halves,plane,scratch"]
    )
    assert answer.exit_code == 0, answer.output
    record = from_json(sp.records.DiagnosisRecord, json.loads((run / "diagnosis.json").read_text(encoding="utf-8")))
    assert {pair.set for pair in record.pairs if pair.first == "half 1"} == {"photos", "sketch"}
    assert [(own.second, own.set) for own in record.diversity] == [(HALVES, "photos"), (HALVES, "sketch")]
    for own in record.diversity:
        pairs = (record.pair(*which, own.set) for which in (own.first, own.second))
        apart, close = (pair.agreement.prediction_diversity for pair in pairs if pair)
        assert apart and close and own.difference.value == pytest.approx(apart.value - close.value)
    assert [path.name for path in record.other_paths] == [
        "two fine-tunings, of two halves",
        "two networks from random weights",
    ]
    assert [plane.set for plane in record.planes] == ["photos", "sketch"]
    assert [layers.set for layers in record.layers] == ["photos", "sketch"]
    assert record.strong_edge is not None
    assert set(record.strong_edge.models) == {"zero_shot", "fine_tuned", "ensemble"}
    assert {"plane-photos.png", "layers-sketch.png"} <= {path.name for path in (run / "figures").iterdir()}
    page = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "How half 1 and half 2 differ" in page
        and "Are zero-shot and fine-tuned more diverse than two fine-tuned models?" in page
    )
    assert "zero-shot − fine-tuned" in page  # under pasted windows
    saved = {path: path.stat().st_mtime_ns for path in (run / "diagnosis").rglob("*.safetensors")}
    assert len(saved) == 4
    again = sp.diagnose_run(run, ("halves",), others=[run / "diagnosis" / "half-1"])
    assert {path: path.stat().st_mtime_ns for path in saved} == saved
    assert any((pair.first, pair.second) == ("fine_tuned", "half-1") for pair in again.pairs)
    # What was not asked for again is there as it was; what was is there once.
    assert (again.layers, again.strong_edge, again.planes) == (record.layers, record.strong_edge, record.planes)
    assert (again.other_paths, again.diversity) == (record.other_paths, record.diversity)
    assert len({(pair.first, pair.second, pair.set) for pair in again.pairs}) == len(again.pairs)
    sp.run_pipeline(sp.RunFile.read(run / "run.yaml"), run, resume=True)
    assert read(run).layers == record.layers and read(run).other_paths == record.other_paths
    # Networks of another training are not taken for those that are asked for.
    card = run / "diagnosis" / "half-1" / "classifier.json"
    card.write_text(card.read_text(encoding="utf-8").replace('"epochs": 2', '"epochs": 3'), encoding="utf-8")
    with pytest.raises(sp.InputError, match=r"half-1 holds a network.*Delete that folder"):
        sp.diagnose_run(run, ("halves",))
    # A run may be overwritten with all that its diagnosis trained.
    sp.run_pipeline(sp.RunFile.read(run / "run.yaml"), run, overwrite=True)
    assert not (run / "diagnosis").exists()


def test_what_was_found_of_other_models_is_forgotten(run: Path) -> None:
    known = sp.diagnose_run(run, ("layers",))
    assert known.layers and (run / "figures" / "layers-sketch.png").is_file()
    mine = run / "figures" / "mine.png"
    mine.write_bytes(b"mine")
    shutil.rmtree(run / "fine_tuned")
    shutil.copytree(run / "ensemble", run / "fine_tuned")
    assert sp.diagnose_run(run, ()).layers == ()
    assert not (run / "figures" / "layers-sketch.png").exists() and mine.is_file()


def test_what_cannot_be_done_is_refused_before_anything_is_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was run")

    monkeypatch.setattr(run_diagnosis, "diagnose_predictions", never)
    with pytest.raises(sp.InputError, match="is no classifier|does not exist|no classifier"):
        sp.diagnose_run(run, (), others=[run / "nothing"])
    fruit = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(["lemon", "plum"]))
    with pytest.raises(sp.InputError, match="plum"):
        sp.diagnose_run(run, (), others=[sp.save_classifier(fruit, run.parent / "fruit")])
    monkeypatch.setattr("shiftproof.diagnosis.baselines.TINY_SIZES", {**TINY_SIZES, "whole": "another"})
    with pytest.raises(sp.InputError, match=r"not the tiny tower.*`baselines`"):
        sp.diagnose_run(run, ("baselines",))


def test_wrong_questions_are_answered(run: Path, tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="part is 'layer'.*'layers'|'layer'"):
        sp.diagnose_run(run, ("layer",))
    with pytest.raises(sp.InputError, match=r"summary\.json does not exist"):
        sp.diagnose_run(tmp_path / "none")
    (run / "diagnosis.json").write_text('{"schema": 1, "suite": 3}', encoding="utf-8")
    with pytest.raises(sp.InputError, match=r"diagnosis\.json is damaged.*shiftproof diagnose run"):
        sp.render_report([run])
    (run / "diagnosis.json").write_text('{"schema": 99}', encoding="utf-8")
    with pytest.raises(sp.InputError, match="schema 99"):
        sp.render_report([run])
    (run / "diagnosis.json").unlink()
    assert "Why: what the diagnoses show" not in sp.render_report([run]).read_text(encoding="utf-8")


def test_a_table_of_baselines_gives_effective_robustness(run: Path) -> None:
    table = run.parent / "baselines.csv"
    table.write_text("model,photos,sketch,other\na,30,10,1\nb,60.0,30,1\nc,80,50,1\n", encoding="utf-8")
    measured = sp.diagnose_run(run, (), baselines=table)
    assert measured.baselines == {"photos": (0.3, 0.6, 0.8), "sketch": (0.1, 0.3, 0.5)}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))["models"]
    line = sp.evaluation.fit_baseline((0.3, 0.6, 0.8), (0.1, 0.3, 0.5))
    for record in measured.robustness:
        assert record.effective is not None and record.effective.interval is not None
        reference, shift = (summary[record.model][name]["accuracy"] for name in ("photos", "sketch"))
        expected = sp.evaluation.effective_robustness(sp.evaluation.on_scale(reference, 18), shift, line)
        assert record.effective.value == pytest.approx(float(expected))
    for content, message in {
        "model,photos\na,1\n": "it needs at least one of 'sketch'",
        "model,sketch\na,1\n": "it needs 'model' and 'photos'",
        "model,photos,sketch\na,130,20\nb,10,20\n": "outside 0 to 1",
        "model,photos,sketch\na,0.1,much\nb,0.2,0.3\n": "not a number",
        "model,photos,sketch\na,0.1,0.2\n": "needs at least two",
        "model,photos,sketch\na,0.3,10\nb,0.6,20\n": "sketch in per cent and photos in fractions",
    }.items():
        table.write_text(content, encoding="utf-8")
        with pytest.raises(sp.InputError, match=message):
            sp.diagnose_run(run, (), baselines=table)
    with pytest.raises(sp.InputError, match="Give one of the two"):
        sp.diagnose_run(run, ("baselines",), baselines=table)
    # A network that is right on nothing counts as right on half an image.
    table.write_text("model,photos,sketch\na,0.3,0.1\nb,0.6,0\nc,0.8,0.5\n", encoding="utf-8")
    line = sp.evaluation.fit_baseline((0.3, 0.6, 0.8), (0.1, 0.5 / 18, 0.5))
    for record in sp.diagnose_run(run, (), baselines=table).robustness:
        reference, shift = (summary[record.model][name]["accuracy"] for name in ("photos", "sketch"))
        expected = sp.evaluation.effective_robustness(sp.evaluation.on_scale(reference, 18), shift, line)
        assert record.effective is not None and record.effective.value == pytest.approx(float(expected))
    table.write_text("model,photos,sketch\na,0.3,0.1\nb,0.3,0.2\n", encoding="utf-8")  # no line
    assert all(record.effective is None for record in sp.diagnose_run(run, (), baselines=table).robustness)


def test_what_one_part_found_outlasts_the_failure_of_the_next(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shiftproof.diagnosis.strong_edge.measure_windows", failing)
    with pytest.raises(KeyboardInterrupt):
        sp.diagnose_run(run, ("layers", "strong-edge"))
    record = from_json(sp.records.DiagnosisRecord, json.loads((run / "diagnosis.json").read_text(encoding="utf-8")))
    assert record.layers and record.strong_edge is None


def test_a_shift_of_one_image_is_diagnosed(run: Path, tmp_path: Path) -> None:
    file = sp.RunFile.read(run / "run.yaml")
    few = file.model_copy(update={"limit": 1})
    sp.run_pipeline(few, tmp_path / "few")
    table = tmp_path / "baselines.csv"
    table.write_text("model,photos,sketch\na,30,10\nb,60.0,30\n", encoding="utf-8")
    measured = sp.diagnose_run(tmp_path / "few", ("layers",), baselines=table)
    assert measured.layers == ()
    assert all(record.effective is None or record.effective.interval is None for record in measured.robustness)


@given(st.integers(0, 10**6), st.integers(3, 9))
def test_effective_robustness_varies_with_the_baseline_s_models(seed: int, models: int) -> None:
    generator = np.random.default_rng(seed)
    x = np.linspace(0.2, 0.8, models)
    y = np.clip(x - 0.1 + 0.02 * generator.normal(size=models), 0.02, 0.98)
    own = np.full(300, 0.9), np.full(300, 0.85)
    low, high = sp.evaluation.effective_interval(own, (x, y), seed=seed)
    # By hand: the line through models drawn with replacement.
    picks, drawn = np.random.default_rng(seed + 1), []
    while len(drawn) < 300:
        rows = picks.integers(models, size=models)
        if np.ptp(x[rows]) > 0:
            drawn.append(0.85 - float(sp.evaluation.fit_baseline(x[rows], y[rows]).expected(0.9)))
    assert (low, high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.6 * float(np.ptp(drawn)) + 1e-9
    )
    # A model on the line has none.
    line = sp.evaluation.fit_baseline(x, x)
    assert float(sp.evaluation.effective_robustness(0.5, 0.5, line)) == pytest.approx(0)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(0, 100))
def test_halves_are_disjoint_whole_and_even_in_every_class(labels: list[int], seed: int) -> None:
    ids = [str(i) for i in range(len(labels))]
    blank = np.zeros((len(labels), 8, 8, 3), np.uint8)
    images = array_set("train", sp.ClassSpace.from_ids(list("abcde")), ids, np.array(labels), lambda: blank)
    try:
        first, second = sp.diagnosis.halves(images, seed=seed)
    except sp.InputError:
        assert max(labels.count(label) for label in labels) == 1  # all single images went to one side
        return
    assert sorted([*first.ids, *second.ids]) == sorted(ids)
    for label in set(labels):
        counts = [int((half.labels == label).sum()) for half in (first, second)]
        assert abs(counts[0] - counts[1]) <= 1
    assert sp.diagnosis.halves(images, seed=seed)[0].ids == first.ids


def test_baselines_come_in_sizes_and_only_of_the_tiny_tower(tmp_path: Path) -> None:
    from shiftproof.diagnosis.baselines import untrained

    start = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(CLASSES))
    sizes = []
    for size in TINY_SIZES:
        vision = {**start.architecture["vision_cfg"], "timm_model_name": TINY_SIZES[size]}
        small = untrained(replace(start, architecture={**start.architecture, "vision_cfg": vision}))
        again = sp.load_classifier(sp.save_classifier(small, tmp_path / size))
        assert sp.models.fingerprint(again) == sp.models.fingerprint(small)
        sizes.append(sum(entry.numel() for entry in small.state_dict().values()))
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1] / 8
    other = replace(start, architecture={**start.architecture, "vision_cfg": {"layers": 2}}, source="vit")
    suite = sp.load_suite("emoji")
    with pytest.raises(sp.InputError, match="vit is not the tiny tower.*`baselines`"):
        sp.diagnosis.train_baseline(other, suite, sp.diagnosis.BaselineSettings("half", 1))


def with_channels_exchanged(start: sp.Classifier) -> sp.Classifier:
    """The same function by other weights: inside every block, the groups of channels stand in another order.

    What two trainings from random weights differ in, at its plainest: nothing ties their channels' order.
    """
    weights = dict(start.state_dict())
    for block in range(3):
        name = f"encoder.trunk.blocks.{block}"
        channels = len(weights[f"{name}.norm1.weight"])
        order = torch.arange(channels).reshape(8, -1).flip(0).flatten()  # GroupNorm has eight groups
        for entry in ("conv1.weight", "norm1.weight", "norm1.bias"):
            weights[f"{name}.{entry}"] = weights[f"{name}.{entry}"][order]
        weights[f"{name}.conv2.weight"] = weights[f"{name}.conv2.weight"][:, order]
    return start.with_weights(weights)


@pytest.mark.long
def test_between_networks_that_nothing_ties_there_is_a_barrier_and_fine_tunings_have_none() -> None:
    every = sp.load_suite("emoji")
    classes = sp.ClassSpace(every.classes.ids[::12], every.classes.names[::12])
    own = every.reference
    parts = (images.of_classes(classes) for images in (own.train, own.validation, own.test))
    suite = sp.ShiftSuite("some", classes, sp.data.Reference(own.name, *parts), ())
    start = sp.zero_shot_classifier(sp.load_clip("tiny"), suite.classes)
    settings = sp.FinetuneSettings(epochs=1, batch_size=32, lr=1e-3, warmup_steps=0)
    halves = [sp.diagnosis.finetune_half(start, suite, settings, which) for which in (0, 1)]
    exchanged = with_channels_exchanged(start)
    apart, close = (
        sp.diagnosis.measure_connectivity(sp.sweep_alpha(*ends, suite, 3))[0] for ends in ((start, exchanged), halves)
    )
    same = [sp.predict(end, suite.reference.test).logits for end in (start, exchanged)]
    np.testing.assert_allclose(*same, rtol=1e-3, atol=1e-3)
    assert apart.barrier_over_line > 0.3 and apart.barrier_alpha == 0.5
    assert close.barrier_over_line < 0.03
