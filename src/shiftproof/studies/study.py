"""Many fine-tunings of one start, each with its alpha path: do the settings matter (WiSE-FT, Fig. 3)?"""

from __future__ import annotations

import csv
import io
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

from shiftproof import progress
from shiftproof.errors import ShiftproofError, counted
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.studies import StudyFailure, StudyRecord
from shiftproof.records.summaries import study_json
from shiftproof.report.figures import save_figure
from shiftproof.report.studies import study_figure
from shiftproof.runs.directory import STUDY, MemberDirectory, Request, StudyDirectory, claim
from shiftproof.runs.pipeline import build_start, versions
from shiftproof.storage import write_json, write_text
from shiftproof.studies.cluster import gpus_per_run, ray_cluster, require_reachable, require_resources, without_gpu
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.members import cached_suite, is_done, read_member, require_same_run, run_member, start_key
from shiftproof.studies.soups import with_soups
from shiftproof.studies.spreads import measure_spreads


def run_study(
    asked: StudyFile, out: Path, *, resume: bool = False, overwrite: bool = False, address: str | None = None
) -> StudyRecord:
    """Runs every configuration with every seed, side by side through Ray, and says how much they differ.

    Each run has a directory under ``out/members``; one that fails is listed and holds up no other. Raises a
    ShiftproofError where all fail. ``resume`` goes on with what is missing, each run from its last checkpoint.
    ``address`` is that of a Ray cluster whose machines see ``out``, this directory and all data and models under the
    same paths; without it one is started here.
    """
    members = asked.members()
    # Data and model are found before anything is written, so that a misspelt name is told at once.
    suite = cached_suite(start_key(members[0].asked))
    build_start(members[0].asked, suite)
    if address:
        require_reachable(address)
    directory = StudyDirectory(out.resolve())
    request = Request(asked.to_yaml(), lambda file: StudyFile.read(file).differences(asked))
    with claim(directory.root, STUDY, request, resume=resume, overwrite=overwrite):
        failures = _run_members(asked, members, directory, address)
        found = [
            read_member(directory.member(run.name), suite) for run in members if is_done(directory.member(run.name))
        ]
        if not found:
            raise ShiftproofError(failure_summary(failures, directory.root))
        averaged = tuple(s.name for s in suite.shifts if s.kind == "natural") or tuple(s.name for s in suite.shifts)
        record = StudyRecord(
            suite=suite.name,
            reference=suite.reference.name,
            shifts=tuple(shift.name for shift in suite.shifts),
            averaged=averaged,
            rule=asked.rule,
            interval_level=LEVEL,
            members=tuple(found),
            failures=tuple(failures),
            soups=(),
            spreads=measure_spreads(found, suite.reference.name, averaged),
            versions=versions(),
        )
        _write(record, directory)  # whatever becomes of the soups
        if asked.soups:
            record = with_soups(record, asked, members, suite, directory)
            _write(record, directory)
        return record


def _run_members(
    asked: StudyFile, members: Sequence[MemberRun], directory: StudyDirectory, address: str | None
) -> list[StudyFailure]:
    """Runs what is not done yet; returns the failures."""
    for run in members:
        require_same_run(run, directory.member(run.name))
    missing = [run for run in members if not is_done(directory.member(run.name))]
    done, failures = len(members) - len(missing), []
    progress.report("study", done, len(members))
    if not missing:
        return []
    with ray_cluster(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = gpus_per_run(asked, machines)
        require_resources({"CPU": asked.cpus_per_run, "GPU": gpus}, machines)
        threads = max(int(asked.cpus_per_run), 1)
        remote = ray.remote(num_cpus=asked.cpus_per_run, num_gpus=gpus, max_retries=0)(_run_there)
        running = {
            remote.remote(
                Path.cwd(), run if gpus else without_gpu(run), directory.member(run.name), asked.rule, threads
            ): run
            for run in missing
        }
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            run = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                failures.append(_failure(run, error, directory.member(run.name)))
            done += 1
            progress.report("study", done, len(members), failed=len(failures))
    return failures


def _run_there(place: Path, run: MemberRun, directory: MemberDirectory, rule: str, threads: int) -> None:
    """A run of the study in a process of Ray's, where relative paths shall mean what they mean here."""
    os.chdir(place)
    run_member(run, directory, rule, threads)


def _failure(run: MemberRun, error: Exception, directory: MemberDirectory) -> StudyFailure:
    """What a failed run says; the whole traceback goes to its ``error.txt``."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()
    name = "" if isinstance(cause, ShiftproofError) else f"{type(cause).__name__}: "
    write_text(directory.error, str(error) or "".join(traceback.format_exception(error)))
    return StudyFailure(run.name, f"{name}{said[0] if said else 'no message'}")


def _write(record: StudyRecord, directory: StudyDirectory) -> None:
    write_json(directory.study, study_json(record))
    buffer = io.StringIO()
    csv.writer(buffer).writerows([_COLUMNS, *_accuracies(record)])
    write_text(directory.table, buffer.getvalue())
    save_figure(study_figure(record), directory.figure)


_COLUMNS = ("name", "configuration", "seed", "alpha", "chosen", "set", "accuracy", "low", "high")


def _accuracies(record: StudyRecord) -> Iterator[tuple[object, ...]]:
    """A row for every run or soup, alpha and set; the validation split, which chooses alpha, has no interval."""
    for member in (*record.members, *record.soups):
        about = member.name, member.configuration, "" if member.seed is None else member.seed
        for point in member.path.points:
            chosen = int(point.alpha == member.chosen)
            yield (*about, point.alpha, chosen, "validation", point.validation, "", "")
            for name, value in point.accuracy.items():
                yield (*about, point.alpha, chosen, name, value, *point.interval[name])


def failure_summary(failures: Sequence[StudyFailure], out: Path) -> str:
    """The failures in sentences, and how to go on."""
    return "\n".join(
        (
            f"{counted(len(failures), 'part')} of the study failed; what the others found is in {out}. A run's "
            "error.txt tells more, and `resume=True` tries again:",
            *(f"  {failure.name}: {failure.error}" for failure in failures),
        )
    )
