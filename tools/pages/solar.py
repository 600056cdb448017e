"""The demo on solar cells: the accuracies on the two kinds of cells, and how long it took."""

from __future__ import annotations

from pages.markdown import accuracy_cell, markdown, require
from pages.sources import Sources
from shiftproof.records.runs import MODELS

_NAMES = {"zero_shot": "start (linear probe)", "fine_tuned": "fine-tuned", "ensemble": "ensemble, alpha 0.5"}
_MACRO = "macro accuracy"
_MINUTES = 6


def solar_tables(sources: Sources) -> str:
    """Accuracy and macro accuracy of the three models on the reference and on the natural shift."""
    run = sources.solar_cells()
    sets = (run.reference, *run.shifts_of("natural"))
    header = ("model", *(f"{name}: {what}" for name in sets for what in ("accuracy", _MACRO)))
    rows = []
    for model in MODELS:
        cells = []
        for name in sets:
            record = run.models[model][name]
            macro = accuracy_cell(record.metrics[_MACRO], record.metric_intervals[_MACRO])
            cells += [accuracy_cell(record.accuracy, record.interval), macro]
        rows.append((_NAMES[model], *cells))
    seconds = sum(run.seconds.values())
    require(seconds < 60 * _MINUTES, "the demo takes less than six minutes")
    return (
        f"Seed {run.seed}, with 95 % intervals. The run took {seconds:.0f} seconds on two idle CPU cores, from loading "
        f"the data to the last prediction.\n\n{markdown(header, rows)}"
    )
