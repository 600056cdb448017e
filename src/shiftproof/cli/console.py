"""Output on the terminal: tables, and a live line for every stage that reports progress."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from shiftproof import progress
from shiftproof.report.tables import Table

_WIDTH_IN_FILES = 150
_INTERVAL = 30.0  # seconds between two lines of one stage
_INNER_STAGES = ("predict", "validate")  # these run within other stages and print no lines


def output_console() -> Console:
    """The console for results; lines are not folded at 80 columns if the output is a file or a pipe."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_IN_FILES, highlight=False)


def print_table(table: Table, *, prose: bool = False) -> None:
    """Prints a table with its note; the columns of numbers stand at the right, those of ``prose`` at the left."""
    shown = RichTable(title=escape(table.title), title_justify="left", title_style="bold", caption_justify="left")
    for number, name in enumerate(table.header):
        # Long names are folded rather than cut, since they may differ only at their ends.
        shown.add_column(escape(name), justify="left" if prose or number == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    output_console().print(shown)
    if table.note:
        output_console().print(table.note, style="dim", markup=False)


@contextlib.contextmanager
def live_progress() -> Iterator[None]:
    """Shows progress as bars on a terminal, and elsewhere as a line for every finished stage and every 30 seconds."""
    if progress.is_secondary_process():
        yield
        return
    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines(), plain_warnings(), _notes():
        yield


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Prints notes, each once, though a command may train several networks."""
    printed = set[str]()

    def show(line: str) -> None:
        if line not in printed:
            printed.add(line)
            print(line, file=sys.stderr, flush=True)

    with progress.reading_notes(show):
        yield


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[None]:
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[values]}"),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(event: progress.Event) -> None:
            if event.stage not in tasks:
                tasks[event.stage] = bars.add_task(event.stage, total=event.total, values="")
            bars.update(tasks[event.stage], completed=event.done, total=event.total, values=_values_of(event))

        with progress.listening(show):
            yield


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    started: dict[str, float] = {}
    printed: dict[str, float] = {}

    def show(event: progress.Event) -> None:
        now = time.monotonic()
        started.setdefault(event.stage, now)
        if event.stage in _INNER_STAGES:
            return
        if event.done == event.total:
            # A stage of the same name may follow, such as the second of two fine-tunings; its clock starts again.
            del started[event.stage]
            printed.pop(event.stage, None)
            print(f"{event.stage}: {event.total} done  {_values_of(event)}".rstrip(), file=sys.stderr)
        elif now - printed.setdefault(event.stage, now) >= _INTERVAL:
            printed[event.stage] = now
            remaining = (now - started[event.stage]) / event.done * (event.total - event.done)
            line = f"{event.stage}: {event.done} of {event.total}  {_values_of(event)}  {_clock(remaining)} left"
            print(line, file=sys.stderr, flush=True)

    with progress.listening(show):
        yield


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _values_of(event: progress.Event) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in event.values.items())


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints warnings without the source line that raised them, which does not help a user.

    A warning that a library raises while it decodes a file begins with the name of the file.
    """
    original = warnings.showwarning

    def show(message: Warning | str, *_: object, **__: object) -> None:
        file = progress.file_being_read()
        print(f"warning: {file}: {message}" if file else f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original
