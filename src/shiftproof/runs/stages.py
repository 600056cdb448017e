"""Single stages of the method, which the commands for one stage run: zero-shot, fine-tune, sweep, evaluate, predict."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from shiftproof.data.captions import load_captioned_set
from shiftproof.data.export import export_suite
from shiftproof.data.families.registry import SHIFT, family_section, is_family
from shiftproof.data.labels import ClassSpace
from shiftproof.data.pictures import SkippedFiles, named_pictures
from shiftproof.data.readable import require_readable
from shiftproof.data.reading import ReadSettings
from shiftproof.data.sets import picture_set, warn_of_missing_classes
from shiftproof.data.suites import ShiftSuite, load_data, load_suite, load_test_sets
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.ensembles import wise_ft
from shiftproof.ensembling.path import SPACES, ensemble_on_path, path_sets, sweep_alpha
from shiftproof.ensembling.rules import choose_alpha
from shiftproof.errors import InputError, refuse_path, require_choice
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import log_probabilities
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.models.identity import fingerprint, has_fingerprint
from shiftproof.pretraining.loop import pretrain
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.codec import document
from shiftproof.records.paths import PathRecord
from shiftproof.records.pretraining import PretrainRecord
from shiftproof.records.rules import RulesRecord
from shiftproof.records.summaries import path_json
from shiftproof.runs.directory import STAGE, SWEEP, TRAINING, OutputDirectory, Request, claim, explaining_resume
from shiftproof.runs.doubts import (
    note_validation,
    warn_of_data,
    warn_of_guessing,
    warn_of_loss,
    warn_of_space,
    warn_of_start,
    warn_of_start_of_path,
)
from shiftproof.runs.file import RunFile, SuiteFile
from shiftproof.runs.inputs import batch_norm_images, build_start, load_run_suite, require_trainable
from shiftproof.runs.pipeline import records_versions, request_of
from shiftproof.runs.predictions import PathFiles
from shiftproof.runs.scores import benchmark_writer, score, write_results
from shiftproof.runs.starts import load_scored
from shiftproof.storage import json_text, read_json, write_json
from shiftproof.training.distributed import is_main_process, joined_processes, wait_for_main
from shiftproof.training.log import trackers_from

_TEST = "test"  # the name under which the test data of a reference are given on their own


@dataclass(frozen=True)
class Answer:
    """The most probable classes of one image, the most probable first: (class name, probability from 0 to 1)."""

    image: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Sweep:
    """A measured alpha path, the alpha chosen by the requested rule, and a comparison of all rules.

    The rules are compared only if alpha 0.5 is on the path. ``batch_norm`` scores the ensemble with averaged
    batch-norm statistics and with re-estimated ones, if that was requested.
    """

    path: PathRecord
    alpha: float
    rules: RulesRecord | None
    batch_norm: tuple[AccuracyRecord, ...] = ()


def run_pretrain(
    run_file: RunFile, out: str | Path, *, resume: bool = False, overwrite: bool = False
) -> PretrainRecord:
    """Pretrains both towers as the ``pretrain`` section of the run file describes.

    Raises an InputError for a run file without that section, or for an output directory that cannot be claimed.
    """
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    if run_file.pretrain is None:
        raise InputError("the run file has no pretrain section. Add one: pretrain: {data: csv:PATH, steps: 3000}.")
    # Data and model are loaded first, so that a misspelt name leaves no directory behind.
    clip, data = load_clip(run_file.model, seed=run_file.seed), load_captioned_set(run_file.pretrain.data)
    data.require_readable()
    device, trackers = resolve_device(run_file.device), trackers_from(run_file.report_to)
    with joined_processes(device), _training_in(out, run_file, device, resume=resume, overwrite=overwrite):
        return pretrain(clip, data, run_file.pretrain, seed=run_file.seed, out=out, device=device, trackers=trackers)


def run_zero_shot(
    run_file: RunFile, out: str | Path, *, scored: bool = True, overwrite: bool = False
) -> tuple[AccuracyRecord, ...]:
    """Builds the zero-shot classifier of a suite, saves it to ``out`` and scores it on every test set.

    Without ``scored``, no data are loaded, and the run file must name the classes.
    """
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    suite, device = load_run_suite(run_file) if scored else None, resolve_device(run_file.device)
    run_file = run_file.resolved_on(device=device)
    classifier = build_start(run_file, suite)
    with claim(out, STAGE, overwrite=overwrite):
        save_classifier(classifier, out, overwrite=True)
        if suite is None:
            return ()
        sets = suite.relabelled(classifier.classes).test_sets
        precision, reference = run_file.evaluation.precision, suite.reference.name
        records = score(classifier, sets, "zero_shot", device, out, precision=precision, reference=reference)
    warn_of_guessing("zero-shot", records)
    return records


def run_finetune(
    run_file: RunFile, out: str | Path, *, resume: bool = False, overwrite: bool = False
) -> tuple[AccuracyRecord, ...]:
    """Fine-tunes the model or classifier directory of the run file, saves the result to ``out`` and scores it.

    ``resume`` resumes an interrupted training run from the last checkpoint in ``out/checkpoints``. Processes started by
    ``torchrun`` share the work. Raises an InputError if data or model cannot be loaded, if an image is missing,
    or if ``out`` cannot be claimed.
    """
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    suite, device = load_run_suite(run_file), resolve_device(run_file.device)
    run_file = run_file.resolved_on(device=device)
    start = build_start(run_file, suite)
    require_trainable(run_file, suite, start)
    suite = suite.relabelled(start.classes)
    with joined_processes(device), _training_in(out, run_file, device, resume=resume, overwrite=overwrite):
        note_validation(suite)
        warn_of_data(suite, limited=run_file.limit is not None)
        warn_of_space(start, suite, run_file.finetune, out)
        warn_of_start(start, suite, device)
        tuned = finetune(
            start,
            suite,
            run_file.finetune,
            seed=run_file.seed,
            device=device,
            checkpoints=OutputDirectory(out).checkpoints,
            trackers=trackers_from(run_file.report_to),
        )
        warn_of_loss(tuned.training, len(tuned.classes))
        sets, reference = suite.test_sets, suite.reference.name
        precision = run_file.evaluation.precision
        records = score(
            tuned, sets, "fine_tuned", device, None, precision=precision, reference=reference, together=True
        )
        if is_main_process():
            save_classifier(tuned, out, overwrite=True)
            write_results(records, out)
            warn_of_guessing("fine-tuned", records)
        return records


@contextlib.contextmanager
def _training_in(out: Path, run_file: RunFile, device: str, *, resume: bool, overwrite: bool = False) -> Iterator[None]:
    """Claims the directory of a new or resumed training run in the process that writes."""
    with contextlib.ExitStack() as claims:
        if is_main_process():
            claims.enter_context(claim(out, TRAINING, _training_request(run_file), resume=resume, overwrite=overwrite))
            claims.enter_context(explaining_resume(OutputDirectory(out)))
        wait_for_main(device)  # the other processes read the checkpoints from here on
        yield


def _training_request(run_file: RunFile) -> Request:
    """Returns the request of a training run, which is that of a run.

    Version 0.1.0 recorded no versions; its directories are recognised by the checkpoints beside ``run.yaml``.
    """

    def is_request(file: Path) -> bool:
        return records_versions(file) or (file.is_file() and OutputDirectory(file.parent).checkpoints.is_dir())

    return replace(request_of(run_file), is_request=is_request)


def run_sweep(
    run_file: RunFile,
    zero_shot: str | Path,
    fine_tuned: str | Path,
    out: str | Path,
    *,
    space: str = "weights",
    compare_batch_norm: bool = False,
    resume: bool = False,
    overwrite: bool = False,
) -> Sweep:
    """Sweeps alpha between two classifier directories and writes predictions, ``path.json`` and ``rules.json``.

    In the space "weights", the ensemble at the chosen alpha is one classifier and is saved to ``ensemble``. ``resume``
    continues the same sweep and reuses the predictions that it has saved. ``compare_batch_norm`` re-estimates the
    batch-norm statistics of the ensemble on the training images, saves the result to ``ensemble_batch_norm`` and scores
    it beside averaged statistics in ``results.jsonl``.

    Raises an InputError if the two classifiers do not belong together, for an unknown space, if the validation split
    was drawn with another seed than that of the fine-tuning, or if ``out`` cannot be claimed.
    """
    zero_shot, fine_tuned = Path(zero_shot), Path(fine_tuned)
    refuse_path("run_file", run_file, "a run file, e.g. RunFile.read('run.yaml')")
    out = Path(out)
    require_choice("space", space, SPACES)
    ends, device = (load_classifier(zero_shot), load_classifier(fine_tuned)), resolve_device(run_file.device)
    run_file = run_file.resolved_on(device=device)
    _require_unseen_validation(run_file, ends[1])
    suite, directory = load_run_suite(run_file).relabelled(ends[0].classes), OutputDirectory(out)
    images = batch_norm_images(run_file, suite)
    reestimates = compare_batch_norm or images is not None
    if reestimates:
        require_batch_norm(ends[0])
    train = [("train", suite.reference.train)] if reestimates else []
    require_readable([*path_sets(suite).items(), *train])
    request = _sweep_request(run_file, *ends, space)
    with claim(out, SWEEP, request, resume=resume, overwrite=overwrite), explaining_resume(directory):
        note_validation(suite)
        files = PathFiles(directory.predictions, path_sets(suite))
        path = sweep_alpha(
            *ends,
            suite,
            run_file.alphas,
            space=space,
            device=device,
            precision=run_file.evaluation.precision,
            keep=files.collect,
            known=files.known,
            batch_norm_images=images,
        )
        warn_of_start_of_path(path, len(suite.classes))
        warn_of_loss(ends[1].training, len(suite.classes))
        alpha = choose_alpha(path, run_file.alpha_rule, tolerance=run_file.alpha_tolerance)
        write_json(directory.path, path_json(path))
        if rules := files.rules(path, suite, run_file.alpha_tolerance):
            write_json(directory.rules, document(rules))
        else:
            directory.rules.unlink(missing_ok=True)  # the file is about the alphas before the sweep was resumed
        if space == "weights":
            ensemble = ensemble_on_path(*ends, alpha, device=device, batch_norm_images=images)
            save_classifier(ensemble, directory.classifier("ensemble"), overwrite=True)
        precision = run_file.evaluation.precision
        scored = _score_batch_norm(wise_ft(*ends, alpha), suite, device, precision, out) if compare_batch_norm else ()
        return Sweep(path, alpha, rules, scored)


def _score_batch_norm(
    ensemble: Classifier, suite: ShiftSuite, device: str, precision: str, out: Path
) -> tuple[AccuracyRecord, ...]:
    """Scores the ensemble with averaged batch-norm statistics, and with those of the training images."""
    reestimated = reestimate_batch_norm(ensemble, suite.reference.train, device=device)
    save_classifier(reestimated, OutputDirectory(out).classifier("ensemble_batch_norm"), overwrite=True)
    models = {"statistics averaged": ensemble, "statistics re-estimated": reestimated}
    sets, reference = suite.test_sets, suite.reference.name
    records = [
        record
        for name, model in models.items()
        for record in score(model, sets, name, device, None, precision=precision, reference=reference)
    ]
    write_results(records, out)
    return tuple(records)


def _sweep_request(run_file: RunFile, zero_shot: Classifier, fine_tuned: Classifier, space: str) -> Request:
    """The request of a sweep: everything that its saved predictions depend on, without the alphas and the rule."""
    ends = {"zero_shot": zero_shot, "fine_tuned": fine_tuned}
    settings = {
        "suite": run_file.model_dump(mode="json")["suite"],
        "seed": run_file.seed,
        "space": space,
        "batch_norm": run_file.batch_norm,
        **run_file.evaluation.model_dump(),
    }
    earlier = {"batch_norm": "averaged", "precision": "float32", "jpeg_draft": False}  # as before these could be chosen

    def differences(file: Path) -> list[str]:
        recorded = read_json(file)
        if not isinstance(recorded, dict):
            return [*ends, *settings]
        recorded = earlier | recorded
        other_ends = [name for name, end in ends.items() if not has_fingerprint(end, recorded.get(name))]
        return other_ends + [name for name in settings if recorded.get(name) != settings[name]]

    return Request(json_text({name: fingerprint(end) for name, end in ends.items()} | settings), differences)


def run_evaluate(
    directory: str | Path,
    sets: Mapping[str, str] | None = None,
    *,
    suite: str | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    out: str | Path | None = None,
    clip_benchmark: str | Path | None = None,
    image_cache: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[AccuracyRecord, ...]:
    """Scores a classifier on the test sets of a suite and on named data.

    ``directory`` is that of the classifier, or the name of a network with its own head, such as lite0. ``sets`` maps
    the name of each set to its data, such as folder:PATH; the set named "test" is that of the reference, and the others
    are shifts. With ``out``, the records are also written to ``results.jsonl`` in that directory. With
    ``clip_benchmark``, each result is also written to that folder in the form of LAION's CLIP_benchmark. A set of your
    own may lack classes of the classifier; a warning names them. The encoder runs in ``precision``, as in ``predict``.
    ``image_cache`` is a directory for resized pictures (``ReadSettings``).

    Raises an InputError if there is no data, if a set has labels that the classifier does not know, or if the device or
    the precision cannot be used.
    """
    out = None if out is None else Path(out)
    classifier = load_scored(directory)
    reference, images = load_test_sets(suite, classifier.classes) if suite else (_TEST, {})
    for name, data in (sets or {}).items():
        split = "test" if name == _TEST else SHIFT
        images[name] = load_data(data, classifier.classes, split=split, partial=True)
    if not images:
        raise InputError("there is no data to evaluate on. Name a `suite`, or data in `sets`.")
    for name, data in (sets or {}).items():
        if not is_family(data):
            warn_of_missing_classes(images[name], name)
    images = {name: part.read_with(ReadSettings(cache=image_cache)) for name, part in images.items()}
    with contextlib.nullcontext() if out is None else claim(out, STAGE, overwrite=overwrite):
        model = Path(directory).name
        keep = None if clip_benchmark is None else benchmark_writer(classifier, model, Path(clip_benchmark))
        return score(
            classifier,
            images,
            model,
            resolve_device(device),
            out,
            precision=precision,
            reference=reference,
            keep=keep,
        )


def run_export(suite: str, out: str | Path, *, seed: int = 0) -> int:
    """Writes an embedded suite to ``out`` as folders of images, and returns the number of images.

    Raises an InputError if ``out`` is not empty.
    """
    out = Path(out)
    return export_suite(load_suite(suite, seed=seed), out)


def predict_images(
    directory: str | Path,
    images: Sequence[Path],
    *,
    top: int = 5,
    device: str | torch.device = "auto",
    precision: str = "float32",
) -> list[Answer]:
    """The ``top`` most probable classes of each image; a folder is all its images.

    ``directory`` is that of the classifier, or the name of a network with its own head, such as lite0. The encoder runs
    in ``precision``, as in ``predict``.

    Raises an InputError that names a file which is missing or cannot be decoded, or a folder without images, and one
    for a device or a precision that cannot be used.
    """
    skipped = SkippedFiles()
    images = named_pictures(images, skipped)
    skipped.warn("images")
    classifier = load_scored(directory)
    names, labels = [str(image) for image in images], np.zeros(len(images), dtype=np.int64)
    unlabelled = picture_set("images", classifier.classes, names, labels, images)
    predictions = predict(classifier, unlabelled, device=device, precision=precision)
    probabilities = np.exp(log_probabilities(predictions.logits))
    return [
        Answer(str(image), _top(row, classifier.classes, top)) for image, row in zip(images, probabilities, strict=True)
    ]


def _top(row: np.ndarray, classes: ClassSpace, top: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-row, kind="stable")[:top]
    return tuple((classes.names[k], float(row[k])) for k in order)


def _require_unseen_validation(run_file: RunFile, fine_tuned: Classifier) -> None:
    """Raises an InputError if the validation split was drawn with another seed than that of the training.

    Such a split would contain images that the classifier was trained on.
    """
    seed = fine_tuned.training.get("seed", run_file.seed)
    if isinstance(run_file.suite, SuiteFile):
        drawn = run_file.suite.reference.validation is None
    else:
        section = family_section(run_file.suite)
        drawn = section is not None and section["reference"]["validation"] is None
    if drawn and seed != run_file.seed:
        raise InputError(
            f"the fine-tuned classifier held out its validation images with seed {seed}, and this sweep uses seed "
            f"{run_file.seed}, so most of them were trained on. Add `seed={seed}`, or name `validation` data."
        )
