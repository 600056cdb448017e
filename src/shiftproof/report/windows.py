"""The strong-edge study in tables, in sentences and in figures like the paper's."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.backgrounds import BackgroundStudy
from shiftproof.records.windows import MapExample, StrongEdgeStudy, WindowExample
from shiftproof.report.comparisons import model_names
from shiftproof.report.figures import STYLE
from shiftproof.report.tables import ABSENT, Table, accuracy_cell, per_cent, signed_points

_WINDOWED = {
    "window_share": "map in window",
    "share_drawn": "drawn there",
    "object_share": "map on object",
    "width": "width of map",
    "score_drop": "score drop",
    "accuracy_drop": "accuracy drop",
}
_SIGNED = ("share_drawn", "score_drop", "accuracy_drop")
_PLACED = {"away": "away from the object", "over": "over the object", "anywhere": "anywhere"}
_CLEAN = {"correct": "accuracy", "score": "score of the true class", "object_share": "map on object", "width": "width"}


def clean_table(study: StrongEdgeStudy) -> Table:
    """Returns the measures of every model on the images without a window (in per cent)."""
    shown = [name for name in _CLEAN if any(name in windows["clean"].means for windows in study.models.values())]
    rows = [
        (_name(model), study.kinds[model], *(_cell(windows["clean"].means.get(name)) for name in shown))
        for model, windows in study.models.items()
    ]
    header = ("model", "maps", *(_CLEAN[name] for name in shown))
    return Table(f"Without a window, on {study.set}, in per cent", header, tuple(rows), _note(study))


def window_table(study: StrongEdgeStudy, place: str, edge: float) -> Table:
    """Returns the measures of every model under the windows of one place and edge, over all contents and sizes."""
    summaries = [s for s in study.summaries if (s.place, s.edge) == (place, edge)]
    shown = ["area", *(name for name in _WINDOWED if name in summaries[0].means)]
    rows = [
        (_name(s.model), *((_points if name in _SIGNED else _cell)(s.means[name]) for name in shown)) for s in summaries
    ]
    note = (
        "Map values are shares of the map's sum, and drops are in points. “Drawn there” is the share of the map in the "
        "window minus the share of the clean image's map in the same place, in points. " + _note(study)
    )
    title = f"{edge_name(edge).capitalize()} windows {_PLACED[place]}, on {study.set}, in per cent"
    return Table(title, ("model", "area", *(_WINDOWED[name] for name in shown[1:])), tuple(rows), note)


def window_kinds(study: StrongEdgeStudy) -> tuple[tuple[str, float], ...]:
    """Returns the places and edges of the study's windows, in order."""
    return tuple(dict.fromkeys((s.place, s.edge) for s in study.summaries))


def contrast_table(study: StrongEdgeStudy, place: str, edge: float) -> Table | None:
    """Returns the paired differences under the windows of one place and edge, or None if the study has no pairs."""
    contrasts = [c for c in study.contrasts if (c.place, c.edge) == (place, edge)]
    if not contrasts:
        return None
    shown = [name for name in _WINDOWED if name in contrasts[0].means]
    rows = [
        (f"{_name(c.model)} − {_name(c.second or '')}", *(_points(c.means[name]) for name in shown)) for c in contrasts
    ]
    title = f"Paired differences under {edge_name(edge)} windows {_PLACED[place]}, in points"
    return Table(title, ("models", *(_WINDOWED[name] for name in shown)), tuple(rows), _note(study))


def hard_edge_tables(study: StrongEdgeStudy) -> tuple[Table, ...]:
    """Returns the tables of models and differences under hard-edged windows that are not over the object."""
    kinds = [(place, edge) for place, edge in window_kinds(study) if place != "over" and edge == 0]
    tables = [window_table(study, *kind) for kind in kinds] + [contrast_table(study, *kind) for kind in kinds]
    return tuple(table for table in tables if table is not None)


def strong_edge_verdict(study: StrongEdgeStudy) -> str:
    """Says whether the first model of every pair attends to hard windows more than the second, and by how much.

    The sentences are about windows with a hard edge away from the object (or anywhere). They say "more" or "less" only
    if the interval excludes 0.
    """
    sentences = []
    for contrast in study.contrasts:
        if contrast.edge == 0 and contrast.place != "over":
            first = study.summary(contrast.model, contrast.place, 0).means
            second = study.summary(contrast.second or "", contrast.place, 0).means
            sentences.append(
                f"{contrast.model} puts {_percent(first['window_share'].value)} % of its map into a hard window "
                f"{_PLACED[contrast.place]}, and {contrast.second} {_percent(second['window_share'].value)} %: it "
                f"attends to the window {_judged(contrast.means['window_share'])}. Relative to the clean image, it "
                f"is drawn there {_judged(contrast.means['share_drawn'])}."
            )
    return "\n".join(sentences)


def background_table(study: BackgroundStudy) -> Table:
    """Returns the accuracy of every model in every variant (in per cent), and the background gap (in points).

    Xiao et al. 2021, "Noise or signal: the role of image backgrounds in object recognition" (arXiv 2006.09994).
    """
    variants = list(next(iter(study.models.values())).variants)
    rows = []
    for model, record in study.models.items():
        cells = []
        for variant in variants:
            entry = record.variants[variant]
            cells.append(accuracy_cell(entry.accuracy, entry.interval))
        low, high = record.gap_interval
        cells.append(f"{signed_points(record.gap)} ({signed_points(low)} to {signed_points(high)})")
        rows.append((model, *cells))
    note = (
        f"On only-background, chance is {per_cent(study.chance)} %. The gap is mixed-same minus mixed-random, in "
        "points and paired image by image: it shows how much a background of the right class helps. "
        f"{100 * study.level:g} % intervals are given in brackets."
    )
    return Table(
        f"Objects and backgrounds apart, on {study.set}, in per cent", ("model", *variants, "gap"), tuple(rows), note
    )


def window_figure(examples: Sequence[WindowExample], models: Sequence[str]) -> Figure:
    """Draws one row per example: the image, the image with its window, and each model's map and prediction.

    The maps are scaled to their maximum. A correct prediction is written in green and a wrong one in red.
    """
    columns = 2 + len(models)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.62 * columns, 2.02 * len(examples) + 0.2), layout="constrained")
        grid = figure.subplots(len(examples), columns, squeeze=False)
        for row, example in zip(grid, examples, strict=True):
            _show(row[0], example.image, _short(example.label), "#1f262d")
            _show(row[1], example.windowed, example.window, "#5f6b76")
            for axes, model in zip(row[2:], models, strict=True):
                named, probability, right = example.answers[model]
                colour = "#1a7f37" if right else "#b42318"
                _show(axes, example.windowed, f"{_short(named)}\n{100 * probability:.0f} %", colour)
                axes.imshow(example.maps[model], cmap="jet", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear")
        for axes, name in zip(grid[0], ("image", "with a window", *models), strict=True):
            axes.set_title(textwrap.fill(name.replace("-", " "), 18), fontsize=9, parse_math=False)
    return figure


def map_figure(examples: Sequence[MapExample]) -> Figure:
    """Draws one row per image: the image, and each model's map over it with its prediction and probability.

    A correct prediction is written in green, a wrong one in red, and one without a true class in grey.
    """
    models = tuple(examples[0].maps)
    colours = {True: "#1a7f37", False: "#b42318", None: "#5f6b76"}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.62 * (1 + len(models)), 2.02 * len(examples) + 0.2), layout="constrained")
        grid = figure.subplots(len(examples), 1 + len(models), squeeze=False)
        for row, example in zip(grid, examples, strict=True):
            _show(row[0], example.image, _short(example.label), "#1f262d")
            for axes, model in zip(row[1:], models, strict=True):
                named, probability, right = example.answers[model]
                _show(axes, example.image, f"{_short(named)}\n{100 * probability:.0f} %", colours[right])
                axes.imshow(example.maps[model], cmap="jet", alpha=0.45, vmin=0, vmax=1, interpolation="bilinear")
        for axes, name in zip(grid[0], ("image", *models), strict=True):
            axes.set_title(textwrap.fill(name.replace("-", " "), 18), fontsize=9, parse_math=False)
    return figure


def edge_name(edge: float) -> str:
    """Returns the name of an edge for tables.

    >>> edge_name(0), edge_name(0.5)
    ('hard', 'soft 0.5')
    """
    return "hard" if edge == 0 else f"soft {edge:g}"


def _name(model: str) -> str:
    return model_names().get(model, model)


def _show(axes: Axes, image: Any, caption: str, colour: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xlabel(caption, fontsize=7.5, color=colour, parse_math=False)
    axes.spines[:].set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)


def _short(text: str, limit: int = 22) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _judged(difference: MeanRecord) -> str:
    if difference.value is None or difference.interval is None:
        return "by an amount that could not be measured"
    low, high = difference.interval
    points = f"{signed_points(difference.value)} points ({signed_points(low)} to {signed_points(high)})"
    if low <= 0 <= high:
        return f"neither clearly more nor clearly less, {points}"
    return f"{'more' if low > 0 else 'less'}, {points}"


def _note(study: StrongEdgeStudy) -> str:
    return f"The {100 * study.level:g} % bootstrap intervals in brackets resample whole classes."


def _cell(mean: MeanRecord | None) -> str:
    if mean is None or mean.value is None or mean.interval is None:
        return ABSENT
    return f"{_percent(mean.value)} ({_percent(mean.interval[0])}–{_percent(mean.interval[1])})"


def _points(mean: MeanRecord) -> str:
    if mean.value is None or mean.interval is None:
        return ABSENT
    low, high = mean.interval
    return f"{signed_points(mean.value)} ({signed_points(low)} to {signed_points(high)})"


def _percent(value: float | None) -> str:
    return ABSENT if value is None else per_cent(value)
