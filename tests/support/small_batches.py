"""The command line, with small batches in evaluation, so that several processes get a share of a small set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from shiftproof.cli.app import main
from shiftproof.ensembling import path
from shiftproof.evaluation.inference import predict, predict_batches

SIZE = 2  # of nine images, so that two processes have different numbers of batches, of different sizes


@contextlib.contextmanager
def small_batches() -> Iterator[None]:
    """A context in which evaluation runs in batches of two images."""
    functions, whole = (predict, predict_batches), path.BATCH_SIZE
    try:
        path.BATCH_SIZE = SIZE
        for function in functions:
            function.__kwdefaults__["batch_size"] = SIZE
        yield
    finally:
        path.BATCH_SIZE = whole
        for function in functions:
            function.__kwdefaults__["batch_size"] = whole


if __name__ == "__main__":
    with small_batches():
        main()
