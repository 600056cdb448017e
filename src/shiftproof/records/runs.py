"""The record of everything that one run measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftproof.errors import counted, listed
from shiftproof.records.accuracy import AccuracyRecord
from shiftproof.records.paths import PathRecord

MODELS = ("zero_shot", "fine_tuned", "ensemble")


@dataclass(frozen=True)
class HeldOutRecord:
    """The validation split that was held out of the training images, because no validation data were named.

    It has ``images`` of the ``total`` training images, drawn with ``seed``. ``groups`` is the number of groups that it
    consists of if images belong together. ``absent_classes`` have no image in it, since they have too few images or
    groups.
    """

    images: int
    total: int
    seed: int
    groups: int | None = None
    absent_classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        unit = "every class" if self.groups is None else f"every class in {counted(self.groups, 'whole group')}"
        sentence = (
            f"{self.images:,} of the {self.total:,} training images, held out of {unit} with seed {self.seed}, "
            "because no validation data were named"
        )
        if not self.absent_classes:
            return sentence
        reason = "which have too few images" if self.groups is None else "whose images are in too few groups"
        return f"{sentence}; it has none of {listed(self.absent_classes, 5)}, {reason}"


@dataclass(frozen=True)
class RunRecord:
    """The measurements of a complete run; ``summary.json`` is its JSON form.

    ``models[name][set]`` are the evaluations of zero_shot, fine_tuned and ensemble; those on the reference use its
    test split. ``kinds`` says for every shift whether it is natural or synthetic. ``alpha`` is the chosen one; the best
    alpha on each set is given by the path's ``oracle()``. ``conversions`` count, by data name and conversion, the
    pictures that were not plain 8-bit RGB, and ``skipped``, by data name, those that were left out because they cannot
    be decoded. ``start`` says what theta_0 is, which the record calls zero_shot whatever it
    is: its ``model`` and its ``head`` (``Classifier.head``); runs of earlier versions did not record it.
    ``validation`` is None if validation data were named. ``batch_norm`` says whether the running statistics of the
    ensembles are "averaged" or "re-estimated" on the training images. ``precision`` is that of the encoder in all
    measurements. ``versions`` are those of the packages that began the run, and ``later_versions`` those that continued
    it, where they differ.
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
    conversions: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    start: Mapping[str, str] = field(default_factory=dict)
    validation: HeldOutRecord | None = None
    batch_norm: str = "averaged"
    precision: str = "float32"
    skipped: Mapping[str, int] = field(default_factory=dict)
    later_versions: tuple[Mapping[str, str], ...] = ()

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the reference and of the shifts, in this order."""
        return (self.reference, *self.shifts)

    def shifts_of(self, kind: str) -> tuple[str, ...]:
        """The names of the shifts of a kind, "natural" or "synthetic"."""
        return tuple(name for name in self.shifts if self.kinds[name] == kind)

    def mean_accuracy(self, model: str, sets: tuple[str, ...]) -> float | None:
        """A model's mean accuracy over sets, or None if there are none."""
        return sum(self.models[model][name].accuracy for name in sets) / len(sets) if sets else None
