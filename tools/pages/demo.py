"""The tables of the demo."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from pages.markdown import OutdatedError, accuracy_cell, markdown, span, stacked
from pages.sources import Sources
from shiftproof.records.diagnosis import AverageRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.accuracy import method_names

NAMES = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "WiSE-FT, alpha 0.5"}
_KINDS = ("natural", "synthetic")


def summary_table(sources: Sources) -> str:
    """One row per model: every seed's accuracy on the reference and on the mean of each kind of shift."""
    pairs = list(_runs_with_averages(sources))
    run = pairs[0][0]
    natural, synthetic = (len(run.shifts_of(kind)) for kind in _KINDS)
    header = ("model", "reference", f"mean of the {natural} natural shifts", f"mean of the {synthetic} corruptions")
    rows = []
    for model in MODELS:
        cells = [[_cell(run, averages, model, kind) for run, averages in pairs] for kind in (None, *_KINDS)]
        rows.append((NAMES[model], *(stacked(dict.fromkeys(lines)) for lines in cells)))
    seeds = " / ".join(str(run.seed) for run, _ in pairs)
    method = method_names([run.models["ensemble"][run.reference].interval_method])
    title = (
        f"Accuracy in per cent with 95 % intervals, one line per seed ({seeds}) where they differ. "
        f"The intervals of the means resample drawings; those on the reference are {method}."
    )
    return f"{title}\n\n{markdown(header, rows)}\n\n{conclusion([run for run, _ in pairs])}"


_Averages = Sequence[AverageRecord]


def _runs_with_averages(sources: Sources) -> Iterator[tuple[RunRecord, _Averages]]:
    """The runs with their means over shifts; OutdatedError if the means are of another run."""
    for run, averages in zip(sources.demo(), sources.averages(), strict=True):
        for model in MODELS:
            for kind in _KINDS:
                mean = run.mean_accuracy(model, run.shifts_of(kind))
                if mean is None or abs(_average(run, averages, model, kind).accuracy.value - mean) > 1e-9:
                    raise OutdatedError(f"the means of seed {run.seed} are of another run than the summary; take both")
        yield run, averages


def _average(run: RunRecord, averages: _Averages, model: str, kind: str) -> AverageRecord:
    for average in averages:
        if (average.model, average.sets) == (model, run.shifts_of(kind)):
            return average
    raise OutdatedError(f"the results of seed {run.seed} have no mean of the {kind} shifts")


def _cell(run: RunRecord, averages: _Averages, model: str, kind: str | None) -> str:
    if kind is None:
        record = run.models[model][run.reference]
        return accuracy_cell(record.accuracy, record.interval)
    measured = _average(run, averages, model, kind).accuracy
    if measured.interval is None:
        raise OutdatedError(f"the mean of the {kind} shifts has no interval in the results of seed {run.seed}")
    return accuracy_cell(measured.value, measured.interval)


def conclusion(runs: Sequence[RunRecord]) -> str:
    """What the ensemble keeps and recovers, on the mean of the seeds."""

    def mean(model: str, kind: str | None) -> float:
        sets = [(run.reference,) if kind is None else run.shifts_of(kind) for run in runs]
        return statistics.mean(run.mean_accuracy(model, some) or 0 for run, some in zip(runs, sets, strict=True))

    zero, tuned, ensemble = ([mean(model, kind) for kind in (None, "natural")] for model in MODELS)
    ahead = zero[1] - ensemble[1]
    return (
        f"On the mean of the {len(runs)} seeds, the ensemble keeps "
        f"{100 * (ensemble[0] - zero[0]) / (tuned[0] - zero[0]):.0f} % of what fine-tuning gained on the reference and "
        f"recovers {100 * (ensemble[1] - tuned[1]) / (zero[1] - tuned[1]):.0f} % of what it lost under the natural "
        f"shifts, where the zero-shot model is {100 * abs(ahead):.1f} points {'ahead' if ahead > 0 else 'behind'}."
    )


def demo_tables(sources: Sources) -> str:
    """Every seed of the demo in per cent: all sets, and seen and withheld renditions separately."""
    runs = sources.demo()
    natural = runs[0].shifts_of("natural")
    rows = []
    for run in runs:
        synthetic = run.shifts_of("synthetic")
        for model in MODELS:
            sets = [run.models[model][name] for name in (run.reference, *natural)]
            cells = [accuracy_cell(r.accuracy, r.interval) for r in sets]
            means = [f"{100 * (run.mean_accuracy(model, some) or 0):.1f}" for some in (natural, synthetic)]
            rows.append((str(run.seed), NAMES[model], *cells, *means))
    header = ("seed", "model", "reference", *natural, f"mean of the {len(natural)}", "mean of corruptions")
    minutes = span((sum(run.seconds.values()) / 60 for run in runs), "{:.0f}".format)
    return "\n\n".join(
        [
            f"Accuracies in per cent with 95 % intervals ({_methods(runs)}). A run took {minutes} minutes.",
            markdown(header, rows),
            conclusion(runs),
            *_renditions(runs),
        ]
    )


def _renditions(runs: Sequence[RunRecord]) -> list[str]:
    """The table of seen and withheld renditions, and how far the models get on the latter."""
    names = [name for name in runs[0].shifts_of("natural") if runs[0].models["ensemble"][name].groups]
    if not names:
        return []
    rows = [
        (str(run.seed), NAMES[model], *(_groups(run, model, name) for name in names))
        for run in runs
        for model in MODELS
    ]
    best = {
        name: max(run.models[model][name].groups["withheld"].accuracy for run in runs for model in MODELS)
        for name in names
    }
    reached = ", ".join(f"{100 * accuracy:.1f} % on {name}" for name, accuracy in best.items())
    return [
        "Seen / withheld renditions:",
        markdown(("seed", "model", *names), rows),
        f"On withheld renditions, no model with any seed exceeds {reached}.",
    ]


def _groups(run: RunRecord, model: str, name: str) -> str:
    groups = run.models[model][name].groups
    return " / ".join(accuracy_cell(groups[g].accuracy, groups[g].interval) for g in ("seen", "withheld"))


def _methods(runs: Sequence[RunRecord]) -> str:
    return method_names(
        record.interval_method for run in runs for sets in run.models.values() for record in sets.values()
    )
