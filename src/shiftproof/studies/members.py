"""One run of a study: fine-tuning, the alpha sweep, and what its directory holds."""

from __future__ import annotations

import functools
import shutil
import time

import yaml

from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.path import path_sets, sweep_alpha
from shiftproof.ensembling.rules import choose_alpha
from shiftproof.errors import InputError
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import accuracy
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import save_classifier
from shiftproof.records.codec import document
from shiftproof.records.studies import StudyMember
from shiftproof.records.summaries import member_from_json, member_json
from shiftproof.runs.directory import MemberDirectory
from shiftproof.runs.file import RunFile
from shiftproof.runs.pipeline import build_start, load_run_suite, versions
from shiftproof.storage import locked, read_json, write_json, write_text
from shiftproof.studies.file import MemberRun
from shiftproof.training.log import trackers_from

_OF_START = ("model", "suite", "prompts", "seed", "limit")


def run_member(run: MemberRun, directory: MemberDirectory, rule: str, threads: int | None = None) -> None:
    """Fine-tunes one configuration, sweeps alpha and writes ``fine_tuned/`` and ``member.json``.

    Goes on from the last of its checkpoints, which are deleted in the end.
    """
    if threads:
        import torch

        torch.set_num_threads(threads)
    started = time.perf_counter()
    asked, device = run.asked, resolve_device(run.asked.device)
    suite = cached_suite(start_key(asked))
    with locked(directory.root):
        write_text(directory.run_file, asked.to_yaml() + yaml.safe_dump({"versions": versions()}))
        start = build_start(asked, suite)
        tuned = finetune(
            start,
            suite.relabelled(start.classes),
            asked.finetune,
            seed=asked.seed,
            device=device,
            checkpoints=directory.checkpoints,
            trackers=trackers_from(asked.report_to),
        )
        save_classifier(tuned, directory.fine_tuned)
        member = sweep_member(run.name, run, start, tuned, suite, rule, started)
        write_json(directory.record, document(member_json(member)))
        directory.error.unlink(missing_ok=True)
        for checkpoint in directory.checkpoints.glob("step-*"):  # the log stays
            shutil.rmtree(checkpoint, ignore_errors=True)


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
    """Sweeps alpha from ``start`` to ``tuned`` and chooses one by ``rule``; ``members`` are those of a soup."""
    asked = run.asked
    suite, device = suite.relabelled(start.classes), resolve_device(asked.device)
    known = _start_hits(start_key(asked), device)

    def kept(alpha: float, name: str) -> int | None:
        return known[name] if alpha == 0 else None

    path = sweep_alpha(start, tuned, suite, asked.alphas, device=device, known=kept)
    return StudyMember(
        name=name,
        configuration=name if members else run.configuration,
        changes={} if members else run.changes,
        seed=None if members else asked.seed,
        path=path,
        chosen=choose_alpha(path, rule, tolerance=asked.alpha_tolerance),
        seconds=round(time.perf_counter() - started, 1),
        members=members,
    )


def is_done(directory: MemberDirectory) -> bool:
    """Whether the run in a member's directory has ended."""
    return directory.record.is_file()


def require_same_run(run: MemberRun, directory: MemberDirectory) -> None:
    """Raises an InputError where a run that ended was another, as when this version has other defaults."""
    if is_done(directory) and not RunFile.read(directory.run_file).asks_the_same(run.asked):
        raise InputError(
            f"{directory.root} holds a run of other settings than this study comes to now, as another version may have "
            "had. Delete that directory to run it again, or choose another `out`."
        )


def read_member(directory: MemberDirectory, suite: ShiftSuite) -> StudyMember:
    """The record in the directory of a run that has ended."""
    return member_from_json(
        suite.reference.name, tuple(shift.name for shift in suite.shifts), read_json(directory.record)
    )


def start_key(asked: RunFile) -> str:
    """What suite and start depend on; runs that share it share images and scores in memory."""
    told = asked.model_dump(mode="json")
    return RunFile.resolve({name: told[name] for name in _OF_START}).model_dump_json()


@functools.lru_cache(maxsize=2)
def cached_suite(key: str) -> ShiftSuite:
    """The suite of a ``start_key``; all runs in this process share it."""
    return load_run_suite(RunFile.model_validate_json(key))


@functools.lru_cache(maxsize=2)
def _start_hits(key: str, device: str) -> dict[str, int]:
    """How many images of every set the start names right, which all runs of one start share."""
    asked = RunFile.model_validate_json(key)
    start = build_start(asked, cached_suite(key))
    sets = path_sets(cached_suite(key).relabelled(start.classes))
    said = {name: predict(start, images, device=device) for name, images in sets.items()}
    return {name: round(accuracy(found.logits, found.labels) * len(found.labels)) for name, found in said.items()}
