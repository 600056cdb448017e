"""Predictions of any number of pictures, written to a CSV file batch by batch, so that an interrupted job continues."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from shiftproof import progress
from shiftproof.data.formats.entries import NamedPicture
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.paths import require_known_kind
from shiftproof.data.streams import PictureBatch, picture_batches
from shiftproof.errors import InputError, require_at_least
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.evaluation.metrics import log_probabilities
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.identity import fingerprint
from shiftproof.models.precision import resolved_precision
from shiftproof.runs.starts import load_scored
from shiftproof.storage import locked, read_json, write_json

_ENCODING = {"encoding": "utf-8", "errors": "surrogateescape"}  # names of files need not be UTF-8


@dataclass(frozen=True)
class PredictedTable:
    """What a table of predictions holds: its pictures, and how many of them could not be decoded."""

    pictures: int
    broken: int


def predict_table(
    classifier: str | Path,
    data: str,
    out: str | Path,
    *,
    top: int = 5,
    device: str | torch.device = "auto",
    precision: str = "float32",
    resume: bool = False,
    overwrite: bool = False,
) -> PredictedTable:
    """Writes the ``top`` most probable classes of every picture of some data to a CSV file; labels are not needed.

    ``data`` is a data name such as folder:PATH; under a folder, all pictures are read, at any depth and sorted. The
    columns are ``filepath``, which is the picture's id, ``class_1``, ``probability_1`` (0 to 1) and so on, and
    ``error``, which says why a picture could not be decoded. Pictures are read and written batch by batch; of those
    that are done, eight bytes each are in memory. ``resume`` continues a file whose writing was interrupted: it
    removes a row that is incomplete, and predicts the pictures that have none. What was requested stands in a JSON file
    beside the table. The encoder runs in ``precision``, as in ``predict``.

    Raises an InputError if there is no picture, if ``out`` exists already, if it is of another request, or if the
    device or the precision cannot be used.
    """
    out = Path(out)
    require_at_least("top", top, 1)
    kind, _, place = data.partition(":")
    require_known_kind("data name", data, kind, FORMATS)
    device = resolve_device(device)
    precision = resolved_precision(precision, device)
    model = load_scored(classifier)
    header = _header(min(top, len(model.classes)))
    request: dict[str, object] = {
        "classifier": fingerprint(model),
        "data": data,
        "columns": header,
        "precision": precision,
    }
    total = sum(1 for _ in FORMATS[kind].pictures(place, "test"))
    if not total:
        raise InputError(f"{data} contains no image. Check the path.")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.partial")
    with locked(lock):
        try:
            done, broken = _begin(out, header, request, resume=resume, overwrite=overwrite)
            pictures = _remaining(FORMATS[kind].pictures(place, "test"), done)
            added, more_broken = _append(model, pictures, out, top, device, precision, (len(done), total))
        finally:
            shutil.rmtree(lock, ignore_errors=True)
    return PredictedTable(len(done) + added, broken + more_broken)


def _begin(
    out: Path, header: list[str], request: dict[str, object], *, resume: bool, overwrite: bool
) -> tuple[NDArray[np.uint64], int]:
    """Begins a table, or repairs an interrupted one: the sorted digests of its pictures, and how many are broken."""
    note = out.with_name(f"{out.name}.json")
    if out.exists() and not (resume or overwrite):
        raise InputError(f"{out} exists already. Continue it with `resume=True`, or start anew with `overwrite=True`.")
    if resume and out.exists():
        recorded = read_json(note)
        if differing := [name for name, value in request.items() if recorded.get(name) != value]:
            raise InputError(
                f"{out} was written with another {differing[0]}. Start anew with `overwrite=True`, or choose another "
                "`out`."
            )
        return _repaired(out)
    if note.exists() and not (isinstance(earlier := read_json(note), dict) and earlier.keys() & request.keys()):
        raise InputError(f"{note} is no record of an earlier job, and would be replaced. Choose another `out`.")
    out.unlink(missing_ok=True)  # first, since rows of another job must not stand beside this request
    write_json(note, request)
    out.write_bytes(_text([header]))
    return np.empty(0, dtype=np.uint64), 0


def _repaired(out: Path) -> tuple[NDArray[np.uint64], int]:
    """Removes an incomplete last row; returns the sorted digests of the pictures, and how many are broken."""
    digests: list[int] = []
    broken, position, end, complete = 0, 0, 0, True
    with out.open("rb+") as file:

        def lines() -> Iterator[str]:
            nonlocal position, complete
            for line in iter(file.readline, b""):
                position += len(line)
                complete = line.endswith(b"\n")
                yield line.decode(**_ENCODING)

        reader = csv.reader(lines())
        header = next(reader, [])
        end = position
        for row in reader:
            if not complete or len(row) != len(header):
                break
            end = position
            digests.append(_digest(row[0]))
            broken += bool(row[-1])
        file.truncate(end)
    return np.sort(np.array(digests, dtype=np.uint64)), broken


def _remaining(pictures: Iterator[NamedPicture], done: NDArray[np.uint64]) -> Iterator[NamedPicture]:
    for picture in pictures:
        digest = np.uint64(_digest(picture.sample))
        i = int(np.searchsorted(done, digest))
        if i == len(done) or done[i] != digest:
            yield picture


def _append(
    model: Classifier,
    pictures: Iterator[NamedPicture],
    out: Path,
    top: int,
    device: str,
    precision: str,
    counts: tuple[int, int],
) -> tuple[int, int]:
    """Predicts pictures and appends their rows, a batch at a time: how many there were, and how many were broken."""
    network = model.network_on(device=device, precision=precision)
    added = broken = 0
    with out.open("ab") as file:
        for batch in picture_batches(pictures, model.preprocessing, BATCH_SIZE):
            with torch.inference_mode():
                logits = network(batch.inputs.to(device)).float().cpu().numpy()
            file.write(_text(_rows(batch, np.exp(log_probabilities(logits)), model, top)))
            file.flush()
            os.fsync(file.fileno())
            added += len(batch.samples)
            broken += len(batch.errors)
            progress.report("predict pictures", min(counts[0] + added, counts[1]), counts[1])
    return added, broken


def _rows(batch: PictureBatch, probabilities: NDArray[np.floating], model: Classifier, top: int) -> Iterator[list[str]]:
    count = min(top, len(model.classes))
    decoded = iter(probabilities)
    for position, sample in enumerate(batch.samples):
        if position in batch.errors:
            yield [sample, *[""] * 2 * count, batch.errors[position]]
            continue
        row = next(decoded)
        best = np.argsort(-row, kind="stable")[:count]
        yield [sample, *(text for k in best for text in (model.classes.names[k], f"{row[k]:.6g}")), ""]


def _header(count: int) -> list[str]:
    return [
        "filepath",
        *(f"{name}_{rank}" for rank in range(1, count + 1) for name in ("class", "probability")),
        "error",
    ]


def _text(rows: Iterator[list[str]] | Sequence[list[str]]) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode(**_ENCODING)


def _digest(sample: str) -> int:
    return xxhash.xxh3_64_intdigest(sample.encode(**_ENCODING))
