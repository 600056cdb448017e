"""A study in a table, a figure and sentences: every configuration's alpha path, and how far they lie apart."""

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
from shiftproof.report.comparisons import Estimate, point_estimate
from shiftproof.report.figures import MARKS, STYLE
from shiftproof.report.tables import Table, per_cent, signed_points

FIXED = 0.5
STUDIED_NAMES = {
    "fine_tuned": "fine-tuned",
    "wise_ft_0.5": "WiSE-FT, alpha 0.5",
    "wise_ft_chosen": "WiSE-FT, chosen alpha",
}


def study_table(study: StudyRecord) -> Table:
    """Every run, and every soup: reference and mean shift of the studied models, with intervals."""
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
        f"In per cent, in brackets {100 * study.interval_level:g} % intervals. The alpha was chosen by the rule "
        f"“{study.rule}”, on the reference's validation split."
    )
    if study.failures:
        note += (
            f" {counted(len(study.failures), 'part')} failed: {', '.join(failure.name for failure in study.failures)}."
        )
    return Table("Every run of the study", ("configuration", "seed", *columns, "chosen alpha"), tuple(rows), note)


def spread_table(study: StudyRecord) -> Table | None:
    """How far configurations lie apart, by model; None where there are too few to say."""
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
        f"The standard deviation over {len(study.configurations)} configurations, seeds averaged, in points, with "
        f"{100 * study.interval_level:g} % bootstrap intervals over configurations, which cover too little where these "
        "are few. Noise of seeds and test images is part of it. The last column is the fine-tuned models' deviation "
        f"divided by this one.{_left_out(study)}"
    )
    header = ("model", "accuracy on", "deviation", "lowest to highest", "times smaller")
    return Table("Spread over configurations", header, rows, note)


def study_verdict(study: StudyRecord) -> str:
    """Whether the settings matter less once weights are ensembled, in sentences with numbers."""
    if not study.spreads:
        return "Fewer than three configurations ended: that is too few for a spread."
    return " ".join(
        _judged(study, model, sets)
        for sets in dict.fromkeys(spread.sets for spread in study.spreads)
        for model in STUDIED
        if model != "fine_tuned"
    ) + _left_out(study)


def _left_out(study: StudyRecord) -> str:
    return f" {counted(len(study.failures), 'part')} of the study failed and is left out." if study.failures else ""


def study_figure(study: StudyRecord) -> Figure:
    """Reference against mean shift, one curve a configuration from zero-shot to fine-tuned (WiSE-FT, Fig. 3)."""
    colours = matplotlib.colormaps["viridis"]
    names = study.configurations
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 6.2), layout="constrained")
        axes = figure.subplots()
        drawn: set[str] = set()
        for member in study.members:
            place = names.index(member.configuration)
            label = member.configuration if member.configuration not in drawn else None
            drawn.add(member.configuration)
            _draw(axes, study, member, colours(0.92 * place / max(len(names) - 1, 1)), label)
        for number, soup in enumerate(study.soups):
            _draw(axes, study, soup, "#d62728", soup.name, style=("-", "--", ":")[number % 3], width=2.2)
        for model, name, alpha in (
            ("zero_shot", "zero-shot", 0.0),
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


def mean_name(study: StudyRecord) -> str:
    """What the averaged shifts are called; without a shift it is the reference that is shown."""
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
    own, base = _spread(study, model, sets), _spread(study, "fine_tuned", sets)
    where = "On the reference" if sets == "reference" else f"On the {mean_name(study)}"
    varies = f"{where}, {STUDIED_NAMES[model]} varies"
    if own.ratio_interval is None:
        return f"{varies} by nothing over the configurations, fine-tuned by {100 * base.deviation:.2f} points."
    low, high = own.ratio_interval
    relation = "less than" if low > 1 else "more than" if high < 1 else "not clearly less or more than"
    return (
        f"{varies} {relation} fine-tuned over the configurations: by {100 * own.deviation:.2f} against "
        f"{100 * base.deviation:.2f} points, a factor of {_factor(own, '{} ({} to {})')}."
    )


def _factor(spread: SpreadRecord, form: str) -> str:
    """How many times smaller a deviation is, with its interval; no number where nothing varies."""
    if spread.ratio is None or spread.ratio_interval is None:
        return "no spread"
    return form.format(*(f"{x:.1f}" if x < 1000 else "over 1000" for x in (spread.ratio, *spread.ratio_interval)))


def _spread(study: StudyRecord, model: str, sets: str) -> SpreadRecord:
    return next(spread for spread in study.spreads if (spread.model, spread.sets) == (model, sets))


def equal_reference_table(study: StudyRecord, base: str) -> Table:
    """Each configuration against another's alpha path at equal reference accuracy, alone and at alpha 0.5.

    "Above" is the mean shift's distance to ``base``'s path where that, coming from zero-shot, first has the same
    accuracy on the reference, in points, seeds averaged. Its interval holds the errors of both mean shifts and, by the
    path's slope, those of both accuracies on the reference, all taken as independent (the delta method).
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
        "In per cent and points, the mean of all seeds. “Above” compares the mean shift with the alpha path of "
        f"{base!r} where that, coming from zero-shot, first has the same accuracy on the reference, whose own error is "
        "part of the interval; – where that path has no such point."
    )
    return Table("At equal accuracy on the reference", header, tuple(rows), note)


def _averaged(study: StudyRecord, configuration: str, alpha: float) -> tuple[Estimate, Estimate]:
    """A configuration's accuracy on the reference and its mean shift, averaged over seeds.

    The test images are the same for all seeds, so that their mean is no surer than one of them: the interval is the
    mean of the seeds' intervals.
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
    """The distance of a mean shift to the first point of a curve that has the same reference accuracy."""
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
