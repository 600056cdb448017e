"""The diagnosis of a finished run: measurements of its predictions, and the parts that run or train models."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from shiftproof.diagnosis.evidence import pairs_of
from shiftproof.errors import InputError
from shiftproof.evaluation.robustness import read_baselines
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier
from shiftproof.records.codec import document
from shiftproof.records.diagnosis import DiagnosisRecord, PairRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.report.page import earlier_diagnosis, read_run, render_report
from shiftproof.runs.directory import RunDirectory
from shiftproof.runs.evidence import diagnose_predictions
from shiftproof.runs.finished import FinishedRun
from shiftproof.runs.parts import require_parts
from shiftproof.runs.predictions import temporary_logits
from shiftproof.storage import locked, write_json


def diagnose_run(
    run: str | Path,
    parts: Sequence[str] = ("layers",),
    *,
    baselines: str | Path | None = None,
    others: Sequence[Path] = (),
    device: str | torch.device = "auto",
) -> DiagnosisRecord:
    """Diagnoses a finished run and regenerates its ``diagnosis.json``, its figures and its report.

    Agreement, overrides, connectivity, calibration, robustness and movement are always measured, from the predictions
    and weights in the directory. ``parts`` are measured as well and run or train models (``shiftproof.runs.parts``
    lists them): "layers" is CKA layer by layer on the reference and on every natural shift; "strong-edge" pastes
    windows into images of the reference and measures the share of the models' maps on them; "halves" fine-tunes on
    two halves of the reference, compares the two models (the paper's baseline pair) and measures the path between them;
    "plane" is the error in the plane through these two and zero-shot; "scratch" trains two networks from random
    weights and measures the straight path between them; "baselines" trains networks of several sizes on the
    reference alone, for effective robustness. Trained networks are saved in ``RUN/diagnosis`` and not trained again.

    ``baselines`` is a CSV (``model,SET,...``) of accuracies in place of the part "baselines"; other seeds of a run can
    use ``RUN/diagnosis/baselines.csv``. ``others`` are directories of further fine-tuned classifiers of the same
    classes, which are compared with zero-shot and with fine-tuned. Parts measured by an earlier diagnosis of the same
    models stay in ``diagnosis.json`` until they are measured again.

    Raises an InputError, before any model is run, for an unknown part or one that this run does not allow, for a
    damaged table of baselines, for classifiers of other classes, and for a device without the precision of the run.
    """
    baselines = None if baselines is None else Path(baselines)
    run = Path(run)
    chosen = require_parts(parts)
    if baselines is not None and "baselines" in parts:
        raise InputError("the part 'baselines' measures the accuracies that `baselines` names. Give one of the two.")
    record = read_run(run)
    with locked(run):
        finished = FinishedRun.load(RunDirectory(run), resolve_device(device))
        accuracies = None if baselines is None else read_baselines(baselines, tuple(finished.natural_sets()))
        classes = finished.suite.classes
        classifiers = {name: other.in_order_of(classes) for name, other in _load_by_name(others).items()}
        if chosen or classifiers:
            finished.require_runnable()
        for part in chosen:
            part.check(finished)
        steps: dict[str, Callable[[DiagnosisRecord], DiagnosisRecord]] = {}
        if classifiers:
            steps["others"] = functools.partial(_compare, finished, classifiers)
        steps |= {part.name: functools.partial(part.measure, finished) for part in chosen}
        diagnosis = _timed("kept", lambda: _from_predictions(finished, record, accuracies))
        write_json(finished.directory.diagnosis, document(diagnosis))
        for name, extend in steps.items():
            diagnosis = _timed(name, functools.partial(extend, diagnosis))
            # Written after every part, so that none is lost to a failure of the next.
            write_json(finished.directory.diagnosis, document(diagnosis))
        render_report([run])
    return diagnosis


def _from_predictions(
    run: FinishedRun, record: RunRecord, baselines: Mapping[str, Sequence[float]] | None
) -> DiagnosisRecord:
    """Returns the measurements of the predictions, with the parts of an earlier diagnosis of the same models."""
    earlier = earlier_diagnosis(run.directory.root)
    return diagnose_predictions(
        record, run.suite, run.predictions(), run.models, run.scores.read, baselines=baselines, earlier=earlier
    )


def _compare(run: FinishedRun, others: Mapping[str, Classifier], record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds how each of the other classifiers differs from zero-shot and from fine-tuned, on every set."""
    predictions = run.predictions()
    pairs: list[PairRecord] = []
    for other, classifier in others.items():
        for name, images in run.suite.test_sets.items():
            clusters = images.clusters.names
            with temporary_logits({other: classifier}, images, **run.on) as logits:
                for model in ("zero_shot", "fine_tuned"):
                    both = {model: predictions[model][name], other: logits[other]}
                    pairs += pairs_of(both, name, images.labels, clusters)
    return record.with_pairs(pairs)


def _timed(name: str, measure: Callable[[], DiagnosisRecord]) -> DiagnosisRecord:
    """Measures one part and records how many seconds it took."""
    started = time.perf_counter()
    record = measure()
    return replace(record, seconds={**record.seconds, name: round(time.perf_counter() - started, 3)})


def _load_by_name(directories: Sequence[Path]) -> dict[str, Classifier]:
    """Loads classifiers and names each by its directory, preceded by the parent directory if the name is taken."""
    classifiers: dict[str, Classifier] = {}
    for directory in (path.absolute() for path in directories):
        taken = directory.name in (*MODELS, *classifiers)
        name = f"{directory.parent.name}-{directory.name}" if taken else directory.name
        if name in classifiers:
            raise InputError(f"two of the other classifiers are called {name}. Rename a directory.")
        classifiers[name] = load_classifier(directory)
    return classifiers
