"""What a person sees in the terminal: tables, and a live line for every stage that reports progress."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as RichTable

from shiftproof import progress
from shiftproof.report.tables import Table

_WIDTH_IN_FILES = 150


def output_console() -> Console:
    """The console for results; where the output is a file or a pipe, lines are not folded at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else _WIDTH_IN_FILES, highlight=False)


def print_table(table: Table) -> None:
    """Prints a table with its note."""
    shown = RichTable(title=escape(table.title), title_justify="left", title_style="bold", caption_justify="left")
    for number, name in enumerate(table.header):
        # Folded, not cut: what differs in two long names may stand at their ends.
        shown.add_column(escape(name), justify="left" if number == 0 else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*map(escape, row))
    output_console().print(shown)
    if table.note:
        output_console().print(table.note, style="dim", markup=False)


@contextlib.contextmanager
def live_progress() -> Iterator[None]:
    """Shows progress events as bars on a terminal, and as one line a finished stage elsewhere."""
    console = Console(stderr=True)
    with _bars(console) if console.is_terminal else _lines(), _plain_warnings():
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
            bars.update(tasks[event.stage], completed=event.done, total=event.total, values=_said(event))

        with progress.listening(show):
            yield


@contextlib.contextmanager
def _lines() -> Iterator[None]:
    def show(event: progress.Event) -> None:
        if event.done == event.total and event.stage not in ("predict", "validate"):
            print(f"{event.stage}: {event.total} done {_said(event)}".rstrip(), file=sys.stderr)

    with progress.listening(show):
        yield


def _said(event: progress.Event) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in event.values.items())


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings without the source line that raised them, which tells a user nothing."""
    shown = warnings.showwarning
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        yield
    finally:
        warnings.showwarning = shown
