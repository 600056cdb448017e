"""Mixings by name and by their settings."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from support.mixings import ANY, choices

import shiftproof as sp
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS, mixing_from, mixing_settings


@given(ANY | choices(ANY))
def test_settings_read_back_as_the_same_mixing(mixing: Mixing) -> None:
    plain = mixing_settings(mixing)
    for read in (json.loads(json.dumps(plain)), yaml.safe_load(yaml.safe_dump(plain)), plain):
        result = mixing_from(read)
        assert result == mixing
        assert type(result) is type(mixing)
    assert mixing_from(mixing) is mixing


def test_names_are_the_papers_methods() -> None:
    assert {name: type(mixing) for name, mixing in MIXINGS.items()} == {
        "smoothmix-circle": SmoothMix,
        "smoothmix-square": SmoothMix,
        "cutmix": CutMix,
        "cutout": Cutout,
        "mixup": MixUp,
    }
    for name, mixing in MIXINGS.items():
        assert mixing_from(name) is mixing
        assert mixing.probability == 1
    assert mixing_from("none") is None
    assert mixing_from({"method": "smoothmix", "kind": "square"}) == MIXINGS["smoothmix-square"]
    assert mixing_settings(SmoothMix()) == {"method": "smoothmix"}


def test_names_with_weights_are_a_choice() -> None:
    result = mixing_from({"smoothmix-circle": 2, "cutmix": 1, "cutout": "0.5"})
    assert result == MixChoice(mixings=(SmoothMix(), CutMix(), Cutout()), weights=(2.0, 1.0, 0.5))
    members = [{"method": "cutmix", "edge": 0.5}, "mixup", {"mixup": 1, "cutout": 3}]
    nested = mixing_from({"method": "choice", "mixings": members, "weights": [1, 0, 2], "probability": 0.5})
    inner = MixChoice(mixings=(MixUp(), Cutout()), weights=(1.0, 3.0))
    assert nested == MixChoice(mixings=(CutMix(edge=0.5), MixUp(), inner), weights=(1, 0, 2), probability=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("smothmix-circle", "unknown mixing 'smothmix-circle'. Did you mean 'smoothmix-circle'"),
        (None, "mixing is None"),
        (3, "mixing is 3"),
        ([], r"mixing is \[\]"),
        ({}, r"mixing is \{\}"),
        ({"smoothmix": 1}, "unknown mixing 'smoothmix'. Did you mean 'smoothmix-"),
        ({"cutmix": 1, "none": 1}, "unknown mixing 'none'"),
        ({"cutmix": "much"}, "weight 'much' is not a number"),
        ({"cutmix": None}, "weight None is not a number"),
        ({"cutmix": 0}, r"weights are \(0\.0,\)"),
        ({"cutmix": 1, "mixup": -2}, r"weights are \(1\.0, -2\.0\)"),
        ({"method": "cutmx"}, "unknown mixing method 'cutmx'. Did you mean 'cutmix'"),
        ({"method": "mixup", "alpha": 1}, "unknown setting of mixup 'alpha'"),
        ({"method": "mixup", "edge": 1}, "unknown setting of mixup 'edge'"),
        ({"method": "cutmix", "probability": "often"}, "'often'"),
        ({"method": "cutmix", "probability": 2}, "probability is 2"),
        ({"method": "smoothmix", "spread": 0.3}, "0.3"),
        ({"method": "choice"}, "lacks 'mixings', which choice needs"),
        ({"method": "choice", "mixings": 5}, "5"),
        ({"method": "choice", "mixings": ["cutmix", "none"]}, "none"),
        ({"method": "choice", "mixings": ["cutmix"], "weights": ["a"]}, "'a'"),
    ],
)
def test_a_mixing_that_cannot_be_read_is_refused(settings: Any, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        mixing_from(settings)


def test_a_mixing_of_another_class_has_no_name() -> None:
    class Mine(SmoothMix):
        pass

    with pytest.raises(sp.InputError, match="the mixing Mine cannot be recorded by name"):
        mixing_settings(Mine())
