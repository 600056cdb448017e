"""Weight-space interpolation against exact arithmetic, and what it must never touch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.weights import FORMATS, LARGEST, half_unit
from torch import Tensor, nn

import shiftproof as sp

ALPHAS = st.floats(0, 1)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@given(data=st.data(), alpha=ALPHAS)
def test_entries_are_the_exact_mean_rounded_once(dtype: torch.dtype, data: st.DataObject, alpha: float) -> None:
    numbers = st.lists(st.floats(-LARGEST[dtype], LARGEST[dtype]), min_size=4, max_size=4)
    theta_0 = torch.tensor(data.draw(numbers), dtype=torch.float64).to(dtype)
    theta_1 = torch.tensor(data.draw(numbers), dtype=torch.float64).to(dtype)
    tensors = sp.interpolate_weights({"w": theta_0}, {"w": theta_1}, alpha)["w"]
    assert tensors.dtype == dtype
    for x, y, z in zip(theta_0.tolist(), theta_1.tolist(), tensors.tolist(), strict=True):
        # For wide entries the arithmetic itself is float64, whose own error is 30 bits smaller.
        arithmetic = Fraction(1, 2**51) if dtype == torch.float64 else Fraction(1, 2**22)
        exact = (1 - Fraction(alpha)) * Fraction(x) + Fraction(alpha) * Fraction(y)
        allowed = half_unit(exact, dtype) + arithmetic * (abs(Fraction(x)) + abs(Fraction(y)))
        assert abs(Fraction(z) - exact) <= allowed


def test_half_precision_is_not_averaged_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(20_000, generator=generator).half() for _ in range(2))
    tensors = sp.interpolate_weights({"w": x}, {"w": y}, 0.3)["w"]
    exact = 0.7 * x.double() + 0.3 * y.double()
    assert (tensors == exact.half()).double().mean() > 0.99
    assert (0.7 * x + 0.3 * y == exact.half()).double().mean() < 0.8


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_the_ends_come_back_bit_for_bit(dtype: torch.dtype, broken: float) -> None:
    good = {"w": torch.randn(50, dtype=torch.float64).to(dtype), "n": torch.tensor(3)}
    bad = {"w": torch.full((50,), broken, dtype=dtype), "n": torch.tensor(7)}
    for result in (sp.interpolate_weights(good, bad, 0), sp.interpolate_weights(bad, good, 1)):
        assert torch.equal(result["w"], good["w"])
        assert result["n"].item() == 3


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@given(alpha=ALPHAS, seed=st.integers(0, 1000))
def test_a_model_with_itself_stays_itself(dtype: torch.dtype, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    theta = {"w": torch.randn(64, generator=generator, dtype=torch.float64).to(dtype)}
    assert torch.equal(sp.interpolate_weights(theta, theta, alpha)["w"], theta["w"])


def test_a_mask_of_infinities_survives() -> None:
    mask = torch.full((3, 3), -math.inf).triu(1)
    assert torch.equal(sp.interpolate_weights({"mask": mask}, {"mask": mask.clone()}, 0.5)["mask"], mask)


def test_exchanging_the_ends_agrees_within_rounding() -> None:
    x, y = torch.randn(1000), torch.randn(1000)
    one = sp.interpolate_weights({"w": x}, {"w": y}, 0.3)["w"].double()
    other = sp.interpolate_weights({"w": y}, {"w": x}, 0.7)["w"].double()
    assert ((one - other).abs() <= 2.0**-22 * (x.abs() + y.abs()) + 2.0**-23 * one.abs()).all()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.49, 0.5, 0.9, 1.0])
def test_integers_and_booleans_are_copied_from_an_end(alpha: float) -> None:
    start, end = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    start.num_batches_tracked.fill_(1)
    end.num_batches_tracked.fill_(2)
    theta_0 = {**start.state_dict(), "used": torch.tensor([True, False])}
    theta_1 = {**end.state_dict(), "used": torch.tensor([False, False])}
    tensors = sp.interpolate_weights(theta_0, theta_1, alpha)
    nearer = theta_0 if alpha < 0.5 else theta_1
    assert tensors["num_batches_tracked"].dtype == torch.int64
    assert torch.equal(tensors["num_batches_tracked"], nearer["num_batches_tracked"])
    assert torch.equal(tensors["used"], nearer["used"])
    nn.BatchNorm1d(2).load_state_dict({name: tensors[name] for name in start.state_dict()})


def test_tied_entries_are_made_once_and_stay_tied() -> None:
    def theta() -> dict[str, Tensor]:
        shared = torch.randn(4, 3)
        return {"embed": shared, "head": shared, "other": torch.randn(4, 3)}

    theta_0, theta_1 = theta(), theta()
    tensors = sp.interpolate_weights(theta_0, theta_1, 0.5)
    assert tensors["embed"].data_ptr() == tensors["head"].data_ptr()
    assert tensors["other"].data_ptr() != tensors["head"].data_ptr()
    # Tied in one only: the results differ, so they must not be tied.
    untied = {**theta_1, "head": torch.zeros(4, 3)}
    with pytest.warns(UserWarning, match="tied in an input and differ in the result: 'head = embed'"):
        tensors = sp.interpolate_weights(theta_0, untied, 1.0)
    assert torch.equal(tensors["embed"], theta_1["embed"])
    assert torch.equal(tensors["head"], torch.zeros(4, 3))


def test_views_of_one_memory_are_not_taken_for_ties() -> None:
    memory_0, memory_1 = torch.randn(3, 3), torch.randn(3, 3)
    theta_0 = {"w": memory_0, "turned": memory_0.T, "empty": torch.empty(0), "void": torch.empty(0)}
    theta_1 = {"w": memory_1, "turned": memory_1.T, "empty": torch.empty(0), "void": torch.empty(0)}
    tensors = sp.interpolate_weights(theta_0, theta_1, 0.25)
    assert torch.equal(tensors["turned"], tensors["w"].T)
    assert tensors["empty"].shape == (0,)


class Lazy(Mapping[str, Tensor]):
    """Reads every tensor anew at each access, as a wrapper of a file does."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.stored = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(self.stored[name], dtype=np.float32).copy())

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)


def test_a_mapping_that_reads_lazily_gives_the_same() -> None:
    theta_0 = {f"layer{i}": torch.randn(64) for i in range(20)}
    theta_1 = {name: torch.randn(64) for name in theta_0}
    tensors = sp.interpolate_weights(Lazy(theta_0), Lazy(theta_1), 0.5)
    expected = sp.interpolate_weights(theta_0, theta_1, 0.5)
    assert all(torch.equal(tensors[name], expected[name]) for name in theta_0)


@given(alpha=ALPHAS)
def test_inputs_stay_as_they_were_and_share_nothing_with_the_result(alpha: float) -> None:
    theta_0 = {"w": torch.randn(5, requires_grad=True), "n": torch.tensor([1])}
    theta_1 = {"w": torch.randn(5, requires_grad=True), "n": torch.tensor([2])}
    original = [tensor.detach().clone() for tensor in (*theta_0.values(), *theta_1.values())]
    tensors = sp.interpolate_weights(theta_0, theta_1, alpha)
    assert not tensors["w"].requires_grad
    for tensor in tensors.values():
        tensor.zero_()
    now = (*theta_0.values(), *theta_1.values())
    assert all(torch.equal(old, new) for old, new in zip(original, now, strict=True))


def test_a_mismatch_of_names_lists_ten_of_each_side() -> None:
    theta_0 = {f"encoder.{i:02d}": torch.zeros(1) for i in range(14)}
    theta_1 = {f"module.encoder.{i:02d}": torch.zeros(1) for i in range(12)}
    with pytest.raises(sp.IncompatibleWeightsError) as caught:
        sp.interpolate_weights(theta_0, theta_1, 0.5)
    message = str(caught.value)
    assert all(f"'encoder.{i:02d}'" in message for i in range(10))
    assert all(f"'module.encoder.{i:02d}'" in message for i in range(10))
    assert "'encoder.10'" not in message
    assert "'module.encoder.10'" not in message
    assert "and 4 more" in message
    assert "and 2 more" in message
    assert "module." in message.split("strip", 1)[1]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(3, 2), ["float32 [2, 3]", "float32 [3, 2]"]),
        (torch.zeros(2, 3, dtype=torch.float16), ["float32 [2, 3]", "float16 [2, 3]"]),
    ],
)
def test_another_shape_or_dtype_is_named(other: Tensor, message: list[str]) -> None:
    with pytest.raises(sp.IncompatibleWeightsError, match="head.weight") as caught:
        sp.interpolate_weights({"head.weight": torch.zeros(2, 3)}, {"head.weight": other}, 0.5)
    assert all(part in str(caught.value) for part in message)


@pytest.mark.parametrize("alpha", [-0.01, 1.01, math.nan, math.inf])
def test_alpha_outside_zero_to_one_is_refused(alpha: float) -> None:
    with pytest.raises(sp.InputError, match=r"alpha is .* between 0 and 1"):
        sp.interpolate_weights({"w": torch.zeros(1)}, {"w": torch.ones(1)}, alpha)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@given(alpha=st.floats(0, 1, exclude_min=True, exclude_max=True), size=st.integers(1, 200), seed=st.integers(0, 999))
def test_half_precision_is_computed_in_float32_and_rounded_once(
    dtype: torch.dtype, alpha: float, size: int, seed: int
) -> None:
    """What torch.lerp does with half-precision inputs is nowhere promised, so it is held here, to the bit."""
    generator = torch.Generator().manual_seed(seed)
    x, y = ((10.0 ** torch.randint(-6, 5, (size,), generator=generator)).to(dtype) for _ in range(2))
    y = y * torch.randn(size, generator=generator).to(dtype)
    tensors = sp.interpolate_weights({"w": x}, {"w": y}, alpha)["w"]
    assert torch.equal(tensors, torch.lerp(x.float(), y.float(), alpha).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_float8_is_computed_in_float32_as_well(dtype: torch.dtype) -> None:
    x, y, z = (torch.randn(300).to(dtype) for _ in range(3))
    tensors = sp.interpolate_weights({"w": x}, {"w": y}, 0.3)["w"]
    assert tensors.dtype == dtype
    assert torch.equal(tensors.float(), torch.lerp(x.float(), y.float(), 0.3).to(dtype).float())
    mean = sp.average_weights([{"w": x}, {"w": y}, {"w": z}])["w"].float()
    exact = (x.double() + y.double() + z.double()) / 3
    assert ((mean.double() - exact).abs() <= 2.0**-3 * exact.abs() + 2.0**-9).all()


def test_every_entry_may_have_an_alpha_of_its_own() -> None:
    theta_0, theta_1 = ({name: torch.randn(7) for name in ("a", "b", "c")} for _ in range(2))
    tensors = sp.interpolate_weights(theta_0, theta_1, {"a": 0.0, "b": 0.25, "c": 1.0})
    assert torch.equal(tensors["a"], theta_0["a"])
    assert torch.equal(tensors["b"], sp.interpolate_weights(theta_0, theta_1, 0.25)["b"])
    assert torch.equal(tensors["c"], theta_1["c"])
    with pytest.raises(sp.InputError, match="have no alpha: 'c'"):
        sp.interpolate_weights(theta_0, theta_1, {"a": 0.0, "b": 0.25})
    with pytest.raises(sp.InputError, match="alpha of 'b' is 2"):
        sp.interpolate_weights(theta_0, theta_1, {"a": 0.0, "b": 2.0, "c": 0.5})


def test_ties_with_alphas_of_their_own_are_no_ties() -> None:
    shared_0, shared_1 = torch.zeros(3), torch.ones(3)
    theta_0, theta_1 = {"a": shared_0, "b": shared_0}, {"a": shared_1, "b": shared_1}
    with pytest.warns(UserWarning, match="differ in the result: 'b = a'.*same ties and alphas"):
        tensors = sp.interpolate_weights(theta_0, theta_1, {"a": 0.25, "b": 0.75})
    assert (tensors["a"][0].item(), tensors["b"][0].item()) == (0.25, 0.75)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_soup_of_equal_members_is_the_member_and_keeps_its_infinities(count: int) -> None:
    theta = {"w": torch.randn(40), "mask": torch.full((4, 4), -math.inf).triu(1), "n": torch.tensor(3)}
    tensors = sp.average_weights([theta] * count)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in theta.items())


def test_infinities_of_one_member_are_not_hidden() -> None:
    tensors = sp.average_weights([{"w": torch.zeros(2)}, {"w": torch.tensor([0.0, math.inf])}, {"w": torch.zeros(2)}])
    assert tensors["w"][0] == 0
    assert not tensors["w"][1].isfinite()


def test_a_mismatch_among_many_names_the_input() -> None:
    good = {"w": torch.zeros(2)}
    with pytest.raises(sp.IncompatibleWeightsError, match="only input 3 has 'v'"):
        sp.average_weights([good, good, {**good, "v": torch.zeros(1)}])
