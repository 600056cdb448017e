"""The report: a single HTML page that works offline and contains all tables, figures and thumbnails."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from shiftproof.errors import InputError, require_between
from shiftproof.records.accuracy import AccuracyRecord, GroupRecord
from shiftproof.records.codec import from_json
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.records.summaries import results_from_lines, run_from_summary
from shiftproof.report.accuracy import (
    accuracy_table,
    class_table,
    group_table,
    interval_name,
    run_scoring_table,
)
from shiftproof.report.comparisons import MEAN_OF_INTERVALS, START, headline_name, headline_shifts, names_of
from shiftproof.report.diagnoses import diagnosis_figures, diagnosis_tables, explanation
from shiftproof.report.figures import figure_bytes, path_figure, shift_figure
from shiftproof.report.paths import path_table, rules_table
from shiftproof.report.samples import Sample, data_uri, read_samples
from shiftproof.report.seeds import seeds_table
from shiftproof.report.tables import Table
from shiftproof.report.verdicts import verdict
from shiftproof.storage import read_json, write_atomically, write_text

_HEADS = {
    "zero-shot": "a zero-shot head",
    "probe": "a linear probe",
    "own": "the head that it was pretrained with",
}


@dataclass(frozen=True)
class _Section:
    """One run, as the template shows it."""

    name: str
    run: RunRecord
    model_names: Mapping[str, str]
    start: str
    verdict: str
    accuracy: Table
    groups: Table | None
    scoring: Table | None
    classes: Table | None
    path: Table
    rules: Table | None
    images: dict[str, str]
    explained: tuple[tuple[str, str, str], ...]  # (image, alternative text, caption)
    diagnosis: tuple[Table, ...]
    samples: dict[str, list[Sample]]
    mapped: bool
    headline: str
    many: bool


def render_report(run_directories: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the report of one run, or of several runs (seeds) of one suite, and returns the path of the page.

    For one run, the figures go to ``figures/`` in its directory, and the page to ``report.html`` there or to ``out``.
    For several runs, one page is written to ``out`` and the run directories are not changed. ``out`` is an ``.html``
    file or a directory. The report is made from each run's ``summary.json`` and, if they exist, ``rules.json``,
    ``diagnosis.json``, ``results.jsonl`` and ``samples/samples.json``. The same runs give the same bytes.

    Raises an InputError if there is no run, if a file is missing or damaged, if the runs are of different suites, or
    if there are several runs and no ``out``.
    """
    several = [run_directories] if isinstance(run_directories, str | Path) else run_directories
    directories = [Path(directory) for directory in several]
    target = _target(directories, None if out is None else Path(out))
    runs = [read_run(directory) for directory in directories]
    diagnoses = [read_diagnosis(directory) for directory in directories]
    seeds = seeds_table(runs, diagnoses) if len(runs) > 1 else None
    figures = [_figures(run, diagnosis) for run, diagnosis in zip(runs, diagnoses, strict=True)]
    repeated = len({run.seed for run in runs}) < len(runs)
    sections = [_section(*parts, repeated) for parts in zip(directories, runs, diagnoses, figures, strict=True)]
    # Everything is read and drawn before anything is written.
    if len(runs) == 1:
        folder = directories[0] / "figures"
        for name, content in figures[0].items():
            write_atomically(folder / name, functools.partial(_fill, content=content))
        for path in folder.glob("*.png"):
            if path.name not in figures[0] and explanation(path.stem):  # left by an earlier diagnosis
                path.unlink()
    return write_text(target, _html(sections, seeds))


def read_run(directory: Path) -> RunRecord:
    """Reads the record in a run directory's ``summary.json``. Raises an InputError if it is missing or damaged."""
    path = directory / "summary.json"
    if not path.exists():
        raise InputError(
            f"{path} does not exist; a run writes it when it is finished. Check the directory, or finish the run "
            "with `shiftproof run run.yaml`."
        )
    value = read_json(path)
    try:
        run = run_from_summary(value)
        _require_whole(run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, InputError) else repr(error)
        raise InputError(f"{path} is damaged or was written by another version ({reason}). Repeat the run.") from error
    return run


def read_diagnosis(directory: Path) -> DiagnosisRecord | None:
    """Reads the record in a run directory's ``diagnosis.json``, or returns None if there is none.

    Raises an InputError if the file is damaged.
    """
    path = directory / "diagnosis.json"
    if not path.exists():
        return None
    value = read_json(path)
    try:
        return from_json(DiagnosisRecord, value, "the diagnosis")
    except (InputError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged or was written by another version ({error}). Regenerate it with `shiftproof diagnose "
            f"run {directory}`, or delete it to make the report without diagnoses."
        ) from error


def earlier_diagnosis(directory: Path) -> DiagnosisRecord | None:
    """Reads the record in a run directory's ``diagnosis.json``, or returns None if it is missing or damaged."""
    try:
        return read_diagnosis(directory)
    except InputError:
        return None


def _target(directories: Sequence[Path], out: Path | None) -> Path:
    if not directories:
        raise InputError("there is no run to report on; give at least one run directory.")
    if out is None:
        if len(directories) > 1:
            raise InputError(
                f"the report of {len(directories)} runs belongs to none of their directories. "
                "Set the file to write, as in `out=report.html`."
            )
        return directories[0] / "report.html"
    out = Path(out)
    return out if out.suffix.lower() in (".html", ".htm") else out / "report.html"


def _require_whole(run: RunRecord) -> None:
    """Raises a KeyError, TypeError or InputError if an accuracy that the page shows is missing or is not a fraction."""
    for name in run.sets:
        numbers: list[float] = []
        for record in (run.models[model][name] for model in MODELS):
            entries: list[AccuracyRecord | GroupRecord] = [record, *record.groups.values()]
            for entry in entries:
                numbers += [entry.accuracy, *entry.interval]
        for point in run.path.points:
            numbers += [point.validation, point.accuracy[name], *point.interval[name]]
        for number in numbers:
            require_between(f"an accuracy on {name}", number, 0.0, 1.0)
    if not run.path.points:
        raise InputError("the alpha path is empty")
    run.shifts_of("natural")


def _read_results(directory: Path) -> list[AccuracyRecord]:
    path = directory / "results.jsonl"
    if not path.exists():
        return []
    try:
        return results_from_lines(path.read_text(encoding="utf-8"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}). Repeat the run, or delete the file to make the report without the "
            "table of classes."
        ) from error


def _read_rules(directory: Path) -> Table | None:
    path = directory / "rules.json"
    if not path.exists():
        return None
    value = read_json(path)
    try:
        return rules_table(from_json(RulesRecord, value, "the comparison of rules"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}). Repeat the run, or delete the file to make the report without the "
            "table of rules."
        ) from error


def start_sentence(run: RunRecord) -> str:
    """Says which model a run started from and with which head; empty for a run of an earlier version."""
    if not run.start:
        return ""
    called = ", which this page calls the start" if names_of(run)["zero_shot"] == START else ""
    return f"{run.start['model']} with {_HEADS.get(run.start['head'], 'the head of a classifier directory')}{called}"


def _figures(run: RunRecord, diagnosis: DiagnosisRecord | None) -> dict[str, bytes]:
    """Returns the content of the figures by the names of their files."""
    images = {"path.png": path_figure(run), "shifts.png": shift_figure(run)}
    if diagnosis is not None:
        images |= diagnosis_figures(diagnosis, names_of(run)["zero_shot"])
    return {name: figure_bytes(figure) for name, figure in images.items() if figure is not None}


def _section(
    directory: Path, run: RunRecord, diagnosis: DiagnosisRecord | None, images: dict[str, bytes], repeated: bool
) -> _Section:
    shifts, samples, names = headline_shifts(run), read_samples(directory), names_of(run)
    shown = {Path(name).stem: data_uri(content) or "" for name, content in images.items()}
    where = f" ({directory.resolve().name})" if repeated else ""
    return _Section(
        name=f"Seed {run.seed}{where}",
        run=run,
        model_names=names,
        start=start_sentence(run),
        verdict=verdict(run, diagnosis),
        accuracy=accuracy_table(run, diagnosis),
        groups=group_table(run),
        scoring=run_scoring_table(run),
        classes=class_table(run, _read_results(directory)),
        path=path_table(run),
        rules=_read_rules(directory),
        images=shown,
        explained=tuple(
            (shown[stem], *texts) for stem in shown if (texts := explanation(stem, names["zero_shot"])) is not None
        ),
        diagnosis=() if diagnosis is None else diagnosis_tables(diagnosis, names["zero_shot"]),
        samples=_by_set(run, samples),
        mapped=any(sample.maps for sample in samples),
        headline=headline_name(run),
        many=len(shifts) > 1,
    )


def _by_set(run: RunRecord, samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Groups the samples by set in the run's order of sets; sets that the run does not have come last."""
    names = dict.fromkeys([*run.sets, *(sample.set for sample in samples)])
    groups = {name: [sample for sample in samples if sample.set == name] for name in names}
    return {name: group for name, group in groups.items() if group}


def _html(sections: Sequence[_Section], seeds: Table | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("shiftproof", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    first = sections[0].run
    return environment.get_template("page.html.j2").render(
        sections=sections,
        seeds=seeds,
        suite=first.suite,
        interval=interval_name(first),
        start=names_of(first)["zero_shot"],
        mean_of_intervals=MEAN_OF_INTERVALS,
        emoji=first.suite.startswith("emoji"),
    )


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)
