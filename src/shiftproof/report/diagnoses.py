"""All tables and figures of a run's diagnoses, and the captions of the figures."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure

from shiftproof.records.diagnosis import HALVES, DiagnosisRecord
from shiftproof.report.agreement import diversity_table, pair_tables
from shiftproof.report.comparisons import ZERO_SHOT
from shiftproof.report.connectivity import connectivity_figure, connectivity_table
from shiftproof.report.layers import layers_figure, layers_table
from shiftproof.report.movement import movement_table
from shiftproof.report.overrides import override_figure
from shiftproof.report.performance import calibration_table, difference_table, group_measures_table, robustness_table
from shiftproof.report.plane import plane_figure
from shiftproof.report.tables import Table
from shiftproof.report.windows import hard_edge_tables

Form = Callable[[float], str]
# The alternative text and the caption of each kind of figure.
_EXPLAINED = {
    "overrides": (
        "Bars for each set that show which model the ensemble follows. The table of overrides holds the numbers.",
        "Which model the ensemble follows on the images for which {start} and fine-tuned disagree, whichever is right.",
    ),
    "connectivity": (
        "Accuracy above the straight line between the path's ends, set by set.",
        "Accuracy along the alpha path minus the straight line between its ends. If it is above 0 everywhere, there is "
        "no barrier. The bands are paired intervals.",
    ),
    "layers": (
        "A heat map of CKA between the layers of two models.",
        "CKA between every layer of {start} and every layer of fine-tuned. A value of 1 means that the layers "
        "represent the images alike, up to rotation and scale.",
    ),
    "plane": (
        "Error in the plane through {start} and two fine-tuned models.",
        "Error in the plane through the weights of {start} and of two models that were fine-tuned from it on two "
        "halves of the reference. The axes are distances in weight space.",
    ),
}


def explanation(stem: str, start: str = ZERO_SHOT) -> tuple[str, str] | None:
    """Returns the alternative text and the caption of a figure of the diagnoses, or None if it is another figure.

    ``stem`` is the name of the figure's file without its suffix.

    >>> explanation("path") is None
    True
    """
    kind, _, name = stem.partition("-")
    if kind not in _EXPLAINED:
        return None
    alt, caption = (text.format(start=start) for text in _EXPLAINED[kind])
    return (alt, f"On {name}: {caption}") if name else (alt, caption)


def diagnosis_tables(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> tuple[Table, ...]:
    """Returns all tables of a diagnosis, in the order in which the report shows them.

    ``start`` is the name of the model at alpha 0 (``start_name``).
    """
    about = diagnosis.clusters, diagnosis.reference
    tables: list[Table | None] = [difference_table(diagnosis, start)]
    apart = [pair for pair in diagnosis.pairs if "ensemble" not in (pair.first, pair.second)]  # the file holds the rest
    tables += [*pair_tables(apart, diagnosis.overrides, *about, start), diversity_table(diagnosis, start)]
    if diagnosis.connectivity:
        tables.append(connectivity_table(diagnosis.connectivity, diagnosis.losses, *about))
    for path in diagnosis.other_paths:
        tables.append(
            connectivity_table(
                path.connectivity, path.losses, *about, f"Is this path connected? {path.name}", with_ends=True
            )
        )
    tables += [table(diagnosis, start) for table in (calibration_table, robustness_table, group_measures_table)]
    tables += [layers_table(record) for record in diagnosis.layers]
    tables += () if diagnosis.strong_edge is None else hard_edge_tables(diagnosis.strong_edge)
    tables.append(movement_table(diagnosis.movement))
    return tuple(table for table in tables if table is not None)


def diagnosis_figures(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> dict[str, Figure | None]:
    """Returns all figures by the names of their files; a figure is None if its quantity was not measured."""
    return {
        "overrides.png": override_figure(diagnosis, start),
        "connectivity.png": connectivity_figure(diagnosis),
        **{f"layers-{record.set}.png": layers_figure(record, start, "fine-tuned") for record in diagnosis.layers},
        **{f"plane-{record.set}.png": plane_figure(record, *HALVES, start) for record in diagnosis.planes},
    }
