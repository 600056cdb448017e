"""Checkpoint files as people have them: each is read as what it is, or refused with the reason and the way out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from support.checkpoint_cases import CASES, POINTER, THETA, prefixed
from support.folders import assert_unchanged
from support.weights import all_equal_bits, save_checkpoint

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings
from shiftproof.storage import read_json
from shiftproof.weights.checkpoints import open_checkpoint, read_state_dict
from shiftproof.weights.wrappers import added_prefix, plain_names

READ = [name for name, case in CASES.items() if not case.refusal]
REFUSED = [name for name, case in CASES.items() if case.refusal]
pytestmark = pytest.mark.filterwarnings("ignore:.*(TypedStorage|quantiz).*:UserWarning")


@pytest.mark.parametrize("name", READ)
def test_a_file_that_can_be_read_gives_the_weights_under_plain_names(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    path = case.make(tmp_path)
    if case.warning:
        with pytest.warns(UserWarning, match=case.warning):
            tensors = open_checkpoint(path).tensors
    else:
        tensors = open_checkpoint(path).tensors
    assert all_equal_bits(tensors, THETA)


@pytest.mark.parametrize("name", REFUSED)
def test_any_other_file_is_refused_with_the_way_out_and_nothing_is_written(tmp_path: Path, name: str) -> None:
    good = save_checkpoint(THETA, tmp_path / "good.safetensors")
    (tmp_path / "bad").mkdir()
    bad = CASES[name].make(tmp_path / "bad")
    with assert_unchanged(tmp_path):
        for inputs in ((bad, good), (good, bad)):
            with pytest.raises(sp.InputError, match=CASES[name].refusal) as caught:
                merge_files(*inputs, out=tmp_path / "merged", settings=MergeSettings(missing="keep"))
            assert str(tmp_path / "bad") in str(caught.value)
            assert "weights_only" not in str(caught.value)
            assert "If you trust the file" not in str(caught.value)


def test_a_real_torchscript_archive_is_recognised(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates TorchScript
        torch.jit.save(torch.jit.trace(torch.nn.Linear(3, 2), torch.zeros(1, 3)), tmp_path / "clip.pt")
    with pytest.raises(sp.InputError, match="is a TorchScript archive"):
        open_checkpoint(tmp_path / "clip.pt")


def test_a_header_whose_length_begins_like_a_pickle_is_none(tmp_path: Path) -> None:
    """The first byte of a pickle is 0x80, which is also the first of a safetensors file with a header of 128 bytes."""
    for length in range(40):
        path = save_checkpoint({"w": torch.zeros(1)}, tmp_path / f"{length}.safetensors", note="x" * length)
        assert read_state_dict(path).keys() == open_checkpoint(path).tensors.keys() == {"w"}
    assert any(path.read_bytes()[0] == 0x80 for path in tmp_path.iterdir())


def test_a_pointer_is_recognised_by_every_reader(tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).write_text(POINTER, encoding="utf-8")
    with pytest.raises(sp.InputError, match=r"model\.safetensors is a Git LFS pointer"):
        read_state_dict(tmp_path / "model.safetensors")
    with pytest.raises(sp.InputError, match=r"config\.json is a Git LFS pointer"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    "entries",
    [
        {"bn.num_batches_tracked": torch.tensor(3)},
        {"position_ids": torch.arange(8).view(1, 8)},
        {"relative_position_index": torch.arange(9).view(3, 3)},
        {"mask.weight": torch.ones(2, 2, dtype=torch.bool)},
        {"fc.weight": torch.ones(2, 2).to(torch.float8_e5m2)},
        {"norm.scale": torch.ones(2), "norm.weight": torch.ones(2), "logit_scale": torch.tensor(4.6)},
    ],
    ids=lambda entries: next(iter(entries)),
)
def test_counters_masks_and_plain_float8_are_not_quantised_weights(
    tmp_path: Path, entries: dict[str, torch.Tensor]
) -> None:
    for name in ("x.safetensors", "x.pt"):
        assert open_checkpoint(save_checkpoint(entries, tmp_path / name)).tensors.keys() == entries.keys()


def test_an_adapter_on_an_integer_base_is_refused(tmp_path: Path) -> None:
    """Flattened integers have nothing that betrays them as quantised weights but the adapter that changes them."""
    base = save_checkpoint({"fc.weight": torch.ones(12).char()}, tmp_path / "base.safetensors")
    shapes = {"A": (2, 3), "B": (4, 2)}
    adapter = {f"base_model.model.fc.lora_{part}.weight": torch.ones(shape) for part, shape in shapes.items()}
    save_checkpoint(adapter, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "lora_alpha": 2, "r": 2}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(sp.IncompatibleWeightsError, match=r"stores as integers, 'fc\.weight'.*dequantise it first"):
        merge_files(base, tmp_path / "adapter", out=tmp_path / "merged.safetensors")


@pytest.mark.parametrize("prefix", ["model.", "net.encoder."])
@pytest.mark.parametrize("first", ["plain", "prefixed"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_prefix_that_one_input_lacks_is_no_mismatch(tmp_path: Path, suffix: str, first: str, prefix: str) -> None:
    """The output has the names of the first input, which its library expects."""
    other = {name: tensor + 4 for name, tensor in THETA.items()}
    ends = (THETA, prefixed(prefix, other)) if first == "plain" else (prefixed(prefix), other)
    inputs = [save_checkpoint(end, tmp_path / f"{number}{suffix}") for number, end in enumerate(ends)]
    merge_files(*inputs, alpha=0.25, out=tmp_path / "merged.safetensors")
    want = {name: tensor + 1 for name, tensor in THETA.items()}
    assert all_equal_bits(
        read_state_dict(tmp_path / "merged.safetensors"), want if first == "plain" else prefixed(prefix, want)
    )


def test_names_that_both_inputs_prefix_stay(tmp_path: Path) -> None:
    inputs = [save_checkpoint(prefixed("model."), tmp_path / name) for name in ("a.safetensors", "b.pt")]
    merge_files(*inputs, out=tmp_path / "merged.safetensors")
    assert read_state_dict(tmp_path / "merged.safetensors").keys() == prefixed("model.").keys()


def test_a_counter_alone_is_an_ordinary_entry() -> None:
    assert plain_names({"n_averaged": torch.tensor(1), "w": torch.zeros(1)}) == {"n_averaged": "n_averaged", "w": "w"}
    assert plain_names({"n_averaged": torch.tensor(1)}) == {"n_averaged": "n_averaged"}
    assert added_prefix(["model.a", "other.b"], ["a", "b"]) is None
    assert added_prefix(["models_a"], ["a"]) is None


def test_both_halves_of_a_file_with_an_average_are_named(tmp_path: Path) -> None:
    path = save_checkpoint({**prefixed("online_model."), **prefixed("ema_model.")}, tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=r"begin with 'ema_model', besides.*write .*:ema_model or .*:online_model"):
        assert len(open_checkpoint(path).tensors) == 4
    assert all_equal_bits(open_checkpoint(f"{path}:ema_model").tensors, THETA)


def test_the_record_names_the_average_that_was_chosen(tmp_path: Path) -> None:
    tuned = CASES["chosen average"].make(tmp_path)
    start = save_checkpoint(THETA, tmp_path / "start.safetensors")
    (record,) = merge_files(start, tuned, out=tmp_path / "merged.safetensors")
    assert record.inputs[1].path.endswith("x.pt:model_ema")
    assert all_equal_bits(read_state_dict(tmp_path / "merged.safetensors"), THETA)
