"""Checkpoint files as people have them, and what is done with each; ``docs/inputs.md`` shows this table."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from support.weights import save_checkpoint, save_shards
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

THETA = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([0.5, -1.0])}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
QUANTIZED = "contains quantised weights: .*Dequantise the model first"


@dataclass(frozen=True)
class CheckpointCase:
    """One kind of checkpoint: how to make it, how the docs describe it, and what is done with it.

    ``refusal`` matches the message; without one, the file is read as ``THETA``, with a warning that matches
    ``warning`` if there is one.
    """

    make: Callable[[Path], Path]
    described: str
    done: str
    refusal: str = ""
    warning: str = ""


def read_as(make: Callable[[Path], Path], described: str, done: str = "read", warning: str = "") -> CheckpointCase:
    return CheckpointCase(make, described, done, warning=warning)


def refused(make: Callable[[Path], Path], described: str, done: str, message: str) -> CheckpointCase:
    return CheckpointCase(make, described, f"refused: {done}", refusal=message)


def saved(name: str, tensors: Mapping[str, Tensor]) -> Callable[[Path], Path]:
    return lambda folder: save_checkpoint(tensors, folder / name)


def pickled(stored: Any, part: str = "") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        torch.save(stored, folder / "x.pt")
        return Path(f"{folder / 'x.pt'}{part}")

    return make


def quantized_by_torch(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates such tensors
        return pickled({"fc.weight": torch.quantize_per_tensor(THETA["fc.weight"], 0.1, 0, torch.qint8)})(folder)


def text(name: str, content: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / name).write_text(content, encoding="utf-8")
        return folder / name

    return make


def archive(*members: str) -> Callable[[Path], Path]:
    """A zip file with the members of an archive that is not a state dict."""

    def make(folder: Path) -> Path:
        with zipfile.ZipFile(folder / "x.pt", "w") as written:
            for member in members:
                written.writestr(f"x/{member}", b"content")
        return folder / "x.pt"

    return make


def directory(tensors: Mapping[str, Tensor], config: Mapping[str, Any], *files: str) -> Callable[[Path], Path]:
    """A directory of transformers."""

    def make(folder: Path) -> Path:
        save_checkpoint(tensors, folder / "model" / "model.safetensors")
        for name, stored in (("config.json", config), *((file, {}) for file in files)):
            (folder / "model" / name).write_text(json.dumps(stored), encoding="utf-8")
        return folder / "model"

    return make


def shards(*, index: bool, named: str = "", left: int = 2) -> Callable[[Path], Path]:
    """The shards of ``THETA``, with or without their index; ``named`` is the file that is given."""

    def make(folder: Path) -> Path:
        model = save_shards(THETA, folder / "model", {"fc.weight": 0, "fc.bias": 1})
        if not index:
            (model / "model.safetensors.index.json").unlink()
        if left == 1:
            (model / "model-00002-of-00002.safetensors").unlink()
        return model / named

    return make


def renamed(name: str, new: str) -> Callable[[Path], Path]:
    return lambda folder: save_checkpoint(THETA, folder / name).rename(folder / new)


def prefixed(prefix: str, tensors: Mapping[str, Tensor] = THETA) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def averaged() -> dict[str, Tensor]:
    """The state dict of torch's AveragedModel around a layer with the weights of ``THETA``."""
    layer = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2)})
    layer.load_state_dict(THETA)
    return dict(AveragedModel(layer).state_dict())


BYTES = torch.zeros(2, 3, dtype=torch.int8)
RAW = {name: tensor + 1 for name, tensor in THETA.items()}
SCALE = torch.ones(2)
FLOAT8 = THETA["fc.weight"].to(torch.float8_e4m3fn)
PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head></html>"

CASES: dict[str, CheckpointCase] = {
    # Wrappers of trainers
    "module.safetensors": read_as(
        saved("x.safetensors", prefixed("module.")),
        "names that all begin with `module.`, `_orig_mod.` or `ema_model.`, in any format",
        "read without the prefix",
    ),
    "module.pt": read_as(saved("x.pt", prefixed("module.")), ""),
    "both prefixes": read_as(saved("x.safetensors", prefixed("module._orig_mod.")), ""),
    "AveragedModel.pt": read_as(
        saved("x.pt", averaged()),
        "the state dict of torch's `AveragedModel`, with its counter `n_averaged`",
        "read without the counter and the prefix",
    ),
    "AveragedModel.safetensors": read_as(saved("x.safetensors", averaged()), ""),
    "model_ema beside model": read_as(
        pickled({"model": THETA, "model_ema": RAW}),
        "an average (EMA) under a key of its own, beside the weights of the last step",
        "read without the average, with a warning that names it; `FILE:KEY` reads the average",
        r"contains an average of the weights under 'model_ema' besides .*'model', which are read.*x\.pt:model_ema",
    ),
    "state_dict_ema beside state_dict": read_as(
        pickled({"state_dict": THETA, "state_dict_ema": RAW, "epoch": 3}), "", warning=r"write .*x\.pt:state_dict_ema"
    ),
    "chosen average": read_as(
        pickled({"model": RAW, "model_ema": averaged()}, ":model_ema"),
        "`FILE:KEY`, for example `tuned.pt:model_ema`",
        "read as the state dict under that key; levels are separated by dots",
    ),
    "chosen level": read_as(pickled({"model": RAW, "ema": {"weights": THETA}}, ":ema.weights"), ""),
    "chosen student": read_as(pickled({"student": RAW, "teacher": prefixed("module.")}, ":teacher"), ""),
    "chosen prefix": read_as(pickled({**prefixed("online_model.", RAW), **prefixed("ema.")}, ":ema"), ""),
    "no usual key": refused(
        pickled({"student": THETA, "teacher": RAW}),
        "state dicts under other keys only",
        "the message lists the keys to choose from",
        r"contains no state dict: its keys are 'student', 'teacher'.*to read one, write .*x\.pt:student",
    ),
    "absent key": refused(
        pickled({"student": THETA}, ":teacher"),
        "",
        "",
        r"has no state dict under 'teacher'\. There are state dicts under 'student'",
    ),
    "entries that are no tensors": refused(
        pickled({**{f"w{i:02d}": torch.zeros(1) for i in range(20)}, "step": 3, "recipe": "mix"}),
        "a state dict with entries that are no tensors",
        "the message names every such entry and its type",
        r"20 tensors, and entries that are no tensors: 'step' \(int\), 'recipe' \(str\)\. Save it again without them",
    ),
    # Quantised weights
    "int8 with scales": refused(
        saved("x.safetensors", {"fc.weight": BYTES, "fc.weight_scale": SCALE}),
        "quantised weights: integers, or float8 with scales, in any format",
        "average weights before quantisation, or dequantise them first",
        r"contains quantised weights: 'fc\.weight' \(int8\)\. .*Dequantise",
    ),
    "int8 in a torch file": refused(saved("x.pt", {"fc.weight": BYTES, "fc.SCB": SCALE}), "", "", QUANTIZED),
    "int8 without scales": refused(saved("x.safetensors", {"fc.weight": BYTES}), "", "", QUANTIZED),
    "fp8 with scales": refused(
        saved("x.safetensors", {"fc.weight": FLOAT8, "fc.weight_scale_inv": SCALE}), "", "", QUANTIZED
    ),
    "bitsandbytes": refused(
        saved("x.safetensors", {"fc.weight": BYTES.view(torch.uint8).reshape(6, 1), "fc.weight.absmax": SCALE}),
        "",
        "",
        QUANTIZED,
    ),
    "GPTQ": refused(
        saved("x.safetensors", {"fc.qweight": BYTES.int(), "fc.qzeros": BYTES.int(), "fc.scales": SCALE.half()}),
        "",
        "",
        QUANTIZED,
    ),
    "quantised by torch": refused(quantized_by_torch, "", "", QUANTIZED),
    "quantization_config": refused(
        directory(THETA, {"model_type": "clip", "quantization_config": {"quant_method": "fp8"}}),
        "a directory whose `config.json` has a `quantization_config`",
        "dequantise the model first",
        r"its config\.json has a quantization_config \(fp8\)\. .*Dequantise",
    ),
    "quantization_config of a tower": refused(
        directory(THETA, {"text_config": {"quantization_config": {"quant_method": "gptq"}}}), "", "", QUANTIZED
    ),
    "quantize_config.json": refused(directory(THETA, {}, "quantize_config.json"), "", "", QUANTIZED),
    # Files that are not what they seem
    "pointer.safetensors": refused(
        text("x.safetensors", POINTER),
        "the pointer of Git LFS in place of the file",
        "run `git lfs pull`",
        r"x\.safetensors is a Git LFS pointer: .*Run `git lfs pull`",
    ),
    "pointer.pt": refused(text("x.pt", POINTER), "", "", r"x\.pt is a Git LFS pointer: .*Run `git lfs pull`"),
    "web page": refused(
        text("x.pt", PAGE),
        "a web page that was saved instead of the file",
        "download it again",
        r"x\.pt is a web page, not weights: .*Download the file again",
    ),
    "TorchScript": refused(
        archive("data.pkl", "constants.pkl", "code/__torch__.py", "data/0"),
        "a TorchScript archive, such as OpenAI's own CLIP files",
        "it contains a program. Use `open_clip:ViT-B-32/openai`, or save its state dict as safetensors",
        r"x\.pt is a TorchScript archive, .*not loaded.*open_clip:ViT-B-32/openai.*as safetensors",
    ),
    "torch.export": refused(
        archive("serialized_exported_program.json"),
        "a program of `torch.export`",
        "save the state dict of its model",
        r"x\.pt is a program of torch\.export, not a state dict",
    ),
    "safetensors as .pt": refused(
        renamed("x.safetensors", "y.pt"),
        "a safetensors file whose name ends as a torch file's, or the reverse",
        "rename it",
        r"y\.pt is a safetensors file\. Rename it so that it ends with \.safetensors",
    ),
    "torch file as .safetensors": refused(
        renamed("x.pt", "y.safetensors"), "", "", r"y\.safetensors is a torch file.*Rename it"
    ),
    # Shards
    "shards with an index": read_as(
        shards(index=True), "a directory with shards and their index (`model.safetensors.index.json`)"
    ),
    "one shard": refused(
        shards(index=True, named="model-00001-of-00002.safetensors"),
        "one of several shards",
        "it is only a part of a model. Name the directory, and fetch the index if it is missing",
        r"is one shard of 2, so it is only a part of a model\. Name the directory",
    ),
    "shards without an index": refused(
        shards(index=False), "", "", r"is one shard of 2.*Fetch model\.safetensors\.index\.json"
    ),
    "the first of two shards without an index": refused(shards(index=False, left=1), "", "", "is one shard of 2"),
}


def checkpoint_table() -> str:
    """Returns the rows of the docs: those cases that have a description."""
    rows = [f"| {case.described} | {case.done} |" for case in CASES.values() if case.described]
    return "\n".join(["| what is given | what is done |", "|---|---|", *rows])
