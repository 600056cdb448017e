"""Soups: averages of the weights of a study's members (Wortsman et al. 2022, arXiv 2203.05482)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.soups import greedy_soup, uniform_soup
from shiftproof.errors import InputError
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.records.codec import document
from shiftproof.records.studies import StudyFailure, StudyMember, StudyRecord
from shiftproof.records.summaries import member_from_json, member_json
from shiftproof.runs.directory import StudyDirectory
from shiftproof.runs.inputs import batch_norm_images
from shiftproof.storage import read_json, write_json
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.members import start_of, sweep_member


def with_soups(
    record: StudyRecord, study: StudyFile, runs: Sequence[MemberRun], suite: ShiftSuite, directory: StudyDirectory
) -> StudyRecord:
    """Returns the record with the soups that the study file requests.

    If the members cannot be averaged, the soup is recorded as a failure.
    """
    soups, failures = [], list(record.failures)
    for kind in study.soups:
        try:
            soups.append(_soup(kind, record.members, runs, suite, directory, study.rule))
        except InputError as error:  # for example, of different architectures
            failures.append(StudyFailure(f"{kind} soup", str(error)))
    return replace(record, soups=tuple(soups), failures=tuple(failures))


def _soup(
    kind: str,
    records: Sequence[StudyMember],
    runs: Sequence[MemberRun],
    suite: ShiftSuite,
    directory: StudyDirectory,
    rule: str,
) -> StudyMember:
    """Averages all finished members, saves the soup and sweeps its alpha.

    The record of an earlier soup is used again if it was made from the same records of the same members.
    """
    started, file = time.perf_counter(), directory.soup(kind).record
    names = [member.name for member in records]
    candidates = {name: _digest(directory.member(name).record) for name in names}
    if file.is_file() and (earlier := read_json(file)).pop("candidates") == candidates:
        return member_from_json(suite.reference.name, tuple(s.name for s in suite.shifts), earlier)
    first = next(run for run in runs if run.name == names[0])
    # Soups are made in this process, whatever devices Ray gave the members.
    first = replace(first, run_file=first.run_file.model_copy(update={"device": "auto"}))
    start, device = start_of(first.run_file, suite), resolve_device("auto")
    classifiers = [load_classifier(directory.member(name).fine_tuned) for name in names]
    suite = suite.relabelled(start.classes)
    images = batch_norm_images(first.run_file, suite)
    if kind == "greedy":
        precision = first.run_file.evaluation.precision
        greedy = greedy_soup(
            classifiers, suite.reference.validation, batch_norm_images=images, device=device, precision=precision
        )
        soup, taken = greedy.classifier, tuple(names[i] for i in greedy.record.members)
    else:
        soup, taken = uniform_soup(classifiers, batch_norm_images=images, device=device), tuple(names)
    save_classifier(soup, directory.soup(kind).fine_tuned, overwrite=True)
    member = sweep_member(f"{kind} soup", first, start, soup, suite, rule, started, members=taken)
    write_json(file, document({"candidates": candidates, **member_json(member)}))
    return member


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
