"""A pass over images that processes share: the shares, and that two processes under torchrun measure what one does.

This file is also the script that they run: ``torchrun tests/evaluation/test_sharing.py ROLE FOLDER``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import processes
from support.small_batches import small_batches

import shiftproof as sp
from shiftproof.errors import InputError, TrainingError
from shiftproof.evaluation.sharing import Processes, batches_of
from shiftproof.models.identity import fingerprint
from shiftproof.training.distributed import (
    broadcast_from_main,
    gathered_on_main,
    is_main_process,
    joined_processes,
    process_index,
)


@given(count=st.integers(1, 200), batch=st.integers(1, 40), number=st.integers(1, 9))
def test_every_image_is_in_one_batch_of_one_process_and_the_shares_are_balanced(
    count: int, batch: int, number: int
) -> None:
    shares = [batches_of(count, batch, number, index) for index in range(number)]
    # In turn, the processes run the batches of one.
    in_turn = [share[k] for k in range(len(shares[0])) for share in shares if k < len(share)]
    assert in_turn == batches_of(count, batch)
    assert [i for positions in in_turn for i in positions] == list(range(count))
    sizes = [sum(map(len, share)) for share in shares]
    assert max(sizes) - min(sizes) <= batch
    assert all(len(positions) == batch for positions in in_turn[:-1])


# The script.


def asked(folders: str, **changes: Any) -> sp.RunFile:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": reference, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}}
    return sp.RunFile.resolve({"suite": suite, "device": "cpu", **changes})


def play(role: str, folder: Path) -> None:
    out, ends = folder / role, (folder / "zero", folder / "tuned")
    folders = (folder / "data.txt").read_text(encoding="utf-8")
    reported: dict[str, Any] = {}
    with joined_processes("cpu"), small_batches():
        index = process_index()
        swept = sp.runs.run_sweep(asked(folders, alphas=2), *ends, out / "sweep")
        resumed = sp.runs.run_sweep(asked(folders, alphas=5), *ends, out / "sweep", resume=True)
        few = sp.runs.run_sweep(
            asked(folders, alphas=2, limit=1, evaluation={"precision": "bfloat16"}), *ends, out / "few"
        )
        reported["paths"] = [repr(sweep.path) for sweep in (swept, resumed, few)]
        sets = {"test": f"folder:{folders}/test", "sketch": f"folder:{folders}/sketch"}
        reported["records"] = repr(sp.runs.run_evaluate(ends[1], sets, device="cpu", out=out / "scores"))
        reported["main"] = broadcast_from_main(index), gathered_on_main(index)
        reported["each"] = Processes(together=True).each(range(3), lambda item: (item, index))
        if role == "together":
            reported["strangers"] = failure(predict_others, folder)
            reported["broken"] = failure(predict_broken, folder)  # the last, since it ends the connection
    (folder / f"reported-{role}-{index}.json").write_text(json.dumps(reported), encoding="utf-8")


def failure(job: Callable[[Path], object], folder: Path) -> str:
    try:
        job(folder)
    except (InputError, TrainingError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def some_images(folder: Path) -> tuple[sp.Classifier, sp.ImageSet]:
    classifier = sp.load_classifier(folder / "zero")
    folders = (folder / "data.txt").read_text(encoding="utf-8")
    return classifier, sp.load_data(f"folder:{folders}/test", classifier.classes)


def predict_others(folder: Path) -> None:
    classifier, images = some_images(folder)
    sp.predict(classifier, images if is_main_process() else images.subset(range(3)), device="cpu", together=True)


def predict_broken(folder: Path) -> None:
    """The fourth image, which is in the second process's share, cannot be read."""
    classifier, images = some_images(folder)

    def read(i: int) -> np.ndarray:
        if i == 3:
            raise InputError("the fourth image is broken")
        return images.read(i)

    sp.predict(classifier, replace(images, read=read), device="cpu", together=True)


# The tests.


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, folders: Path) -> Path:
    """The folder with what one process, which is this one, and two processes have left."""
    folder = tmp_path_factory.mktemp("sharing")
    (folder / "data.txt").write_text(str(folders), encoding="utf-8")
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    draw = torch.Generator().manual_seed(1)
    moved = {
        name: entry + 0.2 * entry.abs().mean() * torch.randn(entry.shape, generator=draw)
        for name, entry in zero.state_dict().items()
    }
    sp.save_classifier(zero, folder / "zero")
    sp.save_classifier(zero.with_weights(moved, head="trained"), folder / "tuned")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        play("alone", folder)
    finally:
        torch.set_num_threads(threads)
    launch = ["--standalone", "--nproc-per-node", "2", "--start-method", "fork", "--run-path"]
    ended = processes.run("module", "torch.distributed.run", *launch, __file__, "together", folder, timeout=300)
    assert ended.returncode == 0, ended.stderr[-5000:]
    return folder


def told_by(folder: Path, role: str, index: int = 0) -> dict[str, Any]:
    return json.loads((folder / f"reported-{role}-{index}.json").read_text(encoding="utf-8"))


@pytest.mark.multiprocess
def test_two_processes_sweep_what_one_does_to_the_last_bit(ran: Path) -> None:
    files = {
        role: {file.relative_to(ran / role): file for file in sorted((ran / role).rglob("*")) if file.is_file()}
        for role in ("alone", "together")
    }
    assert files["alone"].keys() == files["together"].keys()
    compared = 0
    for name, file in files["alone"].items():
        other = files["together"][name]
        if name.suffix == ".npz":
            with np.load(file) as one, np.load(other) as two:
                assert sorted(one.files) == sorted(two.files)
                assert all(one[entry].tobytes() == two[entry].tobytes() for entry in one.files)
            compared += 1
        elif name.suffix in (".json", ".jsonl") and name.name != "classifier.json":
            assert file.read_bytes() == other.read_bytes(), name
    assert compared == (5 + 2) * 3
    ensembles = [fingerprint(sp.load_classifier(ran / role / "sweep" / "ensemble")) for role in files]
    assert ensembles[0] == ensembles[1]


@pytest.mark.multiprocess
def test_both_processes_are_told_the_measurements_of_all_images(ran: Path) -> None:
    alone, first, second = told_by(ran, "alone"), told_by(ran, "together"), told_by(ran, "together", 1)
    for entry in ("paths", "records"):
        assert alone[entry] == first[entry] == second[entry]
    assert (first["main"], second["main"]) == ([0, [0, 1]], [0, []])
    assert first["each"] == second["each"] == [[0, 0], [1, 1], [2, 0]]
    assert alone["each"] == [[0, 0], [1, 0], [2, 0]]


@pytest.mark.multiprocess
def test_a_process_that_fails_ends_the_others_and_says_why(ran: Path) -> None:
    first, second = told_by(ran, "together"), told_by(ran, "together", 1)
    assert first["strangers"] == second["strangers"]
    assert "InputError: the processes see different images" in first["strangers"]
    assert second["broken"] == "InputError: the fourth image is broken"
    assert first["broken"].startswith("TrainingError: another process has ended")


if __name__ == "__main__":
    play(sys.argv[1], Path(sys.argv[2]))
