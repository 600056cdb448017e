"""Batch-norm statistics of averaged weights, estimated anew: the mean of two variances is not the mean net's."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError, require_at_least
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.seeding import child_generator


def has_batch_norm(classifier: Classifier) -> bool:
    """Whether the network holds running statistics of batches that ``reestimate_batch_norm`` could renew.

    >>> from shiftproof import ClassSpace, load_clip, load_encoder, own_head_classifier, zero_shot_classifier
    >>> has_batch_norm(own_head_classifier(load_encoder("timm:test_resnet")))
    True
    >>> has_batch_norm(zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"])))
    False
    """
    return any(True for _ in _layers(classifier.network))


def require_batch_norm(classifier: Classifier) -> None:
    """Raises an InputError where a network has no statistics to re-estimate."""
    if not has_batch_norm(classifier):
        raise InputError(
            f"re-estimating batch norm is not applicable to {classifier.source}: its network has no such layer. "
            "Leave it out."
        )


def reestimate_batch_norm(
    classifier: Classifier,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    seed: int = 0,
) -> Classifier:
    """A copy whose batch-norm statistics are those of training images (Izmailov et al., SWA, 2018).

    For weights that were interpolated or averaged. One pass with the evaluation transform: statistics start afresh
    and are the plain mean over batches of equal size, at most ``batch_size``, in a seeded random order (a folder's
    order would give batches of one class). What does not fill the equal batches is left out: one image a batch at
    most. Everything but batch norm stays in evaluation mode. Accuracy can fall as well as rise: compare both.

    Raises an InputError where the network has no batch norm (a ViT, say), and for a single image.

    >>> from shiftproof import load_encoder, load_suite, own_head_classifier
    >>> own = own_head_classifier(load_encoder("timm:test_resnet"))
    >>> renewed = reestimate_batch_norm(own, load_suite("emoji").reference.train.subset(range(9)), batch_size=4)
    >>> renewed.training["batch_norm"]["images"], renewed.training["batch_norm"]["batch_size"]
    (9, 3)
    """
    require_batch_norm(classifier)
    require_at_least("the number of images to estimate batch norm on", len(images), 2)
    require_at_least("batch_size", batch_size, 2)
    batches = math.ceil(len(images) / batch_size)
    size = max(len(images) // batches, 2)
    order = torch.randperm(len(images), generator=child_generator(seed, "batch norm")).tolist()
    chosen = images.subset(order[: len(images) // size * size])
    place = resolve_device(device)
    network = deepcopy(classifier.network).to(place).eval()
    _start_afresh(network)
    with torch.inference_mode():
        for number, batch in enumerate(evaluation_batches(chosen, classifier.preprocessing, size), 1):
            network(batch.to(place))
            progress.report("batch norm", number * size, len(chosen))
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    note = {"set": images.name, "images": len(chosen), "batch_size": size, "seed": seed}
    return classifier.with_weights(weights, text=classifier.text, training={**classifier.training, "batch_norm": note})


def _start_afresh(network: nn.Module) -> None:
    """Resets the statistics and lets them, and nothing else in the network, learn from batches; changes ``network``."""
    # torch's update_bn does as much, but with dropout and stochastic depth switched on. For the same reason the flag
    # is set here and not by train(): timm's batch norm has layers of its own inside.
    for layer in _layers(network):
        layer.reset_running_stats()
        layer.momentum = None  # the cumulative mean over batches
        layer.training = True


def _layers(network: nn.Module) -> Iterator[_BatchNorm]:
    return (layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None)
