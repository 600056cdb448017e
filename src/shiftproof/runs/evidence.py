"""The quick diagnoses of a run, from its saved predictions alone; no model is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shiftproof import progress
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import SHIFT_KINDS, VALIDATION, ShiftSuite
from shiftproof.diagnosis.connectivity import connectivity_of, measure_connectivity, measure_loss_connectivity
from shiftproof.diagnosis.evidence import (
    Correctness,
    SetEvidence,
    find_averages,
    find_by_class,
    find_confidence,
    find_differences,
    find_overrides,
    find_pairs,
    find_robustness,
    find_temperatures,
)
from shiftproof.diagnosis.movement import measure_movement
from shiftproof.ensembling.path import sweep_scores
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.evaluation.metrics import Scores
from shiftproof.evaluation.predictions import StoredPredictions
from shiftproof.models.classifier import Classifier
from shiftproof.models.identity import fingerprint, has_fingerprint
from shiftproof.records.comparisons import ConnectivityRecord, LossRecord
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.runs import RunRecord


def find_path(
    first: Classifier,
    second: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: int = 11,
    *,
    device: str = "cpu",
    precision: str = "float32",
) -> tuple[tuple[ConnectivityRecord, ...], tuple[LossRecord, ...], dict[str, str]]:
    """Measures the path between two classifiers on labelled sets: accuracy, loss, and what the intervals resample."""
    along = sweep_scores(first, second, sets, alphas, device=device, precision=precision)
    resampled = {name: images.clusters for name, images in sets.items()}
    clusters = {name: units.names for name, units in resampled.items() if units.names is not None}
    right = {a: {name: scores[name].prediction == sets[name].labels for name in sets} for a, scores in along.items()}
    losses = {a: {name: -scores[name].log_probability for name in sets} for a, scores in along.items()}
    kinds = {name: units.kind for name, units in resampled.items()}
    return connectivity_of(right, clusters), measure_loss_connectivity(losses, clusters), kinds


def diagnose_predictions(
    run: RunRecord,
    suite: ShiftSuite,
    predictions: Mapping[str, Mapping[str, StoredPredictions]],
    classifiers: Mapping[str, Classifier],
    read_scores: Callable[[float, str], Scores],
    *,
    baselines: Mapping[str, Sequence[float]] | None = None,
    earlier: DiagnosisRecord | None = None,
) -> DiagnosisRecord:
    """Measures everything that follows from a run's predictions and weights, without running a model.

    ``predictions[model][set]`` are the logits on every set, validation included; ``read_scores`` returns the compact
    scores of an alpha on a set. ``baselines`` are the accuracies by set of models trained on the reference only. All
    other parts of an ``earlier`` diagnosis of the same models on the same sets are carried over.
    """
    if earlier is not None and not _is_of(earlier, classifiers, run):
        earlier = None
    if earlier is not None and baselines is None:
        baselines = earlier.baselines
    evidence = collect_evidence(suite, predictions, run.path.alphas, read_scores)
    validation = _evidence(VALIDATION, suite.reference.validation, predictions, {})
    measures = _path_measures(run, evidence) | _prediction_measures(run, evidence, validation, baselines)
    ends = (classifiers[model].state_dict() for model in ("zero_shot", "fine_tuned"))
    measures["movement"] = lambda: measure_movement(*ends)
    measured = {}
    for done, (name, measure) in enumerate(measures.items(), 1):
        measured[name] = measure()
        progress.report("diagnose", done, len(measures))
    resampled = {name: images.clusters for name, images in suite.test_sets.items()}
    record = DiagnosisRecord(
        suite=run.suite,
        reference=run.reference,
        shifts=run.shifts,
        kinds=run.kinds,
        seed=run.seed,
        alpha=run.alpha,
        level=LEVEL,
        clusters={name: units.kind for name, units in resampled.items()},
        cluster_counts={name: units.count or len(suite.test_sets[name]) for name, units in resampled.items()},
        models={model: fingerprint(classifier) for model, classifier in classifiers.items()},
        baselines={name: tuple(accuracies) for name, accuracies in (baselines or {}).items()},
        **measured,
    )
    return record if earlier is None else record.beside(earlier)


def _is_of(earlier: DiagnosisRecord, classifiers: Mapping[str, Classifier], run: RunRecord) -> bool:
    """Whether an earlier diagnosis is of the same models, by fingerprints of either form, and of the same sets."""
    return (
        earlier.models.keys() == classifiers.keys()
        and all(has_fingerprint(classifier, earlier.models[model]) for model, classifier in classifiers.items())
        and earlier.sets == (run.reference, *run.shifts)
    )


def _path_measures(run: RunRecord, evidence: Sequence[SetEvidence]) -> dict[str, Callable[[], Any]]:
    """The functions that measure the fields about the alpha path; a path without its ends has no line between them."""
    right = {a: {each.name: each.along[a].prediction == each.labels for each in evidence} for a in run.path.alphas}
    losses = {a: {each.name: -each.along[a].log_probability for each in evidence} for a in run.path.alphas}
    clusters = {each.name: each.clusters for each in evidence if each.clusters is not None}
    if not {0.0, 1.0} <= set(run.path.alphas):
        return {"connectivity": tuple, "losses": tuple}
    return {
        "connectivity": lambda: measure_connectivity(run.path, right, clusters),
        "losses": lambda: measure_loss_connectivity(losses, clusters),
    }


def _prediction_measures(
    run: RunRecord,
    evidence: Sequence[SetEvidence],
    validation: SetEvidence,
    baselines: Mapping[str, Sequence[float]] | None,
) -> dict[str, Callable[[], Any]]:
    """The functions that measure the fields about the three models' predictions."""
    correctness = Correctness.of(evidence)
    averaged = tuple(sets for kind in SHIFT_KINDS if len(sets := run.shifts_of(kind)) > 1)
    return {
        "pairs": lambda: find_pairs(evidence),
        "overrides": lambda: find_overrides(evidence),
        "differences": lambda: find_differences(correctness, averaged),
        "averages": lambda: find_averages(correctness, averaged),
        "by_class": lambda: find_by_class(evidence),
        "confidence": lambda: find_confidence(evidence),
        "temperatures": lambda: find_temperatures(evidence, validation),
        "robustness": lambda: find_robustness(correctness, run.reference, baselines),
    }


def collect_evidence(
    suite: ShiftSuite,
    predictions: Mapping[str, Mapping[str, StoredPredictions]],
    alphas: Sequence[float] = (),
    read_scores: Callable[[float, str], Scores] | None = None,
) -> list[SetEvidence]:
    """Returns the saved predictions on the reference's test split and on every shift."""
    along = {
        name: {alpha: read_scores(alpha, name) for alpha in alphas} if read_scores else {} for name in suite.test_sets
    }
    return [_evidence(name, images, predictions, along[name]) for name, images in suite.test_sets.items()]


def _evidence(
    name: str,
    images: ImageSet,
    predictions: Mapping[str, Mapping[str, StoredPredictions]],
    along: Mapping[float, Scores],
) -> SetEvidence:
    logits = {model: by_set[name] for model, by_set in predictions.items()}
    return SetEvidence(name, images.labels, logits, along, images.groups, images.clusters.names)
