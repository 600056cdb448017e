"""Sample images for the report: a few of every set as thumbnails, with each model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shiftproof.data.suites import ShiftSuite
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.predictions import Predictions
from shiftproof.seeding import child_generator
from shiftproof.storage import write_atomically, write_json

_PER_SET = 8
_LARGEST_SIDE = 160


def write_samples(
    suite: ShiftSuite, predictions: Mapping[str, Mapping[str, Predictions]], folder: Path, *, seed: int
) -> None:
    """Writes thumbnails and ``samples.json`` with the answers of ``predictions[model][set]``.

    The samples are drawn at random from each set, not picked for what a model says of them.
    """
    entries = []
    for name, images in suite.test_sets.items():
        order = torch.randperm(len(images), generator=child_generator(seed, "samples", name))
        for number, position in enumerate(order[:_PER_SET].tolist()):
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
                    "answers": {
                        model: _answer(of_sets[name], position, suite.classes.names)
                        for model, of_sets in predictions.items()
                    },
                }
            )
    write_json(folder / "samples.json", {"samples": entries})


def _answer(predictions: Predictions, position: int, names: tuple[str, ...]) -> dict[str, object]:
    row = slice(position, position + 1)
    kept = scores(predictions.logits[row], predictions.labels[row])
    return {
        "prediction": names[int(kept.prediction[0])],
        "confidence": round(float(np.float64(kept.confidence[0])), 4),
    }
