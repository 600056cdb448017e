"""What trainers wrap around a state dict: nested dictionaries, prefixes of names, counters, and averages of weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from shiftproof.errors import InputError, listed

# Keys under which trainers nest the state dict, and prefixes that wrappers add to every name.
_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "ema_model.")
# Entries that a wrapper adds beside the names with its prefix: torch's AveragedModel counts its updates.
_COUNTERS = ("n_averaged",)
# Names of exponential moving averages, as timm, torchvision and others write them: model_ema, state_dict_ema, ema.
_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|averaged?|polyak)(?:[._]|$)", re.IGNORECASE)


def state_dict_of(stored: Any, file: Path, part: str | None = None) -> dict[str, Tensor]:
    """Returns the state dict in what a torch file contains: at the top, under a usual key, or under the key ``part``.

    Levels of ``part`` are separated by dots. Warns of an average of the weights that is passed over. Raises an
    InputError that names every entry that is no tensor, or the keys, if there is no state dict.
    """
    if part is not None:
        return _part_of(stored, file, part)
    while isinstance(stored, Mapping) and not _is_state_dict(stored):
        key = next((key for key in _NESTED if isinstance(stored.get(key), Mapping)), None)
        if key is None:
            raise _no_state_dict(stored, file)
        _warn_of_average(stored, key, file)
        stored = stored[key]
    if not isinstance(stored, Mapping):
        raise InputError(f"{file} contains a {type(stored).__name__}; it must be a state dict.")
    return dict(stored)


def entries_under(tensors: Mapping[str, Tensor], file: Path, part: str | None) -> dict[str, Tensor]:
    """Returns the entries whose names begin with ``part`` and a dot, without that prefix, or all if it is None.

    Warns if some names are those of an average of the others. Raises an InputError if no name begins so.
    """
    if part is None:
        _warn_of_average_among(tensors, file)
        return dict(tensors)
    if chosen := {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}:
        return chosen
    parts = sorted({name.partition(".")[0] for name in tensors if "." in name})
    raise InputError(f"{file} has no part {part!r}. Its names begin with {listed(parts)}.")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Maps the names of a state dict to those without the prefixes of wrappers, and leaves out their counters.

    A prefix is removed only if all names have it, so that one that is part of the names stays.

    >>> import torch
    >>> plain_names({"n_averaged": torch.tensor(3), "module.fc.weight": torch.zeros(2)})
    {'module.fc.weight': 'fc.weight'}
    """
    plain = {name: name for name in tensors}
    while True:
        weights = {name: short for name, short in plain.items() if not _is_counter(short, tensors[name])}
        prefix = next((p for p in _PREFIXES if all(short.startswith(p) for short in weights.values())), None)
        if prefix is None or not weights:
            return plain
        plain = {name: short.removeprefix(prefix) for name, short in weights.items()}


def added_prefix(names: Iterable[str], wanted: Iterable[str]) -> str | None:
    """Returns the prefix that ``names`` have and ``wanted`` lack if it is all in which the two differ, or else None.

    >>> added_prefix(["model.a", "model.b"], ["a", "b"])
    'model.'
    """
    # A prefix that all names have does not change their order.
    longer, shorter = sorted(names), sorted(wanted)
    if not longer or len(longer) != len(shorter) or not longer[0].endswith(f".{shorter[0]}"):
        return None
    prefix = longer[0].removesuffix(shorter[0])
    return prefix if longer == [prefix + name for name in shorter] else None


def _is_state_dict(stored: object) -> bool:
    if not isinstance(stored, Mapping):
        return False
    return bool(stored) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in stored.items())


def _is_counter(name: str, tensor: Tensor) -> bool:
    return name in _COUNTERS and tensor.numel() == 1 and not tensor.is_floating_point()


def _part_of(stored: Any, file: Path, part: str) -> dict[str, Tensor]:
    inner: Any = stored
    for level in [part] if isinstance(stored, Mapping) and part in stored else part.split("."):
        inner = inner.get(level) if isinstance(inner, Mapping) else None
    if isinstance(inner, Mapping):
        return state_dict_of(inner, file)
    if isinstance(stored, Mapping) and not _is_state_dict(stored):
        key = next((key for key in _NESTED if isinstance(stored.get(key), Mapping)), None)
        if key is not None:
            return _part_of(stored[key], file, part)
    if _is_state_dict(stored):
        return entries_under(stored, file, part)
    raise InputError(f"{file} has no state dict under {part!r}. {_choices(stored, file)}")


def _no_state_dict(stored: Mapping[Any, Any], file: Path) -> InputError:
    tensors = [key for key, value in stored.items() if isinstance(key, str) and isinstance(value, Tensor)]
    if not tensors:
        return InputError(
            f"{file} contains no state dict: its keys are {listed(stored)}. It must map names to tensors, or contain "
            f"such a mapping under {listed(_NESTED)}. {_choices(stored, file)}".rstrip()
        )
    odd = ", ".join(
        f"{key!r} ({'a key that is no name' if isinstance(value, Tensor) else type(value).__name__})"
        for key, value in stored.items()
        if key not in tensors
    )
    return InputError(
        f"{file} contains {len(tensors)} tensors, and entries that are no tensors: {odd}. "
        f"Save it again without them. {_choices(stored, file)}".rstrip()
    )


def _choices(stored: Any, file: Path) -> str:
    """Returns a sentence that says how to choose one of the state dicts in a file, or nothing if there are none."""
    inner = [str(key) for key, value in stored.items() if _is_state_dict(value)] if isinstance(stored, Mapping) else []
    return f"There are state dicts under {listed(inner)}; to read one, write {file}:{inner[0]}." if inner else ""


def _warn_of_average(stored: Mapping[Any, Any], read: str, file: Path) -> None:
    averages = [
        str(key) for key, value in stored.items() if _AVERAGE.search(str(key)) and isinstance(value, Mapping) and value
    ]
    if averages:
        warnings.warn(
            f"{file} contains an average of the weights under {listed(averages)} besides the weights under {read!r}, "
            f"which are read. To read the average instead, write {file}:{averages[0]}.",
            stacklevel=2,
        )


def _warn_of_average_among(tensors: Mapping[str, Tensor], file: Path) -> None:
    parts: dict[str, set[str]] = {}
    for name in tensors:
        part, _, rest = name.partition(".")
        parts.setdefault(part, set()).add(rest)
    for average in (part for part in parts if _AVERAGE.search(part)):
        if raw := [part for part in parts if part != average and parts[average] == parts[part] != {""}]:
            warnings.warn(
                f"{file} contains an average of the weights, whose names begin with {average!r}, besides the weights "
                f"themselves, whose names begin with {raw[0]!r}. Both are read, each under its names. "
                f"To read one of them, write {file}:{average} or {file}:{raw[0]}.",
                stacklevel=2,
            )
