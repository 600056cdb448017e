"""Progress events of a long job, which are discarded unless a listener is registered, and the file being read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Event:
    """A stage has finished ``done`` of its ``total`` units; ``values`` are current measurements such as the loss."""

    stage: str
    done: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Event], None]
Reader = Callable[[str], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())
_file: ContextVar[Path | None] = ContextVar("file", default=None)
_readers: ContextVar[tuple[Reader, ...]] = ContextVar("readers", default=())


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """A context in which every reported event is sent to the listener.

    >>> seen = []
    >>> with listening(seen.append):
    ...     report("train", 1, 10, loss=0.5)
    >>> seen[0].values
    {'loss': 0.5}
    """
    token = _listeners.set((*_listeners.get(), listener))
    try:
        yield
    finally:
        _listeners.reset(token)


def is_secondary_process() -> bool:
    """Whether ``torchrun`` started this process in addition to the first, which alone writes to the terminal."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def report(stage: str, done: int, total: int, **values: float) -> None:
    """Sends every listener an Event: the stage has finished ``done`` of ``total`` units and measured ``values``."""
    for listener in _listeners.get():
        listener(Event(stage, done, total, values))


@contextlib.contextmanager
def reading(file: str | Path) -> Iterator[None]:
    """A context in which a file is read, so that a warning of the library that decodes it can name the file."""
    token = _file.set(Path(file))
    try:
        yield
    finally:
        _file.reset(token)


def file_being_read() -> Path | None:
    """The file that this thread is reading, or None.

    >>> with reading("photo.jpg"):
    ...     str(file_being_read())
    'photo.jpg'
    """
    return _file.get()


@contextlib.contextmanager
def reading_notes(reader: Reader) -> Iterator[None]:
    """A context in which every note is sent to the reader.

    >>> notes = []
    >>> with reading_notes(notes.append):
    ...     note("training starts")
    >>> notes
    ['training starts']
    """
    token = _readers.set((*_readers.get(), reader))
    try:
        yield
    finally:
        _readers.reset(token)


def note(line: str) -> None:
    """Sends every reader a line that is worth reading, but no warning."""
    for reader in _readers.get():
        reader(line)
