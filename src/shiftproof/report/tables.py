"""A run's records as tables of text: accuracies in per cent, differences in points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shiftproof.errors import InputError
from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.records.accuracy import AccuracyRecord, GroupRecord, MeanRecord
from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.records.runs import RunRecord
from shiftproof.report.comparisons import (
    MODEL_NAMES,
    headline_name,
    headline_shifts,
    model_estimate,
    per_cent,
    point_estimate,
    signed_points,
)

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """Text in rows under one header; the first column names the row, the note explains what is read."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


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
    rows = tuple((_model_name(run, model), *(cell(model) for _, cell in columns)) for model in MODEL_NAMES)
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
    header = ("set", "group", "images", *(_model_name(run, model) for model in MODEL_NAMES))
    note = f"In brackets the {interval_name(run)}. A group has fewer images than its set, hence wider intervals."
    return Table("Accuracy by group, in per cent", header, tuple(rows), note)


def path_table(run: RunRecord) -> Table:
    """Every alpha of the path, the chosen one marked, and last the oracle alphas, which read the shifts."""
    shifts = headline_shifts(run)
    with_mean = len(shifts) > 1
    header = ("alpha", "validation", reference_name(run.reference), *run.shifts)
    rows = [_path_row(run, point, shifts if with_mean else ()) for point in run.path.points]
    oracle = run.path.oracle()
    best = (_oracle_cell(run.path.at(oracle[name]), name) for name in run.sets)
    rows.append(("oracle (read the shift)", ABSENT, *best, *((ABSENT,) if with_mean else ())))
    note = (
        f"The rule “{run.alpha_rule}” chose alpha {run.alpha:g} and saw no shift. The oracle row says which "
        "alpha would have been best on each test set; it looked at the very numbers it maximises, so it is "
        f"for reading only and not a result. On the reference it read the test split. In brackets the "
        f"{interval_name(run)}"
        f"{'; that of the mean is propagated from its sets, taken as independent' if with_mean else ''}."
    )
    mean = (f"mean of {run.kinds[shifts[0]]}",) if with_mean else ()
    return Table("The alpha path: accuracy in per cent", (*header, *mean), tuple(rows), note)


def sweep_table(path: PathRecord) -> Table:
    """Every alpha of a path that belongs to no run: validation, reference and shifts with their intervals."""
    sets = (path.reference, *path.shifts)
    rows = tuple(
        (
            f"{point.alpha:g}",
            _validation_cell(point),
            *(_with_interval(point.accuracy[name], point.interval[name]) for name in sets),
        )
        for point in path.points
    )
    header = ("alpha", "validation", reference_name(path.reference), *path.shifts)
    return Table("The alpha path: accuracy in per cent", header, rows, "In brackets the 95 % Clopper-Pearson interval.")


def rules_table(rules: RulesRecord) -> Table:
    """The rules that choose alpha: what each gives and how far it is from alpha 0.5; last the oracles, marked."""
    sets = (rules.reference, *rules.shifts)
    with_mean = len(rules.averaged) > 1
    rows = []
    for record in rules.rules:
        if not record.oracle:
            cells = [_against_half(record.difference[name]) for name in sets]
            cells += [_against_half(record.mean_difference)] if with_mean else []
            name = f"{record.rule} ({rules.tolerance:g})" if record.rule == "tolerance" else record.rule
            rows.append((name, f"{record.alpha:g}", *cells))
    best = [(rules.rule("oracle", name), name) for name in sets]
    cells = [_against_half(r.difference[name], f" at {r.alpha:g}") for r, name in best]
    if with_mean:
        of_mean = rules.rule("oracle", "mean")
        cells.append(_against_half(of_mean.mean_difference, f" at {of_mean.alpha:g}"))
    rows.append(("oracle (reads the shift; for the report only)", ABSENT, *cells))
    header = ("rule", "alpha", reference_name(rules.reference), *rules.shifts)
    mean = (f"mean of {len(rules.averaged)} shifts",) if with_mean else ()
    note = (
        f"In brackets the paired {100 * rules.level:g} % bootstrap interval. The rules read the validation split at "
        f"most. "
        "An oracle took the alpha that is best on the very column that it stands in (on the reference: on its test "
        "split), "
        "so it bounds what a rule could gain and is no result. The accuracies themselves stand in the table of every "
        "alpha."
    )
    return Table("Choosing alpha: accuracy minus that of alpha 0.5, in points", (*header, *mean), tuple(rows), note)


def seeds_table(runs: Sequence[RunRecord], found: Sequence[DiagnosisRecord | None] = ()) -> Table:
    """Several runs of one suite: every seed of every model, and the range over the seeds.

    All seeds are reported and none is picked. ``found`` are the runs' diagnoses: with all of them there, the paired
    differences to the fine-tuned model of the same run are told as well.
    """
    first = _require_one_suite(runs)
    known = [own for own in found if own is not None]
    differing = len(known) == len(runs)
    rows: list[tuple[str, ...]] = []
    for model in MODEL_NAMES:
        numbers = [
            _seed_numbers(run, model, own)
            for run, own in zip(runs, known if differing else [None] * len(runs), strict=True)
        ]
        for run, values in zip(runs, numbers, strict=True):
            rows.append((_model_name(run, model), str(run.seed), *_seed_cells(values)))
        if len(runs) > 1:
            ranges = (_range(column, FORMATS[i]) for i, column in enumerate(zip(*numbers, strict=True)))
            rows.append((MODEL_NAMES[model], "range", *ranges))
    header = ("model", "seed", "reference", headline_name(first))
    note = (
        f"All {len(runs)} seeds are shown, none is picked; the range is from the lowest to the highest seed. In "
        f"brackets "
        "95 % intervals."
    )
    if len({run.seed for run in runs}) < len(runs):
        note += " Some seeds repeat: those runs differ in other settings, see their sections."
    differences = ("to fine-tuned (reference, points)", "to fine-tuned (shifts, points)") if differing else ()
    return Table("Every seed: accuracy in per cent", (*header, *differences), tuple(rows), note)


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
    rows = tuple((name, *(_with_interval(*found) for found in pooled[name])) for name in moved)
    note = (
        f"Over the images of the headline shifts ({', '.join(shifts)}), with Clopper-Pearson intervals. These classes "
        f"are "
        "shown because they moved most, so that they moved less than it seems; each rests on few images."
    )
    header = ("class", *(_model_name(run, model) for model in MODEL_NAMES))
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


def transposed(table: Table) -> Table:
    """Rows to columns, for a console that is narrower than a page."""
    lines = [table.header, *table.rows]
    header, *rows = zip(*lines, strict=True)
    return Table(table.title, ("set", *header[1:]), tuple(rows), table.note)


def reference_name(name: str) -> str:
    """A reference's name with the word beside it, unless that is its name.

    >>> reference_name("photo"), reference_name("reference")
    ('photo (reference)', 'reference')
    """
    return name if name == "reference" else f"{name} (reference)"


def interval_name(run: RunRecord) -> str:
    """What the intervals are: ``95 % interval (Clopper-Pearson)``."""
    return f"{100 * run.interval_level:g} % interval ({run.interval_method.title()})"


def with_interval(found: Measured | None, form: Callable[[float], str] = per_cent) -> str:
    """A number with its interval in brackets; a dash where there is none of it.

    >>> with_interval(Measured(0.5, (0.41, 0.58))), with_interval(None)
    ('50.0 (41.0–58.0)', '–')
    """
    if found is None:
        return ABSENT
    if found.interval is None:
        return f"{form(found.value)} (no interval)"
    low, high = map(form, found.interval)
    return f"{form(found.value)} ({low}{'–' if form is per_cent else ' to '}{high})"


def _model_name(run: RunRecord, model: str) -> str:
    return f"ensemble, alpha {run.alpha:g}" if model == "ensemble" else MODEL_NAMES[model]


def _interval_cell(record: AccuracyRecord | GroupRecord) -> str:
    return _with_interval(record.accuracy, record.interval)


def _with_interval(accuracy: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{per_cent(accuracy)} ({per_cent(low)}–{per_cent(high)})"


def _against_half(difference: MeanRecord | None, at: str = "") -> str:
    if difference is None or difference.value is None:
        return ABSENT
    if difference.interval is None:
        return f"{signed_points(difference.value)}{at} (no interval)"
    low, high = map(signed_points, difference.interval)
    return f"{signed_points(difference.value)}{at} ({low} to {high})"


def _cell(run: RunRecord, name: str) -> Callable[[str], str]:
    return lambda model: _interval_cell(run.models[model][name])


def _mean_cell(run: RunRecord, sets: tuple[str, ...], found: DiagnosisRecord | None) -> Callable[[str], str]:
    def cell(model: str) -> str:
        average = None if found is None else found.average(model, *sets)
        if average is not None and average.accuracy.interval is not None:
            return _with_interval(average.accuracy.value, average.accuracy.interval)
        mean = model_estimate(run, model, sets)
        return _with_interval(mean.value, (mean.low, mean.high))

    return cell


def _mean_note(found: DiagnosisRecord | None) -> str:
    if found is None:
        return "is propagated from its columns', which are taken as independent"
    kinds = " or ".join(sorted(set(found.clusters.values())))
    return f"is a bootstrap interval that resamples every {kinds} in all sets at once"


def _validation_cell(point: PathPoint) -> str:
    if point.validation_interval is None:  # a path of an older version
        return f"{per_cent(point.validation)} (no interval)"
    return _with_interval(point.validation, point.validation_interval)


def _oracle_cell(point: PathPoint, name: str) -> str:
    head, _, tail = _with_interval(point.accuracy[name], point.interval[name]).partition(" ")
    return f"{head} at {point.alpha:g} {tail}"


def _optional(value: float | None, form: Callable[[float], str]) -> str:
    return ABSENT if value is None else form(value)


def _sizes(run: RunRecord) -> str:
    sizes = {name: run.models["zero_shot"][name].n for name in run.sets}
    if len(set(sizes.values())) == 1:
        return f"Every set has {sizes[run.reference]:,} images."
    return "Images: " + ", ".join(f"{name} {n:,}" for name, n in sizes.items()) + "."


def _path_row(run: RunRecord, point: PathPoint, averaged: tuple[str, ...]) -> tuple[str, ...]:
    names = {0.0: "zero-shot", 1.0: "fine-tuned"}
    marks = [names[point.alpha]] if point.alpha in names else []
    if abs(point.alpha - run.alpha) < 1e-9:
        marks.append("chosen")
    label = f"{point.alpha:g} ({', '.join(marks)})" if marks else f"{point.alpha:g}"
    cells = [
        _validation_cell(point),
        *(_with_interval(point.accuracy[name], point.interval[name]) for name in run.sets),
    ]
    if averaged:
        mean = point_estimate(point, averaged)
        cells.append(_with_interval(mean.value, (mean.low, mean.high)))
    return (label, *cells)


def _require_one_suite(runs: Sequence[RunRecord]) -> RunRecord:
    if not runs:
        raise InputError("there are no runs to compare; give at least one run directory.")
    suites = {(run.suite, run.reference, run.shifts) for run in runs}
    if len(suites) > 1:
        listing = "; ".join(sorted(f"{suite} with {', '.join(shifts)}" for suite, _, shifts in suites))
        raise InputError(f"the runs are of different suites ({listing}). Report each suite by itself.")
    return runs[0]


FORMATS: tuple[Callable[[float], str], ...] = (per_cent, per_cent, signed_points, signed_points)


def _seed_numbers(run: RunRecord, model: str, found: DiagnosisRecord | None) -> tuple[Measured | None, ...]:
    """Accuracy on the reference and on the headline shifts and, of a diagnosed run, their differences to fine-tuned."""
    sets = (run.reference,), headline_shifts(run)
    own = [_seed_accuracy(run, model, names, found) for names in sets]
    if found is None:
        return tuple(own)
    return (*own, *(_to_fine_tuned(model, names, found) for names in sets))


def _seed_accuracy(
    run: RunRecord, model: str, names: tuple[str, ...], found: DiagnosisRecord | None
) -> Measured | None:
    if not names:
        return None
    average = None if found is None else found.average(model, *names)
    if average is not None:
        return average.accuracy
    estimate = model_estimate(run, model, names)
    return Measured(estimate.value, (estimate.low, estimate.high))


def _to_fine_tuned(model: str, names: tuple[str, ...], found: DiagnosisRecord) -> Measured | None:
    if model == "ensemble":
        record = found.difference("ensemble", "fine_tuned", *names)
        return None if record is None else record.difference
    record = found.difference("fine_tuned", "zero_shot", *names) if model == "zero_shot" else None
    return None if record is None else record.difference.negative()


def _seed_cells(values: tuple[Measured | None, ...]) -> tuple[str, ...]:
    return tuple(with_interval(value, form) for value, form in zip(values, FORMATS, strict=False))


def _range(column: tuple[Measured | None, ...], form: Callable[[float], str]) -> str:
    values = [found.value for found in column if found is not None]
    return f"{form(min(values))} to {form(max(values))}" if values else ABSENT
