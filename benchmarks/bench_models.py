"""Compares training and prediction with bare PyTorch loops in both memory formats, idle and beside busy processes.

    python benchmarks/bench_models.py --out benchmarks/results/models.json

Every model has a process for each of OpenMP's wait policies, which is read when torch is loaded. A round asks each of
them in turn for each contender, so that all meet the same conditions; the process that is not asked sleeps. The results
are medians of the rounds' ratios.

- train: `finetune` for a few steps on images of the model's size that are already in memory, with crops, clipping,
  schedule, log and checkpoint, against a bare loop of as many steps on one batch: forward, backward and AdamW.
- predict: `predict` on as many images as fill a few batches, against the bare network in inference mode.
- The bare loops run channels-last and contiguous. `of_best` is the ratio of ours to the faster one.
- passive: the ratio of images a second with OMP_WAIT_POLICY=PASSIVE, as our commands set it, to those with the default.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

MODELS = ("tiny", "tf_efficientnet_lite0", "resnet18", "vit_tiny_patch16_224", "convnext_atto")
POLICIES = {"default": None, "passive": "PASSIVE"}
FORMATS = ("channels-last", "contiguous")
BUSY = "while True: pass"
CLASSES = 20


class Worker:
    """A process with one model and one wait policy, which times contenders when it is asked to."""

    def __init__(self, model: str, policy: str | None, options: argparse.Namespace) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        if policy is not None:
            environment["OMP_WAIT_POLICY"] = policy
        sizes = ["--steps", str(options.steps), "--batch", str(options.batch), "--threads", str(options.threads)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--worker", model, *sizes],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds(self, contender: str) -> float:
        """How long a contender takes."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{contender}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def contenders(model: str, steps: int, batch: int) -> dict[str, Callable[[], object]]:
    """What a worker times, by name."""
    import numpy as np
    import torch
    from torch.nn import functional

    import shiftproof as sp
    from shiftproof.data.sets import array_set
    from shiftproof.data.suites import Reference
    from shiftproof.models.memory import lay_out
    from shiftproof.training.engine import parameter_groups

    torch.manual_seed(0)
    start = classifier_of(model)
    size = start.preprocessing.size
    pixels = np.random.default_rng(0).integers(0, 256, (steps * batch, size, size, 3), dtype=np.uint8)
    names = [str(number) for number in range(steps * batch)]
    images = array_set("noise", start.classes, names, np.arange(steps * batch) % CLASSES, lambda: pixels)
    suite = sp.ShiftSuite("noise", start.classes, Reference("noise", images, images.subset([0]), images), ())
    settings = sp.FinetuneSettings(epochs=1, batch_size=batch, lr=1e-5, warmup_steps=0)
    one = torch.randn(batch, 3, size, size)
    labels = torch.arange(batch) % CLASSES

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            sp.finetune(start, suite, settings, device="cpu", checkpoints=Path(folder))

    def bare_training(channels_last: bool) -> Callable[[], None]:
        laid_out = one.contiguous(memory_format=torch.channels_last) if channels_last else one

        def loop() -> None:
            network = lay_out(deepcopy(start.network).train(), channels_last)
            optimizer = torch.optim.AdamW(parameter_groups(network, 0.1), lr=1e-5)
            for _ in range(steps):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(network(laid_out), labels).backward()
                optimizer.step()

        return loop

    def bare_prediction(channels_last: bool) -> Callable[[], None]:
        network = replace(start, channels_last=channels_last).network_on(device="cpu")
        laid_out = one.contiguous(memory_format=torch.channels_last) if channels_last else one

        def loop() -> None:
            with torch.inference_mode():
                for _ in range(steps):
                    network(laid_out)

        return loop

    timed: dict[str, Callable[[], object]] = {
        "train": train,
        "predict": lambda: sp.predict(start, images, device="cpu", batch_size=batch),
    }
    for name in FORMATS:
        timed[f"train bare {name}"] = bare_training(name == FORMATS[0])
        timed[f"predict bare {name}"] = bare_prediction(name == FORMATS[0])
    return timed


def classifier_of(model: str) -> Any:
    """A classifier of a few classes: the tiny model's zero-shot one, or a timm model with random weights and head."""
    import torch

    import shiftproof as sp
    from shiftproof.models.classifier import Network
    from shiftproof.models.encoders import split_head

    classes = sp.ClassSpace.from_ids([f"class-{number:02d}" for number in range(CLASSES)])
    if model == "tiny":
        return sp.zero_shot_classifier(sp.load_clip("tiny"), classes)
    encoder = sp.load_encoder(f"timm:{model}")
    features, head = split_head(encoder)
    return sp.Classifier(
        network=Network(features, torch.nn.Linear(head.in_features, CLASSES), normalised=False).eval(),
        classes=classes,
        preprocessing=encoder.preprocessing,
        architecture={**encoder.architecture, "normalised": False},
        source=encoder.name,
        prompts=(),
        head="trained",
        logit_scale=1.0,
    )


def serve(model: str, steps: int, batch: int, threads: int) -> None:
    """Times every contender that is named on standard input, after one round of warm-up."""
    import torch

    torch.set_num_threads(threads)
    timed = contenders(model, steps, batch)
    for run in timed.values():
        run()
    for line in sys.stdin:
        started = time.perf_counter()
        timed[line.strip()]()
        print(time.perf_counter() - started, flush=True)


@contextlib.contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keeps so many other processes busy."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(workers: dict[str, Worker], names: Sequence[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each contender by policy, round by round, in an order that rotates from round to round."""
    pairs = [(policy, name) for name in names for policy in workers]
    seconds = {policy: {name: list[float]() for name in names} for policy in workers}
    for number in range(rounds):
        shift = number % len(pairs)
        for policy, name in pairs[shift:] + pairs[:shift]:
            seconds[policy][name].append(workers[policy].seconds(name))
    return seconds


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(first, second, strict=True)), 3)


def table(seconds: dict[str, dict[str, list[float]]], images: int) -> dict[str, Any]:
    """The ratios of one model under one condition."""
    result: dict[str, Any] = {}
    for task in ("train", "predict"):
        ours = seconds["passive"]
        bare = {name: ours[f"{task} bare {name}"] for name in FORMATS}
        best = min(bare, key=lambda name: statistics.median(bare[name]))
        result[task] = {
            "images_per_second": round(images / statistics.median(ours[task]), 1),
            "best_format": best,
            "of_best": ratio(ours[task], bare[best]),
            "contiguous_of_channels_last": ratio(bare["contiguous"], bare["channels-last"]),
            "passive": ratio(seconds["default"][task], ours[task]),
            "seconds": {
                policy: {name: [round(one, 3) for one in of[name]] for name in of if name.startswith(task)}
                for policy, of in seconds.items()
            },
        }
    return result


def main() -> None:
    """Times every model, idle and beside busy processes, and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/models.json"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2], help="numbers of busy processes beside ours")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="nothing", help="what else runs on the machine")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return serve(options.worker, options.steps, options.batch, options.threads)
    from bench_mixing import processor

    names = [f"{task}{rest}" for task in ("train", "predict") for rest in ("", *(f" bare {name}" for name in FORMATS))]
    loads, tables = [os.getloadavg()[0]], dict[str, Any]()
    for model in options.models:
        workers = {name: Worker(model, policy, options) for name, policy in POLICIES.items()}
        for count in options.busy:
            with busy_processes(count):
                seconds = measure(workers, names, options.rounds)
            tables.setdefault(f"{count} busy processes", {})[model] = table(seconds, options.steps * options.batch)
            loads.append(os.getloadavg()[0])
        for worker in workers.values():
            worker.close()
    result = {
        "processor": processor(),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("shiftproof", "torch", "timm")},
        "rounds": options.rounds,
        "steps": options.steps,
        "batch": options.batch,
        "other_work": options.note,
        "load_average": [round(load, 2) for load in loads],
        "tables": tables,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    return None


if __name__ == "__main__":
    main()
