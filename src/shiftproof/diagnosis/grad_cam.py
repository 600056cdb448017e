"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) with the package grad-cam, and the layer that it explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.diagnosis.grids import layer_grid, timm_trunk
from shiftproof.errors import InputError, listed, nearest
from shiftproof.models.classifier import Network
from shiftproof.models.transformers import ImageTower


def grad_cam_maps(network: Network, images: Tensor, classes: Tensor, layer: str | None) -> Tensor:
    """Returns the (B, h, w) maps that the package computes, without its scaling, which would lose zero and size.

    They are the channels of the layer weighted by their mean gradients (Selvaraju et al. 2017, Eq. 1 and 2), here
    before the ReLU. ``images`` are (B, 3, H, W), ``classes`` (B,). Raises an InputError where the package is missing,
    and for layers that run several times, get no gradient or do not return a map.
    """
    try:
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    except ImportError as error:
        raise InputError(
            "Grad-CAM needs the package grad-cam. Install it with: pip install 'shiftproof[cam]'"
        ) from error
    module, hints = explained_module(network, layer)

    def as_grid(output: Any) -> Tensor:
        grid = layer_grid(output, hints, images.shape[2:])
        if output.any() and not grid.any():
            raise InputError(
                "the logits depend only on the class token of this layer, so no other place gets a gradient. "
                "Name a layer before the last attention block with `layer`, e.g. 'encoder.blocks.10'."
            )
        return grid.to(torch.float32, copy=True)  # the next module may change it in place

    method = GradCAM(network, [module], as_grid)
    watched = method.activations_and_grads
    targets = [ClassifierOutputTarget(k) for k in classes.tolist()]
    try:
        with torch.enable_grad():
            logits = watched(images.clone().requires_grad_(True))  # the parameters have no gradients here
            explained = torch.stack([target(row) for target, row in zip(targets, logits, strict=True)])
            explained.sum().backward()  # type: ignore[no-untyped-call]
        if not len(watched.activations) == len(watched.gradients) == 1:
            raise InputError(
                f"the {type(module).__name__} to explain runs {len(watched.activations)} times and gets "
                f"{len(watched.gradients)} gradients; both must be 1. Name another layer."
            )
        activation, gradient = watched.activations[0].numpy(), watched.gradients[0].numpy()
        return torch.from_numpy(method.get_cam_image(images, module, targets, activation, gradient))
    finally:
        watched.release()


def explained_module(network: Network, layer: str | None) -> tuple[nn.Module, Any]:
    """Returns the module whose output is explained, and the part of the encoder that describes its grid.

    Raises an InputError for an unknown ``layer``, and where the architecture is unknown and no layer is named.
    """
    encoder: Any = network.encoder
    trunk, _ = timm_trunk(encoder)
    if layer is not None:
        modules = {name: module for name, module in network.named_modules(remove_duplicate=False) if name}
        if layer not in modules:
            raise InputError(f"the network has no layer {layer!r}. {nearest(layer, modules)}")
        return modules[layer], trunk or encoder
    if trunk is not None:
        # The class token attends to the input of the last block; after that block, patches have no gradient.
        blocks = getattr(trunk, "blocks", None) if hasattr(trunk, "num_prefix_tokens") else None
        return (blocks[-1].norm1 if blocks and hasattr(blocks[-1], "norm1") else _tapped(trunk)), trunk
    if hasattr(encoder, "transformer") and hasattr(encoder.transformer, "resblocks"):
        return encoder.transformer.resblocks[-1].ln_1, encoder
    if isinstance(encoder, ImageTower):
        return encoder.vision_model.encoder.layers[-1].layer_norm1, encoder  # type: ignore[union-attr, index]
    if hasattr(encoder, "layer4"):
        return encoder.layer4, encoder
    raise InputError(
        f"the architecture {type(encoder).__name__} is unknown, so you must name the layer to explain. "
        "Give the last layer that returns a map as `layer`, e.g. 'encoder.NAME' with NAME one of "
        f"{listed(n for n, _ in encoder.named_children())}."
    )


def _tapped(trunk: Any) -> nn.Module:
    """Returns a module through which the last map passes, added after ``forward_features``, which is a method."""
    tap, original = nn.Identity(), trunk.forward_features
    trunk.forward_features = lambda *args, **kwargs: tap(original(*args, **kwargs))
    return tap
