"""Classifiers of networks without a text tower: with their pretrained head, or with a new one that is to be trained."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from shiftproof.data.labels import ClassSpace
from shiftproof.errors import InputError, listed, refuse_path
from shiftproof.models.classifier import Classifier, Network, head_scale, starting_classifier
from shiftproof.models.clip import Clip, require_clip
from shiftproof.models.encoders import Encoder, linear_head, own_class_space, split_head, without_head
from shiftproof.models.local_weights import head_in_file


def own_head_classifier(encoder: Encoder, classes: ClassSpace | None = None) -> Classifier:
    """The classifier that an image network is with its pretrained head, whose logits and classes it has.

    With ``classes``, only the rows of these remain, in their order; they are matched by id, which for ImageNet networks
    is the WordNet id. Raises an InputError where the model has no linear head directly after its features, or where
    that head lacks one of the classes.

    >>> from shiftproof import load_encoder
    >>> resnet = own_head_classifier(load_encoder("timm:resnet18"))
    >>> resnet.head, resnet.classes.ids[0], resnet.classes.names[0]
    ('own', 'n01440764', 'tench, Tinca tinca')
    >>> fish = ClassSpace.from_ids(["n01443537", "n01440764"])
    >>> own_head_classifier(load_encoder("timm:resnet18"), fish).classes.names[0]
    'goldfish, Carassius auratus'
    """
    refuse_path("encoder", encoder, "an encoder, e.g. load_encoder('timm:resnet18.a1_in1k')")
    features, pretrained = split_head(encoder)
    head, space = _head_of_classes(encoder.name, pretrained.weight, pretrained.bias, classes)
    return starting_classifier(encoder, Network(features, head, normalised=False), space, "own", 1.0)


def trained_head_classifier(clip: Clip, file: str, classes: ClassSpace | None = None) -> Classifier:
    """A model with the head of the file that its weights are from, as wise-ft and model-soups train them together.

    ``clip`` is the model with those weights. The head reads features of length 1. A head of 1,000 classes is taken for
    one of ImageNet in the usual order. With ``classes``, only the rows of these remain, as in ``own_head_classifier``.
    Raises an InputError where the file has no head that fits, or where the head lacks one of the classes.
    """
    require_clip(clip)
    trained = head_in_file(file)
    width = clip.architecture.get("embed_dim")
    if trained is None or (width is not None and trained[0].shape[1] != width):
        raise InputError(
            f"{file} has no classification head for {clip.name!r}. Leave `head` out, so that the text tower gives one."
        )
    head, space = _head_of_classes(clip.name, *trained, classes)
    network = Network(deepcopy(clip.model.visual), head)  # type: ignore[arg-type]
    return starting_classifier(clip, network, space, "own", head_scale(head.weight.detach()))


def unlearned_classifier(encoder: Encoder, classes: ClassSpace) -> Classifier:
    """A network with a new head for ``classes`` whose weights are 0: what a linear probe of its features begins with.

    Raises an InputError where the network does not give one vector of features for each image.

    >>> from shiftproof import load_encoder
    >>> blank = unlearned_classifier(load_encoder("timm:resnet18"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(blank.network.head.weight.shape)
    (2, 512)
    """
    refuse_path("encoder", encoder, "an encoder, e.g. load_encoder('timm:resnet18.a1_in1k')")
    features, width = without_head(encoder)
    network = Network(features, linear_head(torch.zeros(len(classes), width)), normalised=False)
    return starting_classifier(encoder, network, classes, "trained", 1.0)


def _head_of_classes(
    name: str, weight: Tensor, bias: Tensor, classes: ClassSpace | None
) -> tuple[nn.Linear, ClassSpace]:
    """The rows of a pretrained head for the given classes, or all of them, and the classes that these rows are for."""
    space = own_class_space(len(weight))
    if classes is None or classes.ids == space.ids:
        return linear_head(weight, bias), space
    rows = _rows_of_own_head(name, space, classes)
    return linear_head(weight[rows], bias[rows]), ClassSpace(classes.ids, tuple(space.names[row] for row in rows))


def _rows_of_own_head(name: str, space: ClassSpace, classes: ClassSpace) -> list[int]:
    """The rows of a pretrained head for the given classes; an InputError says which classes it lacks."""
    lacking = sorted(set(classes.keys) - set(space.keys))
    numbered = space.ids == tuple(str(number) for number in range(len(space)))
    if lacking or (numbered and len(classes) != len(space)):
        known = "classes that have only numbers" if numbered else f"other classes, such as {space.ids[0]!r}"
        problem = f"the data have {len(classes):,} classes, and numbers do not say which"
        if lacking:
            problem = f"it lacks {len(lacking):,} of the {len(classes):,} classes of the data: {listed(lacking)}"
        raise InputError(
            f"the head of {name!r} has {len(space):,} {known}; {problem}. Train a new head with `head='probe'`, or "
            "name the classes of the data by the ids of the head's classes."
        )
    return [int(row) for row in space.labels_of(classes.ids, name)]
