"""State dicts on disk: reads all usual layouts, memory-mapped, writes safetensors, and never executes a pickle."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from shiftproof.errors import InputError, listed
from shiftproof.storage import expanded, read_json, write_atomically
from shiftproof.weights.quantization import require_no_quantizer, require_unquantized, require_unquantized_config
from shiftproof.weights.signatures import TORCH_SUFFIXES, require_weights_file
from shiftproof.weights.wrappers import added_prefix, entries_under, plain_names, state_dict_of

INDEX = ".index.json"
SUFFIXES = (".safetensors", INDEX, *TORCH_SUFFIXES)
# Names of weights files in a directory. The first that exists is read, as the library of the config does.
_NAMES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)$")
_CONFIGS = {
    "classifier.json": "shiftproof",
    "adapter_config.json": "peft",
    "open_clip_config.json": "open_clip",
    "config.json": "transformers",
}
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """A state dict that stays on disk: its tensors are memory-mapped and need no memory until they are read.

    ``kind`` is the library whose config the directory contains, or "safetensors" or "torch" for a bare file. ``shards``
    maps each weights file to the names in it, and ``ties`` each name whose memory an earlier name has to that name.
    ``metadata`` is that of the first safetensors file, and ``index`` that of the index of the shards.
    """

    path: Path
    kind: str
    tensors: Mapping[str, Tensor] = field(repr=False, compare=False)
    shards: Mapping[str, tuple[str, ...]] = field(repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    index: Mapping[str, Any] = field(default_factory=dict)
    ties: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The directory that the configs and the tokenizer are in, if there are any."""
        return self.path if self.path.is_dir() else self.path.parent


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens safetensors (one file, or shards with an index), ``.pt`` and ``.bin`` state dicts and model directories.

    A directory may be that of a classifier, of open_clip, of transformers or of peft. Torch files are read with
    ``weights_only``. They may nest their state dict under ``state_dict``, ``model_state_dict`` or ``model``;
    ``FILE:KEY`` reads the one under another key, such as an average of the weights. In all formats, the prefixes of
    wrappers (``module.``) are removed. Raises an InputError if a file is missing, damaged, one of several shards, or
    contains more than tensors, and if weights are quantised.
    """
    path = expanded(path)
    file, part = split_part(path)
    if file.is_dir():
        library = next((name for config, name in _CONFIGS.items() if (file / config).is_file()), "safetensors")
        if (file / "config.json").is_file():
            require_unquantized_config(file, read_json(file / "config.json"))
        return _opened(file, library, _weights_in(file, library))
    if not file.is_file():
        raise InputError(f"the checkpoint {path} does not exist. Check the path.")
    if not file.name.endswith(SUFFIXES):
        raise InputError(f"{file} is not a checkpoint. Name a directory, or a file that ends with {listed(SUFFIXES)}.")
    _require_whole(file.parent, [file.name])
    return _opened(path, "torch" if file.suffix in TORCH_SUFFIXES else "safetensors", file, part)


def with_names_of(wanted: Collection[str], checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint under the names that are wanted, if they differ by one prefix only, such as ``model.``.

    A checkpoint whose names differ in any other way is returned as it is.
    """
    if (prefix := added_prefix(checkpoint.tensors, wanted)) is not None:
        new = {name: name.removeprefix(prefix) for name in checkpoint.tensors}
    elif (prefix := added_prefix(wanted, checkpoint.tensors)) is not None:
        new = {name: prefix + name for name in checkpoint.tensors}
    else:
        return checkpoint
    return replace(
        checkpoint,
        tensors={new[name]: tensor for name, tensor in checkpoint.tensors.items()},
        shards={shard: tuple(new[name] for name in names) for shard, names in checkpoint.shards.items()},
        ties={new[name]: new[first] for name, first in checkpoint.ties.items()},
    )


def split_part(path: str | Path) -> tuple[Path, str | None]:
    """Splits ``FILE:KEY`` into the file and the key of the state dict in it, which is None for an ordinary path."""
    path = expanded(path)
    file, colon, part = str(path).rpartition(":")
    named = bool(colon and part) and not path.exists() and Path(file).is_file()
    return (Path(file), part) if named else (path, None)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file onto the CPU.

    Raises an InputError if the file is missing or damaged, is not what its name says, or contains quantised weights.
    """
    if not Path(path).is_file():
        raise InputError(f"the weights {path} do not exist. Check the path.")
    require_weights_file(Path(path))
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a complete safetensors file ({error}). Restore or rewrite it.") from error
    require_unquantized(tensors, Path(path))
    return tensors


def write_state_dict(tensors: Mapping[str, Tensor], path: str | Path) -> Path:
    """Writes tensors to a safetensors file, atomically; each of several tied tensors is written in full."""
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}))


class SafetensorsWriter:
    """Writes a safetensors file piece by piece: first the header, then the bytes of every tensor in ``order``.

    The file is on the disk when the writer is closed. It is the caller who moves it into place. Raises an InputError
    for a dtype that safetensors cannot store.
    """

    def __init__(self, path: Path, entries: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        # The order of safetensors itself: wide dtypes first, so that every tensor is aligned.
        self.order = sorted(entries, key=lambda name: (-entries[name].dtype.itemsize, name))
        header = _header({name: entries[name] for name in self.order}, metadata)
        self._file = path.open("wb")
        self._file.write(header)
        self._started = 0

    def write(self, piece: Tensor) -> None:
        """Writes the next bytes: a contiguous (n,) piece, on the CPU, of the next tensor in ``order``."""
        self._file.write(piece.view(torch.uint8).numpy().data)
        if hasattr(os, "posix_fadvise"):
            # This makes the kernel start writing during the arithmetic; otherwise the disk is idle until the fsync.
            # Pages that are still dirty stay in memory.
            end = self._file.tell()
            os.posix_fadvise(self._file.fileno(), self._started, end - self._started, os.POSIX_FADV_DONTNEED)
            self._started = end

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def write_index(path: Path, shards: Mapping[str, Sequence[str]], metadata: Mapping[str, Any]) -> None:
    """Writes the index that maps every name to its shard, in the format of transformers."""
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    written = {"metadata": dict(metadata), "weight_map": dict(sorted(weight_map.items()))}
    path.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")


def size_of(entry: Tensor) -> int:
    """Returns the size of a tensor's data in bytes."""
    return entry.numel() * entry.dtype.itemsize


def _header(entries: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, entry in entries.items():
        if entry.dtype not in _DTYPES:
            raise InputError(f"{name} has the dtype {entry.dtype}, which safetensors cannot store. Convert it first.")
        end = start + size_of(entry)
        header[name] = {"dtype": _DTYPES[entry.dtype], "shape": list(entry.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _weights_in(directory: Path, library: str) -> Path:
    """Returns the weights file, or the index, that the library of a directory would read."""
    known = (*_OPEN_CLIP_NAMES, *_NAMES) if library == "open_clip" else (*_NAMES, *_OPEN_CLIP_NAMES)
    for name in known:
        for candidate in (directory / name, directory / f"{name}{INDEX}"):
            if candidate.is_file():
                return candidate
    files = sorted(p for p in directory.iterdir() if p.name.endswith((f".safetensors{INDEX}", f".bin{INDEX}")))
    files = files or sorted(directory.glob("*.safetensors"))
    files = files or sorted(p for p in directory.iterdir() if p.suffix in TORCH_SUFFIXES)
    _require_whole(directory, [file.name for file in files])
    if len(files) != 1:
        content = f"several weights files: {listed(p.name for p in files)}" if files else "no weights file"
        raise InputError(f"{directory} contains {content}. Name the file itself.")
    return files[0]


def _require_whole(directory: Path, names: Sequence[str]) -> None:
    """Raises an InputError if files that would be read are shards of a larger checkpoint."""
    for name in names:
        if not (shard := _SHARD.match(name)) or int(shard["count"]) == 1:
            continue
        index = f"{shard['stem']}{shard['suffix']}{INDEX}"
        way_out = "Name the directory" if (directory / index).is_file() else f"Fetch {index}, then name the directory"
        raise InputError(
            f"{directory / name} is one shard of {int(shard['count'])}, so it is only a part of a model. "
            f"{way_out}, {directory}."
        )


def _opened(path: Path, library: str, weights: Path, part: str | None = None) -> Checkpoint:
    if not weights.name.endswith(INDEX):
        stored, metadata = _tensors_of(weights, part)
        return _checkpoint(path, library, stored, {weights.name: tuple(stored)}, metadata)
    if part is not None:
        raise InputError(f"{path} names a part of an index. Name a part of a single file.")
    index = read_json(weights)
    shards = _shards_of(weights, index)
    stored, metadata = {}, {}
    for number, (shard, names) in enumerate(shards.items()):
        of_shard, metadata_of_shard = _tensors_of(weights.parent / shard)
        if differing := sorted(set(names) ^ set(of_shard)):
            raise InputError(
                f"{weights} and its shard {shard} do not agree on {listed(differing)}. Restore both from one source."
            )
        metadata = metadata_of_shard if number == 0 else metadata
        stored.update(of_shard)
    recorded = index.get("metadata")
    return _checkpoint(path, library, stored, shards, metadata, recorded if isinstance(recorded, dict) else {})


def _checkpoint(
    path: Path,
    library: str,
    stored: Mapping[str, Tensor],
    shards: Mapping[str, tuple[str, ...]],
    metadata: Mapping[str, str],
    index: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Returns the checkpoint under plain names; raises an InputError if its weights are quantised."""
    require_unquantized(stored, path)
    plain = plain_names(stored)
    tensors = {plain[name]: tensor.detach() for name, tensor in stored.items() if name in plain}
    shards = {shard: tuple(plain[name] for name in names if name in plain) for shard, names in shards.items()}
    return Checkpoint(path, library, tensors, shards, metadata, index or {}, _ties(tensors))


def _shards_of(index: Path, stored: Any) -> dict[str, tuple[str, ...]]:
    weight_map = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map, which names the shard of every tensor. Restore the index.")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise InputError(f"{index} puts {name} into {shard!r}; a shard must be a file next to the index.")
        shards.setdefault(shard, []).append(name)
    if missing := sorted(shard for shard in shards if not (index.parent / shard).is_file()):
        raise InputError(f"{index.parent} lacks the shards {listed(missing)} of its index. Fetch them and try again.")
    return {shard: tuple(names) for shard, names in sorted(shards.items())}


def _tensors_of(file: Path, part: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the memory-mapped tensors of one weights file, or of one part of it, and its metadata."""
    require_weights_file(file)
    if file.suffix in TORCH_SUFFIXES:
        return _torch_tensors(file, part), {}
    try:
        opened: Any = safe_open(file, "pt")
        # On the CPU, these tensors are views of the mapped file.
        tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{file} is not a complete safetensors file ({error}). Restore or rewrite it.") from error
    return entries_under(tensors, file, part), metadata or {}


def _torch_tensors(file: Path, part: str | None = None) -> dict[str, Tensor]:
    try:
        stored = _load_torch(file, mmap=True)
    except pickle.UnpicklingError as error:
        require_no_quantizer(str(error), file)
        raise InputError(
            f"{file} contains more than tensors, and loading it could execute code, so it is not loaded. "
            "If you trust the file, load it elsewhere and save the model's state_dict() as safetensors."
        ) from error
    except Exception as error:  # a damaged file can raise anything
        raise InputError(f"{file} is not a complete torch file ({error}). Restore or rewrite it.") from error
    tensors = entries_under(state_dict_of(stored, file, part), file, None)
    if odd := [name for name, tensor in tensors.items() if tensor.layout != torch.strided or tensor.is_meta]:
        raise InputError(f"{file}: {listed(odd, len(odd))} are sparse or without data. Save dense tensors.")
    return tensors


def _load_torch(file: Path, *, mmap: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except RuntimeError as error:
        if mmap and "mmap can only be used" in str(error):  # files of torch before 1.6 are read into memory
            return _load_torch(file, mmap=False)
        raise


def _ties(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Maps every name whose memory an earlier name has to that name."""
    first: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype], str] = {}
    ties = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            earlier = first.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), name)
            if earlier != name:
                ties[name] = earlier
    return ties
