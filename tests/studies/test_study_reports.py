"""The tables, sentences and figure of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from support.studies import FOUND, SETS, ZERO, made, recorded

import shiftproof as sp
from shiftproof.records.paths import PathPoint
from shiftproof.records.studies import SpreadRecord, StudyFailure
from shiftproof.report.studies import (
    equal_reference_table,
    mean_name,
    spread_table,
    study_figure,
    study_table,
    study_verdict,
)
from shiftproof.studies.spreads import measure_spreads

SOUP = made("uniform soup", None, ZERO, (0.81, 0.71, 0.73), (0.9, 0.7, 0.8), members=("a-seed-0", "b-seed-0"))


def test_the_table_has_a_row_for_every_run_and_soup() -> None:
    record = recorded(FOUND, soups=(SOUP,), failures=(StudyFailure("d-seed-0", "it broke"),))
    table = study_table(record)
    assert table.header == (
        *("configuration", "seed", "fine-tuned: reference", "fine-tuned: mean of 2 shifts"),
        *("WiSE-FT, alpha 0.5: reference", "WiSE-FT, alpha 0.5: mean of 2 shifts"),
        *("WiSE-FT, chosen alpha: reference", "WiSE-FT, chosen alpha: mean of 2 shifts", "chosen alpha"),
    )
    assert [row[:2] for row in table.rows] == [
        *(("a", "0"), ("a", "1"), ("b", "0"), ("c", "0"), ("uniform soup", "–")),
    ]
    # Two sets, each with the distances 0.1 and 0.04, have a mean with the same distances, however they depend.
    assert table.rows[0] == (
        *("a", "0", "70.0 [60.0, 74.0]", "50.0 [40.0, 54.0]", "80.0 [70.0, 84.0]", "71.0 [61.0, 75.0]"),
        *("80.0 [70.0, 84.0]", "71.0 [61.0, 75.0]", "0.5"),
    )
    assert table.rows[3][-3:] == ("50.0 [40.0, 54.0]", "65.0 [55.0, 69.0]", "0")
    assert "95 % intervals" in table.note and "“reference”" in table.note
    assert "failed: d-seed-0." in table.note


def test_the_table_of_spreads_tells_deviation_extremes_and_factor() -> None:
    table = spread_table(recorded(FOUND))
    assert table is not None
    rows = {row[:2]: row[2:] for row in table.rows}
    assert set(rows) == {
        (model, sets)
        for model in ("fine-tuned", "WiSE-FT, alpha 0.5", "WiSE-FT, chosen alpha")
        for sets in ("reference", "mean of 2 shifts")
    }
    deviation, extremes, factor = rows["fine-tuned", "reference"]
    assert deviation.startswith("15.00 [0.00, ") and (extremes, factor) == ("60.0 to 90.0", "–")
    deviation, extremes, factor = rows["WiSE-FT, alpha 0.5", "reference"]
    assert deviation.startswith("2.00 [0.00, ") and extremes == "80.0 to 84.0" and factor.startswith("7.5 [")
    assert rows["WiSE-FT, alpha 0.5", "mean of 2 shifts"][1] == "70.0 to 73.0"
    assert "3 configurations" in table.note


def spread(model: str, sets: str, deviation: float, ratio: float, low: float, high: float) -> SpreadRecord:
    return SpreadRecord(model, sets, deviation, (0.0, 0.1), 0.3, 0.5, ratio, (low, high))


def test_the_verdict_says_less_more_or_not_clearly() -> None:
    classifier = (
        spread("fine_tuned", "reference", 0.06, 1, 1, 1),
        spread("wise_ft_0.5", "reference", 0.02, 3, 1.2, 4.1),
        spread("wise_ft_chosen", "reference", 0.12, 0.5, 0.3, 0.9),
        spread("fine_tuned", "mean", 0.0451, 1, 1, 1),
        spread("wise_ft_0.5", "mean", 0.041, 1.1, 0.9, 1.3),
        spread("wise_ft_chosen", "mean", 0.0451, 1, 1, 1),
    )
    reported = study_verdict(recorded(FOUND, spreads=classifier)).split(". ")
    assert reported[0] == (
        "On the reference, WiSE-FT, alpha 0.5 varies less than fine-tuned over the configurations: by 2.00 against "
        "6.00 points, a factor of 3.0 (1.2 to 4.1)"
    )
    assert "chosen alpha varies more than fine-tuned" in reported[1]
    assert reported[1].endswith("by 12.00 against 6.00 points, a factor of 0.5 (0.3 to 0.9)")
    assert reported[2] == (
        "On the mean of 2 shifts, WiSE-FT, alpha 0.5 does not vary clearly less or more than fine-tuned over the "
        "configurations: by 4.10 against 4.51 points, a factor of 1.1 (0.9 to 1.3)"
    )
    assert "does not vary clearly" in reported[3] and len(reported) == 4


def test_the_figure_draws_every_path_where_its_accuracies_are() -> None:
    record = recorded(FOUND, soups=(SOUP,))
    (axes,) = study_figure(record).axes

    def places(points: Sequence[PathPoint]) -> list[tuple[float, float]]:
        return [
            (100 * entry.accuracy["photo"], 50 * (entry.accuracy["sketch"] + entry.accuracy["painting"]))
            for entry in points
        ]

    lines = [np.column_stack(line.get_data()).tolist() for line in axes.get_lines()]
    *curves, zero_shot, tuned, half = lines
    for curve, member in zip(curves, (*FOUND, SOUP), strict=True):
        np.testing.assert_allclose(curve, places(member.path.points))
    np.testing.assert_allclose(zero_shot, [(50, 65)] * len(FOUND))
    np.testing.assert_allclose(tuned, places([member.path.at(1) for member in FOUND]))
    np.testing.assert_allclose(half, places([member.path.at(0.5) for member in FOUND]))
    # One entry a configuration, whose seeds have one colour; markers are no curves.
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a", "b", "c", "uniform soup", "zero-shot", "fine-tuned", "alpha 0.5"]
    colours = [line.get_color() for line in axes.get_lines()[:5]]
    assert colours[0] == colours[1] and len({str(colour) for colour in colours}) == 4
    assert "photo" in axes.get_xlabel() and mean_name(record) in axes.get_ylabel()
    assert "nan" not in str(axes.get_xlim())


def test_a_study_without_shifts_shows_the_reference_and_says_so() -> None:
    record = recorded(FOUND, shifts=(), averaged=(), spreads=measure_spreads(FOUND, SETS[0], ()))
    assert len(study_table(record).header) == 6
    (axes,) = study_figure(record).axes
    np.testing.assert_allclose(np.column_stack(axes.get_lines()[0].get_data())[2], (70, 70))
    assert "0 shifts" not in axes.get_ylabel()


def test_configurations_are_compared_with_a_path_at_equal_reference_accuracy() -> None:
    base = made("base", 0, (0.5, 0.6, 0.6), (0.7, 0.8, 0.6), (0.9, 0.5, 0.5))
    # Alone it stands at 0.8, where the base's path has (0.7 + 0.5) / 2; at alpha 0.5 to the left of where that begins.
    other = made("other", 0, (0.5, 0.6, 0.6), (0.45, 0.9, 0.9), (0.8, 0.7, 0.55))
    rows = {row[0]: row[1:] for row in equal_reference_table(recorded([base, other]), "base").rows}
    # Mean shifts reach 0.1 down and 0.04 up, as their sets do. Both references are 0.07 to either side, and the path
    # falls by one point a point there. All four add in squares.
    assert rows["other"] == (
        *("80.0 [70.0, 84.0]", "62.5 [52.5, 66.5]", "+2.5 [−12.1, +17.1]"),
        *("45.0 [35.0, 49.0]", "90.0 [80.0, 94.0]", "–"),
    )
    assert [rows["base"][place].split()[0] for place in (2, 5)] == ["0.0", "0.0"]
    with pytest.raises(sp.InputError, match="'bse'. Did you mean 'base'?"):
        equal_reference_table(recorded([base, other]), "bse")


@pytest.mark.parametrize(("head", "name"), [(None, "zero-shot"), ("zero-shot", "zero-shot"), ("probe", "start")])
def test_the_figure_and_the_tables_call_the_start_what_it_is(head: str | None, name: str) -> None:
    study = recorded([replace(member, head=head) for member in FOUND])
    labels = [text.get_text() for text in study_figure(study).axes[0].get_legend().get_texts()]
    assert (name in labels, len({"zero-shot", "start"} & set(labels))) == (True, 1)
    assert f"at the first point from {name} at which" in (equal_reference_table(study, "a").note or "")
