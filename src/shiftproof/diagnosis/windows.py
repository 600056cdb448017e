"""Square windows that are pasted into images: their places, contents, sizes and edges."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional

from shiftproof.errors import InputError, require_between, require_choice
from shiftproof.mixing.masks import soft_mask

CONTENTS = ("grey", "noise", "image")
PLACES = ("away", "over", "anywhere")
_CANDIDATES = 64


@dataclass(frozen=True, order=True)
class Window:
    """One kind of window: its content, edge, side and place.

    ``content`` is "grey", "noise" or "image". ``edge``, in [0, 1], is that of ``soft_mask``: 0 is a hard edge, and
    otherwise the border fades out beyond the window over this fraction of half the side. ``side``, between 0 and 1,
    is a fraction of the image's side. ``place`` is "away" (as far from the object as the image allows), "over" the
    object, or "anywhere", which needs no object masks. Raises an InputError for other values.
    """

    content: str
    edge: float
    side: float
    place: str

    def __post_init__(self) -> None:
        require_choice("window content", self.content, CONTENTS)
        require_choice("window place", self.place, PLACES)
        require_between("a window's edge", self.edge, 0, 1)
        if not 0 < self.side < 1:
            raise InputError(f"a window's side is {self.side}; it must lie between 0 and 1.")

    @property
    def name(self) -> str:
        """The name of the window in tables and files."""
        edge = "hard" if self.edge == 0 else f"soft{self.edge:g}"
        return f"{self.content}-{edge}-{self.side:g}-{self.place}"


@dataclass(frozen=True)
class WindowSettings:
    """The contents, edges, sides and places whose combinations are the kinds of windows.

    >>> len(WindowSettings().windows(with_masks=True)), len(WindowSettings().windows(with_masks=False))
    (36, 18)
    """

    contents: tuple[str, ...] = CONTENTS
    edges: tuple[float, ...] = (0.0, 0.5)
    sides: tuple[float, ...] = (0.2, 0.35, 0.5)
    places: tuple[str, ...] = field(default=("away", "over"))

    def windows(self, *, with_masks: bool) -> tuple[Window, ...]:
        """Returns the kinds in a fixed order; without object masks, their place can only be "anywhere"."""
        places = self.places if with_masks else ("anywhere",)
        return tuple(Window(*combined) for combined in itertools.product(self.contents, self.edges, self.sides, places))


def place_windows(
    count: int, size: int, window: Window, generator: Generator, masks: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns (N, 2) centres and half sides, in pixels, of one window in each of N square images of ``size`` pixels.

    Of 64 random places inside the image, "away" chooses the one that covers least of the (N, size, size) object masks,
    "over" the one that covers most, and "anywhere" the first. Raises an InputError where the place needs masks and
    there are none.
    """
    half = max(round(window.side * size / 2), 1)
    room = size - 2 * half
    corners = (torch.rand(count, _CANDIDATES, 2, generator=generator) * (room + 1)).long()
    if window.place == "anywhere":
        chosen = torch.zeros(count, dtype=torch.long)
    elif masks is None:
        raise InputError(
            f"windows {window.place} the object need object masks. Give masks, or use the place 'anywhere'."
        )
    else:
        covered = _covered(masks, corners, 2 * half)
        chosen = covered.argmin(1) if window.place == "away" else covered.argmax(1)
    corner = corners[torch.arange(count), chosen]
    return (corner + half).float(), torch.full((count, 2), float(half))


def paste_windows(
    images: Tensor, window: Window, centres: Tensor, halves: Tensor, others: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Returns (N, 3, S, S) images in [0, 1] with one window each, and the (N, S, S) weights of the windows.

    "grey" is 0.5, "noise" is uniform in every pixel and channel, and "image" shows all of the image in ``others``
    (N, 3, S, S), shrunk to the window. ``centres`` and ``halves`` (N, 2) are those of ``place_windows``, in pixels.
    """
    size = (images.shape[2], images.shape[3])
    weights = soft_mask("square", size, centres, halves, window.edge)
    if window.content == "grey":
        content = torch.full_like(images, 0.5)
    elif window.content == "noise":
        content = torch.rand(images.shape, generator=generator)
    else:
        content = _shrunk(others, window, centres, halves)
    return torch.lerp(images, content, weights[:, None]), weights


def _shrunk(others: Tensor, window: Window, centres: Tensor, halves: Tensor) -> Tensor:
    """Returns the other images, shrunk to the windows and large enough to fill their soft borders as well."""
    content = torch.zeros_like(others)
    size = others.shape[-1]
    for i, (centre, half) in enumerate(zip(centres, halves[:, 0].tolist(), strict=True)):
        reach = round(half * (1 + window.edge))
        small = functional.interpolate(others[i : i + 1], (2 * reach, 2 * reach), mode="bilinear", antialias=True)[0]
        top, left = (centre - reach).long().tolist()
        first, last = (max(top, 0), max(left, 0)), (min(top + 2 * reach, size), min(left + 2 * reach, size))
        content[i, :, first[0] : last[0], first[1] : last[1]] = small[
            :, first[0] - top : last[0] - top, first[1] - left : last[1] - left
        ]
    return content


def _covered(masks: Tensor, corners: Tensor, side: int) -> Tensor:
    """Returns the (N, candidates) sums of the masks inside the candidate squares, computed from running sums."""
    sums = functional.pad(masks.double().cumsum(1).cumsum(2), (1, 0, 1, 0))
    rows = torch.arange(len(masks))[:, None]
    top, left = corners[..., 0], corners[..., 1]
    bottom, right = top + side, left + side
    return sums[rows, bottom, right] - sums[rows, top, right] - sums[rows, bottom, left] + sums[rows, top, left]
