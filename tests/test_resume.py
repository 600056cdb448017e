"""Trainings that are killed, asked to stop, or out of room: they go on from the last checkpoint to the same bits.

This file is also a script: ``python tests/test_resume.py FOLDER`` trains and dies, again and again, in processes that
it forks, so that hundreds of deaths cost one start of the interpreter.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import pretraining, progress, resuming, storage, tracking, training
from shiftproof.data.captions import load_captioned_set
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.errors import TrainingError, TrainingInterruptedError
from shiftproof.finetuning import loop, recipes
from shiftproof.models.classifier import Network
from shiftproof.tracking import trackers_from

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear", "plum"])
COLOURS = np.array([[230, 220, 60], [200, 30, 40], [150, 200, 70], [90, 40, 130]])
MICRO = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


def noisy_squares(name: str, views: int, seed: int) -> sp.ImageSet:
    """A noisy square in the class's colour, anywhere on white."""
    labels = np.repeat(np.arange(len(CLASSES)), views)

    def draw() -> np.ndarray:
        generator = np.random.default_rng(seed)
        images = np.full((len(labels), 32, 32, 3), 255, dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            y, x = generator.integers(0, 16, 2)
            drawn = COLOURS[label] + generator.normal(0, 60, (16, 16, 3))
            image[y : y + 16, x : x + 16] = drawn.clip(0, 255)
        return images

    return array_set(name, CLASSES, [f"{name}-{i}" for i in range(len(labels))], labels, draw)


SUITE = sp.ShiftSuite(
    "squares",
    CLASSES,
    sp.Reference("photo", noisy_squares("train", 6, 0), noisy_squares("validation", 5, 1), noisy_squares("test", 1, 2)),
    (),
)


class Mouth(nn.Module):
    """A layer that does nothing, until a test has ``bite`` do something in a training's forward pass."""

    bite: Callable[[], object] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.training and Mouth.bite is not None:
            Mouth.bite()
        return x


def toy(seed: int = 0) -> sp.Classifier:
    """Two convolutions with statistics that move and a layer that draws at random, under a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), Mouth()]
        encoder = nn.Sequential(*layers, nn.Dropout(0.2), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        head = nn.Linear(32, len(CLASSES))
    return sp.Classifier(
        network=Network(encoder, head).eval(),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        architecture={"name": "toy"},
        source="toy",
        prompts=("a {}.",),
        head="zero-shot",
        logit_scale=1.0,
    )


def settings(**changes: Any) -> sp.FinetuneSettings:
    """Eight steps in four epochs, with a checkpoint after each."""
    given = {"epochs": 4, "lr": 1e-2, "batch_size": 12, "warmup_steps": 0, "checkpoint_every": 1, **changes}
    return sp.FinetuneSettings(**given)


class Outcome(NamedTuple):
    """All that a training must repeat: tensors, and what is told of it."""

    tensors: dict[str, Tensor]
    told: dict[str, Any]


def outcome(tuned: sp.Classifier) -> Outcome:
    text = {f"text.{name}": tensor for name, tensor in (tuned.text or {}).items()}
    told = {"training": dict(tuned.training), "scale": tuned.logit_scale, "head": tuned.head}
    return Outcome(tuned.state_dict() | text, json.loads(json.dumps(told)))


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.detach().contiguous().numpy().tobytes() for name, tensor in tensors.items()}


def log_of(folder: Path) -> list[dict[str, float]]:
    """The lines of a training's log, without the one number that no two trainings share."""
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert line.pop("images_per_second") > 0
    return lines


def digests(folder: Path) -> dict[str, str]:
    """Every file of the checkpoints in a folder, with its content."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("step-*/*"))
    }


# The script: trainings in processes of their own, and how these die.


def finetuned(folder: Path, start: Callable[[], sp.Classifier] = toy, **changes: Any) -> Outcome:
    """A fine-tuning with checkpoints in ``folder/checkpoints``."""
    seed = changes.pop("seed", 3)
    return outcome(sp.finetune(start(), SUITE, settings(**changes), seed=seed, checkpoints=folder / "checkpoints"))


def pretrained(folder: Path, **changes: Any) -> Outcome:
    """A pretraining on eight drawings."""
    seed = changes.pop("seed", 3)
    given = {"steps": 9, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 1, **changes}
    clip = sp.load_clip("open_clip:micro", seed=0)
    data = load_captioned_set(f"folder:{folder.parent.parent / 'drawings'}")
    card = sp.pretrain(clip, data, sp.PretrainSettings(**given), seed=seed, out=folder)
    card.pop("seconds")
    return Outcome(load_file(folder / "model" / "open_clip_model.safetensors"), card)


def two_towers() -> sp.Classifier:
    return sp.zero_shot_classifier(sp.load_clip("open_clip:micro", seed=3), CLASSES, ("a {}.", "a photo of the {}."))


CASES: dict[str, Callable[..., Outcome]] = {
    "adamw": functools.partial(
        finetuned,
        epochs=8,
        batch_size=7,
        lr=3e-2,
        mixing="smoothmix-circle",
        mixing_off_epochs=1,
        ema_decay=0.6,
        early_stopping=2,
        accumulate=2,
        checkpoint_every=2,
    ),
    "sgd": functools.partial(
        finetuned, optimizer="sgd", lr=0.1, l2_to_start=0.1, layer_decay=0.9, channels_last=True, batch_size=7
    ),
    "lp-ft": functools.partial(
        finetuned, recipe="lp-ft", distillation=0.5, precision="bfloat16", shots=4, checkpoint_every=2
    ),
    "lora": functools.partial(finetuned, recipe="lora", lora_rank=2, label_smoothing=0.1, checkpoint_every=3),
    "flyp": functools.partial(
        finetuned, start=two_towers, recipe="flyp", epochs=2, lr=1e-4, batch_size=8, checkpoint_every=2
    ),
    "pretraining": pretrained,
    "pretraining, channels last": functools.partial(pretrained, channels_last=True),
}


def dooms(owner: Any, name: str, nth: int, last: Callable[..., object] = lambda *_, **__: None) -> None:
    """The nth call of a function does ``last`` in its place, and then this process is no more."""
    original, calls = getattr(owner, name), itertools.count(1)

    def doomed(*arguments: Any, **options: Any) -> Any:
        if next(calls) < nth:
            return original(*arguments, **options)
        last(original, *arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, doomed)


def half_a_line(_: Any, log: tracking.TrainingLog, *__: Any) -> None:
    assert log._file is not None
    log._file.write('{"step": 1')
    log._file.flush()


def half_a_file(_: Any, __: Any, path: Path) -> None:
    path.with_name(f".{path.stem}.dead{path.suffix}").write_bytes(b"half")


def half_a_tree(_: Any, path: Path, **__: Any) -> None:
    next(file for file in sorted(path.iterdir()) if file.is_file()).unlink()


def fails(owner: Any, name: str, nth: int, error: BaseException) -> None:
    """The nth call of a function raises an error."""
    original, calls = getattr(owner, name), itertools.count(1)

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(calls) == nth:
            raise error
        return original(*arguments, **options)

    setattr(owner, name, failing)


def asks_to_stop(nth: int) -> None:
    """SIGTERM comes during the nth step."""
    tell, calls = training.Trainer.tell, itertools.count(1)

    def asking(*arguments: Any, **options: Any) -> None:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGTERM)
        tell(*arguments, **options)

    training.Trainer.tell = asking  # type: ignore[method-assign]


ENDS: dict[str, Callable[[int], None]] = {
    "unlogged step": lambda nth: dooms(training.Trainer, "tell", nth),
    "in a line of the log": lambda nth: dooms(tracking.TrainingLog, "line", nth, half_a_line),
    "in a file of a checkpoint": lambda nth: dooms(resuming, "write_state_dict", nth, half_a_file),
    "before the last file": lambda nth: dooms(resuming, "write_json", nth),
    "before a rename of a file": lambda nth: dooms(storage.os, "replace", nth),
    "before the rename": lambda nth: dooms(resuming, "write_json", nth, lambda write, *rest: write(*rest)),
    "before older ones go": lambda nth: dooms(resuming, "sync_directory", nth),
    "while older ones go": lambda nth: dooms(shutil, "rmtree", nth, half_a_tree),
    "SIGTERM": asks_to_stop,
    "memory": lambda nth: fails(training, "optimisation_step", nth, torch.OutOfMemoryError("CUDA out of memory.")),
}
KILLS = [name for name in ENDS if name not in ("SIGTERM", "memory")]
REACHED = {0: "the end", 3: "asked to stop", 4: "failed", 5: "broken"}


def attempt(case: str, folder: Path, end: tuple[str, int | float] | None, **changes: Any) -> str:
    """Trains in a process of its own, which meets the given end; how it ended.

    "from outside" is a real time in seconds after which the process is killed, wherever it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        if end and end[0] == "from outside":
            time.sleep(end[1])
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return "killed" if os.WIFSIGNALED(status) else REACHED[os.WEXITSTATUS(status)]
    code = 5
    try:
        if end and end[0] in ENDS:
            ENDS[end[0]](int(end[1]))
        reached = CASES[case](folder, **changes)
        save_file({n: t.detach().clone().contiguous() for n, t in reached.tensors.items()}, folder / "end.safetensors")
        (folder / "end.json").write_text(json.dumps(reached.told), encoding="utf-8")
        code = 0
    except (TrainingInterruptedError, sp.InputError, TrainingError) as error:
        code = 3 if isinstance(error, TrainingInterruptedError) else 4
        (folder.parent / f"{end[0] if end else 'none'}.txt").write_text(str(error), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# How many kinds of death a case meets in a fixed place, and how many at any moment.
DEATHS = {
    "adamw": (len(KILLS), 5),
    "sgd": (len(KILLS), 3),
    "lp-ft": (1, 0),
    "lora": (3, 0),
    "flyp": (3, 1),
    "pretraining": (len(KILLS), 4),
    "pretraining, channels last": (2, 0),
}


def deaths(case: str) -> list[tuple[str, int | float]]:
    """The planned ends of a case, one after the other; none takes the training further than to its next checkpoint."""
    draw = random.Random(case)
    kinds = draw.sample(KILLS, DEATHS[case][0])
    return [("SIGTERM", 1), ("memory", 2), *((kind, draw.randint(1, 2)) for kind in kinds)]


def drive(work: Path) -> None:
    """All cases, in two processes beside each other."""
    import accelerate  # noqa: F401
    import open_clip
    import peft  # noqa: F401
    import torch._dynamo

    torch.set_num_threads(1)
    (work / "configs").mkdir()
    (work / "configs" / "micro.json").write_text(json.dumps(MICRO), encoding="utf-8")
    open_clip.add_model_config(work / "configs")
    draw_captioned(work / "drawings")
    lanes = []
    for lane in range(2):
        if not (child := os.fork()):
            code = 1
            try:
                for case in list(CASES)[lane::2]:
                    live_and_die(case, work / case)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        lanes.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in lanes))


def live_and_die(case: str, folder: Path) -> None:
    """One case without a death, with planned ones and with some at any moment; ``ends.json`` tells what happened."""
    began = time.perf_counter()
    ends = {"whole": [("none", attempt(case, folder / "whole", None))]}
    seconds, draw = time.perf_counter() - began, random.Random(case)
    plans = {"planned": deaths(case)}
    if count := DEATHS[case][1]:
        plans["anywhere"] = [("from outside", draw.uniform(0, seconds)) for _ in range(count)]
    for name, planned in plans.items():
        ends[name] = [(end[0], attempt(case, folder / name, end)) for end in [*planned, ("none", 0)]]
    done = folder / "planned"
    shutil.copy(done / "end.safetensors", folder / "first.safetensors")
    before = digests(done / "checkpoints")
    ends["over"] = [("none", attempt(case, done, None)), ("refused", attempt(case, done, ("refused", 0), lr=9, seed=4))]
    ends["over"].append(("unchanged", str(digests(done / "checkpoints") == before)))
    (folder / "ends.json").write_text(json.dumps(ends), encoding="utf-8")
    print(case, round(time.perf_counter() - began, 1), ends, flush=True)


def draw_captioned(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    train = SUITE.reference.train
    for i in range(0, len(train), 3):
        Image.fromarray(train.read(i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {CLASSES.names[train.labels[i]]}, number {i}\n", encoding="utf-8")


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
