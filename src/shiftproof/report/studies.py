"""A study in tables, a figure and sentences: the alpha path of every configuration, and how much they differ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftproof.errors import InputError, counted, nearest
from shiftproof.records.studies import STUDIED, SpreadRecord, StudyMember, StudyRecord
from shiftproof.report.comparisons import MEAN_OF_INTERVALS, START, Estimate, point_estimate, start_name
from shiftproof.report.figures import MARKS, STYLE
from shiftproof.report.tables import Table, per_cent, signed_points

FIXED = 0.5
STUDIED_NAMES = {
    "fine_tuned": "fine-tuned",
    "wise_ft_0.5": "WiSE-FT, alpha 0.5",
    "wise_ft_chosen": "WiSE-FT, chosen alpha",
}


def study_table(study: StudyRecord) -> Table:
    """Returns the accuracies (in per cent) of every run and soup on the reference and on the mean of the shifts."""
    rows = [
        (
            member.configuration,
            "–" if member.seed is None else str(member.seed),
            *(_cell(member, model, sets) for model in STUDIED for sets in ((study.reference,), study.averaged) if sets),
            f"{member.chosen:g}",
        )
        for member in (*study.members, *study.soups)
    ]
    columns = [
        f"{STUDIED_NAMES[model]}: {what}"
        for model in STUDIED
        for what in ("reference", *([mean_name(study)] if study.averaged else []))
    ]
    note = (
        f"In per cent, with {100 * study.interval_level:g} % intervals in brackets. Alpha was chosen by the rule "
        f"“{study.rule}” on the reference's validation split."
    )
    if len(study.averaged) > 1:
        note += f" {MEAN_OF_INTERVALS.capitalize()}."
    if study.failures:
        note += (
            f" {counted(len(study.failures), 'part')} failed: {', '.join(failure.name for failure in study.failures)}."
        )
    return Table("Every run of the study", ("configuration", "seed", *columns, "chosen alpha"), tuple(rows), note)


def spread_table(study: StudyRecord) -> Table | None:
    """Returns the spread over the configurations for each model (in points), or None if there are too few of them."""
    if not study.spreads:
        return None
    rows = tuple(
        (
            STUDIED_NAMES[spread.model],
            "reference" if spread.sets == "reference" else mean_name(study),
            f"{100 * spread.deviation:.2f} [{100 * spread.interval[0]:.2f}, {100 * spread.interval[1]:.2f}]",
            f"{per_cent(spread.lowest)} to {per_cent(spread.highest)}",
            "–" if spread.model == "fine_tuned" else _factor(spread, "{} [{}, {}]"),
        )
        for spread in study.spreads
    )
    note = (
        f"The deviation is the standard deviation over {len(study.configurations)} configurations, each averaged over "
        f"its seeds, in points. The {100 * study.interval_level:g} % bootstrap intervals resample the configurations; "
        "they are too narrow if there are few. The deviation includes noise from the seeds and the test images. The "
        f"last column is the deviation of the fine-tuned models divided by that of the row.{_left_out(study)}"
    )
    header = ("model", "accuracy on", "deviation", "lowest to highest", "times smaller")
    return Table("Spread over configurations", header, rows, note)


def study_verdict(study: StudyRecord) -> str:
    """Says, in sentences with numbers, whether the settings matter less if weights are ensembled."""
    if not study.spreads:
        return "Fewer than three configurations finished, which is too few to measure a spread."
    return " ".join(
        _judged(study, model, sets)
        for sets in dict.fromkeys(spread.sets for spread in study.spreads)
        for model in STUDIED
        if model != "fine_tuned"
    ) + _left_out(study)


def _left_out(study: StudyRecord) -> str:
    count = len(study.failures)
    return (
        f" {counted(count, 'part')} of the study failed and {'is' if count == 1 else 'are'} left out." if count else ""
    )


def study_figure(study: StudyRecord) -> Figure:
    """Draws the mean of the shifts against the reference, with one curve per run from its start to fine-tuned.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), Fig. 3.
    """
    colours = matplotlib.colormaps["viridis"]
    names = study.configurations
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 6.2), layout="constrained")
        axes = figure.subplots()
        labelled: set[str] = set()
        for member in study.members:
            place = names.index(member.configuration)
            label = member.configuration if member.configuration not in labelled else None
            labelled.add(member.configuration)
            _draw(axes, study, member, colours(0.92 * place / max(len(names) - 1, 1)), label)
        for number, soup in enumerate(study.soups):
            _draw(axes, study, soup, "#d62728", soup.name, style=("-", "--", ":")[number % 3], width=2.2)
        for model, name, alpha in (
            ("zero_shot", _start(study), 0.0),
            ("fine_tuned", "fine-tuned", 1.0),
            ("ensemble", "alpha 0.5", 0.5),
        ):
            points = [
                (point_estimate(m.path.at(alpha), (study.reference,)), _mean(study, m, alpha)) for m in study.members
            ]
            xs, ys = [100 * x.value for x, _ in points], [100 * y.value for _, y in points]
            axes.plot(xs, ys, label=name, zorder=5, **_mark(model, 6))
        axes.set_xlabel(f"accuracy on the reference ({study.reference}, test), in %")
        axes.set_ylabel(f"{mean_name(study)}, in %")
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8)
    return figure


def _start(study: StudyRecord) -> str:
    """The name of the models at alpha 0, which is zero-shot only if all of them are."""
    names = {start_name(member.head) for member in study.members}
    return names.pop() if len(names) == 1 else START


def mean_name(study: StudyRecord) -> str:
    """Returns the name of the mean over the averaged shifts, or of the reference if there are no shifts."""
    if not study.averaged:
        return "accuracy on the reference"
    return f"mean of {counted(len(study.averaged), 'shift')}"


def _draw(
    axes: Axes,
    study: StudyRecord,
    member: StudyMember,
    colour: Any,
    label: str | None,
    style: str = "-",
    width: float = 1.2,
) -> None:
    points = [(point_estimate(p, (study.reference,)), _mean(study, member, p.alpha)) for p in member.path.points]
    xs, ys = [100 * x.value for x, _ in points], [100 * y.value for _, y in points]
    axes.plot(xs, ys, style, color=colour, linewidth=width, label=label, zorder=2)


def _mean(study: StudyRecord, member: StudyMember, alpha: float) -> Estimate:
    return point_estimate(member.path.at(alpha), study.averaged or (study.reference,))


def _mark(model: str, size: float | None = None) -> dict[str, Any]:
    style = {**MARKS[model], "linestyle": "", "markeredgecolor": "white"}
    return style if size is None else {**style, "markersize": size}


def _cell(member: StudyMember, model: str, sets: Sequence[str]) -> str:
    return _estimate(point_estimate(member.path.at(member.alpha_of(model)), sets))


def _judged(study: StudyRecord, model: str, sets: str) -> str:
    spread, base = _spread(study, model, sets), _spread(study, "fine_tuned", sets)
    where = "On the reference" if sets == "reference" else f"On the {mean_name(study)}"
    name = f"{where}, {STUDIED_NAMES[model]}"
    if spread.ratio_interval is None:
        return f"{name} does not vary over the configurations; fine-tuned varies by {100 * base.deviation:.2f} points."
    low, high = spread.ratio_interval
    varies = "varies less" if low > 1 else "varies more" if high < 1 else "does not vary clearly less or more"
    return (
        f"{name} {varies} than fine-tuned over the configurations: by {100 * spread.deviation:.2f} against "
        f"{100 * base.deviation:.2f} points, a factor of {_factor(spread, '{} ({} to {})')}."
    )


def _factor(spread: SpreadRecord, form: str) -> str:
    """Formats how many times smaller a deviation is, with its interval; says "no spread" if nothing varies."""
    if spread.ratio is None or spread.ratio_interval is None:
        return "no spread"
    return form.format(*(f"{x:.1f}" if x < 1000 else "over 1000" for x in (spread.ratio, *spread.ratio_interval)))


def _spread(study: StudyRecord, model: str, sets: str) -> SpreadRecord:
    return next(spread for spread in study.spreads if (spread.model, spread.sets) == (model, sets))


def equal_reference_table(study: StudyRecord, base: str) -> Table:
    """Compares every configuration with the alpha path of another at equal accuracy on the reference.

    Each is compared by itself and at alpha 0.5. "Above" is the mean over the shifts minus that of ``base``'s path (in
    points), at the first point from the start at which the path has the same accuracy on the reference. Seeds are
    averaged. The interval combines the errors of both means and, through the slope of the path, of both accuracies on
    the reference (the delta method). These are taken as independent; both configurations are measured on the same
    images, which makes their difference more certain than that.

    Raises an InputError if the study has no configuration ``base``.
    """
    curve = _curve(study, base)
    rows = []
    for name in study.configurations:
        cells: list[str] = []
        for alpha in (1.0, FIXED):
            reference, mean = _averaged(study, name, alpha)
            cells += [_estimate(reference), _estimate(mean), _above(reference, mean, curve)]
        rows.append((name, *cells))
    parts = ("reference", "mean shift", "above")
    header = ("configuration", *(f"alone: {p}" for p in parts), *(f"alpha 0.5: {p}" for p in parts))
    note = (
        "Accuracies are in per cent and averaged over the seeds. “Above” is the mean over the shifts minus that of the "
        f"alpha path of {base!r}, in points, at the first point from {_start(study)} at which the path has the same "
        "accuracy on the reference. Its interval includes the error of that accuracy. – means that the path has no "
        "such point."
    )
    return Table("At equal accuracy on the reference", header, tuple(rows), note)


def _averaged(study: StudyRecord, configuration: str, alpha: float) -> tuple[Estimate, Estimate]:
    """Returns a configuration's accuracies on the reference and on the mean of the shifts, averaged over seeds.

    All seeds use the same test images, so their mean is no more certain than one of them. Its interval is therefore
    the mean of the intervals of the seeds.
    """
    members = [member for member in study.members if member.configuration == configuration]
    both = [
        [point_estimate(member.path.at(alpha), sets) for member in members]
        for sets in ((study.reference,), study.averaged or (study.reference,))
    ]
    means = [
        Estimate(*(sum(getattr(e, part) for e in some) / len(some) for part in ("value", "low", "high")))
        for some in both
    ]
    return means[0], means[1]


def _curve(study: StudyRecord, configuration: str) -> list[tuple[Estimate, Estimate]]:
    member = next((m for m in study.members if m.configuration == configuration), None)
    if member is None:
        raise InputError(
            f"the study has no configuration {configuration!r}. {nearest(configuration, study.configurations)}"
        )
    return [_averaged(study, configuration, alpha) for alpha in member.path.alphas]


def _above(reference: Estimate, mean: Estimate, curve: Sequence[tuple[Estimate, Estimate]]) -> str:
    """Formats the distance of a mean over shifts to the first point of a curve with the same reference accuracy."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if min(x0.value, x1.value) <= reference.value <= max(x0.value, x1.value):
            run = x1.value - x0.value
            share, slope = ((reference.value - x0.value) / run, (y1.value - y0.value) / run) if run else (0.0, 0.0)
            other, there = _between(y0, y1, share), _between(x0, x1, share)
            sideways = slope * math.hypot(_half_width(reference), _half_width(there))
            above = mean.value - other.value
            low = above - math.hypot(mean.value - mean.low, other.high - other.value, sideways)
            high = above + math.hypot(mean.high - mean.value, other.value - other.low, sideways)
            return f"{signed_points(above)} [{signed_points(low)}, {signed_points(high)}]"
    return "–"


def _between(first: Estimate, second: Estimate, share: float) -> Estimate:
    return Estimate(*((1 - share) * getattr(first, p) + share * getattr(second, p) for p in ("value", "low", "high")))


def _half_width(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2


def _estimate(estimate: Estimate) -> str:
    return f"{per_cent(estimate.value)} [{per_cent(estimate.low)}, {per_cent(estimate.high)}]"
