"""A finished run as its diagnosis uses it: its settings, its suite, its three classifiers and their predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from shiftproof.data.sets import ImageSet, spread_over_classes
from shiftproof.data.suites import ShiftSuite
from shiftproof.ensembling.path import path_sets
from shiftproof.errors import InputError
from shiftproof.evaluation.predictions import StoredPredictions, open_predictions
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import load_classifier
from shiftproof.records.runs import MODELS
from shiftproof.runs.directory import RunDirectory
from shiftproof.runs.file import RunFile
from shiftproof.runs.inputs import load_run_suite
from shiftproof.runs.predictions import PathFiles, predict_to_file, require_same_samples

# The number of images per set for measurements with many models or layers: two views of every emoji drawing.
_SAMPLE_SIZE = 534


@dataclass(frozen=True)
class FinishedRun:
    """A run directory whose pipeline has finished, loaded for further measurements on ``device``."""

    directory: RunDirectory
    run_file: RunFile
    suite: ShiftSuite
    models: Mapping[str, Classifier]
    device: str

    @classmethod
    def load(cls, directory: RunDirectory, device: str) -> FinishedRun:
        """Loads the three classifiers and the suite, in the class space of the zero-shot classifier.

        Raises an InputError if a file of the run is missing or damaged.
        """
        run_file = RunFile.read(directory.run_file)
        channels_last = run_file.finetune.channels_last
        models = {model: load_classifier(directory.classifier(model), channels_last=channels_last) for model in MODELS}
        suite = load_run_suite(run_file).relabelled(models["zero_shot"].classes)
        return cls(directory, run_file, suite, models, device)

    @property
    def precision(self) -> str:
        """The precision in which the run measured its models, and in which its diagnosis runs models."""
        return self.run_file.evaluation.precision

    @property
    def on(self) -> dict[str, Any]:
        """The device and the precision as arguments of whatever runs a model."""
        return {"device": self.device, "precision": self.precision}

    def require_runnable(self) -> None:
        """Raises an InputError where the precision of the run cannot be used on the device of the diagnosis."""
        if self.precision == "float16" and torch.device(self.device).type == "cpu":
            raise InputError(
                f"{self.directory.run_file} measures in float16, which needs a GPU, and other precisions could not be "
                f"compared with it; the device is {self.device}. Diagnose the run on a GPU."
            )

    @property
    def scores(self) -> PathFiles:
        """The compact predictions of every alpha."""
        return PathFiles(self.directory.predictions, path_sets(self.suite))

    def predictions(self) -> dict[str, dict[str, StoredPredictions]]:
        """Returns the logits of the three models by model and set, validation set included.

        Logits that an earlier version did not write are computed and written now. Raises an InputError if a file
        has the predictions of other images than the suite's.
        """
        sets = path_sets(self.suite)
        predictions = {model: {name: self._open(model, name, sets[name]) for name in sets} for model in MODELS}
        for by_set in predictions.values():
            for name, images in sets.items():
                require_same_samples(by_set[name].ids, images)
        return predictions

    def _open(self, model: str, set_name: str, images: ImageSet) -> StoredPredictions:
        file = self.directory.logits(model, set_name)
        if not file.is_file():
            predict_to_file(self.models[model], images, file, **self.on)
        return open_predictions(file)

    def natural_sets(self) -> dict[str, ImageSet]:
        """Returns the reference's test split and the natural shifts by name."""
        natural = [shift.name for shift in self.suite.shifts if shift.kind == "natural"]
        return {name: self.suite.test_sets[name] for name in (self.suite.reference.name, *natural)}

    def sampled_sets(self) -> dict[str, ImageSet]:
        """Returns at most 534 images of each natural set, spread over the classes and the same in every call."""
        return {name: spread_over_classes(images, _SAMPLE_SIZE, seed=0) for name, images in self.natural_sets().items()}
