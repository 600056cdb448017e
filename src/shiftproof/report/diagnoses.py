"""What was diagnosed of a run in tables, in words and in figures: numbers with their intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from shiftproof.evaluation.calibration import BINS
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.comparisons import ConnectivityRecord, FollowedRecord, LossRecord, Measured, MovementRecord
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord, PairRecord
from shiftproof.records.runs import MODELS
from shiftproof.report.comparisons import MODEL_NAMES, per_cent, signed_points
from shiftproof.report.figures import CURVE, MARKS, STYLE
from shiftproof.report.layers import layers_figure, layers_table
from shiftproof.report.plane import plane_figure
from shiftproof.report.tables import ABSENT, Table, reference_name, with_interval
from shiftproof.report.windows import hard_edge_tables

Form = Callable[[float], str]
_ENDS = ("zero-shot", "fine-tuned")
_PAIRS = (("ensemble", "fine_tuned"), ("ensemble", "zero_shot"), ("fine_tuned", "zero_shot"))
_LAYERS_SHOWN = 10
_FEW = 30  # drawings, groups or images, under which a bootstrap interval covers too little
# Of each kind of figure: what it shows in place of itself, and its caption.
_EXPLAINED = {
    "overrides": (
        "Bars, one a set: whom the ensemble follows. The table of overrides holds the numbers.",
        "Whom the ensemble follows on the images where zero-shot and fine-tuned disagree, whoever is right.",
    ),
    "connectivity": (
        "Accuracy above the straight line between the path's ends, set by set.",
        "Accuracy along the alpha path minus the straight line between its ends: above 0 throughout means that there "
        "is no "
        "barrier. The bands are paired intervals.",
    ),
    "layers": (
        "A heat map of CKA between the layers of two models.",
        "CKA between every layer of zero-shot and every layer of fine-tuned: 1 is alike up to rotation and scale.",
    ),
    "plane": (
        "Error in the plane through zero-shot and two fine-tuned models.",
        "Error in the plane of weights through zero-shot and its fine-tunings on two halves of the reference. The "
        "axes are "
        "distances of weights.",
    ),
}


def plain(value: float) -> str:
    """A number that is no share of anything, with two decimals.

    >>> plain(-0.678)
    '−0.68'
    """
    return f"{value:.2f}".replace("-", "−")


def explanation(stem: str) -> tuple[str, str] | None:
    """What a figure of the diagnoses shows, and its caption, by its file's name without the ending; None of others.

    >>> explanation("path") is None
    True
    """
    kind, _, name = stem.partition("-")
    if kind not in _EXPLAINED:
        return None
    alt, caption = _EXPLAINED[kind]
    return (alt, f"On {name}: {caption}") if name else (alt, caption)


def resampling_note(clusters: Mapping[str, str]) -> str:
    """What the intervals are and what they resample; ``clusters`` names that for every set."""
    what = {"drawing": "drawings, all views of one together", "group": "groups", "sample": "images"}
    kinds = " or ".join(what[kind] for kind in sorted(set(clusters.values())))
    return f"In brackets {100 * LEVEL:g} % bootstrap intervals over {kinds}."


def _rate_note(clusters: Mapping[str, str]) -> str:
    """What the intervals of shares of disagreements are: those of single images are exact."""
    exact = f"{100 * LEVEL:g} % Clopper-Pearson intervals over images"
    kinds = set(clusters.values())
    if kinds == {"sample"}:
        return f"In brackets {exact}."
    return resampling_note(clusters) + (f" Where images stand for themselves, {exact}." if "sample" in kinds else "")


def agreement_table(pairs: Sequence[PairRecord], clusters: Mapping[str, str], reference: str = "") -> Table | None:
    """How much two models differ, a row for every set; None without a pair."""
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        own = pair.agreement
        cells = [with_interval(own.disagreement), with_interval(own.prediction_diversity)]
        cells += [with_interval(own.kappa_complement, plain), with_interval(own.kl_forward, plain)]
        cells += [with_interval(own.kl_backward, plain), with_interval(own.margin_difference, plain)]
        cells.append(with_interval(None if pair.cka is None else pair.cka.biased, plain))
        rows.append((_shown(pair.set, reference), *cells, with_interval(own.error_consistency, plain)))
    first, second = (MODEL_NAMES.get(model, model) for model in (pairs[0].first, pairs[0].second))
    kinds = ("disagreement", "diversity", "1 − kappa", "KL", "KL back", "margin difference", "CKA", "error consistency")
    note = (
        "Disagreement and diversity are shares of the images, in per cent: on which the two name different classes, "
        "and that "
        "exactly one of them gets right. 1 − kappa is 0 where they always name the same class and 1 where no oftener "
        "than by "
        f"chance. KL is KL({first} || {second}), in nats. The margin difference is {first}'s top1 − top2 minus "
        f"{second}'s. "
        "CKA compares outputs: 1 is alike. Error consistency is 1 where both err on the same images. "
        + resampling_note(clusters)
    )
    return Table(f"How {first} and {second} differ", ("set", *kinds), tuple(rows), note)


def override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = _ENDS,
) -> Table:
    """Whom the ensemble follows where two models of these names disagree, a row for every set."""
    first, second = names
    rows = tuple(
        (
            _shown(name, reference),
            f"{own.disagreements:,} of {own.n:,}",
            *map(with_interval, (own.zero_shot, own.fine_tuned, own.neither)),
            with_interval(own.lead, signed_points),
            with_interval(own.beyond_both),
        )
        for name, own in overrides.items()
    )
    note = (
        f"In per cent of the images on which the two disagree; who is right plays no part. The lead is {first}'s share "
        f"minus {second}'s, in points. The last column: of the "
        "images that "
        f"the ensemble wins over {second}, the share that {first} gets wrong, too. " + _rate_note(clusters)
    )
    header = (
        "set",
        "disagreements",
        f"{first} prevails",
        f"{second} prevails",
        "neither",
        f"{first}'s lead",
        "gained beyond both",
    )
    return Table("Whom the ensemble follows", header, rows, note)


def right_override_table(
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
    names: Sequence[str] = _ENDS,
) -> Table | None:
    """Overrides apart by who of two models of these names was right; None without labels."""
    shown = dict(zip(("zero_shot", "fine_tuned"), names, strict=True))
    rows = tuple(
        (_shown(name, reference), who, f"{own.disagreements:,}", *map(with_interval, (own.zero_shot, own.fine_tuned)))
        for name, followed in overrides.items()
        for who, own in ((shown.get(right, right), part) for right, part in followed.by_right.items())
    )
    note = "In per cent of those disagreements. " + _rate_note(clusters)
    header = ("set", "who was right", "disagreements", *(f"{name} prevails" for name in names))
    return Table("Whom the ensemble follows, by who was right", header, rows, note) if rows else None


def diversity_table(found: DiagnosisRecord) -> Table | None:
    """Whether zero-shot and fine-tuned are more diverse than two fine-tunings; None where these were not compared."""
    diverse = {(pair.first, pair.second, pair.set): pair.agreement.prediction_diversity for pair in found.pairs}
    rows = tuple(
        (
            _shown(own.set, found.reference),
            *(with_interval(diverse.get((*pair, own.set))) for pair in (own.first, own.second)),
            with_interval(own.difference, signed_points),
        )
        for own in found.diversity
    )
    note = (
        "Diversity is the share of images that exactly one of two models gets right, in per cent; the difference, in "
        "points, is paired image by image. " + resampling_note(found.clusters)
    )
    header = ("set", "zero-shot and fine-tuned", "fine-tunings of two halves", "difference")
    return Table("Are the ends more diverse than two fine-tunings?", header, rows, note) if rows else None


def difference_table(found: DiagnosisRecord) -> Table:
    """Every two models' difference in accuracy, with McNemar's test corrected over the sets."""
    shown: list[tuple[str, ...]] = [(name,) for name in found.sets]
    shown += [a.sets for a in found.averages if a.model == "ensemble"]
    rows = []
    for sets in shown:
        records = [found.difference(first, second, *sets) for first, second in _PAIRS]
        cells = (ABSENT if record is None else _tested(record.difference, record.p_holm) for record in records)
        rows.append((_shown(sets[0], found.reference) if len(sets) == 1 else f"mean of {found.kinds[sets[0]]}", *cells))
    header = ("set", *(f"{MODEL_NAMES[first]} − {MODEL_NAMES[second]}" for first, second in _PAIRS))
    note = (
        f"Points. {resampling_note(found.clusters)} p is McNemar's exact test over images, with Holm's correction "
        f"over the "
        f"sets; it "
        "takes images as independent, so where it and the interval differ, trust the interval." + _few_note(found)
    )
    return Table("Differences in accuracy", header, tuple(rows), note)


def _few_note(found: DiagnosisRecord) -> str:
    """Where so little is resampled that intervals are too narrow."""
    few = [f"{count} on {name}" for name, count in found.cluster_counts.items() if count < _FEW]
    return f" Intervals over so few are too narrow, here and below: {', '.join(few)}." if few else ""


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
            _shown(own.set, reference),
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


def calibration_table(found: DiagnosisRecord) -> Table:
    """Calibration of the three models on every set, before and after temperature scaling."""
    ends = dict(zip(MODELS, (0.0, 1.0, found.alpha), strict=True))
    before = {(c.alpha, c.set): c for c in found.confidence}
    after = {(t.model, t.set): t for t in found.temperatures}
    rows = []
    for name in found.sets:
        cells = []
        for model in MODELS:
            own = before.get((ends[model], name))
            cells += [
                with_interval(None if own is None else own.calibration_error),
                with_interval(after[model, name].calibration_error),
                with_interval(None if own is None else own.selective["0.8"]),
            ]
        rows.append((_shown(name, found.reference), *cells))
    fitted = {t.model: t.temperature for t in found.temperatures}
    what = ("calibration error", "scaled", "accuracy on the surest 80 %")
    header = ("set", *(f"{MODEL_NAMES[model]}: {part}" for model in MODELS for part in what))
    note = (
        f"In per cent; {BINS} bins of equal width. “Scaled” divides the logits by a temperature fitted on the "
        f"reference's "
        f"validation split: {', '.join(f'{MODEL_NAMES[m]} {t:.2f}' for m, t in fitted.items())}. "
        + resampling_note(found.clusters)
    )
    return Table("Can the probabilities be trusted?", header, tuple(rows), note)


def robustness_table(found: DiagnosisRecord) -> Table | None:
    """Every model's gap to the reference and, with a baseline, effective robustness; None without a shift."""
    if not found.shifts:
        return None
    known = {(r.model, r.shift): r for r in found.robustness}
    effective = any(r.effective is not None for r in found.robustness)
    rows = []
    for shift in found.shifts:
        cells = [with_interval(known[model, shift].gap, signed_points) for model in MODELS]
        if effective:
            cells += [with_interval(known[model, shift].effective, signed_points) for model in MODELS]
        rows.append((shift, *cells))
    header = ("shift", *(f"gap, {MODEL_NAMES[model]}" for model in MODELS))
    if effective:
        header += tuple(f"effective, {MODEL_NAMES[model]}" for model in MODELS)
    note = "Points. The gap is accuracy on the reference minus that under the shift. "
    if effective:
        note += (
            "Effective robustness is accuracy under the shift minus what networks trained on the reference alone let "
            "expect "
            "at that reference accuracy (a line in logit space). "
        )
    return Table("Robustness", header, tuple(rows), note + resampling_note(found.clusters))


def group_measures_table(found: DiagnosisRecord) -> Table:
    """Macro F1 of the three models on every set and, where there are groups, the worst group's accuracy."""
    known = {(c.model, c.set): c for c in found.by_class}
    rows = []
    for name in found.sets:
        own = [known[model, name] for model in MODELS]
        worst = (with_interval(c.worst_accuracy) + (f" {c.worst_group}" if c.worst_group else "") for c in own)
        rows.append((_shown(name, found.reference), *(with_interval(c.macro_f1) for c in own), *worst))
    measures = ("macro F1", "worst group")
    header = ("set", *(f"{measure}, {MODEL_NAMES[model]}" for measure in measures for model in MODELS))
    note = "In per cent; macro F1 over the classes that are present. " + resampling_note(found.clusters)
    if any(c.worst_group and found.clusters[c.set] == "group" for c in found.by_class):
        note += " That of the worst group resamples images, for a group left out would have no accuracy."
    return Table("Beyond plain accuracy", header, tuple(rows), note)


def movement_table(layers: Sequence[MovementRecord], shown: int | None = _LAYERS_SHOWN) -> Table:
    """The ``shown`` layers that fine-tuning moved most, or all; cosines where another fine-tuning was compared."""
    moved = sorted(layers, key=lambda layer: -layer.share)[:shown]
    compared = any(layer.cosine is not None for layer in layers)
    rows = tuple(
        (
            m.layer,
            f"{m.distance:.3g}",
            ABSENT if m.relative is None else per_cent(m.relative),
            per_cent(m.share),
            *((ABSENT if m.cosine is None else plain(m.cosine),) if compared else ()),
        )
        for m in moved
    )
    note = (
        f"The {len(rows)} of {len(layers)} layers that moved most. Relative: distance over the start's norm, "
        f"in per "
        "cent; share: of all squared distances, in per cent. These are properties of the weights, not of a sample."
    )
    return Table(
        "Which layers moved", ("layer", "distance", "relative", "share", *(("cosine",) if compared else ())), rows, note
    )


def diagnosis_tables(found: DiagnosisRecord) -> tuple[Table, ...]:
    """Every table, in the order in which they tell the story."""
    about = found.clusters, found.reference
    tables: list[Table | None] = [difference_table(found)]
    apart = [pair for pair in found.pairs if "ensemble" not in (pair.first, pair.second)]  # the rest is in the file
    tables += [*pair_tables(apart, found.overrides, *about), diversity_table(found)]
    if found.connectivity:
        tables.append(connectivity_table(found.connectivity, found.losses, *about))
    for path in found.other_paths:
        tables.append(connectivity_table(path.connectivity, path.losses, *about, f"Connected? {path.name}"))
    tables += [calibration_table(found), robustness_table(found), group_measures_table(found)]
    tables += [layers_table(record) for record in found.layers]
    tables += () if found.strong_edge is None else hard_edge_tables(found.strong_edge)
    tables.append(movement_table(found.movement))
    return tuple(table for table in tables if table is not None)


def pair_tables(
    pairs: Sequence[PairRecord],
    overrides: Mapping[str, FollowedRecord],
    clusters: Mapping[str, str],
    reference: str = "",
) -> tuple[Table, ...]:
    """A table for every two models and, where there are overrides, whom the ensemble follows."""
    kinds = dict.fromkeys((pair.first, pair.second) for pair in pairs)
    tables: list[Table | None] = [
        agreement_table([pair for pair in pairs if (pair.first, pair.second) == kind], clusters, reference)
        for kind in kinds
    ]
    if overrides:
        # The first two that were compared are those of whom a third follows one.
        names = [MODEL_NAMES.get(model, model) for model in next(iter(kinds), _ENDS)]
        tables.append(override_table(overrides, clusters, reference, names))
        tables.append(right_override_table(overrides, clusters, reference, names))
    return tuple(table for table in tables if table is not None)


def diagnosis_figures(found: DiagnosisRecord) -> dict[str, Figure | None]:
    """Every figure by its file's name; None where what it shows was not measured."""
    return {
        "overrides.png": override_figure(found),
        "connectivity.png": connectivity_figure(found),
        **{f"layers-{record.set}.png": layers_figure(record, "zero-shot", "fine-tuned") for record in found.layers},
        **{f"plane-{record.set}.png": plane_figure(record, *HALVES) for record in found.planes},
    }


def override_figure(found: DiagnosisRecord) -> Figure:
    """Stacked bars, one a set: whom the ensemble follows; the intervals are those of each part."""
    names = [name for name in found.sets if found.overrides[name].disagreements]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.1 + 0.36 * len(names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(names))
        for part, label in (("zero_shot", "zero-shot"), ("neither", "neither"), ("fine_tuned", "fine-tuned")):
            widths = np.array([100 * _part(found.overrides[name], part) for name in names])
            colour = "#c9cfd5" if part == "neither" else MARKS[part]["color"]
            axes.barh(range(len(names)), widths, left=left, color=colour, label=label, height=0.7)
            for row, (start, width) in enumerate(zip(left, widths, strict=True)):
                if width > 7:
                    tint = "#1f262d" if part == "neither" else "white"
                    axes.text(start + width / 2, row, f"{width:.0f}", ha="center", va="center", color=tint, fontsize=9)
            left += widths
        axes.set_yticks(range(len(names)), [_shown(name, found.reference) for name in names])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.grid(False)
        axes.set_xlabel("whom the ensemble follows where the two disagree, in % of the disagreements")
        figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    return figure


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
            axes.set_title(_shown(own.set, found.reference), parse_math=False)
        for axes in panels.flat[len(found.connectivity) :]:
            axes.set_axis_off()
        figure.supxlabel("alpha", fontsize=10)
        figure.supylabel("points above the line between the ends", fontsize=10)
    return figure


def _part(own: FollowedRecord, part: str) -> float:
    found: Measured | None = getattr(own, part)
    return found.value if found is not None else 0.0


def _shown(name: str, reference: str) -> str:
    return reference_name(name) if name == reference else name


def _tested(difference: Measured, p: float | None) -> str:
    shown = with_interval(difference, signed_points)
    return shown if p is None else f"{shown[:-1]}; p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"


def _loss_height(own: LossRecord) -> str:
    return _at(with_interval(own.above_line[own.alphas.index(own.barrier_alpha)], plain), own.barrier_alpha)


def _at(text: str, alpha: float) -> str:
    head, _, tail = text.partition(" (")
    return f"{head} at {alpha:g} ({tail}" if tail else f"{head} at {alpha:g}"


def _verdict(own: ConnectivityRecord) -> str:
    if own.clearly_under:
        return f"fails at {', '.join(f'{alpha:g}' for alpha in own.clearly_under)}"
    return "holds" if own.observation_1 else "not clearly under"
