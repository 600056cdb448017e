"""Records of accuracies and means, each with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# The methods of intervals of accuracies, for independent samples and for samples that belong together.
INDEPENDENT, CLUSTERED = "clopper-pearson", "korn-graubard"
# The variants of an accuracy on a set that has only some of the classes: the model may answer all classes, or only
# those of the set; and both on the images of the reference whose classes the set has.
OVER_ALL, MASKED = "over all classes", "masked to the classes of the set"
REFERENCE_OVER_ALL, REFERENCE_MASKED = f"reference, same classes, {OVER_ALL}", f"reference, same classes, {MASKED}"
ACCURACY_VARIANTS = (OVER_ALL, MASKED, REFERENCE_OVER_ALL, REFERENCE_MASKED)


@dataclass(frozen=True)
class GroupRecord:
    """The accuracy on one group of a set, as a fraction of its ``n`` samples, with its interval.

    ``interval_method`` and ``clusters`` are those of ``AccuracyRecord``.
    """

    accuracy: float
    interval: tuple[float, float]
    n: int
    interval_method: str = INDEPENDENT
    clusters: int | None = None


@dataclass(frozen=True)
class AccuracyRecord:
    """The evaluation of one model on one set; ``alpha`` is given if the model lies on an alpha path.

    ``accuracy`` is the fraction of the ``n`` samples that are right, with its ``interval``. The ``interval_method`` is
    ``korn-graubard`` if the samples form ``clusters``, such as the views of one drawing, and otherwise
    ``clopper-pearson``, with ``clusters`` None. ``calibration_error`` is None if only compact predictions were saved.
    ``per_class`` has the accuracy on each class that has images, ``class_counts`` the number of these images.

    ``class_count`` is the number of classes that the model chooses from. ``top_class`` is the class that it names most
    often, for the fraction ``top_share`` of the samples, and ``majority_share`` is the fraction of the samples that
    belong to the commonest class. These four are None in files of version 0.1.

    ``protocol`` names the scoring rule of a public set, and ``metrics`` are the set's metrics beside accuracy, by name,
    with their ``metric_intervals``, as far as these were measured (along an alpha path they are not). ``variants`` are
    accuracies by another rule or on a comparable part of the reference, for a set with only some of the classes
    (``ACCURACY_VARIANTS``). ``precision`` is that of the encoder that was run. ``skipped`` pictures of the set were
    left out because they cannot be decoded; ``n`` does not count them.
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
    precision: str = "float32"
    skipped: int = 0


@dataclass(frozen=True)
class MeanRecord:
    """A mean over ``n`` samples with its interval; both are None if no sample has a value."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
