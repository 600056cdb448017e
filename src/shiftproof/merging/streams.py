"""Tensors of any size in pieces: cut, fingerprinted, and written while the next ones are computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
import xxhash
from torch import Tensor

from shiftproof.weights.arithmetic import described
from shiftproof.weights.checkpoints import SafetensorsWriter

PIECE = 8 << 20  # bytes of a tensor that are combined at a time
_AHEAD = 4  # how many pieces may wait to be written


def pieces(parts: Sequence[Tensor], size: int) -> Iterator[list[Tensor]]:
    """Yields flat slices of tensors of one shape, at most ``size`` entries each, and contiguous ones."""
    if all(part.is_contiguous() for part in parts):
        # A tensor of one entry or none is contiguous whatever its strides, but a view as bytes needs proper ones.
        flat = [part.as_strided((part.numel(),), (1,)) for part in parts]
        for start in range(0, len(flat[0]), size):
            yield [part[start : start + size] for part in flat]
    elif (rows := size * len(parts[0]) // parts[0].numel()) > 0:
        for start in range(0, len(parts[0]), rows):
            yield from pieces([part[start : start + rows].contiguous() for part in parts], size)
    else:  # a row is longer than a piece
        for row in zip(*parts, strict=True):
            yield from pieces(row, size)


class Pen:
    """Writes pieces in a separate thread, during the arithmetic, from a few buffers that are reused."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._free = deque(torch.empty(PIECE, dtype=torch.uint8) for _ in range(_AHEAD))
        self._pending: deque[tuple[Future[None], Tensor]] = deque()
        self._taken: Tensor | None = None

    def buffer(self, count: int, dtype: torch.dtype) -> Tensor:
        """Returns a buffer for ``count`` entries of a piece, which ``write`` then accepts."""
        if not self._free:
            self._wait()
        self._taken = self._free.popleft()
        return self._taken[: count * dtype.itemsize].view(dtype)

    def write(self, writer: SafetensorsWriter, piece: Tensor) -> None:
        """Hands the piece in the last buffer to its writer."""
        if self._taken is not None:
            self._pending.append((self._thread.submit(writer.write, piece), self._taken))

    def _wait(self) -> None:
        future, buffer = self._pending.popleft()
        self._free.append(buffer)
        future.result()

    def __enter__(self) -> Pen:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while self._pending and kind is None:
                self._wait()
        finally:
            self._thread.shutdown(cancel_futures=True)


class ContentFingerprint:
    """The XXH3 hash of every entry's bytes as they are read, and one of names, dtypes, shapes and these hashes.

    It distinguishes checkpoints independently of the order of keys and shards, but does not protect against forgery.
    """

    def __init__(self) -> None:
        self._of: dict[str, xxhash.xxh3_128] = {}

    def add(self, name: str, piece: Tensor) -> None:
        """Adds the next contiguous piece of an entry."""
        self._of.setdefault(name, xxhash.xxh3_128()).update(piece.detach().view(torch.uint8).numpy().data)

    def hexdigest(self, entries: Mapping[str, Tensor]) -> str:
        """Returns the fingerprint of the entries, all of whose bytes have been added."""
        empty = xxhash.xxh3_128()
        lines = [
            f"{name} {described(entries[name])} {self._of.get(name, empty).hexdigest()}" for name in sorted(entries)
        ]
        return f"xxh3-128:{xxhash.xxh3_128(chr(10).join(lines).encode()).hexdigest()}"


def fingerprint_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Returns the content fingerprint of a state dict."""
    content = ContentFingerprint()
    for name, tensor in tensors.items():
        for (piece,) in pieces([tensor], PIECE // tensor.dtype.itemsize):
            content.add(name, piece)
    return content.hexdigest(tensors)
