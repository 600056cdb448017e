"""A SigLIP model in open_clip's layout through the stages of the method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from open_clip.model import CustomTextCLIP
from support.commands import Call, data_flags
from support.transformers_models import siglip_tokenizer

import shiftproof as sp
from shiftproof.weights.checkpoints import write_state_dict

pytestmark = pytest.mark.slow

WIDTH = 64
HALF = [0.5, 0.5, 0.5]


def write_siglip(folder: Path) -> str:
    """Writes a miniature of ViT-B-16-SigLIP: the same kind of towers, pooling, tokenizer, scale and bias."""
    tokenizer = siglip_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    vision = {"image_size": 160, "timm_model_name": "test_vit", "timm_model_pretrained": False}
    config = {
        "embed_dim": WIDTH,
        "init_logit_bias": -10,
        "vision_cfg": {**vision, "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {
            "context_length": 64,
            "vocab_size": len(tokenizer),
            "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
            "tokenizer_kwargs": {"clean": "canonicalize"},
            "width": WIDTH,
            "heads": 2,
            "layers": 1,
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        },
    }
    preprocessing = {"size": 160, "mean": HALF, "std": HALF, "interpolation": "bicubic", "resize_mode": "squash"}
    written = {"model_cfg": {**config, "custom_text": True}, "preprocess_cfg": preprocessing}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CustomTextCLIP(**config)
    write_state_dict(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("recipe", ["end-to-end", "flyp"])
def test_start_fine_tuning_sweep_and_evaluation(folders: Path, tmp_path: Path, call: Call, recipe: str) -> None:
    name, data = write_siglip(tmp_path / "model"), data_flags(folders)
    quick = {"epochs": 1, "batch_size": 9, "warmup_steps": 0, "lr": 1e-3, "recipe": recipe}
    settings = [flag for key, value in quick.items() for flag in ("--set", f"finetune.{key}={value}")]
    for arguments in (
        ("zeroshot", name, *data, "--out", "zero"),
        ("finetune", name, *data, *settings, "--out", "tuned"),
        ("sweep", "zero", "tuned", *data, "--alphas", "0,0.5,1", "--out", "swept"),
        ("evaluate", "swept/ensemble", "--test", f"folder:{folders}/test", "--out", "scores"),
    ):
        ended = call(*arguments)
        assert ended.code == 0, ended.err
    zero, tuned, ensemble = (sp.load_classifier(place) for place in ("zero", "tuned", "swept/ensemble"))
    assert zero.preprocessing.resize_mode == "squash"
    assert zero.network.head.bias.tolist() == pytest.approx([-10] * 3)
    assert ensemble.head == ("rebuilt" if recipe == "flyp" else "interpolated")
    torch.testing.assert_close(
        ensemble.network.head.bias, (zero.network.head.bias + tuned.network.head.bias) / 2, rtol=1e-5, atol=1e-5
    )
    (point,) = (p for p in json.loads(Path("swept/path.json").read_text()) if p["alpha"] == 0.5)
    (record,) = map(json.loads, Path("scores/results.jsonl").read_text().splitlines())
    assert record["accuracy"] == point["accuracy"]["reference"]
