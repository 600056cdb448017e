"""Inputs that do not match each other in names, shapes or dtypes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.folders import assert_unchanged
from support.weights import all_equal_bits, equal_bits, save_checkpoint
from torch import Tensor

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors
from shiftproof.records.codec import document


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fnuz], ids=str)
def test_a_dtype_that_safetensors_lack_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    path = save_checkpoint({"w": torch.ones(3).to(dtype)}, tmp_path / "a.pt")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="w has the dtype .* which safetensors cannot"):
        merge_files(path, path, out=tmp_path / "merged.safetensors")


def test_a_mismatch_of_names_lists_ten_of_each_side_and_the_way_out(tmp_path: Path) -> None:
    a = save_checkpoint({f"encoder.{i:02d}": torch.zeros(1) for i in range(14)}, tmp_path / "a.safetensors")
    b = save_checkpoint({f"backbone.encoder.{i:02d}": torch.zeros(1) for i in range(12)}, tmp_path / "b.safetensors")
    with assert_unchanged(tmp_path), pytest.raises(sp.IncompatibleWeightsError) as caught:
        merge_files(a, b, out=tmp_path / "merged")
    message = str(caught.value)
    assert all(f"'encoder.{i:02d}'" in message and f"'backbone.encoder.{i:02d}'" in message for i in range(10))
    assert "'encoder.10'" not in message
    assert "'backbone.encoder.10'" not in message
    assert "and 4 more" in message
    assert "and 2 more" in message
    assert "strip wrapper prefixes such as 'module.'" in message


@pytest.mark.parametrize("missing", ["error", "keep"])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.zeros(3, 2), r"head.weight \(float32 \[2, 3\] and float32 \[3, 2\]\)"),
        (torch.zeros(2, 3).half(), r"head.weight \(float32 \[2, 3\] and float16 \[2, 3\]\).*convert to one dtype"),
        (torch.zeros(2, 3, dtype=torch.bool), r"head.weight \(float32 \[2, 3\] and bool \[2, 3\]\)"),
    ],
)
def test_another_shape_or_dtype_is_named(tmp_path: Path, other: Tensor, message: str, missing: str) -> None:
    a = save_checkpoint({"head.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    b = save_checkpoint({"head.weight": other}, tmp_path / "b.safetensors")
    with assert_unchanged(tmp_path), pytest.raises(sp.IncompatibleWeightsError, match=message):
        merge_files(a, b, out=tmp_path / "merged", settings=MergeSettings(missing=missing))


@pytest.mark.usefixtures("small_pieces")
def test_what_an_input_lacks_may_be_kept(tmp_path: Path) -> None:
    thetas = [
        {"w": torch.randn(30), "text": torch.randn(30)},
        {"w": torch.randn(30), "head": torch.randn(3)},
        {"w": torch.randn(30), "text": torch.randn(30), "head": torch.randn(3)},
    ]
    inputs = [save_checkpoint(theta, tmp_path / f"{number}.safetensors") for number, theta in enumerate(thetas)]
    how = MergeSettings(missing="keep", alphas=(0.25,))
    (record,) = merge_files(*inputs[:2], out=tmp_path / "two", settings=how)
    want = {**sp.interpolate_weights(*({"w": theta["w"]} for theta in thetas[:2]), 0.25)}
    tensors = load_file(tmp_path / "two" / "model.safetensors")
    assert all_equal_bits(tensors, {**want, "text": thetas[0]["text"], "head": thetas[1]["head"]})
    assert (record.interpolated, set(record.missing)) == (("w",), {"text", "head"})
    assert "2 entries that some input lacks, kept from the first that has them" in (
        (tmp_path / "two" / "README.md").read_text()
    )
    (soup,) = merge_files(*inputs, out=tmp_path / "three", settings=MergeSettings(method="uniform", missing="keep"))
    tensors = load_file(tmp_path / "three" / "model.safetensors")
    assert equal_bits(tensors["text"], thetas[0]["text"])
    assert equal_bits(tensors["head"], thetas[1]["head"])
    # A fingerprint is that of the whole input, also of what was not taken from it.
    assert [entry.fingerprint for entry in soup.inputs] == [fingerprint_tensors(theta) for theta in thetas]


def test_inputs_without_a_common_entry_are_refused(tmp_path: Path) -> None:
    a, b = (save_checkpoint({name: torch.zeros(1)}, tmp_path / f"{name}.safetensors") for name in "ab")
    with assert_unchanged(tmp_path), pytest.raises(sp.IncompatibleWeightsError, match="no entry in common"):
        merge_files(a, b, out=tmp_path / "merged", settings=MergeSettings(missing="keep"))


def test_the_sum_of_what_is_said_accounts_for_every_entry(tmp_path: Path) -> None:
    """merge.json, the card and the record agree, and name what a reader needs."""
    shared = torch.randn(3)
    a = save_checkpoint({"w": shared, "tied": shared, "n": torch.tensor(1), "only": torch.ones(2)}, tmp_path / "a.pt")
    shared = torch.randn(3)
    b = save_checkpoint({"w": shared, "tied": shared, "n": torch.tensor(2)}, tmp_path / "b.pt")
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
        for message in (
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
            assert message in text
        weights = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
        assert record.fingerprint == fingerprint_tensors(load_file(weights))
