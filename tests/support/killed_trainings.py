"""A script that trains and dies again and again, in processes that it forks.

Usage: ``python -m support.killed_trainings FOLDER``. Hundreds of deaths cost one start of the interpreter.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from support.resumed_trainings import CLASSES, SUITE, dropout_classifier, eight_steps
from torch import Tensor

import shiftproof as sp
from shiftproof import storage
from shiftproof.data.captions import load_captioned_set
from shiftproof.errors import TrainingError, TrainingInterruptedError
from shiftproof.models import text_towers
from shiftproof.records.codec import to_json
from shiftproof.training import checkpoints as resuming
from shiftproof.training import engine as training
from shiftproof.training import log as tracking

MICRO = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 1, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
}


class Outcome(NamedTuple):
    """All that a training must repeat: tensors, and what is told of it."""

    tensors: dict[str, Tensor]
    reported: dict[str, Any]


def outcome(tuned: sp.Classifier) -> Outcome:
    text = {f"text.{name}": tensor for name, tensor in (tuned.text or {}).items()}
    reported = {"training": dict(tuned.training), "scale": tuned.logit_scale, "head": tuned.head}
    return Outcome(tuned.state_dict() | text, json.loads(json.dumps(reported)))


def log_of(folder: Path) -> list[dict[str, float]]:
    """The lines of a training's log, without the one number that no two trainings share."""
    lines = [json.loads(line) for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        assert line.pop("images_per_second") > 0
    return lines


def digests(folder: Path) -> dict[str, str]:
    """Every file of the checkpoints in a folder, with its content but for the seconds that it took."""
    timeless = functools.partial(re.sub, rb'"seconds": [0-9.e-]+', b"")
    return {
        str(file.relative_to(folder)): hashlib.sha256(timeless(file.read_bytes())).hexdigest()
        for file in sorted(folder.glob("step-*/*"))
    }


def finetuned(folder: Path, start: Callable[[], sp.Classifier] = dropout_classifier, **changes: Any) -> Outcome:
    """A fine-tuning with checkpoints in ``folder/checkpoints``."""
    seed = changes.pop("seed", 3)
    return outcome(sp.finetune(start(), SUITE, eight_steps(**changes), seed=seed, checkpoints=folder / "checkpoints"))


def pretrained(folder: Path, **changes: Any) -> Outcome:
    """A pretraining on eight drawings."""
    seed = changes.pop("seed", 3)
    given = {"steps": 9, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 1, **changes}
    data = load_captioned_set(f"folder:{folder.parent.parent / 'drawings'}")
    record = sp.pretrain(micro("open_clip:micro", 3), data, sp.PretrainSettings(**given), seed=seed, out=folder)
    return Outcome(
        load_file(folder / "model" / "open_clip_model.safetensors"), to_json(dataclasses.replace(record, seconds=0.0))
    )


@functools.cache
def micro(name: str, seed: int) -> sp.models.Clip:
    """A model with two towers, small enough to be written often."""
    return sp.load_clip(name, seed=seed)


def two_towers() -> sp.Classifier:
    return sp.zero_shot_classifier(micro("open_clip:micro", 3), CLASSES, ("a {}.", "a photo of the {}."))


def tracked_by_wandb(folder: Path) -> Outcome:
    start, settings = dropout_classifier(), eight_steps(epochs=1, batch_size=12)
    return outcome(sp.finetune(start, SUITE, settings, seed=3, checkpoints=folder, trackers=("wandb",)))


CASES: dict[str, Callable[..., Outcome]] = {
    "adamw": functools.partial(
        finetuned,
        epochs=6,
        batch_size=7,
        lr=0.1,
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
    "lora": functools.partial(
        finetuned, recipe="lora", lora_rank=2, distillation=0.5, precision="bfloat16", checkpoint_every=3
    ),
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
    tell, calls = training.Trainer.report, itertools.count(1)

    def asking(*arguments: Any, **options: Any) -> None:
        if next(calls) == nth:
            os.kill(os.getpid(), signal.SIGTERM)
        tell(*arguments, **options)

    training.Trainer.report = asking  # type: ignore[method-assign]


ENDS: dict[str, Callable[[int], None]] = {
    "unlogged step": lambda nth: dooms(training.Trainer, "report", nth),
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

    "from outside" kills it some time after it has logged so many steps, wherever it is by then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if child := os.fork():
        if end and end[0] == "from outside":
            kill_later(child, folder / "checkpoints" / tracking.LOG, end[1])
        _, status = os.waitpid(child, 0)
        return "killed" if os.WIFSIGNALED(status) else REACHED[os.WEXITSTATUS(status)]
    code = 5
    try:
        if end and end[0] in ENDS:
            ENDS[end[0]](int(end[1]))
        elif end and end[0] == "too long":
            signal.alarm(int(end[1]))
        reached = CASES[case](folder, **changes) if case in CASES else tracked_by_wandb(folder)
        save_file({n: t.detach().clone().contiguous() for n, t in reached.tensors.items()}, folder / "end.safetensors")
        (folder / "end.json").write_text(json.dumps(reached.reported), encoding="utf-8")
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
    "adamw": (len(KILLS), 3),
    "sgd": (len(KILLS), 0),
    "lora": (2, 0),
    "flyp": (3, 1),
    "pretraining": (len(KILLS), 1),
    "pretraining, channels last": (1, 0),
}


def kill_later(child: int, log: Path, steps: float) -> None:
    """Kills a process once it has logged so many steps more, and a part of the time that a step takes."""

    def logged() -> int:
        return log.read_bytes().count(b"\n") if log.exists() else 0

    goal = logged() + int(steps)
    while logged() < goal and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.001)
    time.sleep(0.1 * (steps % 1))
    os.kill(child, signal.SIGKILL)


def deaths(case: str) -> list[tuple[str, int | float]]:
    """The planned ends of a case, one after the other; none takes the training further than to its next checkpoint."""
    draw = random.Random(case)
    kinds = draw.sample(KILLS, DEATHS[case][0])
    return [("SIGTERM", 1), ("memory", 2), *((kind, draw.randint(1, 2)) for kind in kinds)]


def drive(work: Path) -> None:
    """All cases, in two processes beside each other."""
    import accelerate  # noqa: F401
    import open_clip
    import torch._dynamo

    torch.set_num_threads(1)
    os.fsync = lambda _: None  # type: ignore[assignment]  # the kernel outlives all who die here
    (work / "configs").mkdir()
    (work / "configs" / "micro.json").write_text(json.dumps(MICRO), encoding="utf-8")
    open_clip.add_model_config(work / "configs")
    text_towers.load_clip = micro  # a model that is loaded before the fork need not be loaded by each process
    two_towers()
    draw_captioned(work / "drawings")
    lanes = []
    for lane in range(2):
        if not (child := os.fork()):
            code = 1
            try:
                for case in list(CASES)[lane::2]:
                    live_and_die(case, work / case)
                if lane:
                    attempt("wandb", work / "wandb", ("too long", 15))
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
    draw = random.Random(case)
    plans = {"planned": deaths(case)}
    if count := DEATHS[case][1]:
        plans["anywhere"] = [("from outside", draw.uniform(0, 4)) for _ in range(count)]
    for name, planned in plans.items():
        ends[name] = [(end[0], attempt(case, folder / name, end)) for end in [*planned, ("none", 0)]]
    done = folder / "planned"
    shutil.copy(done / "end.safetensors", folder / "first.safetensors")
    before = digests(done / "checkpoints")
    ends["over"] = [("none", attempt(case, done, None)), ("refused", attempt(case, done, ("refused", 0), lr=9))]
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
