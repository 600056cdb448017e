"""How fine-tuning stops where numbers are not finite, and what settings are refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.classifiers import weight_bytes
from support.squares import CLASSES, SUITE, square_classifier, two_epochs
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.errors import DivergenceError, TrainingError
from shiftproof.finetuning import loop, recipes
from shiftproof.models.classifier import Network
from shiftproof.training import engine as training
from shiftproof.training.engine import optimisation_step, parameter_groups


@pytest.mark.slow
def test_a_rate_that_is_far_too_high_stops_with_the_start_kept(tiny: sp.models.Clip, tmp_path: Path) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    with pytest.raises(TrainingError, match=r"stopped at step 2: .*nan(.|\n)*the start(.|\n)*finetune\.lr") as caught:
        sp.finetune(start, SUITE, two_epochs(lr=1e20), checkpoints=tmp_path / "kept")
    assert str(tmp_path / "kept" / "last_good") in str(caught.value)
    saved = sp.load_classifier(tmp_path / "kept" / "last_good")
    assert sp.models.fingerprint(saved) == sp.models.fingerprint(start)


@pytest.mark.slow
def test_weights_that_break_in_the_last_step_are_not_returned(tiny: sp.models.Clip, tmp_path: Path) -> None:
    # One step in all: no later loss could tell.
    start = sp.zero_shot_classifier(tiny, CLASSES)
    with pytest.raises(TrainingError, match="step 1"):
        sp.finetune(start, SUITE, two_epochs(lr=1e20, epochs=1, batch_size=24), checkpoints=tmp_path / "kept")
    assert sp.models.fingerprint(sp.load_classifier(tmp_path / "kept" / "last_good")) == sp.models.fingerprint(start)


@pytest.mark.slow
def test_the_last_good_epoch_is_kept(tiny: sp.models.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, settings = sp.zero_shot_classifier(tiny, CLASSES), two_epochs(epochs=3, lr=1e-3)
    reached: list[str] = []

    def watched(classifier: sp.Classifier, images: sp.ImageSet, **options: Any) -> sp.evaluation.Predictions:
        reached.append(sp.models.fingerprint(classifier))
        return sp.predict(classifier, images, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "predict", watched)
        sp.finetune(start, SUITE, settings)
    assert len(set(reached)) == 3

    calls = 0

    def broken(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        nonlocal calls
        calls += 1
        return smoothed(logits, labels, smoothing) * (math.inf if calls == 6 else 1)

    smoothed = recipes.classification_loss
    monkeypatch.setattr(recipes, "classification_loss", broken)
    with pytest.raises(TrainingError, match=r"stopped at step 6: the loss is inf.*weights of step 4"):
        sp.finetune(start, SUITE, settings, checkpoints=tmp_path / "kept")
    assert sp.models.fingerprint(sp.load_classifier(tmp_path / "kept" / "last_good")) == reached[1]


def test_inputs_that_are_not_finite_stop_the_first_step(tmp_path: Path) -> None:
    broken = square_classifier(preprocessing=Preprocessing(size=16, std=(0.0, 1.0, 1.0)))
    with pytest.raises(TrainingError, match="stopped at step 1") as caught:
        sp.finetune(broken, SUITE, two_epochs())
    assert "kept" not in str(caught.value)


class Scaling:
    """What accelerate does in float16: gradients are scaled, and a step whose gradients overflow is left out."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler, self.optimizer = torch.amp.GradScaler("cpu"), optimizer
        self.zero_grad, self.param_groups = optimizer.zero_grad, optimizer.param_groups

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_grad_norm_(self, parameters: list[nn.Parameter], norm: float) -> torch.Tensor:
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(parameters, norm)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_float16_leaves_a_step_out_but_not_all_of_them() -> None:
    layer = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    scaling = Scaling(torch.optim.SGD(layer.parameters(), lr=0.0))

    def step(steep: bool) -> None:
        out = layer(torch.ones(1, 2))
        loss = (0 * out).abs().sqrt().sum() if steep else out.sum()
        optimisation_step(loss, list(layer.parameters()), scaling, 0.1, 1.0, scaling)  # type: ignore[arg-type]

    for _ in range(3):
        step(steep=True)
    assert all(torch.equal(p.detach(), before[name]) for name, p in layer.named_parameters())
    step(steep=False)
    assert not torch.equal(layer.bias.detach(), before["bias"])
    with pytest.raises(DivergenceError, match="gradient's norm is nan"):
        any(step(steep=True) for _ in range(60))


def test_a_step_that_is_left_out_draws_to_no_start_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Trainer, "skipped", True)
    free, drawn = (sp.finetune(square_classifier(), SUITE, two_epochs(l2_to_start=pull)) for pull in (0.0, 1e9))
    assert all(torch.equal(tensor, drawn.state_dict()[name]) for name, tensor in free.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_step_leaves_the_weights_alone(value: float) -> None:
    layer = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(layer, 0.1), lr=0.0)
    parameters = list(layer.parameters())
    with pytest.raises(TrainingError, match="the loss is"):
        optimisation_step(layer(torch.ones(1, 2)).sum() * value, parameters, optimizer, 0.1, 1.0)
    # A finite loss with an infinite slope.
    with pytest.raises(TrainingError, match="gradient's norm"):
        optimisation_step((0 * layer(torch.ones(1, 2))).abs().sqrt().sum(), parameters, optimizer, 0.1, 1.0)
    assert all(torch.equal(p.detach(), before[name]) for name, p in layer.named_parameters())


def test_gradients_are_clipped_to_their_global_norm() -> None:
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    optimisation_step((layer(torch.tensor([[300.0, 400.0]]))).sum(), list(layer.parameters()), optimizer, 1.0, 2.0)
    torch.testing.assert_close(before - layer.weight.detach(), torch.tensor([[1.2, 1.6]]), rtol=1e-4, atol=1e-4)


def test_other_classes_are_refused() -> None:
    other = sp.ClassSpace.from_ids(["lemon", "red_apple", "plum", "pear"])
    with pytest.raises(sp.InputError, match="classes"):
        sp.finetune(square_classifier(classes=other), SUITE, two_epochs())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", "end_to_end"),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", -1e-3),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", 1e38),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("clip_norm", -1.0),
        ("clip_norm", math.inf),
        ("label_smoothing", 1.5),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("mixing", "smothmix"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(sp.InputError, match=rf"finetune\.{key}"):
        sp.FinetuneSettings(**{key: value})


def test_layers_that_draw_at_random_are_seeded_and_leave_the_caller_s_state_alone() -> None:
    start = square_classifier()
    dropping = Network(nn.Sequential(start.network.encoder, nn.Dropout(0.5)), start.network.head)
    start = replace(start, network=dropping.eval())
    result = []
    for state in (1, 2):
        torch.manual_seed(state)
        expected = torch.rand(1)
        torch.manual_seed(state)
        result.append(weight_bytes(sp.finetune(start, SUITE, two_epochs())))
        assert torch.equal(torch.rand(1), expected)
    assert result[0] == result[1]
