"""The L2 penalty on the distance to the start, as a proximal step after each update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier


class Anchored(NamedTuple):
    """A parameter, the value that it is pulled to, and its layer's share of the learning rate."""

    parameter: nn.Parameter
    origin: Tensor
    share: float


def anchored_parameters(
    module: nn.Module, optimizer: torch.optim.Optimizer, start: Classifier, settings: FinetuneSettings
) -> list[Anchored]:
    """The trainable parameters with the start's values; empty without an L2 penalty on the distance to the start."""
    if not settings.l2_to_start:
        return []
    origin = start.state_dict() if settings.recipe != "flyp" else module.state_dict()  # both towers begin at theta_0
    shares = {id(p): group.get("lr_share", 1.0) for group in optimizer.param_groups for p in group["params"]}
    return [
        Anchored(p, origin[name].to(p.device, copy=True), shares[id(p)])
        for name, p in module.named_parameters()
        if p.requires_grad
    ]


@torch.no_grad()
def pull_to_start(anchor: Sequence[Anchored], strength: float) -> None:
    """The proximal step of (l2 / 2) ||theta - theta_0||^2 at ``strength`` = lr l2, which is stable at any strength."""
    for parameter, origin, share in anchor:
        parameter.lerp_(origin, share * strength / (1 + share * strength))
