"""Views of a drawing: a random affine placement and a background are drawn, then the three are composed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional

from shiftproof.errors import require_choice

BACKGROUNDS = ("white", "plain", "busy")


@dataclass(frozen=True)
class ViewGeometry:
    """Bounds on a drawing's size, rotation and offset in an image.

    ``scale`` is the range of the drawing's side as a fraction of the image's, ``degrees`` the largest rotation in
    either direction, ``spill`` the largest fraction of half the drawing's side that may lie outside the image.
    """

    scale: tuple[float, float] = (0.45, 0.95)
    degrees: float = 20.0
    spill: float = 0.15


def draw_placements(count: int, geometry: ViewGeometry, generator: Generator) -> Tensor:
    """Random (count, 2, 3) inverse affine maps, from image to drawing, as torch's ``affine_grid`` expects them."""
    low, high = geometry.scale
    scale = low + (high - low) * torch.rand(count, generator=generator)
    angle = torch.deg2rad(geometry.degrees * (2 * torch.rand(count, generator=generator) - 1))
    reach = (1 - scale + geometry.spill * scale).clamp(min=0)
    centre = reach[:, None] * (2 * torch.rand(count, 2, generator=generator) - 1)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    turn = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
    return torch.cat([turn, -(turn @ centre[:, :, None])], 2)


def draw_backgrounds(kind: str, count: int, size: int, generator: Generator) -> Tensor:
    """(count, 3, size, size) backgrounds in [0, 1]: white, one plain colour each, or busy.

    Raises an InputError for another kind.
    """
    require_choice("background", kind, BACKGROUNDS)
    if kind == "white":
        return torch.ones(count, 3, size, size)
    if kind == "plain":
        return torch.rand(count, 3, 1, 1, generator=generator).expand(count, 3, size, size)
    return _busy(count, size, generator)


def compose(drawings: Tensor, placements: Tensor, backgrounds: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B, 4, S, S) straight RGBA drawings in [0, 1] on (B, 3, H, W) backgrounds.

    Returns the (B, 3, H, W) images and the (B, H, W) object masks, which are the coverage of the drawings.
    """
    coverage = drawings[:, 3:]
    # Colours are premultiplied, so that those of fully transparent pixels do not bleed into the edge.
    premultiplied = torch.cat([drawings[:, :3] * coverage, coverage], 1)
    size = [len(drawings), 4, *backgrounds.shape[-2:]]
    grid = functional.affine_grid(placements, size, align_corners=False)
    placed = functional.grid_sample(premultiplied, grid, "bilinear", "zeros", align_corners=False)
    return placed[:, :3] + (1 - placed[:, 3:]) * backgrounds, placed[:, 3]


def _busy(count: int, size: int, generator: Generator) -> Tensor:
    """Colour noise at three scales under stripes and discs of random colours."""
    weights = torch.rand(count, 3, 1, 1, 1, generator=generator)
    weights = weights / weights.sum(1, keepdim=True)
    layers = [
        functional.interpolate(
            torch.rand(count, 3, cells, cells, generator=generator),
            size=(size, size),
            mode="bilinear",
            align_corners=False,
        )
        for cells in (3, 8, 20)
    ]
    canvas = (weights * torch.stack(layers, 1)).sum(1)
    canvas = ((canvas - 0.5) * 1.6 + 0.5).clamp(0, 1)
    axis = torch.linspace(-1, 1, size)
    y, x = axis[None, :, None], axis[None, None, :]
    angle = torch.pi * torch.rand(count, 1, 1, generator=generator)
    frequency = 6 + 18 * torch.rand(count, 1, 1, generator=generator)
    phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
    stripes = torch.sin(frequency * (x * torch.cos(angle) + y * torch.sin(angle)) + phase) > 0.3
    striped = torch.rand(count, 1, 1, generator=generator) < 0.5
    canvas = _paint(canvas, stripes & striped, generator)
    for _ in range(3):
        centre = 2 * torch.rand(count, 2, 1, 1, generator=generator) - 1
        radius = 0.1 + 0.35 * torch.rand(count, 1, 1, generator=generator)
        disc = (x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2 < radius**2
        canvas = _paint(canvas, disc, generator)
    return canvas


def _paint(canvas: Tensor, where: Tensor, generator: Generator) -> Tensor:
    colour = torch.rand(len(canvas), 3, 1, 1, generator=generator)
    return torch.where(where[:, None], 0.3 * canvas + 0.7 * colour, canvas)
