"""The study file: the YAML that asks for many fine-tunings, resolved into one run file each."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError

from shiftproof.ensembling.path import alpha_grid
from shiftproof.ensembling.rules import FIXED_ALPHA
from shiftproof.errors import InputError, listed
from shiftproof.runs.file import Frozen, RunFile, SuiteFile, copied, explained, override_key, place_key, read_yaml
from shiftproof.seeding import child_generator

# What all runs of a study must share, else their accuracies do not compare.
_SHARED = ("suite", "alphas", "alpha_tolerance", "limit", "device", "report_to")
# What no run of a study has: its place is elsewhere, or it has none.
_ELSEWHERE = {
    "seed": "List seeds beside run: seeds: [0, 1].",
    "alpha_rule": "Set rule beside run.",
    "pretrain": "Leave it out.",
}


class Between(Frozen):
    """A range to draw from, evenly or evenly in the logarithm; whole numbers where both ends are."""

    low: int | float
    high: int | float
    log: bool = False


class SampleFile(Frozen):
    """``count`` configurations drawn at random: for every key a list to choose from, or a range."""

    count: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    keys: dict[str, list[Any] | Between]


class StudyFile(Frozen):
    """What to run: the run that all share, and what differs.

    ``run`` holds keys of a run file. ``grid`` lists values by dotted key, of which every combination is one
    configuration; ``sample`` draws further ones; ``configurations`` names more, each with its keys. Every
    configuration is run with each of ``seeds``. ``rule`` chooses alpha by the reference's validation split. Runs go
    side by side, with so many CPUs and GPUs each; where ``gpus_per_run`` is silent, one if there are any.

    >>> study = StudyFile.resolve({"grid": {"finetune.lr": [1e-3, 2e-3]}, "seeds": [0, 1]})
    >>> [member.name for member in study.members()]
    ['lr-0.001-seed-0', 'lr-0.001-seed-1', 'lr-0.002-seed-0', 'lr-0.002-seed-1']
    """

    run: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    configurations: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sample: SampleFile | None = None
    seeds: list[int] = Field([0], min_length=1)
    rule: Literal["reference", "tolerance"] = "reference"
    soups: list[Literal["uniform", "greedy"]] = Field(default_factory=list)
    cpus_per_run: float = Field(1, gt=0)
    gpus_per_run: float | None = Field(None, ge=0)

    @classmethod
    def resolve(cls, asked: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyFile:
        """A checked study file from a plain mapping and ``key.path=value`` overrides."""
        plain = copied(asked)
        for override in overrides:
            override_key(plain, override)
        plain["grid"] = _flat(plain.get("grid") or {})
        if isinstance(named := plain.get("configurations") or {}, Mapping):
            plain["configurations"] = {name: _flat(keys or {}) for name, keys in named.items()}
        if isinstance(sample := plain.get("sample"), Mapping) and "keys" in sample:
            plain["sample"] = {**sample, "keys": _flat(sample["keys"])}
        try:
            resolved = cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(explained(error, _SECTIONS)) from error
        resolved.members()
        return resolved

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> StudyFile:
        """A checked study file from YAML."""
        return cls.resolve(read_yaml(path, "study file"), overrides)

    def asks_the_same(self, other: StudyFile) -> bool:
        """Whether both ask for the same runs and the same rule; how these are run, and soups, may differ."""
        return not self.differences(other)

    def differences(self, other: StudyFile) -> list[str]:
        """The names of the runs, and "rule", in which two studies differ."""
        first, second = ({run.name: run.asked for run in study.members()} for study in (self, other))
        names = [name for name in {**first, **second} if name not in first or name not in second]
        names += [name for name in first if name in second and not first[name].asks_the_same(second[name])]
        return (["rule"] if self.rule != other.rule else []) + names

    def to_yaml(self) -> str:
        """All that was asked for, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def members(self) -> tuple[MemberRun, ...]:
        """Every configuration with every seed; an InputError where a key, a value or a name is wrong."""
        found = []
        for configuration, changes in self._changes():
            for seed in self.seeds:
                plain = copied(self.run)
                for key, value in changes.items():
                    place_key(plain, key, value)
                plain["seed"] = seed
                name = f"{_slug(configuration)}-seed-{seed}"
                found.append(MemberRun(name, configuration, changes, RunFile.resolve(plain)))
        names = [member.name for member in found]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"these configurations share a name: {listed(doubled)}. Give them others.")
        self._require_honest_soups(found[0].asked)
        alphas = alpha_grid(found[0].asked.alphas)
        if not {0.0, FIXED_ALPHA, 1.0} <= set(alphas):
            raise InputError(f"run.alphas is {list(alphas)}; a study needs 0, 0.5 and 1 among them.")
        return tuple(found)

    def _require_honest_soups(self, asked: RunFile) -> None:
        own = isinstance(asked.suite, SuiteFile) and asked.suite.reference.validation is None
        if own and self.soups and len(self.seeds) > 1:
            raise InputError(
                "soups need validation data of their own: without, every seed holds out other training images, which "
                "the members of other seeds have seen. Name run.suite.reference.validation, or give one seed."
            )

    def _changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Every configuration's name and keys."""
        found: list[tuple[str, dict[str, Any]]] = []
        _require_values("grid", self.grid)
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                changes = dict(zip(self.grid, values, strict=True))
                found.append((_named(changes), changes))
        if self.sample:
            _require_values("sample.keys", self.sample.keys)
            found += [(f"sample-{number}", _drawn(self.sample, number)) for number in range(self.sample.count)]
        found += list(self.configurations.items())
        if not found:
            found.append(("run", {}))
        for key in sorted({key for _, changes in found for key in changes}):
            if key.split(".")[0] in _SHARED:
                raise InputError(f"the key {key!r} must be the same in all runs of a study. Set it under run.")
        for key in sorted({*self.run, *(key.split(".")[0] for _, changes in found for key in changes)}):
            if key in _ELSEWHERE:
                raise InputError(f"a run of a study has no key {key!r} of its own. {_ELSEWHERE[key]}")
        return found


@dataclass(frozen=True)
class MemberRun:
    """One run of a study: its directory's name, what makes it differ, and its run file."""

    name: str
    configuration: str
    changes: Mapping[str, Any]
    asked: RunFile


def _flat(keys: Any, before: str = "") -> Any:
    """``{"finetune": {"lr": 1}}`` and ``{"finetune.lr": 1}`` alike as the latter; what is no section stays as it is."""
    if not isinstance(keys, Mapping):
        return keys
    found: dict[str, Any] = {}
    for key, value in keys.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and name == "finetune" else {name: value}
    return found


def _require_values(section: str, keys: Mapping[str, list[Any] | Between]) -> None:
    for key, values in keys.items():
        if isinstance(values, list):
            if not values:
                raise InputError(f"{section} lists no value for {key!r}. Give one at least.")
        elif not values.low <= values.high or (values.log and values.low <= 0):
            raise InputError(
                f"the range of {key!r} goes from {values.low} to {values.high}; it must rise, and begin above 0 where "
                "it is logarithmic."
            )


def _drawn(sample: SampleFile, number: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, values in sample.keys.items():
        draw = torch.rand((), generator=child_generator(sample.seed, "sample", number, key), dtype=torch.float64)
        share = float(draw)
        found[key] = values[int(share * len(values))] if isinstance(values, list) else _between(values, share)
    return found


def _between(values: Between, share: float) -> float:
    """The place in a range that a share of it stands for; whole numbers are equally likely, or so in the logarithm."""
    whole = isinstance(values.low, int) and isinstance(values.high, int)
    low, high = float(values.low), float(values.high + whole)  # the last whole number has as much room as the others
    place = low * (high / low) ** share if values.log else low + share * (high - low)
    # Three digits are what a person would write.
    drawn = math.floor(place) if whole else float(f"{place:.3g}")
    return min(max(drawn, values.low), values.high)


def _named(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in changes.items())


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


_SECTIONS: Mapping[str, Any] = {
    "": StudyFile.model_fields,
    "sample": SampleFile.model_fields,
    "sample.keys": Between.model_fields,
}
