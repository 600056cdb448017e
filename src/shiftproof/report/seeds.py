"""A table of several runs of one suite, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shiftproof.errors import InputError
from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.accuracy import model_name
from shiftproof.report.comparisons import headline_name, headline_shifts, model_estimate, names_of
from shiftproof.report.tables import ABSENT, Table, per_cent, signed_points, with_interval


def seeds_table(runs: Sequence[RunRecord], diagnoses: Sequence[DiagnosisRecord | None] = ()) -> Table:
    """Returns the accuracies (in per cent) of every seed of every model, and the range over the seeds.

    All seeds are reported and none is selected. ``diagnoses`` are the diagnoses of the runs. If no run lacks one, the
    paired differences (in points) to the fine-tuned model of the same run are shown as well.

    Raises an InputError if there are no runs, or if they are of different suites.
    """
    first = _require_one_suite(runs)
    known = [diagnosis for diagnosis in diagnoses if diagnosis is not None]
    all_diagnosed = len(known) == len(runs)
    rows: list[tuple[str, ...]] = []
    for model in MODELS:
        numbers = [
            _seed_numbers(run, model, diagnosis)
            for run, diagnosis in zip(runs, known if all_diagnosed else [None] * len(runs), strict=True)
        ]
        for run, values in zip(runs, numbers, strict=True):
            rows.append((model_name(run, model), str(run.seed), *_seed_cells(values)))
        if len(runs) > 1:
            ranges = (_range(column, FORMATS[i]) for i, column in enumerate(zip(*numbers, strict=True)))
            rows.append((names_of(first)[model], "range", *ranges))
    header = ("model", "seed", "reference", headline_name(first))
    note = (
        f"All {len(runs)} seeds are shown and none is selected. The range is from the lowest to the highest seed. "
        "95 % intervals are given in brackets."
    )
    if len({run.seed for run in runs}) < len(runs):
        note += " Some runs have the same seed; they differ in other settings, which their sections show."
    differences = ("to fine-tuned (reference, points)", "to fine-tuned (shifts, points)") if all_diagnosed else ()
    return Table("Every seed: accuracy in per cent", (*header, *differences), tuple(rows), note)


def _require_one_suite(runs: Sequence[RunRecord]) -> RunRecord:
    if not runs:
        raise InputError("there are no runs to compare; give at least one run directory.")
    suites = {(run.suite, run.reference, run.shifts) for run in runs}
    if len(suites) > 1:
        listing = "; ".join(sorted(f"{suite} with {', '.join(shifts)}" for suite, _, shifts in suites))
        raise InputError(f"the runs are of different suites ({listing}). Make a separate report for each suite.")
    return runs[0]


FORMATS: tuple[Callable[[float], str], ...] = (per_cent, per_cent, signed_points, signed_points)


def _seed_numbers(run: RunRecord, model: str, diagnosis: DiagnosisRecord | None) -> tuple[Measured | None, ...]:
    """Returns the accuracies on the reference and the headline shifts, and with a diagnosis those minus fine-tuned."""
    sets = (run.reference,), headline_shifts(run)
    accuracies = [_seed_accuracy(run, model, names, diagnosis) for names in sets]
    if diagnosis is None:
        return tuple(accuracies)
    return (*accuracies, *(_to_fine_tuned(model, names, diagnosis) for names in sets))


def _seed_accuracy(
    run: RunRecord, model: str, names: tuple[str, ...], diagnosis: DiagnosisRecord | None
) -> Measured | None:
    if not names:
        return None
    average = None if diagnosis is None else diagnosis.average(model, *names)
    if average is not None:
        return average.accuracy
    estimate = model_estimate(run, model, names)
    return Measured(estimate.value, (estimate.low, estimate.high))


def _to_fine_tuned(model: str, names: tuple[str, ...], diagnosis: DiagnosisRecord) -> Measured | None:
    if model == "ensemble":
        record = diagnosis.difference("ensemble", "fine_tuned", *names)
        return None if record is None else record.difference
    record = diagnosis.difference("fine_tuned", "zero_shot", *names) if model == "zero_shot" else None
    return None if record is None else record.difference.negative()


def _seed_cells(values: tuple[Measured | None, ...]) -> tuple[str, ...]:
    return tuple(with_interval(value, form) for value, form in zip(values, FORMATS, strict=False))


def _range(column: tuple[Measured | None, ...], form: Callable[[float], str]) -> str:
    values = [measured.value for measured in column if measured is not None]
    return f"{form(min(values))} to {form(max(values))}" if values else ABSENT
