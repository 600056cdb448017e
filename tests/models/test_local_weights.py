"""Weights in local files under a model name of open_clip: read by the rules of every other checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_cases import POINTER, archive, prefixed
from support.weights import all_equal_bits, save_checkpoint, save_shards

import shiftproof as sp
from shiftproof.models.tiny import TINY_ARCHITECTURE, TINY_CONFIG, TINY_WEIGHTS

NAME = f"open_clip:{TINY_ARCHITECTURE}"
TINY = {
    name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in load_file(TINY_WEIGHTS).items()
}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_prefixes_are_removed_in_every_format(tmp_path: Path, name: str, prefix: str) -> None:
    path = save_checkpoint(prefixed(prefix, TINY), tmp_path / name)
    assert all_equal_bits(sp.load_clip(f"{NAME}/{path}").model.state_dict(), TINY)


@pytest.mark.slow
def test_an_average_can_be_chosen(tmp_path: Path) -> None:
    last = {name: torch.zeros_like(tensor) for name, tensor in TINY.items()}
    averaged = {"n_averaged": torch.tensor(7), **prefixed("module.", TINY)}
    torch.save({"model": last, "model_ema": averaged}, tmp_path / "x.pt")
    clip = sp.load_clip(f"{NAME}/{tmp_path / 'x.pt'}:model_ema")
    assert all_equal_bits(clip.model.state_dict(), TINY)
    with pytest.warns(UserWarning, match="contains an average of the weights under 'model_ema'"):
        assert all_equal_bits(sp.load_clip(f"{NAME}/{tmp_path / 'x.pt'}").model.state_dict(), last)


def directory(folder: Path) -> Path:
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(
        f'{{"model_cfg": {TINY_CONFIG.read_text()}, "preprocess_cfg": {{}}}}', encoding="utf-8"
    )
    return folder


def test_shards_with_an_index_are_read(tmp_path: Path) -> None:
    folder = directory(tmp_path / "clip")
    save_shards(TINY, folder, {name: number % 2 for number, name in enumerate(TINY)})
    assert all_equal_bits(sp.load_clip(f"local-dir:{folder}").model.state_dict(), TINY)


@pytest.mark.parametrize("place", ["file", "directory"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("pointer", "is a Git LFS pointer: .*Run `git lfs pull`"),
        ("TorchScript", "is a TorchScript archive.*open_clip:ViT-B-32/openai"),
        ("int8", "contains quantised weights: .*Dequantise"),
        ("shard", "is one shard of 2"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, place: str, damage: str, message: str) -> None:
    """open_clip alone would load the integers as weights, and of others ask for ``weights_only=False``."""
    folder = directory(tmp_path / "clip")
    path = folder / "open_clip_pytorch_model.bin"
    if damage == "pointer":
        path.write_text(POINTER, encoding="utf-8")
    elif damage == "TorchScript":
        archive("data.pkl", "constants.pkl", "code/x.py")(tmp_path).rename(path)
    elif damage == "int8":
        save_checkpoint({n: t.char() if n.endswith("weight") else t for n, t in TINY.items()}, path)
    else:
        path = save_checkpoint(TINY, folder / "model-00001-of-00002.safetensors")
    with pytest.raises(sp.InputError, match=message) as caught:
        sp.load_clip(f"local-dir:{folder}" if place == "directory" else f"{NAME}/{path}")
    assert str(path.parent) in str(caught.value)
    assert "weights_only" not in str(caught.value)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="contains no weights file"):
        sp.load_clip(f"local-dir:{directory(tmp_path / 'clip')}")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    path = save_checkpoint({"w": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(sp.InputError, match="cannot be loaded"):
        sp.load_clip(f"{NAME}/{path}")
