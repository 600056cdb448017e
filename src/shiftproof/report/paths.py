"""Tables of the alpha path and of the rules that choose alpha."""

from __future__ import annotations

from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.paths import PathPoint, PathRecord, same_alpha
from shiftproof.records.rules import RulesRecord
from shiftproof.records.runs import RunRecord
from shiftproof.report.accuracy import interval_name, method_names
from shiftproof.report.comparisons import MEAN_OF_INTERVALS, headline_shifts, names_of, point_estimate
from shiftproof.report.tables import ABSENT, Table, accuracy_cell, per_cent, reference_name, signed_points


def path_table(run: RunRecord) -> Table:
    """Returns the accuracies (in per cent) at every alpha of a run's path.

    The chosen alpha is marked. The last row has the oracle alphas, each of which was chosen on the test set of its
    column.
    """
    shifts = headline_shifts(run)
    with_mean = len(shifts) > 1
    header = ("alpha", "validation", reference_name(run.reference), *run.shifts)
    rows = [_path_row(run, point, shifts if with_mean else ()) for point in run.path.points]
    oracle = run.path.oracle()
    best = (_oracle_cell(run.path.at(oracle[name]), name) for name in run.sets)
    rows.append(("oracle (chosen on the test set)", ABSENT, *best, *((ABSENT,) if with_mean else ())))
    note = (
        f"The rule “{run.alpha_rule}” chose alpha {run.alpha:g} without using any shift. The oracle row shows which "
        "alpha would have been best on each test set (on the reference: on its test split). That alpha was chosen with "
        "the very numbers that it maximises, so the row is for information only and is not a result. "
        f"The {interval_name(run)} is given in brackets"
        f"{f'; {MEAN_OF_INTERVALS}' if with_mean else ''}."
    )
    mean = (f"mean of {run.kinds[shifts[0]]}",) if with_mean else ()
    return Table("The alpha path: accuracy in per cent", (*header, *mean), tuple(rows), note)


def sweep_table(path: PathRecord) -> Table:
    """Returns the accuracies (in per cent) at every alpha of a path that does not belong to a run."""
    sets = (path.reference, *path.shifts)
    rows = tuple(
        (
            f"{point.alpha:g}",
            _validation_cell(point),
            *(accuracy_cell(point.accuracy[name], point.interval[name]) for name in sets),
        )
        for point in path.points
    )
    header = ("alpha", "validation", reference_name(path.reference), *path.shifts)
    methods = method_names(method for point in path.points for method in point.interval_method.values())
    note = f"The 95 % interval ({methods}) is given in brackets."
    return Table("The alpha path: accuracy in per cent", header, rows, note)


def rules_table(rules: RulesRecord) -> Table:
    """Returns the alpha that each rule chooses, and its accuracy minus that of alpha 0.5 (in points).

    The last row has the oracles.
    """
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
    rows.append(("oracle (chosen on the test set)", ABSENT, *cells))
    header = ("rule", "alpha", reference_name(rules.reference), *rules.shifts)
    mean = (f"mean of {len(rules.averaged)} shifts",) if with_mean else ()
    note = (
        f"The paired {100 * rules.level:g} % bootstrap interval is given in brackets. The rules use at most the "
        "validation split. The oracle of a column is the alpha that is best in that column (on the reference: on its "
        "test split), so it bounds what a rule could gain and is not a result. The table of every alpha has the "
        "accuracies themselves."
    )
    return Table("Choosing alpha: accuracy minus that of alpha 0.5, in points", (*header, *mean), tuple(rows), note)


def _against_half(difference: MeanRecord | None, at: str = "") -> str:
    if difference is None or difference.value is None:
        return ABSENT
    if difference.interval is None:
        return f"{signed_points(difference.value)}{at} (no interval)"
    low, high = map(signed_points, difference.interval)
    return f"{signed_points(difference.value)}{at} ({low} to {high})"


def _validation_cell(point: PathPoint) -> str:
    if point.validation_interval is None:  # a path written by an older version
        return f"{per_cent(point.validation)} (no interval)"
    return accuracy_cell(point.validation, point.validation_interval)


def _oracle_cell(point: PathPoint, name: str) -> str:
    head, _, tail = accuracy_cell(point.accuracy[name], point.interval[name]).partition(" ")
    return f"{head} at {point.alpha:g} {tail}"


def _path_row(run: RunRecord, point: PathPoint, averaged: tuple[str, ...]) -> tuple[str, ...]:
    names = {0.0: names_of(run)["zero_shot"], 1.0: names_of(run)["fine_tuned"]}
    marks = [names[point.alpha]] if point.alpha in names else []
    if same_alpha(point.alpha, run.alpha):
        marks.append("chosen")
    label = f"{point.alpha:g} ({', '.join(marks)})" if marks else f"{point.alpha:g}"
    cells = [
        _validation_cell(point),
        *(accuracy_cell(point.accuracy[name], point.interval[name]) for name in run.sets),
    ]
    if averaged:
        mean = point_estimate(point, averaged)
        cells.append(accuracy_cell(mean.value, (mean.low, mean.high)))
    return (label, *cells)
