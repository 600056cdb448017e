"""Inputs that cannot be read: an error names the file, and nothing is written or executed."""

from __future__ import annotations

import contextlib
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from support.folders import assert_unchanged
from support.weights import all_equal_bits, save_checkpoint, save_pair, save_shards
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.weights.checkpoints import open_checkpoint


class Trap:
    """Unpickling it writes a file: what weights_only must prevent."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "run")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["a.pt", "model/pytorch_model.bin", "shards"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, place: str, legacy: bool, nested: bool) -> None:
    marker = tmp_path / "marker"
    _, good = save_pair(tmp_path)
    theta: dict[str, Any] = {**load_file(good), "trap": Trap(marker)}
    stored = {"state_dict": theta} if nested else theta
    if place == "shards":
        bad = save_shards(load_file(good), tmp_path / "shards", dict.fromkeys(load_file(good), 0), "pytorch_model.bin")
        target = bad / "pytorch_model-00001-of-00001.bin"
    else:
        target = tmp_path / place
        target.parent.mkdir(exist_ok=True)
        bad = target if place == "a.pt" else target.parent
    torch.save(stored, target, _use_new_zipfile_serialization=not legacy)
    with assert_unchanged(tmp_path):
        for inputs in ((bad, good), (good, bad)):
            with pytest.raises(sp.InputError, match="could execute code, so it is not loaded.*safetensors") as caught:
                merge_files(*inputs, out=tmp_path / "merged.safetensors")
            assert str(target) in str(caught.value)
    assert not marker.exists()
    # The trap works where it is let.
    torch.load(target, weights_only=False)
    assert marker.exists()


def craft(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def truncate(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def write_index(folder: Path, text: str) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors.index.json").write_text(text)
    return folder / "model"


def edited(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A sharded directory whose index, or shards, were changed."""
    theta = {name: torch.zeros(2) for name in ("x", "y", "z")}
    model = save_shards(theta, folder / "model", {"x": 0, "y": 1, "z": 1})
    file = model / "model.safetensors.index.json"
    stored = json.loads(file.read_text())
    change(model, stored)
    file.write_text(json.dumps(stored))
    return model


def pickled(path: Path, value: Any) -> Path:
    """A torch file of anything."""
    path.parent.mkdir(exist_ok=True)
    torch.save(value, path)
    return path


def write_bytes(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def directory_of(folder: Path, *names: str) -> Path:
    (folder / "model").mkdir()
    for name in names:
        save_checkpoint({"w": torch.zeros(1)}, folder / "model" / name)
    return folder / "model"


NOT_WHOLE = "is not a complete safetensors file .*Restore or rewrite it"
NOT_TORCH = "is not a complete torch file .*Restore or rewrite it"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "none.safetensors", "none.safetensors does not exist. Check the path"),
    "no checkpoint": (lambda f: write_bytes(f / "notes.txt", b"hello"), "is not a checkpoint. Name a directory"),
    "empty directory": (lambda f: directory_of(f), "contains no weights file. Name the file itself"),
    "several files": (
        lambda f: directory_of(f, "one.safetensors", "two.safetensors"),
        "several weights files: 'one.safetensors', 'two.safetensors'. Name the file itself",
    ),
    "several pickles": (lambda f: directory_of(f, "one.pt", "two.bin"), "several weights files: 'one.pt', 'two.bin'"),
    "empty safetensors": (lambda f: write_bytes(f / "x.safetensors", b""), NOT_WHOLE),
    "empty torch file": (lambda f: write_bytes(f / "x.pt", b""), NOT_TORCH),
    "text as safetensors": (lambda f: write_bytes(f / "x.safetensors", b"hello"), NOT_WHOLE),
    "text as torch": (lambda f: write_bytes(f / "x.pt", b"hello"), "is not a torch file: its first bytes are b'hello'"),
    "cut safetensors": (lambda f: truncate(save_pair(f / "in")[0], 0.8), NOT_WHOLE),
    "cut header": (lambda f: truncate(save_pair(f / "in")[0], 0.2), NOT_WHOLE),
    "cut torch file": (lambda f: truncate(save_pair(f / "in", ".pt")[0], 0.8), NOT_TORCH),
    "header longer than the file": (lambda f: craft(f / "x.safetensors", {}, length=1 << 40), NOT_WHOLE),
    "header of no JSON": (lambda f: craft(f / "x.safetensors", b"{'w': 1}"), NOT_WHOLE),
    "offsets beyond the file": (
        lambda f: craft(f / "x.safetensors", {"w": entry("F32", [1000], 0, 4000)}, bytes(8)), NOT_WHOLE,
    ),
    "offsets that overlap": (
        lambda f: craft(f / "x.safetensors", {"v": entry("F32", [2], 0, 8), "w": entry("F32", [2], 4, 12)}, bytes(12)),
        NOT_WHOLE,
    ),
    "a hole between offsets": (
        lambda f: craft(f / "x.safetensors", {"v": entry("F32", [2], 0, 8), "w": entry("F32", [1], 12, 16)}, bytes(16)),
        NOT_WHOLE,
    ),
    "offsets that run backwards": (
        lambda f: craft(f / "x.safetensors", {"w": entry("F32", [2], 8, 0)}, bytes(8)), NOT_WHOLE,
    ),
    "a size that the dtype denies": (
        lambda f: craft(f / "x.safetensors", {"w": entry("F64", [2], 0, 8)}, bytes(8)), NOT_WHOLE,
    ),
    "a shape that overflows": (
        lambda f: craft(f / "x.safetensors", {"w": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)), NOT_WHOLE,
    ),
    "an unknown dtype": (lambda f: craft(f / "x.safetensors", {"w": entry("F31", [2], 0, 8)}, bytes(8)), NOT_WHOLE),
    "bytes behind the last entry": (
        lambda f: craft(f / "x.safetensors", {"w": entry("F32", [2], 0, 8)}, bytes(20)), NOT_WHOLE,
    ),
    "a whole module": (lambda f: pickled(f / "x.pt", nn.Linear(2, 2)), "could execute code.*state_dict"),
    "a tensor alone": (lambda f: pickled(f / "x.pt", torch.zeros(2)), "contains a Tensor; it must be a state dict"),
    "a list": (lambda f: pickled(f / "x.pt", [torch.zeros(2)]), "contains a list; it must be a state dict"),
    "other things": (lambda f: pickled(f / "x.pt", {"epoch": 3, "lr": 0.1}), "its keys are 'epoch', 'lr'"),
    "nothing in it": (lambda f: pickled(f / "x.pt", {"state_dict": {}}), "contains no state dict"),
    "numbers among tensors": (
        lambda f: pickled(f / "x.pt", {"w": torch.zeros(2), "step": 3}), r"entries that are no tensors: 'step' \(int\)",
    ),
    "names that are numbers": (lambda f: pickled(f / "x.pt", {0: torch.zeros(2)}), "no state dict: its keys are '0'"),
    "a sparse tensor": (lambda f: pickled(f / "x.pt", {"w": torch.eye(3).to_sparse()}), "x.pt"),
    "a tensor without data": (lambda f: pickled(f / "x.pt", {"w": torch.zeros(3, device="meta")}), "x.pt"),
    "a plain pickle": (lambda f: write_bytes(f / "x.pt", pickle.dumps({"w": [1, 2]})), "x.pt"),
    "index of no JSON": (lambda f: write_index(f, "{"), "is not valid JSON"),
    "index without a map": (lambda f: write_index(f, '{"metadata": {}}'), "has no weight_map, which names"),
    "index that is a list": (lambda f: write_index(f, "[]"), "has no weight_map, which names"),
    "index with an empty map": (lambda f: write_index(f, '{"weight_map": {}}'), "has no weight_map"),
    "shard outside": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="../model.safetensors")),
        "puts x into '../model.safetensors'; a shard must be a file next to the index",
    ),
    "shard below": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="sub/model.safetensors")),
        "a shard must be a file next to the index",
    ),
    "absolute shard": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="/etc/passwd")),
        "a shard must be a file next to the index",
    ),
    "shard of no name": (lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x=3)), "puts x into 3; "),
    "missing shard": (
        lambda f: edited(f, lambda model, _: (model / "model-00002-of-00002.safetensors").unlink()),
        "lacks the shards 'model-00002-of-00002.safetensors' of its index. Fetch them",
    ),
    "cut shard": (
        lambda f: edited(f, lambda model, _: truncate(model / "model-00002-of-00002.safetensors", 0.9) and None),
        NOT_WHOLE,
    ),
    "a name that no shard has": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(v="model-00001-of-00002.safetensors")),
        "do not agree on 'v'. Restore both",
    ),
    "a name in another shard": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(y="model-00001-of-00002.safetensors")),
        "do not agree on 'y'",
    ),
    "a shard's name that the index lacks": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].pop("z") and None), "do not agree on 'z'",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch wonders about pickle protocols and sparse tensors
@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    make, message = BROKEN[kind]
    bad, (good, _) = make(tmp_path), save_pair(tmp_path / "good")
    with assert_unchanged(tmp_path):
        for inputs in ((bad, good), (good, bad), (bad, bad)):
            with pytest.raises(sp.InputError, match=message) as caught:
                merge_files(*inputs, out=tmp_path / "merged")
            assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("metadata", ["text", [1], 3, {"total_size": "many"}], ids=str)
def test_what_an_index_tells_beside_its_map_does_no_harm(tmp_path: Path, metadata: Any) -> None:
    model = edited(tmp_path, lambda _, stored: stored.update(metadata=metadata))
    try:
        merge_files(model, model, alpha=0.0, out=tmp_path / "merged")
    except sp.InputError:
        assert not (tmp_path / "merged").exists()
        return
    written_index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert written_index["metadata"]["total_size"] == 24


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["zip.pt", "legacy.pt", "x.safetensors"])
@settings(max_examples=200)
@given(data=st.data())
@example(data=None)
def test_damage_anywhere_is_an_input_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject | None
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    theta = {"a.w": torch.arange(12.0).view(3, 4), "b": torch.arange(5), "c": torch.ones(2).half()}
    path = folder / kind
    if kind == "legacy.pt":
        torch.save(theta, path, _use_new_zipfile_serialization=False)
    else:
        save_checkpoint(theta, path)
    whole = path.read_bytes()
    if data is None:
        assert all_equal_bits(open_checkpoint(path).tensors, theta)
        return
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for place in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=3)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders about the pickle protocol
        with contextlib.suppress(sp.InputError):
            result = open_checkpoint(path).tensors
            assert all(isinstance(tensor, Tensor) for tensor in result.values())
