"""Results of runs and evaluations as files of LAION's CLIP_benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.evaluation.benchmark_metrics import measure_benchmark
from shiftproof.evaluation.blocks import Logits
from shiftproof.evaluation.predictions import open_predictions
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import Card, read_card
from shiftproof.models.names import architecture_and_weights
from shiftproof.records.benchmarks import BenchmarkRecord
from shiftproof.records.codec import to_json
from shiftproof.records.runs import MODELS
from shiftproof.records.summaries import run_from_summary
from shiftproof.runs.directory import RunDirectory
from shiftproof.storage import read_json, write_json

_TASKS = {"zero-shot": "zeroshot_classification"}
_OTHER_TASK = "classification"  # CLIP_benchmark has no such task, so no table mixes these results with zero-shot ones


def benchmark_record(
    card: Card | Classifier,
    identity: str,
    model: str,
    dataset: str,
    logits: Logits,
    labels: NDArray[np.integer],
) -> BenchmarkRecord:
    """The result of a classifier, called ``model``, on a data set from its (N, K) logits and the (N,) labels.

    ``identity`` is the classifier's fingerprint.
    """
    architecture, weights = architecture_and_weights(card.source)
    zero_shot = card.head in _TASKS
    alpha = "" if card.alpha is None else f"-alpha-{card.alpha:g}"
    return BenchmarkRecord(
        dataset=dataset,
        model=architecture,
        pretrained=weights if zero_shot else f"{weights}-{model}{alpha}",
        task=_TASKS.get(card.head, _OTHER_TASK),
        metrics=measure_benchmark(logits, labels),
        classifier=identity,
    )


def write_benchmark(record: BenchmarkRecord, folder: Path) -> Path:
    """Writes one result to a file of its own in a folder, and returns its path.

    An earlier result of the same classifier is replaced. Where another classifier has the file, the name of the weights
    is followed by the beginning of the fingerprint, in the file's name and in its content.
    """
    path = folder / record.file_name
    if path.is_file() and _classifier_in(path) != record.classifier:
        record = record.distinguished()
        path = folder / record.file_name
    write_json(path, to_json(record))
    return path


def _classifier_in(path: Path) -> str | None:
    stored = read_json(path)
    return stored.get("classifier") if isinstance(stored, dict) else None


def benchmark_run(directory: str | Path, out: str | Path) -> list[Path]:
    """Writes the results of a run's three models on the reference and on every shift, one file for each.

    Raises an InputError if the run has not finished or a file of its predictions is missing.
    """
    run, out = RunDirectory(Path(directory)), Path(out)
    summary = run_from_summary(read_json(run.summary))
    files = []
    for model in MODELS:
        card = read_card(run.classifier(model))
        for name in summary.sets:
            predictions = open_predictions(run.logits(model, name))
            record = benchmark_record(card, card.fingerprint, model, name, predictions, predictions.labels)
            files.append(write_benchmark(record, out))
    return files
