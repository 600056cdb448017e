"""Many fine-tunings of one start, each with its alpha path: do the settings matter (WiSE-FT, Fig. 3)?"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import os
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from shiftproof import progress
from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.path import choose_alpha, path_sets, sweep_alpha
from shiftproof.ensembling.soups import greedy_soup, uniform_soup
from shiftproof.errors import InputError, ShiftproofError, counted
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.intervals import LEVEL
from shiftproof.evaluation.metrics import accuracy
from shiftproof.finetuning.loop import finetune
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.records.codec import document
from shiftproof.records.studies import StudyFailure, StudyMember, StudyRecord
from shiftproof.records.summaries import member_from_json, member_json, study_json
from shiftproof.report.figures import save_figure
from shiftproof.report.studies import study_figure
from shiftproof.runs.directory import STUDY, Request, claim
from shiftproof.runs.file import RunFile
from shiftproof.runs.pipeline import build_start, load_run_suite, versions
from shiftproof.storage import locked, read_json, write_json, write_text
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.spreads import measure_spreads
from shiftproof.training.log import trackers_from

_OF_START = ("model", "suite", "prompts", "seed", "limit")


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
    suite = _suite(_key(members[0].asked))
    build_start(members[0].asked, suite)
    if address:
        _require_reachable(address)
    out = out.resolve()
    request = Request(asked.to_yaml(), lambda file: StudyFile.read(file).differences(asked))
    with claim(out, STUDY, request, resume=resume, overwrite=overwrite):
        failures = _run_members(asked, members, out / "members", address)
        found = [
            _read_member(out / "members" / run.name, suite) for run in members if _is_done(out / "members" / run.name)
        ]
        if not found:
            raise ShiftproofError(failure_summary(failures, out))
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
        _write(record, out)  # whatever becomes of the soups
        if asked.soups:
            record = _with_soups(record, asked, members, suite, out)
            _write(record, out)
        return record


def run_member(run: MemberRun, folder: Path, rule: str, threads: int | None = None) -> None:
    """Fine-tunes one configuration, sweeps alpha and writes ``fine_tuned/`` and ``member.json``.

    Goes on from the last of its checkpoints, which are deleted in the end.
    """
    if threads:
        import torch

        torch.set_num_threads(threads)
    started = time.perf_counter()
    asked, device = run.asked, resolve_device(run.asked.device)
    suite = _suite(_key(asked))
    with locked(folder):
        write_text(folder / "run.yaml", asked.to_yaml() + yaml.safe_dump({"versions": versions()}))
        start = build_start(asked, suite)
        tuned = finetune(
            start,
            suite.relabelled(start.classes),
            asked.finetune,
            seed=asked.seed,
            device=device,
            checkpoints=folder / "checkpoints",
            trackers=trackers_from(asked.report_to),
        )
        save_classifier(tuned, folder / "fine_tuned")
        member = _swept(run.name, run, start, tuned, suite, rule, started)
        write_json(folder / "member.json", document(member_json(member)))
        (folder / "error.txt").unlink(missing_ok=True)
        for checkpoint in (folder / "checkpoints").glob("step-*"):  # the log stays
            shutil.rmtree(checkpoint, ignore_errors=True)


def _run_members(
    asked: StudyFile, members: Sequence[MemberRun], folder: Path, address: str | None
) -> list[StudyFailure]:
    """Runs what is not done yet; returns the failures."""
    for run in members:
        _require_same_run(run, folder / run.name)
    missing = [run for run in members if not _is_done(folder / run.name)]
    done, failures = len(members) - len(missing), []
    progress.report("study", done, len(members))
    if not missing:
        return []
    with _ray(address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        gpus = _gpus_per_run(asked, machines)
        _require_resources({"CPU": asked.cpus_per_run, "GPU": gpus}, machines)
        threads = max(int(asked.cpus_per_run), 1)
        remote = ray.remote(num_cpus=asked.cpus_per_run, num_gpus=gpus, max_retries=0)(_run_there)
        running = {
            remote.remote(Path.cwd(), run if gpus else _without_gpu(run), folder / run.name, asked.rule, threads): run
            for run in missing
        }
        while running:
            (ended,), _ = ray.wait(list(running), num_returns=1)
            run = running.pop(ended)
            try:
                ray.get(ended)
            except ray.exceptions.RayError as error:
                failures.append(_failure(run, error, folder / run.name))
            done += 1
            progress.report("study", done, len(members), failed=len(failures))
    return failures


def _run_there(place: Path, run: MemberRun, folder: Path, rule: str, threads: int) -> None:
    """A run of the study in a process of Ray's, where relative paths shall mean what they mean here."""
    os.chdir(place)
    run_member(run, folder, rule, threads)


def _gpus_per_run(asked: StudyFile, machines: Sequence[Mapping[str, float]]) -> float:
    """As many as asked for; else one where there are any and the runs may use them."""
    if asked.gpus_per_run is not None:
        return asked.gpus_per_run
    device = asked.members()[0].asked.device
    return float(device != "cpu" and (device != "auto" or any(machine.get("GPU") for machine in machines)))


def _without_gpu(run: MemberRun) -> MemberRun:
    """The run as it is where Ray gives it no GPU: "auto" would see, and share, those of all others."""
    if run.asked.device != "auto":
        return run
    return replace(run, asked=run.asked.model_copy(update={"device": "cpu"}))


def _require_resources(needs: Mapping[str, float], machines: Sequence[Mapping[str, float]]) -> None:
    """Raises an InputError where no run could ever begin on any machine; Ray would wait for more machines."""
    for name, needed in needs.items():
        largest = max((machine.get(name, 0) for machine in machines), default=0)
        if needed > largest:
            raise InputError(
                f"{name.lower()}s_per_run is {needed:g}, and no machine of Ray's has more than {largest:g}. Lower it."
            )


def _require_reachable(address: str) -> None:
    """Raises an InputError where nobody listens at an address; Ray would try again for minutes."""
    try:
        place = urlsplit(address if "://" in address else f"//{address}")
        if place.port:  # "auto" has none
            socket.create_connection((place.hostname or "localhost", place.port), timeout=10).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Ray cluster answers at {address!r} ({error}). Check `address`, or leave it out."
        ) from error


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster or to one of this machine's own, which ends with the study."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # of a cluster that no other machine can reach
    try:
        import ray
    except ImportError as error:
        raise InputError("a study needs Ray. Install it: pip install 'shiftproof[study]'.") from error

    # Without an address Ray would join whichever cluster it finds.
    options: dict[str, Any] = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**options, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"Ray could not be joined or started: {error}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _failure(run: MemberRun, error: Exception, folder: Path) -> StudyFailure:
    """What a failed run says; the whole traceback goes to its ``error.txt``."""
    cause = getattr(error, "cause", None) or error
    said = str(cause).strip().splitlines()
    name = "" if isinstance(cause, ShiftproofError) else f"{type(cause).__name__}: "
    write_text(folder / "error.txt", str(error) or "".join(traceback.format_exception(error)))
    return StudyFailure(run.name, f"{name}{said[0] if said else 'no message'}")


def _swept(
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
    asked = run.asked
    suite, device = suite.relabelled(start.classes), resolve_device(asked.device)
    known = _start_hits(_key(asked), device)

    def kept(alpha: float, name: str) -> int | None:
        return known[name] if alpha == 0 else None

    path = sweep_alpha(start, tuned, suite, asked.alphas, device=device, kept=kept)
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


def _with_soups(
    record: StudyRecord, asked: StudyFile, runs: Sequence[MemberRun], suite: ShiftSuite, out: Path
) -> StudyRecord:
    """The record with the soups that were asked for; one that cannot be averaged is a failure like another."""
    soups, failures = [], list(record.failures)
    for kind in asked.soups:
        try:
            soups.append(_soup(kind, record.members, runs, suite, out, asked.rule))
        except InputError as error:  # of different architectures, say
            failures.append(StudyFailure(f"{kind} soup", str(error)))
    return replace(record, soups=tuple(soups), failures=tuple(failures))


def _soup(
    kind: str,
    found: Sequence[StudyMember],
    runs: Sequence[MemberRun],
    suite: ShiftSuite,
    out: Path,
    rule: str,
) -> StudyMember:
    """A soup of all members that ended, saved and swept; done once, unless more have ended since, or anew."""
    started, file = time.perf_counter(), out / "soups" / kind / "member.json"
    names = [member.name for member in found]
    candidates = {name: _digest(out / "members" / name / "member.json") for name in names}
    if file.is_file() and (kept := read_json(file)).pop("candidates") == candidates:
        return member_from_json(suite.reference.name, tuple(s.name for s in suite.shifts), kept)
    first = next(run for run in runs if run.name == names[0])
    first = replace(first, asked=first.asked.model_copy(update={"device": "auto"}))  # of this machine, not of Ray's
    start, device = build_start(first.asked, suite), resolve_device("auto")
    classifiers = [load_classifier(out / "members" / name / "fine_tuned") for name in names]
    if kind == "greedy":
        soup, record = greedy_soup(classifiers, suite.relabelled(start.classes).reference.validation, device)
        taken = tuple(names[i] for i in record.members)
    else:
        soup, taken = uniform_soup(classifiers), tuple(names)
    save_classifier(soup, out / "soups" / kind / "fine_tuned")
    member = _swept(f"{kind} soup", first, start, soup, suite, rule, started, members=taken)
    write_json(file, document({"candidates": candidates, **member_json(member)}))
    return member


def _write(record: StudyRecord, out: Path) -> None:
    write_json(out / "study.json", study_json(record))
    buffer = io.StringIO()
    csv.writer(buffer).writerows([_COLUMNS, *_accuracies(record)])
    write_text(out / "study.csv", buffer.getvalue())
    save_figure(study_figure(record), out / "figures" / "study.png")


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


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _is_done(folder: Path) -> bool:
    return (folder / "member.json").is_file()


def _require_same_run(run: MemberRun, folder: Path) -> None:
    """Raises an InputError where a run that ended was another, as when this version has other defaults."""
    if _is_done(folder) and not RunFile.read(folder / "run.yaml").asks_the_same(run.asked):
        raise InputError(
            f"{folder} holds a run of other settings than this study comes to now, as another version may have had. "
            "Delete that directory to run it again, or choose another `out`."
        )


def _read_member(folder: Path, suite: ShiftSuite) -> StudyMember:
    return member_from_json(
        suite.reference.name, tuple(shift.name for shift in suite.shifts), read_json(folder / "member.json")
    )


def _key(asked: RunFile) -> str:
    """What suite and start depend on; runs that share it share images and scores in memory."""
    told = asked.model_dump(mode="json")
    return RunFile.resolve({name: told[name] for name in _OF_START}).model_dump_json()


@functools.lru_cache(maxsize=2)
def _suite(key: str) -> ShiftSuite:
    return load_run_suite(RunFile.model_validate_json(key))


@functools.lru_cache(maxsize=2)
def _start_hits(key: str, device: str) -> dict[str, int]:
    """How many images of every set the start names right, which all runs of one start share."""
    asked = RunFile.model_validate_json(key)
    start = build_start(asked, _suite(key))
    sets = path_sets(_suite(key).relabelled(start.classes))
    said = {name: predict(start, images, device=device) for name, images in sets.items()}
    return {name: round(accuracy(found.logits, found.labels) * len(found.labels)) for name, found in said.items()}


def failure_summary(failures: Sequence[StudyFailure], out: Path) -> str:
    """The failures in sentences, and how to go on."""
    return "\n".join(
        (
            f"{counted(len(failures), 'part')} of the study failed; what the others found is in {out}. A run's "
            "error.txt tells more, and `resume=True` tries again:",
            *(f"  {failure.name}: {failure.error}" for failure in failures),
        )
    )
