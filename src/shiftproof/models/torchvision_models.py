"""Image classification networks of torchvision: built by name, with their weights and the preprocessing of these."""

from __future__ import annotations

import math
from enum import Enum
from typing import Any

import torch
from torch import nn

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, nearest
from shiftproof.models.names import random_weights_refused

_SCHEME = "torchvision:"
# Two architectures have further heads that only training uses. Their weights also expect other inputs.
_AUXILIARY = {"googlenet": ("aux1", "aux2"), "inception_v3": ("AuxLogits",)}


def known_tag(name: str, architecture: str, tag: str, *, random_weights: bool) -> str:
    """The name of an architecture's weights that ``tag`` stands for, or "" for random weights.

    ``DEFAULT`` is an alias for the newest weights. Raises an InputError for an architecture or weights that torchvision
    does not have and, unless ``random_weights`` is set, for a name without a tag.
    """
    if architecture not in (known := _architectures()):
        raise InputError(f"unknown torchvision architecture {architecture!r}. {nearest(architecture, known)}")
    weights = _weights_of(architecture)
    if tag and tag not in weights.__members__:
        raise InputError(f"{architecture} has no weights {tag!r} in torchvision. {nearest(tag, weights.__members__)}")
    if not tag and not random_weights:
        raise random_weights_refused(name, [f"{_SCHEME}{architecture}.{weights['DEFAULT'].name}"])
    return weights[tag].name if tag else ""


def create_network(architecture: str, tag: str, *, pretrained: bool, seed: int | None) -> nn.Module:
    """Builds a network; without ``pretrained``, its weights are random, drawn from ``seed`` unless it is None."""
    from torchvision.models import get_model

    options: dict[str, Any] = {}
    if architecture in _AUXILIARY and not pretrained:
        options = {"init_weights": False, "transform_input": bool(tag)}
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)  # torchvision draws random weights from the global state
        network = get_model(architecture, weights=_weights_of(architecture)[tag] if pretrained else None, **options)
    for head in _AUXILIARY.get(architecture, ()):
        network.aux_logits = False
        setattr(network, head, None)
    return network  # type: ignore[no-any-return]


def preprocessing_of(architecture: str, tag: str) -> Preprocessing:
    """The preprocessing of an architecture's weights; that of torchvision's default ones where they are random."""
    transform = _weights_of(architecture)[tag or "DEFAULT"].value.transforms()
    (size,), (resized,) = transform.crop_size, transform.resize_size
    return Preprocessing(
        size=size,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        crop_share=_crop_share(size, resized),
    )


def last_linear(network: nn.Module) -> tuple[str, nn.Module]:
    """The name of a network's last linear layer, and that layer; raises an InputError where there is none.

    >>> last_linear(create_network("resnet18", "", pretrained=False, seed=0))[0]
    'fc'
    """
    linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"a {type(network).__name__} has no linear layer, so it has no head. Choose another model.")
    return linear[-1]


def remove_last_linear(network: nn.Module) -> None:
    """Replaces the last linear layer of a network, in place, by one that passes its input on."""
    name, _ = last_linear(network)
    network.set_submodule(name, nn.Identity())


def _architectures() -> list[str]:
    import torchvision

    # MNASNet refuses a state dict without torch's version numbers, which safetensors cannot hold; timm's does not.
    known = torchvision.models.list_models(module=torchvision.models)
    return [name for name in known if not name.startswith("mnasnet")]


def _weights_of(architecture: str) -> type[Enum]:
    from torchvision.models import get_model_weights

    return get_model_weights(architecture)  # type: ignore[no-any-return]


def _crop_share(size: int, resized: int) -> float:
    """The share with which ``floor(size / share)`` is the side that torchvision resizes to."""
    share = size / resized
    return share if math.floor(size / share) == resized else math.nextafter(share, 0)
