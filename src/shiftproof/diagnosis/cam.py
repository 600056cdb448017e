"""Class activation maps: where in an image the evidence for a class lies.

CAM (Zhou et al. 2016, arXiv 1512.04150) is exact where a linear head reads the mean of the last map; elsewhere
Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weights the channels by their mean gradients.
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
from shiftproof.models.classifier import Classifier, Network, require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.memory import lay_out, uses_channels_last

METHODS = ("auto", "cam", "grad-cam")


@dataclass(frozen=True)
class Evidence:
    """The parts of a logit, which is the mean of ``maps`` over all places plus ``bias``.

    ``maps`` (B, h, w) are the signed contributions of the places of the last map, and ``bias`` (B,) is the part that
    does not depend on any place.
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
    """Returns (B, H, W) maps of the evidence for one class of each image, at the images' resolution.

    The maps are float32 on the CPU and at least 0. ``images`` are (B, 3, H, W), normalised as the model expects them,
    and ``classes`` (B,) integer labels. The method "cam" (Zhou et al. 2016, Eq. 2) is exact and requires a linear head
    on the mean of the last map; "grad-cam" (Selvaraju et al. 2017, Eq. 1 and 2) works for any differentiable network
    and needs the extra ``cam``; "auto" uses CAM where it is exact. ``layer`` names the module whose output Grad-CAM
    explains, e.g. "encoder.layer3". The evidence is clipped at 0 and then enlarged bilinearly; it is not scaled (see
    ``scale_to_one``). The classifier is left unchanged.

    Raises an InputError for other shapes or classes, where CAM is asked for but not exact, and where Grad-CAM needs
    the package grad-cam or another layer.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(class_activation_map(zero, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).shape)
    (2, 64, 64)
    """
    require_classifier(classifier)
    require_choice("method", method, METHODS)
    if layer is not None and method == "cam":
        raise InputError(
            f"the layer {layer!r} is for Grad-CAM, whereas CAM reads the last map. Give method='grad-cam'."
        )
    _require_fitting(classifier, images, classes)
    device = resolve_device(device)
    with _gradients_allowed(classifier, images):
        network = _private(classifier, device)
        images, classes = _moved(images, device), classes.to(device)
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
    """Returns the exact contribution of each place of the last map to a class's logit, on the CPU.

    This is what CAM clips and enlarges (Zhou et al. 2016, Eq. 2). ``images`` (B, 3, H, W) and ``classes`` (B,) are as
    for ``class_activation_map``. Raises an InputError for other shapes or classes, and where the logit is not a linear
    function of the last map's mean, up to the length of the features.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(class_evidence(zero, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).maps.shape)
    (2, 8, 8)
    """
    require_classifier(classifier)
    _require_fitting(classifier, images, classes)
    device = resolve_device(device)
    with _gradients_allowed(classifier, images):
        network = _private(classifier, device)
        images, classes = _moved(images, device), classes.to(device)
        end = _linear_end(network, images[:1])
        if end is None:
            raise _not_exact(classifier)
        evidence = _evidence(network, end, images, classes)
    return Evidence(evidence.maps.cpu(), evidence.bias.cpu())


def map_kind(classifier: Classifier) -> str:
    """Returns the method that "auto" uses: "cam" where it is exact, else "grad-cam".

    It runs the encoder on one blank image. Raises an InputError where Grad-CAM would need a ``layer``.
    """
    size = classifier.preprocessing.size
    image = torch.zeros(1, 3, size, size)
    with _gradients_allowed(classifier, image):
        network = _private(classifier, "cpu")
        if _linear_end(network, image) is not None:
            return "cam"
        explained_module(network, None)
    return "grad-cam"


def scale_to_one(maps: Tensor) -> Tensor:
    """Returns (..., H, W) maps in [0, 1]: nonnegative maps, each divided by its maximum; a map of zeros stays zero.

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
    """Returns the linear end of a network after its last map, tried on one image, or None where it is not linear."""
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
                offset = 0 if link.bias is None else link.bias
                weight, bias = link.weight @ weight, link.weight @ bias + offset
            elif not isinstance(link, nn.Dropout | nn.Identity):
                return None
        # Noise distinguishes a mean from every other pooling, norm and activation; the map of the image may not.
        noise = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(image.device)
        expected = layer_grid(noise, trunk, image.shape[2:]).mean((2, 3)) @ weight.T + bias
        embedding = nn.Sequential(*after)(trunk.forward_head(noise))
    same = embedding.shape == expected.shape and torch.allclose(embedding, expected, rtol=1e-4, atol=1e-5)
    return _LinearEnd(trunk, weight, bias) if same else None


def _evidence(network: Network, end: _LinearEnd, images: Tensor, classes: Tensor) -> Evidence:
    """Computes the evidence; normalising the features only divides them by their length, so the map stays exact."""
    with torch.no_grad():
        places = layer_grid(end.trunk.forward_features(images), end.trunk, images.shape[2:])
        embedding = places.mean((2, 3)) @ end.weight.T + end.bias
        length = embedding.norm(dim=1).clamp_min(1e-12) if network.normalised else torch.ones_like(embedding[:, 0])
        rows = network.head.weight[classes] / length[:, None]
        maps = torch.einsum("bc,bchw->bhw", rows @ end.weight, places)
        return Evidence(maps, rows @ end.bias + network.head.bias[classes])


def _private(classifier: Classifier, device: str) -> Network:
    """Returns a copy in evaluation mode and float32, in the memory format of the device.

    It shares the other weights of the network, but no hooks, flags or gradients.
    """
    network = classifier.network
    memo: dict[int, Any] = {id(p): nn.Parameter(_shared(p), requires_grad=False) for p in network.parameters()}
    memo |= {id(buffer): _shared(buffer) for buffer in network.buffers()}
    private: Network = deepcopy(network, memo).to(device=device, dtype=torch.float32).eval()
    return lay_out(private, uses_channels_last(network, device, classifier.channels_last))


def _shared(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _moved(images: Tensor, device: str) -> Tensor:
    return _shared(images).to(device=device, dtype=torch.float32)


@contextlib.contextmanager
def _gradients_allowed(classifier: Classifier, images: Tensor) -> Iterator[None]:
    """Allows gradients even in a caller's inference mode, and explains errors that an unexpected image size causes."""
    size = classifier.preprocessing.size
    try:
        with torch.inference_mode(False):
            yield
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = images.shape[2:]
        if isinstance(error, InputError) or (height, width) == (size, size):
            raise
        raise InputError(
            f"the model does not accept images of {height} x {width} ({error}). Give it {size} x {size}."
        ) from error


def _require_fitting(classifier: Classifier, images: Tensor, classes: Tensor) -> None:
    shape = tuple(images.shape)
    if len(shape) != 4 or shape[1] != 3 or not shape[0] or not images.is_floating_point():
        raise InputError(
            f"images are {shape} of {images.dtype}; they must be (B, 3, H, W) floats, normalised for the model, "
            "e.g. normalise(to_unit_range(pixels), classifier.preprocessing)."
        )
    if classes.is_floating_point() or classes.dtype == torch.bool or tuple(classes.shape) != shape[:1]:
        raise InputError(
            f"classes are {tuple(classes.shape)} of {classes.dtype}; they must be {shape[0]} integers, one per image."
        )
    low, high, known = int(classes.min()), int(classes.max()), len(classifier.classes)
    if low < 0 or high >= known:
        raise InputError(f"classes range from {low} to {high}; they must be in 0..{known - 1}.")


def _not_exact(classifier: Classifier) -> InputError:
    return InputError(
        f"CAM is exact only where a linear head reads the mean of the last map, and that of {classifier.source!r} does "
        "not. Use method='grad-cam'."
    )
