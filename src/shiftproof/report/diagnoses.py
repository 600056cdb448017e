"""Every table and figure of a run's diagnoses, and the captions of the figures."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from shiftproof.records.diagnosis import HALVES, DiagnosisRecord
from shiftproof.report.agreement import diversity_table, pair_tables
from shiftproof.report.connectivity import connectivity_figure, connectivity_table
from shiftproof.report.layers import layers_figure, layers_table
from shiftproof.report.movement import movement_table
from shiftproof.report.overrides import override_figure
from shiftproof.report.performance import calibration_table, difference_table, group_measures_table, robustness_table
from shiftproof.report.plane import plane_figure
from shiftproof.report.tables import Table
from shiftproof.report.windows import hard_edge_tables

Form = Callable[[float], str]
# Of each kind of figure: what it shows in place of itself, and its caption.
_EXPLAINED = {
    "overrides": (
        "Bars, one a set: whom the ensemble follows. The table of overrides holds the numbers.",
        "Whom the ensemble follows on the images where zero-shot and fine-tuned disagree, whoever is right.",
    ),
    "connectivity": (
        "Accuracy above the straight line between the path's ends, set by set.",
        "Accuracy along the alpha path minus the straight line between its ends: above 0 throughout means that there "
        "is no "
        "barrier. The bands are paired intervals.",
    ),
    "layers": (
        "A heat map of CKA between the layers of two models.",
        "CKA between every layer of zero-shot and every layer of fine-tuned: 1 is alike up to rotation and scale.",
    ),
    "plane": (
        "Error in the plane through zero-shot and two fine-tuned models.",
        "Error in the plane of weights through zero-shot and its fine-tunings on two halves of the reference. The "
        "axes are "
        "distances of weights.",
    ),
}


def explanation(stem: str) -> tuple[str, str] | None:
    """What a figure of the diagnoses shows, and its caption, by its file's name without the ending; None of others.

    >>> explanation("path") is None
    True
    """
    kind, _, name = stem.partition("-")
    if kind not in _EXPLAINED:
        return None
    alt, caption = _EXPLAINED[kind]
    return (alt, f"On {name}: {caption}") if name else (alt, caption)


def diagnosis_tables(found: DiagnosisRecord) -> tuple[Table, ...]:
    """Every table, in the order in which they tell the story."""
    about = found.clusters, found.reference
    tables: list[Table | None] = [difference_table(found)]
    apart = [pair for pair in found.pairs if "ensemble" not in (pair.first, pair.second)]  # the rest is in the file
    tables += [*pair_tables(apart, found.overrides, *about), diversity_table(found)]
    if found.connectivity:
        tables.append(connectivity_table(found.connectivity, found.losses, *about))
    for path in found.other_paths:
        tables.append(connectivity_table(path.connectivity, path.losses, *about, f"Connected? {path.name}"))
    tables += [calibration_table(found), robustness_table(found), group_measures_table(found)]
    tables += [layers_table(record) for record in found.layers]
    tables += () if found.strong_edge is None else hard_edge_tables(found.strong_edge)
    tables.append(movement_table(found.movement))
    return tuple(table for table in tables if table is not None)


def diagnosis_figures(found: DiagnosisRecord) -> dict[str, Figure | None]:
    """Every figure by its file's name; None where what it shows was not measured."""
    return {
        "overrides.png": override_figure(found),
        "connectivity.png": connectivity_figure(found),
        **{f"layers-{record.set}.png": layers_figure(record, "zero-shot", "fine-tuned") for record in found.layers},
        **{f"plane-{record.set}.png": plane_figure(record, *HALVES) for record in found.planes},
    }
