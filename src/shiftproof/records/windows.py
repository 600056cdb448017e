"""What pasted windows do to models, and the examples that figures show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shiftproof.records.accuracy import MeanRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class WindowRecord:
    """One model under one kind of window (all None: without one): the mean of every measure."""

    content: str | None
    edge: float | None
    side: float | None
    place: str | None
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class WindowSummary:
    """One model, or the difference of two: every measure's mean over the windows of one place and edge.

    ``second`` is None for one model's own means; else they are ``model`` minus ``second``, image by image.
    """

    model: str
    second: str | None
    place: str
    edge: float
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class StrongEdgeStudy:
    """What pasted windows do to models: ``models[name][window]``, ``summaries`` over windows, and ``contrasts``.

    ``kinds`` says which method made a model's maps.
    """

    set: str
    seed: int
    level: float
    kinds: Mapping[str, str]
    models: Mapping[str, Mapping[str, WindowRecord]]
    summaries: tuple[WindowSummary, ...]
    contrasts: tuple[WindowSummary, ...]

    def summary(self, model: str, place: str, edge: float) -> WindowSummary:
        """A model's summary over the windows of a place and edge."""
        return next(s for s in self.summaries if (s.model, s.place, s.edge) == (model, place, edge))


@dataclass(frozen=True)
class WindowExample:
    """One test image with a window, and every model's map of the class it names; what the figure shows.

    ``image`` and ``windowed`` are (S, S, 3) bytes; ``maps[model]`` (S, S) is scaled to a maximum of 1;
    ``answers[model]`` is the named class, its probability, and whether it is the true one.
    """

    label: str
    window: str
    image: NDArray[np.uint8]
    windowed: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool]]


@dataclass(frozen=True)
class MapExample:
    """One image, and every model's map of the class it names.

    ``image`` is (S, S, 3) bytes; ``maps[model]`` (S, S) is scaled to a maximum of 1; ``answers[model]`` is the named
    class, its probability, and whether it is the true one (None where nobody knows that).
    """

    label: str
    image: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool | None]]
