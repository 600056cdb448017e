"""Several runs of one suite, seed by seed, in a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shiftproof.errors import InputError
from shiftproof.records.comparisons import Measured
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import RunRecord
from shiftproof.report.accuracy import model_name
from shiftproof.report.comparisons import MODEL_NAMES, headline_name, headline_shifts, model_estimate
from shiftproof.report.tables import ABSENT, Table, per_cent, signed_points, with_interval


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
            rows.append((model_name(run, model), str(run.seed), *_seed_cells(values)))
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
