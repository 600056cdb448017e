"""Class spaces name the classes of a task and match the labels of two data sets by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shiftproof.errors import InputError, listed, nearest


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
        """A class space whose names are the ids with spaces for underscores.

        >>> ClassSpace.from_ids(["red_apple"]).names
        ('red apple',)
        """
        return cls(tuple(ids), tuple(i.replace("_", " ") for i in ids))

    def __len__(self) -> int:
        return len(self.ids)

    def labels_of(self, ids: Sequence[str], what: str) -> NDArray[np.int64]:
        """The (N,) labels of N ids, matched by name, never by order.

        Raises an InputError that lists ids outside this space and suggests the nearest known one.
        """
        label = {name: i for i, name in enumerate(self.ids)}
        if unknown := sorted({i for i in ids if i not in label}):
            raise InputError(
                f"{what} has classes that the reference lacks: {listed(unknown)}. {nearest(unknown[0], self.ids)} "
                "Rename or remove the folders, or add them to the reference."
            )
        return np.array([label[i] for i in ids], dtype=np.int64)

    def require_all(self, ids: Sequence[str], what: str, way_out: str) -> None:
        """Raises an InputError that lists the classes of this space which ``ids`` lacks."""
        if lacking := sorted(set(self.ids) - set(ids)):
            raise InputError(f"{what} lacks classes of the reference: {listed(lacking)}. {way_out}")
