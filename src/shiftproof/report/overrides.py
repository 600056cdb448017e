"""Whom the ensemble follows where two models disagree, as tables and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.comparisons import FollowedRecord, Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.report.figures import MARKS, STYLE
from shiftproof.report.tables import Table, resampling_note, set_name, signed_points, with_interval

ENDS = ("zero-shot", "fine-tuned")


def _rate_note(clusters: Mapping[str, str]) -> str:
    """What the intervals of shares of disagreements are: those of single images are exact."""
    exact = f"{100 * LEVEL:g} % Clopper-Pearson intervals over images"
    kinds = set(clusters.values())
    if kinds == {"sample"}:
        return f"In brackets {exact}."
    return resampling_note(clusters) + (f" Where images stand for themselves, {exact}." if "sample" in kinds else "")


def override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = ENDS,
) -> Table:
    """Whom the ensemble follows where two models of these names disagree, a row for every set."""
    first, second = names
    rows = tuple(
        (
            set_name(name, reference),
            f"{own.disagreements:,} of {own.n:,}",
            *map(with_interval, (own.zero_shot, own.fine_tuned, own.neither)),
            with_interval(own.lead, signed_points),
            with_interval(own.beyond_both),
        )
        for name, own in overrides.items()
    )
    note = (
        f"In per cent of the images on which the two disagree; who is right plays no part. The lead is {first}'s share "
        f"minus {second}'s, in points. The last column: of the "
        "images that "
        f"the ensemble wins over {second}, the share that {first} gets wrong, too. " + _rate_note(clusters)
    )
    header = (
        "set",
        "disagreements",
        f"{first} prevails",
        f"{second} prevails",
        "neither",
        f"{first}'s lead",
        "gained beyond both",
    )
    return Table("Whom the ensemble follows", header, rows, note)


def right_override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = ENDS,
) -> Table | None:
    """Overrides apart by who of two models of these names was right; None without labels."""
    shown = dict(zip(("zero_shot", "fine_tuned"), names, strict=True))
    rows = tuple(
        (set_name(name, reference), who, f"{own.disagreements:,}", *map(with_interval, (own.zero_shot, own.fine_tuned)))
        for name, followed in overrides.items()
        for who, own in ((shown.get(right, right), part) for right, part in followed.by_right.items())
    )
    note = "In per cent of those disagreements. " + _rate_note(clusters)
    header = ("set", "who was right", "disagreements", *(f"{name} prevails" for name in names))
    return Table("Whom the ensemble follows, by who was right", header, rows, note) if rows else None


def override_figure(found: DiagnosisRecord) -> Figure:
    """Stacked bars, one a set: whom the ensemble follows; the intervals are those of each part."""
    names = [name for name in found.sets if found.overrides[name].disagreements]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.1 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for part, label in (("zero_shot", "zero-shot"), ("neither", "neither"), ("fine_tuned", "fine-tuned")):
            widths = np.array([100 * _part(found.overrides[name], part) for name in names])
            colour = "#c9cfd5" if part == "neither" else MARKS[part]["color"]
            axes.barh(range(len(names)), widths, left=left, color=colour, label=label, height=0.7)
            for row, (start, width) in enumerate(zip(left, widths, strict=True)):
                if width > 7:
                    tint = "#1f262d" if part == "neither" else "white"
                    axes.text(start + width / 2, row, f"{width:.0f}", ha="center", va="center", color=tint, fontsize=9)
            left += widths
        axes.set_yticks(range(len(names)), [set_name(name, found.reference) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(False)
        axes.set_xlabel("whom the ensemble follows where the two disagree, in % of the disagreements")
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _part(own: FollowedRecord, part: str) -> float:
    found: Measured | None = getattr(own, part)
    return found.value if found is not None else 0.0
