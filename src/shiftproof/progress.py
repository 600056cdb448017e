"""Events that a long job reports; silent unless someone listens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Event:
    """``done`` of ``total`` units of a stage are finished; ``values`` are what it measures meanwhile."""

    stage: str
    done: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


Listener = Callable[[Event], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Sends every event that is reported inside the block to the listener.

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
    """Whether this process was started by ``torchrun`` beside the first, which alone speaks to the terminal."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


def report(stage: str, done: int, total: int, **values: float) -> None:
    """Tells every listener how far a stage has come."""
    for listener in _listeners.get():
        listener(Event(stage, done, total, values))
