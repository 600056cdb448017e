"""Tables and a figure of which model the ensemble follows if two models disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.accuracy import CLUSTERED, INDEPENDENT
from shiftproof.records.comparisons import FollowedRecord, Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.report.accuracy import method_names
from shiftproof.report.comparisons import ZERO_SHOT, model_names
from shiftproof.report.figures import MARKS, STYLE
from shiftproof.report.tables import Table, resampling_note, set_name, signed_points, with_interval

ENDS = ("zero_shot", "fine_tuned")
_NAMES = tuple(model_names()[end] for end in ENDS)


def _rate_note(clusters: Mapping[str, str]) -> str:
    """Describes the intervals of the shares of disagreements, and those of the other columns if they differ."""
    kinds = set(clusters.values())
    methods = method_names(INDEPENDENT if kind == "sample" else CLUSTERED for kind in kinds)
    exact = f"Shares have {100 * LEVEL:g} % intervals ({methods}) over the disagreements."
    return exact if kinds == {"sample"} else f"{exact} For the lead: {resampling_note(clusters)}"


def override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = _NAMES,
) -> Table:
    """Returns which of two models the ensemble follows if they disagree (in per cent), with one row per set.

    ``names`` are the names of the two models. ``clusters`` gives, for every set, what its intervals resample.
    """
    first, second = names
    rows = tuple(
        (
            set_name(name, reference),
            f"{record.disagreements:,} of {record.n:,}",
            *map(with_interval, (record.zero_shot, record.fine_tuned, record.neither)),
            with_interval(record.lead, signed_points),
            with_interval(record.beyond_both),
        )
        for name, record in overrides.items()
    )
    note = (
        "In per cent of the images on which the two models disagree, whichever of them is right. The lead is "
        f"{first}'s share minus {second}'s, in points. Of the images that the ensemble gains over "
        f"{second}, the last column gives the share that {first} gets wrong too. " + _rate_note(clusters)
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
    return Table("Which model the ensemble follows", header, rows, note)


def right_override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = _NAMES,
) -> Table | None:
    """Returns the overrides by which of the two models was right, or None if there were no labels."""
    shown = dict(zip(ENDS, names, strict=True))
    rows = tuple(
        (
            set_name(name, reference),
            shown.get(right, right),
            f"{part.disagreements:,}",
            *map(with_interval, (part.zero_shot, part.fine_tuned)),
        )
        for name, record in overrides.items()
        for right, part in record.by_right.items()
    )
    note = "In per cent of the disagreements in the row. " + _rate_note(clusters)
    header = ("set", "correct model", "disagreements", *(f"{name} prevails" for name in names))
    return Table("Which model the ensemble follows, by which model is correct", header, rows, note) if rows else None


def override_figure(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Figure:
    """Draws a stacked bar for each set: the shares of the disagreements in which the ensemble follows each model."""
    names = [name for name in diagnosis.sets if diagnosis.overrides[name].disagreements]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.1 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for part, label in (("zero_shot", start), ("neither", "neither"), ("fine_tuned", "fine-tuned")):
            widths = np.array([100 * _part(diagnosis.overrides[name], part) for name in names])
            colour = "#c9cfd5" if part == "neither" else MARKS[part]["color"]
            axes.barh(range(len(names)), widths, left=left, color=colour, label=label, height=0.7)
            for row, (begin, width) in enumerate(zip(left, widths, strict=True)):
                if width > 7:
                    tint = "#1f262d" if part == "neither" else "white"
                    axes.text(begin + width / 2, row, f"{width:.0f}", ha="center", va="center", color=tint, fontsize=9)
            left += widths
        axes.set_yticks(range(len(names)), [set_name(name, diagnosis.reference) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(False)
        axes.set_xlabel("model that the ensemble follows, in % of the disagreements")
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


def _part(record: FollowedRecord, part: str) -> float:
    share: Measured | None = getattr(record, part)
    return share.value if share is not None else 0.0
