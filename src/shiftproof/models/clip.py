"""Zero-shot models with an image and a text tower, through open_clip and transformers."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, nearest, refuse_path, require_name
from shiftproof.models.local_weights import fit_weights, load_local_weights, local_path
from shiftproof.models.names import (
    SCHEMES,
    is_encoder,
    is_untagged,
    random_weights_refused,
    split_weights,
    unknown_model,
    with_weights,
)
from shiftproof.models.tiny import TINY_ARCHITECTURE, TINY_CONFIG, TINY_WEIGHTS
from shiftproof.models.transformers import SCHEME as TRANSFORMERS
from shiftproof.models.transformers import load_transformers
from shiftproof.storage import expanded, read_json

_LOCAL = "local-dir:"
_IMAGE_TOWER = "visual."
Tokenizer = Callable[[Sequence[str]], Tensor]
# A classifier has no text tower. open_clip builds one anyway, so it gets the smallest possible one.
_NO_TEXT = {"context_length": 4, "vocab_size": 4, "width": 4, "heads": 1, "layers": 1}


@dataclass(frozen=True)
class Clip:
    """An image tower and a text tower with one embedding space; treat it as immutable.

    ``model`` offers ``encode_image`` and ``encode_text``, which return (B, D) embeddings, ``visual``, the image tower,
    and ``logit_scale``, the natural logarithm of the scale. SigLIP has a ``logit_bias`` too. ``architecture`` describes
    how to rebuild the image tower, its activation included; ``context_length`` counts tokens.
    """

    name: str
    model: nn.Module = field(repr=False, compare=False)
    tokenizer: Tokenizer = field(repr=False, compare=False)
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]
    context_length: int

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """The (T, D) embeddings of T texts, not normalised."""
        device = next(self.model.parameters()).device
        return self.model.encode_text(self.tokenizer(list(texts)).to(device))  # type: ignore[operator,no-any-return]


def require_clip(clip: object, what: str = "clip") -> None:
    """Raises an InputError for a path or a name in place of a model."""
    refuse_path(what, clip, "a model, e.g. load_clip('open_clip:ViT-B-32/openai')")


def load_clip(name: str, *, seed: int = 0, random_weights: bool = True) -> Clip:
    """Loads a zero-shot model by its name, in evaluation mode on the CPU.

    ``tiny`` (shipped), ``open_clip:ARCHITECTURE/TAG`` (without a tag: random weights, drawn from ``seed``),
    ``hf-hub:ORG/NAME`` and ``local-dir:PATH`` (schemes of open_clip), ``hf:ORG/NAME`` and ``hf:PATH`` (CLIP, SigLIP and
    SigLIP 2 of transformers). Raises an InputError for an unknown name, for a model without a text tower or with
    rectangular images, where the weights cannot be loaded and, unless ``random_weights`` is set, for a name without a
    tag. ``NAME with weights FILE`` loads the weights in a local file into a model: those of open_clip's training,
    wise-ft, model-soups or FLYP, for example. Where the file has no text tower, that of NAME stays.

    >>> load_clip("tiny").preprocessing.size
    64
    """
    require_name("name", name, "open_clip:ViT-B-32/openai")
    name, file = split_weights(name)
    if file is not None:
        return _with_trained_weights(load_clip(name, seed=seed), file)
    if name.startswith(TRANSFORMERS):
        return Clip(name, **vars(load_transformers(name)))
    import open_clip

    open_clip.add_model_config(TINY_CONFIG)
    if name.startswith(_LOCAL):
        name = f"{_LOCAL}{expanded(name.removeprefix(_LOCAL))}"
    if name == "tiny":
        return _build(name, TINY_ARCHITECTURE, str(TINY_WEIGHTS), seed)
    if is_encoder(name):
        raise InputError(
            f"{name!r} has no text tower, so it has no zero-shot head. "
            "Use its pretrained head: own_head_classifier(load_encoder(NAME))."
        )
    if not name.startswith(SCHEMES):
        raise unknown_model(name)
    if not name.startswith("open_clip:"):
        return _build(name, name, None, seed)
    architecture, _, tag = name.removeprefix("open_clip:").partition("/")
    if architecture not in (known := open_clip.list_models()):
        raise InputError(f"unknown open_clip architecture {architecture!r}. {nearest(architecture, known)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags and local_path(architecture, tag) is None:
        raise InputError(f"{architecture} has no pretrained tag {tag!r}. {nearest(tag, tags)}")
    if not tag and not random_weights:
        best_first = sorted(tags, key=lambda known: known != "openai")
        raise random_weights_refused(name, [f"open_clip:{architecture}/{known}" for known in best_first])
    return _build(name, architecture, tag or None, seed)


def _with_trained_weights(clip: Clip, file: str) -> Clip:
    """The model with the weights in a local file, which must have the whole image tower."""
    fitted = fit_weights(file, clip.model.state_dict())
    tower = [name for name in fitted.missing if name.startswith(_IMAGE_TOWER)]
    if tower or fitted.reshaped or (fitted.missing and is_untagged(clip.name)):
        raise fitted.refusal(clip.name)
    if fitted.missing:
        warnings.warn(
            f"{file} lacks {len(fitted.missing):,} entries of the text tower, such as {fitted.missing[0]!r}; they stay "
            f"those of {clip.name!r}.",
            stacklevel=3,
        )
    fitted.warn_of_unused(clip.name)
    _warn_of_activation(clip, file)
    clip.model.load_state_dict(dict(fitted.entries), strict=False)
    return replace(clip, name=with_weights(clip.name, file))


def _warn_of_activation(clip: Clip, file: str) -> None:
    """Warns where only the tag of a name says which activation the weights need, and there is none."""
    import open_clip

    if is_untagged(clip.name) and f"{clip.architecture['name']}-quickgelu" in open_clip.list_models():
        warnings.warn(
            f"{clip.name!r} has the activation GELU. If the training of {file} began with OpenAI's weights, which need "
            f"QuickGELU, name the model {clip.name}/openai.",
            stacklevel=4,
        )


def build_encoder(architecture: Mapping[str, Any]) -> nn.Module:
    """Builds the image tower that an ``architecture`` describes, without loading its weights."""
    import open_clip

    with torch.random.fork_rng(devices=[]), quiet_logging():
        model = open_clip.CLIP(
            embed_dim=architecture["embed_dim"],
            vision_cfg=dict(architecture["vision_cfg"]),
            text_cfg=dict(_NO_TEXT),
            quick_gelu=architecture["quick_gelu"],
        )
    return model.visual  # type: ignore[no-any-return]


def _build(name: str, architecture: str, pretrained: str | None, seed: int) -> Clip:
    import open_clip

    tag_config = open_clip.get_pretrained_cfg(architecture, pretrained) if pretrained else {}
    path = None if tag_config else local_path(architecture, pretrained)
    # QuickGELU belongs to the weights; open_clip only warns where the architecture's name does not imply it.
    quick_gelu = bool((tag_config or {}).get("quick_gelu"))
    with torch.random.fork_rng(devices=[]), quiet_logging():
        torch.manual_seed(seed)  # open_clip draws random weights from the global state
        try:
            if path:
                # The weights replace all others, so that those of a pretrained text tower are not downloaded.
                model = open_clip.create_model(
                    architecture, load_weights=False, pretrained_text=False, force_quick_gelu=quick_gelu
                )
                load_local_weights(model, path)
            else:
                model = open_clip.create_model(
                    architecture,
                    pretrained=pretrained,
                    force_quick_gelu=quick_gelu,
                    # A directory or repository without weights would get random ones, and open_clip would only log it.
                    require_pretrained=bool(pretrained) or not name.startswith("open_clip:"),
                )
            tokenizer = open_clip.get_tokenizer(architecture)
        except InputError:
            raise
        except (RuntimeError, OSError, ValueError) as error:
            raise InputError(
                f"the model {name!r} cannot be loaded ({error}). Check the name, the path and the network."
            ) from error
    cfg = open_clip.get_model_preprocess_cfg(model)
    size = _side(name, cfg["size"])
    preprocessing = Preprocessing(
        size=size,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=cfg["resize_mode"],
        fill=cfg["fill_color"],
    )
    config = model_config(architecture)
    if "multimodal_cfg" in config:
        raise InputError(
            f"{name!r} is a captioning model (CoCa), whose image tower differs from CLIP's. Choose another model."
        )
    described = {
        "library": "open_clip",
        "name": architecture,
        "embed_dim": config["embed_dim"],
        "vision_cfg": {**config["vision_cfg"], "image_size": size, "timm_model_pretrained": False},
        "quick_gelu": quick_gelu or config.get("quick_gelu", False),
    }
    return Clip(name, model.eval(), tokenizer, preprocessing, described, model.context_length)


def _side(name: str, size: int | Sequence[int]) -> int:
    """The side in pixels of a model's square images; raises an InputError for a model of rectangular ones."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise InputError(
            f"the model {name!r} takes images of {height} x {width} pixels; they must be square. Choose another model."
        )
    return height


def model_config(architecture: str) -> dict[str, Any]:
    """open_clip's config of an architecture, built in or from ``local-dir:`` or ``hf-hub:``."""
    import open_clip

    if architecture.startswith(_LOCAL):
        return dict(read_json(Path(architecture.removeprefix(_LOCAL)) / "open_clip_config.json")["model_cfg"])
    if architecture.startswith("hf-hub:"):
        from huggingface_hub import hf_hub_download

        file = hf_hub_download(architecture.removeprefix("hf-hub:"), "open_clip_config.json")
        return dict(read_json(file)["model_cfg"])
    open_clip.add_model_config(TINY_CONFIG)
    return dict(open_clip.get_model_config(architecture))


@contextlib.contextmanager
def quiet_logging() -> Iterator[None]:
    """Silences open_clip, which logs to the root logger that weights are random, as the caller requested."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)
