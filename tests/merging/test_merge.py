"""Merging of checkpoint files: exact, bounded in memory, and whole or not at all, whatever the disk or the files do."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import math
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import storage
from shiftproof.cli import app as cli
from shiftproof.merging import files, methods, streams
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors
from shiftproof.records.codec import document
from shiftproof.storage import move_into_place, staged
from shiftproof.weights.checkpoints import SafetensorsWriter, open_checkpoint

# Significand bits and the smallest exponent of a normal number, from the formats' definitions.
FORMATS = {
    torch.float16: (11, -14),
    torch.bfloat16: (8, -126),
    torch.float32: (24, -126),
    torch.float64: (53, -1022),
}
LARGEST = {torch.float16: 6.0e4, torch.bfloat16: 1e30, torch.float32: 1e30, torch.float64: 1e30}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
ALPHAS = st.floats(0, 1)
SIZE = 64  # bytes of a piece in most tests, so that every entry is cut


def half_unit(value: Fraction, dtype: torch.dtype) -> Fraction:
    """Half a unit in the last place of a number near ``value``."""
    bits, smallest = FORMATS[dtype]
    exponent = smallest if value == 0 else max(math.frexp(float(abs(value)))[1] - 1, smallest)
    return Fraction(2) ** (exponent - bits + 1) / 2


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, NaN and signs of zero included."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(flat(tensor).view(torch.uint8) for tensor in (one, other)))


def flat(tensor: Tensor) -> Tensor:
    """The values one after the other, in memory of their own."""
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.detach().reshape(-1))


def all_same(found: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> bool:
    return found.keys() == want.keys() and all(same(found[name], want[name]) for name in want)


@contextlib.contextmanager
def pieces_of(size: int) -> Iterator[None]:
    """Pieces of so many bytes, so that small entries are cut as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE", size)
        patch.setattr(files, "PIECE", size)
        yield


@pytest.fixture
def small_pieces() -> Iterator[None]:
    with pieces_of(SIZE):
        yield


def saved(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> Path:
    """A checkpoint file of the kind that the name asks for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        plain = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
        save_file(plain, path, metadata={"format": "pt", **metadata})
    else:
        torch.save(dict(tensors), path)
    return path


def sharded(
    tensors: Mapping[str, Tensor], folder: Path, of: Mapping[str, int], stem: str = "model.safetensors", **kept: Any
) -> Path:
    """A directory with shards and an index; ``of`` gives the number of every name's shard."""
    name, suffix = stem.split(".")
    file_of = {number: f"{name}-{number + 1:05d}-of-{max(of.values()) + 1:05d}.{suffix}" for number in of.values()}
    for number, file in file_of.items():
        saved({key: tensors[key] for key in tensors if of[key] == number}, folder / file)
    index = {"metadata": {"total_size": 1, **kept}, "weight_map": {key: file_of[number] for key, number in of.items()}}
    (folder / f"{stem}.index.json").write_text(json.dumps(index))
    return folder


def pair(folder: Path, suffix: str = ".safetensors", size: int = 40, **more: Tensor) -> tuple[Path, Path]:
    """Two small checkpoints of one architecture."""
    made = []
    for seed, name in enumerate(("a", "b")):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            "head.weight": torch.randn(3, 4, generator=generator),
            "visual.blocks.0.weight": torch.randn(size, generator=generator),
            "visual.blocks.1.weight": torch.randn(5, generator=generator).half(),
            "steps": torch.tensor(seed + 7),
        }
        made.append(saved({**tensors, **more}, folder / f"{name}{suffix}"))
    return made[0], made[1]


def content(folder: Path) -> dict[str, str]:
    """Everything under a folder, hidden files too, with the bytes of files."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "directory"
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def nothing_changes(folder: Path) -> Iterator[None]:
    before = content(folder)
    yield
    assert content(folder) == before


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """A command in this process, in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> Ended:
        monkeypatch.setattr(sys, "argv", ["shiftproof", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    return run


# What the numbers are


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
    a, b = saved(end, folder / f"a{suffix}"), saved(other, folder / f"b{suffix}")
    merge_files(a, b, alpha=0.0, out=folder / "start.safetensors")
    assert all_same(load_file(folder / "start.safetensors"), end)
    merge_files(b, a, alpha=1.0, out=folder / "end.safetensors")
    assert all_same(load_file(folder / "end.safetensors"), end)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@settings(max_examples=20)
@given(data=st.data(), alpha=ALPHAS)
def test_entries_are_the_exact_mean_rounded_once_and_the_ends_exchange(
    tmp_path_factory: pytest.TempPathFactory, dtype: torch.dtype, data: st.DataObject, alpha: float
) -> None:
    folder = tmp_path_factory.mktemp("mean")
    numbers = st.lists(st.floats(-LARGEST[dtype], LARGEST[dtype]), min_size=11, max_size=11)
    x, y = (torch.tensor(data.draw(numbers), dtype=torch.float64).to(dtype) for _ in range(2))
    a, b = saved({"w": x}, folder / "a.safetensors"), saved({"w": y}, folder / "b.pt")
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
    inputs = [saved(t, folder / f"{i}{suffix}") for i, (t, suffix) in enumerate(zip(thetas, suffixes, strict=True))]
    how = MergeSettings(method=method, alphas=(alpha,))
    with pieces_of(SIZE):
        (record,) = merge_files(*inputs, out=folder / "merged.safetensors", settings=how)
    found, want = load_file(folder / "merged.safetensors"), make(thetas, alpha)
    assert all_same(found, want)
    assert record.fingerprint == fingerprint_tensors(want)
    assert [entry.fingerprint for entry in record.inputs] == [fingerprint_tensors(theta) for theta in thetas]
    assert sorted((*record.interpolated, *record.copied)) == sorted(thetas[0])


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
def test_long_entries_are_cut_without_a_seam(tmp_path: Path, dtype: torch.dtype) -> None:
    """At many sizes of pieces, since vectorized arithmetic treats the last few numbers of a piece apart."""
    thetas = [{"w": torch.randn(777).to(dtype), "turned": torch.randn(31, 29).to(dtype).T} for _ in range(3)]
    inputs = [saved(theta, tmp_path / f"{number}.pt") for number, theta in enumerate(thetas)]
    for size in (256, 264, 1000, 4096):
        with pieces_of(size):
            merge_files(*inputs[:2], alpha=0.3, out=tmp_path / f"{size}.safetensors")
            merge_files(*inputs, out=tmp_path / f"{size}-soup.safetensors", settings=MergeSettings(method="uniform"))
        assert all_same(load_file(tmp_path / f"{size}.safetensors"), sp.interpolate_weights(*thetas[:2], 0.3))
        assert all_same(load_file(tmp_path / f"{size}-soup.safetensors"), sp.average_weights(thetas))


@pytest.mark.usefixtures("small_pieces")
def test_a_row_that_is_longer_than_a_piece_is_cut_as_well(tmp_path: Path) -> None:
    """Entries with strides of their own are cut along their first axis, which may be a short one."""
    thetas = [{"turned": torch.randn(100, 2).T, "deep": torch.randn(2, 50, 3).transpose(1, 2)} for _ in range(2)]
    inputs = [saved(theta, tmp_path / f"{number}.pt") for number, theta in enumerate(thetas)]
    merge_files(*inputs, alpha=0.3, out=tmp_path / "merged.safetensors")
    assert all_same(load_file(tmp_path / "merged.safetensors"), sp.interpolate_weights(*thetas, 0.3))


def test_model_stock_adds_up_its_products_over_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thetas = [{"w": torch.randn(501, dtype=torch.float64)} for _ in range(4)]
    inputs = [saved(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    monkeypatch.setattr(methods, "_ratio", functools.partial(methods._ratio, size=7))
    merge_files(*inputs, out=tmp_path / "merged.safetensors", settings=MergeSettings(method="model-stock"))
    found, want = load_file(tmp_path / "merged.safetensors")["w"], sp.weights.model_stock(thetas[0], thetas[1:])["w"]
    assert not torch.equal(want, thetas[0]["w"])
    torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-14)


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
    plain = [saved(theta, folder / f"{i}.safetensors") for i, theta in enumerate(thetas)]
    inputs = []
    for number, theta in enumerate(thetas):
        shards = data.draw(st.lists(st.integers(0, 3), min_size=5, max_size=5))
        order = data.draw(st.permutations(names))
        of = dict(zip(order, [sorted(set(shards)).index(shard) for shard in shards], strict=True))
        inputs.append(sharded({name: theta[name] for name in order}, folder / f"shards-{number}", of))
    with pieces_of(SIZE):
        (one,) = merge_files(*plain, alpha=alpha, out=folder / "plain.safetensors")
        (other,) = merge_files(*inputs, alpha=alpha, out=folder / "merged")
    assert all_same(open_checkpoint(folder / "merged").tensors, load_file(folder / "plain.safetensors"))
    assert other.fingerprint == one.fingerprint
    assert [entry.fingerprint for entry in other.inputs] == [entry.fingerprint for entry in one.inputs]
    found, of_a = open_checkpoint(folder / "merged").shards, open_checkpoint(inputs[0]).shards
    assert [set(held) for held in found.values()] == [set(held) for held in of_a.values()]
    assert list(found) == (list(of_a) if len(of_a) > 1 else ["model.safetensors"])


def test_fingerprints_tell_names_dtypes_shapes_and_bytes_apart(tmp_path: Path) -> None:
    variants = [
        {"w": torch.zeros(4)},
        {"v": torch.zeros(4)},
        {"w": torch.zeros(2, 2)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"w": torch.zeros(4), "void": torch.zeros(0)},
    ]
    found = set()
    for number, theta in enumerate(variants):
        path = saved(theta, tmp_path / f"{number}.safetensors")
        (record,) = merge_files(path, path, alpha=0.0, out=tmp_path / f"{number}-merged.safetensors")
        assert record.fingerprint == record.inputs[0].fingerprint == record.inputs[1].fingerprint
        found.add(record.fingerprint)
    assert len(found) == len(variants)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.49, 0.5, 0.8, 1.0])
def test_integers_and_booleans_are_copied_from_the_nearer_input(tmp_path: Path, alpha: float) -> None:
    thetas = [
        {"w": torch.rand(2), **{str(d): torch.tensor([n, 0, n]).to(d) for d in INTEGERS}, "ids": torch.arange(3) + n}
        for n in (0, 5)
    ]
    a, b = (saved(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas))
    (record,) = merge_files(a, b, alpha=alpha, out=tmp_path / "merged.safetensors")
    found, nearer = load_file(tmp_path / "merged.safetensors"), thetas[0 if alpha < 0.5 else 1]
    assert all(same(found[name], nearer[name]) for name in nearer if name != "w")
    assert set(record.copied) == set(nearer) - ({"w"} if 0 < alpha < 1 else set())


@pytest.mark.parametrize("alphas", [(0.0,), (0.4,), (1.0,), (0.0, 0.5), (0.5, 1.0)], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_integers_may_be_required_equal_while_floats_may_differ(tmp_path: Path, alphas: tuple[float, ...]) -> None:
    ids = torch.arange(50)
    thetas = [{"w": torch.randn(4), "ids": ids, "flag": torch.tensor(True)} for _ in range(2)]
    inputs = [saved(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    how = MergeSettings(alphas=alphas, integers="equal")
    records = merge_files(*inputs, out=tmp_path / "merged", settings=how)
    for record in records:
        assert same(load_file(Path(record.out) / "model.safetensors")["ids"], ids)
    other = ids.clone()
    other[-1] += 1  # in the last piece
    saved({**thetas[1], "ids": other}, inputs[1])
    with (
        nothing_changes(tmp_path),
        pytest.raises(sp.IncompatibleWeightsError, match="integers of 'ids' differ.*integers='copy'"),
    ):
        merge_files(*inputs, out=tmp_path / "other", settings=how)


def test_ties_of_torch_files_are_reported_and_equal(tmp_path: Path) -> None:
    inputs = []
    for number in range(2):
        shared, half = torch.randn(4, 3), torch.randn(4, 3)
        tensors = {"embed": shared, "head": shared, "view": shared.T, "half": half, "void": torch.zeros(0)}
        tensors["once"] = half if number else torch.randn(4, 3)
        inputs.append(saved(tensors, tmp_path / f"{number}.pt"))
    (record,) = merge_files(*inputs, alpha=0.3, out=tmp_path / "merged.safetensors")
    found = load_file(tmp_path / "merged.safetensors")
    assert record.tied == {"head": "embed"}
    assert same(found["head"], found["embed"])
    assert same(found["view"], found["embed"].T)
    assert not torch.equal(found["once"], found["half"])
    assert json.loads((tmp_path / "merged.merge.json").read_text())["tied"] == {"head": "embed"}
    assert "1 names tied to another's memory" in (tmp_path / "merged.md").read_text()


def test_ties_with_alphas_of_their_own_are_no_ties(tmp_path: Path) -> None:
    """The card says of tied names that their values are equal, so these must not be among them."""
    inputs = []
    for number in range(2):
        shared = torch.randn(5)
        inputs.append(saved({"embed": shared, "head": shared}, tmp_path / f"{number}.pt"))
    how = MergeSettings(alphas=(0.25,), layers={"head": 1.0})
    (record,) = merge_files(*inputs, out=tmp_path / "merged.safetensors", settings=how)
    found = load_file(tmp_path / "merged.safetensors")
    assert not torch.equal(found["head"], found["embed"])
    assert not record.tied


@pytest.mark.usefixtures("small_pieces")
def test_several_alphas_in_one_pass_equal_single_merges(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    alphas = (0.0, 0.3, 1 / 3, 0.5, 1.0)
    records = merge_files(a, b, alpha=alphas, out=tmp_path / "many")
    names = ["alpha-0.00", "alpha-0.30", "alpha-0.3333333333", "alpha-0.50", "alpha-1.00"]
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names
    for alpha, name, record in zip(alphas, names, records, strict=True):
        (alone,) = merge_files(a, b, alpha=alpha, out=tmp_path / name)
        assert (record.alpha, record.out) == (alpha, str(tmp_path / "many" / name))
        for file in ("model.safetensors", "README.md"):
            assert (tmp_path / "many" / name / file).read_bytes() == (tmp_path / name / file).read_bytes()
        assert record.fingerprint == alone.fingerprint
        assert record.inputs == alone.inputs


@pytest.mark.parametrize(
    "how",
    [
        {"alphas": (0.3, 0.3)},
        {"alphas": (0.3, 0.3 + 1e-13)},
        {"alphas": (0.3, 0.5), "layers": {"head.*": 1.0}},
    ],
    ids=str,
)
def test_outputs_never_share_a_folder(tmp_path: Path, how: dict[str, Any]) -> None:
    """Each of several outputs has a folder of its own, or the merge is refused."""
    a, b = pair(tmp_path)
    try:
        records = merge_files(a, b, out=tmp_path / "merged", settings=MergeSettings(**how))
    except sp.InputError:
        assert not (tmp_path / "merged").exists()
        return
    assert len({record.out for record in records}) == len(records)
    for record in records:
        stored = load_file(Path(record.out) / "model.safetensors")
        assert fingerprint_tensors(stored) == record.fingerprint


@pytest.mark.parametrize("how", [{"layers": {"head.*": 1.0, "visual.*.1.*": 0.0}}, {"depth": (0.1, 0.9)}], ids=str)
def test_layers_have_alphas_of_their_own(tmp_path: Path, how: dict[str, Any]) -> None:
    a, b = pair(tmp_path)
    thetas, names = [load_file(path) for path in (a, b)], sorted(load_file(a))
    if "layers" in how:
        alphas = sp.weights.alphas_by_pattern(names, how["layers"], 0.25)
        assert alphas == {
            "head.weight": 1.0, "steps": 0.25, "visual.blocks.0.weight": 0.25, "visual.blocks.1.weight": 0.0,
        }  # fmt: skip
    else:
        alphas = sp.weights.alphas_by_depth(names, *how["depth"])
    (record,) = merge_files(a, b, out=tmp_path / "merged.safetensors", settings=MergeSettings(alphas=(0.25,), **how))
    assert all_same(load_file(tmp_path / "merged.safetensors"), sp.interpolate_weights(*thetas, alphas))
    assert (record.alpha, record.alphas) == (None, alphas)
    assert set(record.interpolated) == {name for name in names if 0 < alphas[name] < 1 and name != "steps"}
    low, high = min(alphas.values()), max(alphas.values())
    assert f"alpha: from {low:g} to {high:g}, by layer." in (tmp_path / "merged.md").read_text()


def test_a_scalar_logit_scale_is_interpolated_as_the_logarithm_that_it_is(tmp_path: Path) -> None:
    inputs = [saved({"logit_scale": torch.tensor(math.log(s))}, tmp_path / f"{s}.safetensors") for s in (4, 25)]
    merge_files(*inputs, out=tmp_path / "merged.safetensors")
    assert load_file(tmp_path / "merged.safetensors")["logit_scale"].exp().item() == pytest.approx(10)


def test_an_adapter_changes_the_weights_by_its_product(tmp_path: Path) -> None:
    weight, bias = torch.randn(4, 3, dtype=torch.float64).float(), torch.randn(4)
    base = saved({"encoder.fc.weight": weight, "encoder.fc.bias": bias}, tmp_path / "base.safetensors")
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    adapter = {f"base_model.model.encoder.fc.lora_{part}.weight": t for part, t in (("A", a), ("B", b))}
    saved(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 6, "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (record,) = merge_files(base, tmp_path / "adapter", alpha=0.4, out=tmp_path / "merged.safetensors")
    found = load_file(tmp_path / "merged.safetensors")
    want = weight.double() + 0.4 * 3 * (b.double() @ a.double())
    torch.testing.assert_close(found["encoder.fc.weight"].double(), want, rtol=1e-6, atol=1e-6)
    assert same(found["encoder.fc.bias"], bias)
    assert [entry.fingerprint for entry in record.inputs] == [
        fingerprint_tensors(load_file(base)),
        fingerprint_tensors(adapter),
    ]


# Files that are read: wrappers, shards, and what stands beside them


WRAPPED: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "plain": lambda theta: theta,
    "state_dict": lambda theta: {"state_dict": theta, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model": lambda theta: {"model": theta, "args": {"seed": 1}},
    "model_state_dict": lambda theta: {"model_state_dict": theta, "step": 4},
    "both levels": lambda theta: {"state_dict": {"model": theta, "step": 2}, "epoch": 1},
    "module.": lambda theta: {f"module.{name}": tensor for name, tensor in theta.items()},
    "_orig_mod.": lambda theta: {f"_orig_mod.{name}": tensor for name, tensor in theta.items()},
    "both prefixes": lambda theta: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in theta.items()}},
    "ema_model.": lambda theta: {f"ema_model.{name}": tensor for name, tensor in theta.items()},
    "parameters": lambda theta: {
        name: nn.Parameter(tensor) if tensor.is_floating_point() else tensor for name, tensor in theta.items()
    },
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_of_trainers_are_taken_off(tmp_path: Path, wrapper: str, legacy: bool) -> None:
    a, b = pair(tmp_path)
    theta = load_file(b)
    torch.save(WRAPPED[wrapper](theta), tmp_path / "b.ckpt", _use_new_zipfile_serialization=not legacy)
    assert all_same(open_checkpoint(tmp_path / "b.ckpt").tensors, theta)
    merge_files(a, tmp_path / "b.ckpt", alpha=0.3, out=tmp_path / "merged.safetensors")
    want = sp.interpolate_weights(load_file(a), theta, 0.3)
    assert all_same(load_file(tmp_path / "merged.safetensors"), want)


def test_a_prefix_of_some_names_only_is_part_of_them(tmp_path: Path) -> None:
    theta = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    assert set(open_checkpoint(saved(theta, tmp_path / "a.pt")).tensors) == set(theta)


@pytest.mark.parametrize("names", [("a", "b", "c"), ("module.a", "module.b", "c")], ids=str)
def test_sharded_pickles_become_sharded_safetensors(tmp_path: Path, names: tuple[str, ...]) -> None:
    thetas = [{name: torch.randn(4) for name in names} for _ in range(2)]
    of = dict(zip(names, (0, 0, 1), strict=True))
    folders = [sharded(theta, tmp_path / str(i), of, "pytorch_model.bin") for i, theta in enumerate(thetas)]
    merge_files(*folders, alpha=0.3, out=tmp_path / "merged")
    assert {p.name for p in (tmp_path / "merged").iterdir()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "merge.json",
        "README.md",
    }
    found = open_checkpoint(tmp_path / "merged")
    assert all_same(found.tensors, sp.interpolate_weights(*thetas, 0.3))
    assert list(found.shards.values()) == [tuple(sorted(names[:2])), names[2:]]


def test_a_wrapper_is_taken_off_all_shards(tmp_path: Path) -> None:
    theta = {f"module.{name}": torch.randn(3) for name in "abc"}
    folder = sharded(theta, tmp_path / "a", dict(zip(theta, (0, 1, 1), strict=True)), "pytorch_model.bin")
    assert set(open_checkpoint(folder).tensors) == {"a", "b", "c"}


def test_shards_are_cut_anew(tmp_path: Path) -> None:
    """Nothing but the safetensors library and the index is needed to read them back."""
    thetas = [{f"layer.{i}": torch.randn(10) for i in range(7)} for _ in range(2)]
    thetas[0]["large"], thetas[1]["large"] = torch.randn(50), torch.randn(50)
    folders = [sharded(theta, tmp_path / str(i), dict.fromkeys(theta, 0), kept="yes") for i, theta in enumerate(thetas)]
    (record,) = merge_files(*folders, out=tmp_path / "merged", settings=MergeSettings(shard_size=100))
    want = sp.interpolate_weights(*thetas, 0.5)
    index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    total = sum(tensor.numel() * 4 for tensor in want.values())
    assert index["metadata"] == {"total_size": total, "kept": "yes"}
    assert record.bytes == total
    assert index["weight_map"].keys() == want.keys()
    shards = set(index["weight_map"].values())
    assert shards == {f"model-{i:05d}-of-00005.safetensors" for i in range(1, 6)} == set(record.files)
    loaded: dict[str, Tensor] = {}
    for shard in shards:
        held = load_file(tmp_path / "merged" / shard)
        assert {name for name, of in index["weight_map"].items() if of == shard} == set(held)
        assert record.files[shard] == sum(tensor.numel() * 4 for tensor in held.values())
        assert record.files[shard] <= 100 or set(held) == {"large"}
        loaded |= held
    assert all_same(loaded, want)
    # And back into one.
    merge_files(
        tmp_path / "merged", tmp_path / "merged", out=tmp_path / "one", settings=MergeSettings(shard_size=10**9)
    )
    assert all_same(load_file(tmp_path / "one" / "model.safetensors"), want)
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()


def test_metadata_is_kept(tmp_path: Path) -> None:
    theta = {"w": torch.zeros(2)}
    a = saved(theta, tmp_path / "a.safetensors", licence="MIT", author="Zoë")
    b = saved(theta, tmp_path / "b.safetensors", licence="other", more="x")
    merge_files(a, b, out=tmp_path / "merged.safetensors")
    with safe_open(tmp_path / "merged.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "licence": "MIT", "author": "Zoë"}


BESIDE = {
    "config.json": '{"model_type": "clip"}',
    "tokenizer.json": "{}",
    "merges.txt": "a b",
    "spiece.model": "x",
    "preprocessor_config.json": "{}",
    "LICENSE": "MIT",
}
STALE = (
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "tf_model.h5",
    "flax_model.msgpack",
    "model.onnx",
    "optimizer.pt",
    "model.gguf",
    "rust_model.ot",
    "64.tflite",
)


@pytest.mark.parametrize("stale", STALE)
def test_configs_and_tokenizers_go_along_and_stale_weights_do_not(tmp_path: Path, stale: str) -> None:
    """A loader that prefers another format would take the unmerged model."""
    a, b = pair(tmp_path, ".pt")
    folder = saved(open_checkpoint(a).tensors, tmp_path / "model" / "model.safetensors").parent
    for name, text in {**BESIDE, stale: "stale", ".cache": "hidden", "README.md": "A's card"}.items():
        (folder / name).write_text(text)
    (folder / "onnx").mkdir()
    (record,) = merge_files(folder, b, out=tmp_path / "merged")
    found = {path.name: path for path in (tmp_path / "merged").iterdir()}
    assert found.keys() == {*BESIDE, "model.safetensors", "merge.json", "README.md"}
    assert all(found[name].read_text() == text for name, text in BESIDE.items())
    assert record.copied_files == tuple(sorted(BESIDE))
    assert found["README.md"].read_text().startswith("---\ntags: [merge, linear]\n---\n# Merged weights")


# Files that cannot be used


class Trap:
    """Unpickling it writes a file: what weights_only must prevent."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.marker, "run")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["a.pt", "model/pytorch_model.bin", "shards"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, place: str, legacy: bool, nested: bool) -> None:
    marker = tmp_path / "marker"
    _, good = pair(tmp_path)
    theta: dict[str, Any] = {**load_file(good), "trap": Trap(marker)}
    stored = {"state_dict": theta} if nested else theta
    if place == "shards":
        bad = sharded(load_file(good), tmp_path / "shards", dict.fromkeys(load_file(good), 0), "pytorch_model.bin")
        target = bad / "pytorch_model-00001-of-00001.bin"
    else:
        target = tmp_path / place
        target.parent.mkdir(exist_ok=True)
        bad = target if place == "a.pt" else target.parent
    torch.save(stored, target, _use_new_zipfile_serialization=not legacy)
    with nothing_changes(tmp_path):
        for inputs in ((bad, good), (good, bad)):
            with pytest.raises(sp.InputError, match="could run code, so it is not loaded.*safetensors") as caught:
                merge_files(*inputs, out=tmp_path / "merged.safetensors")
            assert str(target) in str(caught.value)
    assert not marker.exists()
    # The trap works where it is let.
    torch.load(target, weights_only=False)
    assert marker.exists()


def lying(path: Path, header: dict[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str, shape: list[int], *offsets: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": list(offsets)}


def cut(path: Path, share: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def index(folder: Path, text: str) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors.index.json").write_text(text)
    return folder / "model"


def edited(folder: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A sharded directory whose index, or shards, were changed."""
    theta = {name: torch.zeros(2) for name in ("x", "y", "z")}
    model = sharded(theta, folder / "model", {"x": 0, "y": 1, "z": 1})
    file = model / "model.safetensors.index.json"
    stored = json.loads(file.read_text())
    change(model, stored)
    file.write_text(json.dumps(stored))
    return model


def written(path: Path, value: Any) -> Path:
    """A torch file of anything."""
    path.parent.mkdir(exist_ok=True)
    torch.save(value, path)
    return path


def raw(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def directory(folder: Path, *names: str) -> Path:
    (folder / "model").mkdir()
    for name in names:
        saved({"w": torch.zeros(1)}, folder / "model" / name)
    return folder / "model"


LFS = b"version https://git-lfs.github.com/spec/v1"  # what stands for a file that was not fetched
NOT_WHOLE = "is not a whole safetensors file .*Restore it"
NOT_TORCH = "is not a whole torch file .*Restore it"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "none.safetensors", "none.safetensors does not exist. Check the path"),
    "no checkpoint": (lambda f: raw(f / "notes.txt", b"hello"), "is no checkpoint: its name must end with"),
    "empty directory": (lambda f: directory(f), "holds no weights file. Name the file itself"),
    "several files": (
        lambda f: directory(f, "one.safetensors", "two.safetensors"),
        "several weights files: 'one.safetensors', 'two.safetensors'. Name the file itself",
    ),
    "several pickles": (lambda f: directory(f, "one.pt", "two.bin"), "several weights files: 'one.pt', 'two.bin'"),
    "empty safetensors": (lambda f: raw(f / "x.safetensors", b""), NOT_WHOLE),
    "empty torch file": (lambda f: raw(f / "x.pt", b""), NOT_TORCH),
    "text as safetensors": (lambda f: raw(f / "x.safetensors", LFS), NOT_WHOLE),
    "text as torch": (lambda f: raw(f / "x.pt", LFS), "x.pt"),
    "cut safetensors": (lambda f: cut(pair(f / "in")[0], 0.8), NOT_WHOLE),
    "cut header": (lambda f: cut(pair(f / "in")[0], 0.2), NOT_WHOLE),
    "cut torch file": (lambda f: cut(pair(f / "in", ".pt")[0], 0.8), NOT_TORCH),
    "header longer than the file": (lambda f: lying(f / "x.safetensors", {}, length=1 << 40), NOT_WHOLE),
    "header of no JSON": (lambda f: lying(f / "x.safetensors", b"{'w': 1}"), NOT_WHOLE),
    "offsets beyond the file": (
        lambda f: lying(f / "x.safetensors", {"w": entry("F32", [1000], 0, 4000)}, bytes(8)), NOT_WHOLE,
    ),
    "offsets that overlap": (
        lambda f: lying(f / "x.safetensors", {"v": entry("F32", [2], 0, 8), "w": entry("F32", [2], 4, 12)}, bytes(12)),
        NOT_WHOLE,
    ),
    "a hole between offsets": (
        lambda f: lying(f / "x.safetensors", {"v": entry("F32", [2], 0, 8), "w": entry("F32", [1], 12, 16)}, bytes(16)),
        NOT_WHOLE,
    ),
    "offsets that run backwards": (
        lambda f: lying(f / "x.safetensors", {"w": entry("F32", [2], 8, 0)}, bytes(8)), NOT_WHOLE,
    ),
    "a size that the dtype denies": (
        lambda f: lying(f / "x.safetensors", {"w": entry("F64", [2], 0, 8)}, bytes(8)), NOT_WHOLE,
    ),
    "a shape that overflows": (
        lambda f: lying(f / "x.safetensors", {"w": entry("F32", [2**40, 2**40], 0, 8)}, bytes(8)), NOT_WHOLE,
    ),
    "an unknown dtype": (lambda f: lying(f / "x.safetensors", {"w": entry("F31", [2], 0, 8)}, bytes(8)), NOT_WHOLE),
    "bytes behind the last entry": (
        lambda f: lying(f / "x.safetensors", {"w": entry("F32", [2], 0, 8)}, bytes(20)), NOT_WHOLE,
    ),
    "a whole module": (lambda f: written(f / "x.pt", nn.Linear(2, 2)), "could run code.*state_dict"),
    "a tensor alone": (lambda f: written(f / "x.pt", torch.zeros(2)), "holds a Tensor; it must be a state dict"),
    "a list": (lambda f: written(f / "x.pt", [torch.zeros(2)]), "holds a list; it must be a state dict"),
    "other things": (lambda f: written(f / "x.pt", {"epoch": 3, "lr": 0.1}), "its keys are 'epoch', 'lr'"),
    "nothing in it": (lambda f: written(f / "x.pt", {"state_dict": {}}), "holds no state dict"),
    "numbers among tensors": (
        lambda f: written(f / "x.pt", {"w": torch.zeros(2), "step": 3}), "no state dict: its keys are 'w', 'step'",
    ),
    "names that are numbers": (lambda f: written(f / "x.pt", {0: torch.zeros(2)}), "no state dict: its keys are '0'"),
    "a sparse tensor": (lambda f: written(f / "x.pt", {"w": torch.eye(3).to_sparse()}), "x.pt"),
    "a tensor without data": (lambda f: written(f / "x.pt", {"w": torch.zeros(3, device="meta")}), "x.pt"),
    "a plain pickle": (lambda f: raw(f / "x.pt", pickle.dumps({"w": [1, 2]})), "x.pt"),
    "index of no JSON": (lambda f: index(f, "{"), "is not valid JSON"),
    "index without a map": (lambda f: index(f, '{"metadata": {}}'), "has no weight_map. Restore it"),
    "index that is a list": (lambda f: index(f, "[]"), "has no weight_map. Restore it"),
    "index with an empty map": (lambda f: index(f, '{"weight_map": {}}'), "has no weight_map"),
    "shard outside": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="../model.safetensors")),
        "puts x into '../model.safetensors'; a shard must be a file beside the index",
    ),
    "shard below": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="sub/model.safetensors")),
        "a shard must be a file beside the index",
    ),
    "absolute shard": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x="/etc/passwd")),
        "a shard must be a file beside the index",
    ),
    "shard of no name": (lambda f: edited(f, lambda _, stored: stored["weight_map"].update(x=3)), "puts x into 3; "),
    "missing shard": (
        lambda f: edited(f, lambda model, _: (model / "model-00002-of-00002.safetensors").unlink()),
        "lacks the shards 'model-00002-of-00002.safetensors' of its index. Fetch them",
    ),
    "cut shard": (
        lambda f: edited(f, lambda model, _: cut(model / "model-00002-of-00002.safetensors", 0.9) and None), NOT_WHOLE,
    ),
    "a name that no shard has": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(v="model-00001-of-00002.safetensors")),
        "do not agree on 'v'. Restore both",
    ),
    "a name in another shard": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].update(y="model-00001-of-00002.safetensors")),
        "do not agree on 'y'",
    ),
    "a shard's name that the index lacks": (
        lambda f: edited(f, lambda _, stored: stored["weight_map"].pop("z") and None), "do not agree on 'z'",
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch wonders about pickle protocols and sparse tensors
@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    make, said = BROKEN[kind]
    bad, (good, _) = make(tmp_path), pair(tmp_path / "good")
    with nothing_changes(tmp_path):
        for inputs in ((bad, good), (good, bad), (bad, bad)):
            with pytest.raises(sp.InputError, match=said) as caught:
                merge_files(*inputs, out=tmp_path / "merged")
            assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("metadata", ["text", [1], 3, {"total_size": "many"}], ids=str)
def test_what_an_index_tells_beside_its_map_does_no_harm(tmp_path: Path, metadata: Any) -> None:
    model = edited(tmp_path, lambda _, stored: stored.update(metadata=metadata))
    try:
        merge_files(model, model, alpha=0.0, out=tmp_path / "merged")
    except sp.InputError:
        assert not (tmp_path / "merged").exists()
        return
    written_index = json.loads((tmp_path / "merged" / "model.safetensors.index.json").read_text())
    assert written_index["metadata"]["total_size"] == 24


@pytest.mark.parametrize("kind", ["zip.pt", "legacy.pt", "x.safetensors"])
@settings(max_examples=200)
@given(data=st.data())
@example(data=None)
def test_damage_anywhere_is_an_input_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject | None
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    theta = {"a.w": torch.arange(12.0).view(3, 4), "b": torch.arange(5), "c": torch.ones(2).half()}
    path = folder / kind
    if kind == "legacy.pt":
        torch.save(theta, path, _use_new_zipfile_serialization=False)
    else:
        saved(theta, path)
    whole = path.read_bytes()
    if data is None:
        assert all_same(open_checkpoint(path).tensors, theta)
        return
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    for place in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=3)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wonders about the pickle protocol
        with contextlib.suppress(sp.InputError):
            found = open_checkpoint(path).tensors
            assert all(isinstance(tensor, Tensor) for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fnuz], ids=str)
def test_a_dtype_that_safetensors_lack_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = saved({"w": torch.ones(3).to(dtype)}, tmp_path / "a.pt")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="w has the dtype .* which safetensors cannot"):
        merge_files(path, path, out=tmp_path / "merged.safetensors")


def test_a_mismatch_of_names_lists_ten_of_each_side_and_the_way_out(tmp_path: Path) -> None:
    a = saved({f"encoder.{i:02d}": torch.zeros(1) for i in range(14)}, tmp_path / "a.safetensors")
    b = saved({f"module.encoder.{i:02d}": torch.zeros(1) for i in range(12)}, tmp_path / "b.safetensors")
    with nothing_changes(tmp_path), pytest.raises(sp.IncompatibleWeightsError) as caught:
        merge_files(a, b, out=tmp_path / "merged")
    said = str(caught.value)
    assert all(f"'encoder.{i:02d}'" in said and f"'module.encoder.{i:02d}'" in said for i in range(10))
    assert "'encoder.10'" not in said
    assert "'module.encoder.10'" not in said
    assert "and 4 more" in said
    assert "and 2 more" in said
    assert "strip wrapper prefixes such as 'module.'" in said


@pytest.mark.parametrize("missing", ["error", "keep"])
@pytest.mark.parametrize(
    ("other", "said"),
    [
        (torch.zeros(3, 2), r"head.weight \(float32 \[2, 3\] and float32 \[3, 2\]\)"),
        (torch.zeros(2, 3).half(), r"head.weight \(float32 \[2, 3\] and float16 \[2, 3\]\).*convert to one dtype"),
        (torch.zeros(2, 3, dtype=torch.int32), r"head.weight \(float32 \[2, 3\] and int32 \[2, 3\]\)"),
    ],
)
def test_another_shape_or_dtype_is_named(tmp_path: Path, other: Tensor, said: str, missing: str) -> None:
    a = saved({"head.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    b = saved({"head.weight": other}, tmp_path / "b.safetensors")
    with nothing_changes(tmp_path), pytest.raises(sp.IncompatibleWeightsError, match=said):
        merge_files(a, b, out=tmp_path / "merged", settings=MergeSettings(missing=missing))


@pytest.mark.usefixtures("small_pieces")
def test_what_an_input_lacks_may_be_kept(tmp_path: Path) -> None:
    thetas = [
        {"w": torch.randn(30), "text": torch.randn(30)},
        {"w": torch.randn(30), "head": torch.randn(3)},
        {"w": torch.randn(30), "text": torch.randn(30), "head": torch.randn(3)},
    ]
    inputs = [saved(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    how = MergeSettings(missing="keep", alphas=(0.25,))
    (record,) = merge_files(*inputs[:2], out=tmp_path / "two", settings=how)
    want = {**sp.interpolate_weights(*({"w": theta["w"]} for theta in thetas[:2]), 0.25)}
    found = load_file(tmp_path / "two" / "model.safetensors")
    assert all_same(found, {**want, "text": thetas[0]["text"], "head": thetas[1]["head"]})
    assert (record.interpolated, set(record.missing)) == (("w",), {"text", "head"})
    assert "2 entries that some input lacks, kept from the first that has them" in (
        (tmp_path / "two" / "README.md").read_text()
    )
    (soup,) = merge_files(*inputs, out=tmp_path / "three", settings=MergeSettings(method="uniform", missing="keep"))
    found = load_file(tmp_path / "three" / "model.safetensors")
    assert same(found["text"], thetas[0]["text"])
    assert same(found["head"], thetas[1]["head"])
    # A fingerprint is that of the whole input, also of what was not taken from it.
    assert [entry.fingerprint for entry in soup.inputs] == [fingerprint_tensors(theta) for theta in thetas]


def test_inputs_without_a_common_entry_are_refused(tmp_path: Path) -> None:
    a, b = (saved({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors") for name in "ab")
    with nothing_changes(tmp_path), pytest.raises(sp.IncompatibleWeightsError, match="no entry in common"):
        merge_files(a, b, out=tmp_path / "merged", settings=MergeSettings(missing="keep"))


def test_the_sum_of_what_is_said_accounts_for_every_entry(tmp_path: Path) -> None:
    """merge.json, the card and the record agree, and name what a reader needs."""
    shared = torch.randn(3)
    a = saved({"w": shared, "tied": shared, "n": torch.tensor(1), "only": torch.ones(2)}, tmp_path / "a.pt")
    shared = torch.randn(3)
    b = saved({"w": shared, "tied": shared, "n": torch.tensor(2)}, tmp_path / "b.pt")
    how = MergeSettings(alphas=(0.3,), missing="keep")
    for out, report, card in (
        ("merged", "merged/merge.json", "merged/README.md"),
        ("merged.safetensors", "merged.merge.json", "merged.md"),
    ):
        (record,) = merge_files(a, b, out=tmp_path / out, settings=how)
        stored = json.loads((tmp_path / report).read_text())
        assert stored == json.loads(json.dumps(document(record)))
        assert (stored["method"], stored["alpha"]) == ("linear", 0.3)
        assert [(entry["path"], entry["role"]) for entry in stored["inputs"]] == [
            (str(a), "zero_shot"), (str(b), "fine_tuned"),
        ]  # fmt: skip
        assert stored["interpolated"] == ["w", "tied"]
        assert (stored["copied"], stored["missing"], stored["tied"]) == (["n"], ["only"], {"tied": "w"})
        assert stored["files"] == {"model.safetensors" if out == "merged" else out: 12 + 12 + 8 + 8}
        text = (tmp_path / card).read_text()
        for said in (
            "alpha: 0.3.",
            "WiSE-FT",
            "2 entries combined",
            "1 entries copied",
            "1 names tied",
            "1 entries that some input lacks",
            f"Fingerprint of these weights: `{record.fingerprint}`",
            *(f"| `{entry.path}` | {entry.role.replace('_', '-')} | torch | `{entry.fingerprint}` |"
              for entry in record.inputs),
        ):  # fmt: skip
            assert said in text
        weights = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
        assert record.fingerprint == fingerprint_tensors(load_file(weights))


# Disks


class Disk(NamedTuple):
    """A folder with room for so many bytes; ``limited`` makes it so where no file system could be mounted."""

    folder: Path
    limited: Callable[[], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def files_limited(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes in this block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """A disk of 8 MB: a file system of its own where mounting is permitted, else a limit on files.

    It is not in pytest's folders: a mount that a killed test leaves would break the next run's cleaning.
    """
    folder = Path(tempfile.mkdtemp(prefix="shiftproof-disk-"))
    mounted = False
    if request.param == "tmpfs" and sys.platform == "linux" and shutil.which("mount"):
        command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    yield Disk(folder, contextlib.nullcontext if mounted else functools.partial(files_limited, 8 << 20))
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)
    shutil.rmtree(folder)


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
@pytest.mark.parametrize("how", [MergeSettings(), MergeSettings(method="uniform")], ids=["linear", "uniform"])
def test_a_disk_that_fills_midway_leaves_what_was_there(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, how: MergeSettings
) -> None:
    small, large = pair(tmp_path / "small"), pair(tmp_path / "large", size=3 << 20)
    merge_files(*small, out=disk.folder / out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1 << 50, 0, 1 << 50))
    with disk.limited(), nothing_changes(disk.folder), nothing_changes(tmp_path / "large"):
        with pytest.raises(sp.InputError, match="cannot be written .*Nothing was changed. Free some space"):
            merge_files(*large, out=disk.folder / out, settings=how, overwrite=True)
        with pytest.raises(sp.InputError, match="cannot be written"):
            merge_files(*large, out=disk.folder / f"new-{out}", settings=how)
    # And with room again it succeeds.
    (record,) = merge_files(*small, out=disk.folder / out, alpha=0.1, overwrite=True)
    stored = disk.folder / out / "model.safetensors" if out == "merged" else disk.folder / out
    assert fingerprint_tensors(load_file(stored)) == record.fingerprint


def test_a_disk_without_room_is_refused_before_anything_is_written(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = pair(tmp_path / "large", size=1 << 20)
    if disk.limited is not contextlib.nullcontext:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(8 << 20, 0, 8 << 20))
    merge_files(*large, out=disk.folder / "one", alpha=0.5)  # 4 MB of 8
    with nothing_changes(disk.folder):
        with pytest.raises(sp.InputError, match="the output needs 0.01 GB and .* has 0.0[01] GB free. Free some"):
            merge_files(*large, out=disk.folder / "deep" / "two", alpha=(0.3, 0.5, 0.7))
        # A dry run needs no room.
        merge_files(*large, out=disk.folder / "two", alpha=(0.3, 0.5, 0.7), dry_run=True)


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_a_failed_rename_leaves_the_earlier_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str) -> None:
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / out)
    replace = os.replace

    def failing(source: str | Path, target: str | Path) -> None:
        if Path(target) == tmp_path / out:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    before = stored.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", failing)
        with pytest.raises(sp.InputError, match="Nothing was changed"):
            merge_files(a, b, alpha=0.7, out=tmp_path / out, overwrite=True)
    assert stored.exists()
    assert stored.read_bytes() == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_what_fails_in_a_stage_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "out") as made:
            (made / "half").write_text("half")
            raise ValueError("broken")

    with nothing_changes(tmp_path), pytest.raises(ValueError, match="broken"):
        fail()


def test_a_kill_between_the_two_renames_is_undone(tmp_path: Path) -> None:
    """The earlier output was moved aside, and the new one did not come."""
    out = tmp_path / "merged"
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=out)
    earlier = content(out)
    partial = tmp_path / ".merged.partial" / "made"
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_bytes(b"half")
    out.rename(tmp_path / ".merged.replaced")
    with staged(out) as made:
        assert content(out) == earlier
        assert not list(made.iterdir())
    assert content(out) == earlier
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}
    # A merge that fails restores it as well, and one that succeeds leaves nothing else.
    out.rename(tmp_path / ".merged.replaced")
    (record,) = merge_files(a, b, alpha=0.9, out=out, overwrite=True)
    assert fingerprint_tensors(load_file(out / "model.safetensors")) == record.fingerprint
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}


def test_an_output_that_was_moved_aside_still_needs_overwrite(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / "merged")
    earlier = content(tmp_path / "merged")
    (tmp_path / "merged").rename(tmp_path / ".merged.replaced")
    with pytest.raises(sp.InputError, match="add `overwrite=True`"):
        merge_files(a, b, alpha=0.9, out=tmp_path / "merged")
    kept = tmp_path / "merged" if (tmp_path / "merged").exists() else tmp_path / ".merged.replaced"
    assert content(kept) == earlier


def test_a_leftover_beside_a_whole_output_is_cleared_away(tmp_path: Path) -> None:
    """Killed after the second rename: the new output stands, the old one was not deleted yet."""
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / "merged")
    shutil.copytree(tmp_path / "merged", tmp_path / ".merged.replaced")
    (tmp_path / ".merged.replaced" / "old").write_text("old")
    merge_files(a, b, alpha=0.3, out=tmp_path / "merged", overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"a.safetensors", "b.safetensors", "merged"}
    assert not (tmp_path / "merged" / "old").exists()


def test_moving_into_place_replaces_whole_directories_and_files(tmp_path: Path) -> None:
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    move_into_place(tmp_path / "new", tmp_path / "out")
    assert content(tmp_path).keys() == {"out", "out/new"}
    (tmp_path / "file").write_text("new")
    (tmp_path / "other").write_text("old")
    move_into_place(tmp_path / "file", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "new"
    assert not (tmp_path / "file").exists()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """Two checkpoints of 160 MB."""
    folder = tmp_path_factory.mktemp("large")
    made = []
    for number in range(2):
        tensors = {f"layer.{i}": torch.full((n << 20,), number + i / 7) for i, n in enumerate((24, 8, 4, 4))}
        made.append(saved(tensors, folder / f"{number}.safetensors"))
    yield made[0], made[1]
    shutil.rmtree(folder)


def killed_at(command: Sequence[str], made: Path, size: int) -> bool:
    """Kills a command once it has written so many bytes; whether it was still at it."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while running.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # not begun, or moved into place in this very moment
                if sum(file.stat().st_size for file in made.iterdir()) >= size:
                    running.kill()
                    break
        assert running.wait() in (0, -signal.SIGKILL)
    return made.exists() and any(made.iterdir())


@pytest.mark.parametrize(("out", "shares"), [("merged", (0.01, 0.5)), ("merged.safetensors", (0.3,))])
def test_a_killed_merge_leaves_the_earlier_output_and_can_be_restarted(
    tmp_path: Path, large: tuple[Path, Path], out: str, shares: tuple[float, ...]
) -> None:
    small = pair(tmp_path / "small")
    arguments = ["merge", *map(str, large), "--alpha", "0.3", "--out", str(tmp_path / out), "--overwrite"]
    command = [sys.executable, "-m", "shiftproof.cli.app", *arguments]
    made = tmp_path / f".{out}.partial" / "made"

    def standing() -> dict[str, str]:
        return {k: v for k, v in content(tmp_path).items() if not k.startswith(("small", f".{out}.partial"))}

    for share in shares:
        for _ in range(5):  # a busy machine may look away until the merge is done
            merge_files(*small, out=tmp_path / out, overwrite=True)
            earlier = standing()
            if killed_at(command, made, int(share * (160 << 20))):
                break
        else:
            pytest.fail("the merge was always done before it could be killed")
        assert standing() == earlier
        assert sum(file.stat().st_size for file in made.iterdir()) >= share * (160 << 20)
        with pytest.raises(sp.InputError, match="exists already"):
            merge_files(*small, out=tmp_path / out)
        assert standing() == earlier
    if out == "merged":
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr.count("Traceback")) == (0, 0)
    else:  # in this process, which spares the imports
        merge_files(*large, alpha=0.3, out=tmp_path / out, overwrite=True)
    reports = {out} if out == "merged" else {out, "merged.md", "merged.merge.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"small", *reports}
    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    found = load_file(stored)
    want = sp.interpolate_weights(*({"w": torch.full((3,), n + 3 / 7)} for n in range(2)), 0.3)["w"][0]
    assert all((tensor == tensor[0]).all() for tensor in found.values())
    assert found["layer.3"][0] == want


MERGER = """
import sys
from shiftproof.merging.files import merge_files
import torch
torch.lerp(torch.zeros(9), torch.ones(9), 0.5)
print("ready", flush=True)
sys.stdin.readline()
merge_files(*sys.argv[2:], alpha=(0.3, 0.6), out=sys.argv[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_bounded(tmp_path: Path, large: tuple[Path, Path]) -> None:
    """Two checkpoints of 160 MB and two outputs: mapped pages may come and go, memory of its own is a few pieces."""

    def anonymous(pid: int) -> int:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next((int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon")), 0)

    command = [sys.executable, "-c", MERGER, str(tmp_path / "merged"), *map(str, large)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "ready\n"
        before, most, samples = anonymous(running.pid), 0, 0
        running.stdin.write("\n")
        running.stdin.flush()
        while running.poll() is None:
            most = max(most, anonymous(running.pid))
            samples += 1
            time.sleep(0.002)
        assert running.returncode == 0
    assert samples > 20
    assert most - before < 150e6
    assert (tmp_path / "merged" / "alpha-0.60" / "model.safetensors").stat().st_size > 160 << 20


HOLDER = """
import sys
from pathlib import Path
from shiftproof.storage import staged
with staged(Path(sys.argv[1])) as made:
    (made / "model.safetensors").write_text("in work")
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_a_second_process_is_refused(tmp_path: Path, out: str) -> None:
    a, b = pair(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
            merge_files(a, b, out=tmp_path / out)
        assert (tmp_path / f".{out}.partial" / "made" / "model.safetensors").read_text() == "in work"
        holder.kill()
    merge_files(a, b, out=tmp_path / out)
    assert not (tmp_path / f".{out}.partial").exists()


# What stands there already


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_an_output_that_exists_is_replaced_with_overwrite_only(tmp_path: Path, out: str) -> None:
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / out)
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="exists already.*`overwrite=True`"):
        merge_files(a, b, alpha=0.9, out=tmp_path / out)
    (record,) = merge_files(a, b, alpha=0.9, out=tmp_path / out, overwrite=True)
    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    assert fingerprint_tensors(load_file(stored)) == record.fingerprint


def test_every_kind_of_output_can_be_replaced_by_every_other(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    base = saved(load_file(a), tmp_path / "base" / "model.safetensors").parent
    (base / "config.json").write_text("{}")
    kinds: list[dict[str, Any]] = [
        {"alpha": (0.3, 0.5)},
        {"settings": MergeSettings(shard_size=10)},
        {"settings": MergeSettings(layers={"head.*": 1.0})},
        {"alpha": 0.4},
    ]
    for number, how in enumerate([*kinds, *reversed(kinds)]):
        records = merge_files(base, b, out=tmp_path / "merged", overwrite=number > 0, **how)
        held = {path.name for path in (tmp_path / "merged").iterdir()}
        if len(records) > 1:
            assert held == {"alpha-0.30", "alpha-0.50"}
        else:
            assert set(records[0].files) == {name for name in held if name.endswith(".safetensors")}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("place", ["merged/notes.txt", "merged/sub/notes.txt", "merged/alpha-0.30/notes.txt"])
@pytest.mark.parametrize("alpha", [0.3, (0.3, 0.5)], ids=str)
def test_foreign_files_are_never_deleted(tmp_path: Path, place: str, overwrite: bool, alpha: Any) -> None:
    a, b = pair(tmp_path)
    merge_files(a, b, alpha=alpha, out=tmp_path / "merged")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="which no merge wrote. Choose another `out`"):
        merge_files(a, b, out=tmp_path / "merged", overwrite=overwrite)


@pytest.mark.parametrize("text", ["[]", '"mine"', '{"anything": 1}', "not JSON"])
def test_a_foreign_merge_json_is_foreign(tmp_path: Path, text: str) -> None:
    a, b = pair(tmp_path)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "merge.json").write_text(text)
    (tmp_path / "merged" / "README.md").write_text("mine")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="merge"):
        merge_files(a, b, out=tmp_path / "merged", overwrite=True)


@pytest.mark.parametrize("name", ["merged.md", "merged.merge.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_reports_of_a_file_do_not_run_over_foreign_files(tmp_path: Path, name: str, overwrite: bool) -> None:
    """The output is new, but what would stand beside it is someone's notes."""
    a, b = pair(tmp_path)
    (tmp_path / name).write_text("mine")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match=name):
        merge_files(a, b, out=tmp_path / "merged.safetensors", overwrite=overwrite)


def test_an_empty_directory_is_room(tmp_path: Path) -> None:
    a, b = pair(tmp_path)
    (tmp_path / "merged").mkdir()
    merge_files(a, b, out=tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path, empty: bool, overwrite: bool) -> None:
    a, b = pair(tmp_path)
    (tmp_path / "merged.safetensors").mkdir()
    if not empty:
        (tmp_path / "merged.safetensors" / "x").write_text("mine")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="is a directory. Choose another `out`"):
        merge_files(a, b, out=tmp_path / "merged.safetensors", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path, overwrite: bool) -> None:
    a, b = pair(tmp_path)
    (tmp_path / "merged").write_text("mine")
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="is a file. Choose another `out`"):
        merge_files(a, b, out=tmp_path / "merged", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(
    ("given_as", "out"),
    [
        ("in/model", "in/model"),
        ("in/model", "in/../in/model"),
        ("in/model", "in/link"),
        ("in/link", "in/model"),
        ("in/model", "in/model/merged"),
        ("in/model", "in/model/deep/merged"),
        ("in/model", "in"),
        ("in/model/model.safetensors", "in/model/model.safetensors"),
        ("in/model/model.safetensors", "in/file-link.safetensors"),
        ("in/model/model.safetensors", "in/model"),
        ("in/shards/model.safetensors.index.json", "in/shards"),
        ("in/shards", "in/shards/model-00001-of-00002.safetensors"),
        ("in/shards/model.safetensors.index.json", "in/shards/model-00001-of-00002.safetensors"),
    ],
)
def test_an_output_that_touches_an_input_is_refused(
    tmp_path: Path, given_as: str, out: str, second: bool, overwrite: bool
) -> None:
    theta = {"x": torch.zeros(2), "y": torch.ones(2)}
    saved(theta, tmp_path / "in" / "model" / "model.safetensors")
    sharded(theta, tmp_path / "in" / "shards", {"x": 0, "y": 1})
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "model")
    (tmp_path / "in" / "file-link.safetensors").symlink_to(tmp_path / "in" / "model" / "model.safetensors")
    other = saved(theta, tmp_path / "other.safetensors")
    touched = tmp_path / given_as
    inputs = (other, touched) if second else (touched, other)
    with nothing_changes(tmp_path), pytest.raises(sp.InputError, match="Choose another `out`"):
        merge_files(*inputs, out=tmp_path / out, overwrite=overwrite)


def test_inputs_stay_as_they_were_and_may_be_one(tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    with nothing_changes(tmp_path / "in"):
        merge_files(a, b, alpha=(0.0, 0.4, 1.0), out=tmp_path / "merged")
        merge_files(a, a, alpha=0.37, out=tmp_path / "same.safetensors")
    assert all_same(load_file(tmp_path / "same.safetensors"), load_file(a))


# Dry runs


@pytest.mark.parametrize(
    "how",
    [
        {"alphas": (0.3,)},
        {"alphas": (0.3, 0.5)},
        {"alphas": (0.3,), "shard_size": 60},
        {"depth": (0.1, 0.9)},
        {"method": "uniform"},
    ],
    ids=str,
)
def test_a_dry_run_writes_nothing_and_says_what_would_be(tmp_path: Path, how: dict[str, Any]) -> None:
    inputs, how_to = pair(tmp_path), MergeSettings(**how)
    with nothing_changes(tmp_path):
        said = merge_files(*inputs, out=tmp_path / "deep" / "merged", settings=how_to, dry_run=True)
    done = merge_files(*inputs, out=tmp_path / "deep" / "merged", settings=how_to)
    for would, is_ in zip(said, done, strict=True):
        assert would.fingerprint is None
        stripped = {**document(is_), "fingerprint": None}
        stripped["inputs"] = [{**entry, "fingerprint": None} for entry in stripped["inputs"]]
        assert document(would) == stripped
        for file, size in would.files.items():
            assert sum(t.numel() * t.dtype.itemsize for t in load_file(Path(would.out) / file).values()) == size


def test_a_dry_run_of_a_greedy_soup_leaves_nothing(tmp_path: Path) -> None:
    inputs = pair(tmp_path)
    how = MergeSettings(method="greedy")
    with nothing_changes(tmp_path):
        (record,) = merge_files(
            *inputs, out=tmp_path / "deep" / "soup", settings=how, dry_run=True, score=lambda _: 0.5
        )
    assert record.members == (0, 1)


# Greedy soups


@pytest.mark.parametrize("out", ["soup", "soup.safetensors"])
def test_a_greedy_soup_of_files_is_the_mean_of_its_members(tmp_path: Path, out: str) -> None:
    """What is nearest to a target is best: the two whose errors cancel are taken, the far one is left out."""
    target = torch.randn(30)
    noise = torch.randn(30)
    thetas = [
        {"w": target + 5 + torch.randn(30), "n": torch.tensor(1)},
        {"w": target + 0.4 * noise, "n": torch.tensor(2)},
        {"w": target - 0.5 * noise, "n": torch.tensor(3)},
    ]
    inputs = [saved(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    scored: list[Path] = []

    def score(path: Path) -> float:
        scored.append(path)
        return -float((open_checkpoint(path).tensors["w"] - target).norm())

    with pieces_of(SIZE):
        (record,) = merge_files(*inputs, out=tmp_path / out, settings=MergeSettings(method="greedy"), score=score)
    stored = tmp_path / out / "model.safetensors" if out == "soup" else tmp_path / out
    assert record.members == (1, 2)
    assert all_same(load_file(stored), sp.average_weights(thetas[1:]))
    assert scored[:3] == inputs
    assert len(scored) == 5
    assert [(trial["candidate"], trial["taken"]) for trial in record.scores] == [(1, True), (2, True), (0, False)]
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".") or "trial" in path.name]
    report = tmp_path / out / "merge.json" if out == "soup" else tmp_path / "soup.merge.json"
    assert json.loads(report.read_text())["members"] == [1, 2]
    card = (tmp_path / out / "README.md" if out == "soup" else tmp_path / "soup.md").read_text()
    assert f"Members: `{inputs[1]}`, `{inputs[2]}`." in card


@settings(max_examples=25)
@given(data=st.data())
def test_greedy_soups_of_files_take_what_their_scores_say(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any scores, ties among them: the recipe in five lines is the twin."""
    folder = tmp_path_factory.mktemp("greedy")
    thetas = [{"w": torch.full((3,), 2.0**number)} for number in range(4)]
    inputs = [saved(theta, folder / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    score_of: dict[float, float] = {}
    draw = st.integers(0, 3)

    def score(path: Path) -> float:
        key = float(open_checkpoint(path).tensors["w"][0])
        if key not in score_of:
            score_of[key] = float(data.draw(draw))
        return score_of[key]

    def of(members: list[int]) -> float:
        return score_of[float(sp.average_weights([thetas[i] for i in sorted(members)])["w"][0])]

    (record,) = merge_files(*inputs, out=folder / "soup", settings=MergeSettings(method="greedy"), score=score)
    order = sorted(range(4), key=lambda i: -score_of[2.0**i])
    members = order[:1]
    for candidate in order[1:]:
        if of([*members, candidate]) >= of(members):
            members.append(candidate)
    assert list(record.members) == members
    found = load_file(folder / "soup" / "model.safetensors")
    assert all_same(found, sp.average_weights([thetas[i] for i in sorted(members)]))


def test_a_greedy_soup_needs_a_score_and_leaves_nothing_where_it_fails(tmp_path: Path) -> None:
    inputs = pair(tmp_path)
    how = MergeSettings(method="greedy")

    def broken(path: Path) -> float:
        if path in inputs:
            return 0.5
        raise ValueError("no images")

    with nothing_changes(tmp_path):
        with pytest.raises(sp.InputError, match="Give score, or validation data"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how)
        with pytest.raises(ValueError, match="no images"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how, score=broken)
        with pytest.raises(sp.InputError, match="not finite"):
            merge_files(*inputs, out=tmp_path / "soup", settings=how, score=lambda _: math.nan)


def test_a_soup_whose_score_is_nan_is_left_out(tmp_path: Path) -> None:
    """Two good models may make a soup that gives NaN; the better of them remains."""
    inputs = pair(tmp_path)
    (record,) = merge_files(
        *inputs,
        out=tmp_path / "soup",
        settings=MergeSettings(method="greedy"),
        score=lambda path: {inputs[0]: 0.4, inputs[1]: 0.6}.get(path, math.nan),
    )
    assert record.members == (1,)
    assert all_same(load_file(tmp_path / "soup" / "model.safetensors"), load_file(inputs[1]))
    assert json.loads((tmp_path / "soup" / "merge.json").read_text())["members"] == [1]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory, tiny: sp.models.Clip) -> list[Path]:
    """Three classifier directories: the zero-shot one, one near it, one whose head names other classes, loudly."""
    root = tmp_path_factory.mktemp("members")
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    generator = torch.Generator().manual_seed(3)
    made = []
    for name, noise in (("zero", 0.0), ("near", 1e-4), ("broken", 0.0)):
        weights = {
            key: tensor + noise * torch.randn(tensor.shape, generator=generator)
            for key, tensor in zero.state_dict().items()
        }
        if name == "broken":
            weights["head.weight"] = 50 * weights["head.weight"].roll(1, 0)
        made.append(sp.save_classifier(zero.with_weights(weights), root / name))
    return made


def test_the_command_chooses_a_greedy_soup_on_validation_images(
    call: Call, members: list[Path], folders: Path, tmp_path: Path
) -> None:
    ended = call(
        "merge", *members, "--method", "greedy", "--validation", f"folder:{folders}/validation", "--out", "soup"
    )
    assert ended.code == 0, ended.err
    classifiers = [sp.load_classifier(path) for path in members]
    images = sp.load_data(f"folder:{folders}/validation", classifiers[0].classes)
    want, record = sp.greedy_soup(classifiers, images)
    found = sp.load_classifier(tmp_path / "soup")
    assert sp.models.fingerprint(found) == sp.models.fingerprint(want)
    stored = json.loads((tmp_path / "soup" / "merge.json").read_text())
    assert tuple(stored["members"]) == record.members
    assert 2 not in record.members
    assert [trial["soup"] for trial in stored["scores"]] == [trial.soup for trial in record.trials]
    assert ended.out.count("taken") == len(record.members)
    assert f"{members[2]}: " in ended.out
    assert "left out" in ended.out
    assert {path.name for path in tmp_path.iterdir()} == {"soup"}


def test_the_command_wants_validation_images_for_a_greedy_soup(call: Call, members: list[Path], tmp_path: Path) -> None:
    ended = call("merge", *members, "--method", "greedy", "--out", "soup")
    assert ended.code == 2
    assert "Give --validation folder:PATH, or --suite emoji" in ended.err
    both = ("--validation", f"folder:{tmp_path}", "--suite", "emoji")
    assert call("merge", *members, "--method", "greedy", *both, "--out", "soup").code == 2
    absent = call("merge", *members, "--method", "greedy", "--validation", "folder:none", "--out", "soup")
    assert absent.code == 2
    assert "none" in absent.err
    a, b = pair(tmp_path / "in")
    plain = call("merge", a, b, "--method", "greedy", "--suite", "emoji", "--out", "soup")
    assert plain.code == 2
    assert "is no classifier directory" in plain.err
    assert not (tmp_path / "soup").exists()


# The command


def test_the_command_merges_and_says_what_it_did(call: Call, tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    ended = call("merge", a, b, "--alpha", "0.25", "--out", "merged.safetensors")
    assert (ended.code, "Traceback" in ended.err) == (0, False)
    assert "linear at alpha 0.25: merged.safetensors written, 0.000 GB in 1 file(s)" in ended.out
    assert f"zero-shot: {a} (safetensors)" in ended.out
    assert f"fine-tuned: {b} (safetensors)" in ended.out
    assert "entries: 3 combined, 1 copied" in ended.out
    want = sp.interpolate_weights(load_file(a), load_file(b), 0.25)
    assert all_same(load_file(tmp_path / "merged.safetensors"), want)


def test_the_command_writes_a_folder_for_every_alpha(call: Call, tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    ended = call("merge", a, b, "--alpha", "0.3,0.5", "--out", "merged")
    assert ended.code == 0
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {"alpha-0.30", "alpha-0.50"}
    assert "linear at alpha 0.3: merged/alpha-0.30 written" in ended.out
    for alpha in (0.3, 0.5):
        found = load_file(tmp_path / "merged" / f"alpha-{alpha:.2f}" / "model.safetensors")
        assert all_same(found, sp.interpolate_weights(load_file(a), load_file(b), alpha))


def test_the_command_hands_every_option_on(call: Call, tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    saved({**load_file(b), "more": torch.zeros(3)}, b)
    ended = call(
        "merge", a, b, "--alpha", "0.25", "--layer", "head.*=1.0", "--layer", "visual.blocks.0.*=0.0",
        "--missing", "keep", "--shard-size", "0.1KB", "--out", "merged",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    stored = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert stored["alphas"]["head.weight"] == 1.0
    assert stored["alphas"]["visual.blocks.0.weight"] == 0.0
    assert stored["alphas"]["visual.blocks.1.weight"] == 0.25
    assert stored["missing"] == ["more"]
    assert len(stored["files"]) > 1
    assert "1 kept, missing elsewhere" in ended.out
    assert "alpha 1.000  head.weight" in ended.out
    ended = call("merge", a, a, "--depth", "0.2:0.8", "--integers", "equal", "--out", "deep")
    assert json.loads((tmp_path / "deep" / "merge.json").read_text())["alphas"]["head.weight"] == 0.8
    differing = call("merge", a, b, "--integers", "equal", "--missing", "keep", "--out", "other")
    assert differing.code == 2
    assert "integers of 'steps' differ" in differing.err
    stock = call("merge", a, a, a, "--method", "model-stock", "--out", "stock")
    assert (stock.code, "model-stock: stock written" in stock.out) == (0, True)


def test_a_dry_run_of_the_command_writes_nothing(call: Call, tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    with nothing_changes(tmp_path):
        ended = call("merge", a, b, "--alpha", "0.3,0.5", "--out", "deep/merged", "--dry-run")
    assert ended.code == 0
    assert ended.out.count("would be written") == 2
    assert "merged/alpha-0.50 would be written" in ended.out


def test_the_command_wants_overwrite_to_replace(call: Call, tmp_path: Path) -> None:
    a, b = pair(tmp_path / "in")
    assert call("merge", a, b, "--out", "merged").code == 0
    with nothing_changes(tmp_path):
        again = call("merge", a, b, "--alpha", "0.1", "--out", "merged")
    assert (again.code, "add --overwrite" in again.err) == (2, True)
    assert call("merge", a, b, "--alpha", "0.1", "--out", "merged", "--overwrite").code == 0
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["alpha"] == 0.1


WRONG: list[tuple[list[str], str]] = [
    (["--alpha", "half"], "--alpha: 'half' is no number"),
    (["--alpha", ""], "--alpha: '' is no number"),
    (["--alpha", "0.3,"], "--alpha: '' is no number"),
    (["--alpha", "0.3;0.5"], "is no number"),
    (["--alpha", "1.2"], "alpha is 1.2; it must lie between 0 and 1"),
    (["--alpha", "-0.1"], "alpha is -0.1; it must lie between 0 and 1"),
    (["--alpha", "nan"], "alpha is nan; it must lie between 0 and 1"),
    (["--alpha", "0.5,inf"], "alpha is inf; it must lie between 0 and 1"),
    (["--layer", "head.*"], "--layer 'head.*' must look like head.*=1.0"),
    (["--layer", "=0.5"], "must look like"),
    (["--layer", "head.*=most"], "--layer: 'most' is no number"),
    (["--layer", "head.*=2"], "alpha of 'head.*' is 2.0; it must lie between 0 and 1"),
    (["--layer", "haed.*=1"], "no entry fits the pattern 'haed.*'. There are 'head.weight'"),
    (["--depth", "0.5"], "--depth '0.5' must look like 0.2:0.8"),
    (["--depth", "0.1:2"], "the last alpha is 2.0; it must lie between 0 and 1"),
    (["--depth", "low:0.2"], "--depth: 'low' is no number"),
    (["--depth", "0.1:0.9", "--alpha", "0.1,0.2"], "Leave out layers and further alphas"),
    (["--depth", "0.1:0.9", "--layer", "head.*=1"], "Leave out layers and further alphas"),
    (["--method", "unifrom"], "unknown method 'unifrom'. Did you mean 'uniform'?"),
    (["--method", "model-stock"], "'model-stock' takes 3 or more inputs"),
    (["--method", "uniform", "--depth", "0.1:0.9"], "'uniform' reads no alpha. Leave out layers and depth"),
    (["--integers", "mean"], "unknown rule for integers 'mean'"),
    (["--missing", "drop"], "unknown rule for missing entries 'drop'"),
    (["--shard-size", "2"], "--shard-size '2' must look like 2GB or 500MB"),
    (["--shard-size", "2TB"], "must look like 2GB or 500MB"),
    (["--shard-size", "manyGB"], "--shard-size: 'many' is no number"),
    (["--shard-size", "0MB"], "shard_size is 0; it must be at least 1"),
    (["--shard-size", "-1GB"], "it must be at least 1"),
    (["--shard-size", "nanGB"], "--shard-size"),
    (["--shard-size", "infGB"], "--shard-size"),
    (["--out", "x.safetensors", "--alpha", "0.1,0.2"], "x.safetensors is one file, and there are 2 alphas"),
    (["--out", "x.safetensors", "--shard-size", "1MB"], "shards need a directory, and x.safetensors is a file"),
    (["--out", "."], "Choose another --out"),
    (["--out", "file/merged"], "file"),
]


@pytest.mark.parametrize(
    ("options", "said"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_message_and_exit_code_2(
    call: Call, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, options: list[str], said: str
) -> None:
    a, b = pair(tmp_path_factory.mktemp("in"))
    if options == ["--out", "file/merged"]:
        (tmp_path / "file").write_text("mine")
    with nothing_changes(tmp_path):
        ended = call("merge", a, b, *([] if "--out" in options else ["--out", "merged"]), *options)
    assert ended.code == 2
    assert said in ended.err
    assert ended.err.startswith("shiftproof: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("count", "method", "said"),
    [
        (1, "linear", "'linear' takes 2 inputs (the zero-shot model and the fine-tuned one); 1 are given"),
        (3, "linear", "give --method uniform"),
        (1, "uniform", "'uniform' takes 2 or more inputs (the models to average); 1 are given"),
        (2, "model-stock", "two or more that were fine-tuned from it); 2 are given"),
    ],
)
def test_every_method_wants_its_number_of_inputs(
    call: Call, tmp_path: Path, count: int, method: str, said: str
) -> None:
    a, _ = pair(tmp_path / "in")
    ended = call("merge", *[a] * count, "--method", method, "--out", "merged")
    assert (ended.code, said in ended.err) == (2, True)
    assert not (tmp_path / "merged").exists()


def test_a_merge_of_nothing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="takes 2 inputs"):
        merge_files(out=tmp_path / "merged")
    with pytest.raises(sp.InputError, match="alpha is empty"):
        merge_files(*pair(tmp_path), alpha=(), out=tmp_path / "merged")


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
            whole = flat(theta[name])
            for start in range(0, len(whole), 5):
                writer.write(whole[start : start + 5])
    assert all_same(load_file(path), theta)
    with safe_open(path, "pt") as opened:
        assert (opened.metadata() or {}) == metadata
    # As the library itself lays them out: aligned for direct use.
    header = json.loads(path.read_bytes()[8:][: int.from_bytes(path.read_bytes()[:8], "little")])
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    for name, tensor in theta.items():
        assert header[name]["data_offsets"][0] % tensor.dtype.itemsize == 0
