"""The tiny image tower: a small convolutional network registered with timm, so that open_clip can build it."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, checkpoint_seq, register_model
from torch import Tensor, nn

from shiftproof.storage import packaged_path

TINY_ARCHITECTURE = "shiftproof-tiny"
TINY_CONFIG = packaged_path("shiftproof", "assets", f"{TINY_ARCHITECTURE}.json")
TINY_WEIGHTS = packaged_path("shiftproof", "assets", f"{TINY_ARCHITECTURE}.safetensors")
TINY_CARD = packaged_path("shiftproof", "assets", f"{TINY_ARCHITECTURE}.card.json")

# timm's names of the tower by size. open_clip passes no arguments to a timm model, so every width has a name.
TINY_SIZES = {
    "sixth": "shiftproof_tiny_sixth",
    "third": "shiftproof_tiny_third",
    "half": "shiftproof_tiny_half",
    "whole": "shiftproof_tiny",
}

__all__ = [
    "TINY_ARCHITECTURE",
    "TINY_CARD",
    "TINY_CONFIG",
    "TINY_SIZES",
    "TINY_WEIGHTS",
    "TinyNet",
    "shiftproof_tiny",
    "shiftproof_tiny_half",
    "shiftproof_tiny_sixth",
    "shiftproof_tiny_third",
]


class _Block(nn.Module):
    """Two 3x3 convolutions with GroupNorm and a shortcut; plain convolutions are fastest on a CPU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class TinyNet(nn.Module):
    """(B, 3, 64, 64) images to (B, 192) features: a stem of stride 4, then maps of 16x16, 8x8 and 8x8.

    It follows timm's protocol (``forward_features``, ``forward_head``, ``reset_classifier``); the last
    map is pooled by its mean, so that a class activation map of a linear head on it is exact.
    """

    def __init__(
        self,
        num_classes: int = 0,
        in_chans: int = 3,
        global_pool: str = "avg",
        widths: tuple[int, int, int] = (48, 96, 192),
        **_: Any,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.stem = nn.Sequential(
            nn.Conv2d(in_chans, widths[0], 7, 4, 3, bias=False), nn.GroupNorm(8, widths[0]), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            _Block(widths[0], widths[0], 1), _Block(widths[0], widths[1], 2), _Block(widths[1], widths[2], 1)
        )
        self.grad_checkpointing = False
        self.reset_classifier(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Sets whether the backward pass recomputes the blocks' activations, which saves memory."""
        self.grad_checkpointing = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the linear head; without classes, the network returns the pooled features."""
        self.num_classes = num_classes
        self.global_pool = "avg" if global_pool is None else global_pool
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The linear head, or the identity."""
        return self.fc

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to the last map, (B, 192, H / 8, W / 8)."""
        x = self.stem(x)
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(self.blocks, x)  # type: ignore[no-any-return]
        return self.blocks(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over the map, then the head unless ``pre_logits``."""
        if self.global_pool:
            x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model  # type: ignore[untyped-decorator]
def shiftproof_tiny(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    """The tower of 0.7 M parameters; its weights come with the CLIP model around it, not from timm."""
    return _tower("shiftproof_tiny", pretrained, kwargs)


@register_model  # type: ignore[untyped-decorator]
def shiftproof_tiny_half(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    """The tower with half the channels; for this and smaller ones there are no weights."""
    return _tower("shiftproof_tiny_half", pretrained, {**kwargs, "widths": (24, 48, 96)})


@register_model  # type: ignore[untyped-decorator]
def shiftproof_tiny_third(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    """The tower with a third of the channels."""
    return _tower("shiftproof_tiny_third", pretrained, {**kwargs, "widths": (16, 32, 64)})


@register_model  # type: ignore[untyped-decorator]
def shiftproof_tiny_sixth(pretrained: bool = False, **kwargs: Any) -> TinyNet:
    """The tower with a sixth of the channels."""
    return _tower("shiftproof_tiny_sixth", pretrained, {**kwargs, "widths": (8, 16, 32)})


def _tower(name: str, pretrained: bool, kwargs: dict[str, Any]) -> TinyNet:
    cfg = {
        "input_size": (3, 64, 64),
        "pool_size": (8, 8),
        "num_classes": 0,
        "first_conv": "stem.0",
        "classifier": "fc",
    }
    return build_model_with_cfg(  # type: ignore[no-any-return]
        TinyNet, name, pretrained, pretrained_cfg=cfg, pretrained_strict=False, **_supported(kwargs)
    )


def _supported(kwargs: dict[str, Any]) -> dict[str, Any]:
    # open_clip passes arguments of timm's bookkeeping along; the config above replaces them.
    return {
        name: value
        for name, value in kwargs.items()
        if name not in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    }
