"""What a study file asks for: grids, samples, overrides, and what is refused."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest
from support.studies import in_yaml

import shiftproof as sp
from shiftproof.runs.file import RunFile
from shiftproof.studies.file import StudyFile

STUDIES = Path(__file__).parents[2] / "benchmarks" / "studies"
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
    file = StudyFile.resolve({"run": {"finetune": {"batch_size": 7}}, "grid": grid, "seeds": seeds})
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
    members = file.members()
    assert [(member.changes, member.run_file.seed, member.run_file) for member in members] == expected
    assert len({member.name for member in members}) == len(expected)
    assert len({member.configuration for member in members}) == len(combinations)
    for member in members:
        # A directory's name, in which a reader finds the keys, the values and the seed.
        assert re.fullmatch(r"[\w.-]+", member.name)
        assert member.name.endswith(f"-seed-{member.run_file.seed}")
        for key, value in member.changes.items():
            assert f"{key.split('.')[-1]} {value}" in member.configuration
            assert f"{key.split('.')[-1]}-{value}" in member.name


def test_configurations_come_in_the_order_of_the_file() -> None:
    file = StudyFile.resolve(
        {
            "grid": {"finetune.lr": [2e-3, 1e-3], "finetune.epochs": [2, 1]},
            "sample": {"count": 2, "keys": {"finetune.epochs": [3, 4, 5]}},
            "configurations": {"Linear probe": {"finetune": {"recipe": "linear-probe"}}, "as it is": None},
            "seeds": [3, 0],
        }
    )
    assert [member.name for member in file.members()] == [
        *("lr-0.002-epochs-2-seed-3", "lr-0.002-epochs-2-seed-0", "lr-0.002-epochs-1-seed-3"),
        *("lr-0.002-epochs-1-seed-0", "lr-0.001-epochs-2-seed-3", "lr-0.001-epochs-2-seed-0"),
        *("lr-0.001-epochs-1-seed-3", "lr-0.001-epochs-1-seed-0", "sample-0-seed-3", "sample-0-seed-0"),
        *("sample-1-seed-3", "sample-1-seed-0", "linear-probe-seed-3", "linear-probe-seed-0"),
        *("as-it-is-seed-3", "as-it-is-seed-0"),
    ]
    assert file.members()[-1].run_file == RunFile.resolve({"seed": 0})


def test_a_study_that_changes_nothing_is_one_run() -> None:
    (member,) = StudyFile.resolve({"run": {"finetune": {"epochs": 3}}}).members()
    assert (member.name, member.configuration, member.changes) == ("run-seed-0", "run", {})
    assert member.run_file == RunFile.resolve({"finetune": {"epochs": 3}})


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
    settings = {
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
    study_file = StudyFile.read(in_yaml(tmp_path, settings), overrides)
    assert study_file == StudyFile.resolve(
        {
            "run": {"model": "tiny", "limit": 3, "finetune": {"epochs": 9, "lr": 1e-3, "batch_size": 5}},
            "grid": {"finetune.lr": ["1e-4", "1e-2"], "finetune.epochs": [4]},
            "configurations": {"mine": {"finetune.recipe": "lora"}},
            "sample": {"count": 2, "seed": 7, "keys": {"finetune.weight_decay": [0.1]}},
            **{"seeds": [1, 2], "soups": ["greedy"], "rule": "tolerance", "cpus_per_run": 2},
        }
    )
    lrs = [member.run_file.finetune.lr for member in study_file.members() if "lr" in member.configuration]
    assert lrs == [1e-4, 1e-4, 1e-2, 1e-2]
    assert {(member.run_file.finetune.batch_size, member.run_file.limit) for member in study_file.members()} == {(5, 3)}


def test_a_sample_s_key_can_be_set_from_the_command_line() -> None:
    settings = {"sample": {"count": 3, "keys": {"finetune.lr": [1e-3]}}}
    study_file = StudyFile.resolve(settings, ["sample.keys.finetune.lr=[1e-4]"])
    assert {member.run_file.finetune.lr for member in study_file.members()} == {1e-4}


def test_a_file_survives_the_way_to_disk(tmp_path: Path) -> None:
    settings = {
        "run": {"prompts": ["a {}."], "finetune": {"lr": "1e-3", "shots": None}},
        "grid": {"finetune.shots": [None, 4], "finetune.lr": ["1e-4", 1e-05]},
        "configurations": {"plain": None, "mixed": {"finetune.mixing": "mixup", "finetune.mixing_probability": None}},
        "sample": {"count": 2, "keys": {"finetune.epochs": {"low": 1, "high": 3}, "finetune.lr": [1, 2]}},
        **{"seeds": [4, 2], "rule": "tolerance", "soups": ["uniform"], "cpus_per_run": 0.5, "gpus_per_run": 0.25},
    }
    first = StudyFile.resolve(settings)
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
    study_file = {file.stem: StudyFile.read(file) for file in sorted(STUDIES.glob("*.yaml"))}
    assert "tuning" in study_file
    for settings in study_file.values():
        members = settings.members()
        assert len({member.name for member in members}) == len(members)
    # What is tuned is tuned on other classes than those of the results.
    assert {member.run_file.suite for member in study_file["tuning"].members()} == {"emoji-development-1"}


# A random sample.


def sampled(count: int, keys: dict[str, Any], seed: int = 0) -> list[Mapping[str, Any]]:
    file = StudyFile.resolve({"sample": {"count": count, "seed": seed, "keys": keys}})
    return [member.changes for member in file.members()]


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
    ("settings", "message"),
    [
        ({"grdi": ONE}, "'grdi'. Did you mean 'grid'?"),
        ({"sample": {"count": 1, "kyes": {}, "keys": ONE}}, "'sample.kyes'. Did you mean 'keys'?"),
        ({"grid": {"finetune.lrr": [1]}}, "'finetune.lrr'. Did you mean 'lr'?"),
        ({"grid": {"promts": ["photo"]}}, "'promts'. Did you mean 'prompts'?"),
        ({"run": {"modle": "tiny"}}, "'modle'. Did you mean 'model'?"),
        ({"grid": {"suite": ["emoji"]}}, "'suite' must be the same in all runs"),
        ({"grid": {"alphas": [3, 5]}}, "'alphas' must be the same in all runs"),
        ({"grid": {"seed": [0, 1]}}, "cannot set the key 'seed'. List the seeds beside `run`"),
        ({"grid": {"limit": [5, 6]}}, "'limit' must be the same in all runs"),
        ({"configurations": {"a": {"suite": {"name": "x"}}}}, "'suite' must be the same in all runs"),
        ({"configurations": {"a": {"suite.reference.test": "folder:x"}}}, "'suite.reference.test' must be the same"),
        ({"sample": {"count": 1, "keys": {"seed": [0, 1]}}}, "cannot set the key 'seed'"),
        ({"run": {"seed": 3}}, "seeds: [0, 1]"),
        ({"run": {"alpha_rule": "tolerance"}}, "cannot set the key 'alpha_rule'. Set `rule` beside `run`"),
        ({"run": {"pretrain": {"data": "emoji-captions"}}}, "cannot set the key 'pretrain'"),
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
def test_a_mistake_is_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=re.escape(message)):
        StudyFile.resolve(settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"grid": ONE, "configurations": {"lr 0.001": {"finetune.lr": 5}}},
        {"sample": {"count": 1, "keys": ONE}, "configurations": {"sample-0": {}}},
        {"grid": {"finetune.lr": [1e-3, 1e-3]}},
    ],
    ids=["grid and configurations", "sample and configurations", "a value twice"],
)
def test_no_configuration_replaces_another_of_its_name(settings: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match="share a name"):
        StudyFile.resolve(settings)


@pytest.mark.parametrize(
    "settings",
    [{"grid": {"finetune.lr": []}}, {"sample": {"count": 1, "keys": {"finetune.lr": []}}}],
    ids=["grid", "sample"],
)
def test_a_key_without_values_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.lr"):
        StudyFile.resolve(settings)


@pytest.mark.parametrize(
    "between",
    [{"low": 0, "high": 1, "log": True}, {"low": -1.0, "high": 1.0, "log": True}, {"low": 2, "high": 1}],
    ids=["log from 0", "log from below 0", "low above high"],
)
def test_a_range_that_makes_no_sense_is_refused(between: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.lr"):
        StudyFile.resolve({"sample": {"count": 1, "keys": {"finetune.lr": between}}})


@pytest.mark.parametrize(
    "settings",
    [{"grid": ["finetune.lr"]}, {"configurations": ["a", "b"]}, {"configurations": {"a": 3}}, {"run": "tiny"}],
    ids=["grid", "configurations", "a configuration", "run"],
)
def test_a_section_of_another_kind_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=next(iter(settings))):
        StudyFile.resolve(settings)


def test_batch_norm_may_differ_between_runs_but_not_between_ingredients_of_a_soup() -> None:
    configurations = {"averaged": {}, "re-estimated": {"batch_norm": "re-estimated"}}
    study = StudyFile.resolve({"configurations": configurations})
    assert [member.run_file.batch_norm for member in study.members()] == ["averaged", "re-estimated"]
    with pytest.raises(sp.InputError, match="soups need the same `batch_norm`"):
        StudyFile.resolve({"configurations": configurations, "soups": ["uniform"]}).members()


def test_paths_in_a_grid_are_relative_to_the_folder_of_the_file(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt"):
        (tmp_path / name).write_text("lemon\npear\n", encoding="utf-8")
    file = in_yaml(tmp_path, {"grid": {"classes": ["one.txt", "two.txt"]}})
    paths = [member.run_file.classes for member in StudyFile.read(file).members()]
    assert paths == [str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]


def test_soups_of_seeds_that_draw_their_own_validation_images_are_refused() -> None:
    study = {"run": {"suite": "cifar10:somewhere"}, "seeds": [0, 1], "soups": ["greedy"]}
    with pytest.raises(sp.InputError, match="soups of several seeds need separate validation data"):
        StudyFile.resolve(study).members()
