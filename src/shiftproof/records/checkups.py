"""The record of a checkup: what may be wrong with a run file, a model or data before anything is computed."""

from __future__ import annotations

from dataclasses import dataclass

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that may be: an "error", a "warning" or a "note".

    ``subject`` is the set or the model, ``problem`` says what is the matter with it, and ``remedy`` what to do.
    """

    severity: str
    subject: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


@dataclass(frozen=True)
class CheckedSet:
    """The numbers of a set: its images, the classes that occur, and the images of its smallest and largest class.

    ``decoded`` images were decoded. ``known`` is the published number of images of a public data set, None if it is not
    known.
    """

    name: str
    data: str
    images: int
    classes: int
    smallest: int
    largest: int
    decoded: int
    known: int | None = None


@dataclass(frozen=True)
class Checkup:
    """The findings on a target, the most severe first, and the numbers of its sets."""

    target: str
    findings: tuple[Finding, ...]
    sets: tuple[CheckedSet, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that have to be mended."""
        return tuple(finding for finding in self.findings if finding.severity == ERROR)
