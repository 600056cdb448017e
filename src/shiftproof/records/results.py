"""Frozen results and their JSON form; what a run measured, readable without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from shiftproof.errors import InputError, listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    is None where only compact predictions were kept. ``per_class`` is the accuracy on each class that has images,
    ``class_counts`` how many.
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
    class_counts: Mapping[str, int] = field(default_factory=dict)

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
    """One alpha of a path: accuracy on the reference's validation split and on every test set, with intervals."""

    alpha: float
    validation: float
    accuracy: Mapping[str, float]
    interval: Mapping[str, tuple[float, float]]
    validation_interval: tuple[float, float] | None = None


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
                None if entry.get("validation_interval") is None else _pair(entry["validation_interval"]),
            )
            for entry in value
        ]
        return cls(reference, shifts, tuple(points))


@dataclass(frozen=True)
class MeanRecord:
    """A mean over ``n`` samples with its interval; None where no sample has a value."""

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class RuleRecord:
    """What a rule for alpha came to: the alpha it chose, accuracies there, and their differences to alpha 0.5.

    A rule reads no shift. An ``oracle`` does: it took the alpha that is best on ``set`` ("mean": on the mean), and is
    for the report only. ``mean`` is over the sets that ``RulesRecord.averaged`` names, None where there are none;
    intervals are paired, sample by sample.
    """

    rule: str
    alpha: float
    accuracy: Mapping[str, float]
    difference: Mapping[str, MeanRecord]
    mean: float | None
    mean_difference: MeanRecord | None
    oracle: bool = False
    set: str | None = None


@dataclass(frozen=True)
class RulesRecord:
    """The rules that choose alpha compared on one path, the oracles beside them; ``rules.json`` is its JSON form."""

    reference: str
    shifts: tuple[str, ...]
    averaged: tuple[str, ...]
    tolerance: float
    level: float
    rules: tuple[RuleRecord, ...]

    def rule(self, name: str, of_set: str | None = None) -> RuleRecord:
        """What a rule came to, or the oracle of a set; an InputError names those that there are."""
        for record in self.rules:
            if (record.rule, record.set) == (name, of_set):
                return record
        known = [record.rule if record.set is None else f"{record.rule} of {record.set}" for record in self.rules]
        asked = name if of_set is None else f"{name} of {of_set}"
        raise InputError(f"there is no rule {asked!r}. Compared: {listed(known)}.")

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RulesRecord:
        """The inverse of ``to_json``."""
        rules = tuple(
            RuleRecord(
                **{
                    **entry,
                    "difference": _means(entry["difference"]),
                    "mean_difference": None if entry["mean_difference"] is None else _mean(entry["mean_difference"]),
                }
            )
            for entry in value["rules"]
        )
        return cls(**{**value, **{n: tuple(value[n]) for n in ("shifts", "averaged")}, "rules": rules})


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


@dataclass(frozen=True)
class MergeInput:
    """One input of a merge; ``fingerprint`` covers names, dtypes, shapes and bytes, whatever the order and shards.

    It is None before the input was read, in a dry run.
    """

    path: str
    role: str
    kind: str
    fingerprint: str | None = None


@dataclass(frozen=True)
class MergeRecord:
    """What a merge of checkpoint files did, or in a dry run would do, for one output; ``merge.json`` is its JSON form.

    ``alpha`` is None where entries have alphas of their own (then in ``alphas``) or the method knows none; ``members``
    are the inputs that a greedy soup took, ``scores`` what its trials came to. Every entry of the output stands in one
    of ``interpolated`` (floating point, combined), ``copied`` (from one input, bit for bit) and ``missing`` (some
    input lacks it; kept from the first that has it). ``tied`` maps names to those whose memory they share in all
    inputs; ``batch_norm`` are the averaged running statistics. ``files`` gives the bytes of every weights file.
    """

    method: str
    paper: str
    out: str
    inputs: tuple[MergeInput, ...]
    alpha: float | None
    interpolated: tuple[str, ...]
    files: Mapping[str, int]
    copied_files: tuple[str, ...]
    alphas: Mapping[str, float] = field(default_factory=dict)
    copied: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    batch_norm: tuple[str, ...] = ()
    members: tuple[int, ...] = ()
    scores: tuple[Mapping[str, Any], ...] = ()
    fingerprint: str | None = None

    @property
    def bytes(self) -> int:
        """The size of the weights."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return {"schema": SCHEMA, **_plain(asdict(self))}


@dataclass(frozen=True)
class BackgroundRecord:
    """One model on objects and backgrounds put together anew: accuracy by variant, and the background gap.

    ``gap`` is accuracy on mixed-same minus mixed-random, a fraction of the ``gap_n`` samples that both have;
    ``gap_interval`` comes from resampling whole classes.
    """

    variants: Mapping[str, GroupRecord]
    gap: float
    gap_interval: tuple[float, float]
    gap_n: int


@dataclass(frozen=True)
class BackgroundStudy:
    """How much models lean on the background of one set.

    ``chance`` is 1 / classes, what only-background gives to a model that draws nothing from the background; ``level``
    is that of every interval.
    """

    set: str
    chance: float
    seed: int
    level: float
    models: Mapping[str, BackgroundRecord]

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> BackgroundStudy:
        """The inverse of ``to_json``."""
        models = {
            name: BackgroundRecord(
                variants={variant: _group(part) for variant, part in entry["variants"].items()},
                gap=entry["gap"],
                gap_interval=_pair(entry["gap_interval"]),
                gap_n=entry["gap_n"],
            )
            for name, entry in value["models"].items()
        }
        return cls(**{**value, "models": models})


@dataclass(frozen=True)
class WindowRecord:
    """One model under one kind of window (all None: without one): the mean of every measure."""

    content: str | None
    edge: float | None
    side: float | None
    place: str | None
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class WindowSummary:
    """One model, or the difference of two: every measure's mean over the windows of one place and edge.

    ``second`` is None for one model's own means; else they are ``model`` minus ``second``, image by image.
    """

    model: str
    second: str | None
    place: str
    edge: float
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class StrongEdgeStudy:
    """What pasted windows do to models: ``models[name][window]``, ``summaries`` over windows, and ``contrasts``.

    ``kinds`` says which method made a model's maps.
    """

    set: str
    seed: int
    level: float
    kinds: Mapping[str, str]
    models: Mapping[str, Mapping[str, WindowRecord]]
    summaries: tuple[WindowSummary, ...]
    contrasts: tuple[WindowSummary, ...]

    def summary(self, model: str, place: str, edge: float) -> WindowSummary:
        """A model's summary over the windows of a place and edge."""
        return next(s for s in self.summaries if (s.model, s.place, s.edge) == (model, place, edge))

    def to_json(self) -> dict[str, Any]:
        """A plain dictionary."""
        return dict(_plain(asdict(self)))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StrongEdgeStudy:
        """The inverse of ``to_json``."""
        models = {
            model: {name: WindowRecord(**{**entry, "means": _means(entry["means"])}) for name, entry in windows.items()}
            for model, windows in value["models"].items()
        }
        summaries, contrasts = (
            tuple(WindowSummary(**{**entry, "means": _means(entry["means"])}) for entry in value[part])
            for part in ("summaries", "contrasts")
        )
        return cls(**{**value, "models": models, "summaries": summaries, "contrasts": contrasts})


@dataclass(frozen=True)
class WindowExample:
    """One test image with a window, and every model's map of the class it names; what the figure shows.

    ``image`` and ``windowed`` are (S, S, 3) bytes; ``maps[model]`` (S, S) is scaled to a maximum of 1;
    ``answers[model]`` is the named class, its probability, and whether it is the true one.
    """

    label: str
    window: str
    image: NDArray[np.uint8]
    windowed: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool]]


@dataclass(frozen=True)
class MapExample:
    """One image, and every model's map of the class it names.

    ``image`` is (S, S, 3) bytes; ``maps[model]`` (S, S) is scaled to a maximum of 1; ``answers[model]`` is the named
    class, its probability, and whether it is the true one (None where nobody knows that).
    """

    label: str
    image: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool | None]]


def _means(value: Mapping[str, Mapping[str, Any]]) -> dict[str, MeanRecord]:
    return {name: _mean(mean) for name, mean in value.items()}


def _mean(value: Mapping[str, Any]) -> MeanRecord:
    return MeanRecord(value["value"], None if value["interval"] is None else _pair(value["interval"]), value["n"])


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
