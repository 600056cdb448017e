"""Accuracies and means, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    is None where only compact predictions were saved. ``per_class`` is the accuracy on each class that has images,
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


@dataclass(frozen=True)
class MeanRecord:
    """A mean over ``n`` samples with its interval; None where no sample has a value."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
