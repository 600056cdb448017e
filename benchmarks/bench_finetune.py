"""Compares the speed of a fine-tuning step with that of a bare PyTorch loop, as ratios within one run.

    python benchmarks/bench_finetune.py --out benchmarks/results/finetune.json

Each round times our loop and the bare one in turn, and the result is the median of the rounds' ratios.

- cpu: `finetune` of the tiny model for one epoch, batch 128, against a bare loop of as many steps on a resident batch:
  zero_grad, forward, cross-entropy, backward, AdamW. Our loop crops and resizes every image, clips gradients, schedules
  the rate, checks that all is finite, and writes its log and its last checkpoint; validation is one image.
- other settings: the same for other recipes and settings, against the same bare end-to-end loop, in one round.
- gpu, if there is one: `finetune` of ViT-B/32 and B/16 (random weights, 224 px) in bfloat16, on images that are
  decoded and cropped by threads while the GPU computes, against the loop of the public scripts: float32,
  `DataParallel`, one resident batch. It also reports images per second and the share of the GPU's rate in large
  bfloat16 matrix products, which is measured first; torch's FlopCounterMode counts the operations.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from shiftproof import (
    ClassSpace,
    FinetuneSettings,
    ShiftSuite,
    finetune,
    load_clip,
    load_suite,
    zero_shot_classifier,
)
from shiftproof.data.sets import array_set
from shiftproof.data.suites import Reference
from shiftproof.models.classifier import Classifier
from shiftproof.training.engine import parameter_groups

BATCH = 128
OTHERS: dict[str, dict[str, Any]] = {
    "accumulate 4": {"accumulate": 4},
    "bfloat16": {"precision": "bfloat16"},
    "lora": {"recipe": "lora"},
    "flyp": {"recipe": "flyp"},
}


def measure(ours: Callable[[], object], bare: Callable[[], object], rounds: int) -> dict[str, float]:
    """Medians of ours, of the bare loop, and of their ratio round by round, after one round of warm-up."""
    times = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        ours()
        between = time.perf_counter()
        bare()
        times.append((between - started, time.perf_counter() - between))
    return {
        "ours_seconds": round(statistics.median(one for one, _ in times[1:]), 4),
        "bare_seconds": round(statistics.median(other for _, other in times[1:]), 4),
        "ratio": round(statistics.median(one / other for one, other in times[1:]), 3),
        "rounds": rounds,
    }


def tuned(start: Classifier, suite: ShiftSuite, settings: FinetuneSettings, device: str = "cpu") -> None:
    """Fine-tunes as a user does, with log and checkpoints on disk."""
    with tempfile.TemporaryDirectory() as folder:
        finetune(start, suite, settings, device=device, checkpoints=Path(folder))


def bare_loop(start: Classifier, steps: int, images: torch.Tensor, labels: torch.Tensor, device: str = "cpu") -> None:
    """Trains as a plain script does, on one batch that is already on the model's device."""
    network: torch.nn.Module = deepcopy(start.network).to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.1), lr=1e-5)
    network = torch.nn.DataParallel(network) if device != "cpu" else network
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    if device != "cpu":
        torch.cuda.synchronize()


def bench_cpu(rounds: int) -> dict[str, Any]:
    """Times the tiny model on the emoji suite."""
    suite = load_suite("emoji")
    suite = replace(suite, reference=replace(suite.reference, validation=suite.reference.validation.subset([0])))
    start = zero_shot_classifier(load_clip("tiny"), suite.classes)
    settings = FinetuneSettings(epochs=1, batch_size=BATCH, lr=1e-3, warmup_steps=0)
    steps = settings.steps(len(suite.reference.train))
    images, labels = torch.randn(BATCH, 3, 64, 64), torch.randint(len(suite.classes), (BATCH,))

    def bare() -> None:
        bare_loop(start, steps, images, labels)

    timing = measure(lambda: tuned(start, suite, settings), bare, rounds)
    others = {
        name: measure(lambda changes=changes: tuned(start, suite, replace(settings, **changes)), bare, 1)["ratio"]
        for name, changes in OTHERS.items()
    }
    return timing | {"images_per_second": round(steps * BATCH / timing["ours_seconds"]), "other settings": others}


def bench_gpu(rounds: int) -> dict[str, Any]:
    """Times ViT-B/32 and ViT-B/16 on a GPU."""
    rate = matrix_rate()
    results: dict[str, Any] = {"card": torch.cuda.get_device_name(), "bfloat16_matrix_teraflops": round(rate / 1e12, 1)}
    for name, batch in (("ViT-B-32", 512), ("ViT-B-16", 256)):
        suite = drawn_suite(8 * batch)
        start = zero_shot_classifier(load_clip(f"open_clip:{name}"), suite.classes)
        settings = FinetuneSettings(epochs=2, batch_size=batch, lr=1e-5, warmup_steps=0, precision="bfloat16")
        steps = settings.steps(len(suite.reference.train))
        images = torch.randn(batch, 3, 224, 224, device="cuda")
        labels = torch.randint(len(suite.classes), (batch,), device="cuda")
        timing = measure(
            lambda start=start, suite=suite, settings=settings: tuned(start, suite, settings, "cuda"),
            lambda start=start, steps=steps, images=images, labels=labels: bare_loop(
                start, steps, images, labels, "cuda"
            ),
            rounds,
        )
        speed = steps * batch / timing["ours_seconds"]
        share = speed * operations(start) / rate
        results[name] = timing | {"images_per_second": round(speed), "share_of_matrix_rate": round(share, 3)}
    return results


def matrix_rate() -> float:
    """Operations per second of large bfloat16 matrix products."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * 8192**3 / min(times)


def operations(start: Classifier) -> float:
    """Operations of one image's forward and backward pass."""
    network = deepcopy(start.network).train()
    with FlopCounterMode(display=False) as counter:
        network(torch.randn(1, 3, 224, 224)).sum().backward()
    return float(counter.get_total_flops())


def drawn_suite(count: int) -> ShiftSuite:
    """A suite of noise images of 256 px in 100 classes, since the time does not depend on what the images show."""
    classes = ClassSpace.from_ids([f"class-{number:03d}" for number in range(100)])
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 256, 3), dtype=np.uint8)

    def images(name: str, n: int) -> Any:
        labels = np.arange(n) % len(classes)
        made = array_set(name, classes, [f"{name}-{i}" for i in range(n)], labels, lambda: pixels)
        # Not "in memory", so that threads crop and resize while the GPU computes, as they would decode files.
        return replace(made, read=lambda i: pixels[i % len(pixels)], in_memory=False)

    return ShiftSuite(
        "noise", classes, Reference("noise", images("train", count), images("held", 8), images("test", 8)), ()
    )


def main() -> None:
    """Times the CPU and, if there is one, the GPU, and writes the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/finetune.json"))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "cpu": bench_cpu(options.rounds),
        "gpu": bench_gpu(options.rounds) if torch.cuda.is_available() else None,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
