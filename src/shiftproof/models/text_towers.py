"""The text tower behind a classifier's head: loaded again, given other weights, and used to rebuild the head."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import Clip, load_clip
from shiftproof.models.zero_shot import logit_scale_and_bias, zero_shot_embeddings

_IMAGE_TOWER = "visual."


def source_clip(classifier: Classifier, *, seed: int = 0) -> Clip:
    """The zero-shot model that a zero-shot classifier was built from.

    ``seed`` is the one that the model was loaded with; it matters for random weights only. Raises an InputError where
    there is no such model, where the text tower did not write the classifier's head, or where the image tower is not
    the classifier's.

    >>> from shiftproof import ClassSpace, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> source_clip(zero).name
    'tiny'
    """
    if not classifier.prompts:
        raise InputError(
            f"{classifier.source!r} has no text tower, which contrastive fine-tuning needs to build the head. "
            "Start from a zero-shot model, or choose another finetune.recipe."
        )
    if classifier.head != "zero-shot":
        raise InputError(
            f"the head of the classifier is {classifier.head!r}, so the text tower of {classifier.source!r} did not "
            "write it. Start from the zero-shot classifier."
        )
    clip = load_clip(classifier.source, seed=seed)
    tower = clip.model.visual.state_dict()  # type: ignore[union-attr]
    encoder = classifier.network.encoder.state_dict()
    if tower.keys() != encoder.keys() or any(
        not torch.equal(tensor, encoder[name].cpu()) for name, tensor in tower.items()
    ):
        raise InputError(
            f"the classifier's encoder is not that of {classifier.source!r}, so its text tower is unknown. "
            "Start from the zero-shot classifier itself, with the seed that it was built with."
        )
    return clip


def text_weights(clip: Clip) -> dict[str, Tensor]:
    """Copies of the weights of the text tower and of the logit scale: all that are not the image tower's."""
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
    """The head that a model's text tower builds for a classifier's classes and prompts, and its logit scale.

    The entries are ``head.weight`` (K, D), of rows of the length of the scale, and ``head.bias`` (K,), which is the
    logit bias of SigLIP for every class, and 0 for other models.
    """
    scale, bias = logit_scale_and_bias(clip)
    rows = scale * zero_shot_embeddings(clip, classifier.classes.names, classifier.prompts)
    return {"head.weight": rows.cpu().clone(), "head.bias": torch.full((len(rows),), bias)}, scale
