"""Records of the rules that choose alpha, compared on one path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from shiftproof.errors import InputError, listed
from shiftproof.records.accuracy import MeanRecord


@dataclass(frozen=True)
class RuleRecord:
    """The alpha that a rule chose, the accuracies there, and their differences from those at alpha 0.5.

    A rule reads no shift. An ``oracle`` does: it chose the alpha that is best on ``set``, or on the mean if that is
    "mean", and is for the report only. ``mean`` is over the sets of ``RulesRecord.averaged`` and None if there are
    none; intervals are paired, sample by sample.
    """

    rule: str
    alpha: float
    accuracy: Mapping[str, float]
    difference: Mapping[str, MeanRecord]
    mean: float | None
    mean_difference: MeanRecord | None
    oracle: bool = False
    set: str | None = None


@dataclass(frozen=True)
class RulesRecord:
    """The rules that choose alpha and the oracles, compared on one path; ``rules.json`` is its JSON form."""

    reference: str
    shifts: tuple[str, ...]
    averaged: tuple[str, ...]
    tolerance: float
    level: float
    rules: tuple[RuleRecord, ...]

    def rule(self, name: str, of_set: str | None = None) -> RuleRecord:
        """Returns the record of a rule, or of a set's oracle; raises an InputError that lists the rules if absent."""
        for record in self.rules:
            if (record.rule, record.set) == (name, of_set):
                return record
        known = [record.rule if record.set is None else f"{record.rule} of {record.set}" for record in self.rules]
        wanted = name if of_set is None else f"{name} of {of_set}"
        raise InputError(f"there is no rule {wanted!r}. Compared: {listed(known)}.")
