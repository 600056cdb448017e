"""Random changes of colour and sharpness, per sample, for contrastive pretraining."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

_LUMA = (0.299, 0.587, 0.114)


def vary_appearance(images: Tensor, generator: Generator) -> Tensor:
    """Varies (B, 3, H, W) images in [0, 1]; each kind of change applies to a sample with its probability.

    The changes are channel gains (50 %), grey (15 %), blur (20 %), contrast (30 %), noise (10 %) and inversion (5 %).
    """
    images = images.clone()

    def change(probability: float, apply: Callable[[Tensor], Tensor]) -> None:
        affected = torch.rand(len(images), generator=generator) < probability
        images[affected] = apply(images[affected])

    def uniform(like: Tensor, low: float, high: float, channels: int = 1) -> Tensor:
        return low + (high - low) * torch.rand(len(like), channels, 1, 1, generator=generator)

    change(0.5, lambda x: x * uniform(x, 0.6, 1.2, 3))
    change(0.15, lambda x: (x * torch.tensor(_LUMA).view(3, 1, 1)).sum(1, keepdim=True).expand_as(x))
    change(0.2, lambda x: _blur(x, uniform(x, 0.5, 1.8)))
    change(0.3, lambda x: (x - 0.5) * uniform(x, 0.4, 1.3) + 0.5)
    change(0.1, lambda x: x + uniform(x, 0.02, 0.15) * torch.randn(x.shape, generator=generator))
    change(0.05, lambda x: 1 - x)
    return images.clamp_(0, 1)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """A Gaussian blur of 7 taps, with one width per sample, computed as a grouped separable convolution."""
    count, channels, height, width = images.shape
    if count == 0:
        return images
    taps = torch.exp(-(torch.arange(-3, 4.0) ** 2) / (2 * sigma.view(count, 1) ** 2))
    taps = (taps / taps.sum(1, keepdim=True)).repeat_interleave(channels, 0)
    padded = functional.pad(images, (3, 3, 3, 3), mode="replicate").view(1, count * channels, height + 6, width + 6)
    rows = functional.conv2d(padded, taps.view(-1, 1, 7, 1), groups=count * channels)
    return functional.conv2d(rows, taps.view(-1, 1, 1, 7), groups=count * channels).view_as(images)
