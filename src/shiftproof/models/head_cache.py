"""A cache of the class embeddings of zero-shot heads, which take minutes for many classes and prompts."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.models.clip import Clip
from shiftproof.models.text_encoding import class_embeddings
from shiftproof.storage import cache_directory
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

_VERSION = 1
_WORTH = 2000  # texts from which reading the text tower's weights for the key costs less than it saves
_IMAGE_TOWER = "visual."
_ROWS = "class_embeddings"
_TOLERANCE = 1e-3  # of a stored row against the same row computed again, in other batches or on another device


def cached_class_embeddings(clip: Clip, texts: Sequence[Sequence[str]]) -> Tensor:
    """``class_embeddings``, read from the cache directory where they are stored for this model and these texts.

    The key covers the weights of the text tower and the tokens of all texts, and thus names, prompts, tokenizer and
    context length. What it does not cover, such as the activation, is checked by computing the first row again. Heads
    of few texts are not stored. A file that is damaged, or a cache that cannot be written, is as good as none.
    """
    if sum(map(len, texts)) < _WORTH:
        return class_embeddings(clip, texts)
    file = cache_directory() / "zero-shot-heads" / f"{_key(clip, texts)}.safetensors"
    stored = _read(file, len(texts))
    if stored is not None and torch.allclose(class_embeddings(clip, texts[:1]), stored[:1], atol=_TOLERANCE):
        return stored
    rows = class_embeddings(clip, texts)
    with contextlib.suppress(OSError):
        write_state_dict({_ROWS: rows}, file)
    return rows


def _key(clip: Clip, texts: Sequence[Sequence[str]]) -> str:
    digest = hashlib.sha256(f"{_VERSION} {clip.context_length} {[len(of_class) for of_class in texts]}".encode())
    for of_class in texts:
        digest.update(clip.tokenizer(of_class).numpy().tobytes())
    for name, tensor in sorted(clip.model.state_dict().items()):
        if not name.startswith(_IMAGE_TOWER):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            plain = tensor.detach().cpu().contiguous()
            digest.update(plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b"")
    return digest.hexdigest()


def _read(file: Path, classes: int) -> Tensor | None:
    with contextlib.suppress(InputError, OSError):
        rows = read_state_dict(file).get(_ROWS)
        return rows if rows is not None and len(rows) == classes else None
    return None
