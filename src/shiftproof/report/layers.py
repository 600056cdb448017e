"""Two classifiers compared layer by layer: a heat map of their CKA, and a table of the layers that both have."""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftproof.records.comparisons import LayersRecord
from shiftproof.report.figures import STYLE
from shiftproof.report.tables import ABSENT, Table

_COLOURS = "cividis"  # its lightness increases evenly, for all kinds of colour vision
_DARK = 0.45  # below this value, cividis is dark enough for white text


def layers_figure(record: LayersRecord, first_name: str, second_name: str) -> Figure:
    """Draws the CKA of every two layers, with the layers of the first classifier from bottom to top.

    A pair without a value is left white. Negative debiased values have the colour of 0; the text in a cell is its
    value.
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        rows, columns = len(record.first), len(record.second)
        figure = Figure(figsize=(3.4 + 0.42 * columns, 2.6 + 0.34 * rows), layout="constrained")
        axes = figure.subplots()
        values = np.array(record.values, dtype=np.float64)
        image = axes.imshow(values, cmap=_COLOURS, vmin=0, vmax=1, origin="lower", aspect="auto")
        _write_values(axes, record)
        axes.set_xticks(range(columns), short_names(record.second), rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(rows), short_names(record.first), fontsize=8)
        for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            label.set_parse_math(False)
        axes.set_xlabel(f"layers of {second_name}", parse_math=False)
        axes.set_ylabel(f"layers of {first_name}", parse_math=False)
        axes.set_title(f"{record.set}, {record.n:,} images", parse_math=False)
        figure.colorbar(image, ax=axes, label=_measure(record))
    return figure


def layers_table(record: LayersRecord) -> Table:
    """Returns the CKA of the layers whose names both classifiers share, in the order of the first classifier."""
    rows = []
    for name, values in zip(record.first, record.values, strict=True):
        if name in record.second:
            value = values[record.second.index(name)]
            rows.append((name, ABSENT if value is None else f"{value:.3f}"))
    title = f"Layers of the same name, on {record.n:,} images of {record.set}"
    note = (
        "A value of 1 means that the two layers represent the images alike, up to rotation, scale and shift. "
        f"Feature maps and tokens are averaged over their positions first. {ABSENT} marks a layer that does not vary, "
        "or varies too little for so few images."
    )
    return Table(title, ("layer", _measure(record)), tuple(rows), note)


def short_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the layer names without the prefix that all dotted names share.

    >>> short_names(("encoder.trunk.stem", "encoder.trunk.blocks.0", "features"))
    ('stem', 'blocks.0', 'features')
    """
    paths = [name.split(".")[:-1] for name in names if "." in name]
    shared = 0
    while paths and all(len(path) > shared and path[shared] == paths[0][shared] for path in paths):
        shared += 1
    return tuple(".".join(name.split(".")[shared:]) if "." in name else name for name in names)


def _measure(record: LayersRecord) -> str:
    return "debiased linear CKA" if record.debiased else "linear CKA"


def _write_values(axes: Axes, record: LayersRecord) -> None:
    size = 7 if max(len(record.first), len(record.second)) <= 12 else 6
    for i, values in enumerate(record.values):
        for j, value in enumerate(values):
            text, colour = (ABSENT, "black") if value is None else (f"{value:.2f}", _ink(value))
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)


def _ink(value: float) -> str:
    return "white" if value < _DARK else "black"
