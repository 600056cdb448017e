"""Records of how pasted windows affect models, and the examples that figures show."""

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
    """The mean of every measure for one model with one kind of window, or without a window if all of it is None."""

    content: str | None
    edge: float | None
    side: float | None
    place: str | None
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class WindowSummary:
    """The mean of every measure over the windows of one place and edge, for one model or the difference of two.

    ``second`` is None for the means of one model; otherwise they are means of ``model`` minus ``second``, image by
    image.
    """

    model: str
    second: str | None
    place: str
    edge: float
    means: Mapping[str, MeanRecord]


@dataclass(frozen=True)
class StrongEdgeStudy:
    """How pasted windows affect models.

    ``models[name][window]`` are the results by window, ``summaries`` those over windows and ``contrasts`` the
    differences of models; ``kinds`` names the method that made each model's maps.
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
    """One test image with and without a window, and every model's map of the class that it predicts, for a figure.

    ``image`` and ``windowed`` are (S, S, 3) uint8; ``maps[model]`` (S, S) is scaled to a maximum of 1;
    ``answers[model]`` is the predicted class, its probability, and whether it is the true one.
    """

    label: str
    window: str
    image: NDArray[np.uint8]
    windowed: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool]]


@dataclass(frozen=True)
class MapExample:
    """One image, and every model's map of the class that it predicts.

    ``image`` is (S, S, 3) uint8; ``maps[model]`` (S, S) is scaled to a maximum of 1; ``answers[model]`` is the
    predicted class, its probability, and whether it is the true one (None if that is not known).
    """

    label: str
    image: NDArray[np.uint8]
    maps: Mapping[str, NDArray[np.float32]]
    answers: Mapping[str, tuple[str, float, bool | None]]
