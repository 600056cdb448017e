"""Measures the robustness of fine-tuning with each augmentation, alone and ensembled, over three seeds of the task.

    python benchmarks/robustness.py --runs runs/robustness --out docs/results/robustness.json

It takes about 35 minutes on two CPU cores. The settings were tuned on the development suite
(benchmarks/tune_mixing.py), and the task is run once per seed. Each run is measured fine-tuned, at alpha 0.5, and at
the alpha that the validation split of the reference chooses. The test sets are the reference, the natural shifts, and
five corruptions at severities 1, 3 and 5 (500 images each). The outcome for every image is saved in --runs, and a run
that is already there is not trained again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shiftproof import (
    Classifier,
    FinetuneSettings,
    ImageSet,
    ShiftSuite,
    finetune,
    load_clip,
    load_suite,
    predict,
    wise_ft,
    zero_shot_classifier,
)
from shiftproof.data.batches import decoded_once
from shiftproof.data.corruptions import CORRUPTIONS
from shiftproof.data.suites import corrupted
from shiftproof.ensembling.path import alpha_grid
from shiftproof.evaluation import accuracy, calibration_error
from shiftproof.evaluation.intervals import bootstrap_interval
from shiftproof.evaluation.metrics import scores
from shiftproof.evaluation.proportions import measure_proportion

BASE = FinetuneSettings(epochs=20, lr=2e-3, batch_size=128, warmup_steps=20)
REGIME = replace(BASE, mixing="cutout", mixing_probability=0.25, label_smoothing=0.1)
SETTINGS = {
    "none": BASE,
    "none, smoothing 0.1": replace(BASE, label_smoothing=0.1),
    **{
        name: replace(REGIME, mixing=name)
        for name in ("cutout", "mixup", "cutmix", "smoothmix-circle", "smoothmix-square")
    },
}
MODELS = ("fine-tuned", "alpha 0.5", "alpha by reference")
SEVERITIES = (1, 3, 5)
CORRUPTED_IMAGES = 500

Outcomes = dict[str, NDArray[np.generic]]


def test_sets(suite: ShiftSuite, start: Classifier) -> dict[str, ImageSet]:
    """The reference, the natural shifts and every corruption and severity, decoded once."""
    test = suite.reference.test
    few = test.subset(np.linspace(0, len(test) - 1, CORRUPTED_IMAGES).round().astype(int).tolist())
    sets = {"reference": test} | {shift.name: shift.data for shift in suite.shifts if shift.kind == "natural"}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:
            sets[f"{name}-{severity}"] = corrupted(few, name, severity).data
    return {name: decoded_once(images, start.preprocessing) for name, images in sets.items()}


def measure_outcomes(classifier: Classifier, sets: Mapping[str, ImageSet], model: str) -> Outcomes:
    """Whether each image of every set is classified correctly, and with which confidence."""
    outcomes: Outcomes = {}
    for name, images in sets.items():
        predictions = predict(classifier, images)
        image_scores = scores(predictions.logits, predictions.labels)
        outcomes[f"{model}|{name}|correct"] = image_scores.prediction == predictions.labels
        outcomes[f"{model}|{name}|confidence"] = image_scores.confidence
    return outcomes


def reference_alpha(zero: Classifier, tuned: Classifier, validation: ImageSet) -> float:
    """The alpha that is best on the validation split, ties toward zero-shot."""

    def score(alpha: float) -> float:
        predictions = predict(wise_ft(zero, tuned, alpha), validation)
        return accuracy(predictions.logits, predictions.labels)

    return max(alpha_grid(11), key=lambda alpha: (score(alpha), -alpha))


def run(name: str, seed: int, zero: Classifier, sets: Mapping[str, ImageSet], file: Path) -> None:
    """Fine-tunes once and saves the outcomes of the three models on every image."""
    suite = load_suite("emoji", seed=seed)
    tuned = finetune(zero, suite, SETTINGS[name], seed=seed)
    alpha = reference_alpha(zero, tuned, decoded_once(suite.reference.validation, zero.preprocessing))
    outcomes: Outcomes = {}
    for model, at in zip(MODELS, (1.0, 0.5, alpha), strict=True):
        outcomes |= measure_outcomes(wise_ft(zero, tuned, at), sets, model)
    file.parent.mkdir(parents=True, exist_ok=True)
    labels = {f"labels|{set_name}": images.labels for set_name, images in sets.items()}
    np.savez_compressed(file, alpha=np.array(alpha), **outcomes, **labels)


def summary(outcomes: Mapping[str, NDArray[np.generic]], model: str) -> dict[str, object]:
    """Accuracy on each set and means, with intervals that take the views of one class, a drawing, together."""
    names = [key.split("|")[1] for key in outcomes if key.startswith(f"{model}|") and key.endswith("correct")]
    corruptions = [name for name in names if name.split("-")[0] in CORRUPTIONS]
    natural = [name for name in names if name not in corruptions and name != "reference"]
    sets = {}
    for name in names:
        correct = outcomes[f"{model}|{name}|correct"].astype(bool)
        share = measure_proportion(correct, outcomes[f"labels|{name}"])  # a class is one drawing, with many views
        sets[name] = {
            "accuracy": round(float(correct.mean()), 4),
            "interval": [round(x, 4) for x in share.interval],
            "interval_method": share.method,
            "n": len(correct),
            "calibration_error": round(
                calibration_error(outcomes[f"{model}|{name}|confidence"].astype(float), correct), 4
            ),
        }
    means = {}
    for what, some in {"natural": natural, "corruptions": corruptions}.items():
        means[what] = mean_with_interval(
            [per_image(outcomes, model, name) for name in some], outcomes[f"labels|{some[0]}"]
        )
        means[what]["calibration_error"] = round(float(np.mean([sets[name]["calibration_error"] for name in some])), 4)
    return {"sets": sets, "means": means}


def per_image(outcomes: Mapping[str, NDArray[np.generic]], model: str, name: str) -> NDArray[np.float64]:
    """1 for each image that is classified correctly, else 0."""
    return outcomes[f"{model}|{name}|correct"].astype(float)


def mean_with_interval(values: list[NDArray[np.float64]], labels: NDArray[np.generic]) -> dict[str, object]:
    """The mean over sets of equal size and class order, with an interval that resamples whole classes."""
    over_sets = np.mean(values, axis=0)
    low, high = bootstrap_interval(over_sets, labels)
    return {"mean": round(float(over_sets.mean()), 4), "interval": [round(low, 4), round(high, 4)]}


def against_none(
    outcomes: Mapping[str, NDArray[np.generic]], none: Mapping[str, NDArray[np.generic]], model: str
) -> dict[str, object]:
    """Paired differences to fine-tuning without augmentation, for the same seed and model."""
    groups = {
        "reference": ["reference"],
        "natural": ["sketch", "painting", "monochrome", "clutter"],
        "corruptions": [f"{name}-{severity}" for name in CORRUPTIONS for severity in SEVERITIES],
    }
    return {
        what: mean_with_interval(
            [per_image(outcomes, model, name) - per_image(none, model, name) for name in some],
            outcomes[f"labels|{some[0]}"],
        )
        for what, some in groups.items()
    }


def main() -> None:
    """Trains the missing runs and writes the numbers of the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/robustness"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path("docs/results/robustness.json"))
    options = parser.parse_args()
    suite = load_suite("emoji")
    zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    sets = test_sets(suite, zero)  # the same for every seed, which affects the training views only
    entries = []
    for seed in map(int, options.seeds.split(",")):
        loaded = {}
        for name, settings in SETTINGS.items():
            file = options.runs / f"seed-{seed}-{name.replace(', ', '-').replace(' ', '-')}.npz"
            if not file.is_file():
                run(name, seed, zero, sets, file)
            with np.load(file, allow_pickle=False) as stored:
                loaded[name] = {key: stored[key] for key in stored.files}
            for model in MODELS:
                numbers = summary(loaded[name], model)
                entry = {"augmentation": name, "seed": seed, "model": model, "settings": asdict(settings)}
                entry["alpha"] = {"fine-tuned": 1.0, "alpha 0.5": 0.5}.get(model, float(loaded[name]["alpha"]))
                entries.append(entry | numbers | {"minus none": against_none(loaded[name], loaded["none"], model)})
                shown = [numbers["sets"]["reference"]["accuracy"], *(m["mean"] for m in numbers["means"].values())]
                accuracies = " / ".join(f"{100 * accuracy:.1f}" for accuracy in shown)
                print(
                    f"seed {seed}, {name}, {model} (alpha {entry['alpha']:g}): {accuracies} % on the reference, "
                    "natural shifts and corruptions",
                    flush=True,
                )
            lines = ",\n".join(json.dumps(entry) for entry in entries)
            options.out.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
