"""SmoothMix and its family: each mixing draws a plan and applies it to images and labels.

Every mixing is called like those of torchvision, ``(images, labels) -> (images, targets)``, whether after the loader,
in a ``collate_fn`` or in any training loop.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Generator, Tensor

from shiftproof.errors import InputError, require_between, require_choice
from shiftproof.mixing.masks import KINDS, PAPER_EDGES, mask_means
from shiftproof.mixing.plans import FILLINGS, MixPlan, mix_images
from shiftproof.mixing.targets import mix_targets

LARGEST_CONCENTRATION = 1e3


@dataclass(frozen=True, kw_only=True)
class Mixing(ABC):
    """The base of all mixings: each sample is mixed with ``probability``, targets are smoothed by ``label_smoothing``.

    Both lie between 0 and 1; ``num_classes`` is needed if labels are class positions. Every mixing raises an InputError
    for a setting that is out of range.
    """

    probability: float = 1.0
    label_smoothing: float = 0.0
    num_classes: int | None = None

    def __post_init__(self) -> None:
        require_between("probability", self.probability, 0, 1)
        require_between("label_smoothing", self.label_smoothing, 0, 1)

    def __call__(
        self, images: Tensor, labels: Tensor, *, generator: Generator | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mixes (B, C, H, W) images and their (B,) positions or (B, K) targets into images and (B, K) soft targets.

        Draws from ``generator``, or from torch's global generator; ``out`` is a buffer for the images. The arguments
        are not modified. A batch of one has no partner and is returned unmixed, except by Cutout. Raises an InputError
        for wrong shapes or dtypes and for labels that are out of range.
        """
        if images.ndim != 4:
            raise InputError(f"images have the shape {tuple(images.shape)}; they must be (B, C, H, W).")
        height, width = images.shape[2:]
        plan = self.plan(len(images), (height, width), generator)
        targets = mix_targets(labels, plan, self.num_classes, label_smoothing=self.label_smoothing)
        return mix_images(images, plan, out=out), targets

    def plan(self, count: int, size: tuple[int, int], generator: Generator | None = None) -> MixPlan:
        """Draws the plan for ``count`` images of ``size`` (H, W), which ``mix_images`` can apply repeatedly."""
        full_plan = self._draw(count, size, generator)
        is_mixed = _uniform(generator, count) < self.probability
        return full_plan if bool(is_mixed.all()) else _where(is_mixed, full_plan, _unmixed(count, size))

    @abstractmethod
    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        """A plan that mixes every sample."""


@dataclass(frozen=True, kw_only=True)
class SmoothMix(Mixing):
    """Blends two images by a soft mask with the anchor inside (SmoothMix, Lee et al., CVPRW 2020).

    The image is x = G x_a + (1 - G) x_b and the target y = w y_a + (1 - w) y_b, with w the mean of the mask G. The
    ``kind`` "circle" is a Gaussian around a uniform centre, whose standard deviation is uniform in ``spread`` times the
    shorter side. The ``kind`` "square" is CutMix's box, drawn with ``concentration``, with a linear ramp. The ``edge``
    None is the paper's (1 for the circle, 0.1 of the half side for the square), 0 is hard; see ``soft_mask``.

    >>> images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    >>> mixed, targets = SmoothMix(kind="circle", num_classes=8)(images, labels)
    >>> mixed.shape, targets.shape
    (torch.Size([8, 3, 32, 32]), torch.Size([8, 8]))
    """

    kind: str = "circle"
    spread: tuple[float, float] = (0.25, 0.5)
    concentration: float = 1.0
    edge: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("SmoothMix kind", self.kind, KINDS)
        object.__setattr__(self, "spread", tuple(self.spread))
        if not (len(self.spread) == 2 and 0 < self.spread[0] <= self.spread[1] < math.inf):
            raise InputError(f"spread is {self.spread}; it must be two numbers above 0, the smaller one first.")
        _require_concentration(self.concentration)
        if self.edge is not None:
            require_between("edge", self.edge, 0, 1)

    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        edge = PAPER_EDGES[self.kind] if self.edge is None else self.edge
        if self.kind == "square":
            return _with_shape("square", *_boxes(count, size, self.concentration, generator), edge, size, generator)
        draws = _uniform(generator, count, 3)
        centres = draws[:, :2] * torch.tensor(size)
        low, high = self.spread
        deviation = (low + (high - low) * draws[:, 2:]) * min(size)
        return _with_shape("circle", centres, deviation.expand(-1, 2), edge, size, generator)


@dataclass(frozen=True, kw_only=True)
class CutMix(Mixing):
    """Pastes a box of the partner into the anchor (CutMix, arXiv 1905.04899); each sample has a different box.

    The box covers a share 1 - Beta(c, c) of the area, where c is the ``concentration``, and its centre is uniform; the
    label counts only the part of it inside the image. ``edge`` softens the box; the partner remains inside.

    >>> mixed, targets = CutMix(num_classes=4)(torch.rand(4, 3, 8, 8), torch.arange(4))
    >>> targets.sum(1).round(decimals=5)
    tensor([1., 1., 1., 1.])
    """

    concentration: float = 1.0
    edge: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_concentration(self.concentration)
        require_between("edge", self.edge, 0, 1)

    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        centres, extents = _boxes(count, size, self.concentration, generator)
        return _with_shape("square", centres, extents, self.edge, size, generator, anchor_inside=False)


@dataclass(frozen=True, kw_only=True)
class MixUp(Mixing):
    """Blends two whole images with one weight, w ~ Beta(c, c) (MixUp, arXiv 1710.09412), drawn for each sample.

    >>> mixed, targets = MixUp(num_classes=4, concentration=0.2)(torch.rand(4, 3, 8, 8), torch.arange(4))
    >>> mixed.shape
    torch.Size([4, 3, 8, 8])
    """

    concentration: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_concentration(self.concentration)

    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        weights = _beta(_uniform(generator, count), self.concentration)
        partners = _partners(count, generator)
        return replace(_unmixed(count, size), shapes=("even",) * count, partners=partners, weights=weights)


@dataclass(frozen=True, kw_only=True)
class Cutout(Mixing):
    """Covers a square of the anchor and leaves its label unchanged (Cutout, arXiv 1708.04552).

    The square's side is ``side`` times the image's shorter one; its centre is uniform, so part of it may lie outside.
    The ``fill`` "zero" sets pixels to 0, which is black before normalisation and the data's mean colour after it;
    "mean" sets them to the image's mean colour and "noise" to Gaussian noise with its mean and standard deviation,
    whether the image is normalised or not; "partner" takes them from another image.

    >>> mixed, targets = Cutout(num_classes=4, fill="zero")(torch.ones(4, 3, 8, 8), torch.arange(4))
    >>> bool((mixed == 0).any()), bool((targets == torch.eye(4)).all())
    (True, True)
    """

    side: float = 0.5
    fill: str = "mean"
    edge: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("side", self.side, 0, 1)
        require_choice("fill", self.fill, FILLINGS)
        require_between("edge", self.edge, 0, 1)

    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        extents = torch.full((count, 2), float(round(self.side * min(size) / 2)))
        centres = _pixel_corners(count, size, generator)
        plan = _with_shape("square", centres, extents, self.edge, size, generator, anchor_inside=False)
        seeds = torch.randint(2**62, (count,), generator=generator, device=_device(generator)).cpu()
        return replace(plan, fillings=(self.fill,) * count, noise_seeds=seeds, weights=torch.ones(count))


@dataclass(frozen=True, kw_only=True)
class MixChoice(Mixing):
    """Draws one of several mixings for each sample, in proportion to ``weights``, which are equal if None.

    The ``label_smoothing`` and ``num_classes`` of the choice apply, not those of its members; a member's
    ``probability`` applies as well.

    >>> choice = MixChoice(mixings=(SmoothMix(), CutMix()), weights=(3, 1), num_classes=4)
    >>> mixed, targets = choice(torch.rand(4, 3, 8, 8), torch.arange(4))
    """

    mixings: Sequence[Mixing]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "mixings", tuple(self.mixings))
        object.__setattr__(self, "weights", tuple(self.weights or (1.0,) * len(self.mixings)))
        if not self.mixings or len(self.weights or ()) != len(self.mixings):
            raise InputError(
                f"there are {len(self.mixings)} mixings and {len(self.weights or ())} weights; every mixing needs one."
            )
        if not all(0 <= weight < math.inf for weight in self.weights or ()) or not sum(self.weights or ()) > 0:
            raise InputError(f"weights are {self.weights}; they must be at least 0, and one must be above 0.")

    def _draw(self, count: int, size: tuple[int, int], generator: Generator | None) -> MixPlan:
        shares = torch.tensor(self.weights).cumsum(0) / sum(self.weights or ())
        chosen = torch.searchsorted(shares, _uniform(generator, count), right=True).clamp(max=len(self.mixings) - 1)
        plans = [mixing.plan(count, size, generator) for mixing in self.mixings]
        plan = plans[0]
        for member, other in enumerate(plans[1:], start=1):
            plan = _where(chosen == member, other, plan)
        return plan


def _uniform(generator: Generator | None, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator, device=_device(generator)).cpu()


def _device(generator: Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _partners(count: int, generator: Generator | None) -> Tensor:
    """(B,) partners by one random shift of the batch: no sample is its own partner, and each is a partner once.

    In a shuffled batch all pairings are equally likely. Neighbours in memory remain neighbours, so reads are fast.
    """
    shift = 1 + int(float(_uniform(generator, 1)) * (count - 1)) if count > 1 else 0
    return (torch.arange(count) + shift) % max(count, 1)


def _pixel_corners(count: int, size: tuple[int, int], generator: Generator | None) -> Tensor:
    return (_uniform(generator, count, 2) * torch.tensor(size)).floor()


def _boxes(
    count: int, size: tuple[int, int], concentration: float, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """(B, 2) centres and (B, 2) half sides of CutMix's boxes, in whole pixels as in the paper's code."""
    anchor_shares = _beta(_uniform(generator, count), concentration)
    halves = (0.5 * (1 - anchor_shares).sqrt()[:, None] * torch.tensor(size)).floor()
    return _pixel_corners(count, size, generator), halves


def _beta(uniform: Tensor, concentration: float) -> Tensor:
    """Beta(c, c) draws from as many uniform ones, by the inverse of the distribution function."""
    if concentration == 1:
        return uniform
    from scipy.special import betaincinv

    draws = betaincinv(concentration, concentration, uniform.double().numpy())
    return torch.as_tensor(draws, dtype=torch.float32)


def _with_shape(
    shape: str,
    centres: Tensor,
    extents: Tensor,
    edge: float,
    size: tuple[int, int],
    generator: Generator | None,
    *,
    anchor_inside: bool = True,
) -> MixPlan:
    """A plan with one shape per sample and the label weights that follow from its masks."""
    count = len(centres)
    edges = torch.full((count,), float(edge))
    inside = mask_means(shape, size, centres, extents, edges)
    return replace(
        _unmixed(count, size),
        shapes=(shape,) * count,
        centres=centres,
        extents=extents,
        edges=edges,
        anchor_inside=torch.full((count,), anchor_inside),
        partners=_partners(count, generator),
        weights=inside if anchor_inside else 1 - inside,
    )


def _unmixed(count: int, size: tuple[int, int]) -> MixPlan:
    """The plan that leaves every sample unchanged."""
    return MixPlan(
        size=(int(size[0]), int(size[1])),
        shapes=("none",) * count,
        centres=torch.zeros(count, 2),
        extents=torch.ones(count, 2),
        edges=torch.zeros(count),
        anchor_inside=torch.ones(count, dtype=torch.bool),
        partners=torch.arange(count),
        fillings=("partner",) * count,
        noise_seeds=torch.zeros(count, dtype=torch.long),
        weights=torch.ones(count),
    )


def _where(chosen: Tensor, first: MixPlan, second: MixPlan) -> MixPlan:
    """A plan that follows ``first`` for the samples where the (B,) ``chosen`` is true, and ``second`` for the rest."""
    picks = chosen.tolist()

    def merged(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor):
            return torch.where(chosen if a.ndim == 1 else chosen[:, None], a, b)
        return tuple(x if pick else y for pick, x, y in zip(picks, a, b, strict=True))

    names = [entry.name for entry in fields(MixPlan) if entry.name != "size"]
    return replace(first, **{name: merged(getattr(first, name), getattr(second, name)) for name in names})


def _require_concentration(value: float) -> None:
    require_between("concentration", value, 1e-3, LARGEST_CONCENTRATION)
