"""``demo --mixing``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import typer
from support.commands import Call

import shiftproof as sp
from shiftproof.runs.file import DEMO_FILE, MIXED_SETTINGS

pytestmark = pytest.mark.slow


@pytest.fixture
def demanded(monkeypatch: pytest.MonkeyPatch) -> list[sp.RunFile]:
    """What the demo would run."""
    settings: list[sp.RunFile] = []

    def recorded(run: sp.RunFile, *_: Any, **__: Any) -> None:
        settings.append(run)
        raise typer.Exit

    monkeypatch.setattr("shiftproof.runs.pipeline.run_pipeline", recorded)
    return settings


@pytest.mark.parametrize("mixing", ["smoothmix-circle", "smoothmix-square", "cutmix", "cutout", "mixup"])
def test_the_demo_mixes_in_the_regime_that_was_found_for_the_model(
    mixing: str, call: Call, demanded: list[sp.RunFile]
) -> None:
    assert call("demo", "--mixing", mixing).code == 0
    (run,) = demanded
    assert run.finetune.mixing == mixing
    for name, value in MIXED_SETTINGS["tiny"].items():
        assert getattr(run.finetune, name) == value
    assert run.finetune.mixer is not None
    assert run.finetune.mixer.probability == MIXED_SETTINGS["tiny"]["mixing_probability"]
    plain = sp.RunFile.read(DEMO_FILE)
    assert replace(run.finetune, mixing="none", mixing_probability=None, label_smoothing=0.0) == plain.finetune


def test_what_is_set_goes_before_the_regime(call: Call, demanded: list[sp.RunFile]) -> None:
    settings = ["--set", "finetune.mixing_probability=0.75", "--set", "finetune.label_smoothing=0"]
    assert call("demo", "--mixing", "cutmix", *settings).code == 0
    assert call("demo", "--mixing", "none").code == 0
    assert call("demo").code == 0
    tuned = [(run.finetune.mixing, run.finetune.mixing_probability, run.finetune.label_smoothing) for run in demanded]
    assert tuned == [("cutmix", 0.75, 0), ("none", None, 0), ("none", None, 0)]


def test_an_unknown_mixing_is_a_mistake(call: Call, demanded: list[sp.RunFile]) -> None:
    ended = call("demo", "--mixing", "smoothmix-circel")
    assert (ended.code, ended.out) == (2, "")
    assert "unknown --mixing 'smoothmix-circel'. Did you mean 'smoothmix-circle'?" in ended.err
    assert demanded == []


def test_the_regime_is_the_tiny_models_and_leaves_a_probability_that_is_given() -> None:
    def resolved(mixing: Any, model: str = "tiny") -> sp.FinetuneSettings:
        return sp.RunFile.resolve({"model": model, "finetune": {"mixing": mixing}}).finetune

    own = resolved({"method": "cutmix", "probability": 0.9})
    assert own.mixer is not None
    assert own.mixer.probability == 0.9
    assert own.label_smoothing == MIXED_SETTINGS["tiny"]["label_smoothing"]
    weighed = resolved({"smoothmix-circle": 2, "cutmix": 1}).mixer
    assert weighed is not None
    assert weighed.probability == MIXED_SETTINGS["tiny"]["mixing_probability"]
    other = resolved("cutmix", "open_clip:ViT-B-32/openai")
    assert (other.mixing_probability, other.label_smoothing) == (None, 0)
