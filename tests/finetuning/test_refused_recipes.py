"""Settings that recipes refuse."""

from __future__ import annotations

import math
from typing import Any

import pytest
from support.recipes import two_convolutions, two_steps

import shiftproof as sp
from shiftproof.finetuning import loop
from shiftproof.finetuning.settings import RECIPES
from shiftproof.progress import reading_notes

SOME = {
    "mixing": "mixup",
    "ema_decay": 0.9,
    "l2_to_start": 0.1,
    "distillation": 0.5,
    "layer_decay": 0.5,
    "locked_layers": 1,
    "early_stopping": 1,
    "label_smoothing": 0.1,
    "accumulate": 2,
}
USELESS = {
    "linear-probe": {*SOME} - {"accumulate"},
    "flyp": {"distillation", "label_smoothing", "layer_decay", "locked_layers", "accumulate"},
    "lora": {"l2_to_start", "ema_decay", "layer_decay", "locked_layers"},
    "head-only": {"layer_decay", "locked_layers"},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("key", SOME)
def test_what_a_recipe_has_no_use_for_is_refused_by_name(recipe: str, key: str) -> None:
    if key in USELESS.get(recipe, ()):
        with pytest.raises(sp.InputError, match=rf"finetune\.{key} "):
            sp.FinetuneSettings(recipe=recipe, **{key: SOME[key]})
    else:
        assert getattr(sp.FinetuneSettings(recipe=recipe, **{key: SOME[key]}), key) == SOME[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "lorra"}, r"unknown finetune\.recipe 'lorra'. Did you mean 'lora'\?"),
        ({"recipe": "head_only"}, r"Did you mean 'head-only'\?"),
        ({"recipe": "linear_probe"}, r"Did you mean 'linear-probe'\?"),
        ({"optimizer": "adam"}, r"unknown finetune\.optimizer 'adam'. Did you mean 'adamw'\?"),
        ({"precision": "bfloat"}, r"unknown finetune\.precision 'bfloat'. Did you mean 'bfloat16'\?"),
        ({"accumulate": 0}, r"finetune\.accumulate is 0"),
        ({"checkpoint_every": 0}, r"finetune\.checkpoint_every is 0"),
        ({"checkpoints_kept": 0}, r"finetune\.checkpoints_kept is 0"),
        ({"layer_decay": 0.0}, r"finetune\.layer_decay is 0\.0"),
        ({"layer_decay": 1.5}, r"finetune\.layer_decay is 1\.5"),
        ({"locked_layers": -1}, r"finetune\.locked_layers is -1"),
        ({"l2_to_start": -1.0}, r"finetune\.l2_to_start is -1"),
        ({"l2_to_start": math.nan}, r"finetune\.l2_to_start is nan"),
        ({"distillation": 1.5}, r"finetune\.distillation is 1\.5"),
        ({"distillation_temperature": 0.0}, r"finetune\.distillation_temperature is 0"),
        ({"momentum": -0.1}, r"finetune\.momentum is -0\.1"),
        ({"lora_rank": 0}, r"finetune\.lora_rank is 0"),
        ({"lora_scale": 0.0}, r"finetune\.lora_scale is 0"),
        ({"early_stopping": -1}, r"finetune\.early_stopping is -1"),
        ({"shots": 0}, r"finetune\.shots is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.FinetuneSettings(**changes)
    with pytest.raises(sp.InputError, match=message):
        sp.RunFile.resolve({"finetune": changes})


def test_a_key_that_is_misspelt_is_told(zero: sp.Classifier) -> None:
    with pytest.raises(sp.InputError, match=r"early_stoping"):
        sp.RunFile.resolve({}, ["finetune.early_stoping=1"])


@pytest.mark.parametrize(
    ("changes", "ignored"),
    [
        ({"momentum": 0.5}, "finetune.momentum"),
        ({"optimizer": "sgd", "momentum": 0.5}, None),
        ({"recipe": "norms-and-biases", "weight_decay": 0.2}, "finetune.weight_decay"),
        ({"recipe": "linear-probe", "lr": 1e-3, "clip_norm": 2.0}, "finetune.lr, finetune.clip_norm"),
        ({"recipe": "lp-ft", "lr": 1e-3, "clip_norm": 2.0}, None),
    ],
)
def test_what_is_ignored_but_not_refused_is_said(
    few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], ignored: str | None
) -> None:
    """The runs of a study share these settings, whatever their recipes."""

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    for name in ("probed", "recipe_of"):
        monkeypatch.setattr(loop, name, stop)
    notes: list[str] = []
    with reading_notes(notes.append), pytest.raises(InterruptedError):
        sp.finetune(two_convolutions(few.classes), few, sp.FinetuneSettings(**changes))
    assert [f"makes no use of {ignored}" in line for line in notes] == [True] * (ignored is not None)


@pytest.mark.slow
def test_float16_needs_a_gpu(few: sp.ShiftSuite) -> None:
    with pytest.raises(sp.InputError, match=r"float16 needs a GPU. Use bfloat16"):
        sp.finetune(two_convolutions(few.classes), few, two_steps(precision="float16"))
