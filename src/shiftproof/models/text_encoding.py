"""Embeddings of many texts by the text tower of a model, in batches and without computing on padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from shiftproof import progress
from shiftproof.models.clip import Clip
from shiftproof.models.transformers import DualEncoder, Tokenizer

_BATCH = 256  # texts that run through the tower together
_REPORTED = 8 * _BATCH  # with fewer texts, a head is done before anyone looks at the progress


def class_embeddings(clip: Clip, texts: Sequence[Sequence[str]]) -> Tensor:
    """(K, D) embeddings of length 1: each of K classes' texts is embedded and normalised, and the mean normalised.

    They are computed in batches over classes and texts, on the device of the model, and returned on the CPU in float32.
    """
    encode, rows = text_encoder(clip.model), list[Tensor]()
    device = next(clip.model.parameters()).device
    reported = sum(map(len, texts)) > _REPORTED
    for classes in _groups(texts):
        tokens = clip.tokenizer([text for of_class in classes for text in of_class])
        parts = [encode(part.to(device)).float() for part in torch.split(tokens, _BATCH)]
        embedded = functional.normalize(torch.cat(parts), dim=-1)
        means = [of_class.mean(0) for of_class in torch.split(embedded, [len(of_class) for of_class in classes])]
        rows.append(functional.normalize(torch.stack(means), dim=-1).cpu())
        if reported:
            progress.report("zero-shot head", sum(map(len, rows)), len(texts))
    return torch.cat(rows)


def text_encoder(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """A function from (T, L) tokens to (T, D) embeddings that gives the same as ``encode_text``, up to rounding.

    In a causal text tower no token depends on later ones, so everything after the last end of a text in the batch is
    left out: most prompts fill a sixth of CLIP's context. Other towers run on all tokens.
    """
    encode: Any = model.encode_text
    if isinstance(model, DualEncoder):
        if model.logit_bias is not None:
            return encode  # type: ignore[no-any-return]
        end = model.config.text_config.eos_token_id  # 2 in old configurations, where the end is the largest number
        return lambda tokens: encode(tokens[:, : _needed(tokens if end == 2 else (tokens == end).int())])
    for prefix, part in (("model.", model), ("model.text.", getattr(model, "text", None))):
        if part is not None and _is_causal(part):
            return _trimmed(_Texts(model), prefix, part)
    return encode  # type: ignore[no-any-return]


class _Texts(nn.Module):
    """A model whose forward pass embeds texts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model.encode_text(tokens)  # type: ignore[operator, no-any-return]


def _is_causal(tower: nn.Module) -> bool:
    """Whether a text tower of open_clip has a causal mask and reads off the embedding at the largest token, the end."""
    pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
    mask, places = getattr(tower, "attn_mask", None), getattr(tower, "positional_embedding", None)
    causal = isinstance(mask, Tensor) and isinstance(places, Tensor) and len(mask) == len(places)
    return causal and pool == "argmax" and getattr(tower, "cls_emb", None) is None


def _trimmed(texts: _Texts, prefix: str, tower: nn.Module) -> Callable[[Tensor], Tensor]:
    places, mask = f"{prefix}positional_embedding", f"{prefix}attn_mask"

    def encode(tokens: Tensor) -> Tensor:
        length = _needed(tokens)
        shorter = {places: tower.positional_embedding[:length], mask: tower.attn_mask[:length, :length]}  # type: ignore[index]
        return functional_call(texts, shorter, (tokens[:, :length],))  # type: ignore[no-any-return]

    return encode


def _needed(marks: Tensor) -> int:
    """The number of tokens up to the last of the rows' first maxima."""
    return int(marks.argmax(dim=-1).max()) + 1


def _groups(texts: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """The texts of consecutive classes, together as many as fill a batch, and at least those of one class."""
    group: list[Sequence[str]] = []
    for of_class in texts:
        if group and sum(map(len, group)) + len(of_class) > _BATCH:
            yield group
            group = []
        group.append(of_class)
    if group:
        yield group


def token_counts(clip: Clip, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, with those that begin and end it, before it is truncated.

    They are 0 for a tokenizer that cannot say so.
    """
    tokenizer: Any = clip.tokenizer
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.lengths(texts)
    if hasattr(tokenizer, "encode"):  # open_clip's own tokenizer, which adds the two others itself
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    if hasattr(tokenizer, "tokenizer"):  # one of transformers that open_clip calls
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        return [len(tokens) for tokens in tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]
    return [0] * len(texts)
