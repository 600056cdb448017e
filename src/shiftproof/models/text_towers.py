"""The text tower behind a classifier's head: loaded again, given other weights, and used to rebuild the head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace

import torch
from torch import Tensor

from shiftproof.data.labels import ClassSpace
from shiftproof.errors import InputError
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.clip import Clip, load_clip
from shiftproof.models.identity import parent_entry
from shiftproof.models.prompts import texts_of
from shiftproof.models.text_encoding import class_embeddings
from shiftproof.models.zero_shot import logit_scale_and_bias, zero_shot_classifier

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


def with_zero_shot_head(
    classifier: Classifier,
    classes: ClassSpace,
    prompts: str | Sequence[str] | Mapping[str, Sequence[str]] = "photo",
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    cache: bool = True,
) -> Classifier:
    """A classifier's encoder, fine-tuned or not, with a zero-shot head for other classes.

    The text tower that writes the head is the fine-tuned one where there is one (``text``), and otherwise that of the
    model that the classifier was fine-tuned from, whose embedding space the encoder has moved in. ``prompts``,
    ``device`` and ``cache`` are as in ``zero_shot_classifier``; ``seed`` is as in ``source_clip``, and a fine-tuned
    classifier records its own.

    Raises an InputError where no text tower is known, or where that of the source does not fit the encoder.

    >>> from shiftproof import ClassSpace, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> with_zero_shot_head(zero, ClassSpace.from_ids(["plum"])).classes.ids
    ('plum',)
    """
    clip = _clip_of_text_tower(classifier, seed)
    built = zero_shot_classifier(clip, classes, prompts, device=device, cache=cache)
    network = Network(deepcopy(classifier.network.encoder).cpu(), built.network.head)
    return replace(
        built,
        network=network.eval(),
        architecture=classifier.architecture,
        source=classifier.source,
        head="zero-shot" if classifier.text is None else "rebuilt",
        alpha=classifier.alpha,
        parents=(parent_entry("encoder", classifier),),
        training=classifier.training,
        text=classifier.text,
    )


def _clip_of_text_tower(classifier: Classifier, seed: int) -> Clip:
    """The model with the text tower that fits a classifier's encoder best; raises an InputError where none is known."""
    if not classifier.prompts or not classifier.network.normalised:
        raise InputError(
            f"{classifier.source!r} has no text tower, which a head for new classes is built by. Choose a classifier "
            "that was fine-tuned from a zero-shot model, or train a head on images of the new classes."
        )
    clip = load_clip(classifier.source, seed=int(classifier.training.get("seed", seed)))
    if {**clip.architecture, "name": ""} != {**classifier.architecture, "name": ""}:
        raise InputError(
            f"the image tower of {classifier.source!r} is not of the same architecture as the classifier's encoder, so "
            "its text tower does not fit. Restore the model that the classifier was fine-tuned from."
        )
    return clip if classifier.text is None else with_text(clip, classifier.text)


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
    rows = scale * class_embeddings(clip, texts_of(classifier.prompts, classifier.classes))
    return {"head.weight": rows.clone(), "head.bias": torch.full((len(rows),), bias)}, scale
