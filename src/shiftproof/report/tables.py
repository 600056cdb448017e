"""A run's records as tables of text: accuracies in per cent, differences in points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from shiftproof.errors import InputError
from shiftproof.records import AccuracyRecord, GroupRecord, MeanRecord, PathPoint, PathRecord, RulesRecord, RunRecord
from shiftproof.report.comparisons import (
    MODEL_NAMES,
    headline_name,
    headline_shifts,
    per_cent,
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


def accuracy_table(run: RunRecord) -> Table:
    """The three models on the reference, on every shift, and on the means over each kind of shift."""
    columns: list[tuple[str, Callable[[str], str]]] = [(reference_name(run.reference), _cell(run, run.reference))]
    for kind in ("natural", "synthetic"):
        shifts = run.shifts_of(kind)
        columns += [(f"{name} ({kind})", _cell(run, name)) for name in shifts]
        if len(shifts) > 1:
            columns.append((f"mean of {kind}", _mean_cell(run, shifts)))
    rows = tuple((_model_name(run, model), *(cell(model) for _, cell in columns)) for model in MODEL_NAMES)
    return Table(
        "Accuracy of the three models, in per cent",
        ("model", *(name for name, _ in columns)),
        rows,
        f"In brackets the {interval_name(run)}. Means are means of their columns and carry no interval. "
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
    best = (f"{per_cent(run.path.at(oracle[name]).accuracy[name])} at {oracle[name]:g}" for name in run.sets)
    rows.append(("oracle (read the shift)", ABSENT, *best, *((ABSENT,) if with_mean else ())))
    note = (
        f"The rule “{run.alpha_rule}” chose alpha {run.alpha:g} and saw no shift. The oracle row says which "
        "alpha would have been best on each test set; it looked at the very numbers it maximises, so it is "
        "for reading only and not a result. On the reference it read the test split."
    )
    mean = (f"mean of {run.kinds[shifts[0]]}",) if with_mean else ()
    return Table("The alpha path: accuracy in per cent", (*header, *mean), tuple(rows), note)


def sweep_table(path: PathRecord) -> Table:
    """Every alpha of a path that belongs to no run: validation, reference and shifts with their intervals."""
    sets = (path.reference, *path.shifts)
    rows = tuple(
        (
            f"{point.alpha:g}",
            per_cent(point.validation),
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
            cells = [_against_half(record.accuracy[name], record.difference[name]) for name in sets]
            cells += [_against_half(record.mean, record.mean_difference)] if with_mean else []
            name = f"{record.rule} ({rules.tolerance:g})" if record.rule == "tolerance" else record.rule
            rows.append((name, f"{record.alpha:g}", *cells))
    best = [(rules.rule("oracle", name), name) for name in sets]
    cells = [_against_half(r.accuracy[name], r.difference[name], f" at {r.alpha:g}") for r, name in best]
    if with_mean:
        of_mean = rules.rule("oracle", "mean")
        cells.append(_against_half(of_mean.mean, of_mean.mean_difference, f" at {of_mean.alpha:g}"))
    rows.append(("oracle (reads the shift; for the report only)", ABSENT, *cells))
    header = ("rule", "alpha", reference_name(rules.reference), *rules.shifts)
    mean = (f"mean of {len(rules.averaged)} shifts",) if with_mean else ()
    note = (
        f"In brackets the difference to alpha 0.5 in points and its paired {100 * rules.level:g} % bootstrap interval. "
        "The rules read the validation split at most. An oracle took the alpha that is best on the very column that it "
        "stands in (on the reference: on its test split), so it bounds what a rule could gain and is no result."
    )
    return Table("Choosing alpha: accuracy in per cent", (*header, *mean), tuple(rows), note)


def seeds_table(runs: Sequence[RunRecord]) -> Table:
    """Several runs of one suite: every seed of every model, and the range over the seeds.

    All seeds are reported and none is picked; differences are to the fine-tuned model of the same run.
    """
    first = _require_one_suite(runs)
    rows: list[tuple[str, ...]] = []
    for model in MODEL_NAMES:
        numbers = [_seed_numbers(run, model) for run in runs]
        for run, values in zip(runs, numbers, strict=True):
            rows.append((_model_name(run, model), str(run.seed), *_seed_cells(values)))
        if len(runs) > 1:
            ranges = (_range(column, FORMATS[i]) for i, column in enumerate(zip(*numbers, strict=True)))
            rows.append((MODEL_NAMES[model], "range", *ranges))
    header = ("model", "seed", "reference", headline_name(first))
    note = f"All {len(runs)} seeds are shown, none is picked; the range is from the lowest to the highest seed."
    if len({run.seed for run in runs}) < len(runs):
        note += " Some seeds repeat: those runs differ in other settings, see their sections."
    differences = ("to fine-tuned (reference, points)", "to fine-tuned (shifts, points)")
    return Table("Every seed: accuracy in per cent", (*header, *differences), tuple(rows), note)


def class_table(run: RunRecord, records: Iterable[AccuracyRecord], count: int = 10) -> Table | None:
    """The classes that fine-tuning moved most on the headline shifts; None without per-class accuracies.

    ``records`` are the lines of ``results.jsonl``; of the same model and set the last one counts.
    """
    shifts = headline_shifts(run)
    latest = {(record.model, record.set): record.per_class for record in records if record.model in MODEL_NAMES}
    if not shifts or any(not latest.get((model, name)) for model in MODEL_NAMES for name in shifts):
        return None
    known = sorted(set.intersection(*(set(latest[model, name]) for model in MODEL_NAMES for name in shifts)))
    means = {
        name: [sum(latest[model, shift][name] for shift in shifts) / len(shifts) for model in MODEL_NAMES]
        for name in known
    }
    moved = sorted(known, key=lambda name: (-abs(means[name][1] - means[name][0]), name))[:count]
    rows = tuple((name, *map(per_cent, means[name]), signed_points(means[name][1] - means[name][0])) for name in moved)
    note = (
        f"Mean over the headline shifts ({', '.join(shifts)}). These classes are shown because they moved most; "
        "each rests on few images."
    )
    header = ("class", *(_model_name(run, model) for model in MODEL_NAMES), "fine-tuned minus zero-shot")
    return Table("The classes that fine-tuning moved most, in per cent", header, rows, note)


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


def _model_name(run: RunRecord, model: str) -> str:
    return f"ensemble, alpha {run.alpha:g}" if model == "ensemble" else MODEL_NAMES[model]


def _interval_cell(record: AccuracyRecord | GroupRecord) -> str:
    return _with_interval(record.accuracy, record.interval)


def _with_interval(accuracy: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"{per_cent(accuracy)} ({per_cent(low)}–{per_cent(high)})"


def _against_half(accuracy: float | None, difference: MeanRecord | None, at: str = "") -> str:
    shown = f"{_optional(accuracy, per_cent)}{at}"
    if difference is None or difference.value is None or difference.interval is None:
        return shown
    low, high = map(signed_points, difference.interval)
    return f"{shown} ({signed_points(difference.value)}; {low} to {high})"


def _cell(run: RunRecord, name: str) -> Callable[[str], str]:
    return lambda model: _interval_cell(run.models[model][name])


def _mean_cell(run: RunRecord, sets: tuple[str, ...]) -> Callable[[str], str]:
    return lambda model: _optional(run.mean_accuracy(model, sets), per_cent)


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
    values = [point.validation, *(point.accuracy[name] for name in run.sets)]
    if averaged:
        values.append(sum(point.accuracy[name] for name in averaged) / len(averaged))
    return (label, *map(per_cent, values))


def _require_one_suite(runs: Sequence[RunRecord]) -> RunRecord:
    if not runs:
        raise InputError("there are no runs to compare; give at least one run directory.")
    suites = {(run.suite, run.reference, run.shifts) for run in runs}
    if len(suites) > 1:
        listing = "; ".join(sorted(f"{suite} with {', '.join(shifts)}" for suite, _, shifts in suites))
        raise InputError(f"the runs are of different suites ({listing}). Report each suite by itself.")
    return runs[0]


FORMATS: tuple[Callable[[float], str], ...] = (per_cent, per_cent, signed_points, signed_points)


def _seed_numbers(run: RunRecord, model: str) -> tuple[float | None, ...]:
    sets = (run.reference,), headline_shifts(run)
    own = [run.mean_accuracy(model, names) for names in sets]
    tuned = [run.mean_accuracy("fine_tuned", names) for names in sets]
    if model == "fine_tuned":
        return (*own, None, None)
    changes = (None if a is None or b is None else a - b for a, b in zip(own, tuned, strict=True))
    return (*own, *changes)


def _seed_cells(values: tuple[float | None, ...]) -> tuple[str, ...]:
    return tuple(_optional(value, form) for value, form in zip(values, FORMATS, strict=True))


def _range(column: tuple[float | None, ...], form: Callable[[float], str]) -> str:
    values = [value for value in column if value is not None]
    return f"{form(min(values))} to {form(max(values))}" if values else ABSENT
