"""Parsers of options that are given as text: pairs such as ``NAME=DATA``, numbers and file sizes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable

from shiftproof.cli.choices import CORRUPTIONS, SEVERITIES
from shiftproof.errors import InputError, point_hint, require_choice

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}  # bytes


def parse_pair(option: str, text: str, separator: str, example: str) -> tuple[str, str]:
    """Splits a text at its last ``separator``, such as an equals sign.

    Raises an InputError that gives an example if the separator is missing or one of the two parts is empty.
    """
    first, _, last = text.rpartition(separator)
    if not first or not last:
        raise InputError(f"{option} {text!r} must look like {example}.")
    return first, last


def parse_number(option: str, text: str) -> float:
    """Parses a number; raises an InputError that names the option if the text is not one."""
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{option}: {text!r} is not a number.{point_hint(text)}") from error


def parse_size(option: str, text: str | None) -> int | None:
    """The number of bytes of a size such as 2GB or 500MB, in powers of 1000, or None without a text.

    Raises an InputError that names the option if the text is not a size.
    """
    if text is None:
        return None
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS:
        raise InputError(f"{option} {text!r} must look like 2GB or 500MB.")
    size = parse_number(option, number) * _UNITS[unit]
    if not math.isfinite(size):
        raise InputError(f"{option} {text!r} is not a size. Give one such as 2GB or 500MB.")
    return int(size)


def parse_shifts(natural: Iterable[str], corruptions: Iterable[str], test: str | None) -> dict[str, dict[str, str]]:
    """The shifts of a suite by name, in the form of a run file.

    ``natural`` are texts such as sketch=folder:PATH; ``corruptions`` are texts such as noise:3 and apply to the
    ``test`` data. Raises an InputError for a text of another form, and for two shifts of one name.
    """
    shifts: dict[str, dict[str, str]] = {}
    for text in natural:
        name, equals, data = text.partition("=")
        if not equals or not name or not data:
            raise InputError(f"--shift {text!r} must look like sketch=folder:PATH.")
        shifts[require_new(name, shifts)] = {"data": data, "kind": "natural"}
    for text in corruptions:
        name, _, severity = text.partition(":")
        require_choice("corruption", name, CORRUPTIONS)
        if severity not in SEVERITIES:
            raise InputError(
                f"--corrupt {text!r} has {f'the severity {severity!r}' if severity else 'no severity'}; it must be one "
                f"of {', '.join(SEVERITIES)}, as in {name}:3."
            )
        if not test:
            raise InputError("--corrupt changes the images of --test; give that too.")
        name = require_new(f"{name}-{severity}", shifts)
        shifts[name] = {"data": f"corrupted:{text}:{test}", "kind": "synthetic"}
    return shifts


def require_new(name: str, taken: Collection[str]) -> str:
    """Returns the name of a set, or raises an InputError if another set has it."""
    if name in taken:
        raise InputError(f"two sets are named {name!r}. Give every set a different name.")
    return name
