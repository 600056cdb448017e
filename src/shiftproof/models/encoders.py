"""Image models without a text tower, of timm and torchvision: their features and their pretrained heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import Tensor, nn

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, nearest, require_name
from shiftproof.models.clip import build_encoder as build_image_tower
from shiftproof.models.lite0 import LITE0, LITE0_ARCHITECTURE, LITE0_TAG, lite0_weights
from shiftproof.models.local_weights import fit_weights
from shiftproof.models.names import random_weights_refused, split_weights, with_weights
from shiftproof.models.torchvision_models import (
    create_network,
    known_tag,
    last_linear,
    preprocessing_of,
    remove_last_linear,
)
from shiftproof.models.transformers import build_image_tower as build_transformers_tower

_TIMM, _TORCHVISION = "timm:", "torchvision:"
_LIBRARIES = ("open_clip", "transformers", "timm", "torchvision")
_RESIZE_MODES = {"center": "shortest", "squash": "squash"}


@dataclass(frozen=True)
class Encoder:
    """An image network of timm or torchvision with its pretrained head; treat it as immutable.

    ``model`` maps (B, 3, size, size) images to the (B, K) logits of that head, or to features where it has none.
    ``architecture`` describes how to rebuild the model without its head.
    """

    name: str
    model: nn.Module = field(repr=False, compare=False)
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]


def load_encoder(name: str, *, seed: int = 0, random_weights: bool = True) -> Encoder:
    """Loads a network without a text tower by its name, in evaluation mode on the CPU.

    ``timm:NAME.TAG`` and ``torchvision:NAME.WEIGHTS`` have the pretrained weights of that name, such as
    ``IMAGENET1K_V1`` or ``DEFAULT``, from the cache or the network; without it, weights are random, drawn from
    ``seed``. ``lite0`` is EfficientNet-Lite0 with ImageNet weights from an installed package. ``NAME with weights
    FILE`` loads the weights in a local file into a model; where the file has no head that fits, the model has none.

    Raises an InputError for an unknown name or tag, where the weights cannot be downloaded and, unless
    ``random_weights`` is set, for a name without a tag.

    >>> load_encoder("timm:resnet18").preprocessing.size
    224
    """
    require_name("name", name, "timm:resnet18.a1_in1k")
    name, file = split_weights(name)
    if file is not None:
        return _with_trained_weights(load_encoder(name, seed=seed), file)
    if name == LITE0:
        return _load_lite0()
    if name.startswith(_TIMM):
        return _load_timm(name, seed, random_weights)
    if name.startswith(_TORCHVISION):
        return _load_torchvision(name, seed, random_weights)
    raise InputError(
        f"unknown encoder {name!r}. It must be timm:NAME.TAG, e.g. timm:resnet18.a1_in1k, torchvision:NAME.WEIGHTS, "
        "e.g. torchvision:resnet50.IMAGENET1K_V2, or lite0."
    )


def build_encoder(architecture: Mapping[str, Any]) -> nn.Module:
    """The encoder that an ``architecture`` describes, whichever library it is from, with weights still to be loaded."""
    library = architecture["library"]
    if library == "open_clip":
        return build_image_tower(architecture)
    if library == "transformers":
        return build_transformers_tower(architecture)
    if library == "timm":
        return _headless(_create_timm(architecture["name"], architecture["tag"], False, None))
    if library == "torchvision":
        return _headless(create_network(architecture["name"], architecture["tag"], pretrained=False, seed=None))
    raise InputError(f"unknown library {library!r} of an encoder. {nearest(str(library), _LIBRARIES)}")


def without_head(encoder: Encoder) -> tuple[nn.Module, int]:
    """A copy of a network without its head, (B, 3, size, size) to (B, D) features, and D.

    Raises an InputError where the network gives anything but one vector of features for each image.

    >>> without_head(load_encoder("timm:resnet18"))[1]
    512
    """
    features = _headless(deepcopy(encoder.model))
    with torch.inference_mode():
        made = features(_two_images(encoder))
    if not isinstance(made, Tensor) or made.ndim != 2:
        shape = f"of the shape {tuple(made.shape[1:])}" if isinstance(made, Tensor) else f"as a {type(made).__name__}"
        raise InputError(
            f"{encoder.name!r} gives features {shape} for an image; they must be one vector. Choose another model."
        )
    return features, made.shape[1]


def linear_head(weight: Tensor, bias: Tensor | float | None = None) -> nn.Linear:
    """A linear head with copies of the given (K, D) rows and of the (K,) biases, which are 0 unless they are given.

    It is torch's plain layer, bias included, which is what a classifier directory is read into.

    >>> linear_head(torch.ones(3, 2), 0.5).bias.tolist()
    [0.5, 0.5, 0.5]
    """
    head = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(torch.as_tensor(0.0 if bias is None else bias))
    return head


def split_head(encoder: Encoder) -> tuple[nn.Module, nn.Linear]:
    """Copies of a model's features, (B, 3, size, size) to (B, D), and of its linear head, (B, D) to (B, K).

    Their composition gives the model's own logits, which is checked on two random images. Raises an InputError
    where the head is none or no single linear map of the features.

    >>> features, head = split_head(load_encoder("timm:resnet18"))
    >>> head.in_features, head.out_features
    (512, 1000)
    """
    whole = deepcopy(encoder.model)
    layer = _classifier_of(whole)
    if not isinstance(layer, nn.Linear):
        raise _no_linear_head(encoder, f"it ends in {_kind(layer)}")
    head = linear_head(layer.weight, layer.bias)
    images = _two_images(encoder)
    with torch.inference_mode():
        inputs, logits = _run_watching(whole, layer, images)
        features = _headless(whole)
        same_features = len(inputs) == 1 and _close(features(images), inputs[0])
        fits = same_features and _close(head(inputs[0]), logits)
    if not fits:
        raise _no_linear_head(encoder, "its linear layer is not the last, or reads other features")
    return features, head


def own_class_space(outputs: int) -> ClassSpace:
    """The classes of a head with this many outputs.

    They have WordNet ids and names where timm knows an ImageNet subset of that size; otherwise they are numbers.

    >>> own_class_space(3).ids
    ('0', '1', '2')
    """
    subset = infer_imagenet_subset({"num_classes": outputs})
    if subset is None:
        return ClassSpace.from_ids([str(number) for number in range(outputs)])
    info = ImageNetInfo(subset)
    return ClassSpace(tuple(info.label_names()), tuple(info.label_descriptions()))


def _with_trained_weights(encoder: Encoder, file: str) -> Encoder:
    """The network with the weights in a local file, which must have all but the head."""
    wanted = encoder.model.state_dict()
    features = _headless(deepcopy(encoder.model))
    fitted = fit_weights(file, wanted)
    headless = not fitted.entries.keys() >= wanted.keys()
    if headless:
        fitted = fit_weights(file, features.state_dict())
    if fitted.missing or fitted.reshaped:
        raise fitted.refusal(encoder.name)
    fitted.warn_of_unused(f"{encoder.name} without its head" if headless else encoder.name)
    model = features if headless else deepcopy(encoder.model)
    model.load_state_dict(dict(fitted.entries))
    return replace(encoder, name=with_weights(encoder.name, file), model=model)


def _load_timm(name: str, seed: int, random_weights: bool) -> Encoder:
    architecture, _, tag = name.removeprefix(_TIMM).partition(".")
    if architecture not in (known := timm.list_models()):
        raise InputError(f"unknown timm architecture {architecture!r}. {nearest(architecture, known)}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise InputError(f"{architecture} has no pretrained tag {tag!r}. {nearest(tag, tags)}")
    if not tag and not random_weights:
        raise random_weights_refused(name, [f"{_TIMM}{architecture}.{known}" for known in tags])
    with _explaining_download(name):
        model = _create_timm(architecture, tag, bool(tag), seed)
    return _timm_encoder(name, architecture, model)


def _load_lite0() -> Encoder:
    model = _create_timm(LITE0_ARCHITECTURE, LITE0_TAG, False, None)
    model.load_state_dict(lite0_weights(model.state_dict()))
    return _timm_encoder(LITE0, LITE0_ARCHITECTURE, model)


def _timm_encoder(name: str, architecture: str, model: Any) -> Encoder:
    described = {"library": "timm", "name": architecture, "tag": model.pretrained_cfg.get("tag") or ""}
    return Encoder(name, model.eval(), _preprocessing(name, model), described)


def _load_torchvision(name: str, seed: int, random_weights: bool) -> Encoder:
    architecture, _, tag = name.removeprefix(_TORCHVISION).partition(".")
    tag = known_tag(name, architecture, tag, random_weights=random_weights)
    with _explaining_download(name):
        model = create_network(architecture, tag, pretrained=bool(tag), seed=seed)
    described = {"library": "torchvision", "name": architecture, "tag": tag}
    return Encoder(name, model.eval(), preprocessing_of(architecture, tag), described)


@contextlib.contextmanager
def _explaining_download(name: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(
            f"the model {name!r} cannot be loaded ({error}). "
            "Check the network, or leave the tag out for random weights."
        ) from error


def _create_timm(architecture: str, tag: str, pretrained: bool, seed: int | None) -> Any:
    # The tag determines more than weights, e.g. the image size, so it is given for a rebuild, too.
    name = f"{architecture}.{tag}" if tag else architecture
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)  # timm draws random weights from the global state
        return timm.create_model(name, pretrained=pretrained)


def _headless(model: Any) -> nn.Module:
    """The same model, whose head this removes."""
    if callable(getattr(model, "reset_classifier", None)):
        model.reset_classifier(0)
    else:
        remove_last_linear(model)
    return model  # type: ignore[no-any-return]


def _classifier_of(model: Any) -> object:
    """The layer that ends a model: timm says which it is, and in torchvision's networks it is the last linear one."""
    return model.get_classifier() if callable(getattr(model, "get_classifier", None)) else last_linear(model)[1]


def _two_images(encoder: Encoder) -> Tensor:
    size = encoder.preprocessing.size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def _preprocessing(name: str, model: nn.Module) -> Preprocessing:
    cfg = resolve_model_data_config(model)
    channels, height, width = cfg["input_size"]
    if channels != 3 or height != width:
        raise InputError(f"{name!r} takes images of {channels} x {height} x {width}; they must be RGB and square.")
    if cfg["crop_mode"] not in _RESIZE_MODES:
        raise InputError(
            f"{name!r} crops its images by {cfg['crop_mode']!r}; only {' and '.join(_RESIZE_MODES)} are supported. "
            "Choose another model."
        )
    return Preprocessing(
        size=height,
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"],
        resize_mode=_RESIZE_MODES[cfg["crop_mode"]],
        crop_share=float(cfg["crop_pct"]),
    )


def _run_watching(model: nn.Module, head: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The inputs of every call of the head while the model runs on images, and the model's logits."""
    inputs: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        return inputs, model(images)
    finally:
        handle.remove()


def _close(first: Any, second: Any) -> bool:
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor) and first.shape == second.shape
    return tensors and torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def _kind(head: object) -> str:
    if isinstance(head, tuple | list):
        return "several heads: " + ", ".join(type(part).__name__ for part in head)
    return "features, without a head" if isinstance(head, nn.Identity) else f"a {type(head).__name__}"


def _no_linear_head(encoder: Encoder, why: str) -> InputError:
    return InputError(
        f"{encoder.name!r} has no linear head of its own: {why}. "
        "Choose a model that ends in one, or start from a linear probe on its features."
    )
