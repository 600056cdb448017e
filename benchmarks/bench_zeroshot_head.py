"""Measures how long a zero-shot head takes: class by class, in batches, without padding, and in bfloat16.

    python benchmarks/bench_zeroshot_head.py --out benchmarks/results/zeroshot_head.json

Each round computes the class embeddings of a few ImageNet classes with the 80 templates of CLIP, by every contender, in
an order that rotates from round to round. The text tower is ViT-B/32's with random weights, since its speed does not
depend on them. Seconds for 1,000 classes are those of a class times 1,000.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shiftproof import ClassSpace, load_clip
from shiftproof.data.families.classes import imagenet_classes
from shiftproof.models.clip import Clip
from shiftproof.models.prompts import prompt_templates, texts_of
from shiftproof.models.text_encoding import class_embeddings

WHOLE = 1000
Texts = Sequence[Sequence[str]]
Contender = Callable[[Clip, Texts], Tensor]


def class_by_class(clip: Clip, texts: Texts) -> Tensor:
    """The way of earlier versions: one small batch a class, padded to the context length."""
    rows = [functional.normalize(clip.encode_text(of_class), dim=-1).mean(0) for of_class in texts]
    return functional.normalize(torch.stack(rows), dim=-1).cpu()


def batches_with_padding(clip: Clip, texts: Texts) -> Tensor:
    """Batches over classes and templates, padded to the context length."""
    flat = [text for of_class in texts for text in of_class]
    parts = [clip.encode_text(flat[start : start + 256]) for start in range(0, len(flat), 256)]
    embedded = functional.normalize(torch.cat(parts), dim=-1).view(len(texts), -1, parts[0].shape[1])
    return functional.normalize(embedded.mean(1), dim=-1).cpu()


def in_bfloat16(clip: Clip, texts: Texts) -> Tensor:
    """The batches of the package, with matrix products in bfloat16."""
    device = next(clip.model.parameters()).device.type
    with torch.autocast(device, torch.bfloat16):
        return class_embeddings(clip, texts)


CONTENDERS: dict[str, Contender] = {
    "class by class": class_by_class,
    "batches with padding": batches_with_padding,
    "batches without padding": class_embeddings,
    "batches without padding, bfloat16": in_bfloat16,
}


def measure(clip: Clip, texts: Texts, rounds: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each contender round by round, after a warm-up, and its smallest cosine with the first's rows."""
    names, seconds, rows = list(CONTENDERS), {name: list[float]() for name in CONTENDERS}, {}
    with torch.inference_mode():
        for name in names:
            rows[name] = CONTENDERS[name](clip, texts[:1])
        for number in range(rounds):
            shift = number % len(names)
            for name in names[shift:] + names[:shift]:
                started = time.perf_counter()
                rows[name] = CONTENDERS[name](clip, texts)
                seconds[name].append(time.perf_counter() - started)
    cosines = {name: float((found * rows[names[0]]).sum(1).min()) for name, found in rows.items()}
    return seconds, cosines


def summary(clip: Clip, classes: int, rounds: int) -> dict[str, object]:
    """Medians over the rounds, extrapolated to 1,000 classes, and what they were measured with."""
    table = imagenet_classes()
    space = ClassSpace(table.wnids[:classes], table.names[:classes])
    texts = texts_of(prompt_templates("openai"), space)
    seconds, cosines = measure(clip, texts, rounds)
    first = statistics.median(seconds["class by class"])
    return {
        "model": clip.name,
        "classes": classes,
        "templates": len(texts[0]),
        "rounds": rounds,
        "device": str(next(clip.model.parameters()).device),
        "contenders": {
            name: {
                "seconds_for_1000_classes": round(statistics.median(of_name) / classes * WHOLE, 1),
                "ratio_to_class_by_class": round(statistics.median(of_name) / first, 4),
                "smallest_cosine_with_class_by_class": round(cosines[name], 6),
                "seconds": [round(value, 3) for value in of_name],
            }
            for name, of_name in seconds.items()
        },
        "machine": machine(),
    }


def machine() -> dict[str, object]:
    """The processor, the instructions for bfloat16 that it has, threads and versions."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "processor": fields.get("model name", platform.machine()),
        "bfloat16_instructions": [flag for flag in ("amx_bf16", "avx512_bf16") if flag in flags],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "open_clip_torch": version("open_clip_torch"),
    }


def main() -> None:
    """Measures and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="open_clip:ViT-B-32")
    parser.add_argument("--classes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    clip = load_clip(options.model)
    clip.model.to(options.device)
    text = json.dumps(summary(clip, options.classes, options.rounds), indent=2) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
