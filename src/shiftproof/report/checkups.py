"""The findings of a checkup, and the numbers of its sets, in tables."""

from __future__ import annotations

from shiftproof.errors import counted
from shiftproof.records.checkups import SEVERITIES, Checkup
from shiftproof.report.tables import ABSENT, Table


def findings_table(checkup: Checkup) -> Table:
    """Returns the findings with what to do about each, the most severe first."""
    rows = tuple((entry.severity, entry.subject, entry.problem, entry.remedy) for entry in checkup.findings)
    return Table(f"Findings on {checkup.target}", ("severity", "where", "what was seen", "what to do"), rows)


def sets_table(checkup: Checkup) -> Table:
    """Returns the numbers of images and classes of every set."""
    rows = tuple(
        (
            entry.name,
            f"{entry.images:,}",
            ABSENT if entry.known is None else f"{entry.known:,}",
            f"{entry.classes:,}",
            f"{entry.smallest:,} to {entry.largest:,}",
            f"{entry.decoded:,}",
        )
        for entry in checkup.sets
    )
    header = ("set", "images", "published", "classes", "images of a class", "decoded")
    return Table(f"Sets of {checkup.target}", header, rows)


def conclusion(checkup: Checkup) -> str:
    """Returns one sentence that counts the findings by their severity.

    >>> conclusion(Checkup("run.yaml", ()))
    'Nothing is wrong with run.yaml, as far as the checks can tell.'
    """
    if not checkup.findings:
        return f"Nothing is wrong with {checkup.target}, as far as the checks can tell."
    severities = [finding.severity for finding in checkup.findings]
    counts = [counted(severities.count(severity), severity) for severity in SEVERITIES if severity in severities]
    return f"{checkup.target}: {', '.join(counts)}."
