"""The result of a model on one data set in the form of LAION's CLIP_benchmark, whose ``build`` makes tables of them."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BenchmarkMetrics:
    """Fractions of the images whose class is the most probable one and among the five most probable ones.

    ``acc5`` is None for fewer than five classes. ``mean_per_class_recall`` is the mean of the classes' accuracies, over
    those that have images.
    """

    acc1: float
    acc5: float | None
    mean_per_class_recall: float


@dataclass(frozen=True)
class BenchmarkRecord:
    """A model's metrics on a data set. ``model`` names the architecture and ``pretrained`` the weights.

    ``classifier`` is the fingerprint of the classifier that was measured; CLIP_benchmark ignores it.
    """

    dataset: str
    model: str
    pretrained: str
    task: str
    metrics: BenchmarkMetrics
    classifier: str
    language: str = "en"

    @property
    def file_name(self) -> str:
        """The name that CLIP_benchmark's documentation gives the file."""
        parts = (self.dataset, self.pretrained, self.model, self.language, self.task)
        return "_".join(part.replace("/", "-").replace(":", "-") for part in parts) + ".json"

    def distinguished(self) -> BenchmarkRecord:
        """The record with the first characters of the classifier's fingerprint in ``pretrained``."""
        return replace(self, pretrained=f"{self.pretrained}-{self.classifier.rpartition(':')[2][:8]}")
