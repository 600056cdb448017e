"""Masks with the weights of a shape, whose edge ranges from hard to soft (SmoothMix, CVPRW 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from shiftproof.errors import InputError, require_at_least, require_choice

KINDS = ("circle", "square")
PAPER_EDGES = {"circle": 1.0, "square": 0.1}


def soft_mask(
    kind: str,
    size: tuple[int, int],
    centres: Tensor,
    extents: Tensor,
    edges: Tensor | float | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """(B, H, W) masks in [0, 1] that fall from 1 inside the shape to 0 outside it, on the device of ``centres``.

    ``centres`` (B, 2) are (y, x) in pixels from the upper left corner, where the first pixel's centre is (0.5, 0.5).
    ``extents`` (B, 2) are half the square's height and width, or the circle's standard deviations along y and x.
    ``edges``, a number or (B,), lies between 0 (hard) and 1; None gives the edges of the SmoothMix paper (Lee et al.,
    CVPRW 2020), 1 for the circle and 0.1 for the square:

    - A circle's mask is exp(-q ** (1 / edge)) with q = dy^2 / 2 sy^2 + dx^2 / 2 sx^2. Edge 1 is the Gaussian, edge 0
      the disc q <= 1, whose area on an unbounded plane equals that under the Gaussian.
    - A square's mask is the product over both axes of a weight that is 1 up to the half side and falls linearly to 0
      over ``edge`` times the half side beyond it; edge 0 is CutMix's box.

    Raises an InputError for an unknown kind, wrong shapes, or an edge outside the range.

    >>> soft_mask("square", (1, 6), torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 1.0]]), 0.0)
    tensor([[[0., 1., 1., 0., 0., 0.]]])
    >>> soft_mask("circle", (3, 3), torch.tensor([[1.5, 1.5]]), torch.tensor([[1.0, 1.0]]))[0, 1]
    tensor([0.6065, 1.0000, 0.6065])
    """
    edges = _checked(kind, size, centres, extents, edges).to(centres.device)
    if kind == "square" or bool((edges == 1).all()):
        rows, columns = profiles(kind, size, centres, extents, edges)
        return (rows[:, :, None] * columns[:, None, :]).to(dtype)
    down, across = _squared(size, centres, extents)
    quotient = down[:, :, None] + across[:, None, :]
    power = 1 / edges.clamp(min=torch.finfo(torch.float32).tiny)[:, None, None]
    soft = torch.exp(-(quotient**power))
    return torch.where(edges[:, None, None] > 0, soft, (quotient <= 1).float()).to(dtype)


def hard_mask(kind: str, size: tuple[int, int], centres: Tensor, extents: Tensor) -> Tensor:
    """(B, H, W) masks of 0 and 1, which is ``soft_mask`` at edge 0: the disc or CutMix's box.

    Raises an InputError for an unknown kind or wrong shapes.

    >>> hard_mask("circle", (1, 4), torch.tensor([[0.5, 2.0]]), torch.tensor([[1.0, 1.0]]))
    tensor([[[0., 1., 1., 0.]]])
    """
    return soft_mask(kind, size, centres, extents, 0.0)


def profiles(
    kind: str, size: tuple[int, int], centres: Tensor, extents: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, H) rows and (B, W) columns whose outer product is the mask, for any square and for a circle of edge 1."""
    if kind == "circle":
        down, across = _squared(size, centres, extents)
        return down.neg_().exp_(), across.neg_().exp_()
    down, across = _offsets(size, centres)
    return _trapezoid(down.abs_(), extents[:, :1], edges[:, None]), _trapezoid(
        across.abs_(), extents[:, 1:], edges[:, None]
    )


def mask_means(kind: str, size: tuple[int, int], centres: Tensor, extents: Tensor, edges: Tensor) -> Tensor:
    """(B,) means of the masks over the pixels; only masks that are not outer products are computed in full."""
    if kind == "square" or bool((edges == 1).all()):
        rows, columns = profiles(kind, size, centres, extents, edges)
        return rows.mean(1) * columns.mean(1)
    parts = zip(*(torch.split(x, 8) for x in (centres, extents, edges)), strict=True)
    return torch.cat([soft_mask(kind, size, *part).mean((1, 2)) for part in parts])


def _trapezoid(distance: Tensor, half: Tensor, edge: Tensor) -> Tensor:
    ramp = (edge * half).clamp(min=torch.finfo(torch.float32).tiny)
    return torch.where(distance <= half, 1.0, ((half + ramp - distance) / ramp).clamp(0, 1))


def _squared(size: tuple[int, int], centres: Tensor, extents: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H) and (B, W) halves of the squared offsets, measured in standard deviations."""
    down, across = _offsets(size, centres)
    return down.div_(extents[:, :1]).square_().mul_(0.5), across.div_(extents[:, 1:]).square_().mul_(0.5)


def _offsets(size: tuple[int, int], centres: Tensor) -> tuple[Tensor, Tensor]:
    """(B, H) and (B, W) offsets of the pixels' centres from the shape's centre, along y and along x."""
    down, across = (
        torch.arange(length, device=centres.device) + 0.5 - centres[:, axis, None] for axis, length in enumerate(size)
    )
    return down, across


def _checked(
    kind: str, size: tuple[int, int], centres: Tensor, extents: Tensor, edges: Tensor | float | None
) -> Tensor:
    """The edges as a (B,) tensor; raises an InputError if an argument is out of range."""
    require_choice("mask kind", kind, KINDS)
    for length in size:
        require_at_least("the mask's height and width", length, 1)
    if centres.ndim != 2 or centres.shape[1] != 2 or centres.shape != extents.shape:
        raise InputError(
            f"centres and extents have the shapes {tuple(centres.shape)} and {tuple(extents.shape)}; "
            "both must be (B, 2), as (y, x)."
        )
    if kind == "circle" and not bool((extents > 0).all()):
        raise InputError("a circle's extents must be above 0. Give its standard deviations in pixels.")
    edges = torch.as_tensor(PAPER_EDGES[kind] if edges is None else edges, dtype=torch.float32)
    if not bool(((edges >= 0) & (edges <= 1)).all()):
        raise InputError(f"edges are {edges.tolist()}; they must lie between 0 (hard) and 1.")
    return edges.expand(len(centres))
