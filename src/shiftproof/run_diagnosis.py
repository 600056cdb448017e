"""The whole diagnosis of a finished run: what it kept, and what models must be run or trained for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from shiftproof.data.sets import ImageSet, spread_over_classes
from shiftproof.data.suites import ShiftSuite
from shiftproof.diagnosis.agreement import measure_agreement
from shiftproof.diagnosis.cka import measure_cka
from shiftproof.diagnosis.layers import measure_layers
from shiftproof.diagnosis_records import LayersRecord
from shiftproof.ensembling.path import path_sets
from shiftproof.errors import InputError, require_choice
from shiftproof.evaluation.kept import KeptPredictions, open_predictions
from shiftproof.evaluation.predictions import predict
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import load_classifier
from shiftproof.pipeline import PathFiles, choose_device, keep_predictions, require_same_samples, suite_of
from shiftproof.quick_diagnosis import diagnose_kept, resampled_of
from shiftproof.records import MODELS
from shiftproof.report.page import read_run, render_report
from shiftproof.run_diagnosis_records import DiagnosisRecord, PairRecord
from shiftproof.runfile import RunFile
from shiftproof.storage import locked, write_json

PARTS = ("layers",)
_IMAGES = 534  # of a set, where many models or layers see each image: two views of every drawing of the emoji suite
Found = TypeVar("Found")


def diagnose_run(
    run: Path, parts: Sequence[str] = PARTS, *, others: Sequence[Path] = (), device: str = "auto"
) -> DiagnosisRecord:
    """Diagnoses a finished run anew: ``diagnosis.json``, the figures and the report in its directory.

    ``parts`` come to what the kept predictions tell: "layers" is CKA layer by layer on the reference and on every
    natural shift. ``others`` are further fine-tuned classifiers of the same classes, which are compared with zero-shot
    and with fine-tuned.
    """
    for part in parts:
        require_choice("part", part, PARTS)
    record = read_run(run)
    with locked(run):
        work = _Diagnosis.of(run, choose_device(device))
        found = work.timed(
            "kept", lambda: diagnose_kept(record, work.suite, work.kept(), work.models, work.scores.read)
        )
        found = replace(found, pairs=(*found.pairs, *work.timed("others", lambda: work.compare(_named(others)))))
        if "layers" in parts:
            found = replace(found, layers=work.timed("layers", work.layers))
        found = replace(found, seconds=work.seconds)
        write_json(run / "diagnosis.json", found.to_json())
        render_report([run])
    return found


@dataclass
class _Diagnosis:
    """One run: its suite, its three models, where its predictions are, and how long each part took."""

    run: Path
    device: str
    suite: ShiftSuite
    models: Mapping[str, Classifier]
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, run: Path, device: str) -> _Diagnosis:
        """Loads what is needed of a finished run."""
        models = {model: load_classifier(run / model) for model in MODELS}
        suite = suite_of(RunFile.read(run / "run.yaml")).relabelled(models["zero_shot"].classes)
        return cls(run, device, suite, models)

    @property
    def scores(self) -> PathFiles:
        """The compact predictions along the path."""
        return PathFiles(self.run / "predictions", path_sets(self.suite))

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
        file = self.run / "predictions" / model / f"{name}.npz"
        if not file.is_file():
            keep_predictions(self.models[model], images, file, device=self.device)
        return open_predictions(file)

    def compare(self, others: Mapping[str, Classifier]) -> tuple[PairRecord, ...]:
        """Further classifiers with zero-shot and with fine-tuned, on every set."""
        known, pairs = self.kept(), []
        for other, classifier in others.items():
            aligned = classifier.in_order_of(self.suite.classes)
            for name, images in self.suite.test_sets.items():
                clusters = resampled_of(images).names
                logits = predict(aligned, images, device=self.device).logits
                for model in ("zero_shot", "fine_tuned"):
                    agreement = measure_agreement(known[model][name], logits, images.labels, clusters)
                    cka = measure_cka(known[model][name], logits, clusters)
                    pairs.append(PairRecord(model, other, name, agreement, cka))
        return tuple(pairs)

    def layers(self) -> tuple[LayersRecord, ...]:
        """CKA between the layers of zero-shot and of fine-tuned, on some images of every natural set."""
        natural = [shift.name for shift in self.suite.shifts if shift.kind == "natural"]
        found = []
        for name in (self.suite.reference.name, *natural):
            some = spread_over_classes(self.suite.test_sets[name], _IMAGES, 0)
            layers = measure_layers(self.models["zero_shot"], self.models["fine_tuned"], some, device=self.device)
            found.append(replace(layers, set=name))
        return tuple(found)


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
