"""Study files, members and records for tests of studies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.studies import StudyMember, StudyRecord
from shiftproof.records.summaries import study_from_json
from shiftproof.studies.spreads import measure_spreads


def fruit_study(folders: Path, **sections: Any) -> dict[str, Any]:
    """A study of one's own data, as quick as can be; ``sections`` add to its run, or stand beside it."""
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    run = {
        "model": "tiny",
        "suite": {"reference": splits, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}},
        "alphas": [0, 0.5, 1],
        "device": "cpu",
        "limit": 3,
        "finetune": {"recipe": "head-only", "epochs": 1, "batch_size": 3, "lr": 1e-2, "shots": 1},
    }
    return {**sections, "run": {**run, **sections.get("run", {})}}


def in_yaml(folder: Path, settings: Mapping[str, Any]) -> Path:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
    return file


SETS = ("photo", "sketch", "painting")


def point(alpha: float, accuracies: Sequence[float]) -> PathPoint:
    """A point whose intervals reach 10 points down and 4 points up."""
    intervals = {name: (value - 0.1, value + 0.04) for name, value in zip(SETS, accuracies, strict=True)}
    return PathPoint(alpha, accuracies[0], dict(zip(SETS, accuracies, strict=True)), intervals)


def made(
    configuration: str,
    seed: int | None,
    *accuracies: Sequence[float],
    chosen: float = 1.0,
    members: tuple[str, ...] = (),
) -> StudyMember:
    """A run whose path has three alphas with the given accuracies on photo, sketch and painting."""
    points = tuple(point(alpha, result) for alpha, result in zip((0.0, 0.5, 1.0), accuracies, strict=True))
    path = PathRecord(SETS[0], SETS[1:], points)
    name = configuration if seed is None else f"{configuration}-seed-{seed}"
    return StudyMember(name, configuration, {"finetune.lr": 0.1}, seed, path, chosen, 1.5, members)


ZERO = (0.5, 0.6, 0.7)
FOUND = (
    made("a", 0, ZERO, (0.80, 0.70, 0.72), (0.70, 0.40, 0.60), chosen=0.5),
    made("a", 1, ZERO, (0.80, 0.70, 0.74), (0.80, 0.50, 0.70), chosen=1.0),
    made("b", 0, ZERO, (0.82, 0.60, 0.80), (0.60, 0.30, 0.50), chosen=0.5),
    made("c", 0, ZERO, (0.84, 0.70, 0.76), (0.90, 0.60, 0.80), chosen=0.0),
)


def recorded(result: Sequence[StudyMember], **changes: Any) -> StudyRecord:
    reported: dict[str, Any] = {
        "suite": "own",
        "reference": SETS[0],
        "shifts": SETS[1:],
        "averaged": SETS[1:],
        "rule": "reference",
        "interval_level": LEVEL,
        "members": tuple(result),
        "failures": (),
        "soups": (),
        "spreads": measure_spreads(result, SETS[0], SETS[1:]),
        "versions": {"shiftproof": "0"},
    }
    return StudyRecord(**{**reported, **changes})


def read_record(out: Path) -> StudyRecord:
    return study_from_json(json.loads((out / "study.json").read_text(encoding="utf-8")))
