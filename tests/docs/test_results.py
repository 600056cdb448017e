"""What the pages say and show is what the committed results give."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import results
from pages import figures, taking
from pages.markdown import OutdatedError
from pages.sources import Sources

from shiftproof.storage import read_json, write_json

ROOT = Path(__file__).parents[2]
RESULTS, BENCHMARKS = "docs/results", "benchmarks/results"
# A number in each kind of committed file, and a page that shows it.
SHOWN: list[tuple[str, list[str | int], str]] = [
    (f"{RESULTS}/demo-seed-0.json", ["models", "fine_tuned", "sketch", "accuracy"], "docs/results.md"),
    (f"{RESULTS}/demo-seed-1.json", ["models", "ensemble", "colour", "interval", 0], "README.md"),
    (
        f"{RESULTS}/demo-seed-2.json",
        ["models", "zero_shot", "monochrome", "groups", "seen", "accuracy"],
        "docs/results.md",
    ),
    (f"{RESULTS}/diagnosis-seed-0.json", ["baselines", "colour", 4], "docs/decisions.md"),
    (f"{RESULTS}/diagnosis-seed-1.json", ["overrides", "sketch", "lead", "value"], "docs/diagnosis.md"),
    (f"{RESULTS}/diagnosis-seed-2.json", ["overrides", "sketch", "lead", "value"], "docs/diagnosis.md"),
    (f"{RESULTS}/averages-seed-0.json", [0, "accuracy", "interval", 0], "README.md"),
    (f"{RESULTS}/averages-seed-1.json", [1, "accuracy", "interval", 1], "README.md"),
    (f"{RESULTS}/averages-seed-2.json", [2, "accuracy", "interval", 1], "README.md"),
    (f"{RESULTS}/strong-edge-seed-0.json", ["contrasts", 0, "means", "window_share", "value"], "docs/strong-edge.md"),
    (f"{RESULTS}/strong-edge-seed-1.json", ["contrasts", 0, "means", "window_share", "value"], "docs/diagnosis.md"),
    (
        f"{RESULTS}/strong-edge-seed-2.json",
        ["models", "tuned-none", "clean", "means", "width", "value"],
        "docs/strong-edge.md",
    ),
    (
        f"{RESULTS}/solar-cells-seed-0.json",
        ["models", "ensemble", "polycrystalline", "metrics", "macro accuracy"],
        "docs/data-sets.md",
    ),
    (f"{RESULTS}/study-hyperparameters.json", ["spreads", 0, "deviation"], "docs/hyper-parameters.md"),
    (f"{RESULTS}/study-pacs.json", ["members", 0, "path", 2, "accuracy", "sketch"], "README.md"),
    (f"{RESULTS}/study-pacs.json", ["members", 4, "path", 2, "accuracy", "cartoon"], "docs/photographs.md"),
    (f"{RESULTS}/study-recipes.json", ["soups", 0, "path", -1, "accuracy", "colour"], "docs/hyper-parameters.md"),
    (f"{RESULTS}/study-tuning.json", ["members", 0, "path", -1, "validation"], "docs/hyper-parameters.md"),
    (f"{RESULTS}/robustness.json", [0, "sets", "reference", "accuracy"], "docs/mixing.md"),
    (f"{BENCHMARKS}/beyond_half.json", ["judgement", "winner", "seeds together", "mean", 0], "docs/diagnosis.md"),
    (f"{BENCHMARKS}/decoding.json", ["sets", "PACS", "of the best loader", "cache, warm"], "docs/inputs.md"),
    (f"{BENCHMARKS}/diagnosis.json", ["writing, 10000 images", "peak_mb"], "docs/diagnosis.md"),
    (f"{BENCHMARKS}/finetune.json", ["cpu", "ratio"], "docs/fine-tuning.md"),
    (f"{BENCHMARKS}/inference.json", ["tables", "cpu, batch 1", "ensemble", "of_fine_tuned"], "docs/choosing-alpha.md"),
    (f"{BENCHMARKS}/merge.json", ["sizes", "4 GB", "median_seconds", "merge"], "docs/merging.md"),
    (f"{BENCHMARKS}/mixing.json", ["targets", 0, "ratio"], "docs/mixing.md"),
    (
        f"{BENCHMARKS}/models.json",
        ["tables", "0 busy processes", "resnet18", "train", "of_best"],
        "docs/fine-tuning.md",
    ),
    (f"{BENCHMARKS}/path.json", ["path_of_floor"], "docs/choosing-alpha.md"),
    (f"{BENCHMARKS}/throughput.json", ["evaluate", "ratio"], "docs/decisions.md"),
    (f"{BENCHMARKS}/tune_demo.json", [1, "points", "ensemble under fine-tuned, reference"], "docs/decisions.md"),
    (f"{BENCHMARKS}/tune_mixing.json", [0, "fine_tuned", "colour"], "docs/mixing.md"),
    (
        f"{BENCHMARKS}/zeroshot_head.json",
        ["contenders", "class by class", "seconds_for_1000_classes"],
        "docs/zero-shot.md",
    ),
]


@pytest.fixture
def copied(tmp_path: Path) -> Sources:
    """A copy of the pages and the results."""
    for folder in ("docs", BENCHMARKS):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copyfile(ROOT / "README.md", tmp_path / "README.md")
    return Sources(tmp_path)


def change(path: Path, keys: list[str | int]) -> None:
    """Changes one number in a file of results."""
    content = json.loads(path.read_text(encoding="utf-8"))
    place: Any = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = 0.7 * place[keys[-1]] + 0.02
    path.write_text(json.dumps(content), encoding="utf-8")


def differs(page: str, sources: Sources) -> bool:
    """Whether a page differs from the results, or has a sentence that they no longer support."""
    try:
        return results.updated(page, sources) != (sources.root / page).read_text(encoding="utf-8")
    except OutdatedError as error:
        return str(error).startswith(page)


def test_pages_and_figures_are_those_of_the_committed_results() -> None:
    assert list(results.differing(Sources(ROOT))) == [], "run python tools/results.py"


@pytest.mark.parametrize(("name", "keys", "page"), SHOWN, ids=[name for name, *_ in SHOWN])
def test_another_number_in_the_results_is_noticed(name: str, keys: list[str | int], page: str, copied: Sources) -> None:
    change(copied.root / name, keys)
    assert differs(page, copied)


@pytest.mark.parametrize(
    ("name", "number", "other", "page"),
    [
        ("wiseft_alpha_sweeps.csv", ",58.1,", ",98.1,", "docs/choosing-alpha.md"),  # zero-shot's mean of the shifts
        ("wiseft_alpha_sweeps.csv", ",49.8,", ",49.9,", "docs/data-imagenet.md"),
        ("wiseft_other_sets.csv", ",97.6", ",97.7", "docs/data-cifar.md"),
        ("wiseft_other_sets.csv", ",84.6", ",84.7", "docs/data-fine-grained.md"),
        ("wiseft_other_sets.csv", ",49.5", ",49.6", "docs/data-wilds.md"),
    ],
)
def test_another_number_of_the_paper_is_noticed(name: str, number: str, other: str, page: str, copied: Sources) -> None:
    path = copied.results / name
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(number, other, 1), encoding="utf-8")
    assert differs(page, copied)


def test_every_committed_result_is_on_a_page() -> None:
    committed = {
        str(path.relative_to(ROOT)) for folder in (RESULTS, BENCHMARKS) for path in (ROOT / folder).glob("*.json")
    }
    assert committed == {name for name, *_ in SHOWN}


@pytest.mark.parametrize("page", results.PAGES)
def test_other_numbers_on_a_page_are_noticed(page: str, copied: Sources) -> None:
    path = copied.root / page
    right = text = path.read_text(encoding="utf-8")
    for name in results.PAGES[page]:
        number = re.compile(r"\d+").search(text, text.index(f"<!-- {name}: python tools/results.py -->"))
        assert number is not None
        text = f"{text[: number.start()]}{int(number[0]) + 1}{text[number.end() :]}"
    path.write_text(text, encoding="utf-8")
    assert results.updated(page, copied) == right != text


@pytest.mark.long
@pytest.mark.parametrize("option", ["--take", "--take-summaries"])
def test_the_figure_and_the_table_of_the_readme_are_taken_from_the_same_run(
    copied: Sources, tmp_path: Path, option: str
) -> None:
    run = tmp_path / "demo-0"
    run.mkdir()
    diagnosis = read_json(copied.results / "diagnosis-seed-0.json")
    averages = read_json(copied.results / "averages-seed-0.json")
    write_json(run / "diagnosis.json", {**diagnosis, "averages": averages})
    shutil.copyfile(copied.results / "demo-seed-0.json", run / "summary.json")
    change(run / "summary.json", ["models", "ensemble", "colour", "accuracy"])
    figure, committed = copied.images / "path.png", copied.results / "diagnosis-seed-0.json"
    before, table, earlier = figure.read_bytes(), (copied.root / "README.md").read_text("utf-8"), committed.read_bytes()
    assert results.regenerate([option, str(run)], copied) == ""
    assert figure.read_bytes() != before
    assert (copied.root / "README.md").read_text(encoding="utf-8") != table
    assert list(figures.stale_figures(copied)) == []
    assert not differs("README.md", copied)
    assert (committed.read_bytes() == earlier) == (option == "--take-summaries")


def test_the_figures_of_a_strong_edge_study_are_taken_with_its_results(copied: Sources, tmp_path: Path) -> None:
    run = tmp_path / "strong-edge"
    shutil.copytree(copied.images, run / "figures")
    shutil.copyfile(copied.results / "strong-edge-seed-0.json", run / "strong_edge.json")
    change(run / "strong_edge.json", ["contrasts", 0, "means", "window_share", "value"])
    shutil.copyfile(run / "strong_edge.json", copied.results / "strong-edge-seed-0.json")
    assert list(figures.stale_figures(copied)) == list(figures.COPIED)
    taking.take(run, copied)
    assert list(figures.stale_figures(copied)) == []


def test_a_run_without_the_parts_that_pages_show_is_refused(copied: Sources, tmp_path: Path) -> None:
    run = tmp_path / "demo-1"
    run.mkdir()
    diagnosis = json.loads((copied.results / "diagnosis-seed-1.json").read_text(encoding="utf-8"))
    (run / "diagnosis.json").write_text(json.dumps(diagnosis | {"other_paths": [], "baselines": {}}), encoding="utf-8")
    shutil.copyfile(copied.results / "demo-seed-1.json", run / "summary.json")
    message = results.regenerate(["--take", str(run)], copied)
    assert "diagnosis.json lacks baselines, other_paths, which the pages show" in message
    assert list(figures.stale_figures(copied)) == []


def test_a_figure_of_other_results_is_noticed(copied: Sources) -> None:
    change(copied.results / "demo-seed-0.json", ["alpha_path", 5, "accuracy", "sketch"])
    assert list(figures.stale_figures(copied)) == ["path"]
    shutil.copyfile(ROOT / "docs/images/recipes.png", copied.images / "hyperparameters.png")
    assert list(figures.stale_figures(copied)) == ["path", "hyperparameters"]


def test_a_sentence_that_the_results_no_longer_support_is_named(copied: Sources) -> None:
    path = copied.results / "robustness.json"
    entries = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        if (entry["augmentation"], entry["model"]) == ("mixup", "fine-tuned"):
            entry["minus none"]["natural"]["mean"] = 0.05
    path.write_text(json.dumps(entries), encoding="utf-8")
    message = results.regenerate([], copied)
    assert message.startswith("docs/mixing.md, mixing-findings: the results no longer support this: every mixing costs")
