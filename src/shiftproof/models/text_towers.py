"""The text tower behind a classifier's head: found again, changed, and asked for the head anew."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.models.classifier import Classifier, zero_shot_embeddings
from shiftproof.models.clip import Clip, load_clip

_IMAGE_TOWER = "visual."


def source_clip(classifier: Classifier, *, seed: int = 0) -> Clip:
    """The zero-shot model that a zero-shot classifier was made of.

    Raises an InputError where there is none, where the text tower did not write the classifier's head, or where the
    image tower is not the classifier's.

    >>> from shiftproof import ClassSpace, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> source_clip(zero).name
    'tiny'
    """
    if not classifier.prompts:
        raise InputError(
            f"{classifier.source!r} has no text tower, which writes the head in contrastive fine-tuning. "
            "Start from a zero-shot model, or choose another finetune.recipe."
        )
    if classifier.head != "zero-shot":
        raise InputError(
            f"the head of the classifier is {classifier.head!r}, so the text tower of {classifier.source!r} did not "
            "write it. Start from the zero-shot classifier."
        )
    clip = load_clip(classifier.source, seed=seed)
    tower = clip.model.visual.state_dict()  # type: ignore[union-attr]
    own = classifier.network.encoder.state_dict()
    if tower.keys() != own.keys() or any(not torch.equal(tensor, own[name].cpu()) for name, tensor in tower.items()):
        raise InputError(
            f"the classifier's encoder is not that of {classifier.source!r}, so its text tower is not known. "
            "Start from the zero-shot classifier itself, with the seed that it was made with."
        )
    return clip


def text_weights(clip: Clip) -> dict[str, Tensor]:
    """Copies of all weights that are not the image tower's: text tower and logit scale."""
    return {
        name: tensor.detach().cpu().clone()
        for name, tensor in clip.model.state_dict().items()
        if not name.startswith(_IMAGE_TOWER)
    }


def with_text(clip: Clip, weights: Mapping[str, Tensor]) -> Clip:
    """A copy of a model with another text tower and logit scale."""
    model = deepcopy(clip.model)
    model.load_state_dict({**model.state_dict(), **weights})
    return replace(clip, model=model.eval())


@torch.inference_mode()
def rebuilt_head(clip: Clip, classifier: Classifier) -> tuple[dict[str, Tensor], float]:
    """The head that a model's text tower writes for a classifier's classes and prompts, and the scale in it."""
    scale = clip.model.logit_scale.exp().item()  # type: ignore[operator]
    rows = scale * zero_shot_embeddings(clip, classifier.classes.names, classifier.prompts)
    return {"head.weight": rows.cpu().clone(), "head.bias": torch.zeros(len(rows))}, scale
