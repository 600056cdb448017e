"""Where the paths in a run file lead: which keys hold paths, and what these are relative to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shiftproof.data.families.registry import FAMILIES, split_family_name
from shiftproof.data.formats.registry import FORMATS
from shiftproof.errors import InputError
from shiftproof.models.prompts import names_prompt_file
from shiftproof.storage import expanded

# Schemes of models whose rest is a path, or may be one where such a directory exists.
_LOCAL, _LOCAL_OR_HUB = "local-dir", "hf"


def with_paths(settings: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """A copy of the settings of a run file whose paths are relative to the working directory.

    The paths in ``settings`` are relative to ``folder``, or to the working directory if it is None or if they exist
    there only. A leading ``~`` is the home directory. Raises an InputError for a path that exists in both places.

    >>> with_paths({"suite": {"reference": {"train": "folder:photos"}}}, Path("configs"))
    {'suite': {'reference': {'train': 'folder:configs/photos'}}}
    """
    changed = dict(settings)
    if isinstance(model := changed.get("model"), str):
        changed["model"] = model_path(model, folder)
    for key in ("weights", "classes", "image_cache"):
        if isinstance(path := changed.get(key), str):
            changed[key] = _place(path, folder)
    if isinstance(prompts := changed.get("prompts"), str) and names_prompt_file(prompts):
        changed["prompts"] = _place(prompts, folder)
    if isinstance(suite := changed.get("suite"), Mapping):
        changed["suite"] = _suite(suite, folder)
    elif isinstance(suite, str):
        changed["suite"] = _data(suite, folder)
    if isinstance(pretrain := changed.get("pretrain"), Mapping):
        changed["pretrain"] = _with_data(pretrain, ("data",), folder)
    return changed


def model_path(model: str, folder: Path | None) -> str:
    """The name of a model, with the path changed as in ``with_paths`` if it is that of a directory."""
    scheme, colon, path = model.partition(":")
    if colon:
        is_path = scheme == _LOCAL or (scheme == _LOCAL_OR_HUB and _exists(path, "config.json", folder))
        return f"{scheme}:{_place(path, folder)}" if is_path else model
    return _place(model, folder) if _exists(model, "classifier.json", folder) or os.sep in model else model


def _exists(directory: str, file: str, folder: Path | None) -> bool:
    """Whether a directory with this file exists, relative to the working directory or to ``folder``."""
    path = expanded(directory)
    return any((place / file).is_file() for place in (path, (folder or Path()) / path))


def _suite(suite: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    changed = dict(suite)
    if isinstance(reference := changed.get("reference"), Mapping):
        changed["reference"] = _with_data(reference, ("train", "validation", "test"), folder)
    if isinstance(shifts := changed.get("shifts"), Mapping):
        changed["shifts"] = {
            name: _with_data(shift, ("data",), folder) if isinstance(shift, Mapping) else shift
            for name, shift in shifts.items()
        }
    return changed


def _with_data(section: Mapping[str, Any], keys: tuple[str, ...], folder: Path | None) -> dict[str, Any]:
    return {
        key: _data(value, folder) if key in keys and isinstance(value, str) else value for key, value in section.items()
    }


def _data(name: str, folder: Path | None) -> str:
    kind, _, rest = name.partition(":")
    if kind == "corrupted" and rest.count(":") >= 2:
        corruption, severity, data = rest.split(":", 2)
        return f"{kind}:{corruption}:{severity}:{_data(data, folder)}"
    if kind in FAMILIES:
        _, part, path = split_family_name(name)
        return ":".join(text for text in (kind, part, _place(path, folder)) if text) if path else name
    if kind not in FORMATS or not rest:
        return name
    address = FORMATS[kind].address(rest)
    beside = (folder or Path()) / expanded(address.place)
    if not FORMATS[kind].is_path(address.place) and not beside.exists():
        return name
    return f"{kind}:{_place(address.place, folder)}{address.suffix}"


def _place(text: str, folder: Path | None) -> str:
    path = expanded(text)
    if folder is None or path.is_absolute() or folder.resolve() == Path.cwd():
        return str(path) if text.startswith("~") else text
    beside = folder / path
    if path.exists() and beside.exists() and not path.samefile(beside):
        raise InputError(
            f"the path {text!r} leads to {beside}, relative to the folder of the run file, and to {path.absolute()}, "
            "relative to the working directory. Write it in full."
        )
    return text if path.exists() else str(beside)
