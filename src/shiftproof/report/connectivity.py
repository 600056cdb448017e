"""The accuracy along a path of weights against the straight line between its ends, as a table and as a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from shiftproof.records.comparisons import ConnectivityRecord, LossRecord, Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.report.figures import CURVE, STYLE
from shiftproof.report.tables import Table, plain, resampling_note, set_name, signed_points, with_interval


def connectivity_table(
    records: Sequence[ConnectivityRecord],
    losses: Sequence[LossRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    title: str = "Is the path connected?",
) -> Table:
    """Barriers and gains along a path, a row for every set."""
    of_loss = {record.set: record for record in losses}
    rows = tuple(
        (
            set_name(own.set, reference),
            _at(with_interval(own.lowest[1], signed_points), own.lowest[0]),
            with_interval(Measured(own.barrier_over_mean, own.mean_interval)),
            _at(with_interval(Measured(own.gain, own.gain_interval), signed_points), own.best_alpha),
            _verdict(own),
            *([_loss_height(of_loss[own.set])] if losses else []),
        )
        for own in records
    )
    header = ("set", "lowest above the line", "barrier over the mean", "best above both ends", "observation 1")
    note = (
        "Points of accuracy. The first column is the lowest height of the path over the straight line between its ends "
        "(below 0: a barrier, at that alpha), the second how far its lowest point lies under the ends' mean, the "
        "third the "
        "best alpha's gain over the better end, which was found by reading the set. Observation 1 (no alpha is under "
        "the "
        "line) fails where an interval lies under 0; every alpha has its own, so of many some lie there by chance. "
        "Losses are in nats. " + resampling_note(clusters)
    )
    return Table(title, (*header, *(["highest loss above the line"] if losses else [])), rows, note)


def connectivity_figure(found: DiagnosisRecord) -> Figure | None:
    """The path's accuracy over the straight line between its ends, set by set, with bands; None without a path."""
    if not found.connectivity:
        return None
    columns = min(len(found.connectivity), 4)
    rows = -(-len(found.connectivity) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns, 0.6 + 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, own in zip(panels.flat, found.connectivity, strict=False):
            if own.intervals is not None and all(own.intervals):
                low, high = zip(*(pair for pair in own.intervals if pair), strict=True)
                axes.fill_between(own.alphas, 100 * np.array(low), 100 * np.array(high), color="#e6e9ec")
            axes.axhline(0, linestyle="--", color="#9aa3ab", linewidth=1.2)
            axes.plot(own.alphas, 100 * np.array(own.above_line), "o-", color=CURVE, markersize=3)
            axes.set_title(set_name(own.set, found.reference), parse_math=False)
        for axes in panels.flat[len(found.connectivity) :]:
            axes.set_axis_off()
        figure.supxlabel("alpha", fontsize=10)
        figure.supylabel("points above the line between the ends", fontsize=10)
    return figure


def _loss_height(own: LossRecord) -> str:
    return _at(with_interval(own.above_line[own.alphas.index(own.barrier_alpha)], plain), own.barrier_alpha)


def _at(text: str, alpha: float) -> str:
    head, _, tail = text.partition(" (")
    return f"{head} at {alpha:g} ({tail}" if tail else f"{head} at {alpha:g}"


def _verdict(own: ConnectivityRecord) -> str:
    if own.clearly_under:
        return f"fails at {', '.join(f'{alpha:g}' for alpha in own.clearly_under)}"
    return "holds" if own.observation_1 else "not clearly under"
