"""Small zero-shot models of transformers, written to disk in the layout that the hub has."""

from __future__ import annotations

import functools
import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = ("clip", "siglip", "siglip2", "siglip2-naflex")
SIZE = 32
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def write_model(folder: Path, kind: str, seed: int = 0, tokenizer: Any = None) -> str:
    """Writes a model of 32 px images and returns its name; ``siglip2`` is one of the fixed-size SigLIP 2 models.

    Without ``tokenizer``, the vocabulary consists of single bytes or letters, and for ``siglip`` of short pieces.
    """
    build = {"clip": _clip, "siglip": _sigmoid, "siglip2": _sigmoid, "siglip2-naflex": _naflex}[kind]
    tokenizer = tokenizer or _TOKENIZERS[kind](folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, processor = build(tokenizer)
        model = _with_plain_logits(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return f"hf:{folder}"


def theirs(folder: str) -> Any:
    """The model of transformers itself, in evaluation mode."""
    return transformers.AutoModel.from_pretrained(folder.removeprefix("hf:"), dtype=torch.float32).eval()


def _with_plain_logits(model: Any) -> Any:
    """The model with embeddings that differ from image to image, and SigLIP's scale and bias as published models."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.2)
            elif name == "logit_scale":
                parameter.fill_(4.77 if hasattr(model, "logit_bias") else 4.6)
            elif name == "logit_bias":
                parameter.fill_(-12.9)
    return model


def _clip(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    config = transformers.CLIPConfig(
        text_config={
            **TOWER,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 77,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={**TOWER, "image_size": SIZE, "patch_size": 8},
        projection_dim=24,
    )
    square = {"height": SIZE, "width": SIZE}
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": True,
        "crop_size": square,
        "do_resize": True,
        "size": {"shortest_edge": SIZE},
        "resample": 3,
        "do_normalize": True,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    return transformers.CLIPModel(config), processor


def _sigmoid(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    config = transformers.SiglipConfig(
        text_config={**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        vision_config={**TOWER, "image_size": SIZE, "patch_size": 8},
    )
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "size": {"height": SIZE, "width": SIZE},
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    return transformers.SiglipModel(config), processor


def _naflex(tokenizer: Any) -> tuple[Any, dict[str, Any]]:
    config = transformers.Siglip2Config(
        text_config={**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        vision_config={**TOWER, "num_patches": (SIZE // 8) ** 2, "patch_size": 8},
    )
    processor = {
        "image_processor_type": "Siglip2ImageProcessor",
        "do_resize": True,
        "resample": 2,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": 8,
        "max_num_patches": (SIZE // 8) ** 2,
    }
    return transformers.Siglip2Model(config), processor


def siglip_tokenizer(folder: Path) -> Any:
    """SigLIP's tokenizer with a sentencepiece model that is trained here and written to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "spiece.model").write_bytes(_sentencepiece_model())
    return transformers.SiglipTokenizer(str(folder / "spiece.model"))


@functools.cache
def _sentencepiece_model() -> bytes:
    """A unigram model of every letter and digit and some pieces, whose special tokens have SigLIP's numbers."""
    pangrams = (
        *("the quick brown fox jumps over the lazy dog 0 1 2 3 4", "pack my box with five dozen liquor jugs 5 6 7 8 9"),
        *(
            "sphinx of black quartz judge my vow",
            "how vexingly quick daft zebras jump",
            "waltz bad nymph for quick jigs",
        ),
    )
    kinds, colours, fruits = (
        ("photo", "sketch", "drawing"),
        ("red", "green", "yellow"),
        ("lemon", "pear", "apple", "fig"),
    )
    prompts = [f"a {kind} of a {colour} {fruit}" for kind in kinds for colour in colours for fruit in fruits]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*pangrams, *prompts]),
        model_writer=model,
        vocab_size=72,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def _clip_tokenizer() -> Any:
    """CLIP's tokenizer with single bytes as its whole vocabulary."""
    symbols = sorted(_bytes_to_unicode())
    words = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *_SPECIAL]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[])


def _gemma_tokenizer(kind: Any) -> Any:
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *map(chr, range(33, 127))]
    vocabulary = {word: number for number, word in enumerate(words)}
    return kind(vocab=vocabulary, merges=[], padding_side="right", add_bos_token=False, add_eos_token=True)


def _bytes_to_unicode() -> list[str]:
    """The characters that stand for the 256 bytes in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in plain] + [chr(256 + number) for number in range(256 - len(plain))]


_TOKENIZERS = {
    "clip": lambda _: _clip_tokenizer(),
    "siglip": siglip_tokenizer,
    "siglip2": lambda _: _gemma_tokenizer(transformers.GemmaTokenizer),
    "siglip2-naflex": lambda _: _gemma_tokenizer(transformers.Siglip2Tokenizer),
}
