"""CLIP models of open_clip as those of transformers: the same towers under other names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import Clip, model_config
from shiftproof.models.transformers import DualEncoder, Tokenizer

# What a plain tower of open_clip is made of; anything else is built in another way, or not at all, in transformers.
_PLAIN = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu"}
_PLAIN_VISION = {"image_size", "layers", "width", "head_width", "mlp_ratio", "patch_size", "timm_model_pretrained"}
_PLAIN_TEXT = {"context_length", "vocab_size", "width", "heads", "layers"}
_VOCABULARY = 49408  # entries of CLIP's tokenizer
# The beginnings of names; in a block of a tower, the names that follow.
_NAMES = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.": "vision_model.embeddings.patch_embedding.",
    "visual.ln_pre.": "vision_model.pre_layrnorm.",  # transformers spells it so
    "visual.ln_post.": "vision_model.post_layernorm.",
    "visual.transformer.resblocks.": "vision_model.encoder.layers.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.": "text_model.embeddings.token_embedding.",
    "ln_final.": "text_model.final_layer_norm.",
    "logit_scale": "logit_scale",
}
_BLOCK_NAMES = {
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
}
_TRANSPOSED = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
_MATRICES = ("q_proj", "k_proj", "v_proj")


def why_not_plain(classifier: Classifier) -> str | None:
    """The reason why transformers has no model like the one of open_clip that a classifier came from, or None."""
    config = model_config(classifier.architecture["name"])
    vision, text = classifier.architecture["vision_cfg"], config["text_cfg"]
    special = [
        *(config.keys() - _PLAIN),
        *(name for name in vision.keys() - _PLAIN_VISION if vision[name] is not None),
        *(name for name in text.keys() - _PLAIN_TEXT if text[name] is not None),
    ]
    if not isinstance(vision.get("layers"), int):
        return "its image tower is not a plain vision transformer, which is the only one that CLIPModel has"
    if special or text.get("vocab_size") != _VOCABULARY:
        return f"CLIPModel has no setting for {', '.join(sorted(special)) or 'its vocabulary'} of open_clip"
    return None


def converted(clip: Clip) -> tuple[DualEncoder, Tokenizer]:
    """The same model and tokenizer as objects of transformers."""
    import transformers

    config, architecture = model_config(clip.architecture["name"]), clip.architecture
    vision, text = architecture["vision_cfg"], config["text_cfg"]
    activation = "quick_gelu" if architecture["quick_gelu"] else "gelu"
    heads = vision["width"] // vision.get("head_width", 64)
    described = transformers.CLIPConfig(
        projection_dim=architecture["embed_dim"],
        vision_config={
            **_tower(vision["width"], vision["layers"], heads, activation, vision.get("mlp_ratio", 4.0)),
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        text_config={
            **_tower(text["width"], text["layers"], text["heads"], activation, 4.0),
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": clip.context_length,
            "bos_token_id": _VOCABULARY - 2,
            "eos_token_id": _VOCABULARY - 1,
            "pad_token_id": _VOCABULARY - 1,
        },
    )
    with torch.random.fork_rng(devices=[]):
        model = transformers.CLIPModel(described)
    model.load_state_dict(dict(_renamed(clip.model.state_dict())))
    return DualEncoder(model.eval()), Tokenizer(_tokenizer(), clip.context_length, lowercase=False)


def _tower(width: int, layers: int, heads: int, activation: str, ratio: float) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": int(width * ratio),
        "hidden_act": activation,
    }


def _renamed(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The entries of an open_clip model under the names of transformers."""
    for name, tensor in tensors.items():
        if name in _TRANSPOSED:
            yield _TRANSPOSED[name], tensor.T.contiguous()
            continue
        start = next(start for start in sorted(_NAMES, key=len, reverse=True) if name.startswith(start))
        new = _NAMES[start] + name[len(start) :]
        for old, replacement in _BLOCK_NAMES.items():
            new = new.replace(old, replacement)
        if ".attn.in_proj_" not in new:
            yield new, tensor
            continue
        for matrix, part in zip(_MATRICES, tensor.chunk(3), strict=True):
            yield new.replace(".attn.in_proj_", f".self_attn.{matrix}."), part.clone()


def _tokenizer() -> Any:
    """CLIP's tokenizer, whose vocabulary comes with open_clip."""
    import transformers
    from open_clip import SimpleTokenizer

    simple = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(word, word): number for word, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)
