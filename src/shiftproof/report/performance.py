"""Differences in accuracy, calibration, robustness and group measures of a diagnosed run, in tables."""

from __future__ import annotations

from shiftproof.evaluation.calibration import BINS
from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import MODELS
from shiftproof.report.comparisons import MODEL_NAMES
from shiftproof.report.tables import ABSENT, Table, resampling_note, set_name, signed_points, with_interval

_PAIRS = (("ensemble", "fine_tuned"), ("ensemble", "zero_shot"), ("fine_tuned", "zero_shot"))
_FEW = 30  # drawings, groups or images, under which a bootstrap interval covers too little


def difference_table(found: DiagnosisRecord) -> Table:
    """Every two models' difference in accuracy, with McNemar's test corrected over the sets."""
    shown: list[tuple[str, ...]] = [(name,) for name in found.sets]
    shown += [a.sets for a in found.averages if a.model == "ensemble"]
    rows = []
    for sets in shown:
        records = [found.difference(first, second, *sets) for first, second in _PAIRS]
        cells = (ABSENT if record is None else _tested(record.difference, record.p_holm) for record in records)
        rows.append(
            (set_name(sets[0], found.reference) if len(sets) == 1 else f"mean of {found.kinds[sets[0]]}", *cells)
        )
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
        rows.append((set_name(name, found.reference), *cells))
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
        rows.append((set_name(name, found.reference), *(with_interval(c.macro_f1) for c in own), *worst))
    measures = ("macro F1", "worst group")
    header = ("set", *(f"{measure}, {MODEL_NAMES[model]}" for measure in measures for model in MODELS))
    note = "In per cent; macro F1 over the classes that are present. " + resampling_note(found.clusters)
    if any(c.worst_group and found.clusters[c.set] == "group" for c in found.by_class):
        note += " That of the worst group resamples images, for a group left out would have no accuracy."
    return Table("Beyond plain accuracy", header, tuple(rows), note)


def _tested(difference: Measured, p: float | None) -> str:
    shown = with_interval(difference, signed_points)
    return shown if p is None else f"{shown[:-1]}; p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
