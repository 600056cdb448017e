"""The command ``merge``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.commands import Call
from support.folders import assert_unchanged
from support.weights import all_equal_bits, save_checkpoint, save_pair

import shiftproof as sp
from shiftproof.merging.files import merge_files


def test_the_command_merges_and_says_what_it_did(call: Call, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    ended = call("merge", a, b, "--alpha", "0.25", "--out", "merged.safetensors")
    assert (ended.code, "Traceback" in ended.err) == (0, False)
    assert "linear at alpha 0.25: merged.safetensors written, 0.000 GB in 1 file(s)" in ended.out
    assert f"zero-shot: {a} (safetensors)" in ended.out
    assert f"fine-tuned: {b} (safetensors)" in ended.out
    assert "entries: 3 combined, 1 copied" in ended.out
    want = sp.interpolate_weights(load_file(a), load_file(b), 0.25)
    assert all_equal_bits(load_file(tmp_path / "merged.safetensors"), want)


def test_the_command_writes_a_folder_for_every_alpha(call: Call, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    ended = call("merge", a, b, "--alpha", "0.3,0.5", "--out", "merged")
    assert ended.code == 0
    assert {path.name for path in (tmp_path / "merged").iterdir()} == {"alpha-0.30", "alpha-0.50"}
    assert "linear at alpha 0.3: merged/alpha-0.30 written" in ended.out
    for alpha in (0.3, 0.5):
        tensors = load_file(tmp_path / "merged" / f"alpha-{alpha:.2f}" / "model.safetensors")
        assert all_equal_bits(tensors, sp.interpolate_weights(load_file(a), load_file(b), alpha))


def test_the_command_hands_every_option_on(call: Call, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    save_checkpoint({**load_file(b), "more": torch.zeros(3)}, b)
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
    assert "1 retained though missing from an input" in ended.out
    assert "alpha 1.000  head.weight" in ended.out
    ended = call("merge", a, a, "--depth", "0.2:0.8", "--integers", "equal", "--out", "deep")
    assert json.loads((tmp_path / "deep" / "merge.json").read_text())["alphas"]["head.weight"] == 0.8
    differing = call("merge", a, b, "--integers", "equal", "--missing", "keep", "--out", "other")
    assert differing.code == 2
    assert "integers of 'steps' differ" in differing.err
    stock = call("merge", a, a, a, "--method", "model-stock", "--out", "stock")
    assert (stock.code, "model-stock: stock written" in stock.out) == (0, True)


def test_a_dry_run_of_the_command_writes_nothing(call: Call, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    with assert_unchanged(tmp_path):
        ended = call("merge", a, b, "--alpha", "0.3,0.5", "--out", "deep/merged", "--dry-run")
    assert ended.code == 0
    assert ended.out.count("would be written") == 2
    assert "merged/alpha-0.50 would be written" in ended.out


def test_the_command_wants_overwrite_to_replace(call: Call, tmp_path: Path) -> None:
    a, b = save_pair(tmp_path / "in")
    assert call("merge", a, b, "--out", "merged").code == 0
    with assert_unchanged(tmp_path):
        again = call("merge", a, b, "--alpha", "0.1", "--out", "merged")
    assert (again.code, "add --overwrite" in again.err) == (2, True)
    assert call("merge", a, b, "--alpha", "0.1", "--out", "merged", "--overwrite").code == 0
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["alpha"] == 0.1


WRONG: list[tuple[list[str], str]] = [
    (["--alpha", "half"], "--alpha: 'half' is not a number"),
    (["--alpha", ""], "--alpha: '' is not a number"),
    (["--alpha", "0.3,"], "--alpha: '' is not a number"),
    (["--alpha", "0.3;0.5"], "is not a number"),
    (["--alpha", "1.2"], "1.2 is not between 0 and 1"),
    (["--alpha", "-0.1"], "-0.1 is not between 0 and 1"),
    (["--alpha", "nan"], "nan is not between 0 and 1"),
    (["--alpha", "0.5,inf"], "inf is not between 0 and 1"),
    (["--layer", "head.*"], "--layer 'head.*' must look like head.*=1.0"),
    (["--layer", "=0.5"], "must look like"),
    (["--layer", "head.*=most"], "--layer: 'most' is not a number"),
    (["--layer", "head.*=2"], "alpha of 'head.*' is 2.0; it must lie between 0 and 1"),
    (["--layer", "haed.*=1"], "no entry matches the pattern 'haed.*'. There are 'head.weight'"),
    (["--depth", "0.5"], "--depth '0.5' must look like 0.2:0.8"),
    (["--depth", "0.1:2"], "the last alpha is 2.0; it must lie between 0 and 1"),
    (["--depth", "low:0.2"], "--depth: 'low' is not a number"),
    (["--depth", "0.1:0.9", "--alpha", "0.1,0.2"], "Leave out --layer, and give at most one alpha"),
    (["--depth", "0.1:0.9", "--layer", "head.*=1"], "Leave out --layer, and give at most one alpha"),
    (["--method", "unifrom"], "unknown --method 'unifrom'. Did you mean 'uniform'?"),
    (["--method", "model-stock"], "'model-stock' takes 3 or more inputs"),
    (["--method", "uniform", "--depth", "0.1:0.9"], "'uniform' does not use alpha. Leave out --layer and --depth"),
    (["--integers", "mean"], "unknown --integers 'mean'"),
    (["--missing", "drop"], "unknown --missing 'drop'"),
    (["--shard-size", "2"], "--shard-size '2' must look like 2GB or 500MB"),
    (["--shard-size", "2TB"], "must look like 2GB or 500MB"),
    (["--shard-size", "manyGB"], "--shard-size: 'many' is not a number"),
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
    ("options", "message"), WRONG, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_mistake_is_one_message_and_exit_code_2(
    call: Call, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, options: list[str], message: str
) -> None:
    a, b = save_pair(tmp_path_factory.mktemp("in"))
    if options == ["--out", "file/merged"]:
        (tmp_path / "file").write_text("mine")
    with assert_unchanged(tmp_path):
        ended = call("merge", a, b, *([] if "--out" in options else ["--out", "merged"]), *options)
    assert ended.code == 2
    assert message in ended.err
    assert ended.err.startswith("shiftproof: ")
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("count", "method", "message"),
    [
        (1, "linear", "'linear' takes 2 inputs (the zero-shot model and the fine-tuned one); 1 are given"),
        (3, "linear", "give --method uniform"),
        (1, "uniform", "'uniform' takes 2 or more inputs (the models to average); 1 are given"),
        (2, "model-stock", "two or more that were fine-tuned from it); 2 are given"),
    ],
)
def test_every_method_wants_its_number_of_inputs(
    call: Call, tmp_path: Path, count: int, method: str, message: str
) -> None:
    a, _ = save_pair(tmp_path / "in")
    ended = call("merge", *[a] * count, "--method", method, "--out", "merged")
    assert (ended.code, message in ended.err) == (2, True)
    assert not (tmp_path / "merged").exists()


def test_a_merge_of_nothing_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="takes 2 inputs"):
        merge_files(out=tmp_path / "merged")
    with pytest.raises(sp.InputError, match="`alphas` is empty"):
        merge_files(*save_pair(tmp_path), alpha=(), out=tmp_path / "merged")


@pytest.mark.filterwarnings("default:.*an average of the weights:UserWarning")
def test_an_average_beside_the_weights_is_named_and_can_be_chosen(call: Call, tmp_path: Path) -> None:
    start = save_checkpoint({"w": torch.zeros(2)}, tmp_path / "start.safetensors")
    tuned = tmp_path / "tuned.pt"
    torch.save({"model": {"w": torch.ones(2)}, "model_ema": {"w": torch.full((2,), 3.0)}}, tuned)
    result = call("merge", start, tuned, "--out", tmp_path / "raw.safetensors")
    assert result.code == 0
    assert f"To read the average instead, write {tuned}:model_ema." in result.err
    assert load_file(tmp_path / "raw.safetensors")["w"].tolist() == [0.5, 0.5]
    result = call("merge", start, f"{tuned}:model_ema", "--out", tmp_path / "average.safetensors")
    assert (result.code, "warning" in result.err) == (0, False)
    assert load_file(tmp_path / "average.safetensors")["w"].tolist() == [1.5, 1.5]
