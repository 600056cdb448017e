"""Compares evaluation, fine-tuning and interpolation with their floors, as ratios within one run.

    python benchmarks/bench_throughput.py --out benchmarks/results/throughput.json

Each round times our code and the floor in turn, and the result is the median of the rounds' ratios.

- evaluate: `predict` on 2,136 images of 64 px against as many passes of the bare network on a resident batch.
- fine-tune: `finetune` for one epoch without validation, against the bare loop on one resident batch: forward,
  backward and AdamW.
- interpolate: `interpolate_weights` on 64 M float32 parameters against `torch.lerp` on the same tensors, which reads
  both ends and writes one result, as every interpolation must.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from shiftproof import FinetuneSettings, finetune, interpolate_weights, load_clip, load_suite, predict
from shiftproof.data.batches import decoded_once, evaluation_batches
from shiftproof.models.classifier import Classifier
from shiftproof.models.zero_shot import zero_shot_classifier
from shiftproof.training.engine import parameter_groups

BATCH = 128


def measure(ours: Callable[[], object], floor: Callable[[], object], rounds: int) -> dict[str, float]:
    """Medians of ours, of the floor, and of their ratio round by round, after one round of warm-up."""
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        ours()
        between = time.perf_counter()
        floor()
        times.append((between - started, time.perf_counter() - between))
    counted = times[1:]
    return {
        "ours_seconds": round(statistics.median(ours for ours, _ in counted), 4),
        "floor_seconds": round(statistics.median(floor for _, floor in counted), 4),
        "ratio": round(statistics.median(ours / floor for ours, floor in counted), 3),
        "rounds": rounds,
    }


def bench_evaluate(zero: Classifier, rounds: int) -> dict[str, float]:
    """Images per second of `predict` against the network alone."""
    images = decoded_once(load_suite("emoji").reference.test, zero.preprocessing)
    batch = next(evaluation_batches(images, zero.preprocessing, 256))

    def bare() -> None:
        with torch.inference_mode():
            for start in range(0, len(images), 256):
                zero.network(batch[: min(256, len(images) - start)])

    timing = measure(lambda: predict(zero, images, device="cpu"), bare, rounds)
    return timing | {"images_per_second": round(len(images) / timing["ours_seconds"])}


def bench_finetune(zero: Classifier, rounds: int) -> dict[str, float]:
    """Images per second of the fine-tuning loop against a bare loop."""
    suite = load_suite("emoji")
    reference = replace(suite.reference, validation=suite.reference.validation.subset([0]))
    settings = FinetuneSettings(epochs=1, batch_size=BATCH, lr=1e-3, warmup_steps=0)
    steps = settings.steps(len(reference.train))
    images, labels = torch.randn(BATCH, 3, 64, 64), torch.randint(len(suite.classes), (BATCH,))

    def bare() -> None:
        network = deepcopy(zero.network).train()
        optimizer = torch.optim.AdamW(parameter_groups(network, 0.1), lr=1e-3)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(network(images), labels).backward()
            optimizer.step()

    timing = measure(lambda: finetune(zero, replace(suite, reference=reference), settings), bare, rounds)
    return timing | {"images_per_second": round(steps * BATCH / timing["ours_seconds"])}


def bench_interpolate(rounds: int) -> dict[str, float]:
    """`interpolate_weights` against lerp alone."""
    theta_0 = {f"w{i}": torch.randn(2048, 2048) for i in range(16)}
    theta_1 = {name: torch.randn_like(tensor) for name, tensor in theta_0.items()}
    timing = measure(
        lambda: interpolate_weights(theta_0, theta_1, 0.3),
        lambda: {name: torch.lerp(tensor, theta_1[name], 0.3) for name, tensor in theta_0.items()},
        rounds,
    )
    moved = 3 * sum(tensor.nbytes for tensor in theta_0.values())
    return timing | {"gigabytes_per_second": round(moved / timing["ours_seconds"] / 1e9, 2)}


def main() -> None:
    """Runs all three and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    zero = zero_shot_classifier(load_clip("tiny"), load_suite("emoji").classes)
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "evaluate": bench_evaluate(zero, options.rounds),
        "fine_tune": bench_finetune(zero, options.rounds),
        "interpolate": bench_interpolate(options.rounds),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
