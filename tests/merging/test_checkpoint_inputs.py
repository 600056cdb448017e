"""Checkpoint files that a merge reads: wrappers of trainers, shards, and the files beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from support.weights import all_equal_bits, save_checkpoint, save_pair, save_shards
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.weights.checkpoints import open_checkpoint

WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda theta: theta,
    "state_dict": lambda theta: {"state_dict": theta, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda theta: {"model": theta, "args": {"seed": 1}},
    "model_state_dict": lambda theta: {"model_state_dict": theta, "step": 4},
    "both levels": lambda theta: {"state_dict": {"model": theta, "step": 2}, "epoch": 1},
    "module.": lambda theta: {f"module.{name}": tensor for name, tensor in theta.items()},
    "_orig_mod.": lambda theta: {f"_orig_mod.{name}": tensor for name, tensor in theta.items()},
    "both prefixes": lambda theta: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in theta.items()}},
    "ema_model.": lambda theta: {f"ema_model.{name}": tensor for name, tensor in theta.items()},
    "parameters": lambda theta: {
        name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in theta.items()
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_of_trainers_are_taken_off(tmp_path: Path, wrapper: str, legacy: bool) -> None:
    a, b = save_pair(tmp_path)
    theta = load_file(b)
    torch.save(WRAPPED[wrapper](theta), tmp_path / "b.ckpt", _use_new_zipfile_serialization=not legacy)
    assert all_equal_bits(open_checkpoint(tmp_path / "b.ckpt").tensors, theta)
    merge_files(a, tmp_path / "b.ckpt", alpha=0.3, out=tmp_path / "merged.safetensors")
    want = sp.interpolate_weights(load_file(a), theta, 0.3)
    assert all_equal_bits(load_file(tmp_path / "merged.safetensors"), want)


def test_a_prefix_of_some_names_only_is_part_of_them(tmp_path: Path) -> None:
    theta = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(open_checkpoint(save_checkpoint(theta, tmp_path / "a.pt")).tensors) == set(theta)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("module.a", "module.b", "c")], ids=str)
def test_sharded_pickles_become_sharded_safetensors(tmp_path: Path, names: tuple[str, ...]) -> None:
    thetas = [{name: torch.randn(4) for name in names} for _ in range(2)]
    of = dict(zip(names, (0, 0, 1), strict=True))
    folders = [save_shards(theta, tmp_path / str(i), of, "pytorch_model.bin") for i, theta in enumerate(thetas)]
    merge_files(*folders, alpha=0.3, out=tmp_path / "merged")
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "merge.json",
        "README.md",
    }
    result = open_checkpoint(tmp_path / "merged")
    assert all_equal_bits(result.tensors, sp.interpolate_weights(*thetas, 0.3))
    assert list(result.shards.values()) == [tuple(sorted(names[:2])), names[2:]]


def test_a_wrapper_is_taken_off_all_shards(tmp_path: Path) -> None:
    theta = {f"module.{name}": torch.randn(3) for name in "abc"}
    folder = save_shards(theta, tmp_path / "a", dict(zip(theta, (0, 1, 1), strict=True)), "pytorch_model.bin")
    assert set(open_checkpoint(folder).tensors) == {"a", "b", "c"}


def test_shards_are_cut_anew(tmp_path: Path) -> None:
    """Nothing but the safetensors library and the index is needed to read them back."""
    thetas = [{f"layer.{i}": torch.randn(10) for i in range(7)} for _ in range(2)]
    thetas[0]["large"], thetas[1]["large"] = torch.randn(50), torch.randn(50)
    folders = [
        save_shards(theta, tmp_path / str(i), dict.fromkeys(theta, 0), kept="yes") for i, theta in enumerate(thetas)
    ]
    (record,) = merge_files(*folders, out=tmp_path / "merged", settings=MergeSettings(shard_size=100))
    want = sp.interpolate_weights(*thetas, 0.5)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    total = sum(tensor.numel() * 4 for tensor in want.values())
    assert index["metadata"] == {"total_size": total, "kept": "yes"}
    assert record.bytes == total
    assert index["weight_map"].keys() == want.keys()
    shards = set(index["weight_map"].values())
    assert shards == {f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)} == set(record.files)
    loaded: dict[str, Tensor] = {}
    for shard in shards:
        held = load_file(tmp_path / "merged" / shard)
        assert {name for name, of in index["weight_map"].items() if of == shard} == set(held)
        assert record.files[shard] == sum(tensor.numel() * 4 for tensor in held.values())
        assert record.files[shard] <= 100 or set(held) == {"large"}
        loaded |= held
    assert all_equal_bits(loaded, want)
    # And back into one.
    merge_files(
        tmp_path / "merged", tmp_path / "merged", out=tmp_path / "one", settings=MergeSettings(shard_size=10**9)
    )
    assert all_equal_bits(load_file(tmp_path / "one" / "model.safetensors"), want)
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()


def test_metadata_is_kept(tmp_path: Path) -> None:
    theta = {"w": torch.zeros(2)}
    a = save_checkpoint(theta, tmp_path / "a.safetensors", licence="MIT", author="Zoë")
    b = save_checkpoint(theta, tmp_path / "b.safetensors", licence="other", more="x")
    merge_files(a, b, out=tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "licence": "MIT", "author": "Zoë"}


BESIDE = {
    "config.json": '{"model_type": "clip"}',
    "tokenizer.json": "{}",
    "merges.txt": "a b",
    "spiece.model": "x",
    "preprocessor_config.json": "{}",
    "LICENSE": "MIT",
}
STALE = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "optimizer.pt",
    "model.gguf",
    "rust_model.ot",
    "64.tflite",
)


@pytest.mark.parametrize("stale", STALE)
def test_configs_and_tokenizers_go_along_and_stale_weights_do_not(tmp_path: Path, stale: str) -> None:
    """A loader that prefers another format would take the unmerged model."""
    a, b = save_pair(tmp_path, ".pt")
    folder = save_checkpoint(open_checkpoint(a).tensors, tmp_path / "model" / "model.safetensors").parent
    for name, text in {**BESIDE, stale: "stale", ".cache": "hidden", "README.md": "A's card"}.items():
        (folder / name).write_text(text)
    (folder / "onnx").mkdir()
    (record,) = merge_files(folder, b, out=tmp_path / "merged")
    result = {path.name: path for path in (tmp_path / "merged").iterdir()}
    assert result.keys() == {*BESIDE, "model.safetensors", "merge.json", "README.md"}
    assert all(result[name].read_text() == text for name, text in BESIDE.items())
    assert record.copied_files == tuple(sorted(BESIDE))
    assert result["README.md"].read_text().startswith("---\ntags: [merge, linear]\n---\n# Merged weights")
