"""Many fine-tuning runs from one start, each with its alpha path: do their settings matter (WiSE-FT, Fig. 3)?"""

from __future__ import annotations

import csv
import io
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shiftproof import progress
from shiftproof.data.suites import ShiftSuite
from shiftproof.errors import ShiftproofError, TrainingInterruptedError, counted, refuse_path
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.finetuning.recipes import require_trainable_batches
from shiftproof.records.studies import StudyFailure, StudyRecord
from shiftproof.records.summaries import study_json
from shiftproof.report.figures import save_figure
from shiftproof.report.studies import study_figure
from shiftproof.runs.directory import STUDY, MemberDirectory, Request, StudyDirectory, claim
from shiftproof.runs.file import read_yaml
from shiftproof.runs.inputs import require_trainable
from shiftproof.runs.requests import recorded_versions, versions
from shiftproof.storage import write_json, write_text
from shiftproof.studies.cluster import gpus_per_run, ray_cluster, require_reachable, require_resources, without_gpu
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.members import (
    cached_suite,
    is_done,
    read_member,
    require_same_run,
    run_member,
    start_key,
    start_of,
)
from shiftproof.studies.soups import with_soups
from shiftproof.studies.spreads import measure_spreads
from shiftproof.training.checkpoints import noticing_stop_signals

_POLLING = 1.0  # seconds between two looks for a signal
_NOTICE = "stopping the study; every run finishes its step and writes a checkpoint. Press Ctrl-C again to stop at once"


def run_study(
    study_file: StudyFile, out: str | Path, *, resume: bool = False, overwrite: bool = False, address: str | None = None
) -> StudyRecord:
    """Runs every configuration with every seed in parallel on Ray, and measures how much their accuracies differ.

    Each run has a directory under ``out/members``. A run that fails is listed in the record, and the others continue.
    ``resume`` runs what is missing, and resumes an interrupted run from its last checkpoint. ``overwrite`` deletes the
    earlier study. ``address`` is the address of a Ray cluster; all its machines must see ``out``, the working
    directory, the data and the models under the same paths. If no address is given, a local cluster is started.

    After Ctrl-C or SIGTERM, every run finishes its step and writes a checkpoint, and a TrainingInterruptedError is
    raised. Raises a ShiftproofError if all runs fail, and an InputError if the data or the model of the study cannot be
    loaded, if an image is missing, if ``out`` holds another study or other files, or if Ray cannot be reached or has
    too few CPUs or GPUs.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903), Fig. 3.
    """
    refuse_path("study_file", study_file, "a study file, e.g. StudyFile.read('grid.yaml')")
    out = Path(out)
    members = study_file.members()
    # Data and model are loaded before anything is written, so that a misspelt name is reported at once.
    suite = cached_suite(start_key(members[0].run_file))
    _require_trainable(members, suite)
    if address:
        require_reachable(address)
    directory = StudyDirectory(out.resolve())

    def differences(recorded: Path) -> list[str]:
        # The paths in a recorded file are relative to the working directory, and not to the study's directory.
        return StudyFile.resolve(read_yaml(recorded, "study file")).differences(study_file)

    request = Request(lambda earlier: study_file.to_yaml(), differences)
    with claim(directory.root, STUDY, request, resume=resume, overwrite=overwrite):
        failures = _run_members(study_file, members, directory, address)
        finished = [
            read_member(directory.member(run.name), suite) for run in members if is_done(directory.member(run.name))
        ]
        if not finished:
            raise ShiftproofError(failure_summary(failures, directory.root))
        used = _versions_of([directory.member(run.name) for run in members])
        averaged = tuple(s.name for s in suite.shifts if s.kind == "natural") or tuple(s.name for s in suite.shifts)
        record = StudyRecord(
            suite=suite.name,
            reference=suite.reference.name,
            shifts=tuple(shift.name for shift in suite.shifts),
            averaged=averaged,
            rule=study_file.rule,
            interval_level=LEVEL,
            members=tuple(finished),
            failures=tuple(failures),
            soups=(),
            spreads=measure_spreads(finished, suite.reference.name, averaged),
            versions=used[0],
            later_versions=tuple(used[1:]),
        )
        _write(record, directory)  # so that the members are recorded even if the soups fail
        if study_file.soups:
            record = with_soups(record, study_file, members, suite, directory)
            _write(record, directory)
        return record


def _versions_of(members: Sequence[MemberDirectory]) -> list[dict[str, str]]:
    """The versions that worked on the finished members, and the present ones, each once."""
    recorded = [entry for member in members if is_done(member) for entry in recorded_versions(member.run_file)]
    used: list[dict[str, str]] = []
    for entry in (*recorded, versions()):
        if entry not in used:
            used.append(entry)
    return used


def _require_trainable(members: Sequence[MemberRun], suite: ShiftSuite) -> None:
    """Raises an InputError where an image is missing, or where a run of the first run's model has too small batches."""
    first = members[0].run_file
    start = start_of(first, suite)
    require_trainable(first, suite, start)
    for run in members:
        if run.run_file.model == first.model:
            require_trainable_batches(start, run.run_file.finetune, seed=run.run_file.seed)


def _run_members(
    study_file: StudyFile, members: Sequence[MemberRun], directory: StudyDirectory, address: str | None
) -> list[StudyFailure]:
    """Runs the members that have not finished yet, and returns the failures."""
    for run in members:
        require_same_run(run, directory.member(run.name))
    missing = [run for run in members if not is_done(directory.member(run.name))]
    done, failures = len(members) - len(missing), []
    progress.report("study", done, len(members))
    if not missing:
        return []
    with ray_cluster(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = gpus_per_run(study_file, machines)
        require_resources({"CPU": study_file.cpus_per_run, "GPU": gpus}, machines)
        threads = max(int(study_file.cpus_per_run), 1)
        remote = ray.remote(num_cpus=study_file.cpus_per_run, num_gpus=gpus, max_retries=0)(_run_in_worker)
        running = {
            remote.remote(
                Path.cwd(), run if gpus else without_gpu(run), directory.member(run.name), study_file.rule, threads
            ): run
            for run in missing
        }
        with noticing_stop_signals(notice=_NOTICE) as stop_signal:
            while running:
                ended, _ = ray.wait(list(running), num_returns=1, timeout=_POLLING)
                if number := stop_signal():
                    _stop(ray, list(running))
                    raise _interrupted(members, directory, number)
                for task in ended:
                    run = running.pop(task)
                    try:
                        ray.get(task)
                    except ray.exceptions.RayError as error:
                        failures.append(_failure(run, error, directory.member(run.name)))
                    done += 1
                    progress.report("study", done, len(members), failed=len(failures))
    return failures


def _stop(ray: Any, tasks: Sequence[Any]) -> None:
    """Makes the running members write a checkpoint and end, and drops those that have not begun."""
    for task in tasks:
        ray.cancel(task)  # in the worker, this has the effect of Ctrl-C
    ray.wait(tasks, num_returns=len(tasks))


def _interrupted(
    members: Sequence[MemberRun], directory: StudyDirectory, signal_number: int
) -> TrainingInterruptedError:
    done = sum(is_done(directory.member(run.name)) for run in members)
    return TrainingInterruptedError(
        f"the study was interrupted after {done} of {counted(len(members), 'run')}. Continue with `resume=True`: the "
        f"results and the checkpoints of the runs are in {directory.root / 'members'}.",
        signal_number,
    )


def _run_in_worker(
    working_directory: Path, run: MemberRun, directory: MemberDirectory, rule: str, threads: int
) -> None:
    """Runs a member in a Ray worker process, from the directory that relative paths refer to."""
    os.chdir(working_directory)
    run_member(run, directory, rule, threads)


def _failure(run: MemberRun, error: Exception, directory: MemberDirectory) -> StudyFailure:
    """Returns the first line of a failed run's error, and writes the whole traceback to its ``error.txt``."""
    cause = getattr(error, "cause", None) or error
    lines = str(cause).strip().splitlines()
    name = "" if isinstance(cause, ShiftproofError) else f"{type(cause).__name__}: "
    write_text(directory.error, str(error) or "".join(traceback.format_exception(error)))
    return StudyFailure(run.name, f"{name}{lines[0] if lines else 'no message'}")


def _write(record: StudyRecord, directory: StudyDirectory) -> None:
    write_json(directory.study, study_json(record))
    buffer = io.StringIO()
    csv.writer(buffer).writerows([_COLUMNS, *_accuracies(record)])
    write_text(directory.table, buffer.getvalue())
    save_figure(study_figure(record), directory.figure)


_COLUMNS = ("name", "configuration", "seed", "alpha", "chosen", "set", "accuracy", "low", "high")


def _accuracies(record: StudyRecord) -> Iterator[tuple[object, ...]]:
    """Yields a row for every run or soup, alpha and set. The validation split, which chooses alpha, has no interval."""
    for member in (*record.members, *record.soups):
        identity = member.name, member.configuration, "" if member.seed is None else member.seed
        for point in member.path.points:
            chosen = int(point.alpha == member.chosen)
            yield (*identity, point.alpha, chosen, "validation", point.validation, "", "")
            for name, value in point.accuracy.items():
                yield (*identity, point.alpha, chosen, name, value, *point.interval[name])


def failure_summary(failures: Sequence[StudyFailure], out: Path) -> str:
    """Lists the failures of a study and explains how to run them again."""
    return "\n".join(
        (
            f"{counted(len(failures), 'part')} of the study failed; the results of the others are in {out}. The full "
            "traceback is in each failed run's error.txt, and `resume=True` runs the failed parts again:",
            *(f"  {failure.name}: {failure.error}" for failure in failures),
        )
    )
