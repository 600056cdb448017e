"""Full disks, losses that are not finite, and full memory."""

from __future__ import annotations

import errno
import functools
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.classifiers import tensor_bytes
from support.killed_trainings import digests, log_of
from support.resumed_trainings import Mouth, after_step, dropout_classifier, raises, stopped_after, trained, unbroken

import shiftproof as sp
from shiftproof.errors import TrainingError
from shiftproof.finetuning import loop, recipes
from shiftproof.training import checkpoints as resuming

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
    folder, saved = small_disk / "checkpoints", {}

    def filled() -> None:
        saved.update(digests(folder))
        fill(small_disk / "filler", left)

    with after_step(4, filled), pytest.raises(TrainingError, match="disk is full") as caught:
        trained(folder, checkpoints_kept=3)
    assert list(dict.fromkeys(name.split("/")[0] for name in saved)) == [f"step-0000000{i}" for i in (1, 2, 3)]
    assert digests(folder).items() >= {n: d for n, d in saved.items() if not n.startswith("step-00000001")}.items()
    last = max(path.name for path in folder.glob("step-*"))
    assert str(folder / last) in str(caught.value)
    assert "Free some space and continue with `resume=True`" in str(caught.value)
    assert not list(folder.glob(".step-*"))
    # It is no better while the disk stays full.
    with pytest.raises(TrainingError, match="disk is full"):
        trained(folder, checkpoints_kept=3)
    (small_disk / "filler").unlink()
    assert tensor_bytes(trained(folder, checkpoints_kept=3).state_dict()) == unbroken()
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
    saved: dict[str, str] = {}

    def filled() -> None:
        saved.update(digests(tmp_path))
        monkeypatch.setattr(*where, full)

    with after_step(4, filled), pytest.raises(TrainingError) as caught:
        trained(tmp_path)
    message = str(caught.value)
    assert f"{tmp_path / 'step-00000004'} could not be written: the disk is full" in message
    assert (
        f"The last checkpoint is {tmp_path / 'step-00000003'}. Free some space and continue with `resume=True`"
        in message
    )
    assert digests(tmp_path) == saved
    monkeypatch.undo()
    assert not list(tmp_path.glob(".step-*"))
    assert tensor_bytes(trained(tmp_path).state_dict()) == unbroken()


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
    assert tensor_bytes(trained(tmp_path).state_dict()) == unbroken()


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

    def kept_after_failing(call: int, message: str) -> dict[str, bytes]:
        with monkeypatch.context() as patched:
            broken_at(patched, call, factor)
            with pytest.raises(TrainingError, match=message) as caught:
                trained(tmp_path, ema_decay=ema)
        assert "memory" not in str(caught.value)
        assert "Lower finetune.lr" in str(caught.value)
        assert str(tmp_path / "last_good") in str(caught.value)
        return tensor_bytes(load_file(tmp_path / "last_good" / "model.safetensors"))

    reported = "nan" if math.isnan(factor) else "inf"
    start = tensor_bytes(dropout_classifier().state_dict())
    assert kept_after_failing(1, f"stopped at step 1: the loss is {reported}.*weights of the start") == start
    # Now it fails in its sixth step, goes on after the fifth, and fails in the eighth.
    first = kept_after_failing(6, f"stopped at step 6: the loss is {reported}.*weights of step 4")
    assert first == tensor_bytes(ends[1].state_dict())
    second = kept_after_failing(3, f"stopped at step 8: the loss is {reported}.*weights of step 6")
    assert second == tensor_bytes(ends[2].state_dict())
    assert tensor_bytes(trained(tmp_path, ema_decay=ema).state_dict()) == tensor_bytes(whole.state_dict())


def test_what_was_good_before_a_resume_is_good_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_after(tmp_path, 4)
    reached = load_file(tmp_path / "step-00000003" / "model.safetensors")
    broken_at(monkeypatch, 1, math.nan)
    with pytest.raises(TrainingError, match="stopped at step 4.*weights of step 3 are in"):
        trained(tmp_path)
    assert tensor_bytes(load_file(tmp_path / "last_good" / "model.safetensors")) == tensor_bytes(reached)


# Full memory.


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
    message = str(caught.value)
    for name in ("batch_size", "accumulate", "gradient_checkpointing"):
        assert f"finetune.{name}" in message
    assert "More advice" not in message
    assert max(file.name for file in tmp_path.glob("step-*")) == "step-00000003"
    monkeypatch.undo()
    assert tensor_bytes(trained(tmp_path).state_dict()) == unbroken()


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
    assert tensor_bytes(trained(tmp_path).state_dict()) == unbroken()
