"""Tables of the accuracies of a run's models by set, by group and by class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from shiftproof.data.protocols import PLAIN
from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.records.accuracy import CLUSTERED, INDEPENDENT, AccuracyRecord, GroupRecord
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.comparisons import MEAN_OF_INTERVALS, headline_shifts, model_estimate, names_of
from shiftproof.report.tables import ABSENT, Table, accuracy_cell, per_cent, reference_name

SCORING_TITLE = "Metrics beside accuracy, and scores on some of the classes"
_MEANINGS = {
    "macro accuracy": "Macro accuracy is the mean of the accuracies on the classes, each of which counts alike; it is "
    "given where the classes have unequally many images",
    "mCE": "mCE is relative to AlexNet, and lower is better",
    "background gap": "A gap is in points",
}


def accuracy_table(run: RunRecord, diagnosis: DiagnosisRecord | None = None) -> Table:
    """Returns the accuracies of the models on the reference, on every shift, and averaged over each kind of shift.

    Cells are in per cent. ``diagnosis``, if the run has one, holds the intervals of the means. Otherwise they are
    those of ``mean_estimate``.
    """
    columns: list[tuple[str, Callable[[str], str]]] = [(reference_name(run.reference), _cell(run, run.reference))]
    for kind in ("natural", "synthetic"):
        shifts = run.shifts_of(kind)
        columns += [(f"{name} ({kind})", _cell(run, name)) for name in shifts]
        if len(shifts) > 1:
            columns.append((f"mean of {kind}", _mean_cell(run, shifts, diagnosis)))
    rows = tuple((model_name(run, model), *(cell(model) for _, cell in columns)) for model in MODELS)
    return Table(
        "Accuracy of the three models, in per cent",
        ("model", *(name for name, _ in columns)),
        rows,
        f"The {interval_name(run)} is given in brackets{_mean_note(run, diagnosis)}. Numbers for the "
        f"reference are from its test split. {_sizes(run)}",
    )


def group_table(run: RunRecord) -> Table | None:
    """Returns the accuracy (in per cent) by group for the sets with groups, or None if no set has groups."""
    rows = []
    for name in run.sets:
        groups = [run.models[model][name].groups for model in MODELS]
        for group in groups[0]:
            if all(group in entry for entry in groups):
                cells = (_interval_cell(entry[group]) for entry in groups)
                rows.append((name, group, f"{groups[0][group].n:,}", *cells))
    if not rows:
        return None
    header = ("set", "group", "images", *(model_name(run, model) for model in MODELS))
    note = (
        f"The {interval_name(run)} is given in brackets. A group has fewer images than its set, so its interval is "
        "wider."
    )
    return Table("Accuracy by group, in per cent", header, tuple(rows), note)


def scoring_table(columns: Mapping[str, Mapping[str, AccuracyRecord]]) -> Table | None:
    """Returns the metrics of sets beside accuracy and the variants for sets with some of the classes, in per cent.

    ``columns`` maps the name of each model to its records by set. Returns None if no record has any.
    """
    first, models = next(iter(columns.values()), {}), columns.values()
    rows: list[tuple[str, ...]] = []
    for name, record in first.items():
        records = [by_set[name] for by_set in models]
        for metric in record.metrics:
            rows.append((name, metric, *(_metric_cell(of_model, metric) for of_model in records)))
        for variant in record.variants:
            measured = [of_model.variants.get(variant) for of_model in records]
            rows.append((name, variant, *(ABSENT if entry is None else _interval_cell(entry) for entry in measured)))
    if not rows:
        return None
    named = {name: record.protocol for name, record in first.items() if record.protocol not in (None, PLAIN)}
    protocols = [f"{name} is scored as {protocol}" for name, protocol in named.items()]
    meanings = [meaning for metric, meaning in _MEANINGS.items() if any(metric in r.metrics for r in first.values())]
    sentences = [*(["; ".join(protocols)] if protocols else []), *meanings, "95 % intervals are in brackets"]
    note = "".join(f"{sentence}. " for sentence in sentences).rstrip()
    return Table(SCORING_TITLE, ("set", "score", *columns), tuple(rows), note)


def run_scoring_table(run: RunRecord) -> Table | None:
    """Returns the ``scoring_table`` of a run's three models."""
    return scoring_table({model_name(run, model): run.models[model] for model in MODELS})


def class_table(run: RunRecord, records: Iterable[AccuracyRecord], count: int = 10) -> Table | None:
    """Returns the ``count`` classes whose accuracy on the headline shifts fine-tuning changed most.

    ``records`` are the lines of ``results.jsonl``; if several have the same model and set, the last one is used.
    Returns None if the run has no shift or a record has no accuracies by class.
    """
    shifts = headline_shifts(run)
    latest = {(record.model, record.set): record for record in records if record.model in MODELS}
    of_models = [[latest.get((model, name)) for name in shifts] for model in MODELS]
    if not shifts or any(record is None or not record.class_counts for entries in of_models for record in entries):
        return None
    known = set.intersection(*(set(record.class_counts) for entries in of_models for record in entries if record))
    pooled = {name: [_pooled(name, [r for r in entries if r]) for entries in of_models] for name in known}
    changed = sorted(known, key=lambda name: (-abs(pooled[name][1][0] - pooled[name][0][0]), name))[:count]
    clustered = any(record and record.interval_method == CLUSTERED for entries in of_models for record in entries)
    cell = (lambda estimate: per_cent(estimate[0])) if clustered else (lambda estimate: accuracy_cell(*estimate))
    rows = tuple((name, *map(cell, pooled[name])) for name in changed)
    intervals = (
        "without intervals, since the images of a class come from few sources or groups"
        if clustered
        else "with 95 % Clopper-Pearson intervals in brackets"
    )
    note = (
        f"Accuracy is over all images of {', '.join(shifts)}, {intervals}. These classes are shown because their "
        "accuracy changed most, so part of the change is due to chance. Each class has few images."
    )
    header = ("class", *(model_name(run, model) for model in MODELS))
    return Table("The classes that fine-tuning changed most, in per cent", header, rows, note)


def _pooled(name: str, records: Sequence[AccuracyRecord]) -> tuple[float, tuple[float, float]]:
    """Returns a class's accuracy over the images of several sets together, with its interval (fractions)."""
    n = sum(record.class_counts[name] for record in records)
    correct = round(sum(record.per_class[name] * record.class_counts[name] for record in records))
    return correct / n, accuracy_interval(correct, n)


def records_table(records: Sequence[AccuracyRecord], title: str = "Accuracy") -> Table:
    """Returns a classifier's accuracy, calibration error and number of images, with one row per set."""
    rows = tuple(
        (
            record.set,
            _interval_cell(record),
            _optional(record.calibration_error, per_cent),
            f"{record.n:,}",
        )
        for record in records
    )
    methods = method_names(record.interval_method for record in records)
    note = f"In per cent, except for the number of images. The 95 % interval ({methods}) is given in brackets."
    return Table(title, ("set", "accuracy", "calibration error", "images"), rows, note)


def interval_name(run: RunRecord) -> str:
    """Returns the name of a run's intervals, such as ``95 % interval (Clopper-Pearson)``."""
    return f"{100 * run.interval_level:g} % interval ({method_names([run.interval_method])})"


def method_names(methods: Iterable[str]) -> str:
    """Returns the methods of intervals as a reader knows them, each once.

    >>> method_names(["clopper-pearson", "clopper-pearson"])
    'Clopper-Pearson'
    >>> method_names(["korn-graubard", "clopper-pearson"])
    'Clopper-Pearson; Korn-Graubard where images belong together'
    """
    distinct = set(methods) or {INDEPENDENT}
    names = {
        INDEPENDENT: "Clopper-Pearson",
        CLUSTERED: "Korn-Graubard where images belong together",
    }
    return "; ".join(name for method, name in names.items() if method in distinct)


def model_name(run: RunRecord, model: str) -> str:
    """Returns a model's name for tables; the name of the ensemble includes its alpha."""
    return f"ensemble, alpha {run.alpha:g}" if model == "ensemble" else names_of(run)[model]


def _interval_cell(record: AccuracyRecord | GroupRecord) -> str:
    return accuracy_cell(record.accuracy, record.interval)


def _cell(run: RunRecord, name: str) -> Callable[[str], str]:
    return lambda model: _interval_cell(run.models[model][name])


def _mean_cell(run: RunRecord, sets: tuple[str, ...], diagnosis: DiagnosisRecord | None) -> Callable[[str], str]:
    def cell(model: str) -> str:
        average = None if diagnosis is None else diagnosis.average(model, *sets)
        if average is not None and average.accuracy.interval is not None:
            return accuracy_cell(average.accuracy.value, average.accuracy.interval)
        mean = model_estimate(run, model, sets)
        return accuracy_cell(mean.value, (mean.low, mean.high))

    return cell


def _mean_note(run: RunRecord, diagnosis: DiagnosisRecord | None) -> str:
    if all(len(run.shifts_of(kind)) < 2 for kind in ("natural", "synthetic")):
        return ""
    if diagnosis is None:
        return f"; {MEAN_OF_INTERVALS}"
    units = {"sample": "image"}
    kinds = " or ".join(sorted(units.get(kind, kind) for kind in set(diagnosis.clusters.values())))
    return f"; that of a mean is a bootstrap interval that resamples each {kinds} in all sets together"


def _metric_cell(record: AccuracyRecord, metric: str) -> str:
    value, interval = record.metrics.get(metric), record.metric_intervals.get(metric)
    return _optional(value, per_cent) if value is None or interval is None else accuracy_cell(value, interval)


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return ABSENT if value is None else form(value)


def _sizes(run: RunRecord) -> str:
    sizes = {name: run.models["zero_shot"][name].n for name in run.sets}
    if len(set(sizes.values())) == 1:
        return f"Every set has {sizes[run.reference]:,} images."
    return "Numbers of images: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + "."
