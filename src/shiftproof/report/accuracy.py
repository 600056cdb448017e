"""Accuracies of the models of one run, in tables: by set, by group and by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.records.accuracy import AccuracyRecord, GroupRecord
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import RunRecord
from shiftproof.report.comparisons import MODEL_NAMES, headline_shifts, model_estimate
from shiftproof.report.tables import ABSENT, Table, accuracy_cell, per_cent, reference_name


def accuracy_table(run: RunRecord, found: DiagnosisRecord | None = None) -> Table:
    """The three models on the reference, on every shift, and on the means over each kind of shift.

    ``found``, where the run was diagnosed, holds the means' intervals; else those of the sets are propagated.
    """
    columns: list[tuple[str, Callable[[str], str]]] = [(reference_name(run.reference), _cell(run, run.reference))]
    for kind in ("natural", "synthetic"):
        shifts = run.shifts_of(kind)
        columns += [(f"{name} ({kind})", _cell(run, name)) for name in shifts]
        if len(shifts) > 1:
            columns.append((f"mean of {kind}", _mean_cell(run, shifts, found)))
    rows = tuple((model_name(run, model), *(cell(model) for _, cell in columns)) for model in MODEL_NAMES)
    return Table(
        "Accuracy of the three models, in per cent",
        ("model", *(name for name, _ in columns)),
        rows,
        f"In brackets the {interval_name(run)}; that of a mean {_mean_note(found)}. "
        f"The reference's numbers are its test split's. {_sizes(run)}",
    )


def group_table(run: RunRecord) -> Table | None:
    """Accuracy by group, for every set whose samples have groups; None where no set has."""
    rows = []
    for name in run.sets:
        groups = [run.models[model][name].groups for model in MODEL_NAMES]
        for group in groups[0]:
            if all(group in entry for entry in groups):
                cells = (_interval_cell(entry[group]) for entry in groups)
                rows.append((name, group, f"{groups[0][group].n:,}", *cells))
    if not rows:
        return None
    header = ("set", "group", "images", *(model_name(run, model) for model in MODEL_NAMES))
    note = f"In brackets the {interval_name(run)}. A group has fewer images than its set, hence wider intervals."
    return Table("Accuracy by group, in per cent", header, tuple(rows), note)


def class_table(run: RunRecord, records: Iterable[AccuracyRecord], count: int = 10) -> Table | None:
    """The classes that fine-tuning moved most on the headline shifts; None without per-class accuracies.

    ``records`` are the lines of ``results.jsonl``; of the same model and set the last one counts.
    """
    shifts = headline_shifts(run)
    latest = {(record.model, record.set): record for record in records if record.model in MODEL_NAMES}
    of_models = [[latest.get((model, name)) for name in shifts] for model in MODEL_NAMES]
    if not shifts or any(record is None or not record.class_counts for own in of_models for record in own):
        return None
    known = set.intersection(*(set(record.class_counts) for own in of_models for record in own if record))
    pooled = {name: [_pooled(name, [r for r in own if r]) for own in of_models] for name in known}
    moved = sorted(known, key=lambda name: (-abs(pooled[name][1][0] - pooled[name][0][0]), name))[:count]
    rows = tuple((name, *(accuracy_cell(*found) for found in pooled[name])) for name in moved)
    note = (
        f"Over the images of the headline shifts ({', '.join(shifts)}), with Clopper-Pearson intervals. These classes "
        f"are "
        "shown because they moved most, so that they moved less than it seems; each rests on few images."
    )
    header = ("class", *(model_name(run, model) for model in MODEL_NAMES))
    return Table("The classes that fine-tuning moved most, in per cent", header, rows, note)


def _pooled(name: str, records: Sequence[AccuracyRecord]) -> tuple[float, tuple[float, float]]:
    """A class's accuracy over several sets' images together, with its interval."""
    n = sum(record.class_counts[name] for record in records)
    correct = round(sum(record.per_class[name] * record.class_counts[name] for record in records))
    return correct / n, accuracy_interval(correct, n)


def records_table(records: Sequence[AccuracyRecord], title: str = "Accuracy") -> Table:
    """One row a set, for a single classifier: accuracy with its interval, calibration error, number of images."""
    rows = tuple(
        (
            record.set,
            _interval_cell(record),
            _optional(record.calibration_error, per_cent),
            f"{record.n:,}",
        )
        for record in records
    )
    note = "In brackets the 95 % Clopper-Pearson interval; all but the number of images in per cent."
    return Table(title, ("set", "accuracy", "calibration error", "images"), rows, note)


def interval_name(run: RunRecord) -> str:
    """What the intervals are: ``95 % interval (Clopper-Pearson)``."""
    return f"{100 * run.interval_level:g} % interval ({run.interval_method.title()})"


def model_name(run: RunRecord, model: str) -> str:
    """A model's name in tables; the ensemble's has its alpha."""
    return f"ensemble, alpha {run.alpha:g}" if model == "ensemble" else MODEL_NAMES[model]


def _interval_cell(record: AccuracyRecord | GroupRecord) -> str:
    return accuracy_cell(record.accuracy, record.interval)


def _cell(run: RunRecord, name: str) -> Callable[[str], str]:
    return lambda model: _interval_cell(run.models[model][name])


def _mean_cell(run: RunRecord, sets: tuple[str, ...], found: DiagnosisRecord | None) -> Callable[[str], str]:
    def cell(model: str) -> str:
        average = None if found is None else found.average(model, *sets)
        if average is not None and average.accuracy.interval is not None:
            return accuracy_cell(average.accuracy.value, average.accuracy.interval)
        mean = model_estimate(run, model, sets)
        return accuracy_cell(mean.value, (mean.low, mean.high))

    return cell


def _mean_note(found: DiagnosisRecord | None) -> str:
    if found is None:
        return "is propagated from its columns', which are taken as independent"
    kinds = " or ".join(sorted(set(found.clusters.values())))
    return f"is a bootstrap interval that resamples every {kinds} in all sets at once"


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return ABSENT if value is None else form(value)


def _sizes(run: RunRecord) -> str:
    sizes = {name: run.models["zero_shot"][name].n for name in run.sets}
    if len(set(sizes.values())) == 1:
        return f"Every set has {sizes[run.reference]:,} images."
    return "Images: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + "."
