"""The plane through three models' weights, drawn: contours of the error on one set."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shiftproof.records.comparisons import PlaneRecord
from shiftproof.report.figures import MARKS, STYLE

_COLOURS = "cividis"  # rises evenly in lightness, for every kind of colour vision
_LEVELS = 10
_MARKS: dict[str, dict[str, Any]] = {
    "zero_shot": MARKS["zero_shot"],
    "first": MARKS["fine_tuned"],
    "second": {"color": "#009e73", "marker": "^", "markersize": 11},
}


def plane_figure(record: PlaneRecord, first_name: str = "first", second_name: str = "second") -> Figure:
    """Filled contours of the error in per cent; small dots are where it was measured, the rest lies between them.

    The axes are Euclidean distances of weights, so that both have one scale; the three models' own errors stand in the
    legend.
    """
    names = {"zero_shot": "zero-shot", "first": first_name, "second": second_name}
    (columns, rows), error = record.axes, 100 * np.array(record.error)
    levels = MaxNLocator(_LEVELS).tick_values(error.min(), max(error.max(), error.min() + 1))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.4, 1.2 + 4.7 * float(np.clip(np.ptp(rows) / np.ptp(columns), 0.3, 1.5))))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        drawn = axes.contourf(columns, rows, error, levels, cmap=_COLOURS)
        axes.contour(columns, rows, error, levels, colors="white", linewidths=0.5, alpha=0.6)
        axes.plot(*np.meshgrid(columns, rows), ".", color="white", markersize=2.5, alpha=0.8)
        for name, point in record.points.items():
            label = f"{names[name]} ({100 * point.error:.1f} %)"
            axes.plot(point.x, point.y, linestyle="", markeredgecolor="white", label=label, zorder=3, **_MARKS[name])
        axes.set_aspect("equal")
        axes.set_xlabel(f"distance of weights, from zero-shot toward {first_name}", parse_math=False)
        axes.set_ylabel("at a right angle to it")
        axes.set_title(f"{record.set}, {record.n:,} images", parse_math=False)
        figure.colorbar(drawn, ax=axes, label="error, in %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure
