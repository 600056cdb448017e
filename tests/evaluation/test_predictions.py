"""Predictions in files: what comes back, in blocks of any size, and what is refused."""

from __future__ import annotations

import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shiftproof as sp
from shiftproof.evaluation.predictions import writing_predictions


def made(n: int, classes: int, seed: int = 0) -> sp.evaluation.Predictions:
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)).astype(np.float32)
    labels = generator.integers(classes, size=n)
    return sp.evaluation.Predictions(
        tuple(f"{i}.png" for i in range(n)), labels, logits, tuple("ab"[i % 2] for i in range(n))
    )


@given(st.integers(1, 40), st.integers(2, 9), st.integers(1, 50), st.integers(1, 50))
def test_batches_of_any_size_come_back_in_blocks_of_any_size(n: int, classes: int, batch: int, rows: int) -> None:
    known = made(n, classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sketch.npz"
        with writing_predictions(path, known.ids, known.labels, classes, known.groups) as add:
            for start in range(0, n, batch):
                add(known.logits[start : start + batch])
        saved = sp.evaluation.open_predictions(path)
        blocks = list(saved.blocks(rows))
        assert [len(block) for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
        assert np.concatenate(blocks).tobytes() == known.logits.tobytes()
        assert (saved.ids, saved.groups, saved.shape) == (known.ids, known.groups, (n, classes))
        with np.load(path, allow_pickle=False) as file:  # as anyone else reads it
            assert file["logits"].tobytes() == known.logits.tobytes()
            assert file["labels"].tolist() == known.labels.tolist()


class Interrupting:
    """A batch during which the user gives up."""

    def __getattr__(self, name: str) -> object:
        raise KeyboardInterrupt


def test_what_is_not_whole_is_not_written(tmp_path: Path) -> None:
    known, path = made(6, 3), tmp_path / "sketch.npz"

    def write(*batches: np.ndarray) -> None:
        with writing_predictions(path, known.ids, known.labels, 3) as add:
            for batch in batches:
                add(batch)

    with pytest.raises(sp.InputError, match="4 of 6 samples"):
        write(known.logits[:4])
    with pytest.raises(sp.InputError, match=r"\(4, 3\) do not follow the 4 rows"):
        write(known.logits[:4], known.logits[:4])
    with pytest.raises(sp.InputError, match=r"\(4, 2\) do not follow"):
        write(known.logits[:4, :2])
    with pytest.raises(KeyboardInterrupt):
        write(known.logits, Interrupting())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
    sp.evaluation.save_predictions(known, path)
    before = path.read_bytes()
    with pytest.raises(sp.InputError):
        write(known.logits[:1])
    assert path.read_bytes() == before


def test_damage_is_noticed_where_it_is_read(tmp_path: Path) -> None:
    path = sp.evaluation.save_predictions(made(500, 20), tmp_path / "sketch.npz")
    whole = path.read_bytes()
    place = whole.index(b"logits.npy") + 5000
    path.write_bytes(whole[:place] + bytes(b ^ 0xFF for b in whole[place : place + 8]) + whole[place + 8 :])
    saved = sp.evaluation.open_predictions(path)  # which does not look at the logits
    with pytest.raises(sp.InputError, match=r"sketch\.npz cannot be read"):
        saved.require_whole()
    with pytest.raises(sp.InputError, match="cannot be read"):
        sp.evaluation.load_predictions(path)
    np.savez(path, ids=np.array(["a"]), labels=np.array([0]), logits=np.ones((1, 2)))  # float64
    with pytest.raises(sp.InputError, match="not rows of float32"):
        sp.evaluation.open_predictions(path)
    np.savez(path, ids=np.array(["a", "b"]), labels=np.array([0]), logits=np.ones((1, 2), np.float32))
    with pytest.raises(sp.InputError, match="2 ids, 1 labels and 1 rows"):
        sp.evaluation.open_predictions(path)


@pytest.mark.slow
def test_a_large_file_is_measured_without_being_held(tmp_path: Path) -> None:
    one, other = (
        sp.evaluation.open_predictions(sp.evaluation.save_predictions(made(8000, 400, seed), tmp_path / f"{seed}.npz"))
        for seed in (0, 1)
    )
    size = 4 * one.shape[0] * one.shape[1]
    tracemalloc.start()
    try:
        measured = sp.diagnosis.measure_agreement(one, other, one.labels)
        assert tracemalloc.get_traced_memory()[1] < 10 * size
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]  # the first measurement imported modules
        for block in one.blocks(100):
            assert block.shape == (100, 400)
        assert tracemalloc.get_traced_memory()[1] - before < size / 4
    finally:
        tracemalloc.stop()
    # In blocks as at once.
    assert measured == sp.diagnosis.measure_agreement(
        *(sp.evaluation.load_predictions(k.path).logits for k in (one, other)), one.labels
    )


def test_predictions_are_aligned_by_id() -> None:
    known = made(9, 4)
    order = np.random.default_rng(1).permutation(9)
    groups = known.groups or ()
    other = sp.evaluation.Predictions(
        tuple(known.ids[i] for i in order), known.labels[order], known.logits[order], tuple(groups[i] for i in order)
    )
    back = sp.evaluation.align_predictions(known, other)
    assert (back.ids, back.groups) == (known.ids, known.groups)
    assert back.logits.tobytes() == known.logits.tobytes()
    with pytest.raises(sp.InputError, match=r"in one of the predictions only: '8\.png'"):
        sp.evaluation.align_predictions(known, made(8, 4))
    relabelled = sp.evaluation.Predictions(known.ids, (known.labels + 1) % 4, known.logits)
    with pytest.raises(sp.InputError, match="labelled differently"):
        sp.evaluation.align_predictions(known, relabelled)
