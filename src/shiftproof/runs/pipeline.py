"""The whole method from top to bottom: zero-shot, fine-tune, sweep alpha, ensemble, measure, report.

Each stage writes what it made into the run directory and is skipped when a run is resumed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import ShiftSuite, load_suite, own_suite
from shiftproof.ensembling.ensembles import wise_ft
from shiftproof.merging.layouts import alpha_folder
from shiftproof.ensembling.path import FIXED_ALPHA, Add, choose_alpha, compare_alphas, path_sets, sweep_alpha
from shiftproof.errors import InputError, listed, require_equal_length
from shiftproof.evaluation.intervals import LEVEL, METHOD
from shiftproof.evaluation.predictions import (
    KeptPredictions,
    load_scores,
    open_predictions,
    save_scores,
    writing_predictions,
)
from shiftproof.evaluation.metrics import ScoreCollector, Scores, evaluate
from shiftproof.evaluation.inference import predict_batches
from shiftproof.finetuning.loop import finetune
from shiftproof.models.devices import resolve_device
from shiftproof.models.classifier import Classifier, zero_shot_classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.training.distributed import joined_processes, broadcast_from_main
from shiftproof.runs.evidence import diagnose_kept, resampled_of
from shiftproof.records.results import MODELS, AccuracyRecord, PathRecord, RulesRecord, RunRecord
from shiftproof.report.page import earlier_diagnosis, render_report
from shiftproof.runs.file import RunFile, SuiteFile
from shiftproof.runs.samples import write_maps, write_samples
from shiftproof.storage import locked, read_json, write_json, write_text
from shiftproof.training.log import trackers_from

# What --overwrite may delete.
_WRITTEN = {
    *MODELS,
    *("run.yaml", "stages.json", "path.json", "rules.json", "results.jsonl", "summary.json", "report.html"),
    *("diagnosis.json", "diagnosis"),
    *("checkpoints", "predictions", "samples", "maps", "figures"),
}
_VERSIONED = ("shiftproof", "torch", "torchvision", "open_clip_torch", "timm", "numpy")


def run_pipeline(asked: RunFile, out: Path, *, resume: bool = False, overwrite: bool = False) -> RunRecord:
    """Runs everything that a run file asks for and returns what ``summary.json`` says.

    A directory that holds another run is refused unless ``resume`` (finished stages are skipped; the run file
    must be the same) or ``overwrite`` (the old run is deleted).
    """
    if resume and overwrite:
        raise InputError("--resume goes on with the run that --overwrite deletes. Give one of the two.")
    # Data and model are found before anything is written, so that a misspelt name costs no older run.
    suite, device = load_run_suite(asked), resolve_device(asked.device)
    start = None if resume else build_start(asked, suite)
    with joined_processes(device), locked(out):
        run = _Run(asked, out, device)
        run.open(resume=resume, overwrite=overwrite)

        zero_shot = run.classifier("zero_shot", lambda: start or build_start(asked, suite))
        suite = suite.relabelled(zero_shot.classes)
        broadcast_from_main("fine_tuned" not in run.seconds, device)  # the other processes help with this one stage
        fine_tuned = run.classifier("fine_tuned", lambda: run.finetune(zero_shot, suite))
        path = run.path(zero_shot, fine_tuned, suite)
        alpha = choose_alpha(path, asked.alpha_rule, tolerance=asked.alpha_tolerance)
        ensemble = run.classifier("ensemble", lambda: wise_ft(zero_shot, fine_tuned, alpha))

        models = dict(zip(MODELS, (zero_shot, fine_tuned, ensemble), strict=True))
        predictions = run.predictions(models, suite)
        return run.conclude(suite, models, predictions, path, alpha)


def follow_pipeline(asked: RunFile, out: Path) -> None:
    """What the other processes of ``torchrun`` do while the first runs the pipeline: they share the fine-tuning."""
    suite, device = load_run_suite(asked), resolve_device(asked.device)
    start = build_start(asked, suite)
    with joined_processes(device):
        if broadcast_from_main(False, device):
            finetune(
                start,
                suite.relabelled(start.classes),
                asked.finetune,
                seed=asked.seed,
                device=device,
                checkpoints=out / "checkpoints",
            )


def load_run_suite(asked: RunFile) -> ShiftSuite:
    """The embedded suite or the one of the user's own data, its held-out sets as small as the run file limits them."""
    if isinstance(asked.suite, SuiteFile):
        own = asked.suite.model_dump()
        suite = own_suite(own["reference"], own["shifts"], name=own["name"], seed=asked.seed)
    else:
        suite = load_suite(asked.suite, asked.seed)
    return suite.limited(asked.limit)


def build_start(asked: RunFile, suite: ShiftSuite) -> Classifier:
    """The start: a classifier directory, or a model whose text tower writes the head for the suite's classes."""
    if (Path(asked.model) / "classifier.json").is_file():
        return load_classifier(asked.model)
    return zero_shot_classifier(load_clip(asked.model, asked.seed), suite.classes, asked.prompts)


@dataclass(frozen=True)
class PathFiles:
    """The compact predictions along an alpha path: ``alpha-0.10/SET.npz`` under a folder, each whole or absent."""

    folder: Path
    sets: Mapping[str, ImageSet]

    def file(self, alpha: float, name: str) -> Path:
        """Where an alpha's predictions on a set stand; two decimals where they say it exactly."""
        return self.folder / alpha_folder(alpha) / f"{name}.npz"

    @contextlib.contextmanager
    def keep(self, alpha: float, name: str) -> Iterator[Add]:
        """Takes in the logits of an alpha on a set, batch by batch, and writes one file once all are there."""
        collector = ScoreCollector(self.sets[name].labels)
        yield collector.add
        save_scores(collector.whole(), self.sets[name].ids, self.file(alpha, name))

    def kept(self, alpha: float, name: str) -> int | None:
        """How many images a kept file has right; None where it is absent, damaged or of other images."""
        try:
            return int(self.correct(alpha, name).sum()) if self.file(alpha, name).is_file() else None
        except InputError:
            return None

    def read(self, alpha: float, name: str) -> Scores:
        """A kept file; an InputError where it is damaged or of other images."""
        ids, found = load_scores(self.file(alpha, name))
        require_same_samples(ids, self.sets[name])
        require_equal_length(f"ids and predictions of {self.file(alpha, name)}", ids, found.prediction)
        return found

    def correct(self, alpha: float, name: str) -> NDArray[np.bool_]:
        """(N,) whether each image is named right."""
        return np.asarray(self.read(alpha, name).prediction == self.sets[name].labels)

    def rules(self, path: PathRecord, suite: ShiftSuite, tolerance: float) -> RulesRecord | None:
        """What the rules for alpha come to; None where alpha 0.5, which they are compared to, is not on the path."""
        if FIXED_ALPHA not in path.alphas:
            return None
        names = (path.reference, *path.shifts)
        correct = {alpha: {name: self.correct(alpha, name) for name in names} for alpha in path.alphas}
        natural = [shift.name for shift in suite.shifts if shift.kind == "natural"]
        found = {name: resampled_of(self.sets[name]).names for name in names}
        clusters = {name: own for name, own in found.items() if own is not None}
        return compare_alphas(path, correct, natural or path.shifts, clusters, tolerance=tolerance)


@dataclass
class _Run:
    """One run directory: which stages are done, and what they wrote."""

    asked: RunFile
    out: Path
    device: str
    seconds: dict[str, float] = field(default_factory=dict)

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Makes the directory this run's own."""
        settings = self.out / "run.yaml"
        occupied = sorted(p.name for p in self.out.iterdir() if p.name != ".lock")
        # A run that finished no stage, for its data were misnamed, say, has nothing to lose.
        begun = (self.out / "stages.json").is_file()
        if occupied and not _is_run_record(settings):
            raise InputError(f"{self.out} holds {listed(occupied, 5)} and no run.yaml of a run. Choose another --out.")
        if foreign := sorted(set(occupied) - _WRITTEN) if overwrite else []:
            raise InputError(
                f"{self.out} holds {listed(foreign, 5)}, which no run wrote, and --overwrite would delete it. "
                "Move it away, or choose another --out."
            )
        if occupied and overwrite:
            # The record goes last: an interrupted deletion still leaves a run that can be overwritten.
            for path in sorted((self.out / name for name in occupied), key=lambda path: path == settings):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        elif begun and not resume:
            raise InputError(
                f"{self.out} already holds a run. Choose another --out, add --resume to go on with that run, "
                "or --overwrite to delete it."
            )
        elif begun and not RunFile.read(settings).asks_the_same(self.asked):
            raise InputError(
                f"{settings} asks for other settings than this run. Resume it with its own run file "
                f"(shiftproof run {settings} --out {self.out} --resume), or choose another --out."
            )
        if begun and not overwrite:
            self.seconds = read_json(self.out / "stages.json")
        else:
            # A sweep trusts the predictions it finds; these would be of classifiers that are yet to be made.
            shutil.rmtree(self.out / "predictions", ignore_errors=True)
        write_text(settings, self.asked.to_yaml() + yaml.safe_dump({"versions": versions()}))

    def stage(self, name: str, work: Callable[[], Any]) -> None:
        """Does a stage's work unless it is done, and notes how long it took."""
        if name not in self.seconds:
            started = time.perf_counter()
            work()
            self.seconds[name] = round(time.perf_counter() - started, 3)
            write_json(self.out / "stages.json", self.seconds)

    def classifier(self, name: str, build: Callable[[], Classifier]) -> Classifier:
        """Builds and saves a classifier, or loads the one that was saved."""
        self.stage(name, lambda: save_classifier(build(), self.out / name))
        return load_classifier(self.out / name)

    def finetune(self, start: Classifier, suite: ShiftSuite) -> Classifier:
        """Fine-tunes, from the last of ``checkpoints`` on where the run was stopped inside it."""
        return finetune(
            start,
            suite,
            self.asked.finetune,
            seed=self.asked.seed,
            device=self.device,
            checkpoints=self.out / "checkpoints",
            trackers=trackers_from(self.asked.report_to),
        )

    def path(self, zero_shot: Classifier, fine_tuned: Classifier, suite: ShiftSuite) -> PathRecord:
        """Sweeps alpha and keeps the compact predictions of every alpha, and the logits of the three models.

        What an interrupted sweep has kept is not run again.
        """
        named = {0.0: "zero_shot", 1.0: "fine_tuned"}
        if self.asked.alpha_rule == "fixed":  # the one rule that knows the ensemble before the sweep
            named[FIXED_ALPHA] = "ensemble"

        files = self.along_path(suite)

        @contextlib.contextmanager
        def keep(alpha: float, name: str) -> Iterator[Add]:
            with contextlib.ExitStack() as opened:
                adds = [opened.enter_context(files.keep(alpha, name))]
                if alpha in named:
                    file = self.logits(named[alpha], name)
                    adds.append(opened.enter_context(_writing(files.sets[name], file)))
                yield lambda logits: [add(logits) for add in adds]

        def kept(alpha: float, name: str) -> int | None:
            whole = alpha not in named or self.has_logits(named[alpha], name, files.sets[name])
            return files.kept(alpha, name) if whole else None

        def sweep() -> None:
            ends = zero_shot, fine_tuned
            path = sweep_alpha(*ends, suite, self.asked.alphas, device=self.device, keep=keep, kept=kept)
            write_json(self.out / "path.json", path.to_json())

        self.stage("sweep", sweep)
        shifts = tuple(shift.name for shift in suite.shifts)
        return PathRecord.from_json(suite.reference.name, shifts, read_json(self.out / "path.json"))

    def along_path(self, suite: ShiftSuite) -> PathFiles:
        """The compact predictions of every alpha."""
        return PathFiles(self.out / "predictions", path_sets(suite))

    def logits(self, model: str, set_name: str) -> Path:
        """Where a model's logits on a set stand."""
        return self.out / "predictions" / model / f"{set_name}.npz"

    def has_logits(self, model: str, set_name: str, images: ImageSet) -> bool:
        """Whether they do, undamaged and of the set's images."""
        file = self.logits(model, set_name)
        try:
            return file.is_file() and open_predictions(file).require_whole().ids == images.ids
        except InputError:
            return False

    def predictions(self, models: dict[str, Classifier], suite: ShiftSuite) -> dict[str, dict[str, KeptPredictions]]:
        """The logits of the three models on every set, validation too; what the sweep has kept is not run again."""
        sets = path_sets(suite)

        def run_all() -> None:
            for model, classifier in models.items():
                for name, images in sets.items():
                    if not self.logits(model, name).is_file():
                        keep_predictions(classifier, images, self.logits(model, name), device=self.device)

        self.stage("predict", run_all)
        found = {m: {name: open_predictions(self.logits(m, name)) for name in sets} for m in models}
        for of_sets in found.values():
            for name, images in sets.items():
                require_same_samples(of_sets[name].ids, images)
        return found

    def conclude(
        self,
        suite: ShiftSuite,
        classifiers: Mapping[str, Classifier],
        predictions: dict[str, dict[str, KeptPredictions]],
        path: PathRecord,
        alpha: float,
    ) -> RunRecord:
        """Results, summary, diagnosis, samples and report."""
        ends = dict(zip(MODELS, (0.0, 1.0, alpha), strict=True))
        models = {
            model: {name: _record(suite, of_sets[name], model, ends[model], name) for name in suite.test_sets}
            for model, of_sets in predictions.items()
        }
        lines = [record for records in models.values() for record in records.values()]
        lines += self._along_the_path(suite, path)
        write_text(self.out / "results.jsonl", "".join(json.dumps(line.to_json()) + "\n" for line in lines))
        record = RunRecord(
            suite=suite.name,
            reference=suite.reference.name,
            shifts=tuple(shift.name for shift in suite.shifts),
            kinds={shift.name: shift.kind for shift in suite.shifts},
            models=models,
            alpha=alpha,
            alpha_rule=self.asked.alpha_rule,
            path=path,
            interval_level=LEVEL,
            interval_method=METHOD,
            seconds=self.seconds,
            seed=self.asked.seed,
            versions=versions(),
        )
        write_json(self.out / "summary.json", record.to_json())
        files = self.along_path(suite)
        if rules := files.rules(path, suite, self.asked.alpha_tolerance):
            write_json(self.out / "rules.json", rules.to_json())
        earlier = earlier_diagnosis(self.out)
        found = diagnose_kept(record, suite, predictions, classifiers, files.read, earlier=earlier)
        write_json(self.out / "diagnosis.json", found.to_json())
        write_samples(suite, predictions, self.out / "samples", seed=self.asked.seed)
        write_maps(suite, classifiers, self.out / "maps", seed=self.asked.seed, device=self.device)
        render_report([self.out])
        return record

    def _along_the_path(self, suite: ShiftSuite, path: PathRecord) -> list[AccuracyRecord]:
        files = self.along_path(suite)
        return [
            evaluate(
                files.read(alpha, name),
                images.labels,
                suite.classes.ids,
                model="path",
                alpha=alpha,
                set_name=name,
                groups=images.groups,
            )
            for alpha in path.alphas
            for name, images in files.sets.items()
        ]


def keep_predictions(classifier: Classifier, images: ImageSet, file: Path, *, device: str) -> None:
    """Runs a classifier over a set and writes its logits, batch by batch."""
    with _writing(images, file) as add:
        for logits in predict_batches(classifier, images, device=device):
            add(logits)


@contextlib.contextmanager
def kept_logits(
    classifiers: Mapping[str, Classifier], images: ImageSet, *, device: str
) -> Iterator[dict[str, KeptPredictions]]:
    """Several classifiers' logits on a set, in files that are gone after the block: none is held in memory."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{number}.npz") for number, name in enumerate(classifiers)}
        for name, classifier in classifiers.items():
            keep_predictions(classifier, images, files[name], device=device)
        yield {name: open_predictions(file) for name, file in files.items()}


def _writing(images: ImageSet, file: Path) -> contextlib.AbstractContextManager[Add]:
    return writing_predictions(file, images.ids, images.labels, len(images.classes), images.groups)


def _is_run_record(settings: Path) -> bool:
    """Tells the run.yaml of a run directory, which notes its versions, from a run file that a user wrote."""
    return settings.is_file() and "\nversions:" in settings.read_text(encoding="utf-8", errors="replace")


def require_same_samples(ids: tuple[str, ...], images: ImageSet) -> None:
    """Raises an InputError unless kept predictions are of a set's images, in its order."""
    if ids != images.ids:
        raise InputError(
            f"the images of {images.name} are not those that this run predicted. Restore the data, or start anew "
            "with --overwrite."
        )


def _record(suite: ShiftSuite, found: KeptPredictions, model: str, alpha: float, name: str) -> AccuracyRecord:
    collector = ScoreCollector(found.labels)
    for logits in found.blocks():
        collector.add(logits)
    return evaluate(
        collector.whole(),
        found.labels,
        suite.classes.ids,
        model=model,
        alpha=alpha,
        set_name=name,
        groups=found.groups,
    )


def versions() -> dict[str, str]:
    """The versions of what decides a result."""
    return {name: version(name) for name in _VERSIONED}
