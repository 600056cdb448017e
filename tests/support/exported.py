"""Small classifiers of every library that a classifier can be exported for, and pictures for them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

import shiftproof as sp
from shiftproof.models.encoders import load_encoder
from shiftproof.models.export.exporting import Export
from shiftproof.models.heads import own_head_classifier

CLASSES = sp.ClassSpace(
    ("lemon", "n02", "pear", "plum", "fig", "kiwi"), ("lemon", "red apple", "pear", "plum", "fig", "kiwi")
)
PROMPTS = ("a photo of a {}.", "a drawing of one {}.")
SMALL_CLIP = {
    "embed_dim": 24,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear", "resize_mode": "squash"}


def small_clip(folder: Path, seed: int = 0, **changes: Mapping[str, Any]) -> str:
    """The name of a small open_clip model in a new directory; its activation and preprocessing are unusual ones.

    ``changes`` are settings of ``vision_cfg`` or ``text_cfg``.
    """
    folder.mkdir()
    model_cfg = {part: {**value, **changes[part]} if part in changes else value for part, value in SMALL_CLIP.items()}
    config = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS})
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CLIP(**json.loads(config)["model_cfg"])
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


def timm_classifier(name: str, seed: int = 1) -> sp.Classifier:
    """A timm model with its own head of as many classes as it was pretrained with."""
    return own_head_classifier(load_encoder(f"timm:{name}", seed=seed))


def trained(classifier: sp.Classifier, seed: int = 0) -> sp.Classifier:
    """The classifier as after end-to-end fine-tuning: all weights moved, biases included, with a trained head."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in classifier.state_dict().items()
        if not name.endswith("running_var")
    }
    return classifier.with_weights(classifier.state_dict() | weights, head="trained", training={"seed": 3})


def photo(path: Path) -> Path:
    """A picture of 90 x 70 pixels with soft patches of colour."""
    pixels = np.random.default_rng(7).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC).save(path)
    return path


def logits_on(classifier: sp.Classifier, path: Path) -> torch.Tensor:
    """The (K,) logits that the classifier itself gives a picture."""
    with torch.inference_mode():
        return classifier.network(classifier.preprocess(Image.open(path))[None])[0]


def run_code(code: str) -> tuple[str, dict[str, object]]:
    """Executes the code of a model card; returns what it prints last, and its names."""
    printed: list[str] = []
    names: dict[str, object] = {"print": lambda *words: printed.append(" ".join(map(str, words)))}
    exec(code, names)
    return printed[-1], names


def assert_usable(classifier: sp.Classifier, export: Export, tmp_path: Path) -> None:
    """The code of the card runs and computes the classifier's logits, for a picture that is not square."""
    expected = logits_on(classifier, photo(tmp_path / "photo.jpg"))
    with contextlib.chdir(export.directory.parent):
        answer, names = run_code(export.usage.replace("photo.jpg", str(tmp_path / "photo.jpg")))
    logits = torch.as_tensor(names["logits"])
    assert logits.shape == (1, len(classifier.classes))
    assert torch.allclose(logits[0], expected, rtol=1e-3, atol=1e-3)
    assert answer == classifier.classes.names[int(expected.argmax())]
