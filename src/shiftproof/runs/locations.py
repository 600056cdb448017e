"""Where the paths in a run file lead: which keys hold paths, and what these are relative to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
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
    return _with_paths(settings, _Base(folder))


def with_full_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the settings of a run file whose paths are in full, so that they lead to the same data from anywhere.

    The paths in ``settings`` are relative to the working directory. Names of data and of models stay as they are.

    >>> with_full_paths({"suite": "emoji", "classes": "/data/names.txt"})
    {'suite': 'emoji', 'classes': '/data/names.txt'}
    """
    return _with_paths(settings, _Base(None, full=True))


def model_path(model: str, folder: Path | None) -> str:
    """The name of a model, with the path changed as in ``with_paths`` if it is that of a directory."""
    return _model(model, _Base(folder))


@dataclass(frozen=True)
class _Base:
    """What paths are relative to, ``folder`` or the working directory, and whether they are wanted in full."""

    folder: Path | None
    full: bool = False


def _with_paths(settings: Mapping[str, Any], base: _Base) -> dict[str, Any]:
    changed = dict(settings)
    if isinstance(model := changed.get("model"), str):
        changed["model"] = _model(model, base)
    for key in ("weights", "classes", "image_cache"):
        if isinstance(path := changed.get(key), str):
            changed[key] = _place(path, base)
    if isinstance(prompts := changed.get("prompts"), str) and names_prompt_file(prompts):
        changed["prompts"] = _place(prompts, base)
    if isinstance(suite := changed.get("suite"), Mapping):
        changed["suite"] = _suite(suite, base)
    elif isinstance(suite, str):
        changed["suite"] = _data(suite, base)
    if isinstance(pretrain := changed.get("pretrain"), Mapping):
        changed["pretrain"] = _with_data(pretrain, ("data",), base)
    return changed


def _model(model: str, base: _Base) -> str:
    scheme, colon, path = model.partition(":")
    if colon:
        is_path = scheme == _LOCAL or (scheme == _LOCAL_OR_HUB and _exists(path, "config.json", base))
        return f"{scheme}:{_place(path, base)}" if is_path else model
    return _place(model, base) if _exists(model, "classifier.json", base) or os.sep in model else model


def _exists(directory: str, file: str, base: _Base) -> bool:
    """Whether a directory with this file exists, relative to the working directory or to the base."""
    path = expanded(directory)
    return any((place / file).is_file() for place in (path, (base.folder or Path()) / path))


def _suite(suite: Mapping[str, Any], base: _Base) -> dict[str, Any]:
    changed = dict(suite)
    if isinstance(reference := changed.get("reference"), Mapping):
        changed["reference"] = _with_data(reference, ("train", "validation", "test"), base)
    if isinstance(shifts := changed.get("shifts"), Mapping):
        changed["shifts"] = {
            name: _with_data(shift, ("data",), base) if isinstance(shift, Mapping) else shift
            for name, shift in shifts.items()
        }
    return changed


def _with_data(section: Mapping[str, Any], keys: tuple[str, ...], base: _Base) -> dict[str, Any]:
    return {
        key: _data(value, base) if key in keys and isinstance(value, str) else value for key, value in section.items()
    }


def _data(name: str, base: _Base) -> str:
    kind, _, rest = name.partition(":")
    if kind == "corrupted" and rest.count(":") >= 2:
        corruption, severity, data = rest.split(":", 2)
        return f"{kind}:{corruption}:{severity}:{_data(data, base)}"
    if kind in FAMILIES:
        _, part, path = split_family_name(name)
        return ":".join(text for text in (kind, part, _place(path, base)) if text) if path else name
    if kind not in FORMATS or not rest:
        return name
    address = FORMATS[kind].address(rest)
    beside = (base.folder or Path()) / expanded(address.place)
    if not FORMATS[kind].is_path(address.place) and not beside.exists():
        return name
    return f"{kind}:{_place(address.place, base)}{address.suffix}"


def _place(text: str, base: _Base) -> str:
    path, folder = expanded(text), base.folder
    if base.full:
        return str(path.absolute())
    if folder is None or path.is_absolute() or folder.resolve() == Path.cwd():
        return str(path) if text.startswith("~") else text
    beside = folder / path
    if path.exists() and beside.exists() and not path.samefile(beside):
        raise InputError(
            f"the path {text!r} leads to {beside}, relative to the folder of the run file, and to {path.absolute()}, "
            "relative to the working directory. Write it in full."
        )
    return text if path.exists() else str(beside)
