"""Batch-norm statistics re-estimated for averaged weights, since averaged variances do not fit an averaged network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import deepcopy

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.errors import InputError, require_at_least
from shiftproof.models.classifier import Classifier, require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.seeding import child_generator


def has_batch_norm(classifier: Classifier) -> bool:
    """Returns whether the network has running statistics of batches that ``reestimate_batch_norm`` can re-estimate.

    >>> from shiftproof import ClassSpace, load_clip, load_encoder, own_head_classifier, zero_shot_classifier
    >>> has_batch_norm(own_head_classifier(load_encoder("timm:test_resnet")))
    True
    >>> has_batch_norm(zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"])))
    False
    """
    require_classifier(classifier)
    return any(True for _ in _layers(classifier.network))


def require_batch_norm(classifier: Classifier) -> None:
    """Raises an InputError if the network has no statistics to re-estimate."""
    require_classifier(classifier)
    if not has_batch_norm(classifier):
        raise InputError(
            f"batch norm cannot be re-estimated for {classifier.source}: its network has no such layer. Leave it out."
        )


def reestimate_batch_norm(
    classifier: Classifier,
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    batch_size: int = 256,
    seed: int = 0,
) -> Classifier:
    """Returns a copy whose batch-norm statistics are re-estimated on training images, for averaged weights.

    Stochastic weight averaging recommends this step (SWA, Izmailov et al. 2018, arXiv 1803.05407). One pass is made
    with the evaluation transform. Each statistic is reset and becomes the plain mean over batches of equal size, at
    most ``batch_size`` images, in a random order that ``seed`` determines (in the order of a folder, batches would
    contain a single class). Images that do not fill the equal batches are left out, at most one per batch. Everything
    but batch norm stays in evaluation mode. ``device`` is any torch device; "auto" means the GPU if there is one, and
    the CPU otherwise. Accuracy may fall or rise, so compare both classifiers.

    Raises an InputError if the network has no batch norm (such as a ViT), for fewer than two images, and for a
    ``batch_size`` below 2.

    >>> from shiftproof import load_encoder, load_suite, own_head_classifier
    >>> resnet = own_head_classifier(load_encoder("timm:test_resnet"))
    >>> images = load_suite("emoji").reference.train.subset(range(9))
    >>> reestimated = reestimate_batch_norm(resnet, images, batch_size=4)
    >>> reestimated.training["batch_norm"]["images"], reestimated.training["batch_norm"]["batch_size"]
    (9, 3)
    """
    require_set(images)
    require_batch_norm(classifier)
    require_at_least("the number of images to estimate batch norm on", len(images), 2)
    require_at_least("batch_size", batch_size, 2)
    batches = math.ceil(len(images) / batch_size)
    size = max(len(images) // batches, 2)
    order = torch.randperm(len(images), generator=child_generator(seed, "batch norm")).tolist()
    chosen = images.subset(order[: len(images) // size * size])
    place = resolve_device(device)
    network = deepcopy(classifier.network_on(device=place))
    _reset_statistics(network)
    with torch.inference_mode():
        for number, batch in enumerate(evaluation_batches(chosen, classifier.preprocessing, size), 1):
            network(batch.to(place))
            progress.report("batch norm", number * size, len(chosen))
    weights = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    note = {"set": images.name, "images": len(chosen), "batch_size": size, "seed": seed}
    return classifier.with_weights(weights, text=classifier.text, training={**classifier.training, "batch_norm": note})


def _reset_statistics(network: nn.Module) -> None:
    """Resets the statistics and makes them, and nothing else in the network, update with batches, in place."""
    # torch's update_bn does the same, but enables dropout and stochastic depth. For the same reason the flag is set
    # here and not by train(), which would also reach the layers inside timm's batch norm.
    for layer in _layers(network):
        layer.reset_running_stats()
        layer.momentum = None  # means the cumulative mean over batches
        layer.training = True


def _layers(network: nn.Module) -> Iterator[_BatchNorm]:
    return (layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.running_mean is not None)
