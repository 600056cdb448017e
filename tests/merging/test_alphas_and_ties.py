"""Integers, tied tensors, several alphas, alphas by layer and adapters in a merge."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.folders import assert_unchanged
from support.weights import INTEGERS, all_equal_bits, equal_bits, save_checkpoint, save_pair

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.49, 0.5, 0.8, 1.0])
def test_integers_and_booleans_are_copied_from_the_nearer_input(tmp_path: Path, alpha: float) -> None:
    thetas = [
        {"w": torch.rand(2), **{str(d): torch.tensor([n, 0, n]).to(d) for d in INTEGERS}, "ids": torch.arange(3) + n}
        for n in (0, 5)
    ]
    a, b = (save_checkpoint(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas))
    (record,) = merge_files(a, b, alpha=alpha, out=tmp_path / "merged.safetensors")
    result, nearer = load_file(tmp_path / "merged.safetensors"), thetas[0 if alpha < 0.5 else 1]
    assert all(equal_bits(result[name], nearer[name]) for name in nearer if name != "w")
    assert set(record.copied) == set(nearer) - ({"w"} if 0 < alpha < 1 else set())


@pytest.mark.parametrize("alphas", [(0.0,), (0.4,), (1.0,), (0.0, 0.5), (0.5, 1.0)], ids=str)
@pytest.mark.usefixtures("small_pieces")
def test_integers_may_be_required_equal_while_floats_may_differ(tmp_path: Path, alphas: tuple[float, ...]) -> None:
    ids = torch.arange(50)
    thetas = [{"w": torch.randn(4), "ids": ids, "flag": torch.tensor(True)} for _ in range(2)]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    how = MergeSettings(alphas=alphas, integers="equal")
    records = merge_files(*inputs, out=tmp_path / "merged", settings=how)
    for record in records:
        assert equal_bits(load_file(Path(record.out) / "model.safetensors")["ids"], ids)
    other = ids.clone()
    other[-1] += 1  # in the last piece
    save_checkpoint({**thetas[1], "ids": other}, inputs[1])
    with (
        assert_unchanged(tmp_path),
        pytest.raises(sp.IncompatibleWeightsError, match="integers of 'ids' differ.*integers='copy'"),
    ):
        merge_files(*inputs, out=tmp_path / "other", settings=how)


def test_ties_of_torch_files_are_reported_and_equal(tmp_path: Path) -> None:
    inputs = []
    for number in range(2):
        shared, half = torch.randn(4, 3), torch.randn(4, 3)
        tensors = {"embed": shared, "head": shared, "view": shared.T, "half": half, "void": torch.zeros(0)}
        tensors["once"] = half if number else torch.randn(4, 3)
        inputs.append(save_checkpoint(tensors, tmp_path / f"{number}.pt"))
    (record,) = merge_files(*inputs, alpha=0.3, out=tmp_path / "merged.safetensors")
    result = load_file(tmp_path / "merged.safetensors")
    assert record.tied == {"head": "embed"}
    assert equal_bits(result["head"], result["embed"])
    assert equal_bits(result["view"], result["embed"].T)
    assert not torch.equal(result["once"], result["half"])
    assert json.loads((tmp_path / "merged.merge.json").read_text())["tied"] == {"head": "embed"}
    assert "1 names tied to another's memory" in (tmp_path / "merged.md").read_text()


def test_ties_with_alphas_of_their_own_are_no_ties(tmp_path: Path) -> None:
    """The card says of tied names that their values are equal, so these must not be among them."""
    inputs = []
    for number in range(2):
        shared = torch.randn(5)
        inputs.append(save_checkpoint({"embed": shared, "head": shared}, tmp_path / f"{number}.pt"))
    how = MergeSettings(alphas=(0.25,), layers={"head": 1.0})
    (record,) = merge_files(*inputs, out=tmp_path / "merged.safetensors", settings=how)
    tensors = load_file(tmp_path / "merged.safetensors")
    assert not torch.equal(tensors["head"], tensors["embed"])
    assert not record.tied


@pytest.mark.usefixtures("small_pieces")
def test_several_alphas_in_one_pass_equal_single_merges(tmp_path: Path) -> None:
    a, b = save_pair(tmp_path)
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
    a, b = save_pair(tmp_path)
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
    a, b = save_pair(tmp_path)
    thetas, names = [load_file(path) for path in (a, b)], sorted(load_file(a))
    if "layers" in how:
        alphas = sp.weights.alphas_by_pattern(names, how["layers"], 0.25)
        assert alphas == {
            "head.weight": 1.0, "steps": 0.25, "visual.blocks.0.weight": 0.25, "visual.blocks.1.weight": 0.0,
        }  # fmt: skip
    else:
        alphas = sp.weights.alphas_by_depth(names, *how["depth"])
    (record,) = merge_files(a, b, out=tmp_path / "merged.safetensors", settings=MergeSettings(alphas=(0.25,), **how))
    assert all_equal_bits(load_file(tmp_path / "merged.safetensors"), sp.interpolate_weights(*thetas, alphas))
    assert (record.alpha, record.alphas) == (None, alphas)
    assert set(record.interpolated) == {name for name in names if 0 < alphas[name] < 1 and name != "steps"}
    low, high = min(alphas.values()), max(alphas.values())
    assert f"alpha: from {low:g} to {high:g}, by layer." in (tmp_path / "merged.md").read_text()


def test_a_scalar_logit_scale_is_interpolated_as_the_logarithm_that_it_is(tmp_path: Path) -> None:
    inputs = [
        save_checkpoint({"logit_scale": torch.tensor(math.log(s))}, tmp_path / f"{s}.safetensors") for s in (4, 25)
    ]
    merge_files(*inputs, out=tmp_path / "merged.safetensors")
    assert load_file(tmp_path / "merged.safetensors")["logit_scale"].exp().item() == pytest.approx(10)


def test_an_adapter_changes_the_weights_by_its_product(tmp_path: Path) -> None:
    weight, bias = torch.randn(4, 3, dtype=torch.float64).float(), torch.randn(4)
    base = save_checkpoint({"encoder.fc.weight": weight, "encoder.fc.bias": bias}, tmp_path / "base.safetensors")
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    adapter = {f"base_model.model.encoder.fc.lora_{part}.weight": t for part, t in (("A", a), ("B", b))}
    save_checkpoint(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 6, "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    (record,) = merge_files(base, tmp_path / "adapter", alpha=0.4, out=tmp_path / "merged.safetensors")
    tensors = load_file(tmp_path / "merged.safetensors")
    want = weight.double() + 0.4 * 3 * (b.double() @ a.double())
    torch.testing.assert_close(tensors["encoder.fc.weight"].double(), want, rtol=1e-6, atol=1e-6)
    assert equal_bits(tensors["encoder.fc.bias"], bias)
    assert [entry.fingerprint for entry in record.inputs] == [
        fingerprint_tensors(load_file(base)),
        fingerprint_tensors(adapter),
    ]
