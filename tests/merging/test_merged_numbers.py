"""Merged checkpoint files hold the same numbers as merging in memory, to the bit."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from support.weights import (
    FLOAT8,
    FORMATS,
    INTEGERS,
    LARGEST,
    SIZE,
    all_equal_bits,
    flattened,
    half_unit,
    pieces_of,
    save_checkpoint,
    save_shards,
)
from torch import Tensor

import shiftproof as sp
from shiftproof.merging import methods
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors
from shiftproof.weights.checkpoints import SafetensorsWriter, open_checkpoint

ALPHAS = st.floats(0, 1)


# What the numbers are


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*FORMATS, *FLOAT8, torch.complex64], ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.usefixtures("small_pieces")
@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_the_ends_come_back_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, suffix: str, seed: int, count: int
) -> None:
    """Every bit pattern, so NaN with its payload as well, at an end; inf and NaN at the other."""
    folder = tmp_path_factory.mktemp("ends")
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count * dtype.itemsize,), generator=generator, dtype=torch.uint8)
    bad = torch.tensor([math.inf, -math.inf, math.nan] * count)[:count].to(dtype)
    end = {"w": raw.view(dtype), "scalar": raw.view(dtype)[0], "n": torch.tensor(3)}
    other = {"w": bad, "scalar": bad[0], "n": torch.tensor(4)}
    a, b = save_checkpoint(end, folder / f"a{suffix}"), save_checkpoint(other, folder / f"b{suffix}")
    merge_files(a, b, alpha=0.0, out=folder / "start.safetensors")
    assert all_equal_bits(load_file(folder / "start.safetensors"), end)
    merge_files(b, a, alpha=1.0, out=folder / "end.safetensors")
    assert all_equal_bits(load_file(folder / "end.safetensors"), end)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@settings(max_examples=20)
@given(data=st.data(), alpha=ALPHAS)
def test_entries_are_the_exact_mean_rounded_once_and_the_ends_exchange(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, data: st.DataObject, alpha: float
) -> None:
    folder = tmp_path_factory.mktemp("mean")
    numbers = st.lists(st.floats(-LARGEST[dtype], LARGEST[dtype]), min_size=11, max_size=11)
    x, y = (torch.tensor(data.draw(numbers), dtype=torch.float64).to(dtype) for _ in range(2))
    a, b = save_checkpoint({"w": x}, folder / "a.safetensors"), save_checkpoint({"w": y}, folder / "b.pt")
    with pieces_of(16):
        merge_files(a, b, alpha=alpha, out=folder / "ab.safetensors")
        merge_files(b, a, alpha=1 - alpha, out=folder / "ba.safetensors")
    one, other = (load_file(folder / f"{name}.safetensors")["w"] for name in ("ab", "ba"))
    assert one.dtype == other.dtype == dtype
    arithmetic = Fraction(1, 2**51) if dtype == torch.float64 else Fraction(1, 2**22)
    for p, q, z, turned in zip(x.tolist(), y.tolist(), one.tolist(), other.tolist(), strict=True):
        exact = (1 - Fraction(alpha)) * Fraction(p) + Fraction(alpha) * Fraction(q)
        allowed = half_unit(exact, dtype) + arithmetic * (abs(Fraction(p)) + abs(Fraction(q)))
        assert abs(Fraction(z) - exact) <= allowed
        assert abs(Fraction(turned) - exact) <= allowed


@st.composite
def state_dicts(draw: st.DrawFn, count: int = 2) -> list[dict[str, Tensor]]:
    """State dicts of one architecture: all dtypes, scalars, empty tensors, strides, infinities, ties."""
    shapes = st.sampled_from([(), (0,), (3, 0), (1,), (2, 5), (17,), (4, 3, 2), (40,)])
    layouts = st.sampled_from(["plain", "turned", "strided", "channels"])
    dtypes = st.sampled_from([*FORMATS, *FLOAT8, *INTEGERS])
    names = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True))
    of = {name: (draw(dtypes), draw(shapes), draw(layouts)) for name in names}
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    masked, tied = draw(st.booleans()), draw(st.booleans())
    thetas = []
    for _ in range(count):
        theta = {}
        for name, (dtype, shape, layout) in of.items():
            values = torch.randn(shape, generator=generator) * 20
            if masked and values.numel() > 2:
                values.view(-1)[1] = math.inf
            if not dtype.is_floating_point:
                values = values.nan_to_num(0, 9, 9).abs()
            theta[f"layer.{name}"] = _laid_out(values.to(dtype), layout)
        if tied:
            theta["tied"] = theta[f"layer.{names[0]}"]
        thetas.append(theta)
    return thetas


def _laid_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values with other strides."""
    if layout == "turned" and tensor.ndim > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "channels" and tensor.ndim > 2:
        return tensor.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "strided" and tensor.ndim:
        return torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]
    return tensor


Make = Callable[[Sequence[Mapping[str, Tensor]], float], Mapping[str, Tensor]]
IN_MEMORY: dict[str, tuple[int, Make]] = {
    "linear": (2, lambda thetas, alpha: sp.interpolate_weights(*thetas, alpha)),
    "uniform": (4, lambda thetas, _: sp.average_weights(thetas)),
    "model-stock": (4, lambda thetas, _: sp.weights.model_stock(thetas[0], thetas[1:])),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", IN_MEMORY)
@settings(max_examples=30)
@given(data=st.data(), alpha=ALPHAS, torch_file=st.booleans())
def test_files_give_what_memory_gives_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, method: str, data: st.DataObject, alpha: float, torch_file: bool
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    count, make = IN_MEMORY[method]
    thetas = data.draw(state_dicts(count))
    suffixes = [".pt" if torch_file or number % 2 else ".safetensors" for number in range(count)]
    inputs = [
        save_checkpoint(t, folder / f"{i}{suffix}") for i, (t, suffix) in enumerate(zip(thetas, suffixes, strict=True))
    ]
    how = MergeSettings(method=method, alphas=(alpha,))
    with pieces_of(SIZE):
        (record,) = merge_files(*inputs, out=folder / "merged.safetensors", settings=how)
    result, want = load_file(folder / "merged.safetensors"), make(thetas, alpha)
    assert all_equal_bits(result, want)
    assert record.fingerprint == fingerprint_tensors(want)
    assert [entry.fingerprint for entry in record.inputs] == [fingerprint_tensors(theta) for theta in thetas]
    assert sorted((*record.interpolated, *record.copied)) == sorted(thetas[0])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_long_entries_are_cut_without_a_seam(tmp_path: Path, dtype: torch.dtype) -> None:
    """At many sizes of pieces, since vectorized arithmetic treats the last few numbers of a piece apart."""
    thetas = [{"w": torch.randn(777).to(dtype), "turned": torch.randn(31, 29).to(dtype).T} for _ in range(3)]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.pt") for number, theta in enumerate(thetas)]
    for size in (256, 264, 1000, 4096):
        with pieces_of(size):
            merge_files(*inputs[:2], alpha=0.3, out=tmp_path / f"{size}.safetensors")
            merge_files(*inputs, out=tmp_path / f"{size}-soup.safetensors", settings=MergeSettings(method="uniform"))
        assert all_equal_bits(load_file(tmp_path / f"{size}.safetensors"), sp.interpolate_weights(*thetas[:2], 0.3))
        assert all_equal_bits(load_file(tmp_path / f"{size}-soup.safetensors"), sp.average_weights(thetas))


@pytest.mark.usefixtures("small_pieces")
def test_a_row_that_is_longer_than_a_piece_is_cut_as_well(tmp_path: Path) -> None:
    """Entries with strides of their own are cut along their first axis, which may be a short one."""
    thetas = [{"turned": torch.randn(100, 2).T, "deep": torch.randn(2, 50, 3).transpose(1, 2)} for _ in range(2)]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.pt") for number, theta in enumerate(thetas)]
    merge_files(*inputs, alpha=0.3, out=tmp_path / "merged.safetensors")
    assert all_equal_bits(load_file(tmp_path / "merged.safetensors"), sp.interpolate_weights(*thetas, 0.3))


def test_model_stock_adds_up_its_products_over_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thetas = [{"w": torch.randn(501, dtype=torch.float64)} for _ in range(4)]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    monkeypatch.setattr(methods, "_ratio", functools.partial(methods._ratio, size=7))
    merge_files(*inputs, out=tmp_path / "merged.safetensors", settings=MergeSettings(method="model-stock"))
    result, want = load_file(tmp_path / "merged.safetensors")["w"], sp.weights.model_stock(thetas[0], thetas[1:])["w"]
    assert not torch.equal(want, thetas[0]["w"])
    torch.testing.assert_close(result, want, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
@settings(max_examples=25)
@given(data=st.data(), alpha=ALPHAS)
def test_the_order_of_keys_and_shards_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, alpha: float
) -> None:
    """Whatever shards either side has, the numbers and fingerprints are the same, and the shards are A's."""
    folder = tmp_path_factory.mktemp("order")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    names = [f"layer.{number}" for number in range(5)]
    thetas = [{name: torch.randn(6, 3, generator=generator) for name in names} for _ in range(2)]
    plain = [save_checkpoint(theta, folder / f"{i}.safetensors") for i, theta in enumerate(thetas)]
    inputs = []
    for number, theta in enumerate(thetas):
        shards = data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5))
        order = data.draw(st.permutations(names))
        of = dict(zip(order, [sorted(set(shards)).index(shard) for shard in shards], strict=True))
        inputs.append(save_shards({name: theta[name] for name in order}, folder / f"shards-{number}", of))
    with pieces_of(SIZE):
        (one,) = merge_files(*plain, alpha=alpha, out=folder / "plain.safetensors")
        (other,) = merge_files(*inputs, alpha=alpha, out=folder / "merged")
    assert all_equal_bits(open_checkpoint(folder / "merged").tensors, load_file(folder / "plain.safetensors"))
    assert other.fingerprint == one.fingerprint
    assert [entry.fingerprint for entry in other.inputs] == [entry.fingerprint for entry in one.inputs]
    result, of_a = open_checkpoint(folder / "merged").shards, open_checkpoint(inputs[0]).shards
    assert [set(held) for held in result.values()] == [set(held) for held in of_a.values()]
    assert list(result) == (list(of_a) if len(of_a) > 1 else ["model.safetensors"])


def test_fingerprints_tell_names_dtypes_shapes_and_bytes_apart(tmp_path: Path) -> None:
    variants = [
        {"w": torch.zeros(4)},
        {"v": torch.zeros(4)},
        {"w": torch.zeros(2, 2)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"w": torch.zeros(4), "void": torch.zeros(0)},
    ]
    result = set()
    for number, theta in enumerate(variants):
        path = save_checkpoint(theta, tmp_path / f"{number}.safetensors")
        (record,) = merge_files(path, path, alpha=0.0, out=tmp_path / f"{number}-merged.safetensors")
        assert record.fingerprint == record.inputs[0].fingerprint == record.inputs[1].fingerprint
        result.add(record.fingerprint)
    assert len(result) == len(variants)


# The writer


@settings(max_examples=30)
@given(data=st.data())
def test_the_writer_writes_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    (theta,) = data.draw(state_dicts(1))
    metadata = data.draw(st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=3))
    path = tmp_path_factory.mktemp("writer") / "x.safetensors"
    with SafetensorsWriter(path, theta, metadata) as writer:
        for name in writer.order:
            whole = flattened(theta[name])
            for start in range(0, len(whole), 5):
                writer.write(whole[start : start + 5])
    assert all_equal_bits(load_file(path), theta)
    with safe_open(path, "pt") as opened:
        assert (opened.metadata() or {}) == metadata
    # As the library itself lays them out: aligned for direct use.
    header = json.loads(path.read_bytes()[8:][: int.from_bytes(path.read_bytes()[:8], "little")])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    for name, tensor in theta.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0
