"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) through the package grad-cam, and the layer that it explains."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.diagnosis.grids import layer_grid, timm_trunk
from shiftproof.errors import InputError, listed, nearest
from shiftproof.models.classifier import Network


def grad_cam_maps(network: Network, images: Tensor, classes: Tensor, layer: str | None) -> Tensor:
    """(B, h, w) maps as the package weighs them, before its own scaling, which would lose zero and size."""
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


def explained_module(network: Network, layer: str | None) -> tuple[nn.Module, Any]:
    """The module whose output is explained, and the part of the encoder that knows its grid."""
    encoder: Any = network.encoder
    trunk, _ = timm_trunk(encoder)
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
