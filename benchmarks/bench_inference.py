"""Measures what an ensemble costs at inference: as much as one model in weight space, as two in output space.

    python benchmarks/bench_inference.py --out benchmarks/results/inference.json

Each round times one forward pass of one batch for every contender, in an
order that rotates from round to round. The results are the medians of the rounds' ratios to the fine-tuned model.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from shiftproof import Classifier, ClassSpace, load_clip, output_ensemble, wise_ft, zero_shot_classifier

CLASSES = 267
TARGET = (0.97, 1.03)
EXPECTED = {"fine-tuned": 1, "ensemble": 1, "output-space ensemble": 2}
Contender = Callable[[Tensor], Tensor]


def contenders(model: str, device: str) -> dict[str, Contender]:
    """The networks of the three contenders on a device, by name."""
    zero = zero_shot_classifier(load_clip(model), ClassSpace.from_ids([f"class_{i}" for i in range(CLASSES)]))
    tuned = moved(zero)
    return {
        "fine-tuned": tuned.network_on(device=device),
        "ensemble": wise_ft(zero, tuned, 0.5).network_on(device=device),
        "output-space ensemble": output_ensemble(zero, tuned, 0.5).network_on(device=device),
    }


def moved(start: Classifier) -> Classifier:
    """A classifier with slightly changed weights, which is as fast as a fine-tuned one."""
    generator = torch.Generator().manual_seed(0)
    state = start.state_dict()
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    noise = {name: 0.01 * torch.randn(tensor.shape, generator=generator) for name, tensor in floats.items()}
    return start.with_weights({**state, **{name: tensor + noise[name] for name, tensor in floats.items()}})


def measure(timed: Mapping[str, Contender], images: Tensor, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender round by round, after three rounds of warm-up."""
    names, seconds = list(timed), {name: list[float]() for name in timed}
    with torch.inference_mode():
        for number in range(rounds + 3):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                finish(images)
                started = time.perf_counter()
                timed[name](images)
                finish(images)
                seconds[name].append(time.perf_counter() - started)
    return {name: times[3:] for name, times in seconds.items()}


def finish(images: Tensor) -> None:
    """Waits until a GPU has finished its work."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def ratio(seconds: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median of the rounds' ratios."""
    return round(statistics.median(a / b for a, b in zip(seconds[name], seconds[other], strict=True)), 3)


def main() -> None:
    """Times every batch size on every device and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inference.json"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(2)
    size = load_clip(options.model).preprocessing.size
    tables, targets = {}, []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        timed = contenders(options.model, device)
        for batch in options.batches:
            seconds = measure(timed, torch.randn(batch, 3, size, size, device=device), options.rounds)
            tables[f"{device}, batch {batch}"] = {
                name: {
                    "milliseconds": round(1000 * statistics.median(times), 3),
                    "of_fine_tuned": ratio(seconds, name, "fine-tuned"),
                    "expected": EXPECTED[name],
                }
                for name, times in seconds.items()
            }
            reached = ratio(seconds, "ensemble", "fine-tuned")
            met = TARGET[0] <= reached <= TARGET[1]
            targets.append({"table": f"{device}, batch {batch}", "between": TARGET, "ratio": reached, "met": met})
    result = {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in ("shiftproof", "torch")},
        "model": options.model,
        "rounds": options.rounds,
        "targets": targets,
        "tables": tables,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
