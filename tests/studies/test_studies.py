"""Studies: what they ask for, the numbers they tell, and many fine-tunings side by side, of which some fail."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

import shiftproof as sp
from shiftproof import progress
from shiftproof.evaluation.intervals import LEVEL, bootstrap_spreads
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.studies import STUDIED, SpreadRecord, StudyFailure, StudyMember, StudyRecord
from shiftproof.records.summaries import member_from_json, member_json, study_from_json, study_json
from shiftproof.report.studies import (
    equal_reference_table,
    mean_name,
    spread_table,
    study_figure,
    study_table,
    study_verdict,
)
from shiftproof.runs import file as runfile
from shiftproof.runs.directory import MemberDirectory
from shiftproof.runs.file import RunFile
from shiftproof.runs.pipeline import build_start, load_run_suite
from shiftproof.storage import locked, write_json, write_text
from shiftproof.studies import study
from shiftproof.studies.file import MemberRun, StudyFile
from shiftproof.studies.members import run_member
from shiftproof.studies.spreads import measure_spreads
from shiftproof.studies.study import run_study
from shiftproof.training.engine import Trainer

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"


def own(folders: Path, **sections: Any) -> dict[str, Any]:
    """A study of one's own data, as quick as can be; ``sections`` add to its run, or stand beside it."""
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    run = {
        "suite": {"reference": splits, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}},
        "alphas": [0, 0.5, 1],
        "device": "cpu",
        "limit": 3,
        "finetune": {"recipe": "head-only", "epochs": 1, "batch_size": 3, "lr": 1e-2, "shots": 1},
    }
    return {**sections, "run": {**run, **sections.get("run", {})}}


def in_yaml(folder: Path, asked: Mapping[str, Any]) -> Path:
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(dict(asked), sort_keys=False), encoding="utf-8")
    return file


# What a study file asks for.

KEYS: dict[str, st.SearchStrategy[Any]] = {
    "finetune.epochs": st.integers(1, 30),
    "finetune.lr": st.floats(1e-6, 1),
    "finetune.weight_decay": st.floats(0, 1),
    "finetune.recipe": st.sampled_from(["end-to-end", "head-only", "lora", "flyp"]),
    "prompts": st.sampled_from(["photo", "short"]),
}
GRIDS = st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=3, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: st.lists(KEYS[key], min_size=1, max_size=3, unique=True) for key in keys})
)
SEEDS = st.lists(st.integers(0, 99), min_size=1, max_size=2, unique=True)


@given(GRIDS, SEEDS)
def test_a_grid_is_every_combination_with_every_seed(grid: dict[str, list[Any]], seeds: list[int]) -> None:
    asked = StudyFile.resolve({"run": {"finetune": {"batch_size": 7}}, "grid": grid, "seeds": seeds})
    combinations: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        combinations = [{**before, key: value} for before in combinations for value in values]
    expected = []
    for changes in combinations:
        for seed in seeds:
            settings = {key.removeprefix("finetune."): value for key, value in changes.items() if "." in key}
            plain = {"prompts": changes["prompts"]} if "prompts" in changes else {}
            plain |= {"finetune": {"batch_size": 7, **settings}, "seed": seed}
            expected.append((changes, seed, RunFile.resolve(plain)))
    members = asked.members()
    assert [(member.changes, member.asked.seed, member.asked) for member in members] == expected
    assert len({member.name for member in members}) == len(expected)
    assert len({member.configuration for member in members}) == len(combinations)
    for member in members:
        # A directory's name, in which a reader finds the keys, the values and the seed.
        assert re.fullmatch(r"[\w.-]+", member.name)
        assert member.name.endswith(f"-seed-{member.asked.seed}")
        for key, value in member.changes.items():
            assert f"{key.split('.')[-1]} {value}" in member.configuration
            assert f"{key.split('.')[-1]}-{value}" in member.name


def test_configurations_come_in_the_order_of_the_file() -> None:
    asked = StudyFile.resolve(
        {
            "grid": {"finetune.lr": [2e-3, 1e-3], "finetune.epochs": [2, 1]},
            "sample": {"count": 2, "keys": {"finetune.epochs": [3, 4, 5]}},
            "configurations": {"Linear probe": {"finetune": {"recipe": "linear-probe"}}, "as it is": None},
            "seeds": [3, 0],
        }
    )
    assert [member.name for member in asked.members()] == [
        *("lr-0.002-epochs-2-seed-3", "lr-0.002-epochs-2-seed-0", "lr-0.002-epochs-1-seed-3"),
        *("lr-0.002-epochs-1-seed-0", "lr-0.001-epochs-2-seed-3", "lr-0.001-epochs-2-seed-0"),
        *("lr-0.001-epochs-1-seed-3", "lr-0.001-epochs-1-seed-0", "sample-0-seed-3", "sample-0-seed-0"),
        *("sample-1-seed-3", "sample-1-seed-0", "linear-probe-seed-3", "linear-probe-seed-0"),
        *("as-it-is-seed-3", "as-it-is-seed-0"),
    ]
    assert asked.members()[-1].asked == RunFile.resolve({"seed": 0})


def test_a_study_that_changes_nothing_is_one_run() -> None:
    (member,) = StudyFile.resolve({"run": {"finetune": {"epochs": 3}}}).members()
    assert (member.name, member.configuration, member.changes) == ("run-seed-0", "run", {})
    assert member.asked == RunFile.resolve({"finetune": {"epochs": 3}})


@pytest.mark.parametrize(
    ("dotted", "nested"),
    [
        ({"grid": {"finetune.lr": [1, 2]}}, {"grid": {"finetune": {"lr": [1, 2]}}}),
        ({"configurations": {"a": {"finetune.lr": 1}}}, {"configurations": {"a": {"finetune": {"lr": 1}}}}),
        (
            {"configurations": {"a": {"finetune.mixing": {"method": "mixup"}}}},
            {"configurations": {"a": {"finetune": {"mixing": {"method": "mixup"}}}}},
        ),
        (
            {"sample": {"count": 2, "keys": {"finetune.lr": {"low": 1, "high": 9}}}},
            {"sample": {"count": 2, "keys": {"finetune": {"lr": {"low": 1, "high": 9}}}}},
        ),
    ],
    ids=["grid", "configurations", "a value that is a section", "sample"],
)
def test_nested_and_dotted_keys_are_one(dotted: dict[str, Any], nested: dict[str, Any]) -> None:
    assert StudyFile.resolve(dotted) == StudyFile.resolve(nested)


def test_every_key_can_be_set_from_the_command_line(tmp_path: Path) -> None:
    asked = {
        "run": {"model": "tiny", "finetune": {"epochs": 9, "lr": 1e-3}},
        "grid": {"finetune.lr": [1e-3], "finetune.epochs": [1]},
        "sample": {"count": 1, "keys": {"finetune.weight_decay": [0.1]}},
        "seeds": [0],
    }
    overrides = [
        *("run.finetune.batch_size=5", "run.limit=3", "grid.finetune.lr=[1e-4, 1e-2]", "grid.finetune.epochs=[4]"),
        *("sample.count=2", "sample.seed=7", "seeds=[1,2]", "soups=[greedy]", "rule=tolerance", "cpus_per_run=2"),
        "configurations.mine.finetune.recipe=lora",
    ]
    found = StudyFile.read(in_yaml(tmp_path, asked), overrides)
    assert found == StudyFile.resolve(
        {
            "run": {"model": "tiny", "limit": 3, "finetune": {"epochs": 9, "lr": 1e-3, "batch_size": 5}},
            "grid": {"finetune.lr": ["1e-4", "1e-2"], "finetune.epochs": [4]},
            "configurations": {"mine": {"finetune.recipe": "lora"}},
            "sample": {"count": 2, "seed": 7, "keys": {"finetune.weight_decay": [0.1]}},
            **{"seeds": [1, 2], "soups": ["greedy"], "rule": "tolerance", "cpus_per_run": 2},
        }
    )
    lrs = [member.asked.finetune.lr for member in found.members() if "lr" in member.configuration]
    assert lrs == [1e-4, 1e-4, 1e-2, 1e-2]
    assert {(member.asked.finetune.batch_size, member.asked.limit) for member in found.members()} == {(5, 3)}


def test_a_sample_s_key_can_be_set_from_the_command_line() -> None:
    asked = {"sample": {"count": 3, "keys": {"finetune.lr": [1e-3]}}}
    found = StudyFile.resolve(asked, ["sample.keys.finetune.lr=[1e-4]"])
    assert {member.asked.finetune.lr for member in found.members()} == {1e-4}


def test_a_file_survives_the_way_to_disk(tmp_path: Path) -> None:
    asked = {
        "run": {"prompts": ["a {}."], "finetune": {"lr": "1e-3", "shots": None}},
        "grid": {"finetune.shots": [None, 4], "finetune.lr": ["1e-4", 1e-05]},
        "configurations": {"plain": None, "mixed": {"finetune.mixing": "mixup", "finetune.mixing_probability": None}},
        "sample": {"count": 2, "keys": {"finetune.epochs": {"low": 1, "high": 3}, "finetune.lr": [1, 2]}},
        **{"seeds": [4, 2], "rule": "tolerance", "soups": ["uniform"], "cpus_per_run": 0.5, "gpus_per_run": 0.25},
    }
    first = StudyFile.resolve(asked)
    (tmp_path / "study.yaml").write_text(first.to_yaml(), encoding="utf-8")
    again = StudyFile.read(tmp_path / "study.yaml")
    assert again == first
    assert again.members() == first.members()
    assert again.to_yaml() == first.to_yaml()


@given(GRIDS, SEEDS)
def test_any_grid_survives_the_way_to_disk(grid: dict[str, list[Any]], seeds: list[int]) -> None:
    first = StudyFile.resolve({"grid": grid, "seeds": seeds})
    again = StudyFile.resolve(yaml.safe_load(first.to_yaml()))
    assert (again, again.members()) == (first, first.members())


def test_the_shipped_studies_read() -> None:
    found = {file.stem: StudyFile.read(file) for file in sorted(STUDIES.glob("*.yaml"))}
    assert "tuning" in found
    for asked in found.values():
        members = asked.members()
        assert len({member.name for member in members}) == len(members)
    # What is tuned is tuned on other classes than those of the results.
    assert {member.asked.suite for member in found["tuning"].members()} == {"emoji-development-1"}


# A random sample.


def sampled(count: int, keys: dict[str, Any], seed: int = 0) -> list[Mapping[str, Any]]:
    asked = StudyFile.resolve({"sample": {"count": count, "seed": seed, "keys": keys}})
    return [member.changes for member in asked.members()]


def test_a_sample_s_seed_decides_it() -> None:
    keys = {"finetune.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "finetune.epochs": [1, 2, 3]}
    first = sampled(6, keys)
    assert first == sampled(6, keys)
    assert first != sampled(6, keys, seed=1)
    # More draws, or another key, move none of those that were there.
    assert first == sampled(9, keys)[:6]
    further = sampled(6, {"finetune.weight_decay": {"low": 0, "high": 0.5}, **keys})
    assert first == [{key: changes[key] for key in keys} for changes in further]
    assert {changes["finetune.epochs"] for changes in sampled(40, keys)} == {1, 2, 3}


def test_a_range_is_drawn_evenly_and_a_logarithmic_one_evenly_in_the_logarithm() -> None:
    drawn = sampled(
        400,
        {
            "finetune.lr": {"low": "1e-5", "high": "1e-2", "log": True},
            "finetune.weight_decay": {"low": 0.25, "high": 0.75},
        },
    )
    rates = np.array([changes["finetune.lr"] for changes in drawn])
    decays = np.array([changes["finetune.weight_decay"] for changes in drawn])
    assert 1e-5 <= rates.min() < 2e-5 and 5e-3 < rates.max() <= 1e-2
    assert kstest((np.log10(rates) + 5) / 3, "uniform").pvalue > 0.01
    assert decays.min() >= 0.25 and decays.max() <= 0.75
    assert kstest((decays - 0.25) * 2, "uniform").pvalue > 0.01
    assert abs(np.corrcoef(rates, decays)[0, 1]) < 0.15


def test_a_range_of_whole_numbers_gives_whole_numbers() -> None:
    keys = {"finetune.epochs": {"low": 1, "high": 3}, "finetune.batch_size": {"low": 8, "high": 512, "log": True}}
    drawn = sampled(200, keys)
    assert all(type(value) is int for changes in drawn for value in changes.values())
    assert {changes["finetune.epochs"] for changes in drawn} == {1, 2, 3}
    sizes = [changes["finetune.batch_size"] for changes in drawn]
    assert 8 <= min(sizes) < 16 and 256 < max(sizes) <= 512
    assert 50 < statistics.median(sizes) < 80  # sqrt(8 * 512) = 64
    halves = sampled(20, {"finetune.weight_decay": {"low": 0, "high": 0.5}})
    assert all(type(changes["finetune.weight_decay"]) is float for changes in halves)


def test_whole_numbers_are_drawn_evenly() -> None:
    drawn = [changes["finetune.epochs"] for changes in sampled(600, {"finetune.epochs": {"low": 1, "high": 3}})]
    assert chisquare([drawn.count(value) for value in (1, 2, 3)]).pvalue > 0.001


@given(st.floats(1e-6, 0.99), st.floats(1e-6, 0.99), st.booleans(), st.integers(0, 9))
def test_a_draw_lies_inside_its_range(one: float, other: float, log: bool, seed: int) -> None:
    low, high = sorted((one, other))
    for changes in sampled(3, {"finetune.lr": {"low": low, "high": high, "log": log}}, seed):
        assert low <= changes["finetune.lr"] <= high


def test_a_range_that_ends_just_below_1_stays_below_1() -> None:
    drawn = sampled(100, {"finetune.ema_decay": {"low": 0.99, "high": 0.9999}})
    assert max(changes["finetune.ema_decay"] for changes in drawn) <= 0.9999


# What it refuses.

ONE = {"finetune.lr": [1e-3]}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"grdi": ONE}, "'grdi'. Did you mean 'grid'?"),
        ({"sample": {"count": 1, "kyes": {}, "keys": ONE}}, "'sample.kyes'. Did you mean 'keys'?"),
        ({"grid": {"finetune.lrr": [1]}}, "'finetune.lrr'. Did you mean 'lr'?"),
        ({"grid": {"promts": ["photo"]}}, "'promts'. Did you mean 'prompts'?"),
        ({"run": {"modle": "tiny"}}, "'modle'. Did you mean 'model'?"),
        ({"grid": {"suite": ["emoji"]}}, "'suite' must be the same in all runs"),
        ({"grid": {"alphas": [3, 5]}}, "'alphas' must be the same in all runs"),
        ({"grid": {"seed": [0, 1]}}, "no key 'seed' of its own. List seeds beside run"),
        ({"grid": {"limit": [5, 6]}}, "'limit' must be the same in all runs"),
        ({"configurations": {"a": {"suite": {"name": "x"}}}}, "'suite' must be the same in all runs"),
        ({"configurations": {"a": {"suite.reference.test": "folder:x"}}}, "'suite.reference.test' must be the same"),
        ({"sample": {"count": 1, "keys": {"seed": [0, 1]}}}, "no key 'seed' of its own"),
        ({"run": {"seed": 3}}, "seeds: [0, 1]"),
        ({"run": {"alpha_rule": "tolerance"}}, "no key 'alpha_rule' of its own. Set rule beside run"),
        ({"run": {"pretrain": {"data": "emoji-captions"}}}, "no key 'pretrain' of its own"),
        ({"grid": {"alpha_tolerance": [0.01, 0.02]}}, "'alpha_tolerance' must be the same in all runs"),
        ({"grid": {"finetune.lora_rank": [2, 4]}}, "lora_scale belong to the recipe 'lora'"),
        (
            {"sample": {"count": 1, "keys": {"finetune.lr": {"lo": 1}}}},
            "keys.finetune.lr.lo'. Did you mean 'low'?",
        ),
        ({"run": {"alphas": [0, 1]}}, "needs 0, 0.5 and 1"),
        ({"run": {"alphas": [0.5, 1]}}, "needs 0, 0.5 and 1"),
        ({"run": {"alphas": 4}}, "needs 0, 0.5 and 1"),
        ({"configurations": {"a b": {}, "A-b": {}}}, "share a name: 'a-b-seed-0'"),
        ({"seeds": [1, 1]}, "share a name: 'run-seed-1'"),
        ({"seeds": []}, "'seeds'"),
        ({"seeds": [-1]}, "'seed' is -1"),
        ({"soups": ["gredy"]}, "'gredy'"),
        ({"cpus_per_run": 0}, "'cpus_per_run' is 0"),
        ({"grid": {"finetune.lr": 1e-3}}, "'grid.finetune.lr' is 0.001"),
        ({"grid": {"finetune.lr": ["fast"]}}, "'finetune.lr' is 'fast'"),
        ({"grid": {"finetune.recipe": ["end-to-edn"]}}, "Did you mean 'end-to-end'?"),
        ({"configurations": {"a": {"finetune": {"epochs": 0}}}}, "finetune.epochs is 0"),
        ({"sample": {"count": 0, "keys": ONE}}, "'sample.count' is 0"),
    ],
)
def test_a_mistake_is_told(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(sp.InputError, match=re.escape(said)):
        StudyFile.resolve(asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"grid": ONE, "configurations": {"lr 0.001": {"finetune.lr": 5}}},
        {"sample": {"count": 1, "keys": ONE}, "configurations": {"sample-0": {}}},
        {"grid": {"finetune.lr": [1e-3, 1e-3]}},
    ],
    ids=["grid and configurations", "sample and configurations", "a value twice"],
)
def test_no_configuration_replaces_another_of_its_name(asked: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match="share a name"):
        StudyFile.resolve(asked)


@pytest.mark.parametrize(
    "asked",
    [{"grid": {"finetune.lr": []}}, {"sample": {"count": 1, "keys": {"finetune.lr": []}}}],
    ids=["grid", "sample"],
)
def test_a_key_without_values_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.lr"):
        StudyFile.resolve(asked)


@pytest.mark.parametrize(
    "between",
    [{"low": 0, "high": 1, "log": True}, {"low": -1.0, "high": 1.0, "log": True}, {"low": 2, "high": 1}],
    ids=["log from 0", "log from below 0", "low above high"],
)
def test_a_range_that_makes_no_sense_is_refused(between: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.lr"):
        StudyFile.resolve({"sample": {"count": 1, "keys": {"finetune.lr": between}}})


@pytest.mark.parametrize(
    "asked",
    [{"grid": ["finetune.lr"]}, {"configurations": ["a", "b"]}, {"configurations": {"a": 3}}, {"run": "tiny"}],
    ids=["grid", "configurations", "a configuration", "run"],
)
def test_a_section_of_another_kind_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=next(iter(asked))):
        StudyFile.resolve(asked)


# The numbers.

SETS = ("photo", "sketch", "painting")


def point(alpha: float, accuracies: Sequence[float]) -> PathPoint:
    """A point whose intervals reach 10 points down and 4 points up."""
    intervals = {name: (value - 0.1, value + 0.04) for name, value in zip(SETS, accuracies, strict=True)}
    return PathPoint(alpha, accuracies[0], dict(zip(SETS, accuracies, strict=True)), intervals)


def made(
    configuration: str,
    seed: int | None,
    *accuracies: Sequence[float],
    chosen: float = 1.0,
    members: tuple[str, ...] = (),
) -> StudyMember:
    """A run whose path has three alphas with the given accuracies on photo, sketch and painting."""
    points = tuple(point(alpha, found) for alpha, found in zip((0.0, 0.5, 1.0), accuracies, strict=True))
    path = PathRecord(SETS[0], SETS[1:], points)
    name = configuration if seed is None else f"{configuration}-seed-{seed}"
    return StudyMember(name, configuration, {"finetune.lr": 0.1}, seed, path, chosen, 1.5, members)


ZERO = (0.5, 0.6, 0.7)
FOUND = (
    made("a", 0, ZERO, (0.80, 0.70, 0.72), (0.70, 0.40, 0.60), chosen=0.5),
    made("a", 1, ZERO, (0.80, 0.70, 0.74), (0.80, 0.50, 0.70), chosen=1.0),
    made("b", 0, ZERO, (0.82, 0.60, 0.80), (0.60, 0.30, 0.50), chosen=0.5),
    made("c", 0, ZERO, (0.84, 0.70, 0.76), (0.90, 0.60, 0.80), chosen=0.0),
)


def recorded(found: Sequence[StudyMember], **changes: Any) -> StudyRecord:
    told: dict[str, Any] = {
        "suite": "own",
        "reference": SETS[0],
        "shifts": SETS[1:],
        "averaged": SETS[1:],
        "rule": "reference",
        "interval_level": LEVEL,
        "members": tuple(found),
        "failures": (),
        "soups": (),
        "spreads": measure_spreads(found, SETS[0], SETS[1:]),
        "versions": {"shiftproof": "0"},
    }
    return StudyRecord(**{**told, **changes})


@given(
    st.integers(3, 6).flatmap(
        lambda count: st.lists(st.lists(st.floats(0, 1), min_size=count, max_size=count), min_size=1, max_size=3)
    ),
    st.integers(0, 5),
)
def test_drawn_spreads_are_those_of_a_slow_loop(series: list[list[float]], seed: int) -> None:
    named = {str(number): values for number, values in enumerate(series)}
    found = bootstrap_spreads(named, draws=12, seed=seed)
    count = len(series[0])
    picked = np.random.default_rng(seed).integers(count, size=(12, count))
    for name, values in named.items():
        slow = [statistics.stdev([values[i] for i in row]) for row in picked.tolist()]
        np.testing.assert_allclose(found[name], slow, atol=1e-9)


def test_drawn_variances_average_to_that_of_the_items() -> None:
    # Of draws with replacement, the expected variance is the items' own, taken as a population's.
    values = [0.1, 0.4, 0.45, 0.9]
    drawn = bootstrap_spreads({"a": values}, draws=40_000)["a"]
    assert np.mean(drawn**2) == pytest.approx(statistics.pvariance(values), rel=0.02)


@pytest.mark.parametrize("series", [{}, {"a": [1, 2]}, {"a": [1, 2, 3], "b": [1, 2, 3, 4]}])
def test_too_few_or_unequally_many_items_have_no_spread(series: dict[str, list[float]]) -> None:
    with pytest.raises(sp.InputError, match="three at least"):
        bootstrap_spreads(series)


def test_spreads_are_those_computed_by_hand() -> None:
    found = {(spread.model, spread.sets): spread for spread in measure_spreads(FOUND, SETS[0], SETS[1:])}
    assert set(found) == {(model, sets) for model in STUDIED for sets in ("reference", "mean")}
    # Seeds of a configuration averaged: by hand, a, b and c have these accuracies.
    by_hand = {
        ("fine_tuned", "reference"): (0.75, 0.6, 0.9),
        ("wise_ft_0.5", "reference"): (0.80, 0.82, 0.84),
        ("wise_ft_chosen", "reference"): (0.80, 0.82, 0.5),
        ("fine_tuned", "mean"): (0.55, 0.4, 0.7),
        ("wise_ft_0.5", "mean"): (0.715, 0.7, 0.73),
        ("wise_ft_chosen", "mean"): (0.655, 0.7, 0.65),
    }
    for key, values in by_hand.items():
        spread = found[key]
        assert spread.deviation == pytest.approx(statistics.stdev(values))
        assert (spread.lowest, spread.highest) == pytest.approx((min(values), max(values)))
        base = statistics.stdev(by_hand["fine_tuned", key[1]])
        assert spread.ratio == pytest.approx(base / statistics.stdev(values))
        drawn = bootstrap_spreads({"own": values})["own"]
        assert spread.interval == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
    assert found["fine_tuned", "reference"].deviation == pytest.approx(0.15)
    assert found["wise_ft_0.5", "reference"].deviation == pytest.approx(0.02)
    assert found["wise_ft_0.5", "reference"].ratio == pytest.approx(7.5)
    assert found["fine_tuned", "mean"].ratio == 1


def test_a_factor_that_holds_in_every_resample_has_no_width() -> None:
    # Resamples of one configuration alone have no deviation at all: they tell nothing about a factor.
    found = [made(name, 0, ZERO, (x, x, x), (2 * x, 2 * x, 2 * x)) for name, x in (("a", 0.1), ("b", 0.2), ("c", 0.45))]
    for spread in measure_spreads(found, SETS[0], SETS[1:]):
        factor = 2 if spread.model == "wise_ft_0.5" else 1
        assert (spread.ratio, *spread.ratio_interval) == pytest.approx((factor, factor, factor))


def test_models_that_do_not_vary_are_not_said_to_vary_more() -> None:
    same = [made(name, 0, ZERO, (0.9, 0.8, 0.8), (1.0, 0.7, 0.7)) for name in ("a", "b", "c")]
    told = study_verdict(recorded(same))
    assert told.count("varies by nothing over the configurations, fine-tuned by 0.00 points") == 4
    assert "more than" not in told and "less than" not in told
    # A factor to nothing would be no number.
    rising = [made(name, 0, ZERO, (0.9, 0.8, 0.8), (x, x, x)) for name, x in (("a", 0.5), ("b", 0.7), ("c", 0.9))]
    found = recorded(rising)
    assert {s.ratio for s in found.spreads if s.model == "wise_ft_0.5"} == {None}
    assert "On the reference, WiSE-FT, alpha 0.5 varies by nothing over the configurations, fine-tuned by 20.00" in (
        study_verdict(found)
    )
    assert [row[-1] for row in spread_table(found).rows if row[0] == "WiSE-FT, alpha 0.5"] == ["no spread"] * 2
    assert study_from_json(json.loads(json.dumps(study_json(found), allow_nan=False))) == found


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_than_three_configurations_have_no_spread(count: int) -> None:
    few = [member for member in FOUND if member.configuration in "abc"[:count]]
    assert measure_spreads(few, SETS[0], SETS[1:]) == ()
    assert spread_table(recorded(few)) is None
    assert study_verdict(recorded(few)).startswith("Fewer than three configurations ended")


def test_without_a_shift_the_reference_alone_has_a_spread() -> None:
    assert {spread.sets for spread in measure_spreads(FOUND, SETS[0], ())} == {"reference"}


NUMBERS = st.floats(0, 1, allow_subnormal=False)
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=8)
MEMBERS = st.builds(
    made,
    WORDS,
    st.one_of(st.none(), st.integers(0, 9)),
    *(st.tuples(NUMBERS, NUMBERS, NUMBERS) for _ in range(3)),
    chosen=st.sampled_from([0.0, 0.5, 1.0]),
    members=st.lists(WORDS, max_size=2).map(tuple),
)


@given(st.lists(MEMBERS, min_size=1, max_size=5), st.lists(MEMBERS, max_size=2), st.lists(WORDS, max_size=2))
def test_a_record_survives_the_way_to_disk(
    found: list[StudyMember], soups: list[StudyMember], failed: list[str]
) -> None:
    failures = tuple(StudyFailure(name, f"{name}: why") for name in failed)
    record = recorded(found, soups=tuple(soups), failures=failures)
    text = json.dumps(study_json(record), allow_nan=False, ensure_ascii=False)
    assert study_from_json(json.loads(text)) == record


def test_a_member_tells_its_accuracy_at_the_alphas_it_is_studied_at() -> None:
    assert [FOUND[0].alpha_of(model) for model in STUDIED] == [1.0, 0.5, 0.5]
    assert [FOUND[3].accuracy(model, (SETS[0],)) for model in STUDIED] == [0.9, 0.84, 0.5]
    assert FOUND[0].accuracy("fine_tuned", SETS[1:]) == pytest.approx(0.5)
    assert recorded(FOUND).configurations == ("a", "b", "c")


# The same in tables, sentences and a figure.

SOUP = made("uniform soup", None, ZERO, (0.81, 0.71, 0.73), (0.9, 0.7, 0.8), members=("a-seed-0", "b-seed-0"))


def test_the_table_has_a_row_for_every_run_and_soup() -> None:
    record = recorded(FOUND, soups=(SOUP,), failures=(StudyFailure("d-seed-0", "it broke"),))
    table = study_table(record)
    assert table.header == (
        *("configuration", "seed", "fine-tuned: reference", "fine-tuned: mean of 2 shifts"),
        *("WiSE-FT, alpha 0.5: reference", "WiSE-FT, alpha 0.5: mean of 2 shifts"),
        *("WiSE-FT, chosen alpha: reference", "WiSE-FT, chosen alpha: mean of 2 shifts", "chosen alpha"),
    )
    assert [row[:2] for row in table.rows] == [
        *(("a", "0"), ("a", "1"), ("b", "0"), ("c", "0"), ("uniform soup", "–")),
    ]
    # Of two sets, each with the distances 0.1 and 0.04, the mean has those times sqrt(2) / 2.
    assert table.rows[0] == (
        *("a", "0", "70.0 [60.0, 74.0]", "50.0 [42.9, 52.8]", "80.0 [70.0, 84.0]", "71.0 [63.9, 73.8]"),
        *("80.0 [70.0, 84.0]", "71.0 [63.9, 73.8]", "0.5"),
    )
    assert table.rows[3][-3:] == ("50.0 [40.0, 54.0]", "65.0 [57.9, 67.8]", "0")
    assert "95 % intervals" in table.note and "“reference”" in table.note
    assert "failed: d-seed-0." in table.note


def test_the_table_of_spreads_tells_deviation_extremes_and_factor() -> None:
    table = spread_table(recorded(FOUND))
    assert table is not None
    rows = {row[:2]: row[2:] for row in table.rows}
    assert set(rows) == {
        (model, sets)
        for model in ("fine-tuned", "WiSE-FT, alpha 0.5", "WiSE-FT, chosen alpha")
        for sets in ("reference", "mean of 2 shifts")
    }
    deviation, extremes, factor = rows["fine-tuned", "reference"]
    assert deviation.startswith("15.00 [0.00, ") and (extremes, factor) == ("60.0 to 90.0", "–")
    deviation, extremes, factor = rows["WiSE-FT, alpha 0.5", "reference"]
    assert deviation.startswith("2.00 [0.00, ") and extremes == "80.0 to 84.0" and factor.startswith("7.5 [")
    assert rows["WiSE-FT, alpha 0.5", "mean of 2 shifts"][1] == "70.0 to 73.0"
    assert "3 configurations" in table.note


def spread(model: str, sets: str, deviation: float, ratio: float, low: float, high: float) -> SpreadRecord:
    return SpreadRecord(model, sets, deviation, (0.0, 0.1), 0.3, 0.5, ratio, (low, high))


def test_the_verdict_says_less_more_or_not_clearly() -> None:
    found = (
        spread("fine_tuned", "reference", 0.06, 1, 1, 1),
        spread("wise_ft_0.5", "reference", 0.02, 3, 1.2, 4.1),
        spread("wise_ft_chosen", "reference", 0.12, 0.5, 0.3, 0.9),
        spread("fine_tuned", "mean", 0.0451, 1, 1, 1),
        spread("wise_ft_0.5", "mean", 0.041, 1.1, 0.9, 1.3),
        spread("wise_ft_chosen", "mean", 0.0451, 1, 1, 1),
    )
    told = study_verdict(recorded(FOUND, spreads=found)).split(". ")
    assert told[0] == (
        "On the reference, WiSE-FT, alpha 0.5 varies less than fine-tuned over the configurations: by 2.00 against "
        "6.00 points, a factor of 3.0 (1.2 to 4.1)"
    )
    assert "chosen alpha varies more than fine-tuned" in told[1]
    assert told[1].endswith("by 12.00 against 6.00 points, a factor of 0.5 (0.3 to 0.9)")
    assert told[2] == (
        "On the mean of 2 shifts, WiSE-FT, alpha 0.5 varies not clearly less or more than fine-tuned over the "
        "configurations: by 4.10 against 4.51 points, a factor of 1.1 (0.9 to 1.3)"
    )
    assert "not clearly" in told[3] and len(told) == 4


def test_the_figure_draws_every_path_where_its_accuracies_are() -> None:
    record = recorded(FOUND, soups=(SOUP,))
    (axes,) = study_figure(record).axes

    def places(points: Sequence[PathPoint]) -> list[tuple[float, float]]:
        return [
            (100 * entry.accuracy["photo"], 50 * (entry.accuracy["sketch"] + entry.accuracy["painting"]))
            for entry in points
        ]

    lines = [np.column_stack(line.get_data()).tolist() for line in axes.get_lines()]
    *curves, zero_shot, tuned, half = lines
    for curve, member in zip(curves, (*FOUND, SOUP), strict=True):
        np.testing.assert_allclose(curve, places(member.path.points))
    np.testing.assert_allclose(zero_shot, [(50, 65)] * len(FOUND))
    np.testing.assert_allclose(tuned, places([member.path.at(1) for member in FOUND]))
    np.testing.assert_allclose(half, places([member.path.at(0.5) for member in FOUND]))
    # One entry a configuration, whose seeds have one colour; markers are no curves.
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["a", "b", "c", "uniform soup", "zero-shot", "fine-tuned", "alpha 0.5"]
    colours = [line.get_color() for line in axes.get_lines()[:5]]
    assert colours[0] == colours[1] and len({str(colour) for colour in colours}) == 4
    assert "photo" in axes.get_xlabel() and mean_name(record) in axes.get_ylabel()
    assert "nan" not in str(axes.get_xlim())


def test_a_study_without_shifts_shows_the_reference_and_says_so() -> None:
    record = recorded(FOUND, shifts=(), averaged=(), spreads=measure_spreads(FOUND, SETS[0], ()))
    assert len(study_table(record).header) == 6
    (axes,) = study_figure(record).axes
    np.testing.assert_allclose(np.column_stack(axes.get_lines()[0].get_data())[2], (70, 70))
    assert "0 shifts" not in axes.get_ylabel()


def test_configurations_are_compared_with_a_path_at_equal_reference_accuracy() -> None:
    base = made("base", 0, (0.5, 0.6, 0.6), (0.7, 0.8, 0.6), (0.9, 0.5, 0.5))
    # Alone it stands at 0.8, where the base's path has (0.7 + 0.5) / 2; at alpha 0.5 to the left of where that begins.
    other = made("other", 0, (0.5, 0.6, 0.6), (0.45, 0.9, 0.9), (0.8, 0.7, 0.55))
    rows = {row[0]: row[1:] for row in equal_reference_table(recorded([base, other]), "base").rows}
    # Mean shifts reach 0.1 / sqrt(2) down and 0.04 / sqrt(2) up. Both references are 0.07 to either side, and the path
    # falls by one point a point there. All four add in squares.
    assert rows["other"] == (
        *("80.0 [70.0, 84.0]", "62.5 [55.4, 65.3]", "+2.5 [−10.0, +15.0]"),
        *("45.0 [35.0, 49.0]", "90.0 [82.9, 92.8]", "–"),
    )
    assert [rows["base"][place].split()[0] for place in (2, 5)] == ["0.0", "0.0"]
    with pytest.raises(sp.InputError, match="'bse'. Did you mean 'base'?"):
        equal_reference_table(recorded([base, other]), "bse")


# Held-out sets cut down.


def held_out(suite: sp.ShiftSuite) -> dict[str, sp.ImageSet]:
    return {"validation": suite.reference.validation, **suite.test_sets}


def test_a_limited_suite_has_fewer_images_in_every_held_out_set() -> None:
    suite = sp.load_suite("emoji")
    few = suite.limited(7)
    assert few.reference.train is suite.reference.train
    assert (few.name, few.classes) == (suite.name, suite.classes)
    assert [(shift.name, shift.kind) for shift in few.shifts] == [(shift.name, shift.kind) for shift in suite.shifts]
    for name, images in held_out(few).items():
        whole = held_out(suite)[name]
        places = [whole.ids.index(sample) for sample in images.ids]
        assert len(images) == 7 and places == sorted(set(places))
        assert images.labels.tolist() == whole.labels[places].tolist()
    # Drawn at random: the sets do not begin alike, and more are wanted of more.
    assert len({images.ids[0].rsplit("-", 2)[0] for images in held_out(few).values()}) > 1
    assert len(held_out(suite.limited(500))["sketch"]) == 500
    assert suite.limited(None) is suite


def test_a_limit_takes_the_same_images_whatever_the_seed(folders: Path) -> None:
    def ids(suite: sp.ShiftSuite) -> dict[str, tuple[str, ...]]:
        return {name: images.ids for name, images in held_out(suite.limited(5)).items()}

    assert (
        ids(sp.load_suite("emoji", seed=0))
        == ids(sp.load_suite("emoji", seed=0))
        == ids(sp.load_suite("emoji", seed=9))
    )
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    sketches = {"sketch": {"data": f"folder:{folders}/sketch"}}
    assert ids(sp.own_suite(splits, sketches)) == ids(sp.own_suite(splits, sketches, seed=4))


def test_a_limit_leaves_pixels_and_small_sets_as_they_are(folders: Path) -> None:
    splits = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = sp.own_suite(splits, {})
    test, few = suite.reference.test, suite.limited(4).reference.test
    for i, sample in enumerate(few.ids):
        assert np.array_equal(few.read(i), test.read(test.ids.index(sample)))
    assert suite.limited(9).reference.test is test


# One run of a study.


def the_member(asked: Mapping[str, Any]) -> MemberRun:
    (run,) = StudyFile.resolve(asked).members()
    return run


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Notes which steps are taken; with ``stop`` set, that step breaks off as a bug would."""
    noted = SimpleNamespace(taken=[], stop=None)
    take = Trainer.take

    def watched(trainer: Trainer, step: int, losses: Any) -> float:
        if step == noted.stop:
            raise RuntimeError("the plug was pulled")
        noted.taken.append(step)
        return take(trainer, step, losses)

    monkeypatch.setattr(Trainer, "take", watched)
    return noted


def test_a_run_goes_on_from_its_checkpoints_and_deletes_them(
    folders: Path, tmp_path: Path, steps: SimpleNamespace
) -> None:
    settings = {"epochs": 3, "batch_size": 3, "lr": 1e-3, "checkpoint_every": 2, "shots": 2}
    run = the_member(own(folders, run={"finetune": settings}, seeds=[4]))
    run_member(run, MemberDirectory(tmp_path / "whole"), "reference")
    assert steps.taken == [0, 1, 2, 3, 4, 5]
    steps.taken, steps.stop = [], 3
    with pytest.raises(RuntimeError, match="the plug was pulled"):
        run_member(run, MemberDirectory(tmp_path / "broken"), "reference")
    assert not (tmp_path / "broken" / "member.json").exists()
    (tmp_path / "broken" / "error.txt").write_text("what the failed run left", encoding="utf-8")
    steps.taken, steps.stop = [], None
    run_member(run, MemberDirectory(tmp_path / "broken"), "reference")
    assert steps.taken == [2, 3, 4, 5]
    first, second = (sp.load_classifier(tmp_path / name / "fine_tuned") for name in ("whole", "broken"))
    assert sp.models.fingerprint(first) == sp.models.fingerprint(second)
    for name in ("whole", "broken"):
        assert not list((tmp_path / name).rglob("step-*"))
        assert not (tmp_path / name / "error.txt").exists()
        assert RunFile.read(tmp_path / name / "run.yaml") == run.asked
    told = [json.loads((tmp_path / name / "member.json").read_text()) for name in ("whole", "broken")]
    for entry in told:
        assert entry.pop("seconds") > 0
    assert told[0] == told[1]
    assert (told[0]["name"], told[0]["seed"]) == ("run-seed-4", 4)


def test_a_run_whose_directory_is_in_use_is_refused(folders: Path, tmp_path: Path) -> None:
    with locked(tmp_path / "run"), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
        run_member(the_member(own(folders)), MemberDirectory(tmp_path / "run"), "reference")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_what_a_run_told_its_trackers_outlasts_it(folders: Path, tmp_path: Path) -> None:
    run_member(
        the_member(own(folders, run={"report_to": "tensorboard"})), MemberDirectory(tmp_path / "run"), "reference"
    )
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))
    assert not list((tmp_path / "run").rglob("step-*"))


# A whole study, with Ray's part played in this process.


class TaskError(Exception):
    """What stands for Ray's error, with the task's own as its cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(f"a task failed: {cause}")
        self.cause = cause


@dataclass
class Played:
    """What a study asked of Ray, and how many threads its runs were given."""

    options: list[dict[str, Any]] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)
    machine: dict[str, float] = field(default_factory=lambda: {"CPU": 2.0, "node:127.0.0.1": 1.0})


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """Tasks run one after the other in this process, each when it is waited for."""
    seen = Played()

    def remote(**options: Any) -> Callable[..., SimpleNamespace]:
        seen.options.append(options)
        return lambda task: SimpleNamespace(remote=lambda *arguments: partial(task, *arguments))

    def get(task: Callable[[], object]) -> object:
        try:
            return task()
        except Exception as error:
            raise TaskError(error) from error

    ray = SimpleNamespace(
        remote=remote,
        get=get,
        wait=lambda tasks, num_returns: (tasks[:num_returns], tasks[num_returns:]),
        exceptions=SimpleNamespace(RayError=TaskError),
        # What is needed must be there on one machine; two have four processors together.
        nodes=lambda: [{"Alive": True, "Resources": seen.machine}] * 2 + [{"Alive": False, "Resources": {"CPU": 64.0}}],
    )
    monkeypatch.setattr(study, "ray_cluster", lambda address: contextlib.nullcontext(ray))
    monkeypatch.setattr(torch, "set_num_threads", seen.threads.append)
    return seen


Stub = Callable[[MemberRun, Path, str, int | None], None]


def stub(tiny: sp.models.Clip, failing: dict[str, Exception] | None = None) -> Stub:
    """A run that takes no step: its classifier is the start, moved a little, its accuracies are made up."""

    def run(run: MemberRun, directory: MemberDirectory, rule: str, threads: int | None) -> None:
        if error := (failing or {}).get(run.name):
            raise error
        zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
        share = 1 + len(run.configuration) / 100
        moved = {n: t * share if t.is_floating_point() else t for n, t in zero.state_dict().items()}
        sp.save_classifier(zero.with_weights(moved), directory.fine_tuned)
        values = {"reference": 0.5, "sketch": share / 2}
        points = tuple(PathPoint(a, 0.5, values, dict.fromkeys(values, (0.4, 0.6))) for a in (0.0, 0.5, 1.0))
        path = PathRecord("reference", ("sketch",), points)
        told = StudyMember(run.name, run.configuration, run.changes, run.asked.seed, path, 0.5, 1.0)
        write_text(directory.run_file, run.asked.to_yaml())
        write_json(directory.record, member_json(told))

    return run


def test_runs_are_given_the_processors_asked_for(folders: Path, tmp_path: Path, played: Played) -> None:
    asked = StudyFile.resolve(own(folders, cpus_per_run=2, configurations={"a": {}, "b": {"finetune.epochs": 2}}))
    found = run_study(asked, tmp_path / "out")
    assert played.options == [{"num_cpus": 2, "num_gpus": 0.0, "max_retries": 0}]
    assert played.threads == [2, 2]
    assert [member.name for member in found.members] == ["a-seed-0", "b-seed-0"]
    assert [dict(member.changes) for member in found.members] == [{}, {"finetune.epochs": 2}]
    assert study_from_json(json.loads((tmp_path / "out" / "study.json").read_text())) == found
    assert StudyFile.read(tmp_path / "out" / "study.yaml") == asked


def test_runs_are_given_a_gpu_where_there_are_any(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def noted(run: MemberRun, *rest: Any) -> None:
        devices.append(run.asked.device)
        stub(tiny)(run, *rest)

    monkeypatch.setattr(study, "run_member", noted)
    told = own(folders)
    for number, (device, gpus, found) in enumerate(
        [("auto", 2, (1, "auto")), ("auto", 0, (0, "cpu")), ("cpu", 2, (0, "cpu"))]
    ):
        played.machine["GPU"] = gpus
        run_study(StudyFile.resolve(told, [f"run.device={device}"]), tmp_path / str(number))
        assert (played.options[-1]["num_gpus"], devices[-1]) == found
    # Half a GPU each, or none at all.
    played.machine["GPU"] = 2
    for share, device in ((0.5, "auto"), (0, "cpu")):
        run_study(StudyFile.resolve(told, ["run.device=auto", f"gpus_per_run={share}"]), tmp_path / f"share-{share}")
        assert (played.options[-1]["num_gpus"], devices[-1]) == (share, device)


def test_a_run_of_other_settings_is_not_taken_for_this_study_s(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The study file is silent on the rate; what silence means may change from one version to the next.
    told = own(folders, configurations={"a": {}})
    del told["run"]["finetune"]["lr"]
    asked = StudyFile.resolve(told)
    monkeypatch.setattr(study, "run_member", stub(tiny))
    run_study(asked, tmp_path / "out")
    monkeypatch.setitem(runfile.MODEL_SETTINGS, "tiny", {**runfile.MODEL_SETTINGS["tiny"], "lr": 0.5})
    with pytest.raises(sp.InputError, match="a-seed-0 holds a run of other settings than this study comes to now"):
        run_study(asked, tmp_path / "out", resume=True)


def test_a_study_that_could_not_begin_may_be_asked_for_anew(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    with pytest.raises(sp.InputError, match="cpus_per_run is 64"):
        run_study(StudyFile.resolve(own(folders, cpus_per_run=64)), tmp_path / "out")
    (tmp_path / "out" / ".study.tmp.json").write_text("what a killed process leaves", encoding="utf-8")
    assert run_study(StudyFile.resolve(own(folders)), tmp_path / "out").failures == ()


def test_soups_that_fail_cost_no_result(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(study, "run_member", stub(tiny))
    monkeypatch.setattr("shiftproof.studies.soups.uniform_soup", full)
    asked = StudyFile.resolve(own(folders, configurations={"a": {}, "b": {}}, soups=["uniform"]))
    with pytest.raises(MemoryError):
        run_study(asked, tmp_path / "out")
    assert [member.name for member in read_record(tmp_path / "out").members] == ["a-seed-0", "b-seed-0"]


def test_a_run_that_no_machine_has_room_for_is_refused(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Ray itself would wait for such a machine for ever.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    for wish in ({"cpus_per_run": 3}, {"gpus_per_run": 1}):
        with pytest.raises(sp.InputError, match=next(iter(wish))):
            run_study(StudyFile.resolve(own(folders, **wish)), tmp_path / next(iter(wish)))


def test_progress_counts_failures_too(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"b-seed-0": sp.InputError("it is so\nand so"), "c-seed-0": KeyError("")}
    monkeypatch.setattr(study, "run_member", stub(tiny, failing))
    asked = StudyFile.resolve(own(folders, configurations={"a": {}, "b": {}, "c": {}, "d": {}}))
    events: list[progress.Event] = []
    with progress.listening(events.append):
        found = run_study(asked, tmp_path / "out")
    told = [(event.done, event.total, event.values.get("failed", 0)) for event in events if event.stage == "study"]
    assert told == [(0, 4, 0), (1, 4, 0), (2, 4, 1), (3, 4, 2), (4, 4, 2)]
    assert [(failure.name, failure.error) for failure in found.failures] == [
        ("b-seed-0", "it is so"),
        ("c-seed-0", "KeyError: ''"),
    ]
    for name in ("b", "c"):
        assert "a task failed" in (tmp_path / f"out/members/{name}-seed-0/error.txt").read_text()
    # Those that ended are not run again.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    events.clear()
    with progress.listening(events.append):
        whole = run_study(asked, tmp_path / "out", resume=True)
    assert [event.done for event in events if event.stage == "study"] == [2, 3, 4]
    assert [member.name for member in whole.members] == [f"{name}-seed-0" for name in "abcd"]
    assert whole.failures == ()


def test_a_study_of_which_all_runs_fail_says_why(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = {"a-seed-0": sp.InputError("the one reason"), "b-seed-0": ValueError("the other")}
    monkeypatch.setattr(study, "run_member", stub(tiny, failing))
    asked = StudyFile.resolve(own(folders, configurations={"a": {}, "b": {}}))
    with pytest.raises(sp.ShiftproofError, match=r"a-seed-0: the one reason\n  b-seed-0: ValueError: the other"):
        run_study(asked, tmp_path / "out")
    assert not (tmp_path / "out" / "study.json").exists()


def test_data_that_are_missing_are_told_before_anything_is_written(
    folders: Path, tmp_path: Path, played: Played
) -> None:
    asked = own(folders, configurations={"a": {}, "b": {}})
    asked["run"]["suite"]["reference"]["test"] = "folder:fotos"
    with pytest.raises(sp.InputError, match="the folder fotos does not exist"):
        run_study(StudyFile.resolve(asked), tmp_path / "out")
    assert not (tmp_path / "out" / "study.yaml").exists()
    assert played.options == []


def test_a_directory_belongs_to_one_study(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    asked = StudyFile.resolve(own(folders, configurations={"a": {}}))
    other = StudyFile.resolve(own(folders, configurations={"a": {}, "b": {}}))
    out = tmp_path / "out"
    run_study(asked, out)
    before = (out / "study.json").read_bytes()
    with pytest.raises(sp.InputError, match="already holds a study"):
        run_study(asked, out)
    with pytest.raises(sp.InputError, match="asks for other settings than this study"):
        run_study(other, out, resume=True)
    with pytest.raises(sp.InputError, match="Give one of the two"):
        run_study(asked, out, resume=True, overwrite=True)
    with locked(out), pytest.raises(sp.InputError, match="in use by another"):
        run_study(asked, out, resume=True)
    assert (out / "study.json").read_bytes() == before
    assert StudyFile.read(out / "study.yaml") == asked
    assert [member.name for member in run_study(other, out, overwrite=True).members] == ["a-seed-0", "b-seed-0"]
    (out / "notes.txt").write_text("do not lose me", encoding="utf-8")
    for choice in ({}, {"overwrite": True}):
        with pytest.raises(sp.InputError, match=r"'notes\.txt', which no study wrote"):
            run_study(other, out, **choice)
    run_study(other, out, resume=True)  # deletes nothing, so that other files may stay
    assert (out / "notes.txt").is_file() and (out / "members" / "a-seed-0" / "member.json").is_file()


def test_a_study_goes_on_with_others_soups_and_another_use_of_the_machine(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "run_member", stub(tiny))
    asked = own(folders, configurations={"a": {}, "b": {}})
    before = run_study(StudyFile.resolve(asked), tmp_path / "out")
    changed = ["soups=[uniform]", "cpus_per_run=2", "run.finetune.accumulate=2", "run.finetune.checkpoint_every=1"]
    after = run_study(StudyFile.resolve(asked, changed), tmp_path / "out", resume=True)
    assert after.members == before.members
    assert [soup.name for soup in after.soups] == ["uniform soup"]
    assert StudyFile.read(tmp_path / "out" / "study.yaml") == StudyFile.resolve(asked, changed)
    for other in ("rule=tolerance", "run.finetune.lr=0.5", "run.limit=2", "configurations.b.finetune.epochs=9"):
        with pytest.raises(sp.InputError, match="asks for other settings than this study"):
            run_study(StudyFile.resolve(asked, [other]), tmp_path / "out", resume=True)


def test_a_soup_that_cannot_be_is_told_and_costs_no_result(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise sp.InputError("they are of two architectures")

    monkeypatch.setattr(study, "run_member", stub(tiny))
    monkeypatch.setattr("shiftproof.studies.soups.uniform_soup", refused)
    asked = StudyFile.resolve(own(folders, configurations={"a": {}, "b": {}}, soups=["uniform", "greedy"]))
    found = run_study(asked, tmp_path / "out")
    assert found.failures == (StudyFailure("uniform soup", "they are of two architectures"),)
    assert [soup.name for soup in found.soups] == ["greedy soup"]
    assert read_record(tmp_path / "out") == found


def test_a_soup_takes_in_what_a_resumed_study_adds(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    configurations = {"a": {}, "bcd": {}, "efghij": {}}
    asked = StudyFile.resolve(own(folders, configurations=configurations, soups=["uniform"]))
    monkeypatch.setattr(study, "run_member", stub(tiny, {"bcd-seed-0": RuntimeError("not yet")}))
    (soup,) = run_study(asked, tmp_path / "out").soups
    assert soup.members == ("a-seed-0", "efghij-seed-0")
    kept = (tmp_path / "out/soups/uniform/member.json").stat().st_mtime_ns
    # Another failure changes no soup; what stands is not made again.
    run_study(asked, tmp_path / "out", resume=True)
    assert (tmp_path / "out/soups/uniform/member.json").stat().st_mtime_ns == kept
    monkeypatch.setattr(study, "run_member", stub(tiny))
    (soup,) = run_study(asked, tmp_path / "out", resume=True).soups
    assert soup.members == ("a-seed-0", "bcd-seed-0", "efghij-seed-0")
    members = [sp.load_classifier(tmp_path / f"out/members/{name}/fine_tuned") for name in soup.members]
    mean = sp.average_weights([member.state_dict() for member in members])
    weights = sp.load_classifier(tmp_path / "out/soups/uniform/fine_tuned").state_dict()
    assert all(torch.equal(weights[name], entry) for name, entry in mean.items())


def test_soups_are_never_validated_on_images_that_a_member_was_trained_on(
    folders: Path, tmp_path: Path, played: Played, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without validation data every seed holds out a fifth of its own, which the other seeds' runs train on.
    monkeypatch.setattr(study, "run_member", stub(tiny))
    asked = own(folders, seeds=[0, 1], soups=["greedy"])
    del asked["run"]["suite"]["reference"]["validation"]
    with pytest.raises(sp.InputError, match="validation"):
        run_study(StudyFile.resolve(asked), tmp_path / "out")


def test_a_cluster_that_does_not_answer_is_told_at_once(folders: Path, tmp_path: Path) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))  # nobody listens there
        place = f"127.0.0.1:{mute.getsockname()[1]}"
        for address in (place, f"ray://{place}"):
            begun = time.monotonic()
            with pytest.raises(sp.InputError, match=f"no Ray cluster answers at '{address}'.*`address`"):
                run_study(StudyFile.resolve(own(folders)), tmp_path / "out", address=address)
            assert time.monotonic() - begun < 30
    assert not (tmp_path / "out").exists()


def test_without_ray_the_way_to_install_it_is_told(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sp.InputError, match=r"pip install 'shiftproof\[study\]'"):
        run_study(StudyFile.resolve(own(folders)), tmp_path / "out")


# As a user meets it.


def killed_within(folder: Path, launched: subprocess.Popen[str]) -> None:
    """Kills the process that fine-tunes in a directory, as a system out of memory would, after its first checkpoint."""
    until = time.monotonic() + 600
    while time.monotonic() < until and launched.poll() is None:
        if list(folder.glob("checkpoints/step-*")):
            os.kill(holder(folder / ".lock"), signal.SIGKILL)
            return
        time.sleep(0.02)
    launched.kill()
    pytest.fail(f"no checkpoint in {folder}: {launched.communicate()}")


def holder(lock: Path) -> int:
    """The process that has a file open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == str(lock):
                return int(link.parts[2])
    raise AssertionError(f"nobody holds {lock}")


def written(out: Path, names: Sequence[str]) -> dict[Path, int]:
    """When each file of some runs was written."""
    files = [file for name in names for file in sorted((out / "members" / name).rglob("*")) if file.is_file()]
    return {file: file.stat().st_mtime_ns for file in files}


def read_record(out: Path) -> StudyRecord:
    return study_from_json(json.loads((out / "study.json").read_text(encoding="utf-8")))


def assert_failures_are_told(record: StudyRecord, out: Path, said: str, complained: str) -> None:
    assert "Traceback" not in said + complained
    assert complained.count("shiftproof: ") == 1
    for failure in record.failures:
        assert f"{failure.name}: {failure.error}" in complained
        assert (out / "members" / failure.name / "error.txt").read_text(encoding="utf-8").strip()


def assert_members_are_swept_as_here(record: StudyRecord, out: Path, runs: Mapping[str, MemberRun]) -> None:
    """What members and soups say is what a sweep in this process finds, and soups are their members' mean."""
    some = runs[record.members[0].name].asked
    suite = load_run_suite(some)
    start, ends = build_start(some, suite), {}
    for member in record.members:
        folder, asked = out / "members" / member.name, runs[member.name].asked
        ends[member.name] = sp.load_classifier(folder / "fine_tuned")
        assert member.path == sp.sweep_alpha(start, ends[member.name], suite, [0, 0.5, 1])
        assert member.chosen == sp.choose_alpha(member.path, record.rule)
        assert ends[member.name].training["settings"]["lr"] == asked.finetune.lr
        told = json.loads((folder / "member.json").read_text(encoding="utf-8"))
        assert member == member_from_json("reference", ("sketch",), told)
        assert not list(folder.rglob("step-*"))
    uniform, greedy = record.soups
    assert uniform.members == tuple(ends)
    assert greedy.members and set(greedy.members) <= set(ends)
    for soup, kind in ((uniform, "uniform"), (greedy, "greedy")):
        mean = sp.average_weights([ends[name].state_dict() for name in ends if name in soup.members])
        saved = sp.load_classifier(out / "soups" / kind / "fine_tuned")
        assert all(torch.equal(saved.state_dict()[name], entry) for name, entry in mean.items())
        assert soup.path == sp.sweep_alpha(start, saved, suite, [0, 0.5, 1])


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the process to kill through /proc")
def test_a_study_from_the_command_line(folders: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    configurations = {
        "killed": {"finetune": {"epochs": 10}},
        "Plain": {},
        "quick": {"finetune.lr": 2e-3},
        "broken": {"finetune.lr": 1e30},
    }
    settings = {"epochs": 1, "batch_size": 3, "lr": 5e-4, "checkpoint_every": 1, "shots": 2}
    run = {"finetune": settings, "limit": 6}
    file = in_yaml(tmp_path, own(folders, run=run, configurations=configurations, soups=["uniform", "greedy"]))
    command = [sys.executable, "-m", "shiftproof", "study", "grid.yaml", "--set", "cpus_per_run=1", "--out", "out"]
    launched = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out = (tmp_path / "out").resolve()
    killed_within(out / "members" / "killed-seed-0", launched)
    said, complained = launched.communicate(timeout=600)
    assert launched.returncode == 2, complained

    record = read_record(out)
    assert [member.name for member in record.members] == ["plain-seed-0", "quick-seed-0"]
    assert [member.configuration for member in record.members] == ["Plain", "quick"]
    failures = {failure.name: failure.error for failure in record.failures}
    assert set(failures) == {"killed-seed-0", "broken-seed-0"}
    assert failures["broken-seed-0"].startswith("fine-tuning stopped at step ")
    assert "died" in failures["killed-seed-0"]
    assert_failures_are_told(record, out, said, complained)
    assert "Fewer than three configurations ended" in said
    assert f"numbers: {Path('out', 'study.json')}" in said
    assert (out / "figures" / "study.png").read_bytes().startswith(b"\x89PNG")
    with (out / "study.csv").open(encoding="utf-8", newline="") as table:
        rows = list(csv.DictReader(table))
    told = [(row["configuration"], float(row["alpha"]), row["set"], float(row["accuracy"])) for row in rows]
    assert told == [
        (member.configuration, point.alpha, name, value)
        for member in (*record.members, *record.soups)
        for point in member.path.points
        for name, value in (("validation", point.validation), *point.accuracy.items())
    ]
    chosen = {(row["name"], float(row["alpha"])) for row in rows if row["chosen"] == "1"}
    assert chosen == {(member.name, member.chosen) for member in (*record.members, *record.soups)}
    runs = {run.name: run for run in StudyFile.read(file).members()}
    assert_members_are_swept_as_here(record, out, runs)

    # Going on does what is missing only; a fault that is no ShiftproofError holds up no other run either.
    before = written(out, ["plain-seed-0", "quick-seed-0"])
    (out / "members" / "broken-seed-0" / "run.yaml").unlink()
    (out / "members" / "broken-seed-0" / "run.yaml").mkdir()
    ended = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    whole = read_record(out)
    assert [member.name for member in whole.members] == ["killed-seed-0", "plain-seed-0", "quick-seed-0"]
    assert whole.members[1:] == record.members
    (failure,) = whole.failures
    assert failure.name == "broken-seed-0" and failure.error.startswith("IsADirectoryError: ")
    assert_failures_are_told(whole, out, ended.stdout, ended.stderr)
    assert written(out, ["plain-seed-0", "quick-seed-0"]) == before
    assert not (out / "members" / "killed-seed-0" / "error.txt").exists()
    assert len(sp.load_classifier(out / "members" / "killed-seed-0" / "fine_tuned").training["history"]) == 10
    assert whole.spreads == measure_spreads(whole.members, "reference", ("sketch",))
    assert study_verdict(whole) in ended.stdout.replace("\n", " ")
