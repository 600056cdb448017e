"""Classifiers whose text towers were fine-tuned, without a training run, and text towers added up by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor

import shiftproof as sp
from shiftproof.models.text_towers import rebuilt_head, text_weights, with_text


def contrastive(start: sp.Classifier, clip: sp.models.Clip, seed: int) -> sp.Classifier:
    """A classifier as contrastive fine-tuning returns it: both towers near the start's, and the head rebuilt."""
    generator = torch.Generator().manual_seed(seed)
    text, weights = (nudged(tensors, generator) for tensors in (text_weights(clip), start.state_dict()))
    head, scale = rebuilt_head(with_text(clip, text), start)
    parents = ({"role": "start", "fingerprint": sp.models.fingerprint(start), "source": start.source},)
    return start.with_weights(
        weights | head, head="rebuilt", logit_scale=scale, text=text, parents=parents, training={"seed": seed}
    )


def nudged(tensors: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: tensor + 0.1 * tensor.abs().mean() * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in tensors.items()
    }


def weighted(towers: Sequence[Mapping[str, Tensor]], shares: Callable[[str], Sequence[float]]) -> dict[str, Tensor]:
    """The sum of share times tensor, entry by entry, for entries that are real numbers."""
    mixed = {}
    for name, entry in towers[0].items():
        total = torch.zeros(entry.shape, dtype=torch.float64)
        for tower, share in zip(towers, shares(name), strict=True):
            total = total + share * tower[name].double()
        mixed[name] = total.to(entry.dtype) if entry.is_floating_point() else entry
    return mixed


def written_head(
    clip: sp.models.Clip, prompts: Sequence[str], text: Mapping[str, Tensor], names: Sequence[str]
) -> Tensor:
    """exp(logit scale) times the normalised mean of each class's normalised embeddings, prompt by prompt."""
    model, rows = deepcopy(clip.model), []
    model.load_state_dict({**model.state_dict(), **text})
    with torch.inference_mode():
        for name in names:
            total = torch.zeros(128)
            for prompt in prompts:
                (row,) = model.encode_text(clip.tokenizer([prompt.format(name)]))
                total += row / row.norm()
            rows.append(text["logit_scale"].exp() * total / total.norm())
    return torch.stack(rows)
