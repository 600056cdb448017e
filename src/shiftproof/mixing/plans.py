"""What a mixing will do to a batch, drawn before any pixel is touched, and the pure function that does it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftproof.errors import InputError, require_choice
from shiftproof.mixing.masks import KINDS, profiles, soft_mask

SHAPES = ("circle", "square", "even", "none")
FILLINGS = ("partner", "zero", "mean", "noise")
# How many elements the masks of a run may have: with fewer, starting operations costs too much, with more, caches miss.
_FEW, _FEWER = 1 << 19, 1 << 17


@dataclass(frozen=True)
class MixPlan:
    """For each of B samples: where which shape stands, what comes from elsewhere, and the labels' weights.

    ``size`` is the images' (H, W). ``shapes`` names one of circle, square, even (``weights`` everywhere: MixUp) or none
    (left as it is). ``centres``, ``extents`` (B, 2) and ``edges`` (B,) are what ``soft_mask`` takes. Inside the shape
    stands the anchor (SmoothMix) where ``anchor_inside`` (B,), else what is mixed in (CutMix, Cutout): by ``fillings``
    the image at position ``partners`` (B,), zeros, the anchor's mean colour, or noise with the anchor's mean and
    deviation, drawn from ``noise_seeds`` (B,). ``weights`` (B,) float32 is the share of the anchor's label. All
    tensors are on the CPU.
    """

    size: tuple[int, int]
    shapes: tuple[str, ...]
    centres: Tensor
    extents: Tensor
    edges: Tensor
    anchor_inside: Tensor
    partners: Tensor
    fillings: tuple[str, ...]
    noise_seeds: Tensor
    weights: Tensor

    def __post_init__(self) -> None:
        for shape in set(self.shapes):
            require_choice("shape", shape, SHAPES)
        for filling in set(self.fillings):
            require_choice("filling", filling, FILLINGS)

    def __len__(self) -> int:
        return len(self.shapes)

    def rows_of(self, *shapes: str) -> Tensor:
        """The positions of the samples with one of the shapes."""
        return torch.tensor([i for i, shape in enumerate(self.shapes) if shape in shapes], dtype=torch.long)


def anchor_weights(plan: MixPlan, *, device: str | torch.device = "cpu") -> Tensor:
    """(B, H, W) float32: every pixel's weight of the anchor. Their means are the labels' weights, but for Cutout's.

    ``device`` is where the tensor is made. No model runs here, so the default is the CPU, where plans are.

    >>> from shiftproof.mixing.methods import MixUp
    >>> plan = MixUp().plan(2, (4, 4), torch.Generator().manual_seed(0))
    >>> bool((anchor_weights(plan).mean((1, 2)) == plan.weights).all())
    True
    """
    found = torch.ones(len(plan), *plan.size, device=device)
    even = plan.rows_of("even")
    found[even] = plan.weights[even, None, None].to(device)
    for kind in KINDS:
        rows = plan.rows_of(kind)
        geometry = (part[rows].to(device) for part in (plan.centres, plan.extents, plan.edges))
        inside = soft_mask(kind, plan.size, *geometry)
        found[rows] = torch.where(plan.anchor_inside[rows, None, None].to(device), inside, 1 - inside)
    return found


def mix_images(images: Tensor, plan: MixPlan, *, out: Tensor | None = None) -> Tensor:
    """(B, C, H, W) images mixed as the plan says, into ``out`` or a new tensor; the input stays as it was.

    Floating images of any range, normalised or not, are mixed in their own dtype, uint8 ones in float32 and rounded.
    Memory layout (channels-last too) and device are the input's. ``out`` must have the shape, dtype and device of
    ``images`` and share no memory with them. The same images and plan give the same bits. Gradients flow back to
    images that require them.

    >>> from shiftproof.mixing.methods import CutMix
    >>> images = torch.rand(4, 3, 8, 8)
    >>> plan = CutMix().plan(len(images), (8, 8), torch.Generator().manual_seed(0))
    >>> bool((mix_images(images, plan) == mix_images(images, plan, out=torch.empty_like(images))).all())
    True
    """
    _require_images(images, plan)
    mixed = torch.empty_like(images) if out is None else _checked_buffer(images, out)
    differentiated = images.requires_grad and torch.is_grad_enabled()
    (_mix_in_runs if images.device.type == "cpu" and not differentiated else _mix_together)(images, plan, mixed)
    return mixed


def _mix_together(images: Tensor, plan: MixPlan, mixed: Tensor) -> None:
    """The whole batch in a few operations, as a GPU wants it; autograd can go back through them."""
    working = images.dtype if images.is_floating_point() else torch.float32
    others = images[plan.partners.to(images.device)].to(working)
    for i, filling in enumerate(plan.fillings):
        if filling != "partner":
            others[i] = _filled(images[i], filling, int(plan.noise_seeds[i]))
    weights = anchor_weights(plan, device=images.device)[:, None].to(working)
    blended = torch.lerp(others, images.to(working), weights)
    mixed.copy_(blended if images.is_floating_point() else blended.round_())


def _mix_in_runs(images: Tensor, plan: MixPlan, mixed: Tensor) -> None:
    """A few samples at a time, so that their masks stay in the CPU's caches."""
    interleaved = not images.is_contiguous() and _channels_last(images) and _channels_last(mixed)
    repeat = images.shape[1] if interleaved else 1
    planes, target = _planes(images, interleaved), _planes(mixed, interleaved)
    floating = images.is_floating_point()
    working = images.dtype if floating else torch.float32
    longest = min(len(plan), (_FEW if floating else _FEWER) // (plan.size[0] * plan.size[1] * repeat) or 1)
    masks = _Masks(plan, repeat, working, longest)
    for run in _runs(plan, longest):
        here = slice(run.start, run.stop)
        anchors = planes[here]
        if run.way == "keep":
            target[here].copy_(anchors)
            continue
        others = planes[run.partner : run.partner + run.stop - run.start]
        if run.way == "fill":
            filling, seed = plan.fillings[run.start], int(plan.noise_seeds[run.start])
            others = _filled(anchors[0], filling, seed, repeat)[None]
        outside, inside = (others, anchors) if run.anchor_inside else (anchors, others)
        if floating:
            torch.lerp(outside, inside, masks.of(run), out=target[here])
        else:
            blended = torch.lerp(outside.to(working), inside.to(working), masks.of(run))
            target[here].copy_(blended.round_())


@dataclass(frozen=True)
class _Run:
    """Consecutive samples that are treated alike and whose partners are consecutive, too."""

    start: int
    stop: int
    way: str
    anchor_inside: bool
    partner: int


def _runs(plan: MixPlan, longest: int) -> Iterator[_Run]:
    ways, partners, inside = _ways(plan), plan.partners.tolist(), plan.anchor_inside.tolist()
    start, count = 0, len(plan)
    for stop in range(1, count + 1):
        goes_on = (
            stop < count
            and stop - start < longest
            and (ways[stop], inside[stop], partners[stop] - stop)
            == (ways[start], inside[start], partners[start] - start)
            and ways[stop] in ("keep", "blend")
        )
        if not goes_on:
            yield _Run(start, stop, ways[start], inside[start], partners[start])
            start = stop


def _ways(plan: MixPlan) -> list[str]:
    """How each sample is treated: kept, blended with its partner by an outer product or by a bent mask, or filled."""
    ways = []
    for i, (shape, filling, edge, partner) in enumerate(
        zip(plan.shapes, plan.fillings, plan.edges.tolist(), plan.partners.tolist(), strict=True)
    ):
        if shape == "none" or (filling == "partner" and partner == i):
            ways.append("keep")
        elif filling != "partner":
            ways.append("fill")
        else:
            ways.append("bend" if shape == "circle" and edge != 1 else "blend")
    return ways


class _Masks:
    """A plan's masks, made run by run into one buffer; ``repeat`` times as wide where channels come last."""

    def __init__(self, plan: MixPlan, repeat: int, dtype: torch.dtype, longest: int) -> None:
        self.plan, self.repeat = plan, repeat
        # Narrow dtypes get a mask that was computed in float32 and rounded once.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        rows, columns = _profiles(plan)
        self.rows = rows.to(exact)[:, None, :, None]
        self.columns = columns.to(exact).repeat_interleave(repeat, 1)[:, None, None, :]
        self.buffer = torch.empty(longest, 1, plan.size[0], plan.size[1] * repeat, dtype=dtype)

    def of(self, run: _Run) -> Tensor:
        """(n, 1, H, W * repeat) weights of what stands inside."""
        buffer = self.buffer[: run.stop - run.start]
        if run.way == "bend" or (run.way == "fill" and self.plan.shapes[run.start] == "circle"):
            plan, one = self.plan, [run.start]
            bent = soft_mask("circle", plan.size, plan.centres[one], plan.extents[one], plan.edges[one])
            return buffer.copy_(bent.repeat_interleave(self.repeat, 2)[:, None])
        here = slice(run.start, run.stop)
        return torch.mul(self.rows[here], self.columns[here], out=buffer)


def _profiles(plan: MixPlan) -> tuple[Tensor, Tensor]:
    """(B, H) rows and (B, W) columns of every mask that is an outer product, MixUp's constant among them."""
    kinds = set(plan.shapes)
    for kind in KINDS:
        if kinds == {kind}:  # the usual plan, in which all samples are treated alike
            return profiles(kind, plan.size, plan.centres, plan.extents, plan.edges)
    rows, columns = plan.weights[:, None].repeat(1, plan.size[0]), torch.ones(len(plan), plan.size[1])
    for kind in KINDS:
        some = plan.rows_of(kind)
        rows[some], columns[some] = profiles(kind, plan.size, plan.centres[some], plan.extents[some], plan.edges[some])
    return rows, columns


def _planes(images: Tensor, interleaved: bool) -> Tensor:
    """The same memory as planes that one mask fits: (B, C, H, W), or (B, 1, H, W * C) where channels come last."""
    return images.permute(0, 2, 3, 1).flatten(2).unsqueeze(1) if interleaved else images


def _channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def _filled(image: Tensor, filling: str, seed: int, repeat: int = 1) -> Tensor:
    """(C, H, W) zeros, the image's mean colour, or Gaussian noise with its mean and deviation per channel.

    The result is floating; bytes' noise ends at 0 and 255. With ``repeat`` channels interleaved, image and result are
    planes of (1, H, W * repeat).
    """
    if repeat > 1:
        channels = image.view(image.shape[1], -1, repeat).permute(2, 0, 1)
        return _filled(channels, filling, seed).permute(1, 2, 0).flatten(1)[None]
    anchor = image if image.is_floating_point() else image.float()
    if filling == "zero":
        return anchor.new_zeros(()).expand_as(anchor)
    mean = anchor.mean((1, 2), keepdim=True)
    if filling == "mean":
        return mean.expand_as(anchor)
    # Drawn on the CPU, so that a plan says the same on every device.
    noise = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(seed)).to(anchor)
    noise = mean + anchor.std((1, 2), keepdim=True, correction=0) * noise
    return noise if image.is_floating_point() else noise.clamp_(0, 255)


def _require_images(images: Tensor, plan: MixPlan) -> None:
    if images.ndim != 4:
        raise InputError(f"images have the shape {tuple(images.shape)}; they must be (B, C, H, W).")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(f"images are {images.dtype}; they must be floating or uint8. Convert them first.")
    if 0 in images.shape[2:]:
        raise InputError(f"images are {images.shape[2]} x {images.shape[3]}; they must have a pixel at least.")
    if (len(images), *images.shape[2:]) != (len(plan), *plan.size):
        raise InputError(
            f"the plan is for {len(plan)} images of {plan.size[0]} x {plan.size[1]}, the batch holds {len(images)} of "
            f"{images.shape[2]} x {images.shape[3]}. Draw a plan for this batch."
        )


def _checked_buffer(images: Tensor, out: Tensor) -> Tensor:
    if (out.shape, out.dtype, out.device) != (images.shape, images.dtype, images.device):
        raise InputError(
            f"out is {tuple(out.shape)} {out.dtype} on {out.device}; it must be as the images: "
            f"{tuple(images.shape)} {images.dtype} on {images.device}. Make it with torch.empty_like(images)."
        )
    (start, stop), (first, last) = _span(images), _span(out)
    if start < last and first < stop:
        raise InputError("out shares its memory with images, which would be changed. Make it a tensor of its own.")
    return out


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the one behind its last; the storage may be larger."""
    if not tensor.numel():
        return 0, 0
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
