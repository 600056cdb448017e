"""Two processes under torchrun train and evaluate what one process does, and what is left when one of them dies.

This file is also the script that they run: ``torchrun tests/test_processes.py ROLE FOLDER``.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import processes
from support.classifiers import classifier_around
from support.processes import ForkedProcess
from support.squares import CLASSES, squares
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import progress
from shiftproof.data.captions import load_captioned_set
from shiftproof.errors import InputError, TrainingError, TrainingInterruptedError
from shiftproof.finetuning import recipes
from shiftproof.records.codec import to_json
from shiftproof.training.distributed import (
    broadcast_from_main,
    is_main_process,
    joined_processes,
    process_count,
    process_index,
    summed,
)

pytestmark = pytest.mark.multiprocess

# float32 sums in another order, of a tensor's largest weight where that is above 1, as in a head with its logit scale;
# every training here moves its weights more than ten times as far.
TOLERANCE = 1e-5
DIES_AFTER = 4


noisy = functools.partial(squares, noise=60)
# Of neither an even number of images nor a multiple of a batch.
HELD_OUT = noisy("validation", 5, 1).subset(range(1, 20))
SUITE = sp.ShiftSuite(
    "squares",
    CLASSES,
    sp.data.Reference("photo", noisy("train", 5, 0), HELD_OUT, noisy("test", 1, 2)),
    (),
)


def normed_classifier(norm: Callable[[], nn.Module]) -> sp.Classifier:
    """A convolution under a linear head: fast, and loaded without a text tower."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, bias=False), norm(), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        head = nn.Linear(32, len(CLASSES))
    return classifier_around(encoder, head, CLASSES)


def grouped() -> sp.Classifier:
    return normed_classifier(lambda: nn.GroupNorm(2, 8))


@functools.cache
def loaded(name: str) -> sp.models.Clip:
    return sp.load_clip(name)


class Outcome(NamedTuple):
    tensors: Mapping[str, Tensor]
    reported: Mapping[str, Any]


def outcome(tuned: sp.Classifier) -> Outcome:
    text = {f"text.{name}": tensor for name, tensor in (tuned.text or {}).items()}
    return Outcome(tuned.state_dict() | text, {"history": tuned.training["history"]})


# The script.


def tuned(start: sp.Classifier, folder: Path | None = None, **changes: Any) -> sp.Classifier:
    # A large bound on the gradient, and a rule without second moments: a gradient of the wrong size shows.
    given = {"epochs": 2, "lr": 0.02, "batch_size": 9, "warmup_steps": 0, "clip_norm": 1e6, "optimizer": "sgd"}
    return sp.finetune(start, SUITE, sp.FinetuneSettings(**{**given, **changes}), seed=3, checkpoints=folder)


def process_folder(folder: Path) -> Path:
    """A folder that no other process is given, to see who writes."""
    return folder / f"of-{process_index()}"


def with_tiny(*prompts: str, **changes: Any) -> Callable[[Path], Outcome]:
    def run(folder: Path) -> Outcome:
        start = sp.zero_shot_classifier(loaded("tiny"), CLASSES, prompts or ("a photo of a {}.",))
        return outcome(tuned(start, process_folder(folder), **changes))

    return run


def pretrained(folder: Path) -> Outcome:
    settings = sp.PretrainSettings(steps=3, batch_size=8, lr=1e-4, warmup_steps=0)
    data = load_captioned_set(f"folder:{folder.parent.parent / 'drawings'}")
    record = sp.pretrain(loaded("open_clip:shiftproof-tiny"), data, settings, seed=3, out=process_folder(folder))
    written = folder / "of-0" / "model" / "open_clip_model.safetensors"
    tensors = load_file(written) if is_main_process() else {}
    return Outcome(tensors, {"history": to_json(record.history), "recall": record.recall})


def predicted(_: Path) -> Outcome:
    """Logits of sets with more and with fewer batches than processes."""
    network = grouped()
    actual = {}
    for size, batch in ((19, 4), (7, 3), (3, 256), (1, 4)):
        some = HELD_OUT.subset(range(size))
        actual[f"{size} by {batch}"] = sp.predict(network, some, batch_size=batch, together=True)
    reported = {
        name: [sp.evaluation.accuracy(f.logits, f.labels), len(f.logits), list(f.ids)] for name, f in actual.items()
    }
    return Outcome({name: torch.from_numpy(f.logits) for name, f in actual.items()}, reported)


CASES: dict[str, Callable[[Path], Outcome]] = {
    "end-to-end": with_tiny(),
    # Of three images one process sees two, in two parts, and the other one.
    "accumulated": with_tiny(accumulate=2, batch_size=3, epochs=1, distillation=0.3, label_smoothing=0.1),
    "adamw": with_tiny(optimizer="adamw", lr=1e-4, clip_norm=1.0, early_stopping=1, ema_decay=0.2, accumulate=2),
    "flyp": with_tiny(recipe="flyp", batch_size=10, lr=0.002, epochs=1),
    "flyp with templates": with_tiny("a {}.", "a {} on white.", recipe="flyp", batch_size=10, lr=0.002, epochs=1),
    "pretraining": pretrained,
    "predictions": predicted,
}


def interrupted(folder: Path) -> dict[str, Any]:
    """SIGTERM for one process stops both, after one step; then both go on."""

    def ask(event: progress.Event) -> None:
        if (event.stage, event.done) == ("fine-tune", 2) and process_index() == 1:
            signal.raise_signal(signal.SIGTERM)

    message = ""
    try:
        with progress.listening(ask):
            tuned(grouped(), folder)
    except TrainingInterruptedError as error:
        message = str(error)
    saved = sorted(path.name for path in folder.glob("step-*"))
    # Else one reads the folder when the other has gone on already.
    summed(np.zeros(1), "cpu")
    return {"said": message, "kept": saved, "same": same(tuned(grouped(), folder), tuned(grouped()))}


def poisoned(folder: Path) -> str:
    """A loss that is not finite in one process stops both."""
    right = recipes.classification_loss
    calls = 0

    def broken(*given: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return right(*given) * (math.nan if calls == 4 and process_index() == 1 else 1)

    recipes.classification_loss = broken
    try:
        tuned(grouped(), process_folder(folder))
    except TrainingError as error:
        return str(error)
    finally:
        recipes.classification_loss = right
    return ""


def strangers(reached: Path) -> str:
    """Processes that do not see the same checkpoints, as where every machine has a disk of its own."""
    try:
        mortal(reached if is_main_process() else reached.parent / "another machine")
    except InputError as error:
        return str(error)
    return ""


def same(first: sp.Classifier, second: sp.Classifier) -> bool:
    tensors = first.state_dict()
    return all(torch.equal(tensor, tensors[name]) for name, tensor in second.state_dict().items())


def mortal(folder: Path) -> sp.Classifier:
    """The training in which a process dies."""
    return tuned(grouped(), folder, epochs=4, checkpoint_every=1, checkpoints_kept=2, ema_decay=0.5)


def keep(folder: Path, name: str, reached: Outcome) -> None:
    stem = folder / f"{name}-{process_index()}"
    save_file({n: t.detach().clone().contiguous() for n, t in reached.tensors.items()}, f"{stem}.safetensors")
    Path(f"{stem}.json").write_text(json.dumps(reached.reported), encoding="utf-8")


def play(role: str, folder: Path) -> None:
    results = folder / role
    if role == "dying":
        die_in(folder)
        return
    with joined_processes("cpu"):
        for case, run in CASES.items():
            keep(results, case, run(results / case))
        if role == "alone":
            return
        reported: dict[str, Any] = {
            "processes": process_count(),
            "main": [broadcast_from_main(process_index() == index) for index in (0, 1)],
            "interrupted": interrupted(results / "interrupted"),
            "poisoned": poisoned(results / "poisoned"),
        }
        keep(results, "batch norm", outcome(tuned(normed_classifier(lambda: nn.BatchNorm2d(8)))))
        keep(results, "immortal", outcome(mortal(results / "immortal")))
        keep(results, "resumed", outcome(mortal(folder / "mortal")))
        reported["strangers"] = strangers(results / "immortal")
        index = process_index()
    reported["after"] = process_count()
    (results / f"reported-{index}.json").write_text(json.dumps(reported), encoding="utf-8")


def die_in(folder: Path) -> None:
    """A training that one of the processes does not survive; it joins them itself, since nobody has."""

    def die(event: progress.Event) -> None:
        if (event.stage, event.done) == ("fine-tune", DIES_AFTER) and process_index() == 1:
            (folder / "died.txt").write_text(str(time.time()), encoding="utf-8")
            os.kill(os.getpid(), signal.SIGKILL)

    with progress.listening(die):
        mortal(folder / "mortal")


# The tests.


class Ran(NamedTuple):
    """What the script has left: results in ``folder``, and how the training ended in which a process died."""

    folder: Path
    code: int
    seconds: float
    output: str


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The script in all its roles: one process is this one, and the training with a death runs meanwhile."""
    folder = tmp_path_factory.mktemp("processes")
    draw_captioned(folder / "drawings")
    dying = started("dying", folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (folder / "alone").mkdir()
        play("alone", folder)
    finally:
        torch.set_num_threads(threads)
    output = ended(dying)
    seconds = time.time() - float((folder / "died.txt").read_text())
    shutil.copytree(folder / "mortal", folder / "left")
    together = started("together", folder)
    message = ended(together)
    if together.returncode:
        pytest.fail(message[:5000], pytrace=False)
    return Ran(folder, dying.returncode, seconds, output)


def draw_captioned(folder: Path) -> None:
    folder.mkdir()
    train = SUITE.reference.train
    for i in range(0, len(train), 2):
        Image.fromarray(train.read(i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a {CLASSES.names[train.labels[i]]}, number {i}\n", encoding="utf-8")


def started(role: str, folder: Path) -> ForkedProcess:
    """Two processes in a role, on one CPU each."""
    (folder / role).mkdir()
    launch = ["--standalone", "--nproc-per-node", "2", "--start-method", "fork", "--run-path"]
    return processes.start("module", "torch.distributed.run", *launch, __file__, role, folder)


def ended(launched: ForkedProcess) -> str:
    """What a launch has said in the end; one that hangs is ended."""
    try:
        return "".join(launched.communicate(timeout=500))
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"two processes hang: {error.output}")


def result(ran: Ran, role: str, name: str, index: int = 0) -> tuple[dict[str, Tensor], Any]:
    stem = ran.folder / role / f"{name}-{index}"
    return load_file(f"{stem}.safetensors"), json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))


def equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def reported(ran: Ran, index: int) -> Any:
    return json.loads((ran.folder / "together" / f"reported-{index}.json").read_text(encoding="utf-8"))


TRAININGS = [case for case in CASES if case != "predictions"]


@pytest.mark.parametrize("case", TRAININGS)
def test_two_processes_train_what_one_does(ran: Ran, case: str) -> None:
    assert [(reported(ran, index)["processes"], reported(ran, index)["after"]) for index in (0, 1)] == [(2, 1), (2, 1)]
    (alone, message), (together, said_together) = (result(ran, role, case) for role in ("alone", "together"))
    assert alone.keys() == together.keys()
    for name, tensor in alone.items():
        furthest = (tensor - together[name]).abs().max().item()
        assert furthest <= TOLERANCE * max(1, tensor.abs().max().item()), name
    start = started_from(case)
    assert max((alone[name] - tensor).abs().max().item() for name, tensor in start.items()) > 10 * TOLERANCE
    assert len(message["history"]) == len(said_together["history"]) > 0
    for entry, other in zip(message["history"], said_together["history"], strict=True):
        assert other == pytest.approx(entry, rel=1e-5)
        assert other.get("validation") == entry.get("validation")
    assert message.get("recall") == said_together.get("recall")


def started_from(case: str) -> dict[str, Tensor]:
    name = "open_clip:shiftproof-tiny" if case == "pretraining" else "tiny"
    prefix = "" if case == "pretraining" else "encoder."
    tower = "visual." if case == "pretraining" else ""
    tensors = loaded(name).model.visual.state_dict()
    return {f"{prefix}{tower}{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("case", [*CASES, "batch norm", "immortal", "resumed"])
def test_both_processes_return_the_same(ran: Ran, case: str) -> None:
    (first, message), (second, other) = (result(ran, "together", case, index) for index in (0, 1))
    if case == "pretraining":  # which returns its card
        assert not second
    else:
        assert equal(first, second)
    assert message == other


def test_logits_of_two_processes_are_those_of_one_to_the_last_bit(ran: Ran) -> None:
    (alone, message), (together, other) = (result(ran, role, "predictions") for role in ("alone", "together"))
    assert equal(alone, together)
    assert message == other
    for name, (_, count, ids) in message.items():
        size = int(name.split()[0])
        assert count == size
        assert ids == list(HELD_OUT.ids[:size])


@pytest.mark.parametrize("case", TRAININGS)
def test_only_the_main_process_writes(ran: Ran, case: str) -> None:
    assert [path.name for path in (ran.folder / "together" / case).iterdir()] == ["of-0"]
    assert reported(ran, 0)["main"] == reported(ran, 1)["main"] == [True, False]
    files = {role: files_in(ran.folder / role / case / "of-0") for role in ("alone", "together")}
    assert files["alone"] == files["together"] != []


def files_in(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_sigterm_for_one_process_stops_both_and_both_go_on(ran: Ran) -> None:
    for index in (0, 1):
        actual = reported(ran, index)["interrupted"]
        assert "interrupted after step 2 of 5" in actual["said"]
        assert "`resume" in actual["said"]
        assert actual["same"]
    assert reported(ran, 0)["interrupted"]["kept"] == ["step-00000002"]


def test_a_loss_that_is_not_finite_in_one_process_stops_both(ran: Ran) -> None:
    for index in (0, 1):
        assert re.search(r"stopped at step 4: the (loss|gradient's norm) is nan", reported(ran, index)["poisoned"])
    folder = ran.folder / "together" / "poisoned"
    assert [path.name for path in folder.iterdir()] == ["of-0"]
    saved = load_file(folder / "of-0" / "last_good" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())


def test_processes_that_see_other_checkpoints_are_refused(ran: Ran) -> None:
    for index in (0, 1):
        assert "the processes see different checkpoints" in reported(ran, index)["strangers"]


def test_a_process_that_dies_ends_the_launch_and_leaves_whole_checkpoints(ran: Ran) -> None:
    assert ran.code != 0
    assert ran.seconds < 60
    # Whichever of the two the launcher looks at first: the one that was killed, or the one that has lost it.
    assert re.search("SIGKILL|another process has ended", ran.output)
    saved = sorted(path.name for path in (ran.folder / "left").glob("step-*"))
    assert saved[-1] in (f"step-{step:08d}" for step in (DIES_AFTER - 1, DIES_AFTER))
    for path in saved:
        parts = {file.stem for file in (ran.folder / "left" / path).glob("*.safetensors")}
        assert parts == {"average", "model", "optimizer"}
        assert all(load_file(ran.folder / "left" / path / f"{part}.safetensors") for part in parts)
        assert json.loads((ran.folder / "left" / path / "state.json").read_text())["step"] == int(path[5:])


def test_what_a_dead_process_left_is_gone_on_with_to_the_same_bits(ran: Ran) -> None:
    (resumed, message), (whole, other) = (result(ran, "together", name) for name in ("resumed", "immortal"))
    assert equal(resumed, whole)
    assert message == other
    steps = [
        [json.loads(line)["step"] for line in (folder / "training.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in (ran.folder / "mortal", ran.folder / "together" / "immortal")
    ]
    assert steps[0] == steps[1] == list(range(1, 10))
    assert not list((ran.folder / "mortal").glob(".*"))


if __name__ == "__main__":
    play(sys.argv[1], Path(sys.argv[2]))
