"""The report: what the tables and the verdict say, and a page that is whole, safe and offline."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shiftproof.data.suites import load_data
from shiftproof.errors import InputError
from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.records.accuracy import AccuracyRecord, GroupRecord
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.runs import RunRecord
from shiftproof.records.summaries import summary_json
from shiftproof.report import (
    accuracy_table,
    class_table,
    group_table,
    path_figure,
    path_table,
    render_report,
    save_figure,
    seeds_table,
    shift_figure,
)
from shiftproof.report.comparisons import MEAN_OF_INTERVALS, mean_estimate
from shiftproof.report.tables import resampling_note

# The smallest PNG: one grey pixel.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c63680000008200817dd3d0d00000000049454e44ae426082"
)
NATURAL = {"sketch": "natural", "painting": "natural"}


def make_run(
    zero_shot: tuple[float, ...] = (0.90, 0.80, 0.60),
    fine_tuned: tuple[float, ...] = (0.97, 0.60, 0.50),
    ensemble: tuple[float, ...] = (0.965, 0.82, 0.62),
    *,
    kinds: Mapping[str, str] = NATURAL,
    half: float = 0.01,
    alpha: float = 0.5,
    seed: int = 0,
    suite: str = "fruit",
    groups: bool = False,
) -> RunRecord:
    """A run with a reference "photo" and the shifts of ``kinds``; every interval is accuracy ± half."""
    sets = ("photo", *kinds)
    numbers = {"zero_shot": zero_shot, "fine_tuned": fine_tuned, "ensemble": ensemble}
    alphas = {"zero_shot": 0.0, "fine_tuned": 1.0, "ensemble": alpha}

    def record(model: str, name: str, value: float) -> AccuracyRecord:
        bounds = (max(value - half, 0.0), min(value + half, 1.0))
        parts = {"seen": GroupRecord(value, bounds, 500)} if groups and name != "photo" else {}
        return AccuracyRecord(model, alphas[model], name, value, bounds, 1000, groups=parts)

    models = {
        model: {name: record(model, name, value) for name, value in zip(sets, values, strict=False)}
        for model, values in numbers.items()
    }
    points = tuple(
        PathPoint(
            alphas[model],
            entries["photo"].accuracy,
            {name: entry.accuracy for name, entry in entries.items()},
            {name: entry.interval for name, entry in entries.items()},
        )
        for model, entries in sorted(models.items(), key=lambda item: alphas[item[0]])
    )
    path = PathRecord("photo", tuple(kinds), points)
    versions, seconds = {"shiftproof": "0.1.0"}, {"fine_tune": 12.5}
    return RunRecord(
        suite, "photo", tuple(kinds), kinds, models, alpha, "fixed", path, 0.95, "clopper-pearson", seconds, seed,
        versions,
    )  # fmt: skip


def write_run(directory: Path, run: RunRecord, samples: list[dict[str, Any]] | None = None) -> Path:
    directory.mkdir(parents=True)
    (directory / "summary.json").write_text(json.dumps(summary_json(run)))
    if samples is not None:
        (directory / "samples").mkdir()
        (directory / "samples" / "samples.json").write_text(json.dumps({"samples": samples}))
        for sample in samples:
            (directory / "samples" / Path(sample["file"]).name).write_bytes(PIXEL)
    return directory


def make_sample(label: str = "lemon", prediction: str = "lemon", **changes: Any) -> dict[str, Any]:
    models = ("zero_shot", "fine_tuned", "ensemble")
    answers = {model: {"prediction": prediction, "confidence": 0.81} for model in models}
    return {
        "set": "sketch",
        "id": "s/0",
        "label": label,
        "file": "sketch-00.png",
        "answers": answers,
        **changes,
    }


class Page(HTMLParser):
    """What a page loads, and which elements it holds."""

    LOADING = frozenset({"src", "srcset", "data", "poster", "background", "action"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[dict[str, str]] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        if tag == "img":
            self.images.append(values)
        names = self.LOADING | ({"href"} if tag != "a" else set())
        self.loaded += [values[name] for name in names & values.keys()]


# -- numbers and tables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_the_interval_of_a_mean_covers_it_however_the_sets_depend_on_each_other(shared: float) -> None:
    """Four sets show the same 200 drawings; for a share of these, one set has a drawing right where the others do."""
    generator, truth, covered, trials = np.random.default_rng(0), 0.7, 0, 400
    for _ in range(trials):
        common = generator.random(200) < truth
        sets = [np.where(generator.random(200) < shared, common, generator.random(200) < truth) for _ in range(4)]
        counts = [int(right.sum()) for right in sets]
        mean = mean_estimate([(count / 200, accuracy_interval(count, 200)) for count in counts])
        covered += mean.low <= truth <= mean.high
    assert covered / trials > 0.94


def test_what_is_resampled_is_called_what_it_is() -> None:
    note = resampling_note({"photo": "sample", "snow": "picture", "street": "location"})
    assert note == (
        "The 95 % bootstrap intervals in brackets resample locations or pictures (with all their versions) or images."
    )
    assert "drawings" in resampling_note({"sketch": load_data("emoji").clusters.kind})


def test_the_interval_of_a_mean_is_the_mean_of_its_sets_intervals() -> None:
    mean = mean_estimate([(0.5, (0.4, 0.6)), (0.7, (0.66, 0.8))])
    assert (mean.value, mean.low, mean.high) == pytest.approx((0.6, 0.53, 0.7))
    alone = mean_estimate([(0.99, (0.95, 1.0))])
    assert (alone.low, alone.high) == pytest.approx((0.95, 1.0))


def test_accuracy_table_holds_the_numbers_in_per_cent() -> None:
    kinds = {**NATURAL, "noise": "synthetic"}
    table = accuracy_table(make_run((0.9, 0.8, 0.6, 0.5), (0.97, 0.6, 0.5, 0.4), (0.96, 0.8, 0.6, 0.5), kinds=kinds))
    natural = ("sketch (natural)", "painting (natural)", "mean of natural")
    assert table.header == ("model", "photo (reference)", *natural, "noise (synthetic)")
    assert table.rows[0] == (
        "zero-shot", "90.0 (89.0–91.0)", "80.0 (79.0–81.0)", "60.0 (59.0–61.0)", "70.0 (69.0–71.0)",
        "50.0 (49.0–51.0)",
    )  # fmt: skip
    assert [row[0] for row in table.rows] == ["zero-shot", "fine-tuned", "ensemble, alpha 0.5"]
    assert "95 % interval (Clopper-Pearson)" in table.note and "1,000 images" in table.note


def test_group_table_lists_groups_and_is_absent_without_them() -> None:
    assert group_table(make_run()) is None
    table = group_table(make_run(groups=True))
    assert table is not None
    assert table.rows[0][:4] == ("sketch", "seen", "500", "80.0 (79.0–81.0)")


def test_path_table_marks_the_chosen_and_the_oracle_alphas() -> None:
    table = path_table(make_run(fine_tuned=(0.97, 0.9, 0.5)))
    assert [row[0] for row in table.rows] == [
        "0 (zero-shot)", "0.5 (chosen)", "1 (fine-tuned)", "oracle (chosen on the test set)"
    ]  # fmt: skip
    best = ("97.0 at 1 (96.0–98.0)", "90.0 at 1 (89.0–91.0)", "62.0 at 0.5 (61.0–63.0)")
    assert table.rows[-1] == ("oracle (chosen on the test set)", "–", *best, "–")
    assert table.rows[1][3:] == ("82.0 (81.0–83.0)", "62.0 (61.0–63.0)", "72.0 (71.0–73.0)")
    assert "not a result" in table.note


def test_seeds_table_shows_every_seed_and_the_range() -> None:
    runs = [make_run(seed=0), make_run(seed=1, ensemble=(0.95, 0.80, 0.60))]
    rows = [row for row in seeds_table(runs).rows if row[0].startswith("ensemble")]
    assert rows[0] == ("ensemble, alpha 0.5", "0", "96.5 (95.5–97.5)", "72.0 (71.0–73.0)")
    assert rows[1] == ("ensemble, alpha 0.5", "1", "95.0 (94.0–96.0)", "70.0 (69.0–71.0)")
    assert rows[2] == ("ensemble", "range", "95.0 to 96.5", "70.0 to 72.0")


def test_seeds_of_different_suites_are_refused() -> None:
    with pytest.raises(InputError, match="different suites"):
        seeds_table([make_run(), make_run(suite="animals")])
    with pytest.raises(InputError, match="no runs"):
        seeds_table([])


def test_class_table_takes_the_last_record_and_ranks_by_change() -> None:
    run = make_run(kinds={"sketch": "natural"})
    values = {"zero_shot": (0.9, 0.5), "fine_tuned": (0.2, 0.6), "ensemble": (0.8, 0.6)}
    records = [
        dataclasses.replace(
            run.models[model]["sketch"],
            per_class={"lemon": lemon, "pear": pear},
            class_counts={"lemon": 10, "pear": 10},
        )
        for model, (lemon, pear) in values.items()
    ]
    stale = dataclasses.replace(records[0], per_class={"lemon": 0.0, "pear": 0.0})
    table = class_table(run, [stale, *records])
    assert table is not None
    assert [row[0] for row in table.rows] == ["lemon", "pear"]
    low, high = accuracy_interval(9, 10)
    assert table.rows[0][1] == f"90.0 ({100 * low:.1f}–{100 * high:.1f})"
    assert [cell.partition(" ")[0] for cell in table.rows[1][1:]] == ["50.0", "60.0", "60.0"]
    assert class_table(run, records[:2]) is None


# -- figures -------------------------------------------------------------------------------------------------


def test_path_figure_plots_reference_against_the_mean_shift_in_per_cent() -> None:
    axes = path_figure(make_run()).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}  # type: ignore[union-attr]
    assert lines["alpha path"] == [pytest.approx(p) for p in ([90, 70], [96.5, 72], [97, 55])]
    assert lines["straight line between the ends"] == [pytest.approx(p) for p in ([90, 70], [97, 55])]
    assert lines["zero-shot"] == [pytest.approx([90, 70])]


def test_figures_cover_runs_without_shifts_and_with_many() -> None:
    none = make_run(kinds={})
    assert shift_figure(none) is None
    assert path_figure(none).axes[0].get_xlabel() == "alpha"
    names = {f"shift {i}": "natural" for i in range(4)}
    figure = shift_figure(make_run(*((0.9, 0.8, 0.7, 0.6, 0.5),) * 3, kinds=names))
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes if axes.axison] == [f"{name} (natural)" for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_saved_figures_are_the_same_bytes_twice(tmp_path: Path, kind: str) -> None:
    first, second = (save_figure(path_figure(make_run()), tmp_path / f"{i}.{kind}") for i in range(2))
    assert first.read_bytes() == second.read_bytes()
    assert b"Software" not in first.read_bytes() and b"dc:date" not in first.read_bytes()


# -- the page ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_page_is_one_offline_file_with_every_picture_inside(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_run(suite="emoji", groups=True), [make_sample()])
    path = render_report([run])
    assert path == run / "report.html"
    assert (run / "figures" / "path.png").exists() and (run / "figures" / "shifts.png").exists()
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.images) == 3
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert all(value.startswith("data:") for value in page.loaded)
    assert "script" not in page.tags and not re.search(r"@import|url\(", text)
    assert "All emojis designed by OpenMoji" in text and "Colour drawings of every class were seen" in " ".join(
        text.split()
    )


@pytest.mark.slow
def test_page_explains_itself_and_names_no_artist_where_none_drew(tmp_path: Path) -> None:
    text = render_report([write_run(tmp_path / "run", make_run())]).read_text(encoding="utf-8")
    shown = " ".join(html.unescape(text).split())
    assert f"Vertical bars show that of the mean; {MEAN_OF_INTERVALS}." in shown  # as the tables say
    assert "quadrature" not in shown
    for words in (
        "2109.01903",
        "Clopper-Pearson",
        "oracle alpha",
        "shiftproof run run.yaml",
        '<html lang="en">',
    ):
        assert words in text
    assert "OpenMoji" not in text
    assert text.count("<caption>") == text.count("<table>")


@pytest.mark.slow
def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    kinds = {evil: "natural", '"><img src=x>': "natural"}
    samples = [make_sample(label=evil, prediction=evil, set=evil, id='" onload="x')]
    run = write_run(tmp_path / "run", make_run(kinds=kinds, suite=evil), samples)
    text = render_report([run]).read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags and "&lt;script&gt;" in text
    assert all(image["src"].startswith("data:") and "onload" not in image for image in page.images)


@pytest.mark.slow
def test_samples_tell_right_from_wrong_in_words(tmp_path: Path) -> None:
    samples = [make_sample(), make_sample(prediction="pear", file="sketch-01.png")]
    text = render_report([write_run(tmp_path / "run", make_run(), samples)]).read_text(encoding="utf-8")
    assert text.count("✓ right") == 3 and text.count("✗ wrong") == 3 and text.count("81\u00a0%") == 6


@pytest.mark.slow
def test_several_runs_share_one_page_with_the_seeds_first(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"run{seed}", make_run(seed=seed)) for seed in (3, 4)]
    with pytest.raises(InputError, match="`out=report.html`"):
        render_report(runs)
    path = render_report(runs, tmp_path / "both")
    assert path == tmp_path / "both" / "report.html"
    text = path.read_text(encoding="utf-8")
    assert text.index("All seeds") < text.index("Seed 3") < text.index("Seed 4")
    assert not (runs[0] / "figures").exists()


@pytest.mark.slow
def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_run(), [make_sample()])
    first, second = (render_report([run], tmp_path / f"{i}.html").read_bytes() for i in range(2))
    assert first == second


# -- damaged input -------------------------------------------------------------------------------------------


def test_a_missing_summary_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"summary\.json does not exist.*shiftproof run"):
        render_report([tmp_path])
    with pytest.raises(InputError, match="at least one"):
        render_report([])


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.update(schema=99),
        lambda value: value.pop("alpha"),
        lambda value: value.update(alpha_path=[]),
        lambda value: value.update(kinds={}),
        lambda value: value["models"]["ensemble"].pop("sketch"),
        lambda value: value["models"]["ensemble"]["sketch"].update(accuracy="much"),
        lambda value: value["models"]["ensemble"]["sketch"].update(accuracy=72.0),
        lambda value: value["alpha_path"][0]["interval"].pop("painting"),
    ],
)
def test_a_damaged_summary_is_named_and_nothing_is_written(tmp_path: Path, damage: Any) -> None:
    value = summary_json(make_run())
    damage(value)
    (tmp_path / "summary.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match=r"summary\.json is damaged"):
        render_report([tmp_path])
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_text_that_is_no_json_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_run())
    (run / "results.jsonl").write_text("{broken\n")
    with pytest.raises(InputError, match=r"results\.jsonl is damaged"):
        render_report([run])
    (run / "summary.json").write_text("[1, 2")
    with pytest.raises(InputError, match=r"summary\.json is not valid JSON"):
        render_report([run])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "content", "message"),
    [
        (make_sample(file="../summary.json"), PIXEL, "must lie in"),
        (make_sample(), b"text", r"sketch-00\.png is not a PNG"),
        (make_sample(), None, r"sketch-00\.png.*cannot be read"),
        (make_sample(answers={}), PIXEL, r"samples\.json is damaged"),
    ],
)
def test_damaged_samples_are_named(tmp_path: Path, sample: dict[str, Any], content: bytes | None, message: str) -> None:
    run = write_run(tmp_path / "run", make_run(), [sample])
    thumbnail = run / "samples" / "sketch-00.png"
    if content is None:
        thumbnail.unlink()
    else:
        thumbnail.write_bytes(content)
    with pytest.raises(InputError, match=message):
        render_report([run])


# -- weight --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_import_is_light_and_rendering_needs_no_torch(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_run())
    code = (
        "import sys, shiftproof.report as report\n"
        "assert not {'matplotlib', 'jinja2', 'numpy'} & set(sys.modules), 'the import is not lazy'\n"
        "from pathlib import Path\n"
        "report.render_report([Path(sys.argv[1])])\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
