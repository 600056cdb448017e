"""Looks for settings with which mixing helps fine-tuning, on the development suite and without reading the task.

    python benchmarks/tune_mixing.py --fold 1 --out benchmarks/results/tune_mixing.json

It takes about 75 seconds per candidate of 20 epochs on two CPU cores. Every candidate is measured fine-tuned and at
alpha 0.5, on the reference, the natural shifts and the corruptions of the fold. A candidate that is already in the
results is not run again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

from shiftproof import (
    Classifier,
    FinetuneSettings,
    ShiftSuite,
    finetune,
    load_clip,
    load_suite,
    predict,
    wise_ft,
    zero_shot_classifier,
)
from shiftproof.evaluation import accuracy

BASE = FinetuneSettings(epochs=20, lr=2e-3, batch_size=128, warmup_steps=20)
CIRCLE = replace(BASE, mixing="smoothmix-circle", mixing_probability=0.5)
CANDIDATES = {
    "none": BASE,
    "none, smoothing 0.1": replace(BASE, label_smoothing=0.1),
    "none, 40 epochs": replace(BASE, epochs=40),
    "smoothmix-circle, probability 0.5": CIRCLE,
    "cutmix, probability 0.5": replace(CIRCLE, mixing="cutmix"),
    "smoothmix-circle, probability 0.25": replace(CIRCLE, mixing_probability=0.25),
    "none, 10 epochs": replace(BASE, epochs=10),
    "smoothmix-circle, probability 0.5, 10 epochs": replace(CIRCLE, epochs=10),
    "smoothmix-circle, probability 0.5, off for 10 epochs": replace(CIRCLE, mixing_off_epochs=10),
    "mixup, probability 0.5": replace(CIRCLE, mixing="mixup"),
    "smoothmix-circle, probability 0.25, smoothing 0.1": replace(CIRCLE, mixing_probability=0.25, label_smoothing=0.1),
    "smoothmix-circle, probability 0.25, smoothing 0.1, off for 10 epochs": replace(
        CIRCLE, mixing_probability=0.25, label_smoothing=0.1, mixing_off_epochs=10
    ),
}


def measure(classifier: Classifier, suite: ShiftSuite) -> dict[str, float]:
    """Accuracy on the reference, on each natural shift, and the means over natural shifts and corruptions, in %."""
    accuracies = {}
    for name, images in suite.test_sets.items():
        predictions = predict(classifier, images)
        accuracies[name] = 100 * accuracy(predictions.logits, predictions.labels)
    for kind in ("natural", "synthetic"):
        names = [shift.name for shift in suite.shifts if shift.kind == kind]
        accuracies[f"mean of {kind}"] = sum(accuracies[name] for name in names) / len(names)
    return {name: round(value, 2) for name, value in accuracies.items()}


def main() -> None:
    """Runs the candidates that the results lack and writes JSON after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--only", default="", help="run only the candidates whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tune_mixing.json"))
    options = parser.parse_args()
    results = json.loads(options.out.read_text(encoding="utf-8")) if options.out.is_file() else []
    suite = load_suite(f"emoji-development-{options.fold}")
    zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    done = {(entry["fold"], entry["candidate"]) for entry in results}
    for name, settings in CANDIDATES.items():
        if options.only not in name or (suite.name, name) in done:
            continue
        tuned = finetune(zero, suite, settings)
        accuracies = {"fine_tuned": measure(tuned, suite), "ensemble": measure(wise_ft(zero, tuned, 0.5), suite)}
        results.append({"fold": suite.name, "candidate": name, "settings": asdict(settings), **accuracies})
        for model, values in accuracies.items():
            numbers = " / ".join(f"{values[key]:.2f}" for key in ("colour", "mean of natural", "mean of synthetic"))
            print(f"{suite.name}, {name}, {model}: {numbers} % on reference, shifts and corruptions", flush=True)
        options.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
