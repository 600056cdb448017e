"""Single stages of the method, which the commands for one stage run: zero-shot, fine-tune, evaluate, predict."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from shiftproof.data.captions import load_captioned_set
from shiftproof.data.export import export_suite
from shiftproof.data.families.registry import SHIFT, is_family
from shiftproof.data.labels import ClassSpace
from shiftproof.data.pictures import SkippedFiles, named_pictures
from shiftproof.data.readable import without_undecodable
from shiftproof.data.reading import ReadSettings
from shiftproof.data.sets import picture_set, warn_of_missing_classes
from shiftproof.data.suites import load_data, load_suite, load_test_sets
from shiftproof.errors import InputError, refuse_path, require_choice
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import log_probabilities
from shiftproof.finetuning.loop import finetune
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import save_classifier
from shiftproof.pretraining.loop import pretrain
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.pretraining import PretrainRecord
from shiftproof.report.comparisons import start_name
from shiftproof.runs.directory import STAGE, TRAINING, OutputDirectory, Request, claim, claim_together
from shiftproof.runs.doubts import (
    note_validation,
    warn_of_data,
    warn_of_guessing,
    warn_of_loss,
    warn_of_space,
    warn_of_start,
)
from shiftproof.runs.file import RunFile
from shiftproof.runs.inputs import build_start, load_run_suite, require_trainable
from shiftproof.runs.requests import records_versions, request_of
from shiftproof.runs.scores import benchmark_writer, score, write_results
from shiftproof.runs.starts import load_scored
from shiftproof.training.distributed import is_main_process, joined_processes
from shiftproof.training.log import trackers_from

_TEST = "test"  # the name under which the test data of a reference are given on their own


@dataclass(frozen=True)
class Answer:
    """The most probable classes of one image, the most probable first: (class name, probability from 0 to 1)."""

    image: str
    top: tuple[tuple[str, float], ...]


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
    request = _training_request(run_file)
    with joined_processes(device), claim_together(out, TRAINING, request, device, resume=resume, overwrite=overwrite):
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
    warn_of_guessing(name if (name := start_name(classifier.head)) == "zero-shot" else f"the {name}", records)
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
    request = _training_request(run_file)
    with joined_processes(device), claim_together(out, TRAINING, request, device, resume=resume, overwrite=overwrite):
        note_validation(suite)
        warn_of_data(suite, limited=run_file.limit is not None)
        warn_of_space(start, suite, run_file.finetune, out)
        precision = run_file.evaluation.precision
        warn_of_start(start, suite, device, precision)
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
        records = score(
            tuned, sets, "fine_tuned", device, None, precision=precision, reference=reference, together=True
        )
        if is_main_process():
            save_classifier(tuned, out, overwrite=True)
            write_results(records, out)
            warn_of_guessing("fine-tuned", records)
        return records


def _training_request(run_file: RunFile) -> Request:
    """Returns the request of a training run, which is that of a run.

    Version 0.1.0 recorded no versions; its directories are recognised by the checkpoints beside ``run.yaml``.
    """

    def is_request(file: Path) -> bool:
        return records_versions(file) or (file.is_file() and OutputDirectory(file.parent).checkpoints.is_dir())

    return replace(request_of(run_file), is_request=is_request)


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
    on_bad_image: str = "stop",
    overwrite: bool = False,
) -> tuple[AccuracyRecord, ...]:
    """Scores a classifier on the test sets of a suite and on named data.

    ``directory`` is that of the classifier, or the name of a network with its own head, such as lite0. ``sets`` maps
    the name of each set to its data, such as folder:PATH; the set named "test" is that of the reference, and the others
    are shifts. With ``out``, the records are also written to ``results.jsonl`` in that directory. With
    ``clip_benchmark``, each result is also written to that folder in the form of LAION's CLIP_benchmark. A set of your
    own may lack classes of the classifier; a warning names them. The encoder runs in ``precision``, as in ``predict``.
    ``image_cache`` is a directory for resized pictures (``ReadSettings``). ``on_bad_image`` is "stop", or "skip" for
    pictures that cannot be decoded to be left out and counted. Processes started by ``torchrun`` share the
    work, and the main one writes.

    Raises an InputError if there is no data, for another ``on_bad_image``, if a set has labels that the classifier does
    not know, or if the device or the precision cannot be used.
    """
    out = None if out is None else Path(out)
    require_choice("on_bad_image", on_bad_image, ("stop", "skip"))
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
    if on_bad_image == "skip":
        images = {name: without_undecodable(part) for name, part in images.items()}
    device = resolve_device(device)
    claimed = contextlib.nullcontext() if out is None else claim_together(out, STAGE, None, device, overwrite=overwrite)
    with joined_processes(device), claimed:
        model = Path(directory).name
        keep = None if clip_benchmark is None else benchmark_writer(classifier, model, Path(clip_benchmark))
        return score(
            classifier,
            images,
            model,
            device,
            out,
            precision=precision,
            reference=reference,
            together=True,
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
