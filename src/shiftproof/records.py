"""Frozen results and their JSON form; what a run measured, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from shiftproof.errors import InputError

SCHEMA = 1
MODELS = ("zero_shot", "fine_tuned", "ensemble")


@dataclass(frozen=True)
class GroupRecord:
    """Accuracy of one group of a set: a fraction of ``n`` samples with its interval."""

    accuracy: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class AccuracyRecord:
    """One evaluation: one model (at one alpha, where it lies on a path) on one set.

    ``accuracy`` is the fraction correct/n, ``interval`` its Clopper-Pearson bounds; ``calibration_error``
    is None where only compact predictions were kept.
    """

    model: str
    alpha: float | None
    set: str
    accuracy: float
    interval: tuple[float, float]
    n: int
    calibration_error: float | None = None
    per_class: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, GroupRecord] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary, one line of ``results.jsonl``."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> AccuracyRecord:
        """The inverse of ``to_json``."""
        groups = {name: _group(group) for name, group in value.get("groups", {}).items()}
        return cls(**{**value, "interval": _pair(value["interval"]), "groups": groups})


@dataclass(frozen=True)
class PathPoint:
    """One alpha of a path: accuracy on the reference's validation split and on every test set."""

    alpha: float
    validation: float
    accuracy: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class PathRecord:
    """An alpha path, from zero-shot (alpha 0) to fine-tuned (alpha 1), in rising order of alpha."""

    reference: str
    shifts: tuple[str, ...]
    points: tuple[PathPoint, ...]

    @property
    def alphas(self) -> tuple[float, ...]:
        """The alphas in rising order."""
        return tuple(point.alpha for point in self.points)

    def at(self, alpha: float) -> PathPoint:
        """The point at an alpha that was evaluated; an InputError names those that were."""
        for point in self.points:
            if abs(point.alpha - alpha) < 1e-9:
                return point
        raise InputError(f"alpha {alpha} is not on the path. Evaluated: {', '.join(map(str, self.alphas))}.")

    def oracle(self) -> dict[str, float]:
        """For every set, the alpha that is best on it, ties toward zero-shot: for the report only."""
        names = (self.reference, *self.shifts)
        return {name: max(self.points, key=lambda p: (p.accuracy[name], -p.alpha)).alpha for name in names}

    def to_json(self) -> list[dict[str, Any]]:
        """The list that stands under ``alpha_path`` in ``summary.json``."""
        return [_plain(asdict(point)) for point in self.points]

    @classmethod
    def from_json(cls, reference: str, shifts: tuple[str, ...], value: list[dict[str, Any]]) -> PathRecord:
        """The inverse of ``to_json``."""
        points = [
            PathPoint(
                entry["alpha"],
                entry["validation"],
                entry["accuracy"],
                {name: _pair(bounds) for name, bounds in entry["interval"].items()},
            )
            for entry in value
        ]
        return cls(reference, shifts, tuple(points))


@dataclass(frozen=True)
class RunRecord:
    """What a whole run measured; ``summary.json`` is its JSON form.

    ``models[name][set]`` for zero_shot, fine_tuned and ensemble; the reference's numbers are its test
    split's. ``kinds`` says of every shift whether it is natural or synthetic. ``alpha`` is the chosen one;
    what each set itself would have chosen is the path's ``oracle()``.
    """

    suite: str
    reference: str
    shifts: tuple[str, ...]
    kinds: Mapping[str, str]
    models: Mapping[str, Mapping[str, AccuracyRecord]]
    alpha: float
    alpha_rule: str
    path: PathRecord
    interval_level: float
    interval_method: str
    seconds: Mapping[str, float]
    seed: int
    versions: Mapping[str, str]

    @property
    def sets(self) -> tuple[str, ...]:
        """The reference and then the shifts."""
        return (self.reference, *self.shifts)

    def shifts_of(self, kind: str) -> tuple[str, ...]:
        """The shifts that are natural, or synthetic."""
        return tuple(name for name in self.shifts if self.kinds[name] == kind)

    def mean_accuracy(self, model: str, sets: tuple[str, ...]) -> float | None:
        """A model's mean accuracy over sets, or None where there are none."""
        return sum(self.models[model][name].accuracy for name in sets) / len(sets) if sets else None

    def to_json(self) -> dict[str, Any]:
        """``summary.json``, schema 1."""
        return {
            "schema": SCHEMA,
            "suite": self.suite,
            "reference": self.reference,
            "shifts": list(self.shifts),
            "kinds": dict(self.kinds),
            "models": {
                model: {name: _summary_entry(record) for name, record in records.items()}
                for model, records in self.models.items()
            },
            "interval": {"level": self.interval_level, "method": self.interval_method},
            "alpha": self.alpha,
            "alpha_rule": self.alpha_rule,
            "alpha_path": self.path.to_json(),
            "oracle_alpha": self.path.oracle(),
            "seconds": dict(self.seconds),
            "seed": self.seed,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RunRecord:
        """The inverse of ``to_json``; an InputError where the schema is another one."""
        if value.get("schema") != SCHEMA:
            raise InputError(f"the summary has schema {value.get('schema')!r}; this version reads {SCHEMA}.")
        alphas = {"zero_shot": 0.0, "fine_tuned": 1.0, "ensemble": value["alpha"]}
        models = {
            model: {
                name: AccuracyRecord.from_json({**entry, "model": model, "alpha": alphas[model], "set": name})
                for name, entry in entries.items()
            }
            for model, entries in value["models"].items()
        }
        shifts = tuple(value["shifts"])
        return cls(
            suite=value["suite"],
            reference=value["reference"],
            shifts=shifts,
            kinds=value["kinds"],
            models=models,
            alpha=value["alpha"],
            alpha_rule=value["alpha_rule"],
            path=PathRecord.from_json(value["reference"], shifts, value["alpha_path"]),
            interval_level=value["interval"]["level"],
            interval_method=value["interval"]["method"],
            seconds=value["seconds"],
            seed=value["seed"],
            versions=value["versions"],
        )


def _summary_entry(record: AccuracyRecord) -> dict[str, Any]:
    entry = record.to_json()
    return {name: entry[name] for name in ("accuracy", "interval", "n", "calibration_error", "groups")}


def _plain(value: Any) -> Any:
    """Tuples and mappings as the lists and dictionaries that JSON gives back."""
    if isinstance(value, Mapping):
        return {str(name): _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value


def _pair(value: Any) -> tuple[float, float]:
    low, high = value
    return float(low), float(high)


def _group(value: Mapping[str, Any]) -> GroupRecord:
    return GroupRecord(value["accuracy"], _pair(value["interval"]), value["n"])
