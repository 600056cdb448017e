"""Tables of text, and the format of numbers with intervals in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from shiftproof.evaluation.intervals import LEVEL
from shiftproof.records.comparisons import Measured

ABSENT = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header. The first column names the row, and the note explains the table."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def transposed(table: Table) -> Table:
    """Returns the table with rows and columns exchanged, for a console that is narrower than a page."""
    lines = [table.header, *table.rows]
    header, *rows = zip(*lines, strict=True)
    return Table(table.title, ("set", *header[1:]), tuple(rows), table.note)


def per_cent(fraction: float) -> str:
    """Formats a fraction in per cent with one decimal.

    >>> per_cent(0.9444)
    '94.4'
    """
    # Rounding first makes the text independent of the last binary digits.
    return f"{round(100 * fraction, 9):.1f}"


def signed_points(difference: float) -> str:
    """Formats a difference of fractions in percentage points, with its sign.

    >>> signed_points(0.0123), signed_points(-0.0004)
    ('+1.2', '0.0')
    """
    text = f"{round(100 * difference, 9):+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def reference_name(name: str) -> str:
    """Returns the name of a reference, marked as such unless it is called "reference".

    >>> reference_name("photo"), reference_name("reference")
    ('photo (reference)', 'reference')
    """
    return name if name == "reference" else f"{name} (reference)"


def with_interval(measured: Measured | None, form: Callable[[float], str] = per_cent) -> str:
    """Formats a number with its interval in brackets; None becomes a dash.

    >>> with_interval(Measured(0.5, (0.41, 0.58))), with_interval(None)
    ('50.0 (41.0–58.0)', '–')
    """
    if measured is None:
        return ABSENT
    if measured.interval is None:
        return f"{form(measured.value)} (no interval)"
    low, high = map(form, measured.interval)
    return f"{form(measured.value)} ({low}{'–' if form is per_cent else ' to '}{high})"


def accuracy_cell(accuracy: float, interval: tuple[float, float]) -> str:
    """Formats an accuracy in per cent with its interval in brackets; both arguments are fractions."""
    low, high = interval
    return f"{per_cent(accuracy)} ({per_cent(low)}–{per_cent(high)})"


def plain(value: float) -> str:
    """Formats a number that is not a fraction, with two decimals.

    >>> plain(-0.678)
    '−0.68'
    """
    return f"{value:.2f}".replace("-", "−")


def resampling_note(clusters: Mapping[str, str]) -> str:
    """Describes the intervals and what they resample, which ``clusters`` gives for every set."""
    units = {
        "drawing": "drawings (with all their views)",
        "picture": "pictures (with all their versions)",
        "foreground": "foregrounds (with all their backgrounds)",
        "sample": "images",
    }
    kinds = " or ".join(units.get(kind, f"{kind}s") for kind in sorted(set(clusters.values())))
    return f"The {100 * LEVEL:g} % bootstrap intervals in brackets resample {kinds}."


def set_name(name: str, reference: str) -> str:
    """Returns the name of a set for tables, in which the reference is marked as such."""
    return reference_name(name) if name == reference else name
