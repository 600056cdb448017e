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

from shiftproof.ensembling.path import FIXED_ALPHA, alpha_grid
from shiftproof.errors import InputError, listed
from shiftproof.runfile import Frozen, RunFile, copied, explained, override_key, place_key, read_yaml
from shiftproof.seeding import child_generator

# What all runs of a study must share, else their accuracies do not compare.
_SHARED = ("suite", "alphas", "limit", "seed", "device", "report_to", "alpha_rule", "pretrain")


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
    side by side, with so many CPUs and GPUs each.

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
    gpus_per_run: float = Field(0, ge=0)

    @classmethod
    def resolve(cls, asked: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyFile:
        """A checked study file from a plain mapping and ``key.path=value`` overrides."""
        plain = copied(asked)
        for override in overrides:
            override_key(plain, override)
        plain["grid"] = _flat(plain.get("grid") or {})
        plain["configurations"] = {n: _flat(keys or {}) for n, keys in (plain.get("configurations") or {}).items()}
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

    def to_yaml(self) -> str:
        """All that was asked for, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def members(self) -> tuple[MemberRun, ...]:
        """Every configuration with every seed; an InputError where a key, a value or a name is wrong."""
        found = []
        for configuration, changes in self._changes().items():
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
        alphas = alpha_grid(found[0].asked.alphas)
        if not {0.0, FIXED_ALPHA, 1.0} <= set(alphas):
            raise InputError(f"run.alphas is {list(alphas)}; a study needs 0, 0.5 and 1 among them.")
        return tuple(found)

    def _changes(self) -> dict[str, dict[str, Any]]:
        """The keys of every configuration by its name."""
        found: dict[str, dict[str, Any]] = {}
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                changes = dict(zip(self.grid, values, strict=True))
                found[_named(changes)] = changes
        for number in range(self.sample.count if self.sample else 0):
            changes = _drawn(self.sample, number)
            found[f"sample-{number}"] = changes
        found |= self.configurations
        if not found:
            found["run"] = {}
        for key in sorted({key for changes in found.values() for key in changes}):
            if key.split(".")[0] in _SHARED:
                raise InputError(
                    f"the key {key!r} must be the same in all runs of a study. Set it under run, or seeds."
                )
        if "seed" in self.run:
            raise InputError("run.seed stands for no run of a study. List them: seeds: [0, 1].")
        return found


@dataclass(frozen=True)
class MemberRun:
    """One run of a study: its directory's name, what makes it differ, and its run file."""

    name: str
    configuration: str
    changes: Mapping[str, Any]
    asked: RunFile


def _flat(keys: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """``{"finetune": {"lr": 1}}`` and ``{"finetune.lr": 1}`` alike as the latter."""
    found: dict[str, Any] = {}
    for key, value in keys.items():
        name = f"{before}{key}"
        found |= _flat(value, f"{name}.") if isinstance(value, Mapping) and name == "finetune" else {name: value}
    return found


def _drawn(sample: SampleFile | None, number: int) -> dict[str, Any]:
    if sample is None:
        return {}
    found: dict[str, Any] = {}
    for key, values in sample.keys.items():
        share = float(
            torch.rand((), generator=child_generator(sample.seed, "sample", number, key), dtype=torch.float64)
        )
        if isinstance(values, list):
            found[key] = values[int(share * len(values))]
        elif values.log:
            found[key] = math.exp(math.log(values.low) + share * (math.log(values.high) - math.log(values.low)))
        else:
            found[key] = values.low + share * (values.high - values.low)
        if isinstance(values, Between) and isinstance(values.low, int) and isinstance(values.high, int):
            found[key] = round(found[key])
        elif isinstance(values, Between):
            found[key] = float(f"{found[key]:.3g}")  # what a person would write
    return found


def _named(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in changes.items())


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


_SECTIONS: Mapping[str, Any] = {"": StudyFile.model_fields, "sample": SampleFile.model_fields}
