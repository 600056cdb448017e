"""Tables and phrases in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from shiftproof.report.tables import Table, signed_points


class OutdatedError(Exception):
    """The results no longer support a sentence, which has to be reworded."""


def require(holds: bool, sentence: str) -> None:
    """Raises OutdatedError unless the results support a sentence."""
    if not holds:
        raise OutdatedError(f"the results no longer support this: {sentence}")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def of_table(table: Table) -> str:
    """A table of the report with its note."""
    return markdown(table.header, table.rows) + (f"\n\n{table.note}" if table.note else "")


def titled(table: Table) -> str:
    """A table of the report under its title."""
    return f"{table.title}:\n\n{of_table(table)}"


def folded(table: Table) -> list[str]:
    """A table of the report that is shown on demand."""
    return [f"<details><summary>{table.title}</summary>", of_table(table), "</details>"]


def bullets(*sentences: str) -> str:
    """A list."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def stacked(cells: Iterable[str]) -> str:
    """A cell with one line for each entry."""
    return "<br>".join(cells)


def accuracy_cell(value: float, interval: Sequence[float]) -> str:
    """A fraction in per cent with its interval."""
    return f"{100 * value:.1f} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def points_cell(mean: float, interval: Sequence[float]) -> str:
    """A difference of fractions in points with its interval."""
    low, high = map(signed_points, interval)
    return f"{signed_points(mean)} ({low} to {high})"


def span(values: Iterable[float], form: Callable[[float], str] = "{:.1f}".format) -> str:
    """The lowest and the highest value, such as ``1.6 to 2.4``."""
    numbers = list(values)
    low, high = form(min(numbers)), form(max(numbers))
    return low if low == high else f"{low} to {high}"


def size_span(differences: Iterable[float], sentence: str, *, sign: int) -> str:
    """The sizes, in points, of differences of fractions that all have this sign; OutdatedError if they do not."""
    sizes = [sign * difference for difference in differences]
    require(min(sizes) >= 0, sentence)
    return span(100 * size for size in sizes)


def out_of(holds: Iterable[bool]) -> str:
    """How many of the cases hold, such as ``2 of 3`` or ``none of 3``."""
    cases = list(holds)
    return f"{sum(cases) or 'none'} of {len(cases)}"
