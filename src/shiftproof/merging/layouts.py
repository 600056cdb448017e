"""The files of a merged checkpoint, as the library of the inputs expects them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.weights.checkpoints import INDEX, SUFFIXES, Checkpoint, size_of

_WEIGHTS = (*SUFFIXES, ".h5", ".msgpack", ".onnx", ".gguf", ".npz", ".ot", ".tflite")
_OURS = ("classifier.json", "merge.json", "README.md")
# Files that a training run writes next to its weights, which do not apply to other weights.
_OF_TRAINING = ("trainer_state.json", "_results.json", ".jsonl")
# Libraries that read one weights file and no shards.
_WHOLE = ("open_clip", "shiftproof", "peft")


@dataclass(frozen=True)
class Layout:
    """The weights files, each with the names of its entries, and the name of the index if there are several files."""

    shards: Mapping[str, tuple[str, ...]]
    index: str | None = None


def layout_of(
    first: Checkpoint, entries: Mapping[str, Tensor], single: str | None = None, shard_size: int | None = None
) -> Layout:
    """Returns the layout of the first input, or one of shards of ``shard_size`` bytes, or the one file ``single``.

    Raises an InputError for shards where there can be only one file.
    """
    if single:
        if shard_size:
            raise InputError(
                f"shards need a directory, and {single} is a file. Name a directory, or leave out the shard size."
            )
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
    """Returns the files to copy unchanged: the first input's configs and tokenizer, but no weights in any format."""
    if not first.path.is_dir() or first.kind == "shiftproof":  # the other files of a classifier are about that one only
        return []
    return sorted(
        file
        for file in first.path.iterdir()
        if file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith((*_WEIGHTS, *_OURS, *_OF_TRAINING))
    )


def is_file(place: Path) -> bool:
    """Returns whether an output is one safetensors file rather than a directory."""
    return place.suffix == ".safetensors"


def alpha_folder(alpha: float) -> str:
    """Returns the name of an alpha's folder, with two decimals if these are exact."""
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
    """Returns the name of the weights files in the library of the first input, without the suffix."""
    if first.kind == "open_clip":
        return "open_clip_model"
    return "adapter_model" if first.kind == "peft" else "model"
