"""Values of options that are written as text: pairs such as ``NAME=DATA``, numbers and sizes of files."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from shiftproof.errors import InputError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}  # bytes


def parse_pair(option: str, text: str, between: str, example: str) -> tuple[str, str]:
    """The two parts of a text around its last ``between``, such as an equals sign; neither is empty."""
    first, separator, last = text.rpartition(between)
    if not separator or not first or not last:
        raise InputError(f"{option} {text!r} must look like {example}.")
    return first, last


def parse_number(option: str, text: str) -> float:
    """The number that a text stands for."""
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{option}: {text!r} is no number.") from error


def parse_size(option: str, text: str | None) -> int | None:
    """The bytes of a size such as 2GB or 500MB, in units of 1000; None where no size is given."""
    if text is None:
        return None
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS:
        raise InputError(f"{option} {text!r} must look like 2GB or 500MB.")
    size = parse_number(option, number) * _UNITS[unit]
    if not math.isfinite(size):
        raise InputError(f"{option} {text!r} is no size.")
    return int(size)


def parse_shifts(natural: Iterable[str], corruptions: Iterable[str], test: str | None) -> dict[str, dict[str, str]]:
    """The shifts of a suite by name, as a run file holds them.

    ``natural`` are texts such as sketch=folder:PATH, and ``corruptions`` such as noise:3 of the ``test`` data.
    """
    shifts: dict[str, dict[str, str]] = {}
    for text in natural:
        name, equals, data = text.partition("=")
        if not equals or not name or not data:
            raise InputError(f"--shift {text!r} must look like sketch=folder:PATH.")
        shifts[require_new(name, shifts)] = {"data": data, "kind": "natural"}
    for text in corruptions:
        name, colon, severity = text.partition(":")
        if not colon:
            raise InputError(f"--corrupt {text!r} must look like noise:3.")
        if not test:
            raise InputError("--corrupt changes the images of --test; give that too.")
        name = require_new(f"{name}-{severity}", shifts)
        shifts[name] = {"data": f"corrupted:{text}:{test}", "kind": "synthetic"}
    return shifts


def require_new(name: str, taken: Collection[str]) -> str:
    """The name of a set, which no other set may have."""
    if name in taken:
        raise InputError(f"two sets are named {name!r}. Give every set a name of its own.")
    return name
