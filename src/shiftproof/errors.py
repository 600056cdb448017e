"""Exceptions and the checks that raise them; a message says what was wrong, the value, the rule and the way out."""

from __future__ import annotations

import difflib
import os
import re
import signal
from collections.abc import Iterable
from typing import Any


class ShiftproofError(Exception):
    """The base of all exceptions that shiftproof raises deliberately."""


class InputError(ShiftproofError, ValueError):
    """A mistake of the caller: a value, a file or a name that breaks a rule."""


class IncompatibleWeightsError(InputError):
    """Two state dicts that cannot be combined entry by entry."""


class TrainingError(ShiftproofError, RuntimeError):
    """A training run that cannot continue; the message says what was saved."""


class DivergenceError(TrainingError):
    """A loss, a gradient or logits that are not finite."""


class TrainingInterruptedError(ShiftproofError):
    """A training run or study that a signal stopped, and that has saved the state from which it can resume.

    ``signal_number`` is that of the signal: SIGTERM, or SIGINT after Ctrl-C.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGTERM) -> None:
        super().__init__(message)
        self.signal_number = int(signal_number)


class ResultWarning(UserWarning):
    """A result that is probably not what the user wants: a model that guesses, or pictures that leak between sets."""


def listed(names: Iterable[object], limit: int = 10, *, of: int | None = None) -> str:
    """The first names of a list, and how many more there are; ``of`` is their number if not all are given.

    >>> listed(["a", "b", "c"], limit=2), listed(["a", "b"], of=40)
    ("'a', 'b' and 1 more", "'a', 'b' and 38 more")
    """
    names = list(names)
    shown = names[:limit]
    head = ", ".join(repr(str(name)) for name in shown)
    more = (len(names) if of is None else of) - len(shown)
    return f"{head} and {more} more" if more else head


def counted(number: int, noun: str) -> str:
    """A number with its noun.

    >>> counted(1, "run"), counted(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(name: str, known: Iterable[str], limit: int = 10) -> str:
    """A sentence that suggests the known name nearest to a misspelt one, or lists the first ``limit`` known names.

    >>> nearest("sketsh", ["sketch", "clutter"])
    "Did you mean 'sketch'?"
    """
    known = [str(option) for option in known]
    if not known:
        return "None is known."
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {matches[0]!r}?" if matches else f"Known: {listed(known, limit)}."


def require_choice(what: str, value: str, known: Iterable[str]) -> str:
    """Returns the value, or raises an InputError that suggests the nearest known name."""
    known = list(known)
    if value not in known:
        raise InputError(f"unknown {what} {value!r}. {nearest(str(value), known)}")
    return value


def point_hint(value: object) -> str:
    """A sentence about the decimal point, for a text that has a comma in its place; otherwise empty.

    >>> point_hint("0,5"), point_hint("half")
    (' Write a decimal point: 0.5.', '')
    """
    comma = isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d*,\d+(e[-+]?\d+)?\s*", value)
    return f" Write a decimal point: {str(value).strip().replace(',', '.')}." if comma else ""


def refuse_path(what: str, value: object, kind: str) -> None:
    """Raises an InputError for a path or a name where an object belongs; ``kind`` says which, and how to get one."""
    if isinstance(value, str | os.PathLike):
        raise InputError(f"`{what}` is {str(value)!r}, a path or a name; it must be {kind}.")


def require_name(what: str, value: object, example: str) -> None:
    """Raises an InputError for anything else than a text where a name belongs."""
    if not isinstance(value, str):
        raise InputError(f"`{what}` is {value!r}; it must be a text such as {example!r}.")


def require_between(what: str, value: float, low: float, high: float) -> float:
    """Returns the value, or raises an InputError unless low <= value <= high (NaN is refused)."""
    if not low <= value <= high:
        raise InputError(f"{what} is {value}; it must lie between {low} and {high}.")
    return value


def require_at_least(what: str, value: float, low: float) -> float:
    """Returns the value, or raises an InputError unless value >= low (NaN is refused)."""
    if not value >= low:
        raise InputError(f"{what} is {value}; it must be at least {low}.")
    return value


def require_equal_length(what: str, first: Any, second: Any) -> None:
    """Raises an InputError unless two sized objects have the same length."""
    if len(first) != len(second):
        raise InputError(f"{what} have {len(first)} and {len(second)} entries; the numbers must be equal.")
