"""The records of ``diagnosis.json``, which has the results of all diagnoses of one run."""

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
    """How two models' predictions on one set differ, and the CKA of their outputs (None if one of them is constant)."""

    first: str
    second: str
    set: str
    agreement: AgreementRecord
    cka: CkaRecord | None


@dataclass(frozen=True)
class DiversityRecord:
    """How much more diverse one pair of models is than another on one set, which is the paper's first contrast."""

    first: tuple[str, str]
    second: tuple[str, str]
    set: str
    difference: Measured


@dataclass(frozen=True)
class DifferenceRecord:
    """The accuracy of ``first`` minus that of ``second`` on one set, or averaged over ``sets``.

    ``p`` is McNemar's exact p value on one set, over clusters where images belong together (``mcnemar_test``), and
    ``p_holm`` its Holm correction over all sets of the pair; both are None for a mean over sets.
    """

    first: str
    second: str
    sets: tuple[str, ...]
    difference: Measured
    p: float | None = None
    p_holm: float | None = None


@dataclass(frozen=True)
class AverageRecord:
    """The mean accuracy of one model over ``sets``."""

    model: str
    sets: tuple[str, ...]
    accuracy: Measured


@dataclass(frozen=True)
class ClassesRecord:
    """The macro F1 of one model over the classes present in one set, and the accuracy on its worst group.

    ``macro_accuracy`` is the mean of the accuracies on these classes; None in files that were written without it.
    """

    model: str
    set: str
    macro_f1: Measured
    worst_group: str | None
    worst_accuracy: Measured | None
    macro_accuracy: Measured | None = None


@dataclass(frozen=True)
class ConfidenceRecord:
    """How reliable the probabilities are at one alpha on one set.

    ``calibration_error`` uses ``bins`` of equal width; ``nll`` is in nats; ``selective`` maps a coverage ("0.8") to the
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
    """One model's temperature, fitted on the reference's validation split, and its calibration on a set with it."""

    model: str
    set: str
    temperature: float
    calibration_error: Measured
    nll: Measured


@dataclass(frozen=True)
class RobustnessRecord:
    """The robustness of one model under one shift.

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
    """The linear connectivity between two models other than zero-shot and fine-tuned, which ``name`` describes."""

    name: str
    connectivity: tuple[ConnectivityRecord, ...]
    losses: tuple[LossRecord, ...]


@dataclass(frozen=True)
class DiagnosisRecord:
    """Everything that the diagnosis of one run measured.

    ``clusters`` says for every set what its intervals resample ("sample", "group", or the kind of source that its
    images are views of, such as "drawing"), ``cluster_counts`` how many of them. ``pairs`` are pairs of zero_shot,
    fine_tuned, ensemble and, after a full diagnosis, the models fine-tuned on two halves of the reference. ``layers``,
    ``strong_edge``, ``planes``, ``other_paths``, ``diversity``, ``baselines`` (accuracies of models trained on the
    reference only, by set) and effective robustness are results of a full diagnosis only. ``models`` are the three
    models' fingerprints.
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
        """The names of the reference and of the shifts, in this order."""
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
        """Returns the record with these pairs, which replace those of the same models on the same set."""
        by_key = {(pair.first, pair.second, pair.set): pair for pair in (*self.pairs, *pairs)}
        return replace(self, pairs=tuple(by_key.values()))

    def with_path(self, path: OtherPathRecord) -> DiagnosisRecord:
        """Returns the record with this path, which replaces the one of the same name."""
        by_name = {other.name: other for other in (*self.other_paths, path)}
        return replace(self, other_paths=tuple(by_name.values()))

    def beside(self, earlier: DiagnosisRecord) -> DiagnosisRecord:
        """Returns this record with the parts of an earlier diagnosis of the same models that required running one."""
        return replace(
            earlier.with_pairs(self.pairs),
            **{
                part.name: getattr(self, part.name)
                for part in fields(self)
                if part.name not in ("pairs", "layers", "strong_edge", "planes", "other_paths", "diversity", "seconds")
            },
        )
