"""Which of the splits that some data have is meant by train, validation, test and shift."""

from __future__ import annotations

from collections.abc import Iterable

from shiftproof.errors import InputError, listed

_SYNONYMS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
    "shift": ("test", "testing"),
}


def choose_split(data: str, present: Iterable[str], wanted: str, given: str | None) -> str:
    """The split that the user has ``given``, or else the one of those ``present`` that is called like ``wanted``.

    A part of a split may be given, as in train[:1000]. Raises an InputError that lists the splits where there is none,
    since another split in its place might be the one that a model is trained on.

    >>> choose_split("wds:shards", ["train", "val"], "validation", None)
    'val'
    """
    present = list(present)
    if given is not None and given.partition("[")[0] in present:
        return given
    names = _SYNONYMS.get(wanted, (wanted,)) if given is None else ()
    if called := [name for name in names if name in present]:
        return called[0]
    example = f" Name one: {data},split={present[0]}." if present else ""
    raise InputError(f"{data} has no split {given or wanted!r}; its splits are {listed(present) or 'none'}.{example}")
