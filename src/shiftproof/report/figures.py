"""Figures of the alpha path against the reference, for the mean of the shifts and for each shift."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftproof.records.paths import same_alpha
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.comparisons import (
    Estimate,
    headline_name,
    headline_shifts,
    model_estimate,
    names_of,
    point_estimate,
)
from shiftproof.storage import write_atomically

# Okabe and Ito's colours. The markers differ too, so that the figures can be read without colour.
CURVE = "#5f6b76"
MARKS: dict[str, dict[str, Any]] = {
    "zero_shot": {"color": "#7b3294", "marker": "*", "markersize": 16},
    "fine_tuned": {"color": "#0072b2", "marker": "s", "markersize": 9},
    "ensemble": {"color": "#d55e00", "marker": "D", "markersize": 9},
}
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a939c",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "savefig.dpi": 144,
    "svg.hashsalt": "shiftproof",
}


def path_figure(run: RunRecord) -> Figure:
    """Draws the alpha path as in WiSE-FT: the mean of the natural shifts against the reference (test split).

    If no shift is natural, all shifts are averaged. If there is no shift, the accuracy on the reference is drawn over
    alpha. Horizontal bars are the reference's interval. Vertical bars are the mean of the sets' intervals, which is
    wide enough however the sets depend on each other (``mean_estimate``). The dashed line is what mixing the accuracies
    of the two ends, instead of their weights, would give.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), Fig. 1.
    """
    shifts = headline_shifts(run)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 5.6), layout="constrained")
        axes = figure.subplots()
        if shifts:
            _draw_path(axes, run, shifts, bars=True, labels=True)
            axes.set_xlabel(f"accuracy on the reference ({run.reference}, test), in %")
            axes.set_ylabel(f"{headline_name(run)}, in %")
        else:
            _draw_over_alpha(axes, run)
        _legend(figure, axes)
    return figure


def shift_figure(run: RunRecord) -> Figure | None:
    """Draws one panel per shift in the style of ``path_figure``, or returns None if the run has no shift."""
    if not run.shifts:
        return None
    columns = min(len(run.shifts), 3)
    rows = math.ceil(len(run.shifts) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(1.2 + 3.1 * columns, 6.5), 1.1 + 2.6 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
        for axes, name in zip(panels.flat, run.shifts, strict=False):
            _draw_path(axes, run, (name,), scale=0.7)
            axes.set_title(f"{name} ({run.kinds[name]})", parse_math=False)
        for axes in panels.flat[len(run.shifts) :]:
            axes.set_axis_off()
        # The lowest panel of every column has the tick labels; it need not be in the last row.
        for column in range(columns):
            below = [axes for axes in panels[:, column] if axes.axison][-1]
            below.tick_params(labelbottom=True)
        figure.supxlabel(f"accuracy on the reference ({run.reference}, test), in %", fontsize=10)
        figure.supylabel("accuracy on the shift, in %", fontsize=10)
        _legend(figure, panels.flat[0])
    return figure


def figure_bytes(figure: Figure, kind: str = "png") -> bytes:
    """Returns the figure as the bytes of a file, without a date or a software name, so that they are reproducible."""
    buffer = io.BytesIO()
    metadata = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure atomically, in the format given by the suffix of the path, and returns the path."""
    path = Path(path)
    content = figure_bytes(figure, path.suffix.lstrip(".").lower() or "png")
    return write_atomically(path, lambda temporary: temporary.write_bytes(content))


def _draw_path(
    axes: Axes,
    run: RunRecord,
    shifts: Sequence[str],
    *,
    bars: bool = False,
    labels: bool = False,
    scale: float = 1,
) -> None:
    """The curve over alpha, the straight line between its ends, and the three models."""
    reference = (run.reference,)
    points = [(point_estimate(p, reference), point_estimate(p, shifts)) for p in run.path.points]
    marks = {m: (model_estimate(run, m, reference), model_estimate(run, m, shifts)) for m in MODELS}
    ends = [marks["zero_shot"], marks["fine_tuned"]]
    axes.plot(
        *_centres(ends),
        "--",
        color="#9aa3ab",
        linewidth=1.2,
        label="straight line between the ends",
        zorder=1,
    )
    if bars:
        for x, y in points:
            _cross(axes, x, y, color="#c9cfd5", linewidth=0.8, zorder=1)
    axes.plot(
        *_centres(points),
        "o-",
        color=CURVE,
        markersize=4.5 * scale,
        linewidth=1.5,
        label="alpha path",
        zorder=2,
    )
    for model, (x, y) in marks.items():
        style = {**MARKS[model], "markersize": MARKS[model]["markersize"] * scale}
        _cross(axes, x, y, color=style["color"], linewidth=1.3, zorder=3)
        label = f"ensemble (alpha {run.alpha:g})" if model == "ensemble" else names_of(run)[model]
        axes.plot(
            100 * x.value,
            100 * y.value,
            linestyle="",
            markeredgecolor="white",
            label=label,
            zorder=4,
            **style,
        )
    axes.margins(0.08)
    axes.locator_params(nbins=7, steps=[1, 2, 5, 10])
    if labels:
        _label_alphas(axes, run, points)


def _draw_over_alpha(axes: Axes, run: RunRecord) -> None:
    """Draws the accuracy on the reference over alpha, for a run without shifts."""
    reference = (run.reference,)
    estimates = [point_estimate(point, reference) for point in run.path.points]
    heights = [100 * estimate.value for estimate in estimates]
    axes.fill_between(
        run.path.alphas, [100 * e.low for e in estimates], [100 * e.high for e in estimates], color="#e6e9ec"
    )
    axes.plot(run.path.alphas, heights, "o-", color=CURVE, markersize=4.5, label="alpha path")
    for model, alpha in zip(MODELS, (0.0, 1.0, run.alpha), strict=True):
        height = 100 * model_estimate(run, model, reference).value
        axes.plot(alpha, height, linestyle="", markeredgecolor="white", label=names_of(run)[model], **MARKS[model])
    axes.set_xlabel("alpha")
    axes.set_ylabel(f"accuracy on the reference ({run.reference}, test), in %")


def _cross(axes: Axes, x: Estimate, y: Estimate, **style: Any) -> None:
    axes.plot([100 * x.low, 100 * x.high], [100 * y.value] * 2, **style)
    axes.plot([100 * x.value] * 2, [100 * y.low, 100 * y.high], **style)


def _centres(points: Sequence[tuple[Estimate, Estimate]]) -> tuple[list[float], list[float]]:
    return [100 * x.value for x, _ in points], [100 * y.value for _, y in points]


def _label_alphas(axes: Axes, run: RunRecord, points: Sequence[tuple[Estimate, Estimate]]) -> None:
    """Writes alphas beside the curve, away from the dashed line, except those that would be too close to others."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    xs, ys = _centres(points)
    places = [((x - left) / (right - left), (y - low) / (high - low)) for x, y in zip(xs, ys, strict=True)]
    inner = [i for i, alpha in enumerate(run.path.alphas) if alpha not in (0.0, 1.0)]
    # The chosen alpha comes first, then even tenths, so that these are labelled before the others.
    inner.sort(key=lambda i: (not same_alpha(run.path.alphas[i], run.alpha), round(run.path.alphas[i] * 10, 6) % 2, i))
    labelled = [places[0], places[-1]]
    for i in inner:
        if min(math.dist(places[i], place) for place in labelled) < 0.085:
            continue
        labelled.append(places[i])
        chosen = same_alpha(run.path.alphas[i], run.alpha)
        right, up = _outward(places, i)
        # The label goes into a corner between the two bars, which are parallel to the axes.
        gap = 7 if chosen else 3.5
        axes.annotate(
            f"alpha {run.path.alphas[i]:g}" if chosen else f"{run.path.alphas[i]:g}",
            (xs[i], ys[i]),
            xytext=(gap * right, gap * up),
            textcoords="offset points",
            ha="left" if right > 0 else "right",
            va="bottom" if up > 0 else "top",
            fontsize=9,
            fontweight="bold" if chosen else "normal",
            color="#b04a00" if chosen else "#3d464f",
            zorder=5,
        )


def _outward(places: Sequence[tuple[float, float]], i: int) -> tuple[int, int]:
    """Returns the direction (right or left, up or down) of a label at i: off the curve, away from the dashed line."""
    (x0, y0), (x1, y1), (x, y) = places[0], places[-1], places[i]
    above = (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    (xa, ya), (xb, yb) = places[i - 1], places[i + 1]
    across = (ya - yb, xb - xa) if above else (yb - ya, xa - xb)
    return (1 if across[0] >= 0 else -1), (1 if across[1] >= 0 else -1)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
