"""The study file: YAML that describes many fine-tuning runs, each of which is resolved into a run file."""

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
from shiftproof.runs.file import (
    Frozen,
    RunFile,
    copied,
    draws_validation,
    override_key,
    place_key,
    read_yaml,
)
from shiftproof.runs.keys import refuse_run_file
from shiftproof.runs.locations import with_paths
from shiftproof.runs.mistakes import explained
from shiftproof.seeding import child_generator
from shiftproof.storage import expanded

# Keys that all runs of a study must share, because their accuracies could not be compared otherwise.
_SHARED = ("suite", "evaluation", "alphas", "alpha_tolerance", "limit", "on_bad_image", "device", "report_to")
# Keys that a run of a study cannot have, and what to do instead.
_ELSEWHERE = {
    "seed": "List the seeds beside `run`, as in `seeds: [0, 1]`.",
    "alpha_rule": "Set `rule` beside `run`.",
    "pretrain": "Remove it.",
}


class Between(Frozen):
    """A range to sample from uniformly or, with ``log``, log-uniformly; two integers give integers."""

    low: int | float
    high: int | float
    log: bool = False


class SampleFile(Frozen):
    """``count`` configurations drawn at random. Each key has a list of values to choose from, or a range."""

    count: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    keys: dict[str, list[Any] | Between]


class StudyFile(Frozen):
    """The settings that all runs of a study share, and those in which they differ.

    ``run`` holds keys of a run file, which apply to all runs. ``grid`` lists values by dotted key, and every
    combination of them is one configuration. ``sample`` draws further configurations at random, and ``configurations``
    lists more by name. Every configuration is run with each of the ``seeds``. ``rule`` is the rule that chooses alpha
    on the reference's validation split. Runs are executed in parallel, and each gets ``cpus_per_run`` CPUs and
    ``gpus_per_run`` GPUs. If ``gpus_per_run`` is not set, each run gets one GPU if there is any.

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
    def resolve(cls, settings: Mapping[str, Any], overrides: Sequence[str] = ()) -> StudyFile:
        """Builds a checked study file from a plain mapping and ``key.path=value`` overrides.

        Raises an InputError that names the key, offers the nearest known one, or states the rule it breaks.
        """
        plain = copied(settings)
        for override in overrides:
            override_key(plain, override)
        plain["grid"] = _flat(plain.get("grid") or {})
        if isinstance(configurations := plain.get("configurations") or {}, Mapping):
            plain["configurations"] = {name: _flat(keys or {}) for name, keys in configurations.items()}
        if isinstance(sample := plain.get("sample"), Mapping) and "keys" in sample:
            plain["sample"] = {**sample, "keys": _flat(sample["keys"])}
        try:
            resolved = cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(explained(error, _SECTIONS, "study-file key")) from error
        resolved.members()
        return resolved

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = ()) -> StudyFile:
        """Reads and checks a study file in YAML; arguments and errors are those of ``resolve``.

        Paths in it are relative to its folder, as in a run file.
        """
        path = expanded(path)
        settings = read_yaml(path, "study file")
        refuse_run_file(path, settings, RunFile.model_fields)
        return cls.resolve(_with_paths(settings, path.parent), overrides)

    @property
    def names_model(self) -> bool:
        """Whether the runs or any configuration name a model; those that do not have the tiny one."""
        drawn = self.sample.keys if self.sample else {}
        return any("model" in keys for keys in (self.run, self.grid, drawn, *self.configurations.values()))

    def gives_the_same_results(self, other: StudyFile) -> bool:
        """Whether both have the same runs and the same rule. Soups, CPUs and GPUs may differ."""
        return not self.differences(other)

    def differences(self, other: StudyFile) -> list[str]:
        """Returns "rule" if the rules differ, and the names of the runs that differ or that only one study has."""
        first, second = ({run.name: run.run_file for run in study.members()} for study in (self, other))
        names = [name for name in {**first, **second} if name not in first or name not in second]
        names += [name for name in first if name in second and not first[name].gives_the_same_results(second[name])]
        return (["rule"] if self.rule != other.rule else []) + names

    def to_yaml(self) -> str:
        """Returns all settings of the study, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)

    def members(self) -> tuple[MemberRun, ...]:
        """Returns the runs: every configuration with every seed.

        Raises an InputError if a key or a value is wrong, or if two configurations share a name.
        """
        members = []
        for configuration, changes in self._changes():
            for seed in self.seeds:
                plain = copied(self.run)
                for key, value in changes.items():
                    place_key(plain, key, value)
                plain["seed"] = seed
                name = f"{_slug(configuration)}-seed-{seed}"
                members.append(MemberRun(name, configuration, changes, RunFile.resolve(plain)))
        names = [member.name for member in members]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"some configurations share a name: {listed(duplicates)}. Give each a different name.")
        self._require_separate_validation(members[0].run_file)
        if self.soups and len({member.run_file.batch_norm for member in members}) > 1:
            raise InputError("soups need the same `batch_norm` in all runs. Set it under `run`, or omit `soups`.")
        alphas = alpha_grid(members[0].run_file.alphas)
        if not {0.0, FIXED_ALPHA, 1.0} <= set(alphas):
            raise InputError(f"`run.alphas` is {list(alphas)}; a study needs 0, 0.5 and 1 among them. Add those.")
        return tuple(members)

    def _require_separate_validation(self, run_file: RunFile) -> None:
        if self.soups and len(self.seeds) > 1 and draws_validation(run_file.suite):
            raise InputError(
                "soups of several seeds need separate validation data. Otherwise each seed holds out different "
                "training images, and members with other seeds were trained on them. Set "
                "`run.suite.reference.validation`, or use one seed."
            )

    def _changes(self) -> list[tuple[str, dict[str, Any]]]:
        """Returns the name and the keys of every configuration."""
        configurations: list[tuple[str, dict[str, Any]]] = []
        _require_values("grid", self.grid)
        if self.grid:
            for values in itertools.product(*self.grid.values()):
                changes = dict(zip(self.grid, values, strict=True))
                configurations.append((_configuration_name(changes), changes))
        if self.sample:
            _require_values("sample.keys", self.sample.keys)
            configurations += [
                (f"sample-{number}", _random_changes(self.sample, number)) for number in range(self.sample.count)
            ]
        configurations += list(self.configurations.items())
        if not configurations:
            configurations.append(("run", {}))
        for key in sorted({key for _, changes in configurations for key in changes}):
            if key.split(".")[0] in _SHARED:
                raise InputError(f"the key {key!r} must be the same in all runs of a study. Set it under `run`.")
        for key in sorted({*self.run, *(key.split(".")[0] for _, changes in configurations for key in changes)}):
            if key in _ELSEWHERE:
                raise InputError(f"the runs of a study cannot set the key {key!r}. {_ELSEWHERE[key]}")
        return configurations


@dataclass(frozen=True)
class MemberRun:
    """One run of a study: its name, its configuration, the keys that the configuration changes, and its run file.

    ``name`` is also the name of the run's directory.
    """

    name: str
    configuration: str
    changes: Mapping[str, Any]
    run_file: RunFile


def _with_paths(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a study file with the paths of models and data relative to the working directory."""
    changed = dict(settings)
    if isinstance(run := changed.get("run"), Mapping):
        changed["run"] = with_paths(run, folder)
    if isinstance(configurations := changed.get("configurations"), Mapping):
        changed["configurations"] = {
            name: with_paths(keys, folder) if isinstance(keys, Mapping) else keys
            for name, keys in configurations.items()
        }
    if isinstance(grid := changed.get("grid"), Mapping):
        changed["grid"] = _with_listed_paths(grid, folder)
    if isinstance(sample := changed.get("sample"), Mapping) and isinstance(keys := sample.get("keys"), Mapping):
        changed["sample"] = {**sample, "keys": _with_listed_paths(keys, folder)}
    return changed


def _with_listed_paths(keys: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Lists of values by key, with paths among the values relative to the working directory."""
    return {
        key: [with_paths({key: value}, folder)[key] for value in values] if isinstance(values, list) else values
        for key, values in keys.items()
    }


def _flat(keys: Any, prefix: str = "") -> Any:
    """Flattens the ``finetune`` section into dotted keys: ``{"finetune": {"lr": 1}}`` becomes ``{"finetune.lr": 1}``.

    Anything that is not a mapping is returned unchanged.
    """
    if not isinstance(keys, Mapping):
        return keys
    flat: dict[str, Any] = {}
    for key, value in keys.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, Mapping) and name == "finetune" else {name: value}
    return flat


def _require_values(section: str, keys: Mapping[str, list[Any] | Between]) -> None:
    for key, values in keys.items():
        if isinstance(values, list):
            if not values:
                raise InputError(f"`{section}` lists no values for {key!r}. Give at least one.")
        elif not values.low <= values.high or (values.log and values.low <= 0):
            raise InputError(
                f"the range of {key!r} goes from {values.low} to {values.high}; `low` must not exceed `high`, and must "
                "be positive if `log` is set."
            )


def _random_changes(sample: SampleFile, number: int) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for key, values in sample.keys.items():
        draw = torch.rand((), generator=child_generator(sample.seed, "sample", number, key), dtype=torch.float64)
        fraction = float(draw)
        changes[key] = values[int(fraction * len(values))] if isinstance(values, list) else _between(values, fraction)
    return changes


def _between(values: Between, fraction: float) -> float:
    """Returns the value at a fraction of a range, on a linear or a logarithmic scale.

    A uniform fraction gives every integer of a linear range the same probability.
    """
    integral = isinstance(values.low, int) and isinstance(values.high, int)
    low, high = float(values.low), float(values.high + integral)  # the last integer takes as much room as the others
    exact = low * (high / low) ** fraction if values.log else low + fraction * (high - low)
    # A person would write three significant digits.
    value = math.floor(exact) if integral else float(f"{exact:.3g}")
    return min(max(value, values.low), values.high)


def _configuration_name(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.split('.')[-1]} {value}" for key, value in changes.items())


def _slug(name: str) -> str:
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


_SECTIONS: Mapping[str, Any] = {
    "": StudyFile.model_fields,
    "sample": SampleFile.model_fields,
    "sample.keys": Between.model_fields,
}
