"""The whole diagnosis of a finished run: what it kept, and what models must be run or trained for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

from shiftproof.data.sets import ImageSet, joined, spread_over_classes
from shiftproof.data.suites import ShiftSuite, load_suite
from shiftproof.diagnosis.agreement import diversity_contrast
from shiftproof.diagnosis.baselines import (
    BASELINES,
    BaselineSettings,
    finetune_half,
    half_settings,
    require_tiny,
    require_trained_so,
    train_baseline,
    train_from_scratch,
)
from shiftproof.diagnosis.cam import map_kind
from shiftproof.diagnosis.evidence import Correctness, find_robustness, pairs_of
from shiftproof.diagnosis.layers import measure_layers
from shiftproof.diagnosis.plane import measure_plane
from shiftproof.diagnosis.strong_edge import measure_windows, strong_edge_study
from shiftproof.diagnosis.windows import WindowSettings
from shiftproof.ensembling.path import path_sets
from shiftproof.errors import InputError, require_choice
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import accuracy
from shiftproof.evaluation.predictions import KeptPredictions, open_predictions
from shiftproof.evaluation.robustness import read_baselines
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.records.codec import document
from shiftproof.records.comparisons import LayersRecord, PlaneRecord
from shiftproof.records.diagnosis import HALVES, DiagnosisRecord, DiversityRecord, OtherPathRecord, PairRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.records.windows import StrongEdgeStudy
from shiftproof.report.page import earlier_diagnosis, read_run, render_report
from shiftproof.runs.directory import RunDirectory
from shiftproof.runs.evidence import diagnose_kept, find_path, kept_evidence, resampled_of
from shiftproof.runs.file import RunFile
from shiftproof.runs.pipeline import load_run_suite
from shiftproof.runs.predictions import PathFiles, keep_predictions, kept_logits, require_same_samples
from shiftproof.storage import locked, write_json, write_text
from shiftproof.training.hardware import LoopSettings

PARTS = ("layers", "strong-edge", "halves", "plane", "scratch", "baselines")
_IMAGES = 534  # of a set, where many models or layers see each image: two views of every drawing of the emoji suite
# From random weights, end to end whatever the run's recipe; on as many draws of an embedded suite's training views.
_SCRATCH = FinetuneSettings(epochs=8, lr=2e-3, batch_size=128, warmup_steps=20)
_DRAWS = 8
_LEAST = 4  # images that a debiased CKA needs
Found = TypeVar("Found")


def diagnose_run(
    run: Path,
    parts: Sequence[str] = ("layers",),
    *,
    baselines: Path | None = None,
    others: Sequence[Path] = (),
    device: str = "auto",
) -> DiagnosisRecord:
    """Diagnoses a finished run anew: ``diagnosis.json``, the figures and the report in its directory.

    ``parts`` come to what the kept predictions tell: "layers" is CKA layer by layer on the reference and on every
    natural shift; "strong-edge" pastes windows into images of the reference and looks for them in the models' maps;
    "halves" fine-tunes on two halves of the reference, compares the two, the paper's baseline pair, and walks the path
    between them; "plane" is the error in the plane through them and zero-shot; "scratch" trains two
    networks from random weights, between which there is no path without a barrier; "baselines" trains networks of
    several sizes on the reference alone, for effective robustness. The CSV ``baselines`` (``model,SET,...``) holds
    accuracies in their place; other seeds of a run may take ``RUN/diagnosis/baselines.csv``. What is trained is kept in
    ``RUN/diagnosis`` and not trained again. ``others`` are further fine-tuned classifiers of the same classes, compared
    with zero-shot and with fine-tuned. What an earlier diagnosis of the same models found stays in ``diagnosis.json``
    where it is not asked for again. Raises an InputError before anything is run where a part cannot be done.
    """
    for part in parts:
        require_choice("part", part, PARTS)
    if baselines is not None and "baselines" in parts:
        raise InputError("the part 'baselines' trains what the CSV of baselines holds. Give one of the two.")
    record = read_run(run)
    with locked(run):
        work = _Diagnosis.of(RunDirectory(run), resolve_device(device))
        # What may be refused is looked at before anything takes long.
        points = None if baselines is None else read_baselines(baselines, tuple(work.natural_sets()))
        named = {name: other.in_order_of(work.suite.classes) for name, other in _named(others).items()}
        for model in work.models.values() if "strong-edge" in parts else ():
            map_kind(model)
        if "baselines" in parts:
            require_tiny(work.models["zero_shot"])
        whole = found = work.timed("kept", lambda: work.from_kept(record, points))
        for extended in work.extensions(found, parts, named):
            whole = replace(extended, seconds={**found.seconds, **work.seconds})
            write_json(work.run.diagnosis, document(whole))
        render_report([run])
    return whole


@dataclass(frozen=True)
class _Training:
    """How a classifier is trained, and what does it."""

    settings: FinetuneSettings
    seed: int
    train: Callable[[], Classifier]


@dataclass
class _Diagnosis:
    """One run: its suite, its three models, where its predictions are, and how long each part took."""

    run: RunDirectory
    asked: RunFile
    device: str
    suite: ShiftSuite
    models: Mapping[str, Classifier]
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunDirectory, device: str) -> _Diagnosis:
        """Loads what is needed of a finished run."""
        models = {model: load_classifier(run.classifier(model)) for model in MODELS}
        asked = RunFile.read(run.run_file)
        return cls(run, asked, device, load_run_suite(asked).relabelled(models["zero_shot"].classes), models)

    @property
    def scores(self) -> PathFiles:
        """The compact predictions along the path."""
        return PathFiles(self.run.predictions, path_sets(self.suite))

    def timed(self, part: str, work: Callable[[], Found]) -> Found:
        """Does a part's work and notes how long it took."""
        started = time.perf_counter()
        found = work()
        self.seconds[part] = round(time.perf_counter() - started, 3)
        return found

    def kept(self) -> dict[str, dict[str, KeptPredictions]]:
        """The three models' logits; what an earlier version did not keep is predicted now.

        An InputError where they are not of the suite's images.
        """
        sets = path_sets(self.suite)
        found = {model: {name: self._kept(model, name, images) for name, images in sets.items()} for model in MODELS}
        for of_sets in found.values():
            for name, images in sets.items():
                require_same_samples(of_sets[name].ids, images)
        return found

    def _kept(self, model: str, name: str, images: ImageSet) -> KeptPredictions:
        file = self.run.logits(model, name)
        if not file.is_file():
            keep_predictions(self.models[model], images, file, device=self.device)
        return open_predictions(file)

    def from_kept(self, record: RunRecord, points: Mapping[str, Sequence[float]] | None) -> DiagnosisRecord:
        """What the kept predictions tell, beside what an earlier diagnosis found."""
        kept, earlier = self.kept(), earlier_diagnosis(self.run.root)
        return diagnose_kept(record, self.suite, kept, self.models, self.scores.read, baselines=points, earlier=earlier)

    def compare(self, others: Mapping[str, Classifier]) -> tuple[PairRecord, ...]:
        """Further classifiers with zero-shot and with fine-tuned, on every set."""
        known = self.kept()
        pairs: list[PairRecord] = []
        for other, classifier in others.items():
            for name, images in self.suite.test_sets.items():
                clusters = resampled_of(images).names
                with kept_logits({other: classifier}, images, device=self.device) as logits:
                    for model in ("zero_shot", "fine_tuned"):
                        two = {model: known[model][name], other: logits[other]}
                        pairs += pairs_of(two, name, images.labels, clusters)
        return tuple(pairs)

    def extensions(
        self, found: DiagnosisRecord, parts: Sequence[str], others: Mapping[str, Classifier]
    ) -> Iterator[DiagnosisRecord]:
        """The record, and then again after each part that runs or trains models, so that none is lost to the next."""
        yield found
        if others:
            found = found.with_pairs(self.timed("others", lambda: self.compare(others)))
            yield found
        if "layers" in parts:
            found = replace(found, layers=self.timed("layers", self.layers))
            yield found
        if "strong-edge" in parts:
            found = replace(found, strong_edge=self.timed("strong-edge", self.strong_edge))
            yield found
        if {"halves", "plane"} & set(parts):
            ends = self.timed(
                "halves", lambda: [self.trained(name, self.half(which)) for which, name in enumerate(HALVES)]
            )
            first, second = ends
            pairs, diversity = self.timed("pair of halves", lambda: self.pair_of_halves(first, second))
            path = self.timed(
                "path between halves", lambda: self.path("two fine-tunings, of two halves", first, second)
            )
            found = replace(found.with_pairs(pairs).with_path(path), diversity=diversity)
            yield found
            if "plane" in parts:
                found = replace(found, planes=self.timed("plane", lambda: self.planes(first, second)))
                yield found
        if "scratch" in parts:
            names = ("scratch 1", "scratch 2")
            nets = self.timed("scratch", lambda: [self.trained(name, self.scratch(i)) for i, name in enumerate(names)])
            path = self.timed("path of scratch", lambda: self.path("two networks from random weights", *nets))
            found = found.with_path(path)
            yield found
        if "baselines" in parts:
            points = self.timed("baselines", self.baselines)
            known = Correctness.of(kept_evidence(self.suite, self.kept()))
            yield replace(found, robustness=find_robustness(known, found.reference, points), baselines=points)

    def strong_edge(self) -> StrongEdgeStudy:
        """How much of their maps the three models put into pasted windows, on some images of the reference."""
        images, seed = self.some_images()[self.suite.reference.name], self.asked.seed
        measured = {
            name: measure_windows(
                model, images, WindowSettings(), seed=seed, device=self.device, stage=f"windows {name}"
            )
            for name, model in self.models.items()
        }
        return strong_edge_study(
            measured, tuple(itertools.combinations(MODELS, 2)), set_name=self.suite.reference.name, seed=seed
        )

    def trained(self, name: str, wanted: _Training) -> Classifier:
        """A classifier that the diagnosis trains, or the one that an earlier diagnosis of this run kept."""
        folder = self.run.trained(name)
        if not (folder / "classifier.json").is_file():
            save_classifier(wanted.train(), folder)
        found = load_classifier(folder)
        remedy = "Delete that folder to train it anew."
        require_trained_so(found, self.suite.classes, wanted.settings, wanted.seed, folder, remedy)
        return found

    def half(self, which: int) -> _Training:
        """Fine-tunes as the run did, on one half of the reference."""
        start, asked = self.models["zero_shot"], self.asked
        return _Training(
            half_settings(asked.finetune),
            asked.seed,
            lambda: finetune_half(start, self.suite, asked.finetune, which, seed=asked.seed, device=self.device),
        )

    def scratch(self, number: int) -> _Training:
        """Trains the run's architecture on the reference alone, from random weights; each number has its own."""
        start, seed, asked = self.models["zero_shot"], self.asked.seed + 1000 * (number + 1), self.asked.finetune
        # How the run uses the machine is kept, and so is a smaller batch, which it may need.
        machine = {field.name: getattr(asked, field.name) for field in fields(LoopSettings)}
        settings = replace(_SCRATCH, **machine, batch_size=min(asked.batch_size, _SCRATCH.batch_size))
        return _Training(
            settings,
            seed,
            lambda: train_from_scratch(start, self.many_views(), settings, seed=seed, device=self.device),
        )

    def many_views(self) -> ShiftSuite:
        """The suite; an embedded one with the training views of several seeds: few teach random weights nothing."""
        suite, asked = self.suite, self.asked
        if not isinstance(asked.suite, str):
            return suite
        draws = [load_suite(asked.suite, _DRAWS * asked.seed + number) for number in range(_DRAWS)]
        train = joined([draw.reference.train.relabelled(suite.classes) for draw in draws], "train")
        return replace(suite, reference=replace(suite.reference, train=train))

    def baselines(self) -> dict[str, tuple[float, ...]]:
        """The accuracies on every natural set of models that are trained on the reference only."""
        sets = self.natural_sets()
        lines = [",".join(["model", *sets])]
        for wanted in BASELINES:
            model = self.trained(f"baseline {wanted.name}", self.baseline(wanted))
            logits = {name: predict(model, images, device=self.device).logits for name, images in sets.items()}
            cells = [f"{accuracy(logits[name], images.labels):.6f}" for name, images in sets.items()]
            lines.append(",".join([wanted.name, *cells]))
        table = write_text(self.run.baselines, "\n".join(lines) + "\n")
        return read_baselines(table, tuple(sets))

    def baseline(self, wanted: BaselineSettings) -> _Training:
        """Trains one of the baseline's networks."""
        start, seed = self.models["zero_shot"], self.asked.seed
        return _Training(
            wanted.settings,
            seed,
            lambda: train_baseline(start, self.many_views(), wanted, seed=seed, device=self.device),
        )

    def pair_of_halves(
        self, first: Classifier, second: Classifier
    ) -> tuple[tuple[PairRecord, ...], tuple[DiversityRecord, ...]]:
        """How much the fine-tunings of two halves differ, on every set, and how much more zero-shot and fine-tuned."""
        known, ends = self.kept(), ("zero_shot", "fine_tuned")
        pairs: list[PairRecord] = []
        diversity = []
        for name, images in self.suite.test_sets.items():
            with kept_logits(dict(zip(HALVES, (first, second), strict=True)), images, device=self.device) as logits:
                clusters = resampled_of(images).names
                pairs += pairs_of(logits, name, images.labels, clusters)
                apart = known[ends[0]][name], known[ends[1]][name]
                close = logits[HALVES[0]], logits[HALVES[1]]
                more = diversity_contrast(apart, close, images.labels, clusters)
                diversity.append(DiversityRecord(ends, HALVES, name, more))
        return tuple(pairs), tuple(diversity)

    def path(self, name: str, first: Classifier, second: Classifier) -> OtherPathRecord:
        """Connectivity between two classifiers on the reference and the natural shifts."""
        connectivity, losses, _ = find_path(first, second, self.some_images(), device=self.device)
        return OtherPathRecord(name, connectivity, losses)

    def planes(self, first: Classifier, second: Classifier) -> tuple[PlaneRecord, ...]:
        """The plane through zero-shot and two fine-tunings, on the reference and on the first natural shift."""
        sets = list(self.some_images().items())[:2]
        start = self.models["zero_shot"]
        return tuple(
            replace(measure_plane(start, first, second, images, device=self.device), set=name) for name, images in sets
        )

    def some_images(self) -> dict[str, ImageSet]:
        """Some images of the reference and of every natural shift."""
        return {name: spread_over_classes(images, _IMAGES, 0) for name, images in self.natural_sets().items()}

    def natural_sets(self) -> dict[str, ImageSet]:
        """The reference's test split and the natural shifts."""
        natural = [shift.name for shift in self.suite.shifts if shift.kind == "natural"]
        return {name: self.suite.test_sets[name] for name in (self.suite.reference.name, *natural)}

    def layers(self) -> tuple[LayersRecord, ...]:
        """CKA between the layers of zero-shot and of fine-tuned, on some images of every natural set.

        Debiased: the images may be fewer than a layer's channels, where the biased one is large for unrelated layers.
        """
        ends = self.models["zero_shot"], self.models["fine_tuned"]
        return tuple(
            replace(measure_layers(*ends, images, device=self.device, debiased=True), set=name)
            for name, images in self.some_images().items()
            if len(images) >= _LEAST
        )


def _named(directories: Sequence[Path]) -> dict[str, Classifier]:
    """Classifiers by their directories, as few of their names as tell them apart."""
    found: dict[str, Classifier] = {}
    for directory in (path.absolute() for path in directories):
        name = (
            directory.name if directory.name not in (*MODELS, *found) else f"{directory.parent.name}-{directory.name}"
        )
        if name in found:
            raise InputError(f"two of the other classifiers are called {name}. Rename a directory.")
        found[name] = load_classifier(directory)
    return found
