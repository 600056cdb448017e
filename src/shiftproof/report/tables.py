"""A table of text, and how numbers with intervals are written in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.comparisons import Measured

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """Text in rows under one header; the first column names the row, the note explains what is read."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def transposed(table: Table) -> Table:
    """Rows to columns, for a console that is narrower than a page."""
    lines = [table.header, *table.rows]
    header, *rows = zip(*lines, strict=True)
    return Table(table.title, ("set", *header[1:]), tuple(rows), table.note)


def per_cent(fraction: float) -> str:
    """A fraction in per cent with one decimal.

    >>> per_cent(0.9444)
    '94.4'
    """
    # Rounded first, so that one difference reads the same however its last binary digits fell.
    return f"{round(100 * fraction, 9):.1f}"


def signed_points(difference: float) -> str:
    """A difference of fractions in points, with its sign.

    >>> signed_points(0.0123), signed_points(-0.0004)
    ('+1.2', '0.0')
    """
    text = f"{round(100 * difference, 9):+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def reference_name(name: str) -> str:
    """A reference's name with the word beside it, unless that is its name.

    >>> reference_name("photo"), reference_name("reference")
    ('photo (reference)', 'reference')
    """
    return name if name == "reference" else f"{name} (reference)"


def with_interval(found: Measured | None, form: Callable[[float], str] = per_cent) -> str:
    """A number with its interval in brackets; a dash where there is none of it.

    >>> with_interval(Measured(0.5, (0.41, 0.58))), with_interval(None)
    ('50.0 (41.0–58.0)', '–')
    """
    if found is None:
        return ABSENT
    if found.interval is None:
        return f"{form(found.value)} (no interval)"
    low, high = map(form, found.interval)
    return f"{form(found.value)} ({low}{'–' if form is per_cent else ' to '}{high})"


def accuracy_cell(accuracy: float, interval: tuple[float, float]) -> str:
    """An accuracy in per cent with its interval in brackets; both are given as fractions."""
    low, high = interval
    return f"{per_cent(accuracy)} ({per_cent(low)}–{per_cent(high)})"


def plain(value: float) -> str:
    """A number that is no share of anything, with two decimals.

    >>> plain(-0.678)
    '−0.68'
    """
    return f"{value:.2f}".replace("-", "−")


def resampling_note(clusters: Mapping[str, str]) -> str:
    """What the intervals are and what they resample; ``clusters`` names that for every set."""
    what = {"drawing": "drawings, all views of one together", "group": "groups", "sample": "images"}
    kinds = " or ".join(what[kind] for kind in sorted(set(clusters.values())))
    return f"In brackets {100 * LEVEL:g} % bootstrap intervals over {kinds}."


def set_name(name: str, reference: str) -> str:
    """A set's name as tables show it: the reference is marked as such."""
    return reference_name(name) if name == reference else name
