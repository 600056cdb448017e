"""Addresses of data that consist of several parts, as in ``hf:PATH,split=test,label=fine_label``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from shiftproof.errors import InputError, nearest

_OPTION = re.compile(r",([a-z]+)=([^,]*)$")


@dataclass(frozen=True)
class Address:
    """The place of some data, a path or a name, and the options that follow it."""

    place: str
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def suffix(self) -> str:
        """The text of the options as it follows the place."""
        return "".join(f",{name}={value}" for name, value in self.options.items())


def parse_address(text: str, known: tuple[str, ...]) -> Address:
    """Splits the ``known`` options off an address; raises an InputError for one that is unknown, empty or repeated.

    >>> parse_address("org/cars,split=test", ("split",))
    Address(place='org/cars', options={'split': 'test'})
    """
    place, options = text, list[tuple[str, str]]()
    while match := _OPTION.search(place):
        name, value = match.groups()
        if name not in known:
            raise InputError(f"{text!r} has the unknown option {name!r}. {nearest(name, known)}")
        if not value or name in dict(options):
            raise InputError(f"{text!r} gives the option {name!r} no value, or two. Give it one, as in {name}=NAME.")
        options.insert(0, (name, value))
        place = place[: match.start()]
    return Address(place, dict(options))
