"""Class activation maps: where in an image the evidence for a class lies.

CAM (Zhou et al. 2016, arXiv 1512.04150) is exact where a linear head reads the mean of the last map; elsewhere
Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) weighs the channels by their mean gradient.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.errors import InputError, listed, nearest, require_choice
from shiftproof.models.classifier import Classifier, Network

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
    device: str = "cpu",
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
    with _at_work(classifier, images):
        network = _private(classifier.network, device)
        images, classes = _moved(images, device), classes.to(device)
        end = None if method == "grad-cam" or layer is not None else _linear_end(network, images[:1])
        if end is not None:
            maps = _evidence(network, end, images, classes).maps
        elif method == "cam":
            raise _not_exact(classifier)
        else:
            maps = _grad_cam(network, images, classes, layer)
        return functional.interpolate(maps.clamp_min(0)[:, None], images.shape[2:], mode="bilinear")[:, 0].cpu()


def class_evidence(classifier: Classifier, images: Tensor, classes: Tensor, *, device: str = "cpu") -> Evidence:
    """The exact share of each place of the last map in a class's logit, on the CPU; what CAM clips and enlarges.

    ``images`` (B, 3, H, W) and ``classes`` (B,) as for ``class_activation_map``. Raises an InputError where the
    logit is no linear function of the last map's mean, up to the features' length.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> tuple(class_evidence(zero, torch.zeros(2, 3, 64, 64), torch.tensor([0, 1])).maps.shape)
    (2, 8, 8)
    """
    _require_fitting(classifier, images, classes)
    with _at_work(classifier, images):
        network = _private(classifier.network, device)
        images, classes = _moved(images, device), classes.to(device)
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
        _explained(network, None)
    return "grad-cam"


def scale_to_one(maps: Tensor) -> Tensor:
    """(..., H, W) maps >= 0, each divided by its maximum, for drawing; a map of zeros stays so.

    >>> scale_to_one(torch.tensor([[[1.0, 4.0]], [[0.0, 0.0]]])).tolist()
    [[[0.25, 1.0]], [[0.0, 0.0]]]
    """
    peak = maps.amax((-2, -1), keepdim=True)
    return maps / torch.where(peak > 0, peak, torch.ones_like(peak))


# ---- exact CAM


@dataclass(frozen=True)
class _LinearEnd:
    """embedding (B, D) = mean of the trunk's last map (B, C) @ weight.T + bias; weight (D, C), bias (D,)."""

    trunk: Any
    weight: Tensor
    bias: Tensor


def _linear_end(network: Network, image: Tensor) -> _LinearEnd | None:
    """What is linear behind the last map, tried on one image; None where something else stands there."""
    trunk, after = _trunk(network.encoder)
    if trunk is None:
        return None
    with torch.no_grad():
        last = trunk.forward_features(image)
        try:
            channels = _as_grid(last, trunk, image.shape[2:]).shape[1]
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
        expected = _as_grid(noise, trunk, image.shape[2:]).mean((2, 3)) @ weight.T + bias
        found = nn.Sequential(*after)(trunk.forward_head(noise))
    same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    return _LinearEnd(trunk, weight, bias) if same else None


def _evidence(network: Network, end: _LinearEnd, images: Tensor, classes: Tensor) -> Evidence:
    """The formula; a length of the features only divides, so the map stays exact."""
    with torch.no_grad():
        places = _as_grid(end.trunk.forward_features(images), end.trunk, images.shape[2:])
        embedding = places.mean((2, 3)) @ end.weight.T + end.bias
        length = embedding.norm(dim=1).clamp_min(1e-12) if network.normalised else torch.ones_like(embedding[:, 0])
        rows = network.head.weight[classes] / length[:, None]
        maps = torch.einsum("bc,bchw->bhw", rows @ end.weight, places)
        return Evidence(maps, rows @ end.bias + network.head.bias[classes])


# ---- Grad-CAM


def _grad_cam(network: Network, images: Tensor, classes: Tensor, layer: str | None) -> Tensor:
    """(B, h, w) maps as the package weighs them, before its own scaling, which would lose zero and size."""
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise InputError(
            "Grad-CAM needs the package grad-cam. Install it with: pip install 'shiftproof[cam]'"
        ) from error
    module, hints = _explained(network, layer)

    def as_grid(output: Any) -> Tensor:
        grid = _as_grid(output, hints, images.shape[2:])
        if output.any() and not grid.any():
            raise InputError(
                "the logits read the class token alone behind this layer, so no place gets a gradient. "
                "Name one before the last mixing of tokens with layer=, e.g. 'encoder.blocks.10'."
            )
        return grid.to(torch.float32, copy=True)  # what follows may change it in place

    method = GradCAM(network, [module], as_grid)
    watched = method.activations_and_grads
    targets = [ClassifierOutputTarget(k) for k in classes.tolist()]
    try:
        with torch.enable_grad():
            logits = watched(images.clone().requires_grad_(True))  # the parameters need no gradient here
            said = torch.stack([target(row) for target, row in zip(targets, logits, strict=True)])
            said.sum().backward()  # type: ignore[no-untyped-call]
        if not len(watched.activations) == len(watched.gradients) == 1:
            raise InputError(
                f"the {type(module).__name__} to explain runs {len(watched.activations)} times and gets "
                f"{len(watched.gradients)} gradients; it must be once each. Name another layer."
            )
        seen, gradient = watched.activations[0].numpy(), watched.gradients[0].numpy()
        return torch.from_numpy(method.get_cam_image(images, module, targets, seen, gradient))
    finally:
        watched.release()


def _explained(network: Network, layer: str | None) -> tuple[nn.Module, Any]:
    """The module whose output is explained, and the part of the encoder that knows its grid."""
    encoder: Any = network.encoder
    trunk, _ = _trunk(encoder)
    if layer is not None:
        modules = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
        if layer not in modules:
            raise InputError(f"the network has no layer {layer!r}. {nearest(layer, modules)}")
        return modules[layer], trunk or encoder
    if trunk is not None:
        # A class token reads the last block's input alone: behind that block its patches have no gradient.
        blocks = getattr(trunk, "blocks", None) if hasattr(trunk, "num_prefix_tokens") else None
        return (blocks[-1].norm1 if blocks and hasattr(blocks[-1], "norm1") else _tapped(trunk)), trunk
    if hasattr(encoder, "transformer") and hasattr(encoder.transformer, "resblocks"):
        return encoder.transformer.resblocks[-1].ln_1, encoder
    if hasattr(encoder, "layer4"):
        return encoder.layer4, encoder
    raise InputError(
        f"the architecture {type(encoder).__name__} is not known, so neither is the layer to explain. "
        f"Name the last one with a map, e.g. layer='encoder.NAME', of {listed(n for n, _ in encoder.named_children())}."
    )


def _tapped(trunk: Any) -> nn.Module:
    """A module that the last map passes through, put behind ``forward_features``, which is none."""
    tap, original = nn.Identity(), trunk.forward_features
    trunk.forward_features = lambda *args, **kwargs: tap(original(*args, **kwargs))
    return tap


# ---- encoders and their grids


def _trunk(encoder: Any) -> tuple[Any, list[nn.Module]]:
    """The part that follows timm's protocol, and what open_clip puts behind it; None where there is none."""
    if hasattr(encoder, "forward_features") and hasattr(encoder, "forward_head"):
        return encoder, []
    if hasattr(encoder, "trunk") and hasattr(encoder.trunk, "forward_head"):
        return encoder.trunk, list(encoder.head)
    return None, []


def _as_grid(output: Any, hints: Any, image_size: torch.Size) -> Tensor:
    """A layer's output as (B, C, h, w): channels moved, tokens laid out, class and register tokens dropped."""
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        told = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"the layer gives {told}; it must give a map, (B, C, h, w), or tokens, (B, N, C). Name another layer."
        )
    if output.ndim == 4:
        return output.permute(0, 3, 1, 2) if _channels_last(output.shape, hints, image_size) else output
    prefix, height, width = _token_grid(output.shape[1], hints, image_size)
    return output[:, prefix:].transpose(1, 2).reshape(len(output), -1, height, width)


def _channels_last(shape: torch.Size, hints: Any, image_size: torch.Size) -> bool:
    # Places have the image's proportions; where both readings have them, the model's own word counts.
    first = shape[2] * image_size[1] == shape[3] * image_size[0]
    last = shape[1] * image_size[1] == shape[2] * image_size[0]
    return last if first != last else getattr(hints, "output_fmt", "") == "NHWC"


def _token_grid(count: int, hints: Any, image_size: torch.Size) -> tuple[int, int, int]:
    """How many tokens stand before the patches, and the patches' rows and columns."""
    embed = getattr(hints, "patch_embed", hints)
    for prefix in (getattr(hints, "num_prefix_tokens", 0), 0, 1, 2):
        if (places := count - prefix) < 2:  # a class token alone is no map
            continue
        grids = [getattr(embed, "grid_size", None), _proportioned(places, image_size)]
        if isinstance(patch := getattr(embed, "patch_size", None), tuple):  # of this image, not of the usual one
            grids.insert(0, (image_size[0] // patch[0], image_size[1] // patch[1]))
        for grid in grids:
            if grid and grid[0] * grid[1] == places:
                return prefix, grid[0], grid[1]
    raise InputError(f"{count} tokens fill no grid of the image's proportions. Name a layer that gives a map.")


def _proportioned(places: int, image_size: torch.Size) -> tuple[int, int] | None:
    rows = max(round(math.sqrt(places * image_size[0] / image_size[1])), 1)
    columns = places // rows
    return (rows, columns) if rows * image_size[1] == columns * image_size[0] else None


# ---- the caller's things, left as they are


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
