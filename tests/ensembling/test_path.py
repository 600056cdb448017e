"""The alpha path in one pass over the data, its resume, the output-space baseline, and what the rules cost."""

from __future__ import annotations

import csv
import json
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import processes
from support.predictions import collecting

import shiftproof as sp
from shiftproof.ensembling import interpolation
from shiftproof.ensembling import path as path_module
from shiftproof.ensembling.path import alpha_grid
from shiftproof.ensembling.rules import FIXED_ALPHA, RULES
from shiftproof.evaluation.predictions import load_scores, save_scores
from shiftproof.models.classifier import Network
from shiftproof.records.codec import document, from_json
from shiftproof.records.paths import PathPoint
from shiftproof.report.paths import rules_table
from shiftproof.runs import predictions
from shiftproof.runs.sweeps import run_sweep

pytestmark = pytest.mark.usefixtures("blank_figures")

ROOT = Path(__file__).parents[2]
CLASSES = ("lemon", "pear", "red_apple")
Ends = tuple[sp.Classifier, sp.Classifier]


@pytest.fixture(scope="module")
def ends(tiny: sp.models.Clip) -> Ends:
    """A zero-shot classifier, and one whose every weight was moved."""
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(CLASSES))
    generator = torch.Generator().manual_seed(1)
    moved = {
        name: tensor + 0.2 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in zero.state_dict().items()
    }
    return zero, zero.with_weights(moved, head="trained")


@pytest.fixture(scope="module")
def head_ends(ends: Ends) -> Ends:
    """The same with the zero-shot encoder left as it was."""
    zero, tuned = ends
    of_head = {name: tensor for name, tensor in tuned.state_dict().items() if name.startswith("head.")}
    return zero, zero.with_weights({**zero.state_dict(), **of_head}, head="trained")


def load_run_suite(folders: Path, **changes: Any) -> sp.ShiftSuite:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    shifts = {"sketch": {"data": f"folder:{folders}/sketch", "kind": "natural"}}
    return sp.own_suite({"name": "photos", **reference}, shifts, **changes)


SETS = ("validation", "photos", "sketch")
ALPHAS = (0.0, 0.3, 0.5, 1.0)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that any network's encoder has seen."""
    seen: list[int] = []
    features = Network.features

    def counting(network: Any, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        return features(network, images)

    monkeypatch.setattr(Network, "features", counting)
    return seen


# One pass.


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [4, 256])
def test_one_pass_gives_the_loop_s_logits_bit_for_bit(
    ends: Ends, folders: Path, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_module, "BATCH_SIZE", batch_size)
    suite, result = load_run_suite(folders), {}
    path = sp.sweep_alpha(*ends, suite, ALPHAS, keep=collecting(result))
    assert set(result) == {(alpha, name) for alpha in ALPHAS for name in SETS}
    sets = {"validation": suite.reference.validation, **suite.test_sets}
    for (alpha, name), logits in result.items():
        alone = sp.predict(sp.wise_ft(*ends, alpha), sets[name], batch_size=batch_size)
        assert logits.tobytes() == alone.logits.tobytes()
        point, right = path.at(alpha), sp.evaluation.accuracy(alone.logits, alone.labels)
        assert right == (point.validation if name == "validation" else point.accuracy[name])
    assert sp.sweep_alpha(*ends, suite, ALPHAS) == path


def test_every_image_is_decoded_once_and_no_more_than_a_batch_of_them_is_held(
    ends: Ends, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(path_module, "BATCH_SIZE", 2)
    suite = load_run_suite(folders)
    decoded, used = [], []
    images = suite.reference.test

    def read(i: int) -> NDArray[np.uint8]:
        decoded.append(i)
        assert len(decoded) - sum(used) // len(ALPHAS) <= 2
        return images.read(i)

    suite = replace(suite, reference=replace(suite.reference, test=replace(images, read=read)), shifts=())
    features = Network.features

    def forward(network: Any, batch: torch.Tensor) -> torch.Tensor:
        if decoded:
            used.append(len(batch))
        return features(network, batch)

    monkeypatch.setattr(Network, "features", forward)
    sp.sweep_alpha(*ends, suite, ALPHAS)
    assert sorted(decoded) == list(range(len(images)))
    assert sum(used) == len(ALPHAS) * len(images)


def test_there_is_one_working_copy_and_the_ends_stay_as_they_were(
    ends: Ends, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[object] = []
    deepcopy = interpolation.deepcopy

    def counting(network: Any) -> Any:
        copies.append(network)
        return deepcopy(network)

    monkeypatch.setattr(interpolation, "deepcopy", counting)
    for name in ("with_weights", "state_dict"):  # either would make copies of its own, or lead to them
        monkeypatch.setattr(sp.Classifier, name, lambda *_, name=name: pytest.fail(f"{name} was called"))
    before = [{name: t.clone() for name, t in end.network.state_dict().items()} for end in ends]
    sp.sweep_alpha(*ends, load_run_suite(folders), 11)
    assert copies == [ends[0].network]
    for end, state in zip(ends, before, strict=True):
        assert all(torch.equal(tensor, state[name]) for name, tensor in end.network.state_dict().items())


# Where the head alone differs, and in output space.


@pytest.mark.slow
@pytest.mark.parametrize("space", ["weights", "outputs"])
def test_a_head_only_path_runs_the_encoder_once(
    head_ends: Ends, folders: Path, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, result = load_run_suite(folders), {}
    with monkeypatch.context() as patch:
        seen = counted(patch)
        sp.sweep_alpha(*head_ends, suite, ALPHAS, space=space, keep=collecting(result))
    assert seen == [9, 9, 9]
    for alpha in ALPHAS:
        for name, images in suite.test_sets.items():
            alone = sp.predict(sp.wise_ft(*head_ends, alpha), images).logits
            np.testing.assert_allclose(result[alpha, name], alone, rtol=1e-5, atol=1e-4)
            both = sp.predict(sp.output_ensemble(*head_ends, alpha), images).logits
            np.testing.assert_allclose(both, alone, rtol=1e-5, atol=1e-4)
            if alpha in (0, 1):
                assert result[alpha, name].tobytes() == alone.tobytes() == both.tobytes()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5, 0.8, 1.0])
def test_outputs_are_interpolated_entry_by_entry(ends: Ends, folders: Path, alpha: float) -> None:
    images = load_run_suite(folders).reference.test
    result = sp.predict(sp.output_ensemble(*ends, alpha), images)
    first, second = (sp.predict(end, images).logits.tolist() for end in ends)
    for row, of_first, of_second in zip(result.logits.tolist(), first, second, strict=True):
        expected = [(1 - alpha) * a + alpha * b for a, b in zip(of_first, of_second, strict=True)]
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert abs(result.logits - sp.predict(sp.wise_ft(*ends, alpha), images).logits).max() > 0.01 or alpha in (0, 1)


def test_the_path_in_output_space_is_that_of_the_output_ensembles(
    ends: Ends, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, result = load_run_suite(folders), {}
    with monkeypatch.context() as patch:
        seen = counted(patch)
        sp.sweep_alpha(*ends, suite, ALPHAS, space="outputs", keep=collecting(result))
    assert seen == [9] * 6  # two networks on three sets
    for (alpha, name), logits in result.items():
        images = {"validation": suite.reference.validation, **suite.test_sets}[name]
        alone = sp.predict(sp.output_ensemble(*ends, alpha), images)
        assert logits.tobytes() == alone.logits.tobytes()


def test_a_space_or_alpha_that_there_is_not_is_refused(ends: Ends, folders: Path) -> None:
    with pytest.raises(sp.InputError, match=r"'weight'.*'weights'"):
        sp.sweep_alpha(*ends, load_run_suite(folders), 3, space="weight")
    with pytest.raises(sp.InputError, match="alpha is 1.5"):
        sp.output_ensemble(*ends, 1.5)
    with pytest.raises(sp.InputError, match="another class space"):
        sp.sweep_alpha(*ends, load_run_suite(folders).relabelled(sp.ClassSpace.from_ids(CLASSES[::-1])), 3)


# Resume.


def test_finished_pairs_are_not_run_again(ends: Ends, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    suite, result = load_run_suite(folders), {}
    path = sp.sweep_alpha(*ends, suite, ALPHAS, keep=collecting(result))
    sets = {"validation": suite.reference.validation, **suite.test_sets}
    known = {
        pair: logits.argmax(1) == sets[pair[1]].labels
        for pair, logits in result.items()
        if pair[1] == "validation" or pair == (0.5, "sketch")
    }
    seen, again = counted(monkeypatch), {}
    resumed = sp.sweep_alpha(*ends, suite, ALPHAS, keep=collecting(again), known=lambda a, n: known.get((a, n)))
    assert resumed == path
    assert set(again) == set(result) - set(known)
    assert seen == [9] * (len(ALPHAS) * len(SETS) - len(known))


def asked(folders: Path, **changes: Any) -> sp.RunFile:
    suite = {
        "name": "fruit",
        "reference": {"name": "photos", **{s: f"folder:{folders}/{s}" for s in ("train", "validation", "test")}},
        "shifts": {"sketch": {"data": f"folder:{folders}/sketch", "kind": "natural"}},
    }
    return sp.RunFile.resolve({"suite": suite, "alphas": [0.0, 0.5, 1.0], "device": "cpu", **changes})


@pytest.fixture
def saved(ends: Ends, tmp_path: Path) -> tuple[Path, Path]:
    return sp.save_classifier(ends[0], tmp_path / "zero"), sp.save_classifier(ends[1], tmp_path / "tuned")


@pytest.mark.slow
def test_a_sweep_resumes_from_what_it_kept(
    saved: tuple[Path, Path], folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    first = run_sweep(asked(folders), *saved, out)
    names = {f"alpha-{alpha:.2f}/{name}.npz" for alpha in (0, 0.5, 1) for name in SETS}
    assert {path.relative_to(out / "predictions").as_posix() for path in out.glob("predictions/*/*")} == names
    seen = counted(monkeypatch)
    assert run_sweep(asked(folders), *saved, out, resume=True) == first
    assert seen == []
    # A damaged file, one of other images and a missing one are made anew; the others stay.
    files = {name: out / "predictions" / name for name in names}
    files["alpha-0.50/sketch.npz"].write_bytes(files["alpha-0.50/sketch.npz"].read_bytes()[:300])
    ids, before = load_scores(files["alpha-0.00/photos.npz"])
    save_scores(before, ids[::-1], files["alpha-0.00/photos.npz"])
    files["alpha-1.00/validation.npz"].unlink()
    assert run_sweep(asked(folders), *saved, out, resume=True) == first
    assert len(seen) == 3
    # Further alphas may be asked of the same sweep.
    more = run_sweep(asked(folders, alphas=[0.0, 0.25, 0.5, 1.0]), *saved, out, resume=True)
    assert len(seen) == 6
    assert [point for point in more.path.points if point.alpha != 0.25] == list(first.path.points)


@pytest.mark.slow
def test_a_sweep_of_something_else_is_not_gone_on_with(saved: tuple[Path, Path], folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sweep(asked(folders, alphas=[0.0, 1.0]), *saved, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for message, other in {
        "'zero_shot', 'fine_tuned'": lambda: run_sweep(asked(folders), *saved[::-1], out, resume=True),
        "'seed'": lambda: run_sweep(asked(folders, seed=1), *saved, out, resume=True),
        "'space'": lambda: run_sweep(asked(folders), *saved, out, space="outputs", resume=True),
        "'suite'": lambda: run_sweep(_without_shift(folders), *saved, out, resume=True),
    }.items():
        with pytest.raises(
            sp.InputError, match=f"other settings than this sweep .these differ: {message}.*`overwrite=True`"
        ):
            other()
    with pytest.raises(sp.InputError, match="Give one of the two"):
        run_sweep(asked(folders), *saved, out, resume=True, overwrite=True)
    with pytest.raises(sp.InputError, match="already holds"):
        run_sweep(asked(folders), *saved, out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    swept = run_sweep(asked(folders, alphas=[0.0, 1.0]), *saved, out, space="outputs", overwrite=True)
    assert swept.rules is None
    assert not (out / "ensemble").exists()  # it would be two models


def _without_shift(folders: Path) -> sp.RunFile:
    plain = asked(folders).model_dump()
    plain["suite"]["shifts"] = {}
    return sp.RunFile.resolve(plain)


KILLED = """
import os, signal, sys
from pathlib import Path
from shiftproof import RunFile
from shiftproof.runs import predictions
from shiftproof.runs.sweeps import run_sweep

save, calls = predictions.save_scores, []
def dying(*arguments):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return save(*arguments)
predictions.save_scores = dying
run_file, *ends, out = map(Path, sys.argv[1:])
run_sweep(RunFile.read(run_file), *ends, out)
"""


@pytest.mark.slow
def test_a_killed_sweep_resumes_to_the_same_bytes(
    saved: tuple[Path, Path], folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file, out, whole = tmp_path / "run.yaml", tmp_path / "out", tmp_path / "whole"
    run_file.write_text(asked(folders).to_yaml(), encoding="utf-8")
    ended = processes.run("code", KILLED, run_file, *saved, out)
    assert ended.returncode == -signal.SIGKILL
    assert not (out / "path.json").exists()
    assert len(list(out.glob("predictions/*/*.npz"))) == 4
    run_sweep(asked(folders), *saved, whole)
    seen = counted(monkeypatch)
    run_sweep(asked(folders), *saved, out, resume=True)
    assert len(seen) == 5
    for name in ("path.json", "rules.json", "sweep.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_run_resumes_inside_its_sweep(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = asked(folders, finetune={"epochs": 1, "batch_size": 9, "lr": 1e-3, "warmup_steps": 0})
    save, calls = predictions.save_scores, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return save(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(predictions, "save_scores", stopping)
        with pytest.raises(KeyboardInterrupt):
            sp.run_pipeline(run, tmp_path / "run")
    # Kept are five pairs, of which one has lost its logits.
    (tmp_path / "run/predictions/zero_shot/photos.npz").write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        seen = counted(patch)
        record = sp.run_pipeline(run, tmp_path / "run", resume=True)
    assert seen.count(9) == 9 - 5 + 1  # the other passes are over the few samples whose maps are made
    whole = sp.run_pipeline(run, tmp_path / "whole")
    assert replace(record, seconds={}) == replace(whole, seconds={})
    assert (tmp_path / "run/rules.json").read_bytes() == (tmp_path / "whole/rules.json").read_bytes()
    assert "Choosing alpha" in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    # Without the file the page does without; a damaged one is named.
    (tmp_path / "run/rules.json").write_text('{"rules": 1}', encoding="utf-8")
    with pytest.raises(sp.InputError, match=r"rules\.json is damaged"):
        sp.render_report([tmp_path / "run"])
    (tmp_path / "run/rules.json").unlink()
    assert "Choosing alpha" not in sp.render_report([tmp_path / "run"]).read_text(encoding="utf-8")


# Two towers.


def moved_clip(clip: sp.models.Clip, seed: int) -> sp.models.Clip:
    other = sp.load_clip(clip.name)
    generator = torch.Generator().manual_seed(seed)
    moved = {
        name: t + 0.1 * t.abs().mean() * torch.randn(t.shape, generator=generator) if t.is_floating_point() else t
        for name, t in other.model.state_dict().items()
    }
    other.model.load_state_dict(moved)
    return other


def test_two_towers_are_interpolated_before_the_head_is_built(tiny: sp.models.Clip) -> None:
    second, classes = moved_clip(tiny, 2), sp.ClassSpace.from_ids(CLASSES)
    classifier = sp.zero_shot_classifier(sp.ensembling.interpolate_clip(tiny, second, 0.4), classes)
    by_hand = sp.load_clip("tiny")
    by_hand.model.load_state_dict(sp.interpolate_weights(tiny.model.state_dict(), second.model.state_dict(), 0.4))
    expected = sp.zero_shot_classifier(by_hand, classes)
    assert sp.models.fingerprint(classifier) == sp.models.fingerprint(expected)
    scales = [clip.model.state_dict()["logit_scale"].item() for clip in (tiny, second)]
    assert classifier.logit_scale == pytest.approx(np.exp(0.6 * scales[0] + 0.4 * scales[1]), rel=1e-5)
    merged = sp.wise_ft(*(sp.zero_shot_classifier(clip, classes) for clip in (tiny, second)), 0.4)
    assert not torch.allclose(merged.network.head.weight, classifier.network.head.weight, atol=1e-3)


def test_towers_that_do_not_fit_are_refused(tiny: sp.models.Clip) -> None:
    preprocessing = replace(tiny.preprocessing, interpolation="bilinear")
    for message, other in {
        "preprocessing": replace(tiny, preprocessing=preprocessing),
        "architecture": replace(tiny, architecture={**tiny.architecture, "quick_gelu": True}),
        "context length": replace(tiny, context_length=5),
        "tokenizer": replace(tiny, tokenizer=lambda texts: torch.zeros(len(texts), 4)),
    }.items():
        for pair in ((tiny, other), (other, tiny)):
            with pytest.raises(sp.IncompatibleWeightsError, match=f"differ in {message}"):
                sp.ensembling.interpolate_clip(*pair)


# The rules.


def samples_of(
    curves: Mapping[str, list[int]], n: int
) -> tuple[sp.records.PathRecord, dict[float, dict[str, NDArray[Any]]]]:
    """A path with so many of n samples right at each alpha, and the samples themselves."""
    grid = alpha_grid(len(curves["validation"]))
    correct = {
        alpha: {name: np.random.default_rng([i, at]).permutation(np.arange(n) < curve[at])
                for i, (name, curve) in enumerate(curves.items()) if name != "validation"}
        for at, alpha in enumerate(grid)
    }  # fmt: skip
    points = [
        PathPoint(alpha, curves["validation"][at] / n, {k: float(v.mean()) for k, v in correct[alpha].items()}, {})
        for at, alpha in enumerate(grid)
    ]
    shifts = tuple(name for name in curves if name not in ("validation", "photos"))
    return sp.records.PathRecord("photos", shifts, tuple(points)), correct


CURVES = {
    "validation": [60, 70, 80, 83, 84],
    "photos": [60, 71, 79, 84, 82],
    "sketch": [50, 56, 55, 47, 40],
    "clutter": [40, 41, 45, 43, 30],
}


def test_rules_are_compared_sample_by_sample() -> None:
    path, correct = samples_of(CURVES, 100)
    measured = sp.ensembling.compare_alphas(path, correct, tolerance=0.01)
    assert {record.rule: record.alpha for record in measured.rules if not record.oracle} == {
        "fixed": 0.5, "reference": 1.0, "tolerance": 0.75,
    }  # fmt: skip
    assert {record.set: record.alpha for record in measured.rules if record.oracle} == {
        "photos": 0.75, "sketch": 0.25, "clutter": 0.5, "mean": 0.5,
    }  # fmt: skip
    reference = measured.rule("reference")
    assert reference.accuracy == {"photos": 0.82, "sketch": 0.4, "clutter": 0.3}
    assert reference.mean == pytest.approx(0.35)
    assert {name: round(before.value or 0, 9) for name, before in reference.difference.items()} == {
        "photos": 0.03, "sketch": -0.15, "clutter": -0.15,
    }  # fmt: skip
    assert reference.mean_difference is not None
    assert reference.mean_difference.value == pytest.approx(-0.15)
    assert reference.mean_difference.n == 200
    for before in measured.rule("fixed").difference.values():
        assert (before.value, before.interval) == (0, (0, 0))
    assert from_json(sp.records.RulesRecord, json.loads(json.dumps(document(measured)))) == measured
    with pytest.raises(sp.InputError, match=r"'oracle of tint'.*'oracle of sketch'"):
        measured.rule("oracle", "tint")


def test_the_intervals_are_those_of_a_paired_bootstrap() -> None:
    path, correct = samples_of(CURVES, 100)
    measured = sp.ensembling.compare_alphas(path, correct)
    for record in measured.rules:
        for name in ("photos", "sketch", "clutter"):
            moved = correct[record.alpha][name].astype(float) - correct[0.5][name]
            low, high = sp.evaluation.bootstrap_interval(moved, seed=5, draws=4000)
            assert record.difference[name].interval == pytest.approx((low, high), abs=0.0201)
    # The mean over sets that are resampled independently.
    generator, means = np.random.default_rng(0), []
    for _ in range(4000):
        picked = [generator.integers(0, 100, 100) for _ in range(2)]
        moved = [correct[1.0][n].astype(float) - correct[0.5][n] for n in ("sketch", "clutter")]
        means.append(np.mean([of_set[some].mean() for of_set, some in zip(moved, picked, strict=True)]))
    before = measured.rule("reference").mean_difference
    assert before is not None
    assert before.interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.0151)


def test_what_goes_together_is_resampled_together() -> None:
    path, correct = samples_of(CURVES, 100)
    views = {name: np.arange(100) // 5 for name in ("photos", "sketch", "clutter")}
    apart, together = (
        sp.ensembling.compare_alphas(path, correct, clusters=own).rule("reference") for own in (None, views)
    )
    for name, own in views.items():
        moved = correct[1.0][name].astype(float) - correct[0.5][name]
        assert together.difference[name].interval == pytest.approx(
            sp.evaluation.bootstrap_interval(moved, own, draws=4000), abs=0.0201
        )
        assert together.difference[name].value == apart.difference[name].value
    weights = {"sketch": 0.5, "clutter": 0.5}
    moved = {name: correct[1.0][name].astype(float) - correct[0.5][name] for name in weights}
    assert together.mean_difference is not None
    assert together.mean_difference.interval == sp.evaluation.contrast_interval(moved, weights, views)
    one = {name: np.zeros(100) for name in views}
    assert sp.ensembling.compare_alphas(path, correct, clusters=one).rule("fixed").difference["photos"].interval is None


def test_the_table_marks_what_reads_a_shift() -> None:
    path, correct = samples_of(CURVES, 100)
    table = rules_table(sp.ensembling.compare_alphas(path, correct, tolerance=0.01))
    assert table.header == ("rule", "alpha", "photos (reference)", "sketch", "clutter", "mean of 2 shifts")
    assert [row[:2] for row in table.rows] == [
        ("fixed", "0.5"),
        ("reference", "1"),
        ("tolerance (0.01)", "0.75"),
        ("oracle (chosen on the test set)", "–"),
    ]
    assert table.rows[0][2:] == ("0.0 (0.0 to 0.0)",) * 4
    assert table.rows[1][3].startswith("−15.0 (−")
    assert [cell.partition(" (")[0] for cell in table.rows[3][2:]] == [
        "+5.0 at 0.75", "+1.0 at 0.25", "0.0 at 0.5", "0.0 at 0.5",
    ]  # fmt: skip
    alone = rules_table(sp.ensembling.compare_alphas(path, correct, ["sketch"]))  # its mean would repeat its column
    assert alone.header[-1] == "clutter"


def test_what_cannot_be_compared_is_refused() -> None:
    path, correct = samples_of({name: curve[:4] for name, curve in CURVES.items()}, 100)
    with pytest.raises(sp.InputError, match=r"alpha 0\.5 is not on the path"):
        sp.ensembling.compare_alphas(path, correct)
    path, correct = samples_of(CURVES, 100)
    with pytest.raises(sp.InputError, match="alpha 0.25 on sketch are missing"):
        sp.ensembling.compare_alphas(path, {**correct, 0.25: {"photos": correct[0.25]["photos"]}})
    short = {**correct[0.25], "sketch": correct[0.25]["sketch"][:50]}
    with pytest.raises(sp.InputError, match="on sketch have 50 and 100"):
        sp.ensembling.compare_alphas(path, {**correct, 0.25: short})


COUNTS = st.lists(st.integers(0, 40), min_size=5, max_size=5)


@given(COUNTS, COUNTS, st.permutations(range(5)))
def test_no_rule_but_the_oracle_reads_a_shift(held_out: list[int], shift: list[int], order: list[int]) -> None:
    permuted = [shift[i] for i in order]
    result, other = (
        sp.ensembling.compare_alphas(*samples_of({"validation": held_out, "photos": curve, "sketch": curve}, 40))
        for curve in (shift, permuted)
    )
    for rule in RULES:
        assert result.rule(rule).alpha == other.rule(rule).alpha
    for record in other.rules:
        if record.oracle:
            assert permuted[round(4 * record.alpha)] == max(permuted)


# The paper's own sweeps (docs/results/wiseft_alpha_sweeps.csv), the rules worked out by hand on them.


def paper_path(model: str, tuning: str) -> sp.records.PathRecord:
    with (ROOT / "docs/results/wiseft_alpha_sweeps.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["model"], row["tuning"]) == (model, tuning)]
    assert len(rows) == 21
    points = []
    for row in rows:
        of_imagenet, of_shifts = float(row["ImageNet"]) / 100, float(row["avg_shifts"]) / 100
        points.append(PathPoint(float(row["alpha"]), of_imagenet, {"ImageNet": of_imagenet, "shifts": of_shifts}, {}))
    return sp.records.PathRecord("ImageNet", ("shifts",), tuple(points))


@pytest.mark.parametrize(
    ("model", "tuning", "reference", "half", "one", "two", "oracle"),
    [
        ("ViT-B/16", "end-to-end", 0.65, 0.55, 0.50, 0.45, 0.40),
        ("ViT-B/16", "linear classifier", 0.90, 0.70, 0.60, 0.50, 0.35),
        ("ViT-L/14@336", "end-to-end", 0.60, 0.45, 0.40, 0.30, 0.35),
        ("ViT-L/14@336", "linear classifier", 0.80, 0.70, 0.60, 0.50, 0.50),
    ],
)
def test_the_rules_on_the_paper_s_sweeps(
    model: str, tuning: str, reference: float, half: float, one: float, two: float, oracle: float
) -> None:
    path = paper_path(model, tuning)
    assert sp.choose_alpha(path) == FIXED_ALPHA
    assert sp.choose_alpha(path, "reference") == reference
    chosen = [sp.choose_alpha(path, "tolerance", tolerance=points / 100) for points in (0.5, 1, 2)]
    assert chosen == [half, one, two]
    assert path.oracle()["shifts"] == oracle
    # The paper's Observation 1: never below the line between the ends, up to its rounding.
    for point in path.points:
        for name, value in point.accuracy.items():
            line = (1 - point.alpha) * path.points[0].accuracy[name] + point.alpha * path.points[-1].accuracy[name]
            assert value >= line - 0.00051


# What the record of an ensemble says.


def test_alpha_may_be_one_for_every_entry(ends: Ends) -> None:
    alphas = {name: 1.0 if name.startswith("head.") else 0.0 for name in ends[0].state_dict()}
    classifier = sp.wise_ft(*ends, alphas)
    assert (classifier.alpha, classifier.logit_scale) == (None, ends[1].logit_scale)
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, ends[1 if name.startswith("head.") else 0].state_dict()[name])
    del alphas["head.bias"]
    with pytest.raises(sp.InputError, match=r"'head\.bias'"):
        sp.wise_ft(*ends, alphas)


def test_a_fine_tuned_model_of_another_source_is_told(ends: Ends) -> None:
    start = {"role": "start", "fingerprint": "0" * 64, "source": "open_clip:ViT-B-32/openai"}
    with pytest.warns(UserWarning, match="trained from open_clip:ViT-B-32/openai.*is tiny"):
        sp.wise_ft(ends[0], replace(ends[1], parents=(start,)), 0.5)
    # A probe of the same source may stand between, and what is not known is no mistake.
    for parents in ((), ({**start, "source": "tiny"},), ({**start, "fingerprint": sp.models.fingerprint(ends[0])},)):
        sp.wise_ft(ends[0], replace(ends[1], parents=parents), 0.5)
