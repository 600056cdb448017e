"""Zero-shot models with an image and a text tower, through open_clip."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, nearest
from shiftproof.models.tiny import TINY_ARCHITECTURE, TINY_CONFIG, TINY_WEIGHTS

OPEN_CLIP_SCHEMES = ("open_clip:", "hf-hub:", "local-dir:")
Tokenizer = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class Clip:
    """An image tower and a text tower with one embedding space.

    ``model`` offers ``encode_image`` and ``encode_text`` (B, D), ``visual`` and ``logit_scale`` (its natural
    logarithm); ``architecture`` is what rebuilds it: open_clip's name and, where it is not built in, its config.
    """

    name: str
    model: nn.Module
    tokenizer: Tokenizer
    preprocessing: Preprocessing
    architecture: str
    context_length: int

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """(T, D) text embeddings, not yet normalised."""
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenizer(list(texts)).to(device))  # type: ignore[operator,no-any-return]


def load_clip(name: str, seed: int = 0) -> Clip:
    """A zero-shot model by its name, in evaluation mode on the CPU.

    ``tiny`` (shipped), ``open_clip:ARCHITECTURE/TAG`` (without a tag: random weights, drawn from ``seed``),
    ``hf-hub:ORG/NAME`` and ``local-dir:PATH`` (open_clip's own schemes). Raises an InputError for an unknown name.

    >>> load_clip("tiny").preprocessing.size
    64
    """
    import open_clip

    open_clip.add_model_config(TINY_CONFIG)
    if name == "tiny":
        return _build(name, TINY_ARCHITECTURE, str(TINY_WEIGHTS), seed)
    if not name.startswith(OPEN_CLIP_SCHEMES):
        known = ["tiny", *OPEN_CLIP_SCHEMES]
        raise InputError(
            f"unknown model {name!r}. {nearest(name, known)} "
            "Examples: tiny, open_clip:ViT-B-32/openai, hf-hub:ORG/NAME, local-dir:PATH."
        )
    if not name.startswith("open_clip:"):
        return _build(name, name, None, seed)
    architecture, _, tag = name.removeprefix("open_clip:").partition("/")
    known = open_clip.list_models()
    if architecture not in known:
        raise InputError(f"unknown open_clip architecture {architecture!r}. {nearest(architecture, known)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags and not Path(tag).is_file():
        raise InputError(f"{architecture} has no pretrained tag {tag!r}. {nearest(tag, tags)}")
    return _build(name, architecture, tag or None, seed)


def _build(name: str, architecture: str, pretrained: str | None, seed: int) -> Clip:
    import open_clip

    logging.getLogger().setLevel(max(logging.getLogger().level, logging.ERROR))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)  # open_clip draws random weights from the global state
        try:
            model = open_clip.create_model(architecture, pretrained=pretrained)
            tokenizer = open_clip.get_tokenizer(architecture)
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(f"the model {name!r} cannot be loaded ({error}). Check the name and the network.") from error
    cfg = open_clip.get_model_preprocess_cfg(model)
    size = cfg["size"] if isinstance(cfg["size"], int) else cfg["size"][0]
    preprocessing = Preprocessing(
        size=size,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
        fill=cfg["fill_color"],
    )
    return Clip(name, model.eval(), tokenizer, preprocessing, architecture, model.context_length)
