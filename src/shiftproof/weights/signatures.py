"""Weights files that are not what their names say, recognised by their first bytes and never by loading them."""

from __future__ import annotations

import zipfile
from pathlib import Path

from shiftproof.errors import InputError
from shiftproof.storage import require_no_pointer

TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_ZIP = b"PK\x03\x04"
_PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(2, 6))
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def require_weights_file(file: Path) -> None:
    """Raises an InputError that says what a file is if it is none that its suffix promises.

    It recognises Git LFS pointers, web pages, TorchScript archives, exported programs, and torch and safetensors files
    with each other's suffix. A file that passes may still be damaged.
    """
    require_no_pointer(file)
    with file.open("rb") as opened:
        head = opened.read(64)
    if head.lstrip().lower().startswith(_PAGES):
        raise InputError(
            f"{file} is a web page, not weights: the download failed or needs a login. Download the file again."
        )
    is_torch = file.suffix in TORCH_SUFFIXES
    if head[8:9] == b"{":  # the length of a header, which may begin like a zip file or a pickle, and the header
        length = int.from_bytes(head[:8], "little")
        if is_torch and 2 <= length <= file.stat().st_size - 8:
            raise InputError(f"{file} is a safetensors file. Rename it so that it ends with .safetensors.")
        return
    if head.startswith(_ZIP):
        _require_no_program(file)
    if not is_torch and head.startswith((_ZIP, *_PICKLES)):
        raise InputError(f"{file} is a torch file, not a safetensors file. Rename it so that it ends with .pt.")
    if is_torch and head and not head.startswith((_ZIP, *_PICKLES)):
        raise InputError(f"{file} is not a torch file: its first bytes are {head[:8]!r}. Restore or download it again.")


def _require_no_program(file: Path) -> None:
    """Raises an InputError if a zip archive contains a program instead of pickled tensors only."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return  # the reader says what is damaged
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        raise InputError(
            f"{file} is a TorchScript archive, which contains a program besides the weights, so it is not loaded. "
            "OpenAI's own CLIP files are such archives: use the model's name instead, e.g. open_clip:ViT-B-32/openai. "
            "If you trust the source of another one, save torch.jit.load(FILE, map_location='cpu').state_dict() as "
            "safetensors."
        )
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        raise InputError(
            f"{file} is a program of torch.export, not a state dict. "
            "Save the state_dict() of the model that it was exported from as safetensors."
        )
