"""The debiased moving average of fine-tuning: an end of the alpha path, from training that it does not disturb."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.classifiers import accuracy_of, convolution_classifier, weight_bytes
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.sets import array_set
from shiftproof.errors import TrainingError
from shiftproof.finetuning import loop, recipes
from shiftproof.finetuning.averages import debiased_ema
from shiftproof.models.classifier import Network
from shiftproof.training import engine as training
from shiftproof.training.engine import optimisation_step

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear"])
Steps = list[dict[str, NDArray[np.float64]]]


def tints(name: str, count: int, seed: int) -> sp.ImageSet:
    labels = np.arange(count) % len(CLASSES)

    def draw() -> NDArray[np.uint8]:
        generator = np.random.default_rng(seed)
        colours = np.array([[220, 200, 60], [200, 30, 40], [120, 190, 60]])[labels][:, None, None]
        return (colours + generator.normal(0, 60, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)

    return array_set(name, CLASSES, [f"{name}-{i}" for i in range(count)], labels, draw)


VALIDATION = tints("validation", 15, 1)
SUITE = sp.ShiftSuite("tints", CLASSES, sp.data.Reference("photo", tints("train", 24, 0), VALIDATION, VALIDATION), ())


def three_epochs(**changes: Any) -> sp.FinetuneSettings:
    return sp.FinetuneSettings(**{"epochs": 3, "lr": 1e-2, "batch_size": 8, "warmup_steps": 0, **changes})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The trained parameters after every step from now on, in float64."""
    seen: Steps = []

    def recorded(losses: Any, parameters: list[nn.Parameter], *rest: Any) -> float:
        loss = optimisation_step(losses, parameters, *rest)
        seen.append({str(i): p.detach().double().numpy().copy() for i, p in enumerate(parameters)})
        return loss

    monkeypatch.setattr(training, "optimisation_step", recorded)
    return seen


def parameters_of(classifier: sp.Classifier, recipe: str = "end-to-end") -> dict[str, NDArray[np.float64]]:
    part = classifier.network if recipe == "end-to-end" else classifier.network.head
    return {str(i): p.detach().double().numpy() for i, p in enumerate(part.parameters())}


def moving_average(start: NDArray[np.float64], steps: Steps, name: str, decay: float) -> NDArray[np.float64]:
    """e_t = decay e_(t-1) + (1 - decay) theta_t."""
    average = start
    for weights in steps:
        average = decay * average + (1 - decay) * weights[name]
    return average


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only"])
@pytest.mark.parametrize("decay", [1e-9, 0.5, 0.9, 0.9999])
def test_the_debiased_average_is_an_end_of_the_alpha_path(steps: Steps, decay: float, recipe: str) -> None:
    start = convolution_classifier(CLASSES, relu=False)
    tuned = sp.finetune(start, SUITE, three_epochs(ema_decay=decay, recipe=recipe))
    alpha = 1 - decay ** len(steps)
    begun, debiased = parameters_of(start, recipe), parameters_of(tuned, recipe)
    path = parameters_of(sp.wise_ft(start, tuned, alpha), recipe)
    assert len(steps) == 9
    for name, theta_0 in begun.items():
        from_nothing = moving_average(np.zeros_like(theta_0), steps, name, decay)
        np.testing.assert_allclose(debiased[name], from_nothing / alpha, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(path[name], moving_average(theta_0, steps, name, decay), rtol=1e-4, atol=1e-6)


@given(decay=st.floats(0.001, 0.999999), count=st.integers(1, 30), seed=st.integers(0, 100))
def test_the_recursion_is_the_weighted_mean_of_the_steps(decay: float, count: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    layer = nn.Linear(3, 2).double()
    average, drawn = debiased_ema(layer, decay), generator.normal(size=(count, 2, 3))
    for weights in drawn:
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weights))
        average.update_parameters(layer)
    shares = decay ** np.arange(count - 1, -1, -1.0)
    expected = np.average(drawn, axis=0, weights=shares)
    np.testing.assert_allclose(dict(average.module.named_parameters())["weight"].detach().numpy(), expected, atol=1e-9)


def test_training_goes_on_as_if_nothing_was_averaged(steps: Steps) -> None:
    plain = sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs())
    undisturbed = list(steps)
    steps.clear()
    averaged = sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs(ema_decay=0.9))
    for one, other in zip(undisturbed, steps, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one)
    # Statistics and counters are the last ones; every parameter is another.
    before, after = weight_bytes(plain), weight_bytes(averaged)
    same = {name for name in before if before[name] == after[name]}
    assert same == {f"encoder.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    losses = [[entry["loss"] for entry in tuned.training["history"]] for tuned in (plain, averaged)]
    assert losses[0] == losses[1]


def test_without_a_decay_nothing_is_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs())
    monkeypatch.delattr(loop, "debiased_ema")
    tuned = sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs(ema_decay=0.0))
    assert weight_bytes(tuned) == weight_bytes(expected)
    assert tuned.training == expected.training


def test_the_history_scores_the_averaged_weights() -> None:
    tuned = sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs(ema_decay=0.99))
    history = tuned.training["history"]
    assert history[-1]["validation"] == accuracy_of(tuned, VALIDATION)
    shorter = [
        sp.finetune(convolution_classifier(CLASSES, relu=False), SUITE, three_epochs(ema_decay=0.99)) for _ in range(2)
    ]
    assert weight_bytes(shorter[0]) == weight_bytes(shorter[1]) == weight_bytes(tuned)
    assert tuned.training["settings"]["ema_decay"] == 0.99


def test_head_only_keeps_every_bit_of_the_encoder() -> None:
    start = convolution_classifier(CLASSES, relu=False)
    tuned = sp.finetune(start, SUITE, three_epochs(ema_decay=0.9, recipe="head-only"))
    before, after = weight_bytes(start), weight_bytes(tuned)
    assert {name for name in before if before[name] != after[name]} == {"head.weight", "head.bias"}


@pytest.mark.slow
def test_the_last_good_epoch_that_is_kept_is_the_average(
    tiny: sp.models.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, settings = sp.zero_shot_classifier(tiny, CLASSES), three_epochs(ema_decay=0.8, lr=1e-3, batch_size=12)
    reached: list[str] = []
    lossless, calls = recipes.classification_loss, 0

    def watched(classifier: sp.Classifier, images: sp.ImageSet, **options: Any) -> sp.evaluation.Predictions:
        reached.append(sp.models.fingerprint(classifier))
        return sp.predict(classifier, images, **options)

    def broken(*given_ones: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return lossless(*given_ones) * (math.inf if calls == 6 else 1)

    monkeypatch.setattr(loop, "predict", watched)
    monkeypatch.setattr(recipes, "classification_loss", broken)
    with pytest.raises(TrainingError, match=r"stopped at step 6: the loss is inf.*weights of step 4"):
        sp.finetune(start, SUITE, settings, checkpoints=tmp_path / "kept")
    saved = sp.load_classifier(tmp_path / "kept" / "last_good")
    assert sp.models.fingerprint(saved) == reached[1]
    assert len(set(reached)) == 2
    assert saved.training["settings"]["ema_decay"] == 0.8


def test_a_soup_and_an_ensemble_take_it_as_any_other() -> None:
    start = convolution_classifier(CLASSES, relu=False)
    tuned = sp.finetune(start, SUITE, three_epochs(ema_decay=0.9))
    assert (tuned.head, tuned.alpha) == ("trained", None)
    assert not any(module.training for module in tuned.network.modules())
    assert type(tuned.network) is Network
    assert weight_bytes(sp.wise_ft(start, replace(tuned), 1.0)) == weight_bytes(tuned)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, math.nan])
def test_a_decay_outside_zero_to_one_is_refused_by_name(decay: float) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.ema_decay is .*below 1"):
        sp.FinetuneSettings(ema_decay=decay)


def test_a_run_file_can_ask_for_it() -> None:
    resolved = sp.RunFile.resolve({"finetune": {"ema_decay": "0.99"}}, ["finetune.epochs=2"])
    assert resolved.finetune.ema_decay == 0.99
    assert sp.RunFile.resolve({}, ["finetune.ema_decay=0.5"]).finetune.ema_decay == 0.5
    with pytest.raises(sp.InputError, match=r"finetune\.ema_decay"):
        sp.RunFile.resolve({}, ["finetune.ema_decay=1"])
