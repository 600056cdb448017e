"""The plan of what a mixing does to a batch, drawn before any pixel is read, and the pure function that applies it."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shiftproof.errors import InputError, require_choice
from shiftproof.mixing.masks import KINDS, profiles, soft_mask

SHAPES = ("circle", "square", "even", "none")
FILLINGS = ("partner", "zero", "mean", "noise")
# Limits on the elements of a run's masks. With smaller runs, the cost of starting operations dominates; the masks of
# larger ones do not fit into the caches.
_FLOAT_RUN_LIMIT, _BYTE_RUN_LIMIT = 1 << 19, 1 << 17
# Images with at least this many pixels are cut and pasted one by one; masks are faster for smaller ones.
_PASTED_PIXELS = 1 << 14
# Added to a float32 number from 0 to 255, it leaves the number, rounded half to even, in the lowest byte.
_ROUNDING = float(1 << 23)


@dataclass(frozen=True)
class MixPlan:
    """The shape, the filling and the label weight of each of B samples.

    ``size`` is the images' (H, W). ``shapes`` are "circle", "square", "even" (``weights`` at every pixel, for MixUp) or
    "none" (the image is unchanged). ``centres`` (B, 2), ``extents`` (B, 2) and ``edges`` (B,) are arguments of
    ``soft_mask``. Where ``anchor_inside`` (B,) is true, the anchor is inside the shape (SmoothMix), otherwise the
    filling is (CutMix, Cutout). ``fillings`` are "partner", the image at position ``partners`` (B,), "zero", "mean",
    the anchor's mean colour, or "noise" with the anchor's mean and standard deviation, drawn from ``noise_seeds`` (B,).
    ``weights`` (B,) float32 is the share of the anchor's label. All tensors are on the CPU.

    Raises an InputError for an unknown shape or filling.
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
        """The (n,) positions of the n samples that have one of the shapes."""
        return torch.tensor([i for i, shape in enumerate(self.shapes) if shape in shapes], dtype=torch.long)


def anchor_weights(plan: MixPlan, *, device: str | torch.device = "cpu") -> Tensor:
    """The (B, H, W) float32 weights of the anchors at every pixel.

    Their means are the labels' weights, except with Cutout, whose labels count the anchor fully.

    ``device`` is where the tensor is made. No model runs here, so the default is the CPU, where plans are.

    >>> from shiftproof.mixing.methods import MixUp
    >>> plan = MixUp().plan(2, (4, 4), torch.Generator().manual_seed(0))
    >>> bool((anchor_weights(plan).mean((1, 2)) == plan.weights).all())
    True
    """
    pixel_weights = torch.ones(len(plan), *plan.size, device=device)
    even = plan.rows_of("even")
    pixel_weights[even] = plan.weights[even, None, None].to(device)
    for kind in KINDS:
        rows = plan.rows_of(kind)
        geometry = (part[rows].to(device) for part in (plan.centres, plan.extents, plan.edges))
        inside = soft_mask(kind, plan.size, *geometry)
        pixel_weights[rows] = torch.where(plan.anchor_inside[rows, None, None].to(device), inside, 1 - inside)
    return pixel_weights


def mix_images(images: Tensor, plan: MixPlan, *, out: Tensor | None = None) -> Tensor:
    """Mixes (B, C, H, W) images as the plan says, into ``out`` or a new tensor, without modifying the input.

    Floating-point images of any range, normalised or not, are mixed in their dtype; uint8 images are mixed in float32
    and rounded. The result has the input's device and memory layout, channels-last included. ``out`` must have the
    shape, dtype and device of ``images`` and share no memory with them. The same images and plan give the same bits.
    Gradients flow back to images that require them.

    Raises an InputError for images of another shape than the plan's, for other dtypes and for an unsuitable ``out``.

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
    """Mixes the whole batch in a few operations, which suits a GPU and which autograd can differentiate."""
    working = images.dtype if images.is_floating_point() else torch.float32
    others = images[plan.partners.to(images.device)].to(working)
    for i, filling in enumerate(plan.fillings):
        if filling != "partner":
            others[i] = _filled(images[i], filling, int(plan.noise_seeds[i]))
    weights = anchor_weights(plan, device=images.device)[:, None].to(working)
    blended = torch.lerp(others, images.to(working), weights)
    mixed.copy_(blended if images.is_floating_point() else blended.round_())


def _mix_in_runs(images: Tensor, plan: MixPlan, mixed: Tensor) -> None:
    """Mixes a few samples at a time, so that their masks stay in the CPU's caches."""
    interleaved = not images.is_contiguous() and _channels_last(images) and _channels_last(mixed)
    repeat = images.shape[1] if interleaved else 1
    planes, target = _planes(images, interleaved), _planes(mixed, interleaved)
    working = images.dtype if images.is_floating_point() else torch.float32
    limit = _FLOAT_RUN_LIMIT if images.is_floating_point() else _BYTE_RUN_LIMIT
    longest = min(len(plan), limit // (plan.size[0] * plan.size[1] * repeat) or 1)
    masks = _Masks(plan, repeat, working, longest)
    blend = torch.lerp if images.is_floating_point() else _ByteBlend(planes[:longest])
    for run in _runs(plan, longest):
        rows = slice(run.start, run.stop)
        anchors = planes[rows]
        if run.operation == "copy":
            target[rows].copy_(anchors)
            continue
        others = planes[run.partner : run.partner + run.stop - run.start]
        if run.fills:
            filling, seed = plan.fillings[run.start], int(plan.noise_seeds[run.start])
            whole = images.dtype if run.operation == "paste" else None
            others = _filled(anchors[0], filling, seed, repeat, dtype=whole)[None]
        outside, inside = (others, anchors) if run.anchor_inside else (anchors, others)
        if run.operation == "paste":
            _paste(outside, inside, masks.boxes[rows], target[rows])
        else:
            blend(outside, inside, masks.of(run), out=target[rows])


def _paste(outside: Tensor, inside: Tensor, boxes: Sequence[tuple[slice, slice]], target: Tensor) -> None:
    """Copies images and pastes a box of another image into each of them."""
    target.copy_(outside)
    for i, (rows, columns) in enumerate(boxes):
        target[i, :, rows, columns] = inside[i, :, rows, columns]


class _ByteBlend:
    """Blends bytes in float32, in buffers that stay in the CPU's caches, and rounds half to even."""

    def __init__(self, planes: Tensor) -> None:
        self._first, self._second = (torch.empty(planes.shape, dtype=torch.float32) for _ in range(2))

    def __call__(self, outside: Tensor, inside: Tensor, weights: Tensor, *, out: Tensor) -> None:
        blended = self._first[: len(out)].copy_(outside)
        torch.lerp(blended, self._second[: len(out)].copy_(inside), weights, out=blended)
        out.copy_(blended.add_(_ROUNDING).view(torch.int32))


@dataclass(frozen=True)
class _Run:
    """Consecutive samples that undergo the same operation and whose partners are consecutive, too."""

    start: int
    stop: int
    operation: str
    fills: bool
    anchor_inside: bool
    partner: int


def _runs(plan: MixPlan, longest: int) -> Iterator[_Run]:
    operations, partners, inside = _operations(plan), plan.partners.tolist(), plan.anchor_inside.tolist()
    fills = [filling != "partner" for filling in plan.fillings]
    start, count = 0, len(plan)
    for stop in range(1, count + 1):
        continues = (
            stop < count
            and stop - start < longest
            and (operations[stop], inside[stop], partners[stop] - stop)
            == (operations[start], inside[start], partners[start] - start)
            and (operations[stop] == "copy" or (operations[stop] in ("blend", "paste") and not fills[stop]))
        )
        if not continues:
            yield _Run(start, stop, operations[start], fills[start], inside[start], partners[start])
            start = stop


def _operations(plan: MixPlan) -> list[str]:
    """The operation on each sample.

    "copy" leaves it unchanged, "paste" exchanges a box, "blend" blends two images by a mask that is an outer product,
    and "blend-circle" by a circle's mask that is none.
    """
    large = plan.size[0] * plan.size[1] >= _PASTED_PIXELS
    operations = []
    for i, (shape, filling, edge, partner) in enumerate(
        zip(plan.shapes, plan.fillings, plan.edges.tolist(), plan.partners.tolist(), strict=True)
    ):
        if shape == "none" or (filling == "partner" and partner == i):
            operations.append("copy")
        elif shape == "square" and edge == 0 and (large or filling != "partner"):
            operations.append("paste")
        else:
            operations.append("blend-circle" if shape == "circle" and edge != 1 else "blend")
    return operations


class _Masks:
    """A plan's masks, computed run by run in one buffer; ``repeat`` times as wide if the channels come last."""

    def __init__(self, plan: MixPlan, repeat: int, dtype: torch.dtype, longest: int) -> None:
        self.plan, self.repeat = plan, repeat
        # For narrow dtypes, the mask is computed in float32 and rounded once.
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        rows, columns = _profiles(plan)
        self.rows = rows.to(exact)[:, None, :, None]
        self.columns = columns.to(exact).repeat_interleave(repeat, 1)[:, None, None, :]
        self.buffer = torch.empty(longest, 1, plan.size[0], plan.size[1] * repeat, dtype=dtype)

    def of(self, run: _Run) -> Tensor:
        """The (n, 1, H, W * repeat) weights of the images inside the shapes of n samples."""
        buffer = self.buffer[: run.stop - run.start]
        if run.operation == "blend-circle":
            plan, one = self.plan, [run.start]
            circle = soft_mask("circle", plan.size, plan.centres[one], plan.extents[one], plan.edges[one])
            return buffer.copy_(circle.repeat_interleave(self.repeat, 2)[:, None])
        samples = slice(run.start, run.stop)
        return torch.mul(self.rows[samples], self.columns[samples], out=buffer)

    @functools.cached_property
    def boxes(self) -> list[tuple[slice, slice]]:
        """The rows and columns of the planes where the masks of hard squares are 1."""
        ranges = []
        for weights in (self.rows.flatten(1), self.columns.flatten(1)):
            covered = weights > 0
            firsts, lengths = covered.int().argmax(1).tolist(), covered.sum(1).tolist()
            ranges.append([slice(first, first + length) for first, length in zip(firsts, lengths, strict=True)])
        return list(zip(*ranges, strict=True))


def _profiles(plan: MixPlan) -> tuple[Tensor, Tensor]:
    """(B, H) rows and (B, W) columns of every mask that is an outer product, including MixUp's constant one."""
    kinds = set(plan.shapes)
    for kind in KINDS:
        if kinds == {kind}:  # in the usual plan, all samples have the same shape
            return profiles(kind, plan.size, plan.centres, plan.extents, plan.edges)
    rows, columns = plan.weights[:, None].repeat(1, plan.size[0]), torch.ones(len(plan), plan.size[1])
    for kind in KINDS:
        of_kind = plan.rows_of(kind)
        geometry = (part[of_kind] for part in (plan.centres, plan.extents, plan.edges))
        rows[of_kind], columns[of_kind] = profiles(kind, plan.size, *geometry)
    return rows, columns


def _planes(images: Tensor, interleaved: bool) -> Tensor:
    """A view as planes that one mask fits: (B, C, H, W), or (B, 1, H, W * C) if the channels come last."""
    return images.permute(0, 2, 3, 1).flatten(2).unsqueeze(1) if interleaved else images


def _channels_last(images: Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last)


def _filled(image: Tensor, filling: str, seed: int, repeat: int = 1, *, dtype: torch.dtype | None = None) -> Tensor:
    """(C, H, W) zeros, the image's mean colour, or Gaussian noise with its mean and deviation per channel.

    The result is floating-point unless another ``dtype`` is given, to which it is rounded; noise for uint8 images is
    clipped to 0 to 255. With ``repeat`` interleaved channels, image and result are planes of (1, H, W * repeat).
    """
    values = _filling(image, filling, seed, repeat)
    if dtype is not None and dtype != values.dtype:
        values = values.round().to(dtype)
    return values.expand_as(image)


def _filling(image: Tensor, filling: str, seed: int, repeat: int) -> Tensor:
    """What ``_filled`` returns, in floating point and as small as a tensor can be that expands to the image."""
    anchor = image if image.is_floating_point() else image.float()
    if filling == "zero":
        return anchor.new_zeros(())
    if repeat > 1 and filling == "mean":
        # Columns first, since the channels of a pixel are too few for the processor's vector instructions.
        exact = torch.float64 if anchor.dtype == torch.float64 else torch.float32
        colour = anchor[0].mean(0, dtype=exact).view(-1, repeat).mean(0).to(anchor.dtype)
        return colour.repeat(anchor.shape[2] // repeat)
    if repeat > 1:
        channels = anchor.view(anchor.shape[1], -1, repeat).permute(2, 0, 1)
        noise = _filling(channels, filling, seed, 1).permute(1, 2, 0).flatten(1)[None]
        return noise if image.is_floating_point() else noise.clamp_(0, 255)
    mean = anchor.mean((1, 2), keepdim=True)
    if filling == "mean":
        return mean
    # The noise is drawn on the CPU, so that a plan gives the same noise on every device.
    noise = torch.randn(anchor.shape, generator=torch.Generator().manual_seed(seed)).to(anchor)
    noise = mean + anchor.std((1, 2), keepdim=True, correction=0) * noise
    return noise if image.is_floating_point() else noise.clamp_(0, 255)


def _require_images(images: Tensor, plan: MixPlan) -> None:
    if images.ndim != 4:
        raise InputError(f"images have the shape {tuple(images.shape)}; they must be (B, C, H, W).")
    if not (images.is_floating_point() or images.dtype == torch.uint8):
        raise InputError(f"images are {images.dtype}; they must be floating-point or uint8. Convert them first.")
    if 0 in images.shape[2:]:
        raise InputError(f"images are {images.shape[2]} x {images.shape[3]}; they must have at least one pixel.")
    if (len(images), *images.shape[2:]) != (len(plan), *plan.size):
        raise InputError(
            f"the plan is for {len(plan)} images of {plan.size[0]} x {plan.size[1]} pixels, but the batch has "
            f"{len(images)} of {images.shape[2]} x {images.shape[3]}. Draw a plan for this batch."
        )


def _checked_buffer(images: Tensor, out: Tensor) -> Tensor:
    if (out.shape, out.dtype, out.device) != (images.shape, images.dtype, images.device):
        raise InputError(
            f"`out` is {tuple(out.shape)} {out.dtype} on {out.device}; it must match the images, which are "
            f"{tuple(images.shape)} {images.dtype} on {images.device}. Make it with torch.empty_like(images)."
        )
    (start, stop), (first, last) = _span(images), _span(out)
    if start < last and first < stop:
        raise InputError("`out` shares memory with the images, which would be overwritten. Pass a separate tensor.")
    return out


def _span(tensor: Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the byte after its last; the storage may be larger."""
    if not tensor.numel():
        return 0, 0
    last = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
