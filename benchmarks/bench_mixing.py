"""Compares the speed of mixing a batch with other libraries and with the floor, as ratios within one run.

    python benchmarks/bench_mixing.py --out benchmarks/results/mixing.json

Each round times every contender once, in an order that rotates from round to round. The results are the medians of the
rounds' ratios. A call mixes images and labels of 1000 classes, and its time includes freeing its results.

- floor: `torch.lerp(x, y, 0.5, out=buffer)` (for bytes `torch.add`): one read of each input, one write, no labels.
- rolled grid: the usual way to write SmoothMix, with one mask per batch, made from a grid of integers that is rolled.
- timm changes its input in place, so it gets a copy in each round. Copying is not timed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from timm.data import Mixup
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from shiftproof.mixing.methods import CutMix, Cutout, Mixing, MixUp, SmoothMix

CLASSES = 1000
TARGETS = (
    ("SmoothMix-C", "torchvision CutMix", 0.7),
    ("SmoothMix-C", "rolled grid", 0.35),
    ("SmoothMix-C, out=", "floor", 1.5),
)
OURS: Mapping[str, Mixing] = {
    "SmoothMix-C": SmoothMix(num_classes=CLASSES),
    "SmoothMix-S": SmoothMix(kind="square", num_classes=CLASSES),
    "CutMix": CutMix(num_classes=CLASSES),
    "MixUp": MixUp(num_classes=CLASSES),
    "Cutout": Cutout(num_classes=CLASSES),
}
IMPORTS = {
    "torch": "import torch",
    "shiftproof": "from shiftproof.mixing.methods import SmoothMix",
    "torchvision": "from torchvision.transforms.v2 import CutMix",
    "timm": "from timm.data import Mixup",
}
Contender = Callable[[Tensor, Tensor], object]


def rolled_grid(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The usual way to write SmoothMix."""
    (height, width), device = images.shape[2:], images.device
    spread = (0.25 + 0.25 * float(torch.rand(()))) * min(height, width)
    rows, columns = torch.meshgrid(
        torch.arange(height, device=device) - height // 2,
        torch.arange(width, device=device) - width // 2,
        indexing="ij",
    )
    shifts = int(torch.randint(height, ())), int(torch.randint(width, ()))
    rows, columns = (torch.roll(grid, shifts, dims=(0, 1)) for grid in (rows, columns))
    mask = torch.exp(-(rows**2 + columns**2) / (2 * spread**2)).to(images.dtype)
    order = torch.randperm(len(images), device=device)
    mixed = images * mask + images[order] * (1 - mask)
    weight, targets = mask.mean(), functional.one_hot(labels, CLASSES).float()
    return mixed, weight * targets + (1 - weight) * targets[order]


def contenders(images: Tensor) -> dict[str, Contender]:
    """The contenders for these images by name, without those that do not accept bytes or half precision."""
    buffer, other = torch.empty_like(images), images.flip(0)

    def floor(given: Tensor, _: Tensor) -> Tensor:
        if not images.is_floating_point():
            return torch.add(given, other, out=buffer)
        return torch.lerp(given, other, 0.5, out=buffer)

    def buffered(mixing: Mixing) -> Contender:
        return lambda given, labels: mixing(given, labels, out=buffer)

    timed: dict[str, Contender] = {"floor": floor, "torchvision CutMix": v2.CutMix(num_classes=CLASSES)}
    if images.is_floating_point():
        timed["torchvision MixUp"] = v2.MixUp(num_classes=CLASSES)
    if images.dtype == torch.float32:
        timed["timm Mixup"] = Mixup(mode="elem", label_smoothing=0.0, num_classes=CLASSES)
        timed["rolled grid"] = rolled_grid
        timed |= OURS
    return timed | {f"{name}, out=": buffered(mixing) for name, mixing in OURS.items()}


def measure(timed: Mapping[str, Contender], images: Tensor, labels: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender round by round, after one round of warm-up."""
    names, seconds = list(timed), {name: list[float]() for name in timed}
    scratch = torch.empty_like(images)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            given = scratch.copy_(images) if name.startswith("timm") else images
            finish(images)
            started = time.perf_counter()
            timed[name](given, labels)
            finish(images)
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def finish(images: Tensor) -> None:
    """Waits until a GPU has finished its work."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def ratio(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 3)


def table(seconds: Mapping[str, list[float]]) -> dict[str, dict[str, object]]:
    """For each contender the median time, its ratio to the floor and, for ours, the ratios to all others."""
    others = [name for name in seconds if name.removesuffix(", out=") not in OURS and name != "floor"]
    return {
        name: {
            "milliseconds": round(1000 * statistics.median(times), 3),
            "of_floor": ratio(seconds, name, "floor"),
            **({} if name in (*others, "floor") else {"of": {o: ratio(seconds, name, o) for o in others}}),
        }
        for name, times in seconds.items()
    }


def import_seconds(rounds: int) -> dict[str, float]:
    """Median seconds that a fresh interpreter needs for each import."""
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, statement in IMPORTS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - started)
    return {name: round(statistics.median(times), 2) for name, times in seconds.items()}


def processor() -> str:
    """The name of the processor, which Linux gives only in a file."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def main() -> None:
    """Times every kind of image and writes the tables as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/mixing.json"))
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--batch", type=int, default=128, help="even, since timm refuses odd batches")
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    pixels = torch.rand(options.batch, 3, options.size, options.size)
    labels = torch.randint(CLASSES, (options.batch,))
    variants = {
        "float32": pixels,
        "float32 channels-last": pixels.contiguous(memory_format=torch.channels_last),
        "bfloat16": pixels.bfloat16(),
        "uint8": (255 * pixels).byte(),
    }
    result = {
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("shiftproof", "torch", "torchvision", "timm")},
        "rounds": options.rounds,
        "shape": list(pixels.shape),
    }
    tables, targets = {}, []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name, variant in variants.items():
            images = variant.to(device)
            seconds = measure(contenders(images), images, labels.to(device), options.rounds)
            tables[f"{device} {name}"] = table(seconds)
            if (device, name) == ("cpu", "float32"):
                ratios = [(ours, other, most, ratio(seconds, ours, other)) for ours, other, most in TARGETS]
                targets = [
                    {"ours": ours, "against": other, "at_most": most, "ratio": reached, "met": reached <= most}
                    for ours, other, most, reached in ratios
                ]
    result |= {"targets": targets, "tables": tables, "import_seconds": import_seconds(min(options.rounds, 5))}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
