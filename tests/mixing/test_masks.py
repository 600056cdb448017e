"""Masks against their formulas: areas, edges, dtypes and means."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.mixings import FLOATS, SEEDS, SHARES, SIZES, seeded
from torch import Tensor

import shiftproof as sp
from shiftproof.mixing.masks import PAPER_EDGES, hard_mask, mask_means, soft_mask


def slow_weight(
    kind: str,
    pixel: tuple[int, int],
    centre: Sequence[float],
    extent: Sequence[float],
    edge: float,
    slack: float = 0.0,
) -> float:
    """One pixel's weight; ``slack`` moves it outwards by so little that rounding explains it."""
    distances = [abs(p + 0.5 - c) for p, c in zip(pixel, centre, strict=True)]
    distances = [max(0.0, d + slack * (1 + d)) for d in distances]
    if kind == "circle":
        quotient = sum(d**2 / (2 * s**2) for d, s in zip(distances, extent, strict=True))
        if edge == 0:
            return float(quotient <= 1)
        if quotient > 1 and math.log(quotient) / edge > 50:
            return 0.0
        return math.exp(-(quotient ** (1 / edge)))
    weight = 1.0
    for d, half in zip(distances, extent, strict=True):
        if d > half:
            weight *= max(0.0, 1 - (d - half) / (edge * half)) if edge * half > 0 else 0.0
    return weight


@given(
    kind=st.sampled_from(["circle", "square"]),
    size=SIZES,
    edge=st.none() | SHARES | st.floats(0.01, 0.2),
    data=st.data(),
)
def test_masks_are_what_their_formula_says(
    kind: str, size: tuple[int, int], edge: float | None, data: st.DataObject
) -> None:
    count = data.draw(st.integers(0, 3))
    places = [st.floats(-1, length + 1, width=32) | st.integers(0, length).map(float) for length in size]
    lengths = st.floats(0.125, 12, width=32) | st.integers(kind == "circle", 6).map(float)
    centres = data.draw(st.lists(st.tuples(*places), min_size=count, max_size=count))
    extents = data.draw(st.lists(st.tuples(lengths, lengths), min_size=count, max_size=count))
    result = soft_mask(kind, size, torch.tensor(centres).view(-1, 2), torch.tensor(extents).view(-1, 2), edge)
    used = PAPER_EDGES[kind] if edge is None else edge
    assert result.shape == (count, *size)
    assert result.dtype == torch.float32
    for mask, centre, extent in zip(result.tolist(), centres, extents, strict=True):
        for y, row in enumerate(mask):
            for x, weight in enumerate(row):
                outer = slow_weight(kind, (y, x), centre, extent, used, 1e-5)
                inner = slow_weight(kind, (y, x), centre, extent, used, -1e-5)
                assert outer - 2e-6 <= weight <= inner + 2e-6


def test_every_sample_may_have_an_edge_of_its_own() -> None:
    centres, extents = torch.tensor([[3.2, 4.1]]).repeat(3, 1), torch.tensor([[1.5, 2.0]]).repeat(3, 1)
    for kind in ("circle", "square"):
        together = soft_mask(kind, (7, 9), centres, extents, torch.tensor([0.0, 0.4, 1.0]))
        for mask, edge in zip(together, (0.0, 0.4, 1.0), strict=True):
            alone = soft_mask(kind, (7, 9), centres[:1], extents[:1], edge)[0]
            torch.testing.assert_close(mask, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS)
def test_masks_come_in_every_floating_dtype(dtype: torch.dtype) -> None:
    given_ones = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 2.0]])
    mask = soft_mask("circle", (7, 9), *given_ones, 0.5, dtype=dtype)
    assert mask.dtype == dtype
    assert torch.equal(mask, soft_mask("circle", (7, 9), *given_ones, 0.5).to(dtype))


@given(edge=SHARES, s=st.floats(6, 8), stretch=st.floats(0.7, 1.4))
def test_an_uncut_mask_has_the_area_that_its_integral_gives(edge: float, s: float, stretch: float) -> None:
    extents = torch.tensor([[s, s * stretch]])
    area = s * s * stretch
    disc = soft_mask("circle", (120, 130), torch.tensor([[60.3, 64.8]]), extents, edge).sum().item()
    # The integral of exp(-q ** (1 / e)) over the plane, of which edge 0 and 1 give the same.
    assert disc == pytest.approx(2 * math.pi * area * math.gamma(1 + edge), rel=0.03)
    box = soft_mask("square", (120, 130), torch.tensor([[60.3, 64.8]]), extents, edge).sum().item()
    assert box == pytest.approx((2 + edge) ** 2 * area, rel=0.15 if edge < 0.2 else 0.06)


@pytest.mark.slow
@given(
    kind=st.sampled_from(["circle", "square"]),
    centre=st.tuples(st.floats(0, 48), st.floats(0, 64)),
    extent=st.tuples(st.floats(6, 24), st.floats(6, 24)),
)
def test_the_edge_goes_from_hard_to_soft_in_small_steps(
    kind: str, centre: tuple[float, float], extent: tuple[float, float]
) -> None:
    edges = torch.linspace(0, 1, 201)
    places = torch.tensor([centre]).expand(201, 2), torch.tensor([extent]).expand(201, 2)
    masks = soft_mask(kind, (48, 64), *places, edges)
    assert torch.equal(masks[0], hard_mask(kind, (48, 64), *(x[:1] for x in places))[0])
    steps = (masks[1:] - masks[:-1]).abs().mean((1, 2))
    # A convex border inside the image is no longer than the image's own. Pixels right outside a hard one jump to 1 in
    # the first step, and by a half at most in every later one.
    ring = 2 * (48 + 64) / (48 * 64)
    assert steps.max() < ring
    assert steps[1:].max() < ring / 2
    assert steps.sum() > 0.01


@given(size=SIZES, seed=SEEDS)
def test_edge_0_is_hard(size: tuple[int, int], seed: int) -> None:
    draws = torch.rand(5, 4, generator=seeded(seed))
    centres, extents = draws[:, :2] * torch.tensor(size), 0.3 + 5 * draws[:, 2:]
    down = (torch.arange(size[0]) + 0.5)[None, :, None] - centres[:, 0, None, None]
    across = (torch.arange(size[1]) + 0.5)[None, None, :] - centres[:, 1, None, None]
    high, wide = extents[:, 0, None, None], extents[:, 1, None, None]
    disc = (down / high) ** 2 + (across / wide) ** 2 <= 2
    box = (down.abs() <= high) & (across.abs() <= wide)
    for kind, inside in (("circle", disc), ("square", box)):
        mask = hard_mask(kind, size, centres, extents)
        assert torch.equal(mask, inside.float())
        assert torch.equal(soft_mask(kind, size, centres, extents, 0.0), mask)


@given(kind=st.sampled_from(["circle", "square"]), size=SIZES, edge=SHARES, seed=SEEDS)
def test_mask_means_are_the_means_of_the_masks(kind: str, size: tuple[int, int], edge: float, seed: int) -> None:
    draws = torch.rand(11, 5, generator=seeded(seed))
    centres, extents = draws[:, :2] * torch.tensor(size), 0.3 + 5 * draws[:, 2:4]
    edges = torch.where(draws[:, 4] < 0.5, edge, draws[:, 4])
    result = mask_means(kind, size, centres, extents, edges)
    expected = soft_mask(kind, size, centres, extents, edges).mean((1, 2))
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-6)


ONE = torch.tensor([[1.0, 1.0]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_mask("disc", (2, 2), ONE, ONE), "unknown mask kind 'disc'"),
        (lambda: soft_mask("circle", (0, 2), ONE, ONE), "height and width is 0"),
        (lambda: soft_mask("circle", (2, 2), ONE[0], ONE), r"shapes \(2,\) and \(1, 2\)"),
        (lambda: soft_mask("circle", (2, 2), ONE, ONE.repeat(2, 1)), r"shapes \(1, 2\) and \(2, 2\)"),
        (lambda: soft_mask("circle", (2, 2), ONE, 0 * ONE), "extents must be above 0"),
        (lambda: soft_mask("circle", (2, 2), ONE, math.nan * ONE), "extents must be above 0"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, 1.5), r"edges are 1\.5"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, -0.5), r"edges are -0\.5"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, math.nan), "edges are nan"),
        (lambda: soft_mask("square", (2, 2), ONE, ONE, torch.tensor([2.0])), r"edges are \[2\.0\]"),
    ],
)
def test_a_mask_that_cannot_be_made_says_why(call: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        call()
