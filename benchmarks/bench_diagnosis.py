"""Measures memory and time of the diagnoses of saved predictions, for 10,000 and 100,000 images of 1,000 classes.

    python benchmarks/bench_diagnosis.py --out benchmarks/results/diagnosis.json

It takes about six minutes on two CPU cores and 1.5 GB of disk. For each size, a separate process writes the logits of
three models on one set batch by batch, as ``predict`` produces them. Another one measures agreement, overrides, CKA of
outputs, connectivity along eleven alphas, calibration, robustness and the temperature. The target is a peak for the
larger size that exceeds that for the smaller one by at most 100 MB. N samples need at least five (N,) arrays per alpha.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import shiftproof as sp
from shiftproof.diagnosis.evidence import (
    Correctness,
    find_by_class,
    find_confidence,
    find_differences,
    find_overrides,
    find_pairs,
    find_robustness,
    find_temperatures,
)
from shiftproof.evaluation.metrics import ScoreCollector
from shiftproof.evaluation.predictions import writing_predictions
from shiftproof.records.runs import MODELS

CLASSES, BATCH = 1000, 256
ALPHAS = tuple(i / 10 for i in range(11))
SIZES = (10_000, 100_000)


def write(folder: Path, n: int) -> None:
    """Writes the predictions of three models of increasing accuracy, as a run writes them."""
    labels = np.random.default_rng(0).integers(CLASSES, size=n)
    ids = [f"{i:08d}" for i in range(n)]
    for number, model in enumerate(MODELS):
        generator = np.random.default_rng(number + 1)
        with writing_predictions(folder / f"{model}.npz", ids, labels, CLASSES) as add:
            for start in range(0, n, BATCH):
                some = labels[start : start + BATCH]
                logits = generator.normal(size=(len(some), CLASSES)).astype(np.float32)
                logits[np.arange(len(some)), some] += 2 + number
                add(logits.round(1))  # as compressible as logits are
    del ids


def diagnose(folder: Path) -> None:
    """Runs every diagnosis of saved predictions; the compact scores stand in for those that a sweep saves."""
    predictions = {model: sp.evaluation.open_predictions(folder / f"{model}.npz") for model in MODELS}
    labels = predictions["zero_shot"].labels
    collector = ScoreCollector(labels)
    for block in predictions["ensemble"].blocks():
        collector.add(block)
    compact = collector.whole()
    along = {alpha: copy.deepcopy(compact) for alpha in ALPHAS}  # a run holds those of every alpha
    evidence = [sp.diagnosis.SetEvidence(name, labels, predictions, along) for name in ("photo", "sketch")]
    known = Correctness.of(evidence)
    find_pairs(evidence[:1])
    find_overrides(evidence)
    find_differences(known, (("photo", "sketch"),))
    find_robustness(known, "photo")
    find_by_class(evidence[:1])
    find_confidence(evidence[:1])
    find_temperatures(evidence[:1], evidence[0])
    right = {alpha: {"photo": compact.prediction == labels} for alpha in ALPHAS}
    sp.diagnosis.connectivity_of(right)
    sp.diagnosis.measure_loss_connectivity({alpha: {"photo": -compact.log_probability} for alpha in ALPHAS})


def main() -> None:
    """Runs each size in separate processes and writes peaks, times and their difference as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diagnosis.json"))
    parser.add_argument("--folder", type=Path, help="internal: diagnose the predictions in this folder, or write them")
    parser.add_argument("--write", type=int, help="internal: write the predictions for this many images")
    options = parser.parse_args()
    if options.folder is not None:
        started = time.perf_counter()
        write(options.folder, options.write) if options.write else diagnose(options.folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"peak_mb": round(peak, 1), "seconds": round(time.perf_counter() - started, 1)}))
        return
    result: dict[str, object] = {"classes": CLASSES, "numpy": np.__version__}
    peaks: dict[str, list[float]] = {"writing": [], "diagnosing": []}
    for n in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            base = [sys.executable, __file__, "--folder", folder]
            for what, arguments in {"writing": ["--write", str(n)], "diagnosing": []}.items():
                output = subprocess.run([*base, *arguments], check=True, capture_output=True, text=True).stdout
                entry = json.loads(output.splitlines()[-1])
                peaks[what].append(entry["peak_mb"])
                result[f"{what}, {n} images"] = entry
    result |= {f"{what}: MB more at {SIZES[1]} than at {SIZES[0]}": round(p[1] - p[0], 1) for what, p in peaks.items()}
    result["target, MB more at most"] = 100
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
