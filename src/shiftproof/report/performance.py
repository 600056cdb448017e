"""Tables of the differences in accuracy, the calibration, the robustness and the group measures of a diagnosed run."""

from __future__ import annotations

from shiftproof.evaluation.calibration import BINS
from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import MODELS
from shiftproof.report.comparisons import ZERO_SHOT, model_names
from shiftproof.report.tables import ABSENT, Table, resampling_note, set_name, signed_points, with_interval

_PAIRS = (("ensemble", "fine_tuned"), ("ensemble", "zero_shot"), ("fine_tuned", "zero_shot"))
_FEW = 30  # with fewer drawings, groups or images, a bootstrap interval is too narrow


def difference_table(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Table:
    """Returns the differences in accuracy (in points) between every two models, with McNemar's test."""
    names = model_names(start)
    shown: list[tuple[str, ...]] = [(name,) for name in diagnosis.sets]
    shown += [a.sets for a in diagnosis.averages if a.model == "ensemble"]
    rows = []
    for sets in shown:
        records = [diagnosis.difference(first, second, *sets) for first, second in _PAIRS]
        cells = (ABSENT if record is None else _tested(record.difference, record.p_holm) for record in records)
        rows.append(
            (
                set_name(sets[0], diagnosis.reference) if len(sets) == 1 else f"mean of {diagnosis.kinds[sets[0]]}",
                *cells,
            )
        )
    header = ("set", *(f"{names[first]} − {names[second]}" for first, second in _PAIRS))
    note = (
        f"In points. {resampling_note(diagnosis.clusters)} p is the p-value of McNemar's exact test, which takes "
        "together what the intervals resample together, with Holm's correction over the sets." + _few_note(diagnosis)
    )
    return Table("Differences in accuracy", header, tuple(rows), note)


def _few_note(diagnosis: DiagnosisRecord) -> str:
    """Names the sets on which so few units are resampled that the intervals are too narrow."""
    few = [f"{count} on {name}" for name, count in diagnosis.cluster_counts.items() if count < _FEW]
    return (
        f" Here and below, intervals are too narrow on sets with few units to resample: {', '.join(few)}."
        if few
        else ""
    )


def calibration_table(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Table:
    """Returns the calibration of the three models on every set, before and after temperature scaling (in per cent)."""
    names = model_names(start)
    ends = dict(zip(MODELS, (0.0, 1.0, diagnosis.alpha), strict=True))
    before = {(c.alpha, c.set): c for c in diagnosis.confidence}
    after = {(t.model, t.set): t for t in diagnosis.temperatures}
    rows = []
    for name in diagnosis.sets:
        cells = []
        for model in MODELS:
            confidence = before.get((ends[model], name))
            cells += [
                with_interval(None if confidence is None else confidence.calibration_error),
                with_interval(after[model, name].calibration_error),
                with_interval(None if confidence is None else confidence.selective["0.8"]),
            ]
        rows.append((set_name(name, diagnosis.reference), *cells))
    fitted = {t.model: t.temperature for t in diagnosis.temperatures}
    measures = ("calibration error", "scaled", "accuracy on the most confident 80 %")
    header = ("set", *(f"{names[model]}: {measure}" for model in MODELS for measure in measures))
    note = (
        f"In per cent. The calibration error uses {BINS} bins of equal width. “Scaled” is the calibration error after "
        "the logits are divided by a temperature, which was fitted on the reference's validation split: "
        f"{', '.join(f'{names[m]} {t:.2f}' for m, t in fitted.items())}. " + resampling_note(diagnosis.clusters)
    )
    return Table("Can the probabilities be trusted?", header, tuple(rows), note)


def robustness_table(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Table | None:
    """Returns every model's gap to the reference and, if there is a baseline, its effective robustness (in points).

    Returns None if the run has no shift.
    """
    if not diagnosis.shifts:
        return None
    names = model_names(start)
    known = {(r.model, r.shift): r for r in diagnosis.robustness}
    effective = any(r.effective is not None for r in diagnosis.robustness)
    rows = []
    for shift in diagnosis.shifts:
        cells = [with_interval(known[model, shift].gap, signed_points) for model in MODELS]
        if effective:
            cells += [with_interval(known[model, shift].effective, signed_points) for model in MODELS]
        rows.append((shift, *cells))
    header = ("shift", *(f"gap, {names[model]}" for model in MODELS))
    if effective:
        header += tuple(f"effective, {names[model]}" for model in MODELS)
    note = "In points. The gap is the accuracy on the reference minus the accuracy under the shift. "
    if effective:
        note += (
            "Effective robustness is the accuracy under the shift minus the accuracy that networks trained on the "
            "reference alone would have at the same accuracy on the reference (according to a line in logit space). "
        )
    return Table("Robustness", header, tuple(rows), note + resampling_note(diagnosis.clusters))


def group_measures_table(diagnosis: DiagnosisRecord, start: str = ZERO_SHOT) -> Table:
    """Returns the macro accuracy and macro F1 of the three models on every set and the worst group's accuracy.

    All are in per cent.
    """
    names = model_names(start)
    known = {(c.model, c.set): c for c in diagnosis.by_class}
    rows = []
    for name in diagnosis.sets:
        entries = [known[model, name] for model in MODELS]
        worst = (with_interval(c.worst_accuracy) + (f" {c.worst_group}" if c.worst_group else "") for c in entries)
        balanced = (with_interval(c.macro_accuracy) for c in entries)
        f1 = (with_interval(c.macro_f1) for c in entries)
        rows.append((set_name(name, diagnosis.reference), *balanced, *f1, *worst))
    measures = ("macro accuracy", "macro F1", "worst group")
    header = ("set", *(f"{measure}, {names[model]}" for measure in measures for model in MODELS))
    note = (
        "In per cent. Macro accuracy and macro F1 are averaged over the classes that are present, so that each class "
        "counts alike. "
    ) + resampling_note(diagnosis.clusters)
    if any(c.worst_group and diagnosis.clusters[c.set] == "group" for c in diagnosis.by_class):
        note += " The interval of the worst group resamples images, because a group may be missing from a resample."
    return Table("Beyond plain accuracy", header, tuple(rows), note)


def _tested(difference: Measured, p: float | None) -> str:
    shown = with_interval(difference, signed_points)
    return shown if p is None else f"{shown[:-1]}; p {'< 0.001' if p < 0.001 else f'{p:.3f}'})"
