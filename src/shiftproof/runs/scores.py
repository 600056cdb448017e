"""Scores of a classifier on named sets, and the files that they are written to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from shiftproof.data.sets import ImageSet
from shiftproof.evaluation.inference import predict_batches, predictions_of
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.predictions import Predictions
from shiftproof.evaluation.scoring import Scored, evaluate_set, measure_variants
from shiftproof.evaluation.sharing import Processes
from shiftproof.models.classifier import Classifier
from shiftproof.models.identity import fingerprint
from shiftproof.models.precision import resolved_precision
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.codec import to_json
from shiftproof.runs.benchmarks import benchmark_record, write_benchmark
from shiftproof.runs.directory import OutputDirectory
from shiftproof.storage import write_text


def benchmark_writer(classifier: Classifier, model: str, folder: Path) -> Callable[[str, Predictions], object]:
    """A function that writes the result of a classifier on a named set in the form of CLIP_benchmark."""
    identity = fingerprint(classifier)

    def write(name: str, predictions: Predictions) -> None:
        record = benchmark_record(classifier, identity, model, name, predictions.logits, predictions.labels)
        write_benchmark(record, folder)

    return write


def score(
    classifier: Classifier,
    sets: Mapping[str, ImageSet],
    model: str,
    device: str,
    out: Path | None,
    *,
    precision: str = "float32",
    reference: str | None = None,
    together: bool = False,
    keep: Callable[[str, Predictions], object] | None = None,
) -> tuple[AccuracyRecord, ...]:
    """The accuracy of a classifier on every set, as records that name it ``model``; its encoder runs in ``precision``.

    Sets with only some of the classes are compared with the set named ``reference``, if it comes before them. With
    ``out``, the records are also written to ``results.jsonl`` in that directory. ``keep`` is called with the name and
    the predictions of every set. With ``together``, all processes of a job share the work and get the records, and the
    main one writes.
    """
    precision, processes = resolved_precision(precision, device), Processes(together)
    records = []
    compared: Scored | None = None
    for name, images in sets.items():
        stage = f"evaluate {name}"
        run = predict_batches(classifier, images, device=device, precision=precision, stage=stage, together=together)
        blocks = list(run)
        if not processes.leads:
            continue
        predictions = predictions_of(images, np.concatenate(blocks))
        if keep is not None:
            keep(name, predictions)
        scored = Scored(images, predictions)
        compared = scored if name == reference else compared
        record = evaluate_set(
            scores(predictions.logits, predictions.labels),
            images,
            model=model,
            alpha=classifier.alpha,
            set_name=name,
        )
        records.append(replace(record, variants=measure_variants(scored, compared), precision=precision))
    if out is not None and processes.leads:
        write_results(records, out)
    return processes.broadcast(tuple(records))


def write_results(records: Sequence[AccuracyRecord], out: Path) -> None:
    """Writes the records to ``results.jsonl`` in a directory, one a line."""
    write_text(OutputDirectory(out).results, "".join(json.dumps(to_json(record)) + "\n" for record in records))
