"""Tables, verdict and figure of a strong-edge study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.windows import GREY, LABELS, SIZE, gazing, planted, squares

from shiftproof.cli.console import print_table
from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    measure_windows,
    strong_edge_study,
    window_examples,
)
from shiftproof.diagnosis.windows import WindowSettings
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.windows import StrongEdgeStudy, WindowSummary
from shiftproof.report import save_figure
from shiftproof.report.windows import (
    clean_table,
    contrast_table,
    edge_name,
    strong_edge_verdict,
    window_figure,
    window_kinds,
    window_table,
)

# Tables, words and the figure


def told(mean: MeanRecord | None, signed: bool) -> str:
    """A mean in per cent or points, as a person would write it."""
    if mean is None or mean.value is None or mean.interval is None:
        return "–"
    numbers = [mean.value, *mean.interval]
    texts = [f"{100 * x:.1f}" if not signed else f"{100 * x:+.1f}".replace("-", "−") for x in numbers]
    texts = ["0.0" if signed and float(t.replace("−", "-")) == 0 else t for t in texts]
    return f"{texts[0]} ({texts[1]} to {texts[2]})" if signed else f"{texts[0]} ({texts[1]}–{texts[2]})"


TITLED = {
    "window_share": "map in window",
    "share_drawn": "drawn there",
    "object_share": "map on object",
    "width": "width of map",
    "score_drop": "score drop",
    "accuracy_drop": "accuracy drop",
}
SIGNED = ("share_drawn", "score_drop", "accuracy_drop")


def test_the_tables_say_what_the_records_say(study: StrongEdgeStudy) -> None:
    clean = clean_table(study)
    assert clean.title == "Without a window, on fruit, in per cent"
    assert clean.header == ("model", "maps", "accuracy", "score of the true class", "map on object", "width")
    for row, (model, windows) in zip(clean.rows, study.models.items(), strict=True):
        means = windows[CLEAN].means
        expected = [told(means[name], False) for name in ("correct", "score", "object_share", "width")]
        assert row == (model, study.kinds[model], *expected)
    assert clean.rows[2][5] == "–"

    assert window_kinds(study) == (("away", 0.0), ("away", 0.5))
    for place, edge in window_kinds(study):
        table, pairs = window_table(study, place, edge), contrast_table(study, place, edge)
        assert table.header == ("model", "area", *TITLED.values())
        assert table.title.startswith(f"{edge_name(edge).capitalize()} windows away from the object, on fruit")
        for row, model in zip(table.rows, study.models, strict=True):
            means = study.summary(model, place, edge).means
            assert row == (model, told(means["area"], False), *(told(means[n], n in SIGNED) for n in TITLED))
        assert pairs is not None
        for row, second in zip(pairs.rows, ("soft", "plain"), strict=True):
            means = next(c for c in study.contrasts if (c.second, c.edge) == (second, edge)).means
            assert row == (f"hard − {second}", *(told(means[name], True) for name in TITLED))
    assert all("95 % bootstrap intervals" in table.note for table in (clean, table, pairs))
    assert not any("-" in cell for cell in window_table(study, "away", 0).rows[2])  # neither a hyphen nor minus nothing


def test_tables_leave_out_what_was_not_asked_for_or_not_measured() -> None:
    bare = planted()
    for values in bare.values.values():
        values.pop("object_share")
    study = strong_edge_study({"a": bare}, set_name="x")
    assert contrast_table(study, "away", 0.0) is None
    assert "map on object" not in clean_table(study).header + window_table(study, "away", 0.0).header
    assert strong_edge_verdict(study) == ""


def judged(window: MeanRecord, drawn: MeanRecord, place: str = "away", edge: float = 0.0) -> StrongEdgeStudy:
    def ends(model: str, share: float) -> WindowSummary:
        return WindowSummary(model, None, place, edge, {"window_share": MeanRecord(share, (share, share), 9)})

    contrast = WindowSummary("cut", "smooth", place, edge, {"window_share": window, "share_drawn": drawn})
    return StrongEdgeStudy("x", 0, 0.95, {}, {}, (ends("cut", 0.372), ends("smooth", 0.251)), (contrast,))


def test_the_verdict_says_more_less_or_neither_by_the_interval() -> None:
    more, less = MeanRecord(0.121, (0.08, 0.15), 9), MeanRecord(-0.03, (-0.05, -0.01), 9)
    assert strong_edge_verdict(judged(more, less)) == (
        "cut puts 37.2 % of its map into a hard window away from the object, and smooth 25.1 %: it attends to the "
        "window more, +12.1 points (+8.0 to +15.0). Relative to the clean image, it is drawn there less, −3.0 points "
        "(−5.0 to −1.0)."
    )
    chance, touching = MeanRecord(0.02, (-0.01, 0.05), 9), MeanRecord(-0.02, (-0.04, 0.0), 9)
    assert strong_edge_verdict(judged(chance, touching, "anywhere")) == (
        "cut puts 37.2 % of its map into a hard window anywhere, and smooth 25.1 %: it attends to the window neither "
        "clearly more nor clearly less, +2.0 points (−1.0 to +5.0). Relative to the clean image, it is drawn there "
        "neither clearly more nor clearly less, −2.0 points (−4.0 to 0.0)."
    )
    assert "could not be measured" in strong_edge_verdict(judged(MeanRecord(None, None, 0), more))
    assert strong_edge_verdict(judged(more, more, "over")) == ""
    assert strong_edge_verdict(judged(more, more, edge=0.5)) == ""


def test_the_verdict_of_a_measured_study_is_that_of_its_networks() -> None:
    settings = WindowSettings(contents=("grey",), edges=(0.0,), sides=(0.375,), places=("away",))
    measured = {at: measure_windows(gazing(at), squares(LABELS), settings) for at in ("everywhere", "object")}
    pairs = [("everywhere", "object"), ("object", "everywhere"), ("object", "object")]
    first, second, third = strong_edge_verdict(strong_edge_study(measured, pairs, set_name="x")).splitlines()
    area = 100 * 36 / SIZE**2
    assert f"everywhere puts {area:.1f} % of its map into a hard window away from the object, and object 0.0 %" in first
    assert f"it attends to the window more, +{area:.1f} points" in first
    assert f"it attends to the window less, −{area:.1f} points" in second
    assert third.count("neither clearly more nor clearly less, 0.0 points (0.0 to 0.0)") == 2


def test_a_table_too_wide_for_its_place_is_folded_and_loses_nothing(
    study: StrongEdgeStudy, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"hard": "scratch-smoothmix-square", "soft": "scratch-smoothmix-circle", "plain": "scratch-none"}
    named = replace(study, summaries=tuple(replace(s, model=names[s.model]) for s in study.summaries))
    table = window_table(named, "away", 0.0)
    print_table(table)
    lines = [line.strip("│┃").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert len(lines) > 3
    for column in range(len(table.header)):
        shown = "".join("".join(line[column].split()) for line in lines)
        assert shown == "".join("".join(row[column].split()) for row in table.rows)


# Examples


def test_the_figure_has_a_row_an_example_and_a_column_a_map(tmp_path: Path) -> None:
    models = {"sees": gazing("object"), "guesses-all-day": gazing("everywhere")}
    images = squares(LABELS, (5, 6))
    for count in (1, 2):
        examples = window_examples(models, images, GREY, count)
        figure = window_figure(examples, tuple(models))
        assert len(figure.axes) == count * 4
        assert [axes.get_title() for axes in figure.axes[:4]] == ["image", "with a window", "sees", "guesses all day"]
        captions = [axes.get_xlabel() for axes in figure.axes]
        for row, example in enumerate(examples):
            named, probability, _ = example.answers["sees"]
            assert captions[4 * row : 4 * row + 3] == [example.label, GREY.name, f"{named}\n{100 * probability:.0f} %"]
            assert [len(axes.images) for axes in figure.axes[4 * row : 4 * row + 4]] == [1, 1, 2, 2]
    save_figure(figure, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as drawn:
        width, height = figure.get_size_inches()
        assert drawn.size == (int(144 * width), int(144 * height))
        pixels = np.asarray(drawn.convert("RGB"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)[::7].tolist()}
    assert len(colours) > 100
    assert (128, 128, 128) in colours  # the window
