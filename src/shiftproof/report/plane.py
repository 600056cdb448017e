"""A figure of the plane through the weights of three models: contours of the error on one set."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shiftproof.records.comparisons import PlaneRecord
from shiftproof.report.comparisons import ZERO_SHOT
from shiftproof.report.figures import MARKS, STYLE

_COLOURS = "cividis"  # its lightness increases evenly, for all kinds of colour vision
_LEVELS = 10
_MARKS: dict[str, dict[str, Any]] = {
    "zero_shot": MARKS["zero_shot"],
    "first": MARKS["fine_tuned"],
    "second": {"color": "#009e73", "marker": "^", "markersize": 11},
}


def plane_figure(
    record: PlaneRecord, first_name: str = "first", second_name: str = "second", start: str = ZERO_SHOT
) -> Figure:
    """Draws filled contours of the error (in per cent), interpolated between the small dots at which it was measured.

    The axes are Euclidean distances in weight space and have the same scale. The legend gives the errors of the three
    models.

    Garipov et al. 2018, "Loss surfaces, mode connectivity, and fast ensembling of DNNs" (arXiv 1802.10026), Fig. 1.
    """
    names = {"zero_shot": start, "first": first_name, "second": second_name}
    (columns, rows), error = record.axes, 100 * np.array(record.error)
    levels = MaxNLocator(_LEVELS).tick_values(error.min(), max(error.max(), error.min() + 1))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(6.4, 1.2 + 4.7 * float(np.clip(np.ptp(rows) / np.ptp(columns), 0.3, 1.5))))
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        contours = axes.contourf(columns, rows, error, levels, cmap=_COLOURS)
        axes.contour(columns, rows, error, levels, colors="white", linewidths=0.5, alpha=0.6)
        axes.plot(*np.meshgrid(columns, rows), ".", color="white", markersize=2.5, alpha=0.8)
        for name, point in record.points.items():
            label = f"{names[name]} ({100 * point.error:.1f} %)"
            axes.plot(point.x, point.y, linestyle="", markeredgecolor="white", label=label, zorder=3, **_MARKS[name])
        axes.set_aspect("equal")
        axes.set_xlabel(f"distance in weight space, from {start} towards {first_name}", parse_math=False)
        axes.set_ylabel("distance in weight space, perpendicular to it")
        axes.set_title(f"{record.set}, {record.n:,} images", parse_math=False)
        figure.colorbar(contours, ax=axes, label="error, in %")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure
