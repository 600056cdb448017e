"""``diagnosis.json``: the results of every diagnosis of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from shiftproof.records.comparisons import (
    AgreementRecord,
    CkaRecord,
    ConnectivityRecord,
    FollowedRecord,
    LayersRecord,
    LossRecord,
    Measured,
    MovementRecord,
    PlaneRecord,
)
from shiftproof.records.windows import StrongEdgeStudy

HALVES = ("half 1", "half 2")


@dataclass(frozen=True)
class PairRecord:
    """Two models on one set: how their predictions differ, and the CKA of their outputs (None where one is flat)."""

    first: str
    second: str
    set: str
    agreement: AgreementRecord
    cka: CkaRecord | None


@dataclass(frozen=True)
class DiversityRecord:
    """How much more diverse one pair of models is than another on one set: the paper's first contrast."""

    first: tuple[str, str]
    second: tuple[str, str]
    set: str
    difference: Measured


@dataclass(frozen=True)
class DifferenceRecord:
    """The accuracy of ``first`` minus that of ``second`` on one set, or averaged over ``sets``.

    ``p`` is McNemar's exact value on one set, ``p_holm`` Holm's correction of it over all sets of the pair; a mean over
    sets has neither.
    """

    first: str
    second: str
    sets: tuple[str, ...]
    difference: Measured
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class AverageRecord:
    """What one model reaches over ``sets`` together: their mean accuracy."""

    model: str
    sets: tuple[str, ...]
    accuracy: Measured


@dataclass(frozen=True)
class ClassesRecord:
    """One model on one set beyond plain accuracy: macro F1 over the classes present, and the worst group's accuracy."""

    model: str
    set: str
    macro_f1: Measured
    worst_group: str | None
    worst_accuracy: Measured | None


@dataclass(frozen=True)
class ConfidenceRecord:
    """How far probabilities can be trusted at one alpha on one set.

    ``calibration_error`` has ``bins`` of equal width; ``nll`` is in nats; ``selective`` maps a coverage ("0.8") to the
    accuracy on the most confident samples.
    """

    alpha: float
    set: str
    bins: int
    calibration_error: Measured
    nll: Measured
    brier: Measured
    selective: Mapping[str, Measured]


@dataclass(frozen=True)
class TemperatureRecord:
    """One model's temperature, fitted on the reference's validation split, and calibration on a set with it."""

    model: str
    set: str
    temperature: float
    calibration_error: Measured
    nll: Measured


@dataclass(frozen=True)
class RobustnessRecord:
    """One model under one shift.

    ``gap`` is accuracy on the reference minus that under the shift; ``relative`` is the accuracy under the shift minus
    the fine-tuned model's; ``effective`` is the accuracy beyond what the baseline expects, None without a baseline.
    """

    model: str
    shift: str
    gap: Measured
    relative: Measured | None
    effective: Measured | None = None


@dataclass(frozen=True)
class OtherPathRecord:
    """Linear connectivity between two other models than zero-shot and fine-tuned; ``name`` says which."""

    name: str
    connectivity: tuple[ConnectivityRecord, ...]
    losses: tuple[LossRecord, ...]


@dataclass(frozen=True)
class DiagnosisRecord:
    """Everything that the diagnosis of one run measured.

    ``clusters`` says of every set what its intervals resample ("drawing", "group" or "sample"). ``pairs`` are among
    zero_shot, fine_tuned, ensemble and, after a whole diagnosis, the fine-tunings of two halves of the reference.
    ``layers``, ``strong_edge``, ``planes``, ``other_paths``, ``diversity``, ``baselines`` (accuracies of models trained
    on the reference only, by set) and effective robustness come with a whole diagnosis alone. ``cluster_counts`` says
    how many drawings, groups or samples every set's intervals resample, ``models`` are the three models' fingerprints.
    """

    suite: str
    reference: str
    shifts: tuple[str, ...]
    kinds: Mapping[str, str]
    seed: int
    alpha: float
    level: float
    clusters: Mapping[str, str]
    pairs: tuple[PairRecord, ...]
    overrides: Mapping[str, FollowedRecord]
    connectivity: tuple[ConnectivityRecord, ...]
    losses: tuple[LossRecord, ...]
    differences: tuple[DifferenceRecord, ...]
    averages: tuple[AverageRecord, ...]
    by_class: tuple[ClassesRecord, ...]
    confidence: tuple[ConfidenceRecord, ...]
    temperatures: tuple[TemperatureRecord, ...]
    robustness: tuple[RobustnessRecord, ...]
    movement: tuple[MovementRecord, ...]
    layers: tuple[LayersRecord, ...] = ()
    strong_edge: StrongEdgeStudy | None = None
    planes: tuple[PlaneRecord, ...] = ()
    baselines: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    other_paths: tuple[OtherPathRecord, ...] = ()
    diversity: tuple[DiversityRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    cluster_counts: Mapping[str, int] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)

    @property
    def sets(self) -> tuple[str, ...]:
        """The reference and then the shifts."""
        return (self.reference, *self.shifts)

    def pair(self, first: str, second: str, name: str) -> PairRecord | None:
        """Returns the comparison of two models on a set; None if they were not compared on it."""
        matching = (pair for pair in self.pairs if (pair.first, pair.second, pair.set) == (first, second, name))
        return next(matching, None)

    def difference(self, first: str, second: str, *sets: str) -> DifferenceRecord | None:
        """Returns the difference of two models on a set, or over several; None if it was not measured."""
        matching = (d for d in self.differences if (d.first, d.second, d.sets) == (first, second, sets))
        return next(matching, None)

    def average(self, model: str, *sets: str) -> AverageRecord | None:
        """Returns a model's mean over sets; None if it was not measured."""
        return next((a for a in self.averages if (a.model, a.sets) == (model, sets)), None)

    def with_pairs(self, pairs: Sequence[PairRecord]) -> DiagnosisRecord:
        """Returns the record with these pairs in place of those of the same models on the same set."""
        known = {(pair.first, pair.second, pair.set): pair for pair in (*self.pairs, *pairs)}
        return replace(self, pairs=tuple(known.values()))

    def with_path(self, path: OtherPathRecord) -> DiagnosisRecord:
        """Returns the record with this path in place of the one of the same name."""
        known = {other.name: other for other in (*self.other_paths, path)}
        return replace(self, other_paths=tuple(known.values()))

    def beside(self, earlier: DiagnosisRecord) -> DiagnosisRecord:
        """Returns this record with those parts of an earlier diagnosis of the same models that had to run a model."""
        return replace(
            earlier.with_pairs(self.pairs),
            **{
                part.name: getattr(self, part.name)
                for part in fields(self)
                if part.name not in ("pairs", "layers", "strong_edge", "planes", "other_paths", "diversity", "seconds")
            },
        )
