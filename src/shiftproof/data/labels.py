"""Class spaces name the classes of a task and match the labels of two data sets by name."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.spelling import difference, likenesses, normal_name
from shiftproof.data.wordnet import in_words
from shiftproof.errors import InputError, listed, nearest

_WARNED = 3  # pairs of similar classes that are named in full


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a task, in the order of the head's rows.

    ``ids`` identify a class (a folder's name, a code point), ``names`` stand in a prompt. Ids are
    unique; equal names are allowed, but a zero-shot head cannot tell such classes apart. Raises an InputError for an
    id that occurs twice or cannot name a folder, or if there are not as many names as ids.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if isinstance(self.ids, str) or isinstance(self.names, str):
            raise InputError(
                f"`ids` and `names` are {self.ids!r} and {self.names!r}; pass tuples of names, not a text."
            )
        if unfit := [i for i in self.ids if not i or "/" in i or "\\" in i or i in (".", "..")]:
            raise InputError(f"class ids {listed(unfit)} cannot name a folder. Use ids without slashes.")
        if len(self.ids) != len(self.names):
            raise InputError(f"there are {len(self.ids)} class ids and {len(self.names)} names; a class needs both.")
        if repeated := sorted(
            {i for i in self.ids if self.ids.count(i) > 1} if len(set(self.ids)) < len(self.ids) else ()
        ):
            raise InputError(f"class ids occur twice: {listed(repeated)}. Give every class a different id.")

    @classmethod
    def from_ids(cls, ids: Sequence[str]) -> ClassSpace:
        """A class space whose names are the ids with spaces for underscores; ids are normalised (``normal_name``).

        WordNet ids, by which ImageNet's folders are called, get their names in words (``wordnet.in_words``).
        Raises an InputError for a text in place of a list.

        >>> ClassSpace.from_ids(["red_apple"]).names
        ('red apple',)
        """
        if isinstance(ids, str):
            raise InputError(f"`ids` is {ids!r}; pass a list of class ids, not a text.")
        normal = tuple(normal_name(i) for i in ids)
        return cls(normal, tuple(in_words(i) or i.replace("_", " ") for i in normal))

    @classmethod
    def from_names(cls, names: Sequence[str]) -> ClassSpace:
        """A class space whose ids are made of the names: a slash becomes a hyphen, and a repeated name is numbered.

        As in ``from_ids``, underscores in names become spaces.

        >>> ClassSpace.from_names(["crane", "C/V van", "crane"]).ids
        ('crane', 'C-V van', 'crane (2)')
        """
        plain = [re.sub(r"[/\\]", "-", normal_name(name)) for name in names]
        ids: list[str] = []
        taken = set[str]()
        for name in plain:
            numbered = (f"{name} ({number})" for number in itertools.count(2))
            ids.append(name if name not in taken else next(n for n in numbered if n not in taken and n not in plain))
            taken.add(ids[-1])
        return cls(tuple(ids), tuple(name.replace("_", " ") for name in names))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ClassSpace({len(self)} classes: {listed(self.ids, 3)})"

    @property
    def keys(self) -> tuple[str, ...]:
        """The normalised ids, by which classes are matched; directories of earlier versions hold ids as they were."""
        return tuple(normal_name(i) for i in self.ids)

    def only(self, ids: Collection[str]) -> ClassSpace:
        """The classes of this space that occur among ``ids``, in the order of this space."""
        chosen = [i for i, key in enumerate(self.keys) if key in ids]
        return ClassSpace(tuple(self.ids[i] for i in chosen), tuple(self.names[i] for i in chosen))

    def labels_of(self, ids: Sequence[str], what: str) -> NDArray[np.int64]:
        """The (N,) labels of N ids, matched by name, never by order; Unicode forms and outer blanks do not matter.

        Raises an InputError that lists ids outside this space and suggests the nearest known one.
        """
        label = dict(zip(reversed(self.keys), reversed(range(len(self))), strict=True))
        label |= {name: i for i, name in enumerate(self.ids)}
        position = {i: label.get(i, label.get(normal_name(i))) for i in dict.fromkeys(ids)}
        if unknown := sorted(i for i, k in position.items() if k is None):
            raise InputError(
                f"{what} has classes that the reference lacks: {listed(unknown)}. {self._suggestion(unknown[0])} "
                "Rename or remove these classes, or add them to the reference."
            )
        return np.array([position[i] for i in ids], dtype=np.int64)

    def require_all(self, ids: Sequence[str], what: str, way_out: str) -> None:
        """Raises an InputError that lists the classes of this space which ``ids`` lacks."""
        present = {normal_name(i) for i in set(ids)}
        if lacking := sorted(i for i in self.ids if normal_name(i) not in present):
            raise InputError(f"{what} lacks classes of the reference: {listed(lacking)}. {way_out}")

    def warn_of_similar(self, what: str) -> None:
        """Warns of classes that may be one class under two names, and says which characters differ."""
        pairs = likenesses(self.ids)
        for first, second in pairs[:_WARNED]:
            warnings.warn(
                f"{what}: the classes {first!r} and {second!r} may be the same; they differ only in "
                f"{difference(first, second)}. If they are, give both one name.",
                stacklevel=3,
            )
        if more := pairs[_WARNED:]:
            warnings.warn(
                f"{what}: these classes may be the same, too: "
                f"{listed((f'{first} / {second}' for first, second in more), 20)}.",
                stacklevel=3,
            )

    def _suggestion(self, unknown: str) -> str:
        """The known id nearest to an unknown one, and which characters differ if the two look alike."""
        alike = [known for known in self.ids if likenesses((known, unknown))]
        if not alike:
            return nearest(unknown, self.ids)
        return f"Did you mean {alike[0]!r}? It differs only in {difference(alike[0], unknown)}."
