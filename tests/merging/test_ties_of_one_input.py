"""Entries that only some inputs tie: they stay tied if their values agree, and are named if they do not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from support.commands import Call
from support.weights import equal_bits, save_checkpoint
from torch import Tensor

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.records.merges import MergeRecord
from shiftproof.weights.checkpoints import read_state_dict


def tied(offset: float) -> dict[str, Tensor]:
    embed = torch.arange(6.0).reshape(2, 3) + offset
    return {"embed": embed, "head": embed, "norm": torch.ones(3)}


def untied(offset: float, apart: float) -> dict[str, Tensor]:
    return {**tied(offset), "head": torch.arange(6.0).reshape(2, 3) + offset + apart}


def merged(folder: Path, thetas: list[Mapping[str, Tensor]], **how: object) -> tuple[MergeRecord, dict[str, Tensor]]:
    inputs = [save_checkpoint(theta, folder / f"{number}.pt") for number, theta in enumerate(thetas)]
    settings = MergeSettings(**{"alphas": (0.25,), **how})  # type: ignore[arg-type]
    (record,) = merge_files(*inputs, out=folder / "merged.safetensors", settings=settings)
    return record, read_state_dict(folder / "merged.safetensors")


@pytest.mark.parametrize("order", [1, -1])
def test_a_tie_of_one_input_stays_where_the_values_agree(tmp_path: Path, order: int) -> None:
    record, result = merged(tmp_path, [tied(0.0), untied(4.0, 0.0)][::order])
    assert (record.tied, record.untied) == ({"head": "embed"}, {})
    assert equal_bits(result["head"], result["embed"])


@pytest.mark.parametrize("order", [1, -1])
def test_a_tie_that_is_lost_is_named(tmp_path: Path, order: int) -> None:
    record, result = merged(tmp_path, [tied(0.0), untied(4.0, 1.0)][::order])
    assert (record.tied, record.untied) == ({}, {"head": "embed"})
    assert not torch.equal(result["head"], result["embed"])
    assert json.loads((tmp_path / "merged.merge.json").read_text())["untied"] == {"head": "embed"}
    assert "1 names tied to another's memory in an input, but no longer" in (tmp_path / "merged.md").read_text()


def test_the_command_names_a_tie_that_is_lost(call: Call, tmp_path: Path) -> None:
    a, b = (save_checkpoint(t, tmp_path / n) for n, t in (("a.pt", tied(0.0)), ("b.pt", untied(4.0, 1.0))))
    result = call("merge", a, b, "--out", tmp_path / "ab.safetensors")
    assert result.code == 0
    assert "no longer tied, so load into a model that does not tie them: head = embed" in result.out


def test_inputs_that_list_tied_names_in_another_order_are_tied(tmp_path: Path) -> None:
    other = tied(4.0)
    record, result = merged(tmp_path, [tied(0.0), {name: other[name] for name in ("norm", "head", "embed")}])
    assert (record.tied, record.untied) == ({"head": "embed"}, {})
    assert equal_bits(result["head"], result["embed"])


def test_a_tied_name_that_the_other_input_left_out_is_named(tmp_path: Path) -> None:
    """transformers writes a tied entry once: the copy of the other input is then not the merged one."""
    other = {name: tensor for name, tensor in tied(4.0).items() if name != "head"}
    record, result = merged(tmp_path, [tied(0.0), other], missing="keep")
    assert (record.tied, record.untied, record.missing) == ({}, {"head": "embed"}, ("head",))
    assert not torch.equal(result["head"], result["embed"])


def test_a_tie_of_entries_that_only_one_input_has_stays(tmp_path: Path) -> None:
    record, result = merged(tmp_path, [tied(0.0), {"norm": torch.zeros(3)}], missing="keep")
    assert (record.tied, record.untied) == ({"head": "embed"}, {})
    assert equal_bits(result["head"], result["embed"])


@pytest.mark.parametrize("order", [1, -1])
def test_state_dicts_in_memory_warn_of_a_tie_that_is_lost(order: int) -> None:
    ends = [tied(0.0), untied(4.0, 1.0)][::order]
    with pytest.warns(UserWarning, match="tied in an input and differ in the result: 'head = embed'"):
        sp.interpolate_weights(*ends, 0.25)
    with pytest.warns(UserWarning, match="head = embed"):
        sp.average_weights(ends)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.interpolate_weights(tied(0.0), untied(4.0, 0.0), 0.25)
        sp.interpolate_weights(tied(0.0), tied(4.0), 0.25)
