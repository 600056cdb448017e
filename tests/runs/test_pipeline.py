"""A whole run: what stands in its directory, whether its numbers are true, and that nothing finished is lost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.predictions import softmax

import shiftproof as sp
from shiftproof.errors import TrainingError
from shiftproof.records.summaries import run_from_summary, summary_json
from shiftproof.runs import inputs, pipeline, predictions
from shiftproof.storage import locked

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_figures")]  # but for the fixture `finished`

MODELS = ("zero_shot", "fine_tuned", "ensemble")
SETS = ("photos", "sketch", "noise")
ALPHAS = (0.0, 0.25, 0.5, 0.75, 1.0)


def run_file(folders: Path, **changes: Any) -> sp.RunFile:
    """A run of two short epochs on the fruit folders, with a natural and a synthetic shift."""
    reference = {"name": "photos", "train": f"folder:{folders}/train", "validation": f"folder:{folders}/validation"}
    settings: dict[str, Any] = {
        "suite": {
            "name": "fruit",
            "reference": {**reference, "test": f"folder:{folders}/test"},
            "shifts": {
                "sketch": {"data": f"folder:{folders}/sketch", "kind": "natural"},
                "noise": {"data": f"corrupted:noise:5:folder:{folders}/test", "kind": "synthetic"},
            },
        },
        "finetune": {"epochs": 2, "batch_size": 9, "lr": 1e-3, "warmup_steps": 0},
        "alphas": 5,
        "alpha_rule": "reference",
        "device": "cpu",
    }
    return sp.RunFile.resolve({**settings, **changes})


@pytest.fixture(scope="session")
def finished(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's directory; read only."""
    out = tmp_path_factory.mktemp("finished") / "run"
    sp.run_pipeline(run_file(folders), out)
    return out


def summary_of(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text(encoding="utf-8")))


def without_seconds(out: Path) -> dict[str, Any]:
    return {key: value for key, value in summary_of(out).items() if key != "seconds"}


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# What stands in the run directory.


def test_the_directory_holds_what_is_promised_and_nothing_else(finished: Path) -> None:
    expected = {"run.yaml", "stages.json", "path.json", "rules.json", "results.jsonl", "summary.json", "report.html"}
    expected |= {"conversions.json", "diagnosis.json"}
    expected |= {f"{model}/{name}" for model in MODELS for name in ("classifier.json", "model.safetensors")}
    expected |= {f"predictions/{model}/{name}.npz" for model in MODELS for name in ("validation", *SETS)}
    expected |= {f"predictions/alpha-{alpha:.2f}/{name}.npz" for alpha in ALPHAS for name in ("validation", *SETS)}
    result = set(files_of(finished))
    pictures = {name for name in result if name.startswith(("samples/", "figures/", "maps/"))}
    assert {f"maps/{name}-00-{model}.png" for name in SETS for model in MODELS} <= pictures
    resumable = {name for name in result if name.startswith("checkpoints/")}
    assert result - pictures - resumable == expected
    assert "checkpoints/training.jsonl" in resumable
    assert all((finished / name).exists() for stage in pipeline.STAGES for name in stage.writes)
    assert "samples/samples.json" in pictures
    assert any(name.startswith("figures/") for name in pictures)


def test_the_run_file_inside_is_the_one_that_ran(finished: Path, folders: Path) -> None:
    assert sp.RunFile.read(finished / "run.yaml") == run_file(folders).with_full_paths()
    noted = yaml.safe_load((finished / "run.yaml").read_text(encoding="utf-8"))["versions"]
    assert noted == summary_of(finished)["versions"]


def test_the_ensemble_inside_is_that_of_the_two_others(finished: Path) -> None:
    zero, tuned, ensemble = (sp.load_classifier(finished / model) for model in MODELS)
    expected = sp.wise_ft(zero, tuned, summary_of(finished)["alpha"])
    assert sp.models.fingerprint(ensemble) == sp.models.fingerprint(expected)
    assert [parent["fingerprint"] for parent in ensemble.parents] == [
        sp.models.fingerprint(zero),
        sp.models.fingerprint(tuned),
    ]
    assert (zero.head, tuned.head, ensemble.head) == ("zero-shot", "trained", "interpolated")
    assert sp.models.fingerprint(zero) != sp.models.fingerprint(tuned)


@pytest.mark.parametrize("rule", ["fixed", "reference"])
def test_the_kept_logits_are_those_of_the_classifier_beside_them(folders: Path, tmp_path: Path, rule: str) -> None:
    settings, out = run_file(folders, alpha_rule=rule, alphas=[0.0, 0.5, 0.9]), tmp_path / "run"
    sp.run_pipeline(settings, out)
    saved: dict[str, np.ndarray] = {}
    for name, images in inputs.load_run_suite(settings).test_sets.items():
        for model in MODELS:
            result = sp.predict(sp.load_classifier(out / model), images).logits
            with np.load(out / "predictions" / model / f"{name}.npz", allow_pickle=False) as file:
                saved[model] = file["logits"]
            np.testing.assert_allclose(saved[model], result, rtol=1e-5, atol=1e-5)
        assert abs(saved["zero_shot"] - saved["fine_tuned"]).max() > 0.1
        assert abs(saved["fine_tuned"] - saved["ensemble"]).max() > 0.01


def test_samples_show_what_the_models_say(finished: Path) -> None:
    entries = json.loads((finished / "samples" / "samples.json").read_text(encoding="utf-8"))["samples"]
    assert {entry["set"] for entry in entries} == set(SETS)
    for entry in entries:
        assert (finished / "samples" / entry["file"]).is_file()
        assert entry["id"].startswith(entry["label"].replace(" ", "_") + "/")
        assert set(entry["answers"]) == set(MODELS)
        for model, answer in entry["answers"].items():
            with np.load(finished / "predictions" / model / f"{entry['set']}.npz", allow_pickle=False) as saved:
                row = saved["logits"].tolist()[saved["ids"].tolist().index(entry["id"])]
            names = sp.load_classifier(finished / model).classes.names
            assert answer["prediction"] == names[row.index(max(row))]
            assert answer["confidence"] == pytest.approx(max(softmax(row)), abs=1e-4)


# summary.json: its schema.

FRACTION: Callable[[Any], bool] = lambda value: type(value) is float and 0 <= value <= 1  # noqa: E731


def assert_interval(interval: Any, value: float) -> None:
    assert isinstance(interval, list)
    low, high = interval
    assert FRACTION(low)
    assert FRACTION(high)
    assert low <= value <= high


def test_the_summary_has_every_key_of_its_schema(finished: Path) -> None:
    summary = summary_of(finished)
    assert set(summary) == {
        "schema", "suite", "reference", "shifts", "kinds", "models", "interval", "alpha", "alpha_rule",
        "alpha_path", "oracle_alpha", "seconds", "seed", "versions", "later_versions", "conversions", "start",
        "validation", "batch_norm", "precision", "skipped",
    }  # fmt: skip
    assert summary["schema"] == 1
    assert (summary["suite"], summary["reference"], summary["shifts"]) == ("fruit", "photos", ["sketch", "noise"])
    assert summary["kinds"] == {"sketch": "natural", "noise": "synthetic"}
    assert summary["interval"] == {"level": 0.95, "method": "clopper-pearson"}
    assert (summary["alpha_rule"], summary["seed"]) == ("reference", 0)
    assert list(summary["models"]) == list(MODELS)
    for sets in summary["models"].values():
        assert list(sets) == list(SETS)
        for entry in sets.values():
            assert FRACTION(entry["accuracy"])
            assert type(entry["n"]) is int
            assert_interval(entry["interval"], entry["accuracy"])
    assert [point["alpha"] for point in summary["alpha_path"]] == list(ALPHAS)
    for point in summary["alpha_path"]:
        assert FRACTION(point["validation"])
        assert list(point["accuracy"]) == list(point["interval"]) == list(SETS)
        for name in SETS:
            assert_interval(point["interval"][name], point["accuracy"][name])
    assert set(summary["oracle_alpha"]) == set(SETS)
    assert set(summary["oracle_alpha"].values()) <= set(ALPHAS)
    assert set(summary["seconds"]) == {"load", "zero_shot", "fine_tuned", "sweep", "ensemble", "predict"}
    assert all(type(value) is float and value >= 0 for value in summary["seconds"].values())
    assert {"shiftproof", "torch", "numpy"} <= set(summary["versions"])
    assert all(type(value) is str for value in summary["versions"].values())


def test_what_is_returned_is_what_is_written(folders: Path, finished: Path) -> None:
    record = sp.run_pipeline(run_file(folders), finished, resume=True)
    assert summary_json(record) == summary_of(finished)
    # Per-class accuracies stand in results.jsonl, not in the summary.
    assert summary_json(run_from_summary(summary_of(finished))) == summary_of(finished)


# summary.json: its numbers, made again by hand from the kept predictions.


def clopper_pearson(correct: int, n: int) -> tuple[float, float]:
    """The two rates at which so many or more, and so few or fewer, have the probability 2.5 %; by bisection."""

    def tail(p: float, counts: range) -> float:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in counts)

    def root(rises: bool, counts: range) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            if (tail(middle, counts) < 0.025) == rises:
                low = middle
            else:
                high = middle
        return low

    lower = 0.0 if correct == 0 else root(True, range(correct, n + 1))
    upper = 1.0 if correct == n else root(False, range(correct + 1))
    return lower, upper


def calibration(confidences: list[float], right: list[bool], bins: int = 15) -> float:
    error = 0.0
    for number in range(bins):
        inside = [i for i, c in enumerate(confidences) if min(int(c * bins), bins - 1) == number]
        if inside:
            hit = sum(right[i] for i in inside) / len(inside)
            sure = sum(confidences[i] for i in inside) / len(inside)
            error += abs(hit - sure) * len(inside) / len(right)
    return error


def kept_logits(out: Path, model: str, name: str) -> tuple[list[list[float]], list[int], list[str]]:
    with np.load(out / "predictions" / model / f"{name}.npz", allow_pickle=False) as saved:
        assert saved["logits"].dtype == np.float32
        return saved["logits"].tolist(), saved["labels"].tolist(), saved["ids"].tolist()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SETS)
def test_the_models_numbers_follow_from_the_kept_logits(finished: Path, model: str, name: str) -> None:
    rows, labels, ids = kept_logits(finished, model, name)
    classes = sp.load_classifier(finished / model).classes.ids
    # The labels are those of the folders, and every image was scored once.
    assert [classes[label] for label in labels] == [path.partition("/")[0] for path in ids]
    assert len(set(ids)) == 9
    right = [row.index(max(row)) == label for row, label in zip(rows, labels, strict=True)]
    entry = summary_of(finished)["models"][model][name]
    assert entry["n"] == 9
    assert entry["accuracy"] == sum(right) / 9
    assert entry["interval"] == pytest.approx(clopper_pearson(sum(right), 9), abs=1e-9)
    confidences = [max(softmax(row)) for row in rows]
    assert entry["calibration_error"] == pytest.approx(calibration(confidences, right), abs=1e-6)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_path_s_numbers_follow_from_the_kept_predictions(finished: Path, alpha: float) -> None:
    classes = sp.load_classifier(finished / "zero_shot").classes.ids
    point = next(point for point in summary_of(finished)["alpha_path"] if point["alpha"] == alpha)
    for name in ("validation", *SETS):
        file = finished / "predictions" / f"alpha-{alpha:.2f}" / f"{name}.npz"
        with np.load(file, allow_pickle=False) as saved:
            ids, predictions = saved["ids"].tolist(), saved["prediction"].tolist()
        right = sum(classes[k] == path.partition("/")[0] for k, path in zip(predictions, ids, strict=True))
        assert (point["validation"] if name == "validation" else point["accuracy"][name]) == right / 9
        if name != "validation":
            assert point["interval"][name] == pytest.approx(clopper_pearson(right, 9), abs=1e-9)


@pytest.mark.parametrize(("alpha", "model"), [(0.0, "zero_shot"), (1.0, "fine_tuned")])
@pytest.mark.parametrize("name", SETS)
def test_the_compact_predictions_follow_from_the_logits(finished: Path, alpha: float, model: str, name: str) -> None:
    rows, labels, ids = kept_logits(finished, model, name)
    file = finished / "predictions" / f"alpha-{alpha:.2f}" / f"{name}.npz"
    with np.load(file, allow_pickle=False) as saved:
        compact = {key: saved[key].tolist() for key in saved.files}
    assert set(compact) == {"ids", "prediction", "confidence", "margin", "log_probability", "square_sum"}
    assert compact["ids"] == ids
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        first, second = sorted(row, reverse=True)[:2]
        chances = softmax(row)
        true = row[label] - first - math.log(sum(math.exp(x - first) for x in row))
        assert compact["prediction"][i] == row.index(first)
        assert compact["confidence"][i] == pytest.approx(max(chances), rel=1e-5)
        assert compact["margin"][i] == pytest.approx(first - second, rel=1e-5)
        assert compact["log_probability"][i] == pytest.approx(true, rel=1e-5, abs=1e-6)
        assert compact["square_sum"][i] == pytest.approx(sum(p * p for p in chances), rel=1e-5)


def test_alpha_and_the_oracles_follow_from_the_path(finished: Path) -> None:
    summary = summary_of(finished)
    points = summary["alpha_path"]
    best, alpha = -1.0, -1.0
    for point in points:
        if point["validation"] > best:
            best, alpha = point["validation"], point["alpha"]
    assert summary["alpha"] == alpha
    for name in SETS:
        top = max(point["accuracy"][name] for point in points)
        assert summary["oracle_alpha"][name] == min(p["alpha"] for p in points if p["accuracy"][name] == top)


def test_every_evaluation_has_its_line(finished: Path) -> None:
    text = (finished / "results.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    summary = summary_of(finished)
    of_models = {(line["model"], line["set"]): line for line in lines if line["model"] != "path"}
    of_path = {(line["alpha"], line["set"]): line for line in lines if line["model"] == "path"}
    assert len(lines) == len(of_models) + len(of_path)
    assert set(of_models) == {(model, name) for model in MODELS for name in SETS}
    assert set(of_path) == {(alpha, name) for alpha in ALPHAS for name in ("validation", *SETS)}
    ends = {"zero_shot": 0.0, "fine_tuned": 1.0, "ensemble": summary["alpha"]}
    for (model, name), line in of_models.items():
        entry = summary["models"][model][name]
        assert line["alpha"] == ends[model]
        assert {key: line[key] for key in entry} == entry
        rows, labels, _ = kept_logits(finished, model, name)
        for k, class_id in enumerate(("lemon", "pear", "red_apple")):
            own = [row.index(max(row)) == k for row, label in zip(rows, labels, strict=True) if label == k]
            assert line["per_class"][class_id] == sum(own) / len(own)
    for point in summary["alpha_path"]:
        assert of_path[point["alpha"], "validation"]["accuracy"] == point["validation"]
        for name in SETS:
            assert of_path[point["alpha"], name]["accuracy"] == point["accuracy"][name]
            assert of_path[point["alpha"], name]["interval"] == point["interval"][name]


# The same again, and something else.


def test_the_same_run_gives_the_same_summary_and_weights(folders: Path, finished: Path, tmp_path: Path) -> None:
    sp.run_pipeline(run_file(folders), tmp_path / "run")
    assert without_seconds(tmp_path / "run") == without_seconds(finished)
    again, first = files_of(tmp_path / "run"), files_of(finished)
    assert set(again) == set(first)
    for name in first:
        if name.endswith((".safetensors", "classifier.json", "results.jsonl", "path.json")):
            assert again[name] == first[name], name


def test_another_seed_fine_tunes_otherwise_from_the_same_start(folders: Path, finished: Path, tmp_path: Path) -> None:
    sp.run_pipeline(run_file(folders, seed=1, alphas=2), tmp_path / "run")
    assert summary_of(tmp_path / "run")["seed"] == 1
    prints = {
        model: [sp.models.fingerprint(sp.load_classifier(out / model)) for out in (tmp_path / "run", finished)]
        for model in MODELS[:2]
    }
    assert prints["zero_shot"][0] == prints["zero_shot"][1]
    assert prints["fine_tuned"][0] != prints["fine_tuned"][1]


def test_an_alpha_that_is_not_on_the_path_is_measured_all_the_same(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    record = sp.run_pipeline(run_file(folders, alphas=[0.125, 0.9], alpha_rule="fixed"), out)
    assert record.alpha == 0.5
    assert record.path.alphas == (0.125, 0.9)
    assert {path.name for path in (out / "predictions").iterdir()} == {*MODELS, "alpha-0.125", "alpha-0.90"}
    ends = [sp.load_classifier(out / model) for model in MODELS[:2]]
    suite = inputs.load_run_suite(run_file(folders))
    for name, images in suite.test_sets.items():
        logits = sp.predict(sp.wise_ft(*ends, 0.5), images).logits
        assert record.models["ensemble"][name].accuracy == sp.evaluation.accuracy(logits, images.labels)


def test_without_validation_data_some_training_images_are_held_out(folders: Path, tmp_path: Path) -> None:
    suite = {"reference": {"train": f"folder:{folders}/train", "test": f"folder:{folders}/test"}}
    lines: list[str] = []
    with sp.progress.reading_notes(lines.append):
        record = sp.run_pipeline(run_file(folders, suite=suite, alphas=2), tmp_path / "run")
    assert (record.suite, record.reference, record.shifts) == ("own", "reference", ())
    line = "3 of the 18 training images, held out of every class with seed 0, because no validation data were named"
    assert f"validation: {line}" in lines
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert summary["validation"] == {"images": 3, "total": 18, "seed": 0, "groups": None, "absent_classes": []}
    assert line in (tmp_path / "run/report.html").read_text(encoding="utf-8")
    with np.load(tmp_path / "run" / "predictions" / "alpha-0.00" / "validation.npz", allow_pickle=False) as saved:
        held_out = saved["ids"].tolist()
    # A fifth of six images a class, to the nearest whole image.
    assert sorted(path.partition("/")[0] for path in held_out) == ["lemon", "pear", "red_apple"]


# A directory that holds something.


def test_a_finished_run_is_not_touched(folders: Path, finished: Path) -> None:
    before = files_of(finished)
    for settings in (run_file(folders), run_file(folders, seed=1)):
        with pytest.raises(sp.InputError, match=r"already holds a run(.|\n)*`resume=True`(.|\n)*`overwrite=True`"):
            sp.run_pipeline(settings, finished)
    assert files_of(finished) == before


@pytest.mark.parametrize("change", [{"seed": 1}, {"alphas": 3}, {"prompts": "short"}, {"finetune": {"epochs": 1}}])
def test_a_run_is_not_resumed_with_other_settings(folders: Path, finished: Path, change: dict[str, Any]) -> None:
    before = files_of(finished)
    with pytest.raises(sp.InputError, match="other settings"):
        sp.run_pipeline(run_file(folders, **change), finished, resume=True)
    assert files_of(finished) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_that_is_no_run_is_left_alone(folders: Path, tmp_path: Path, options: Mapping[str, bool]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "lemon.png").write_bytes(b"a picture")
    (tmp_path / "notes.txt").write_text("do not lose me")
    before = files_of(tmp_path)
    with pytest.raises(sp.InputError, match=r"'notes\.txt', 'photos'"):
        sp.run_pipeline(run_file(folders), tmp_path, **options)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_one_s_own_run_file_is_no_run(folders: Path, tmp_path: Path, options: Mapping[str, bool]) -> None:
    # "shiftproof run run.yaml --out ." beside one's data.
    (tmp_path / "run.yaml").write_text("# mine\n" + run_file(folders).to_yaml())
    (tmp_path / "lemon.png").write_bytes(b"a picture")
    before = files_of(tmp_path)
    with pytest.raises(sp.InputError, match=r"lemon\.png"):
        sp.run_pipeline(run_file(folders), tmp_path, **options)
    assert files_of(tmp_path) == before


def test_a_file_put_into_a_run_is_not_overwritten(folders: Path, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(run_file(folders).to_yaml() + "versions: {}\n")
    (tmp_path / "notes.txt").write_text("do not lose me")
    before = files_of(tmp_path)
    with pytest.raises(sp.InputError, match=r"notes\.txt.*no run wrote"):
        sp.run_pipeline(run_file(folders), tmp_path, overwrite=True)
    assert files_of(tmp_path) == before


def test_overwriting_leaves_nothing_of_the_old_run(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sp.run_pipeline(run_file(folders, alphas=[0.1]), out)
    assert (out / "predictions" / "alpha-0.10").is_dir()
    record = sp.run_pipeline(run_file(folders, alphas=[0.2], seed=1), out, overwrite=True)
    assert (record.seed, record.path.alphas) == (1, (0.2,))
    assert {path.name for path in (out / "predictions").iterdir()} == {*MODELS, "alpha-0.20"}


@pytest.mark.parametrize("options", [{"resume": True}, {"overwrite": True}])
def test_both_options_may_be_given_for_an_empty_folder(
    folders: Path, finished: Path, tmp_path: Path, options: Mapping[str, bool]
) -> None:
    sp.run_pipeline(run_file(folders), tmp_path / "new", **options)
    assert without_seconds(tmp_path / "new") == without_seconds(finished)


def test_a_run_that_failed_on_its_data_may_be_asked_for_anew(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    misnamed = run_file(folders).model_dump()
    misnamed["suite"]["shifts"]["sketch"]["data"] = f"folder:{folders}/sketches"
    with pytest.raises(sp.InputError, match="sketches does not exist"):
        sp.run_pipeline(sp.RunFile.resolve(misnamed), out)
    with pytest.raises(sp.InputError, match="unknown model"):
        sp.run_pipeline(run_file(folders, model="tinny"), out)
    sp.run_pipeline(run_file(folders, alphas=2), out)
    assert sp.RunFile.read(out / "run.yaml") == run_file(folders, alphas=2)


def test_a_run_in_progress_is_not_entered(folders: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(sp.InputError, match="in use by another"):
        sp.run_pipeline(run_file(folders), tmp_path / "run")
    assert files_of(tmp_path / "run") == {}


# Stopped and resumed.


class InterruptedRunError(Exception):
    """What a pulled plug looks like from inside."""


def interrupted(*_: Any, **__: Any) -> Any:
    raise InterruptedRunError


@pytest.mark.parametrize(
    ("broken", "done"),
    [
        ("finetune", ["zero_shot"]),
        ("sweep_alpha", ["zero_shot", "fine_tuned"]),
        ("ensemble_on_path", ["zero_shot", "fine_tuned", "sweep"]),
        ("open_predictions", ["zero_shot", "fine_tuned", "sweep", "ensemble", "predict"]),
        ("render_report", ["zero_shot", "fine_tuned", "sweep", "ensemble", "predict"]),
    ],
)
def test_an_interrupted_run_goes_on_where_it_stopped(
    folders: Path, finished: Path, tmp_path: Path, broken: str, done: list[str]
) -> None:
    settings, out = run_file(folders), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, broken, interrupted)
        with pytest.raises(InterruptedRunError):
            sp.run_pipeline(settings, out)
    seconds = json.loads((out / "stages.json").read_text(encoding="utf-8"))
    assert list(seconds) == ["load", *done]
    saved = [path for name in done for path in (out / name).rglob("*") if path.is_file()]
    stamps = {path: path.stat().st_mtime_ns for path in saved}

    sp.run_pipeline(settings, out, resume=True)
    assert {path: path.stat().st_mtime_ns for path in saved} == stamps
    assert {name: summary_of(out)["seconds"][name] for name in seconds} == seconds
    assert without_seconds(out) == without_seconds(finished)
    assert set(files_of(out)) == set(files_of(finished))


def test_a_sweep_stopped_half_way_is_begun_anew(folders: Path, finished: Path, tmp_path: Path) -> None:
    settings, out, calls = run_file(folders), tmp_path / "run", 0

    def stops_at_the_seventh(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise InterruptedRunError
        return save_scores(*arguments)

    save_scores = predictions.save_scores
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "save_scores", stops_at_the_seventh)
        with pytest.raises(InterruptedRunError):
            sp.run_pipeline(settings, out)
    sp.run_pipeline(settings, out, resume=True)
    assert without_seconds(out) == without_seconds(finished)


def test_a_finished_run_is_resumed_without_any_work(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    sp.run_pipeline(run_file(folders, alphas=2), out)
    before = summary_of(out)
    for name in ("build_start", "finetune", "sweep_alpha", "ensemble_on_path"):
        monkeypatch.setattr(pipeline, name, interrupted)
    monkeypatch.setattr(predictions, "predict_batches", interrupted)
    sp.run_pipeline(run_file(folders, alphas=2), out, resume=True)
    assert summary_of(out) == before


def test_damaged_weights_are_not_resumed_from(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    sp.run_pipeline(run_file(folders, alphas=2), out)
    weights = out / "fine_tuned" / "model.safetensors"
    weights.write_bytes((out / "zero_shot" / "model.safetensors").read_bytes())
    with pytest.raises(sp.InputError, match="fine_tuned"):
        sp.run_pipeline(run_file(folders, alphas=2), out, resume=True)


def test_a_loss_that_is_not_finite_keeps_what_was_good(folders: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    file = run_file(folders, finetune={"epochs": 2, "batch_size": 9, "lr": 1e20, "warmup_steps": 0})
    with pytest.raises(TrainingError, match=r"stopped at step \d") as caught:
        sp.run_pipeline(file, out)
    saved = out / "checkpoints" / "last_good"
    assert str(saved) in str(caught.value)
    assert sp.models.fingerprint(sp.load_classifier(saved)) == sp.models.fingerprint(
        sp.load_classifier(out / "zero_shot")
    )
    assert not (out / "fine_tuned").exists()
    assert not (out / "summary.json").exists()


def test_an_undecodable_image_is_named(folders: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        for path in sorted((folders / split).rglob("*.png")):
            copy = tmp_path / path.relative_to(folders)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    bad = tmp_path / "test" / "lemon" / "lemon-1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    suite = {"reference": {"train": f"folder:{tmp_path}/train", "test": f"folder:{tmp_path}/test"}}
    with pytest.raises(sp.InputError, match=r"lemon-1\.png cannot be decoded"):
        sp.run_pipeline(run_file(folders, suite=suite, alphas=2), tmp_path / "run")
