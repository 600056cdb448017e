"""Which files a merged checkpoint has: as the inputs' library wants them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.weights.checkpoints import INDEX, TORCH_SUFFIXES, Checkpoint, size_of

_WEIGHTS = (".safetensors", INDEX, *TORCH_SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".ot", ".tflite")
_OURS = ("classifier.json", "merge.json", "README.md")
# What a training left beside its weights, and what does not hold for others.
_OF_TRAINING = ("trainer_state.json", "_results.json", ".jsonl")
# Libraries that read one weights file and no shards.
_WHOLE = ("open_clip", "shiftproof", "peft")


@dataclass(frozen=True)
class Layout:
    """The weights files, each with the names that it holds, and the index's name where there are several."""

    shards: Mapping[str, tuple[str, ...]]
    index: str | None = None


def layout_of(
    first: Checkpoint, entries: Mapping[str, Tensor], single: str | None = None, shard_size: int | None = None
) -> Layout:
    """The first input's own files, or as many as ``shard_size`` bytes ask for, or one of the name ``single``."""
    if single:
        if shard_size:
            raise InputError(f"shards need a directory, and {single} is a file. Name a directory, or no shard size.")
        return Layout({single: tuple(entries)})
    stem = _stem(first)
    if shard_size is None and len(first.shards) > 1:
        groups = [[name for name in names if name in entries] for names in first.shards.values()]
        groups[-1] += sorted(entries.keys() - first.tensors.keys())
    else:
        groups = _groups(entries, shard_size)
    groups = [group for group in groups if group]
    if len(groups) == 1:
        return Layout({f"{stem}.safetensors": tuple(groups[0])})
    if first.kind in _WHOLE:
        raise InputError(f"{first.kind} reads one weights file and no shards. Leave out the shard size.")
    names = [f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors" for number in range(1, len(groups) + 1)]
    return Layout(dict(zip(names, map(tuple, groups), strict=True)), f"{stem}.safetensors{INDEX}")


def copied_files(first: Checkpoint) -> list[Path]:
    """What goes beside the weights unchanged: the first input's configs and tokenizer, no weights of any format."""
    if not first.path.is_dir() or first.kind == "shiftproof":  # a classifier's other files are results of its own
        return []
    return sorted(
        file
        for file in first.path.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith((*_WEIGHTS, *_OURS, *_OF_TRAINING))
    )


def is_file(place: Path) -> bool:
    """Whether an output is one safetensors file; else it is a directory."""
    return place.suffix == ".safetensors"


def alpha_folder(alpha: float) -> str:
    """What an alpha's folder is called: two decimals where they say it exactly."""
    return f"alpha-{alpha:.2f}" if round(alpha, 2) == alpha else f"alpha-{alpha:.10f}".rstrip("0")


def _groups(entries: Mapping[str, Tensor], shard_size: int | None) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    room = shard_size
    for name in sorted(entries):
        size = size_of(entries[name])
        if room is not None and shard_size is not None:
            if groups[-1] and size > room:
                groups.append([])
                room = shard_size
            room -= size
        groups[-1].append(name)
    return groups


def _stem(first: Checkpoint) -> str:
    """What the weights files are called: the library's own name for them."""
    if first.kind == "open_clip":
        return "open_clip_model"
    return "adapter_model" if first.kind == "peft" else "model"
