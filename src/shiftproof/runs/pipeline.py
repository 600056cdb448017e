"""The whole method from start to end: zero-shot, fine-tune, sweep alpha, ensemble, measure, report.

``STAGES`` lists the stages. Each writes its results into the run directory and is skipped when a run is resumed.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.interpolation import ensemble_on_path
from shiftproof.ensembling.path import path_sets, sweep_alpha
from shiftproof.ensembling.rules import FIXED_ALPHA, choose_alpha
from shiftproof.errors import refuse_path
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.evaluation.predictions import Add, StoredPredictions, open_predictions
from shiftproof.evaluation.scoring import Scored, evaluate_set
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.records.accuracy import CLUSTERED, INDEPENDENT, AccuracyRecord
from shiftproof.records.codec import document, to_json
from shiftproof.records.paths import PathRecord
from shiftproof.records.runs import MODELS, RunRecord
from shiftproof.records.summaries import path_from_json, path_json, summary_json
from shiftproof.report.page import earlier_diagnosis, render_report
from shiftproof.runs.directory import RUN, OutputDirectory, RunDirectory, claim, explaining_resume
from shiftproof.runs.doubts import note_validation, warn_of_data, warn_of_loss, warn_of_space, warn_of_start
from shiftproof.runs.evidence import diagnose_predictions
from shiftproof.runs.file import RunFile
from shiftproof.runs.inputs import batch_norm_images, build_start, load_run_suite, require_trainable
from shiftproof.runs.predictions import (
    PathFiles,
    has_logits,
    measure_accuracy,
    predict_to_file,
    require_same_samples,
    writing_logits,
)
from shiftproof.runs.requests import recorded_versions, request_of
from shiftproof.runs.samples import write_maps, write_samples
from shiftproof.storage import read_json, write_json, write_text
from shiftproof.training.distributed import broadcast_from_main, gathered_on_main, is_main_process, joined_processes
from shiftproof.training.log import trackers_from


@dataclass(frozen=True)
class Stage:
    """One step of a run: its name, the stages it needs, what it writes into the run directory, and the work.

    A stage that is ``shared`` is worked on by all processes of ``torchrun``, and the main one writes. The others have
    nothing but what the stages before it have written.
    """

    name: str
    needs: tuple[str, ...]
    writes: tuple[str, ...]
    work: Callable[[Run], None]
    shared: bool = False


def run_pipeline(run_file: RunFile, out: str | Path, *, resume: bool = False, overwrite: bool = False) -> RunRecord:
    """Runs all stages of a run file and returns the record that ``summary.json`` is written from.

    ``resume`` continues an earlier run of the same run file and skips its finished stages, ``overwrite`` deletes it
    first. Raises an InputError if data or model cannot be loaded, if an image of any set is missing, if the precision
    cannot be used on the device, or if ``out`` cannot be claimed.
    """
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    began = time.perf_counter()
    # Data and model are loaded before anything is written, so that a misspelt name does not delete an earlier run.
    suite, device = load_run_suite(run_file), resolve_device(run_file.device)
    run_file = run_file.resolved_on(device=device)
    start = None if resume else build_start(run_file, suite)
    require_trainable(run_file, suite, start)
    loading = round(time.perf_counter() - began, 3)
    with (
        joined_processes(device),
        claim(out, RUN, request_of(run_file), resume=resume, overwrite=overwrite) as continued,
        explaining_resume(OutputDirectory(out)),
    ):
        run = Run(run_file, RunDirectory(out), device, suite, start)
        note_validation(suite)
        warn_of_data(suite, limited=run_file.limit is not None)
        warn_of_space(start, suite, run_file.finetune, out)
        if continued:
            run.seconds.update(read_json(run.directory.stages))
        else:
            # A sweep reuses existing predictions; those of classifiers that are yet to be trained would be wrong.
            shutil.rmtree(run.directory.predictions, ignore_errors=True)
            run.seconds["load"] = loading  # the data and the start, which may be a linear probe
        for stage in STAGES:
            pending = stage.name not in run.seconds
            if stage.shared:
                broadcast_from_main(pending)
            if pending:
                started = time.perf_counter()
                work_on(stage, run)
                run.seconds[stage.name] = round(time.perf_counter() - started, 3)
                write_json(run.directory.stages, run.seconds)
                write_json(run.directory.conversions, conversions_so_far(run))
        return conclude(run)


def follow_pipeline(run_file: RunFile, out: str | Path) -> None:
    """Works on the shared stages, in the other processes of ``torchrun``, while the first one runs the pipeline."""
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    suite, device = load_run_suite(run_file), resolve_device(run_file.device)
    run = Run(run_file.resolved_on(device=device), RunDirectory(Path(out)), device, suite, None)
    with joined_processes(device):
        for stage in STAGES:
            if stage.shared and broadcast_from_main(False):
                work_on(stage, run)


def work_on(stage: Stage, run: Run) -> None:
    """Does the work of a stage, or this process's share of it, after which the main process knows what all have read.

    It then counts the same conversions of pictures as a single process does.
    """
    stage.work(run)
    if stage.shared:
        counters = run.suite_as_loaded.conversion_counters
        for found in gathered_on_main([counter.found() for counter in counters]):
            for counter, conversions in zip(counters, found, strict=True):
                for i, kinds in conversions.items():
                    counter.note(i, kinds)


@dataclass
class Run:
    """A run in progress: its settings, directory and data, and the seconds of loading and of each finished stage."""

    run_file: RunFile
    directory: RunDirectory
    device: str
    suite_as_loaded: ShiftSuite
    start: Classifier | None
    seconds: dict[str, float] = field(default_factory=dict)

    @functools.cached_property
    def suite(self) -> ShiftSuite:
        """The suite in the class space of the zero-shot classifier."""
        return self.suite_as_loaded.relabelled(self.zero_shot.classes)

    @functools.cached_property
    def zero_shot(self) -> Classifier:
        """The start, as it was saved."""
        return self._load("zero_shot")

    @functools.cached_property
    def fine_tuned(self) -> Classifier:
        """The fine-tuned classifier, as it was saved."""
        return self._load("fine_tuned")

    @functools.cached_property
    def ensemble(self) -> Classifier:
        """The weight-space ensemble at the chosen alpha, as it was saved."""
        return self._load("ensemble")

    def _load(self, model: str) -> Classifier:
        return load_classifier(self.directory.classifier(model), channels_last=self.run_file.finetune.channels_last)

    @functools.cached_property
    def path(self) -> PathRecord:
        """The measured alpha path."""
        shifts = tuple(shift.name for shift in self.suite.shifts)
        return path_from_json(self.suite.reference.name, shifts, read_json(self.directory.path))

    @property
    def precision(self) -> str:
        """The precision in which the classifiers are measured."""
        return self.run_file.evaluation.precision

    @property
    def alpha(self) -> float:
        """The alpha that the run file's rule chooses on the path."""
        return choose_alpha(self.path, self.run_file.alpha_rule, tolerance=self.run_file.alpha_tolerance)

    @property
    def classifiers(self) -> dict[str, Classifier]:
        """The three classifiers by name."""
        return dict(zip(MODELS, (self.zero_shot, self.fine_tuned, self.ensemble), strict=True))

    @property
    def scores(self) -> PathFiles:
        """The compact predictions of every alpha."""
        return PathFiles(self.directory.predictions, path_sets(self.suite))


def save_start(run: Run) -> None:
    """Saves the zero-shot classifier, or whichever classifier the run file starts from."""
    start = run.start or build_start(run.run_file, run.suite_as_loaded)
    save_classifier(start, run.directory.classifier("zero_shot"), overwrite=True)


def save_fine_tuned(run: Run) -> None:
    """Fine-tunes and saves; an interrupted training run is resumed from the last of its checkpoints."""
    warn_of_start(run.zero_shot, run.suite, run.device, run.precision)
    tuned = finetune(
        run.zero_shot,
        run.suite,
        run.run_file.finetune,
        seed=run.run_file.seed,
        device=run.device,
        checkpoints=run.directory.checkpoints,
        trackers=trackers_from(run.run_file.report_to),
    )
    if is_main_process():
        warn_of_loss(tuned.training, len(tuned.classes))
        save_classifier(tuned, run.directory.classifier("fine_tuned"), overwrite=True)


def save_path(run: Run) -> None:
    """Sweeps alpha; saves the compact predictions of every alpha, and the logits of the three models on the way.

    Predictions that an interrupted sweep saved are not made again.
    """
    models = {0.0: "zero_shot", 1.0: "fine_tuned"}
    if run.run_file.alpha_rule == "fixed":  # only this rule determines the ensemble before the sweep
        models[FIXED_ALPHA] = "ensemble"
    files = run.scores

    def keep(alpha: float, name: str) -> contextlib.AbstractContextManager[Add] | None:
        return writing_logits(files.sets[name], run.directory.logits(models[alpha], name)) if alpha in models else None

    def correct_so_far(alpha: float, name: str) -> NDArray[np.bool_] | None:
        complete = alpha not in models or has_logits(run.directory.logits(models[alpha], name), files.sets[name])
        return files.known(alpha, name) if complete else None

    path = sweep_alpha(
        run.zero_shot,
        run.fine_tuned,
        run.suite,
        run.run_file.alphas,
        device=run.device,
        precision=run.precision,
        keep=keep,
        collect=files.save,
        known=correct_so_far,
        batch_norm_images=batch_norm_images(run.run_file, run.suite),
        together=True,
    )
    if is_main_process():
        write_json(run.directory.path, path_json(path))


def save_ensemble(run: Run) -> None:
    """Saves the weight-space ensemble at the chosen alpha."""
    images = batch_norm_images(run.run_file, run.suite)
    ends = run.zero_shot, run.fine_tuned
    ensemble = ensemble_on_path(*ends, run.alpha, device=run.device, batch_norm_images=images)
    save_classifier(ensemble, run.directory.classifier("ensemble"), overwrite=True)


def save_logits(run: Run) -> None:
    """Saves the logits of the three models on every set, unless the sweep has saved them."""
    sets = path_sets(run.suite)
    missing = [(model, name) for model in MODELS for name in sets if not run.directory.logits(model, name).is_file()]
    for model, name in broadcast_from_main(missing):
        file = run.directory.logits(model, name)
        predict_to_file(
            run.classifiers[model], sets[name], file, device=run.device, precision=run.precision, together=True
        )


STAGES = (
    Stage("zero_shot", (), ("zero_shot",), save_start),
    Stage("fine_tuned", ("zero_shot",), ("fine_tuned", "checkpoints"), save_fine_tuned, shared=True),
    Stage("sweep", ("zero_shot", "fine_tuned"), ("path.json", "predictions"), save_path, shared=True),
    Stage("ensemble", ("zero_shot", "fine_tuned", "sweep"), ("ensemble",), save_ensemble),
    Stage("predict", ("zero_shot", "fine_tuned", "ensemble"), ("predictions",), save_logits, shared=True),
)


def conclude(run: Run) -> RunRecord:
    """Writes results, summary, rules, diagnosis, samples, maps and report from the output of the stages."""
    directory, suite, predictions = run.directory, run.suite, open_logits(run)
    record = summarise(run, predictions)
    lines = [entry for by_set in record.models.values() for entry in by_set.values()]
    lines += accuracies_along_path(run)
    write_text(directory.results, "".join(json.dumps(to_json(line)) + "\n" for line in lines))
    write_json(directory.summary, summary_json(record))
    if rules := run.scores.rules(run.path, suite, run.run_file.alpha_tolerance):
        write_json(directory.rules, document(rules))
    earlier = earlier_diagnosis(directory.root)
    diagnosis = diagnose_predictions(record, suite, predictions, run.classifiers, run.scores.read, earlier=earlier)
    write_json(directory.diagnosis, document(diagnosis))
    write_samples(suite, predictions, directory.samples, seed=run.run_file.seed)
    on = {"device": run.device, "precision": run.precision}
    write_maps(suite, run.classifiers, directory.maps, seed=run.run_file.seed, **on)
    render_report([directory.root])
    return record


def open_logits(run: Run) -> dict[str, dict[str, StoredPredictions]]:
    """Opens the logits of every model on every set; raises an InputError if they are of other images."""
    sets = path_sets(run.suite)
    predictions = {
        model: {name: open_predictions(run.directory.logits(model, name)) for name in sets} for model in MODELS
    }
    for by_set in predictions.values():
        for name, images in sets.items():
            require_same_samples(by_set[name].ids, images)
    return predictions


def summarise(run: Run, predictions: dict[str, dict[str, StoredPredictions]]) -> RunRecord:
    """Measures the three models on every test set and returns the record that ``summary.json`` is written from."""
    suite = run.suite
    alphas = dict(zip(MODELS, (0.0, 1.0, run.alpha), strict=True))
    models: dict[str, dict[str, AccuracyRecord]] = {}
    for model, by_set in predictions.items():
        reference = Scored(suite.reference.test, by_set[suite.reference.name])
        models[model] = {
            name: measure_accuracy(
                images,
                by_set[name],
                model=model,
                alpha=alphas[model],
                name=name,
                precision=run.precision,
                reference=reference,
            )
            for name, images in suite.test_sets.items()
        }
    used = recorded_versions(run.directory.run_file)
    methods = {entry.interval_method for entry in models["ensemble"].values()}
    return RunRecord(
        suite=suite.name,
        reference=suite.reference.name,
        shifts=tuple(shift.name for shift in suite.shifts),
        kinds={shift.name: shift.kind for shift in suite.shifts},
        models=models,
        alpha=run.alpha,
        alpha_rule=run.run_file.alpha_rule,
        batch_norm=run.run_file.batch_norm,
        path=run.path,
        interval_level=LEVEL,
        interval_method=CLUSTERED if CLUSTERED in methods else INDEPENDENT,
        seconds=run.seconds,
        seed=run.run_file.seed,
        versions=used[0],
        later_versions=used[1:],
        validation=suite.reference.held_out,
        conversions=conversions_so_far(run),
        start={"model": run.zero_shot.source, "head": run.zero_shot.head},
        precision=run.precision,
        skipped=run.suite_as_loaded.skipped(),
    )


def conversions_so_far(run: Run) -> dict[str, dict[str, int]]:
    """Counts the converted pictures by data name; a set that a resumed run does not read again keeps its counts."""
    file = run.directory.conversions
    earlier = read_json(file) if file.is_file() else {}
    counts = run.suite_as_loaded.conversions()
    sources = sorted({*earlier, *counts})
    return {name: max(earlier.get(name, {}), counts.get(name, {}), key=_total) for name in sources}


def _total(counts: dict[str, int]) -> int:
    return sum(counts.values())


def accuracies_along_path(run: Run) -> list[AccuracyRecord]:
    """Measures the accuracy of every alpha on every set, validation split included."""
    files = run.scores
    records = (
        evaluate_set(
            files.read(alpha, name), images, model="path", alpha=alpha, set_name=name, intervals_of_metrics=False
        )
        for alpha in run.path.alphas
        for name, images in files.sets.items()
    )
    return [replace(record, precision=run.precision) for record in records]
