"""The parts of a diagnosis that run or train models, in the order in which they are measured.

``PARTS`` is the only list of them, from which the choices, the help and the errors of ``shiftproof diagnose run`` are
made. A part imports the modules that it needs when it is measured, so that listing the parts does not load torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from shiftproof.errors import require_choice
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord, DiversityRecord, OtherPathRecord, PairRecord
from shiftproof.records.runs import MODELS
from shiftproof.storage import write_text

if TYPE_CHECKING:
    from shiftproof.models.classifier import Classifier
    from shiftproof.runs.finished import FinishedRun

_MIN_IMAGES = 4  # a debiased CKA is undefined for fewer


@dataclass(frozen=True)
class Part:
    """One part: its name, one line of help, and the function that adds it to the diagnosis of a run.

    ``needs`` names the parts that are measured before it. ``check`` raises an InputError if the part cannot be measured
    for a run; it is called before anything that takes long.
    """

    name: str
    summary: str
    measure: Callable[[FinishedRun, DiagnosisRecord], DiagnosisRecord]
    needs: tuple[str, ...] = ()
    check: Callable[[FinishedRun], object] = lambda run: None


def require_parts(names: Sequence[str]) -> tuple[Part, ...]:
    """Returns the named parts and those that they need, in the order of ``PARTS``.

    Raises an InputError for a name that is not one of them.

    >>> [part.name for part in require_parts(["plane", "layers"])]
    ['layers', 'halves', 'plane']
    """
    known = {part.name: part for part in PARTS}
    for name in names:
        require_choice("part", name, tuple(known))
    chosen = {*names, *(need for name in names for need in known[name].needs)}
    return tuple(part for part in PARTS if part.name in chosen)


def _measure_layers(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds the CKA between the layers of zero-shot and fine-tuned on every natural set.

    It is debiased, since the images may be fewer than a layer's channels, and the biased CKA is then large for
    unrelated layers as well.
    """
    from shiftproof.diagnosis.layers import measure_layers

    ends = run.models["zero_shot"], run.models["fine_tuned"]
    layers = tuple(
        replace(measure_layers(*ends, images, debiased=True, **run.on), set=name)
        for name, images in run.sampled_sets().items()
        if len(images) >= _MIN_IMAGES
    )
    return replace(record, layers=layers)


def _check_strong_edge(run: FinishedRun) -> None:
    from shiftproof.diagnosis.cam import map_kind

    for model in run.models.values():
        map_kind(model)


def _measure_strong_edge(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds the share of the three models' maps that falls on windows pasted into images of the reference."""
    from shiftproof.diagnosis.strong_edge import measure_windows, strong_edge_study
    from shiftproof.diagnosis.windows import WindowSettings

    reference, seed = run.suite.reference.name, run.run_file.seed
    images = run.sampled_sets()[reference]
    measured = {
        name: measure_windows(model, images, WindowSettings(), seed=seed, stage=f"windows {name}", **run.on)
        for name, model in run.models.items()
    }
    pairs = tuple(itertools.combinations(MODELS, 2))
    return replace(record, strong_edge=strong_edge_study(measured, pairs, set_name=reference, seed=seed))


def _measure_halves(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds how models fine-tuned on two halves of the reference differ, the paper's baseline pair, and their path."""
    from shiftproof.diagnosis.agreement import diversity_contrast
    from shiftproof.diagnosis.evidence import pairs_of
    from shiftproof.runs.networks import half_networks
    from shiftproof.runs.predictions import temporary_logits

    first, second = half_networks(run)
    predictions, ends = run.predictions(), ("zero_shot", "fine_tuned")
    pairs: list[PairRecord] = []
    diversity: list[DiversityRecord] = []
    for name, images in run.suite.test_sets.items():
        clusters = images.clusters.names
        with temporary_logits(dict(zip(HALVES, (first, second), strict=True)), images, **run.on) as logits:
            pairs += pairs_of(logits, name, images.labels, clusters)
            apart = predictions[ends[0]][name], predictions[ends[1]][name]
            close = logits[HALVES[0]], logits[HALVES[1]]
            difference = diversity_contrast(apart, close, images.labels, clusters)
            diversity.append(DiversityRecord(ends, HALVES, name, difference))
    path = _measure_path(run, "two fine-tunings, of two halves", first, second)
    return replace(record.with_pairs(pairs).with_path(path), diversity=tuple(diversity))


def _measure_plane(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds the error in the plane through zero-shot and the halves on the reference and the first natural shift."""
    from shiftproof.diagnosis.plane import measure_plane
    from shiftproof.runs.networks import half_networks

    corners = run.models["zero_shot"], *half_networks(run)
    planes = tuple(
        replace(measure_plane(*corners, images, **run.on), set=name)
        for name, images in list(run.sampled_sets().items())[:2]
    )
    return replace(record, planes=planes)


def _measure_scratch(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds the path between two networks that were trained from random weights."""
    from shiftproof.runs.networks import scratch_networks

    return record.with_path(_measure_path(run, "two networks from random weights", *scratch_networks(run)))


def _measure_path(run: FinishedRun, name: str, first: Classifier, second: Classifier) -> OtherPathRecord:
    from shiftproof.runs.evidence import find_path

    connectivity, losses, _ = find_path(first, second, run.sampled_sets(), **run.on)
    return OtherPathRecord(name, connectivity, losses)


def _check_baselines(run: FinishedRun) -> None:
    from shiftproof.diagnosis.baselines import require_tiny

    require_tiny(run.models["zero_shot"])


def _measure_baselines(run: FinishedRun, record: DiagnosisRecord) -> DiagnosisRecord:
    """Adds effective robustness over networks of several sizes that are trained on the reference alone."""
    from shiftproof.diagnosis.evidence import Correctness, find_robustness
    from shiftproof.evaluation.inference import predict
    from shiftproof.evaluation.metrics import accuracy
    from shiftproof.evaluation.robustness import read_baselines
    from shiftproof.runs.evidence import collect_evidence
    from shiftproof.runs.networks import baseline_networks

    sets = run.natural_sets()
    lines = [",".join(["model", *sets])]
    for name, network in baseline_networks(run).items():
        accuracies = [accuracy(predict(network, images, **run.on).logits, images.labels) for images in sets.values()]
        lines.append(",".join([name, *(f"{value:.6f}" for value in accuracies)]))
    table = write_text(run.directory.baselines, "\n".join(lines) + "\n")
    baselines = read_baselines(table, tuple(sets))
    correctness = Correctness.of(collect_evidence(run.suite, run.predictions()))
    robustness = find_robustness(correctness, record.reference, baselines)
    return replace(record, robustness=robustness, baselines=baselines)


PARTS = (
    Part("layers", "CKA layer by layer on the reference and on every natural shift", _measure_layers),
    Part(
        "strong-edge",
        "how much of the models' maps falls on windows pasted into images of the reference",
        _measure_strong_edge,
        check=_check_strong_edge,
    ),
    Part(
        "halves",
        "two fine-tuned models, each on half of the reference, how they differ, and the path between them",
        _measure_halves,
    ),
    Part("plane", "the error in the plane through zero-shot and the two halves", _measure_plane, needs=("halves",)),
    Part(
        "scratch",
        "two networks trained from random weights, and the straight path between them",
        _measure_scratch,
    ),
    Part(
        "baselines",
        "networks of several sizes trained on the reference alone, for effective robustness",
        _measure_baselines,
        check=_check_baselines,
    ),
)
