"""The records of a study of many fine-tuning runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from shiftproof.records.paths import PathRecord

# The models whose accuracies are compared over configurations.
STUDIED = ("fine_tuned", "wise_ft_0.5", "wise_ft_chosen")


@dataclass(frozen=True)
class StudyMember:
    """One fine-tuning run of a study, or a soup of several, with its alpha path.

    ``changes`` are the run-file keys that define its configuration; ``chosen`` is the alpha that the study's rule chose
    on the reference's validation split. For a soup, ``seed`` is None and ``members`` are the names of its members.
    ``head`` is that of the start (``Classifier.head``); earlier versions did not record it.
    """

    name: str
    configuration: str
    changes: Mapping[str, Any]
    seed: int | None
    path: PathRecord
    chosen: float
    seconds: float
    members: tuple[str, ...] = ()
    head: str | None = None

    def alpha_of(self, model: str) -> float:
        """The alpha of one of ``STUDIED`` on the path."""
        return {"fine_tuned": 1.0, "wise_ft_0.5": 0.5, "wise_ft_chosen": self.chosen}[model]

    def accuracy(self, model: str, sets: tuple[str, ...]) -> float:
        """The mean accuracy of one of ``STUDIED`` over sets."""
        point = self.path.at(self.alpha_of(model))
        return sum(point.accuracy[name] for name in sets) / len(sets)


@dataclass(frozen=True)
class StudyFailure:
    """A fine-tuning run that failed, with the error."""

    name: str
    error: str


@dataclass(frozen=True)
class SpreadRecord:
    """How much a model's accuracy, averaged over seeds, varies between configurations.

    ``deviation`` is the standard deviation, ``lowest`` and ``highest`` are the extremes; ``ratio`` is the fine-tuned
    models' deviation divided by this one, None if this one is 0. Intervals are percentile bootstrap intervals over
    configurations.
    """

    model: str
    sets: str
    deviation: float
    interval: tuple[float, float]
    lowest: float
    highest: float
    ratio: float | None
    ratio_interval: tuple[float, float] | None


@dataclass(frozen=True)
class StudyRecord:
    """A study: its members, the failures, soups and spreads; ``study.json`` is its JSON form.

    ``averaged`` are the shifts whose mean is reported: the natural ones, or all if none is natural. ``versions`` are
    those of the packages that began the study, and ``later_versions`` those that continued it, where they differ.
    """

    suite: str
    reference: str
    shifts: tuple[str, ...]
    averaged: tuple[str, ...]
    rule: str
    interval_level: float
    members: tuple[StudyMember, ...]
    failures: tuple[StudyFailure, ...]
    soups: tuple[StudyMember, ...]
    spreads: tuple[SpreadRecord, ...]
    versions: Mapping[str, str]
    later_versions: tuple[Mapping[str, str], ...] = ()

    @property
    def configurations(self) -> tuple[str, ...]:
        """The names of the configurations that at least one member has, in their order."""
        return tuple(dict.fromkeys(member.configuration for member in self.members))
