"""``shiftproof export``: a run's ensemble becomes a directory with a model card, and results become tables' rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.commands import Call, assert_mistake, data_flags
from support.exported import logits_on, run_code

import shiftproof as sp

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def run(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on three classes; read only."""
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    settings = {
        "model": "tiny",
        "suite": {"reference": reference, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}},
        "finetune": {"epochs": 1, "batch_size": 9, "mixing": "smoothmix-circle"},
        "alphas": 3,
    }
    out = tmp_path_factory.mktemp("run") / "fruit"
    sp.run_pipeline(sp.RunFile.resolve(settings), out)
    return out


def metadata_of(directory: Path) -> tuple[Mapping, str]:
    card = ModelCard.load(directory / "README.md")
    return card.data.to_dict(), card.text


def test_an_ensemble_is_exported_with_what_its_run_measured(
    run: Path, folders: Path, tmp_path: Path, call: Call
) -> None:
    done = call("export", run / "ensemble", "--to", "torchscript", "--out", "exported")
    assert done.code == 0, done.err
    assert "exported holds the classifier for torchscript; logits differ by at most" in done.out
    data, text = metadata_of(Path("exported"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    measured = summary["models"]["ensemble"]
    (entry,) = data["model-index"]
    stated = {result["dataset"]["name"]: result["metrics"][0]["value"] for result in entry["results"]}
    assert stated == {name: values["accuracy"] for name, values in measured.items()}
    low, high = measured["sketch"]["interval"]
    accuracy = 100 * measured["sketch"]["accuracy"]
    assert f"| sketch | natural | {accuracy:.1f} | {100 * low:.1f} to {100 * high:.1f} | 9 |" in text
    assert "**alpha 0.5**, chosen by the rule fixed: 0.5, which is WiSE-FT's value" in text
    assert sp.models.fingerprint(sp.load_classifier(run / "fine_tuned")) in text
    assert "- mixing: smoothmix-circle" in text
    assert all(name in text for name in ("OpenMoji", "WiSE-FT", "SmoothMix: a simple", "lemon, pear, red apple"))
    # The code in the card runs as it stands.
    code = text.split("```python\n")[1].split("```")[0].replace("photo.jpg", str(folders / "test/pear/pear-0.png"))
    answer, _ = run_code(code)
    classifier = sp.load_classifier(run / "ensemble")
    assert answer == classifier.classes.names[int(logits_on(classifier, folders / "test/pear/pear-0.png").argmax())]


def test_a_stage_is_exported_with_its_own_results(folders: Path, call: Call) -> None:
    assert call("zeroshot", "tiny", *data_flags(folders), "--out", "zero").code == 0
    assert call("export", "zero", "--to", "open_clip", "--out", "exported").code == 0
    data, text = metadata_of(Path("exported"))
    assert data["library_name"] == "open_clip"
    assert data["pipeline_tag"] == "image-classification"
    assert len(data["model-index"][0]["results"]) == 2
    assert "“a photo of a {}.”" in text


def test_results_of_an_evaluation_can_be_stated(run: Path, folders: Path, call: Call) -> None:
    scored = ["evaluate", run / "ensemble", "--test", f"folder:{folders}/validation", "--out", "scored"]
    assert call(*scored).code == 0
    flags = ["--to", "torchscript", "--out", "exported"]
    assert call("export", run / "ensemble", *flags, "--results", "scored").code == 0
    (result,) = metadata_of(Path("exported"))[0]["model-index"][0]["results"]
    stored = json.loads(Path("scored/results.jsonl").read_text(encoding="utf-8"))
    assert result["metrics"][0]["value"] == stored["accuracy"]
    missing = call("export", run / "ensemble", *flags, "--overwrite", "--results", "nowhere.jsonl")
    assert_mistake(missing, "nowhere.jsonl does not exist")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "timm", "--out", "x"], "cannot hold this classifier: its encoder is a model of open_clip"),
        (["--to", "onnxx", "--out", "x"], "unknown --to 'onnxx'. Did you mean 'onnx'?"),
        (["--to", "onnx", "--out", "model.onnx"], "is the name of a file, and export_classifier writes a directory"),
    ],
)
def test_a_mistake_is_explained(run: Path, call: Call, arguments: list[str], message: str) -> None:
    assert_mistake(call("export", run / "ensemble", *arguments), message)


def test_a_run_becomes_results_of_clip_benchmark(run: Path, call: Call) -> None:
    assert call("report", run, "--clip-benchmark", "rows").code == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in Path("rows").iterdir()]
    assert len(rows) == 6
    for row in rows:
        assert set(row) == {"dataset", "model", "pretrained", "task", "metrics", "language", "classifier"}
        assert set(row["metrics"]) == {"acc1", "acc5", "mean_per_class_recall"}
        assert row["metrics"]["acc5"] is None  # of three classes
    names = {
        "none": "zero_shot",
        "none-fine_tuned": "fine_tuned",
        "none-ensemble-alpha-0.5": "ensemble",
    }
    for row in rows:
        assert row["metrics"]["acc1"] == summary["models"][names[row["pretrained"]]][row["dataset"]]["accuracy"]
        assert row["task"] == ("zeroshot_classification" if row["pretrained"] == "none" else "classification")


def test_an_evaluation_becomes_results_of_clip_benchmark(run: Path, folders: Path, call: Call) -> None:
    data = ["--test", f"folder:{folders}/test", "--shift", f"sketch=folder:{folders}/sketch"]
    assert call("evaluate", run / "zero_shot", *data, "--clip-benchmark", "rows", "--out", "scored").code == 0
    scored = [json.loads(line) for line in Path("scored/results.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = {row["dataset"]: row for row in (json.loads(path.read_text("utf-8")) for path in Path("rows").iterdir())}
    assert {line["set"]: line["accuracy"] for line in scored} == {n: row["metrics"]["acc1"] for n, row in rows.items()}
    assert {path.name for path in Path("rows").iterdir()} == {
        f"{name}_none_tiny_en_zeroshot_classification.json" for name in ("test", "sketch")
    }


def test_classifiers_of_one_name_do_not_overwrite_each_other_s_results(run: Path, folders: Path, call: Call) -> None:
    first = sp.load_classifier(run / "fine_tuned")
    other = first.with_weights(
        {name: -entry if "head" in name else entry for name, entry in first.state_dict().items()}
    )
    sp.save_classifier(other, "other/fine_tuned")
    for _ in range(2):  # results of the same classifiers replace their earlier ones
        for directory in (run / "fine_tuned", Path("other/fine_tuned")):
            data = ["--test", f"folder:{folders}/test", "--clip-benchmark", "rows", "--out", "scored", "--overwrite"]
            assert call("evaluate", directory, *data).code == 0
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in Path("rows").iterdir()]
    assert {row["classifier"] for row in rows} == {sp.models.fingerprint(model) for model in (first, other)}
    assert len(rows) == len({row["pretrained"] for row in rows}) == 2
