"""Sample images for the report: thumbnails of a few images of every set, with each model's prediction."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shiftproof.data.suites import ShiftSuite
from shiftproof.diagnosis.strong_edge import map_examples
from shiftproof.errors import InputError
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.predictions import StoredPredictions
from shiftproof.models.classifier import Classifier
from shiftproof.seeding import child_generator
from shiftproof.storage import write_atomically, write_json

_PER_SET = 8
_LARGEST_SIDE = 160
_MAPPED = 4  # samples of a set that get maps


def write_samples(
    suite: ShiftSuite, predictions: Mapping[str, Mapping[str, StoredPredictions]], folder: Path, *, seed: int
) -> None:
    """Writes thumbnails, and ``samples.json`` with the answers from ``predictions[model][set]``.

    The samples are drawn at random from each set, not selected by what a model predicts.
    """
    entries = []
    for name, images in suite.test_sets.items():
        positions = sample_positions(name, len(images), seed)
        answers = {
            model: _answers(by_set[name], positions, suite.classes.names) for model, by_set in predictions.items()
        }
        for number, position in enumerate(positions):
            file = f"{name}-{number:02d}.png"
            thumbnail = Image.fromarray(images.read(position))
            thumbnail.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
            write_atomically(folder / file, thumbnail.save)
            entries.append(
                {
                    "set": name,
                    "id": images.ids[position],
                    "label": suite.classes.names[images.labels[position]],
                    "file": file,
                    "answers": {model: model_answers[number] for model, model_answers in answers.items()},
                }
            )
    write_json(folder / "samples.json", {"samples": entries})


def write_maps(
    suite: ShiftSuite,
    classifiers: Mapping[str, Classifier],
    folder: Path,
    *,
    seed: int,
    device: str = "cpu",
    precision: str = "float32",
) -> None:
    """Writes each model's activation maps of some samples as grey images ``SET-NUMBER-MODEL.png``; white is highest.

    Earlier maps are deleted first. There are no maps of models for which they cannot be computed (CAM does not fit the
    encoder and the extra cam is absent).
    """
    shutil.rmtree(folder, ignore_errors=True)
    for name, images in suite.test_sets.items():
        samples = images.subset(sample_positions(name, len(images), seed)[:_MAPPED])
        try:
            examples = map_examples(classifiers, samples, device=device, precision=precision)
        except InputError:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for number, example in enumerate(examples):
            for model, attention in example.maps.items():
                picture = Image.fromarray((255 * attention).round().astype(np.uint8))
                picture.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
                write_atomically(folder / f"{name}-{number:02d}-{model}.png", picture.save)


def sample_positions(name: str, count: int, seed: int) -> list[int]:
    """Returns the positions of a set's samples among its ``count`` images."""
    order = torch.randperm(count, generator=child_generator(seed, "samples", name))
    return [int(position) for position in order[:_PER_SET]]


def _answers(predictions: StoredPredictions, positions: list[int], names: tuple[str, ...]) -> list[dict[str, object]]:
    rows: dict[int, NDArray[np.float32]] = {}
    start = 0
    for block in predictions.blocks():
        rows |= {position: block[position - start] for position in positions if 0 <= position - start < len(block)}
        start += len(block)
    labels = predictions.labels[positions]
    sample_scores = scores(np.stack([rows[position] for position in positions]), labels)
    return [
        {
            "prediction": names[int(prediction)],
            "confidence": round(float(np.float64(confidence)), 4),
            "right": bool(prediction == label),  # several classes may have one name
        }
        for prediction, confidence, label in zip(
            sample_scores.prediction, sample_scores.confidence, labels, strict=True
        )
    ]
