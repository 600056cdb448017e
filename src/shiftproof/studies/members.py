"""One run of a study: fine-tuning, the alpha sweep, and the files in its directory."""

from __future__ import annotations

import functools
import shutil
import time

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.path import path_sets, sweep_alpha
from shiftproof.ensembling.rules import choose_alpha
from shiftproof.errors import InputError
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import correct_rows
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.models.names import is_encoder
from shiftproof.records.codec import document
from shiftproof.records.studies import StudyMember
from shiftproof.records.summaries import member_from_json, member_json
from shiftproof.runs.directory import MemberDirectory
from shiftproof.runs.file import RunFile
from shiftproof.runs.inputs import batch_norm_images, build_start, load_run_suite
from shiftproof.runs.requests import recorded_request
from shiftproof.storage import locked, read_json, write_json, write_text
from shiftproof.studies.file import MemberRun
from shiftproof.training.log import trackers_from

_START_KEYS = (
    *("model", "head", "weights", "random_weights", "suite", "classes", "prompts", "seed", "limit"),
    *("head_cache", "image_cache", "on_bad_image", "evaluation"),
)


def run_member(run: MemberRun, directory: MemberDirectory, rule: str, threads: int | None = None) -> None:
    """Fine-tunes one configuration, sweeps alpha and writes ``fine_tuned/`` and ``member.json``.

    The fine-tuned classifier of a finished run with the same training is used again. An interrupted training run is
    resumed from its last checkpoint. The checkpoints are deleted at the end. ``threads`` is the number of threads that
    PyTorch may use; None leaves it as it is.
    """
    if threads:
        import torch

        torch.set_num_threads(threads)
    started = time.perf_counter()
    run_file, device = run.run_file, resolve_device(run.run_file.device)
    suite = cached_suite(start_key(run_file))
    with locked(directory.root):
        earlier = directory.run_file if directory.has_progress else None
        write_text(directory.run_file, recorded_request(run_file, earlier))
        start = start_of(run_file, suite)
        tuned = trained_alike(run_file, directory) or finetune(
            start,
            suite.relabelled(start.classes),
            run_file.finetune,
            seed=run_file.seed,
            device=device,
            checkpoints=directory.checkpoints,
            trackers=trackers_from(run_file.report_to),
        )
        save_classifier(tuned, directory.fine_tuned, overwrite=True)
        member = sweep_member(run.name, run, start, tuned, suite, rule, started)
        write_json(directory.record, document(member_json(member)))
        directory.error.unlink(missing_ok=True)
        for checkpoint in directory.checkpoints.glob("step-*"):  # the log is not deleted
            shutil.rmtree(checkpoint, ignore_errors=True)


def trained_alike(run_file: RunFile, directory: MemberDirectory) -> Classifier | None:
    """The fine-tuned classifier of a finished run of the same study that has the same training, if there is one."""
    for folder in sorted(directory.root.parent.iterdir()):
        other = MemberDirectory(folder)
        if is_done(other) and RunFile.read(other.run_file).differences(run_file) == ["batch_norm"]:
            return load_classifier(other.fine_tuned, channels_last=run_file.finetune.channels_last)
    return None


def sweep_member(
    name: str,
    run: MemberRun,
    start: Classifier,
    tuned: Classifier,
    suite: ShiftSuite,
    rule: str,
    started: float,
    *,
    members: tuple[str, ...] = (),
) -> StudyMember:
    """Sweeps alpha from ``start`` to ``tuned`` and chooses one by ``rule``.

    ``started`` is the reading of ``time.perf_counter`` at which the member's seconds begin. ``members`` names the
    ingredients of a soup, and is empty for a run.
    """
    run_file = run.run_file
    suite, device = suite.relabelled(start.classes), resolve_device(run_file.device)
    start_correct = _start_correct(start_key(run_file), device)

    def known(alpha: float, name: str) -> NDArray[np.bool_] | None:
        return start_correct[name] if alpha == 0 else None

    images = batch_norm_images(run_file, suite)
    path = sweep_alpha(
        start,
        tuned,
        suite,
        run_file.alphas,
        device=device,
        precision=run_file.evaluation.precision,
        known=known,
        batch_norm_images=images,
    )
    return StudyMember(
        name=name,
        configuration=name if members else run.configuration,
        changes={} if members else run.changes,
        seed=None if members else run_file.seed,
        path=path,
        chosen=choose_alpha(path, rule, tolerance=run_file.alpha_tolerance),
        seconds=round(time.perf_counter() - started, 1),
        members=members,
        head=start.head,
    )


def is_done(directory: MemberDirectory) -> bool:
    """Whether the run in a member's directory has finished."""
    return directory.record.is_file()


def require_same_run(run: MemberRun, directory: MemberDirectory) -> None:
    """Raises an InputError if a finished run had other settings, for example other defaults."""
    if is_done(directory) and not RunFile.read(directory.run_file).gives_the_same_results(run.run_file):
        raise InputError(
            f"{directory.root} holds a run with settings other than this study's. Its defaults may come from another "
            "version of shiftproof. Delete that directory to run it again, or choose another `out`."
        )


def read_member(directory: MemberDirectory, suite: ShiftSuite) -> StudyMember:
    """Reads the record of a finished run from its directory."""
    return member_from_json(
        suite.reference.name, tuple(shift.name for shift in suite.shifts), read_json(directory.record)
    )


def start_key(run_file: RunFile) -> str:
    """Returns, as JSON, the settings that determine the suite and the start.

    Runs with the same key share the images and the start's scores in memory.
    """
    settings = run_file.model_dump(mode="json")
    return RunFile.resolve({name: settings[name] for name in _START_KEYS}).model_dump_json()


@functools.lru_cache(maxsize=2)
def cached_suite(key: str) -> ShiftSuite:
    """Loads the suite of a ``start_key`` once for all runs in this process."""
    return load_run_suite(RunFile.model_validate_json(key))


def start_of(run_file: RunFile, suite: ShiftSuite) -> Classifier:
    """Builds the start of a run; that of a model without a text tower only once for all runs with this start.

    A linear probe of such a model takes a while.
    """
    if not is_encoder(run_file.model):
        return build_start(run_file, suite)
    return _cached_start(start_key(run_file), resolve_device(run_file.device))


@functools.lru_cache(maxsize=1)
def _cached_start(key: str, device: str) -> Classifier:
    run_file = RunFile.model_validate_json(key).model_copy(update={"device": device})
    return build_start(run_file, cached_suite(key))


@functools.lru_cache(maxsize=2)
def _start_correct(key: str, device: str) -> dict[str, NDArray[np.bool_]]:
    """Returns which (N,) images of each set the start classifies correctly, for all runs with this start."""
    run_file = RunFile.model_validate_json(key).model_copy(update={"device": device})
    start = start_of(run_file, cached_suite(key))
    sets = path_sets(cached_suite(key).relabelled(start.classes))
    precision = run_file.evaluation.precision
    predictions = {name: predict(start, images, device=device, precision=precision) for name, images in sets.items()}
    return {name: correct_rows(p.logits, p.labels) for name, p in predictions.items()}
