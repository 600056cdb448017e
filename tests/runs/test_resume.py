"""Trainings that are killed, asked to stop, or out of room: they go on from the last checkpoint to the same bits.

This file is also a script: ``python tests/test_resume.py FOLDER`` trains and dies, again and again, in processes that
it forks, so that hundreds of deaths cost one start of the interpreter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import importlib.util
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import progress, storage
from shiftproof.data.captions import load_captioned_set
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.errors import TrainingError, TrainingInterruptedError
from shiftproof.finetuning import loop, probe, recipes
from shiftproof.models import text_towers
from shiftproof.models.classifier import Network
from shiftproof.records.codec import to_json
from shiftproof.training import checkpoints as resuming
from shiftproof.training import engine as training
from shiftproof.training import log as tracking
from shiftproof.training.log import trackers_from

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
    sp.data.Reference(
        "photo", noisy_squares("train", 6, 0), noisy_squares("validation", 5, 1), noisy_squares("test", 1, 2)
    ),
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
    """Every file of the checkpoints in a folder, with its content but for the seconds that it took."""
    timeless = functools.partial(re.sub, rb'"seconds": [0-9.e-]+', b"")
    return {
        str(file.relative_to(folder)): hashlib.sha256(timeless(file.read_bytes())).hexdigest()
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
    start, asked = toy(), settings(epochs=1, batch_size=12)
    return outcome(sp.finetune(start, SUITE, asked, seed=3, checkpoints=folder, trackers=("wandb",)))


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


# What became of them.


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits are promised on one CPU; and small layers gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the script, which has run."""
    work = tmp_path_factory.mktemp("died")
    run_script(work)
    return work


def run_script(work: Path) -> None:
    alone = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}
    private = {f"WANDB_{name}_DIR": str(work / "private") for name in ("CACHE", "CONFIG", "DATA")}
    offline = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    ended = subprocess.run(
        [sys.executable, __file__, str(work)],
        env={**os.environ, **alone, **private, **offline},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (work / "said.txt").write_text(ended.stdout + ended.stderr, encoding="utf-8")


def result_in(folder: Path) -> tuple[dict[str, bytes], Any]:
    told = json.loads((folder / "end.json").read_text(encoding="utf-8"))
    return bits(load_file(folder / "end.safetensors")), told


RANDOM_TOO = [
    (case, where) for case in CASES for where in ("planned", "anywhere") if where == "planned" or DEATHS[case][1]
]


@pytest.mark.parametrize(("case", "where"), RANDOM_TOO)
def test_a_training_that_was_killed_ends_with_the_same_bits(died: Path, case: str, where: str) -> None:
    ends = json.loads((died / case / "ends.json").read_text(encoding="utf-8"))
    said = (died / "said.txt").read_text(encoding="utf-8")
    assert ends["whole"] == [["none", "the end"]], said
    if where == "planned":
        expected = {"SIGTERM": "asked to stop", "memory": "failed", "none": "the end"}
        assert ends[where] == [[name, expected.get(name, "killed")] for name, _ in ends[where]], said
    else:
        assert {end for _, end in ends[where]} == {"killed", "the end"}, said
    assert result_in(died / case / where) == result_in(died / case / "whole")
    whole, broken = (died / case / run / "checkpoints" for run in ("whole", where))
    lines = log_of(whole)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert log_of(broken) == lines
    # What is left is what the unbroken one leaves, to the last byte.
    assert digests(broken).items() >= digests(whole).items()
    more = {file.name for file in broken.iterdir()} - {file.name for file in whole.iterdir()}
    # Of the time when memory was full, and of a death while older ones went, after the last step.
    assert {name for name in more if not name.startswith("step-")} <= {"last_good"}


def test_the_killed_trainings_had_state_to_lose(died: Path) -> None:
    _, told = result_in(died / "adamw" / "whole")
    scores = [entry["validation"] for entry in told["training"]["history"]]
    assert len(scores) < told["training"]["settings"]["epochs"]
    assert max(scores[:-1]) > scores[-1]
    stored = {file.stem for file in (died / "adamw" / "whole" / "checkpoints").glob("step-*/*")}
    assert stored == {"average", "best", "model", "optimizer", "state"}


@pytest.mark.parametrize("case", CASES)
def test_one_that_has_ended_gives_its_result_again(died: Path, case: str) -> None:
    ends = json.loads((died / case / "ends.json").read_text(encoding="utf-8"))
    assert ends["over"] == [["none", "the end"], ["refused", "failed"], ["unchanged", "True"]]
    assert bits(load_file(died / case / "first.safetensors")) == bits(
        load_file(died / case / "planned/end.safetensors")
    )


@pytest.mark.parametrize("case", CASES)
def test_one_that_was_asked_to_stop_says_how_to_go_on(died: Path, case: str) -> None:
    said = (died / case / "SIGTERM.txt").read_text(encoding="utf-8")
    assert "was interrupted after step 1 of " in said
    assert "`resume=True`" in said
    assert str(died / case / "planned" / "checkpoints") in said


@pytest.mark.parametrize("case", CASES)
def test_other_settings_are_refused_by_name(died: Path, case: str) -> None:
    said = (died / case / "refused.txt").read_text(encoding="utf-8")
    assert "'lr'" in said
    assert str(died / case / "planned" / "checkpoints") in said


@pytest.mark.parametrize("case", CASES)
def test_full_memory_names_what_to_lower(died: Path, case: str) -> None:
    said = (died / case / "memory.txt").read_text(encoding="utf-8")
    section = "pretrain" if case.startswith("pretraining") else "finetune"
    assert "stopped at step 3: out of memory (CUDA out of memory.)" in said
    assert f"{section}.batch_size" in said
    assert f"{section}.gradient_checkpointing" in said
    # A contrastive batch must stay whole: there the settings refuse what the message would advise.
    assert (f"{section}.accumulate" in said) == (case not in ("flyp", "pretraining", "pretraining, channels last"))
    # And no lower rate makes room.
    assert f"{section}.lr" not in said


def test_no_checkpoint_is_a_pickle(died: Path) -> None:
    files = [file for file in died.glob("*/*/checkpoints/**/*") if file.is_file()]
    assert len(files) > 50
    assert {file.suffix for file in files} == {".safetensors", ".json", ".jsonl"}


def test_wandb_offline_is_told_of_every_step(died: Path) -> None:
    if not (died / "wandb" / "end.json").exists():
        pytest.skip("wandb takes more than 15 s here")
    (run,) = died.glob("wandb/wandb/offline-run-*/*.wandb")
    content = run.read_bytes()
    assert all(key in content for key in (b"loss", b"lr", b"images_per_second", b"shiftproof"))


# SIGTERM.


def trained(folder: Path | None = None, start: sp.Classifier | None = None, **changes: Any) -> sp.Classifier:
    seed, trackers = changes.pop("seed", 0), changes.pop("trackers", ())
    start = start or toy()
    return sp.finetune(start, SUITE, settings(**changes), seed=seed, checkpoints=folder, trackers=trackers)


@functools.cache
def unbroken(**changes: Any) -> dict[str, bytes]:
    """The bits of a training without checkpoints."""
    return bits(trained(**changes).state_dict())


@contextlib.contextmanager
def after_step(step: int, then: Callable[[], object]) -> Iterator[None]:
    """``then`` happens as soon as a step is reported."""
    with progress.listening(lambda e: then() if (e.stage, e.done) == ("fine-tune", step) else None):
        yield


class StopError(Exception):
    """What ends the training from outside."""


def stopped_after(folder: Path, step: int, **changes: Any) -> None:
    """A training that ends right after a step, before a checkpoint could be written of it."""

    def stop() -> None:
        raise StopError

    with after_step(step, stop), pytest.raises(StopError):
        trained(folder, **changes)


@pytest.fixture
def own_handler() -> Iterator[Callable[..., None]]:
    """A handler of SIGTERM that the caller has set."""

    def handler(*_: object) -> None:
        raise AssertionError("the caller's handler was called")

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


def test_sigterm_writes_a_checkpoint_and_the_caller_s_handler_comes_back(
    tmp_path: Path, own_handler: Callable[..., None]
) -> None:
    whole = trained(ema_decay=0.5, checkpoint_every=100)
    with (
        after_step(3, lambda: signal.raise_signal(signal.SIGTERM)),
        pytest.raises(TrainingInterruptedError, match=rf"step 3 of 8\. .*`resume=True`: .* in {tmp_path}"),
    ):
        trained(tmp_path, ema_decay=0.5, checkpoint_every=100)
    assert signal.getsignal(signal.SIGTERM) is own_handler
    assert [file.name for file in tmp_path.glob("step-*")] == ["step-00000003"]
    resumed = trained(tmp_path, ema_decay=0.5, checkpoint_every=100)
    assert bits(resumed.state_dict()) == bits(whole.state_dict())
    assert resumed.training == whole.training
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_sigterm_in_the_last_step_is_an_ordinary_end(tmp_path: Path, own_handler: Callable[..., None]) -> None:
    with after_step(8, lambda: signal.raise_signal(signal.SIGTERM)):
        tuned = trained(tmp_path)
    assert bits(tuned.state_dict()) == unbroken()
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_without_checkpoints_sigterm_is_the_caller_s(own_handler: Callable[..., None]) -> None:
    with (
        after_step(3, lambda: signal.raise_signal(signal.SIGTERM)),
        pytest.raises(AssertionError, match="caller's handler"),
    ):
        trained()


def test_the_handler_comes_back_after_a_failure_too(tmp_path: Path, own_handler: Callable[..., None]) -> None:
    stopped_after(tmp_path, 3)
    assert signal.getsignal(signal.SIGTERM) is own_handler


def test_a_thread_that_cannot_take_signals_trains_too(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        tuned = pool.submit(trained, tmp_path).result()
    assert bits(tuned.state_dict()) == unbroken()


# The checkpoints.


@pytest.mark.parametrize("kept", [1, 3])
def test_the_last_checkpoints_are_kept_and_what_a_kill_left_is_cleared(tmp_path: Path, kept: int) -> None:
    stopped_after(tmp_path, 4, checkpoints_kept=kept)
    assert [file.name for file in sorted(tmp_path.glob("step-*"))] == [f"step-0000000{i}" for i in range(4 - kept, 4)]
    (tmp_path / ".step-dead").mkdir()
    (tmp_path / ".step-dead" / ".model.half.safetensors").write_bytes(b"half")
    trained(tmp_path, checkpoints_kept=kept)
    expected = [f"step-0000000{i}" for i in range(9 - kept, 9)]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*expected, "training.jsonl"]


def test_what_saves_memory_may_be_raised_where_it_was_too_little(tmp_path: Path) -> None:
    stopped_after(tmp_path, 4)
    reached = trained(tmp_path, accumulate=2, checkpoint_every=3, checkpoints_kept=1)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 9))
    assert [path.name for path in sorted(tmp_path.glob("step-*"))] == ["step-00000008"]
    assert reached.training["settings"]["accumulate"] == 2


@pytest.mark.parametrize("change", ["labels", "images"])
def test_other_images_of_the_same_number_are_refused(tmp_path: Path, change: str) -> None:
    stopped_after(tmp_path, 4)
    train = SUITE.reference.train
    told = {"labels": np.roll(train.labels, 1)} if change == "labels" else {"ids": tuple(f"new-{i}" for i in train.ids)}
    other = dataclasses.replace(
        SUITE, reference=dataclasses.replace(SUITE.reference, train=dataclasses.replace(train, **told))
    )
    with pytest.raises(sp.InputError, match="are of another training; these differ: 'images'"):
        sp.finetune(toy(), other, settings(), checkpoints=tmp_path)


def test_a_probe_that_came_first_is_the_same_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PENALTIES", (1e-1, 1e-2))
    asked = {"recipe": "lp-ft", "shots": 3, "distillation": 0.5}
    stopped_after(tmp_path, 2, **asked)
    assert bits(trained(tmp_path, **asked).state_dict()) == bits(trained(**asked).state_dict())


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", "cut"),
        ("optimizer.safetensors", "gone"),
        ("average.safetensors", "empty"),
        ("average.safetensors", "gone"),
        ("state.json", "cut"),
        ("state.json", "gone"),
        ("state.json", "{}"),
        ("state.json", "[]"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_good(tmp_path: Path, file: str, damage: str) -> None:
    stopped_after(tmp_path, 6, ema_decay=0.5)
    damaged = tmp_path / "step-00000005"
    content = (damaged / file).read_bytes()
    if damage == "gone":
        (damaged / file).unlink()
    else:
        written = {"cut": content[: len(content) // 2], "empty": b""}.get(damage, damage.encode())
        (damaged / file).write_bytes(written)
    with pytest.raises(sp.InputError, match=r"step-00000005 is damaged(.|\n)*Delete it to resume from the one before"):
        trained(tmp_path, ema_decay=0.5)
    shutil.rmtree(damaged)
    assert bits(trained(tmp_path, ema_decay=0.5).state_dict()) == unbroken(ema_decay=0.5)
    steps = [line["step"] for line in log_of(tmp_path)]
    assert steps == list(range(1, 9))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"lr": 2e-2}, ["lr"]),
        ({"seed": 1}, ["seed"]),
        ({"start": toy(1)}, ["start"]),
        ({"mixing": "cutmix", "ema_decay": 0.5}, ["ema_decay", "mixing"]),
        ({"crop_scale": (0.5, 1.0)}, ["crop_scale"]),
        ({"recipe": "head-only"}, ["recipe"]),
        ({"shots": 5}, ["images", "shots"]),
    ],
)
def test_checkpoints_of_another_training_are_refused(tmp_path: Path, changes: dict[str, Any], named: list[str]) -> None:
    stopped_after(tmp_path, 3)
    before, lines = digests(tmp_path), log_of(tmp_path)
    said = re.escape(f"these differ: {', '.join(map(repr, named))}.")
    with pytest.raises(sp.InputError, match=rf"{tmp_path} are of another training; {said}.*`out`"):
        trained(tmp_path, **changes)
    assert (digests(tmp_path), log_of(tmp_path)) == (before, lines)


# Full disks.


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 1 MB of its own, and not in pytest's folders: what a killed test leaves would break the next."""
    folder = Path(tempfile.mkdtemp(prefix="shiftproof-disk-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if sys.platform != "linux" or not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def fill(file: Path, left: int) -> None:
    """Writes a file until so many bytes are left on its disk."""
    free = os.statvfs(file.parent).f_bavail * os.statvfs(file.parent).f_frsize
    file.write_bytes(b"x" * max(free - left, 0))


@pytest.mark.parametrize("left", [0, 8192, 16384])
def test_a_disk_that_is_full_keeps_the_older_checkpoints(small_disk: Path, left: int) -> None:
    folder, kept = small_disk / "checkpoints", {}

    def filled() -> None:
        kept.update(digests(folder))
        fill(small_disk / "filler", left)

    with after_step(4, filled), pytest.raises(TrainingError, match="disk is full") as caught:
        trained(folder, checkpoints_kept=3)
    assert list(dict.fromkeys(name.split("/")[0] for name in kept)) == [f"step-0000000{i}" for i in (1, 2, 3)]
    assert digests(folder).items() >= {n: d for n, d in kept.items() if not n.startswith("step-00000001")}.items()
    last = max(path.name for path in folder.glob("step-*"))
    assert str(folder / last) in str(caught.value)
    assert "Free some space and continue with `resume=True`" in str(caught.value)
    assert not list(folder.glob(".step-*"))
    # It is no better while the disk stays full.
    with pytest.raises(TrainingError, match="disk is full"):
        trained(folder, checkpoints_kept=3)
    (small_disk / "filler").unlink()
    assert bits(trained(folder, checkpoints_kept=3).state_dict()) == unbroken()
    assert [line["step"] for line in log_of(folder)] == list(range(1, 9))


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    "where",
    [(resuming, "write_state_dict"), (resuming, "write_json"), (tempfile, "mkdtemp"), (Path, "rename")],
    ids=["tensors", "state", "folder", "rename"],
)
def test_a_disk_that_fills_anywhere_in_a_checkpoint_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: tuple[Any, str]
) -> None:
    kept: dict[str, str] = {}

    def filled() -> None:
        kept.update(digests(tmp_path))
        monkeypatch.setattr(*where, full)

    with after_step(4, filled), pytest.raises(TrainingError) as caught:
        trained(tmp_path)
    said = str(caught.value)
    assert f"{tmp_path / 'step-00000004'} could not be written: the disk is full" in said
    assert (
        f"The last checkpoint is {tmp_path / 'step-00000003'}. Free some space and continue with `resume=True`" in said
    )
    assert digests(tmp_path) == kept
    monkeypatch.undo()
    assert not list(tmp_path.glob(".step-*"))
    assert bits(trained(tmp_path).state_dict()) == unbroken()


def test_a_disk_that_is_full_from_the_first_says_that_there_is_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "write_json", full)
    with pytest.raises(TrainingError, match=r"disk is full. There is no checkpoint yet. Free some space"):
        trained(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3)
    before = digests(tmp_path)
    (tmp_path / "training.jsonl").unlink()
    (tmp_path / "training.jsonl").symlink_to("/dev/full")
    with pytest.raises(TrainingError, match=r"training\.jsonl(.|\n)*disk is full(.|\n)*`resume=True`"):
        trained(tmp_path)
    assert digests(tmp_path) == before
    (tmp_path / "training.jsonl").unlink()
    assert bits(trained(tmp_path).state_dict()) == unbroken()


# A loss that is not finite.


def broken_at(monkeypatch: pytest.MonkeyPatch, call: int, factor: float) -> None:
    """The loss of the call-th step from now is multiplied."""
    right, calls = recipes.classification_loss, itertools.count(1)
    monkeypatch.setattr(
        recipes, "classification_loss", lambda *given: right(*given) * (factor if next(calls) == call else 1)
    )


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_loss_that_is_not_finite_keeps_the_last_good_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float, ema: float
) -> None:
    ends: list[sp.Classifier] = []

    def watched(classifier: sp.Classifier, images: sp.ImageSet, **options: Any) -> sp.evaluation.Predictions:
        ends.append(classifier)
        return sp.predict(classifier, images, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "predict", watched)
        whole = trained(ema_decay=ema)
    assert len(ends) == 4  # epochs of two steps

    def kept_after_failing(call: int, said: str) -> dict[str, bytes]:
        with monkeypatch.context() as patched:
            broken_at(patched, call, factor)
            with pytest.raises(TrainingError, match=said) as caught:
                trained(tmp_path, ema_decay=ema)
        assert "memory" not in str(caught.value)
        assert "Lower finetune.lr" in str(caught.value)
        assert str(tmp_path / "last_good") in str(caught.value)
        return bits(load_file(tmp_path / "last_good" / "model.safetensors"))

    told = "nan" if math.isnan(factor) else "inf"
    start = bits(toy().state_dict())
    assert kept_after_failing(1, f"stopped at step 1: the loss is {told}.*weights of the start") == start
    # Now it fails in its sixth step, goes on after the fifth, and fails in the eighth.
    first = kept_after_failing(6, f"stopped at step 6: the loss is {told}.*weights of step 4")
    assert first == bits(ends[1].state_dict())
    second = kept_after_failing(3, f"stopped at step 8: the loss is {told}.*weights of step 6")
    assert second == bits(ends[2].state_dict())
    assert bits(trained(tmp_path, ema_decay=ema).state_dict()) == bits(whole.state_dict())


def test_what_was_good_before_a_resume_is_good_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(tmp_path, 4)
    reached = load_file(tmp_path / "step-00000003" / "model.safetensors")
    broken_at(monkeypatch, 1, math.nan)
    with pytest.raises(TrainingError, match="stopped at step 4.*weights of step 3 are in"):
        trained(tmp_path)
    assert bits(load_file(tmp_path / "last_good" / "model.safetensors")) == bits(reached)


# Full memory.


def raises(error: BaseException) -> Callable[[], object]:
    def bite() -> object:
        raise error

    return bite


def asks_for_all_memory() -> object:
    return torch.empty(1 << 55)


@pytest.mark.parametrize(
    "bite",
    [
        raises(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore advice")),
        raises(MemoryError()),
        asks_for_all_memory,
    ],
    ids=["cuda", "python", "cpu"],
)
def test_full_memory_is_explained_and_can_be_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bite: Callable[[], object]
) -> None:
    hungry = functools.partial(monkeypatch.setattr, Mouth, "bite", staticmethod(bite))
    with after_step(3, hungry), pytest.raises(TrainingError, match="stopped at step 4: out of memory") as caught:
        trained(tmp_path)
    said = str(caught.value)
    for name in ("batch_size", "accumulate", "gradient_checkpointing"):
        assert f"finetune.{name}" in said
    assert "More advice" not in said
    assert max(file.name for file in tmp_path.glob("step-*")) == "step-00000003"
    monkeypatch.undo()
    assert bits(trained(tmp_path).state_dict()) == unbroken()


def test_another_error_is_not_taken_for_full_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hungry = functools.partial(monkeypatch.setattr, Mouth, "bite", raises(RuntimeError("shapes do not fit")))
    with after_step(3, hungry), pytest.raises(RuntimeError, match=r"^shapes do not fit$"):
        trained(tmp_path)


def test_memory_that_fills_in_validation_is_explained_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "predict", hungry)
        with pytest.raises(TrainingError, match="stopped at step 2: out of memory"):
            trained(tmp_path)
    assert bits(trained(tmp_path).state_dict()) == unbroken()


# Precision, and accelerate's state.


def test_float16_is_refused_on_a_cpu(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="float16 needs a GPU. Use bfloat16 or float32"):
        trained(tmp_path, precision="float16")
    assert not list(tmp_path.iterdir())


def accelerate_state() -> list[Any]:
    from accelerate.state import AcceleratorState, GradientState, PartialState

    of_torch = (torch.get_default_dtype(), torch.get_num_threads(), torch.is_autocast_enabled("cpu"))
    shared = [dict(state._shared_state) for state in (AcceleratorState, GradientState, PartialState)]
    return [*shared, dict(os.environ), of_torch, signal.getsignal(signal.SIGTERM)]


def test_one_process_trains_in_one_precision_after_the_other() -> None:
    before = accelerate_state()
    first, half, again, other = (trained(precision=p) for p in ("float32", "bfloat16", "float32", "bfloat16"))
    assert accelerate_state() == before
    assert bits(first.state_dict()) == bits(again.state_dict())
    assert bits(half.state_dict()) == bits(other.state_dict())
    assert bits(first.state_dict()) != bits(half.state_dict())
    assert {t.dtype for t in half.state_dict().values() if t.is_floating_point()} == {torch.float32}


def test_accelerate_is_left_as_the_caller_had_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    plain = trained()
    try:
        own = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=4)
        before = accelerate_state()
        tuned = trained(tmp_path / "whole")
        stopped_after(tmp_path / "stopped", 3)
        monkeypatch.setattr(Mouth, "bite", raises(MemoryError()))
        with pytest.raises(TrainingError):
            trained(tmp_path / "failed")
        with pytest.raises(sp.InputError):
            trained(precision="float16")
        assert accelerate_state() == before
        assert (own.mixed_precision, own.gradient_accumulation_steps) == ("bf16", 4)
        assert own.state.distributed_type is not None
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
    assert bits(tuned.state_dict()) == bits(plain.state_dict())


@pytest.mark.parametrize(
    ("name", "value"), [("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"), ("ACCELERATE_MIXED_PRECISION", "bf16")]
)
def test_accelerate_s_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    plain = trained()
    monkeypatch.setenv(name, value)
    tuned = trained()
    assert bits(tuned.state_dict()) == bits(plain.state_dict())
    assert tuned.training == plain.training


# Trackers.


def test_tensorboard_is_told_of_every_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stopped_after(tmp_path, 5, trackers=("tensorboard",), checkpoint_every=3)
    tuned = trained(tmp_path, trackers=("tensorboard",), checkpoint_every=3)
    assert bits(tuned.state_dict()) == unbroken(checkpoint_every=3)
    told: dict[str, dict[int, float]] = {}
    for file in sorted(tmp_path.glob("tensorboard/**/events.*")):
        events = EventAccumulator(str(file)).Reload()
        for tag in events.Tags()["scalars"]:
            told.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 9))
    for name in ("loss", "lr", "validation"):
        expected = {line["step"]: line[name] for line in lines if name in line}
        assert told[name] == pytest.approx(expected, rel=1e-6)
    assert set(told["images_per_second"]) == set(range(1, 9))


def test_trackers_are_asked_for_by_name() -> None:
    assert trackers_from("tensorboard, wandb") == ("tensorboard", "wandb")
    assert trackers_from("") == trackers_from("none") == ()
    with pytest.raises(sp.InputError, match="unknown tracker 'tensorbord'. Did you mean 'tensorboard'"):
        trackers_from("wandb,tensorbord")


def test_a_tracker_that_is_not_installed_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    with pytest.raises(sp.InputError, match=r"'wandb' is not installed. .*shiftproof\[track\]"):
        trackers_from("wandb")


def test_a_training_without_a_folder_has_none_for_trackers_either() -> None:
    with pytest.raises(sp.InputError, match="the tracker 'tensorboard' needs a folder"):
        trained(trackers=("tensorboard",))


def test_a_training_refuses_a_tracker_that_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with pytest.raises(sp.InputError, match="unknown tracker 'tensorbord'"):
        trained(tmp_path, trackers=("tensorbord",))


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
