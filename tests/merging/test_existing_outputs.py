"""Where a merge may write, what it replaces, and dry runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.folders import assert_unchanged
from support.weights import all_equal_bits, save_checkpoint, save_pair, save_shards

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.merging.streams import fingerprint_tensors
from shiftproof.records.codec import document

# What stands there already


@pytest.mark.parametrize("out", ["merged", "merged.safetensors"])
def test_an_output_that_exists_is_replaced_with_overwrite_only(tmp_path: Path, out: str) -> None:
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=0.2, out=tmp_path / out)
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="already exists.*`overwrite=True`"):
        merge_files(a, b, alpha=0.9, out=tmp_path / out)
    (record,) = merge_files(a, b, alpha=0.9, out=tmp_path / out, overwrite=True)
    stored = tmp_path / out / "model.safetensors" if out == "merged" else tmp_path / out
    assert fingerprint_tensors(load_file(stored)) == record.fingerprint


def test_every_kind_of_output_can_be_replaced_by_every_other(tmp_path: Path) -> None:
    a, b = save_pair(tmp_path)
    base = save_checkpoint(load_file(a), tmp_path / "base" / "model.safetensors").parent
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
    a, b = save_pair(tmp_path)
    merge_files(a, b, alpha=alpha, out=tmp_path / "merged")
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).write_text("mine")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="which no merge wrote. Choose another `out`"):
        merge_files(a, b, out=tmp_path / "merged", overwrite=overwrite)


@pytest.mark.parametrize("text", ["[]", '"mine"', '{"anything": 1}', "not JSON"])
def test_a_foreign_merge_json_is_foreign(tmp_path: Path, text: str) -> None:
    a, b = save_pair(tmp_path)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "merge.json").write_text(text)
    (tmp_path / "merged" / "README.md").write_text("mine")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="merge"):
        merge_files(a, b, out=tmp_path / "merged", overwrite=True)


@pytest.mark.parametrize("name", ["merged.md", "merged.merge.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_reports_of_a_file_do_not_run_over_foreign_files(tmp_path: Path, name: str, overwrite: bool) -> None:
    """The output is new, but what would stand beside it is someone's notes."""
    a, b = save_pair(tmp_path)
    (tmp_path / name).write_text("mine")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match=name):
        merge_files(a, b, out=tmp_path / "merged.safetensors", overwrite=overwrite)


def test_an_empty_directory_is_room(tmp_path: Path) -> None:
    a, b = save_pair(tmp_path)
    (tmp_path / "merged").mkdir()
    merge_files(a, b, out=tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_a_directory_is_not_replaced_by_a_file(tmp_path: Path, empty: bool, overwrite: bool) -> None:
    a, b = save_pair(tmp_path)
    (tmp_path / "merged.safetensors").mkdir()
    if not empty:
        (tmp_path / "merged.safetensors" / "x").write_text("mine")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="is a directory. Choose another `out`"):
        merge_files(a, b, out=tmp_path / "merged.safetensors", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_replaced_by_a_directory(tmp_path: Path, overwrite: bool) -> None:
    a, b = save_pair(tmp_path)
    (tmp_path / "merged").write_text("mine")
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="is a file. Choose another `out`"):
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
    save_checkpoint(theta, tmp_path / "in" / "model" / "model.safetensors")
    save_shards(theta, tmp_path / "in" / "shards", {"x": 0, "y": 1})
    (tmp_path / "in" / "link").symlink_to(tmp_path / "in" / "model")
    (tmp_path / "in" / "file-link.safetensors").symlink_to(tmp_path / "in" / "model" / "model.safetensors")
    other = save_checkpoint(theta, tmp_path / "other.safetensors")
    touched = tmp_path / given_as
    inputs = (other, touched) if second else (touched, other)
    with assert_unchanged(tmp_path), pytest.raises(sp.InputError, match="Choose another `out`"):
        merge_files(*inputs, out=tmp_path / out, overwrite=overwrite)


def test_inputs_stay_as_they_were_and_may_be_one(tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    with assert_unchanged(tmp_path / "in"):
        merge_files(a, b, alpha=(0.0, 0.4, 1.0), out=tmp_path / "merged")
        merge_files(a, a, alpha=0.37, out=tmp_path / "same.safetensors")
    assert all_equal_bits(load_file(tmp_path / "same.safetensors"), load_file(a))


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
    inputs, how_to = save_pair(tmp_path), MergeSettings(**how)
    with assert_unchanged(tmp_path):
        message = merge_files(*inputs, out=tmp_path / "deep" / "merged", settings=how_to, dry_run=True)
    done = merge_files(*inputs, out=tmp_path / "deep" / "merged", settings=how_to)
    for would, is_ in zip(message, done, strict=True):
        assert would.fingerprint is None
        stripped = {**document(is_), "fingerprint": None}
        stripped["inputs"] = [{**entry, "fingerprint": None} for entry in stripped["inputs"]]
        assert document(would) == stripped
        for file, size in would.files.items():
            assert sum(t.numel() * t.dtype.itemsize for t in load_file(Path(would.out) / file).values()) == size


def test_a_dry_run_of_a_greedy_soup_leaves_nothing(tmp_path: Path) -> None:
    inputs = save_pair(tmp_path)
    how = MergeSettings(method="greedy")
    with assert_unchanged(tmp_path):
        (record,) = merge_files(
            *inputs, out=tmp_path / "deep" / "soup", settings=how, dry_run=True, score=lambda _: 0.5
        )
    assert record.members == (0, 1)
