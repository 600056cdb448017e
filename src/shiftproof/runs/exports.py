"""Exports of classifier directories, with a model card that states what is known about their accuracy."""

from __future__ import annotations

from pathlib import Path

from shiftproof.errors import InputError, listed
from shiftproof.models.directories import load_classifier, read_card
from shiftproof.models.export.card import KnownResults, write_model_card
from shiftproof.models.export.exporting import Export, export_classifier
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.runs import MODELS
from shiftproof.records.summaries import results_from_lines, run_from_summary
from shiftproof.runs.directory import OutputDirectory, RunDirectory
from shiftproof.storage import read_json


def run_classifier_export(
    directory: str | Path, to: str, out: str | Path, *, results: str | Path | None = None, overwrite: bool = False
) -> Export:
    """Exports a classifier directory, and writes its model card with the accuracies that are known.

    ``results`` is a ``results.jsonl``, or a directory with one; without it, those of the run or the command that wrote
    the classifier are used, if there are any. Raises what ``export_classifier`` raises, and an InputError for damaged
    results or for results of several models.
    """
    directory = Path(directory)
    classifier = load_classifier(directory)
    known = known_results(directory) if results is None else KnownResults(_read_results(Path(results), directory.name))
    export = export_classifier(classifier, to, out, overwrite=overwrite)
    write_model_card(classifier, export, known)
    return export


def known_results(directory: Path) -> KnownResults:
    """The results that stand in or above a classifier directory, none if there are no such files."""
    run = RunDirectory(directory.parent)
    if directory.name in MODELS and run.summary.is_file():
        summary = run_from_summary(read_json(run.summary))
        by_set = summary.models[directory.name]
        tuned = run.classifier("fine_tuned")
        return KnownResults(
            records=tuple(by_set[name] for name in summary.sets),
            reference=summary.reference,
            kinds=summary.kinds,
            alpha_rule=summary.alpha_rule if directory.name == "ensemble" else None,
            training=read_card(tuned).training if directory.name == "ensemble" else {},
        )
    file = OutputDirectory(directory).results
    return KnownResults(_read_results(file, directory.name)) if file.is_file() else KnownResults()


def _read_results(path: Path, name: str) -> tuple[AccuracyRecord, ...]:
    """The records of one model in ``results.jsonl``, of the one that is called ``name`` if there are several."""
    path = OutputDirectory(path).results if path.is_dir() else path
    try:
        records = results_from_lines(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist. Evaluate the classifier with `out`, and name that directory."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}). Evaluate the classifier again.") from error
    models = list(dict.fromkeys(record.model for record in records))
    if len(models) > 1 and name not in models:
        raise InputError(
            f"{path} has results of several models ({listed(models)}), none of which is named {name!r}. "
            "Evaluate the classifier, and name that result."
        )
    return tuple(record for record in records if len(models) == 1 or record.model == name)
