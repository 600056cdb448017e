"""A table and a figure of the accuracy along a path of weights, relative to the straight line between its ends."""

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
    *,
    with_ends: bool = False,
) -> Table:
    """Returns the barriers and gains along a path (in points), with one row per set.

    ``losses`` may be empty. ``clusters`` gives, for every set, what its intervals resample.
    ``with_ends`` adds the accuracies of the two ends, if they were recorded.
    """
    ended = with_ends and all(record.ends is not None for record in records)
    of_loss = {record.set: record for record in losses}
    rows = tuple(
        (
            set_name(record.set, reference),
            *(map(with_interval, record.ends or ()) if ended else ()),
            _at(with_interval(record.lowest[1], signed_points), record.lowest[0]),
            with_interval(Measured(record.barrier_over_mean, record.mean_interval)),
            _at(with_interval(Measured(record.gain, record.gain_interval), signed_points), record.best_alpha),
            _verdict(record),
            *([_loss_height(of_loss[record.set])] if losses else []),
        )
        for record in records
    )
    header = (
        "set",
        *(("accuracy of the first end, %", "accuracy of the second end, %") if ended else ()),
        "lowest height above the line",
        "barrier below the mean",
        "best gain over both ends",
        "observation 1",
    )
    note = (
        "In points of accuracy. The lowest height is that of the path above the straight line between its ends, with "
        "the alpha at which it occurs; a value below 0 is a barrier. The barrier below the mean is how far the lowest "
        "point of the path lies below the mean of its ends. The best gain is that of the best alpha over the better "
        "end; that alpha was chosen on the same set, so the gain is optimistic. Observation 1 (no alpha lies "
        "below the line) fails at an alpha if its whole interval lies below 0. With many alphas, some fail by chance. "
        + ("Losses are in nats. " if losses else "")
        + resampling_note(clusters)
    )
    return Table(title, (*header, *(["highest loss above the line"] if losses else [])), rows, note)


def connectivity_figure(diagnosis: DiagnosisRecord) -> Figure | None:
    """Draws the accuracy of the path above the straight line between its ends, with a panel and bands for every set.

    Returns None if the diagnosis has no path.
    """
    if not diagnosis.connectivity:
        return None
    columns = min(len(diagnosis.connectivity), 4)
    rows = -(-len(diagnosis.connectivity) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.3 * columns, 0.6 + 1.9 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, record in zip(panels.flat, diagnosis.connectivity, strict=False):
            if record.intervals is not None and all(record.intervals):
                low, high = zip(*(pair for pair in record.intervals if pair), strict=True)
                axes.fill_between(record.alphas, 100 * np.array(low), 100 * np.array(high), color="#e6e9ec")
            axes.axhline(0, linestyle="--", color="#9aa3ab", linewidth=1.2)
            axes.plot(record.alphas, 100 * np.array(record.above_line), "o-", color=CURVE, markersize=3)
            axes.set_title(set_name(record.set, diagnosis.reference), parse_math=False)
        for axes in panels.flat[len(diagnosis.connectivity) :]:
            axes.set_axis_off()
        figure.supxlabel("alpha", fontsize=10)
        figure.supylabel("points above the line between the ends", fontsize=10)
    return figure


def _loss_height(record: LossRecord) -> str:
    return _at(with_interval(record.above_line[record.alphas.index(record.barrier_alpha)], plain), record.barrier_alpha)


def _at(text: str, alpha: float) -> str:
    head, _, tail = text.partition(" (")
    return f"{head} at {alpha:g} ({tail}" if tail else f"{head} at {alpha:g}"


def _verdict(record: ConnectivityRecord) -> str:
    if record.clearly_under:
        return f"fails at {', '.join(f'{alpha:g}' for alpha in record.clearly_under)}"
    return "holds" if record.observation_1 else "does not clearly fail"
