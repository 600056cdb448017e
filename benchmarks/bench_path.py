"""Compares an alpha path with its floor and with one evaluation loop per alpha, as ratios within one run.

    python benchmarks/bench_path.py --out benchmarks/results/path.json

Each round times all three, in an order that rotates from round to round. The results are the medians of the rounds'
ratios. The data are JPEGs of 256 px, and the model is `tiny`.

- path: `sweep_alpha`.
- floor: the same loader decodes every image once; then every alpha takes one forward pass over the decoded inputs.
- loop: for every alpha, `wise_ft` and an evaluation that decodes the images again, as in public scripts.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shiftproof import Classifier, ClassSpace, ShiftSuite, load_clip, predict, wise_ft
from shiftproof.data import Reference, load_set
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import ImageSet
from shiftproof.ensembling.path import alpha_grid, sweep_alpha
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.evaluation.metrics import accuracy
from shiftproof.models.zero_shot import zero_shot_classifier

MOST = 1.15
CLASSES = ("lemon", "pear", "red_apple", "grapes")


def write_images(root: Path, count: int, side: int) -> ImageSet:
    """Writes blurred noise, whose files are about as large as those of photographs."""
    generator = np.random.default_rng(0)
    for i in range(count):
        path = root / CLASSES[i % len(CLASSES)] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        rough = Image.fromarray(generator.integers(0, 256, (side // 4, side // 4, 3), dtype=np.uint8))
        rough.resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
    return load_set(f"folder:{root}")


def ends(classes: ClassSpace) -> tuple[Classifier, Classifier]:
    """The tiny model's zero-shot classifier, and one whose every weight was moved a little."""
    zero = zero_shot_classifier(load_clip("tiny"), classes)
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: tensor + 0.05 * tensor.std() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in zero.state_dict().items()
        if tensor.is_floating_point() and tensor.numel() > 1
    }
    return zero, zero.with_weights({**zero.state_dict(), **moved}, head="trained")


def floor(models: list[Classifier], images: ImageSet) -> None:
    """Decodes the images once, then runs only the forward passes."""
    batches = list(evaluation_batches(images, models[0].preprocessing, BATCH_SIZE))
    with torch.inference_mode():
        for model in models:
            for batch in batches:
                model.network(batch)


def loop(zero: Classifier, tuned: Classifier, images: ImageSet, alphas: tuple[float, ...]) -> list[float]:
    """Evaluates once per alpha; returns the accuracies."""
    predictions = [predict(wise_ft(zero, tuned, alpha), images, device="cpu") for alpha in alphas]
    return [accuracy(prediction.logits, prediction.labels) for prediction in predictions]


def measure(timed: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender round by round, after one round of warm-up."""
    names, seconds = list(timed), {name: list[float]() for name in timed}
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            timed[name]()
            seconds[name].append(time.perf_counter() - started)
    return {name: times[1:] for name, times in seconds.items()}


def ratio(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 3)


def main() -> None:
    """Times all three, compares their accuracies and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/path.json"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--alphas", type=int, default=11)
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as root:
        images = write_images(Path(root), options.images, 256)
        zero, tuned = ends(images.classes)
        alphas = alpha_grid(options.alphas)
        models = [wise_ft(zero, tuned, alpha) for alpha in alphas]
        # A suite needs a validation split; one image costs nothing.
        suite = ShiftSuite("bench", images.classes, Reference("photo", images, images.subset([0]), images), ())
        path = sweep_alpha(zero, tuned, suite, alphas, device="cpu")
        equal = [point.accuracy["photo"] for point in path.points] == loop(zero, tuned, images, alphas)
        contenders = {
            "path": lambda: sweep_alpha(zero, tuned, suite, alphas, device="cpu"),
            "floor": lambda: floor(models, images),
            "loop": lambda: loop(zero, tuned, images, alphas),
        }
        seconds = measure(contenders, options.rounds)
    reached = ratio(seconds, "path", "floor")
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in ("shiftproof", "torch", "pillow")},
        "images": options.images,
        "alphas": options.alphas,
        "rounds": options.rounds,
        "seconds": {name: round(statistics.median(times), 3) for name, times in seconds.items()},
        "path_of_floor": reached,
        "path_of_loop": ratio(seconds, "path", "loop"),
        "accuracies_equal_the_loop_s": equal,
        "targets": [{"ours": "path", "against": "floor", "at_most": MOST, "ratio": reached, "met": reached <= MOST}],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
