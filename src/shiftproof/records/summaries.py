"""Files whose layout is not that of one record: ``summary.json``, ``path.json``, ``member.json`` and ``study.json``.

The private dataclasses define those layouts. The codec reads and writes them, so that its errors give the location of
a damaged entry in the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from shiftproof.records.accuracy import INDEPENDENT, AccuracyRecord, GroupRecord
from shiftproof.records.codec import document, from_json, to_json
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.runs import HeldOutRecord, RunRecord
from shiftproof.records.studies import SpreadRecord, StudyFailure, StudyMember, StudyRecord

# What a run's record says about the run rather than about its results.
_HOW_IT_WAS_RUN = (
    *("seconds", "seed", "versions", "conversions"),
    *("start", "validation", "batch_norm", "precision", "skipped", "later_versions"),
)


@dataclass(frozen=True)
class _Evaluation:
    """The fields of an AccuracyRecord that ``summary.json`` stores; model, alpha and set follow from the location."""

    accuracy: float
    interval: tuple[float, float]
    n: int
    calibration_error: float | None = None
    groups: Mapping[str, GroupRecord] = field(default_factory=dict)
    interval_method: str = INDEPENDENT
    clusters: int | None = None
    class_count: int | None = None
    top_class: str | None = None
    top_share: float | None = None
    majority_share: float | None = None
    protocol: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric_intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    variants: Mapping[str, GroupRecord] = field(default_factory=dict)
    skipped: int = 0


@dataclass(frozen=True)
class _Interval:
    level: float
    method: str


@dataclass(frozen=True)
class _Summary:
    suite: str
    reference: str
    shifts: tuple[str, ...]
    kinds: Mapping[str, str]
    models: Mapping[Literal["zero_shot", "fine_tuned", "ensemble"], Mapping[str, _Evaluation]]
    interval: _Interval
    alpha: float
    alpha_rule: str
    alpha_path: tuple[PathPoint, ...]
    oracle_alpha: Mapping[str, float]
    seconds: Mapping[str, float]
    seed: int
    versions: Mapping[str, str]
    conversions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)
    validation: HeldOutRecord | None = None
    batch_norm: str = "averaged"
    precision: str = "float32"
    skipped: Mapping[str, int] = field(default_factory=dict)
    later_versions: tuple[Mapping[str, str], ...] = ()


@dataclass(frozen=True)
class _Member:
    name: str
    configuration: str
    changes: Mapping[str, Any]
    seed: int | None
    path: tuple[PathPoint, ...]
    chosen: float
    seconds: float
    members: tuple[str, ...] = ()
    head: str | None = None


@dataclass(frozen=True)
class _Study:
    suite: str
    reference: str
    shifts: tuple[str, ...]
    averaged: tuple[str, ...]
    rule: str
    interval_level: float
    members: tuple[_Member, ...]
    failures: tuple[StudyFailure, ...]
    soups: tuple[_Member, ...]
    spreads: tuple[SpreadRecord, ...]
    versions: Mapping[str, str]
    later_versions: tuple[Mapping[str, str], ...] = ()


def summary_json(record: RunRecord) -> dict[str, Any]:
    """Returns the content of ``summary.json``; accuracies by class are in ``results.jsonl`` only."""
    plain = to_json(record)
    parts = [part.name for part in fields(_Evaluation)]
    return {
        **document({name: plain[name] for name in ("suite", "reference", "shifts", "kinds")}),
        "models": {
            model: {name: {part: entry[part] for part in parts} for name, entry in by_set.items()}
            for model, by_set in plain["models"].items()
        },
        "interval": {"level": record.interval_level, "method": record.interval_method},
        "alpha": record.alpha,
        "alpha_rule": record.alpha_rule,
        "alpha_path": plain["path"]["points"],
        "oracle_alpha": record.path.oracle(),
        **{name: plain[name] for name in _HOW_IT_WAS_RUN},
    }


def run_from_summary(value: Any) -> RunRecord:
    """Builds a run's record from the content of ``summary.json``; raises an InputError as ``from_json`` does."""
    summary = from_json(_Summary, value, "the summary")
    alphas = {"zero_shot": 0.0, "fine_tuned": 1.0, "ensemble": summary.alpha}
    models: dict[str, dict[str, AccuracyRecord]] = {
        model: {
            name: AccuracyRecord(model, alphas[model], name, **vars(entry), precision=summary.precision)
            for name, entry in by_set.items()
        }
        for model, by_set in summary.models.items()
    }
    return RunRecord(
        suite=summary.suite,
        reference=summary.reference,
        shifts=summary.shifts,
        kinds=summary.kinds,
        models=models,
        alpha=summary.alpha,
        alpha_rule=summary.alpha_rule,
        path=PathRecord(summary.reference, summary.shifts, summary.alpha_path),
        interval_level=summary.interval.level,
        interval_method=summary.interval.method,
        **{name: getattr(summary, name) for name in _HOW_IT_WAS_RUN},
    )


def results_from_lines(text: str) -> list[AccuracyRecord]:
    """Builds the records of ``results.jsonl`` from its text; raises an InputError, or a ValueError for invalid JSON."""
    return [from_json(AccuracyRecord, json.loads(line), "a line") for line in text.splitlines() if line.strip()]


def path_json(path: PathRecord) -> list[dict[str, Any]]:
    """Returns the content of ``path.json``, which is the points only, since the suite determines the sets."""
    return list(to_json(path.points))


def path_from_json(reference: str, shifts: tuple[str, ...], value: Any) -> PathRecord:
    """Builds a path of a suite's sets from the content of ``path.json``; raises an InputError as ``from_json`` does."""
    return PathRecord(reference, shifts, from_json(tuple[PathPoint, ...], value, "the alpha path"))


def member_json(member: StudyMember) -> dict[str, Any]:
    """Returns a study member's entry in ``study.json``; ``document`` of it is the content of ``member.json``."""
    return {**to_json(member), "path": path_json(member.path)}


def member_from_json(reference: str, shifts: tuple[str, ...], value: Any) -> StudyMember:
    """Builds a study member from its JSON form; raises an InputError as ``from_json`` does."""
    return _member(reference, shifts, from_json(_Member, value, "the study member"))


def study_json(record: StudyRecord) -> dict[str, Any]:
    """Returns the content of ``study.json``."""
    members, soups = ([member_json(member) for member in group] for group in (record.members, record.soups))
    return {**document(record), "members": members, "soups": soups}


def study_from_json(value: Any) -> StudyRecord:
    """Builds a study's record from the content of ``study.json``; raises an InputError as ``from_json`` does."""
    study = from_json(_Study, value, "the study")
    members, soups = (
        tuple(_member(study.reference, study.shifts, member) for member in group)
        for group in (study.members, study.soups)
    )
    return StudyRecord(**{**vars(study), "members": members, "soups": soups})


def _member(reference: str, shifts: tuple[str, ...], member: _Member) -> StudyMember:
    return StudyMember(**{**vars(member), "path": PathRecord(reference, shifts, member.path)})
