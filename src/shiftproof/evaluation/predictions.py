"""Files of predictions, which are written batch by batch and read block by block, never with pickle."""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.protocols import Projection
from shiftproof.errors import InputError, counted, listed
from shiftproof.evaluation.blocks import ROWS, logit_blocks
from shiftproof.evaluation.metrics import Scores
from shiftproof.storage import atomically, write_atomically

# The exceptions that numpy and zipfile raise for files that are absent, truncated, damaged or of another kind.
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, zlib.error)
Add: TypeAlias = Callable[[NDArray[np.float32]], object]


@dataclass(frozen=True)
class Predictions:
    """A classifier's logits on the N samples of one set.

    ``ids`` (N,) name the samples, ``labels`` (N,) are their classes, ``logits`` are (N, K) float32; ``groups`` (N,)
    splits the samples for reporting if the set has groups. Where the protocol of the set has a ``projection``, the
    logits are projected, and ``model_logits`` are those that the model gave.
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    groups: tuple[str, ...] | None = None
    projection: Projection | None = field(default=None, repr=False)
    model_logits: NDArray[np.float32] | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls,
        ids: tuple[str, ...],
        labels: NDArray[np.int64],
        logits: NDArray[np.float32],
        groups: tuple[str, ...] | None,
        projection: Projection | None,
    ) -> Predictions:
        """Predictions from the (N, K) logits that a model gave, which are projected if the set has a projection."""
        if projection is None:
            return cls(ids, labels, logits, groups)
        return cls(ids, labels, projection.apply(logits), groups, projection, logits)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({counted(len(self.ids), 'sample')}, {self.logits.shape[1]} classes)"


@dataclass(frozen=True)
class StoredPredictions:
    """Predictions stored in a file; all but the logits are in memory, and ``blocks`` reads those from the file.

    ``shape`` is that of the logits, (N, K). The file holds the logits that the model gave; where the protocol of the
    set has a ``projection``, it holds that too, and the logits are projected as they are read.
    """

    path: Path
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    groups: tuple[str, ...] | None
    shape: tuple[int, int]
    projection: Projection | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {counted(len(self.ids), 'sample')}, {self.shape[1]} classes)"

    def blocks(self, rows: int = ROWS) -> Iterator[NDArray[np.float32]]:
        """Yields the logits in order in blocks of (``rows``, K), projected; the last block may be smaller.

        Raises an InputError that names the file if it is damaged.
        """
        for block in self.model_blocks(rows):
            yield block if self.projection is None else self.projection.apply(block)

    def model_blocks(self, rows: int = ROWS) -> Iterator[NDArray[np.float32]]:
        """Yields the logits that the model gave in blocks of (``rows``, K), with the errors of ``blocks``."""
        with _readable(self.path), zipfile.ZipFile(self.path) as archive, archive.open("logits.npy") as stream:
            _read_header(stream)
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start) * self.shape[1]
                content = stream.read(4 * count)
                if len(content) < 4 * count:
                    raise EOFError("the logits are truncated")
                yield np.frombuffer(content, dtype="<f4").reshape(-1, self.shape[1])
            stream.read(1)  # reading past the end compares the checksum

    def require_whole(self) -> StoredPredictions:
        """Reads all logits once to compare the file's checksum; raises an InputError if it is damaged."""
        for _ in self.blocks():
            pass
        return self


@contextlib.contextmanager
def writing_predictions(
    path: Path,
    ids: Sequence[str],
    labels: NDArray[np.integer],
    classes: int,
    groups: Sequence[str] | None = None,
    projection: Projection | None = None,
) -> Iterator[Add]:
    """A context with a function that appends (B, K) float32 logits of the samples, in their order, to a file.

    The logits are those that the model gives; ``projection`` is stored beside them. The file appears complete or not at
    all. Raises an InputError if there are too many rows, or too few at the end.
    """
    entries: dict[str, NDArray[np.generic]] = {"ids": np.array(ids), "labels": np.asarray(labels)}
    if groups is not None:
        entries["groups"] = np.array(groups)
    if projection is not None:
        entries |= {"answers": projection.answers, "pooled": np.array(projection.pooled)}
    written = 0
    with atomically(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in entries.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
        with archive.open("logits.npy", "w", force_zip64=True) as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), classes)}
            np.lib.format.write_array_header_1_0(stream, header)

            def add(logits: NDArray[np.float32]) -> None:
                nonlocal written
                if logits.ndim != 2 or logits.shape[1] != classes or written + len(logits) > len(ids):
                    raise InputError(
                        f"logits of the shape {logits.shape} do not follow the {written} rows of {path}, which must "
                        f"have {len(ids)} rows of {classes} classes. Add every batch once, in order."
                    )
                stream.write(np.ascontiguousarray(logits, dtype="<f4").tobytes())
                written += len(logits)

            yield add
        if written < len(ids):
            raise InputError(
                f"only {written} of {len(ids)} samples were added to {path}, which is not written. Add every batch."
            )


def save_predictions(predictions: Predictions, path: str | Path) -> Path:
    """Writes ids, labels, logits and groups to an ``.npz`` file without pickle, and returns its path."""
    path = Path(path)
    logits = predictions.logits if predictions.model_logits is None else predictions.model_logits
    of_set = predictions.ids, predictions.labels, logits.shape[1], predictions.groups, predictions.projection
    with writing_predictions(path, *of_set) as add:
        for block in logit_blocks(logits):
            add(block)
    return path


def open_predictions(path: str | Path) -> StoredPredictions:
    """Opens a file that ``save_predictions`` wrote, without reading its logits into memory.

    Raises an InputError that names the file if it cannot be read.
    """
    path = Path(path)
    with _readable(path):
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            ids, labels = tuple(file["ids"].tolist()), file["labels"]
            groups = tuple(file["groups"].tolist()) if "groups" in file else None
            projection = Projection(file["answers"], bool(file["pooled"])) if "answers" in file else None
        with zipfile.ZipFile(path) as archive, archive.open("logits.npy") as entry:
            shape = _read_header(entry)
        if len(ids) != len(labels) or len(ids) != shape[0]:
            raise ValueError(f"it has {len(ids)} ids, {len(labels)} labels and {shape[0]} rows of logits")
    return StoredPredictions(path, ids, labels, groups, shape, projection)


def load_predictions(path: str | Path) -> Predictions:
    """Reads a file that ``save_predictions`` wrote, logits included.

    Raises an InputError that names the file if it cannot be read.
    """
    stored = open_predictions(path)
    blocks = list(stored.model_blocks())
    logits = np.concatenate(blocks) if blocks else np.empty(stored.shape, dtype=np.float32)
    return Predictions.of(stored.ids, stored.labels, logits, stored.groups, stored.projection)


def align_predictions(first: Predictions, second: Predictions) -> Predictions:
    """The second predictions, with their samples in the order of the first predictions, matched by id.

    Raises an InputError that lists the samples which only one of them has, or whose labels differ.

    >>> one = Predictions(("a", "b"), np.array([0, 1]), np.eye(2, dtype=np.float32))
    >>> other = Predictions(("b", "a"), np.array([1, 0]), np.eye(2, dtype=np.float32))
    >>> align_predictions(one, other).logits.tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    if alone := sorted(set(first.ids) ^ set(second.ids)):
        raise InputError(f"these samples are in one of the predictions only: {listed(alone, 5)}. Predict the same set.")
    row_of = {sample: row for row, sample in enumerate(second.ids)}
    rows = [row_of[sample] for sample in first.ids]
    if (differing := np.flatnonzero(first.labels != second.labels[rows])).size:
        raise InputError(
            f"these samples are labelled differently: {listed([first.ids[row] for row in differing], 5)}. Convert both "
            "predictions to the same class space."
        )
    groups = None if second.groups is None else tuple(second.groups[row] for row in rows)
    logits = second.logits if second.model_logits is None else second.model_logits
    return Predictions.of(first.ids, second.labels[rows], logits[rows], groups, second.projection)


def save_scores(scores: Scores, ids: tuple[str, ...], path: Path) -> Path:
    """Writes (N,) scores and ids to an ``.npz`` file without pickle, one array per field, and returns its path."""
    entries = {
        "ids": np.array(ids),
        "prediction": scores.prediction,
        "confidence": scores.confidence,
        "margin": scores.margin,
        "log_probability": scores.log_probability,
        "square_sum": scores.square_sum,
    }
    return write_atomically(path, lambda temporary: np.savez_compressed(temporary, **entries))  # type: ignore[arg-type]


def load_scores(path: Path) -> tuple[tuple[str, ...], Scores]:
    """Reads the ids and scores that ``save_scores`` wrote; raises an InputError that names a file it cannot read."""
    with _readable(path), path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        return tuple(file["ids"].tolist()), Scores(**{n: file[n] for n in file.files if n != "ids"})


def _read_header(stream: IO[bytes]) -> tuple[int, int]:
    """Reads the header of a float32 array in row-major order and returns the shape of the array."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("its logits have an unknown format")
    shape, columns_first, kind = np.lib.format.read_array_header_1_0(stream)
    if columns_first or kind != np.dtype("<f4") or len(shape) != 2:
        raise ValueError("its logits are not rows of float32")
    return shape[0], shape[1]


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except _UNREADABLE as error:
        raise InputError(f"the predictions {path} cannot be read ({error}). Run the evaluation again.") from error
