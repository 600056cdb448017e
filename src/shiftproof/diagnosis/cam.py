"""Class activation maps: where in an image the evidence for a class lies.

CAM (Zhou et al. 2016, arXiv 1512.04150) is exact where a linear head reads the mean of the last map; elsewhere
Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weighs the channels by their mean gradient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.diagnosis.grad_cam import explained_module, grad_cam_maps
from shiftproof.diagnosis.grids import layer_grid, timm_trunk
from shiftproof.errors import InputError, require_choice
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.devices import resolve_device

METHODS = ("auto", "cam", "grad-cam")


@dataclass(frozen=True)
class Evidence:
    """How a logit is made up: it is the mean of ``maps`` over the places, plus ``bias``.

    ``maps`` (B, h, w) has the sign of what each place of the last map says; ``bias`` (B,) is what no place says.
    """

    maps: Tensor
    bias: Tensor


def class_activation_map(
    classifier: Classifier,
    images: Tensor,
    classes: Tensor,
    *,
    method: str = "auto",
    layer: str | None = None,
    device: str | torch.device = "auto",
) -> Tensor:
    """(B, H, W) maps >= 0 on the CPU, in float32, of the evidence for one class an image, at the images' resolution.

    ``images`` are (B, 3, H, W) as the model takes them (normalised), ``classes`` (B,) integer labels. "cam" is
    exact and wants a linear head on a mean; "grad-cam" works for any differentiable network and needs the extra
    ``cam``; "auto" takes CAM where it is exact. ``layer`` names the module whose output Grad-CAM explains, e.g.
    "encoder.layer3". The evidence is clipped at 0, then enlarged bilinearly, and not scaled: see ``scale_to_one``.
    The classifier stays as it is. Raises an InputError where a method does not fit.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(class_activation_map(zero, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).shape)
    (2, 64, 64)
    """
    require_choice("method", method, METHODS)
    if layer is not None and method == "cam":
        raise InputError(f"the layer {layer!r} is for Grad-CAM; CAM reads the last map. Give method='grad-cam'.")
    _require_fitting(classifier, images, classes)
    place = resolve_device(device)
    with _at_work(classifier, images):
        network = _private(classifier.network, place)
        images, classes = _moved(images, place), classes.to(place)
        end = None if method == "grad-cam" or layer is not None else _linear_end(network, images[:1])
        if end is not None:
            maps = _evidence(network, end, images, classes).maps
        elif method == "cam":
            raise _not_exact(classifier)
        else:
            maps = grad_cam_maps(network, images, classes, layer)
        return functional.interpolate(maps.clamp_min(0)[:, None], images.shape[2:], mode="bilinear")[:, 0].cpu()


def class_evidence(
    classifier: Classifier, images: Tensor, classes: Tensor, *, device: str | torch.device = "auto"
) -> Evidence:
    """The exact share of each place of the last map in a class's logit, on the CPU; what CAM clips and enlarges.

    ``images`` (B, 3, H, W) and ``classes`` (B,) as for ``class_activation_map``. Raises an InputError where the
    logit is no linear function of the last map's mean, up to the features' length.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(class_evidence(zero, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).maps.shape)
    (2, 8, 8)
    """
    _require_fitting(classifier, images, classes)
    place = resolve_device(device)
    with _at_work(classifier, images):
        network = _private(classifier.network, place)
        images, classes = _moved(images, place), classes.to(place)
        end = _linear_end(network, images[:1])
        if end is None:
            raise _not_exact(classifier)
        found = _evidence(network, end, images, classes)
    return Evidence(found.maps.cpu(), found.bias.cpu())


def map_kind(classifier: Classifier) -> str:
    """The method that "auto" takes: "cam" where it is exact, else "grad-cam".

    Runs the encoder on one blank image. Raises an InputError where Grad-CAM would need a ``layer``.
    """
    size = classifier.preprocessing.size
    image = torch.zeros(1, 3, size, size)
    with _at_work(classifier, image):
        network = _private(classifier.network, "cpu")
        if _linear_end(network, image) is not None:
            return "cam"
        explained_module(network, None)
    return "grad-cam"


def scale_to_one(maps: Tensor) -> Tensor:
    """(..., H, W) maps >= 0, each divided by its maximum, for drawing; a map of zeros stays so.

    >>> scale_to_one(torch.tensor([[[1.0, 4.0]], [[0.0, 0.0]]])).tolist()
    [[[0.25, 1.0]], [[0.0, 0.0]]]
    """
    peak = maps.amax((-2, -1), keepdim=True)
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))


@dataclass(frozen=True)
class _LinearEnd:
    """embedding (B, D) = mean of the trunk's last map (B, C) @ weight.T + bias; weight (D, C), bias (D,)."""

    trunk: Any
    weight: Tensor
    bias: Tensor


def _linear_end(network: Network, image: Tensor) -> _LinearEnd | None:
    """What is linear behind the last map, tried on one image; None where something else stands there."""
    trunk, after = timm_trunk(network.encoder)
    if trunk is None:
        return None
    with torch.no_grad():
        last = trunk.forward_features(image)
        try:
            channels = layer_grid(last, trunk, image.shape[2:]).shape[1]
        except InputError:
            return None
        weight, bias = torch.eye(channels, device=image.device), torch.zeros(channels, device=image.device)
        for link in (trunk.get_classifier(), *after):
            if isinstance(link, nn.Linear):
                own = 0 if link.bias is None else link.bias
                weight, bias = link.weight @ weight, link.weight @ bias + own
            elif not isinstance(link, nn.Dropout | nn.Identity):
                return None
        # Noise tells a mean from every other pooling, norm and activation; the image's own map may not.
        noise = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(image.device)
        expected = layer_grid(noise, trunk, image.shape[2:]).mean((2, 3)) @ weight.T + bias
        found = nn.Sequential(*after)(trunk.forward_head(noise))
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    return _LinearEnd(trunk, weight, bias) if same else None


def _evidence(network: Network, end: _LinearEnd, images: Tensor, classes: Tensor) -> Evidence:
    """The formula; a length of the features only divides, so the map stays exact."""
    with torch.no_grad():
        places = layer_grid(end.trunk.forward_features(images), end.trunk, images.shape[2:])
        embedding = places.mean((2, 3)) @ end.weight.T + end.bias
        length = embedding.norm(dim=1).clamp_min(1e-12) if network.normalised else torch.ones_like(embedding[:, 0])
        rows = network.head.weight[classes] / length[:, None]
        maps = torch.einsum("bc,bchw->bhw", rows @ end.weight, places)
        return Evidence(maps, rows @ end.bias + network.head.bias[classes])


def _private(network: Network, device: str) -> Network:
    """A copy in evaluation mode and float32 that shares the weights but no hook, flag or gradient."""
    memo: dict[int, Any] = {id(p): nn.Parameter(_shared(p), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): _shared(buffer) for buffer in network.buffers()}
    private: Network = deepcopy(network, memo).to(device=device, dtype=torch.float32).eval()
    return private


def _shared(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _moved(images: Tensor, device: str) -> Tensor:
    return _shared(images).to(device=device, dtype=torch.float32)


@contextlib.contextmanager
def _at_work(classifier: Classifier, images: Tensor) -> Iterator[None]:
    """Gradients can be had, also in a caller's inference mode; an image size that does not fit is told."""
    size = classifier.preprocessing.size
    try:
        with torch.inference_mode(False):
            yield
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = images.shape[2:]
        if isinstance(error, InputError) or (height, width) == (size, size):
            raise
        raise InputError(
            f"the model does not take images of {height} x {width} ({error}). Give it {size} x {size}."
        ) from error


def _require_fitting(classifier: Classifier, images: Tensor, classes: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or not shape[0] or not images.is_floating_point():
        raise InputError(
            f"images are {shape} of {images.dtype}; they must be (B, 3, H, W) floats as the model takes them, "
            "e.g. normalise(to_unit_range(pixels), classifier.preprocessing)."
        )
    if classes.is_floating_point() or classes.dtype == torch.bool or tuple(classes.shape) != shape[:1]:
        raise InputError(
            f"classes are {tuple(classes.shape)} of {classes.dtype}; they must be {shape[0]} integers, one an image."
        )
    low, high, known = int(classes.min()), int(classes.max()), len(classifier.classes)
    if low < 0 or high >= known:
        raise InputError(f"classes range from {low} to {high}; they must be in 0..{known - 1}.")


def _not_exact(classifier: Classifier) -> InputError:
    return InputError(
        f"CAM is exact only where a linear head reads the mean of the last map, which {classifier.source!r} does not "
        "do. Take method='grad-cam'."
    )
