"""State dicts on disk: safetensors in and out, never pickle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.storage import write_atomically


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU; an error names the file."""
    if not Path(path).is_file():
        raise InputError(f"the weights {path} do not exist. Check the path.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a whole safetensors file ({error}). Restore it or write it anew.") from error


def write_state_dict(tensors: Mapping[str, Tensor], path: str | Path) -> Path:
    """Writes tensors as safetensors, atomically; tied tensors are written out each."""
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return write_atomically(path, lambda temporary: save_file(plain, temporary, metadata={"format": "pt"}))
