"""Weight decay, label smoothing, the history and the schedule of fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.squares import CLASSES, SUITE, closed_suite, fraction_right, square_classifier, squares, two_epochs
from torch import Tensor, nn

import shiftproof as sp
from shiftproof import progress
from shiftproof.finetuning import recipes
from shiftproof.training import engine as training
from shiftproof.training.engine import cosine_with_warmup, optimisation_step, parameter_groups, positions_at

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


# Weight decay.


def test_only_matrices_decay(tiny: sp.models.Clip) -> None:
    model = tiny.model
    decaying, steady = parameter_groups(model, 0.3)
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.3, 0.0)
    exempt = {id(model.logit_scale)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) or "bias" in name:
                exempt.add(id(parameter))
    assert len(exempt) > 20
    assert {id(p) for p in steady["params"]} == exempt
    everything = [id(p) for group in (decaying, steady) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_in_no_group() -> None:
    network = square_classifier().network
    network.encoder.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert [id(p) for group in groups for p in group["params"]] == [id(network.head.weight), id(network.head.bias)]


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    network = square_classifier().network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.5), lr=0.0)
    loss = sum(0 * p.sum() for p in network.parameters())
    assert isinstance(loss, Tensor)
    optimisation_step(loss, list(network.parameters()), optimizer, lr=0.1, clip_norm=1.0)
    for name, parameter in network.named_parameters():
        saved = 0.95 if name in ("encoder.0.weight", "head.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), saved * before[name], msg=name)


# The loss.


def smoothed_loss(rows: list[list[float]], labels: list[int], smoothing: float) -> float:
    """Mean over the rows of -sum_k q_k log p_k with q = (1 - s) onehot + s / K."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        high = max(row)
        log_sum = high + math.log(sum(math.exp(x - high) for x in row))
        for k, x in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing if k == label else 0)
            total -= target * (x - log_sum)
    return total / len(rows)


@given(
    rows=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    smoothing=st.floats(0, 1),
    data=st.data(),
)
def test_label_smoothing_spreads_its_share_over_all_classes(
    rows: list[list[float]], smoothing: float, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    loss = recipes.classification_loss(torch.tensor(rows), torch.tensor(labels), smoothing)
    assert loss.item() == pytest.approx(smoothed_loss(rows, labels, smoothing), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_first_loss_is_that_of_the_start(tiny: sp.models.Clip, smoothing: float) -> None:
    # Images of one colour look the same under every crop, and the first step is taken from the start's weights.
    train = squares("train", 3, 0, noise=0)
    start = sp.zero_shot_classifier(tiny, CLASSES)
    settings = two_epochs(epochs=1, batch_size=len(train), label_smoothing=smoothing)
    tuned = sp.finetune(start, closed_suite(train, SUITE.reference.validation), settings)
    predictions = sp.predict(start, train)
    expected = smoothed_loss(predictions.logits.tolist(), predictions.labels.tolist(), smoothing)
    assert tuned.training["history"][0]["loss"] == pytest.approx(expected, rel=1e-4)


# The history.


@pytest.mark.parametrize("batch_size", [5, 7, 12, 24, 40])
def test_validation_is_scored_after_every_epoch(batch_size: int) -> None:
    epochs, images = 3, len(SUITE.reference.train)
    tuned = sp.finetune(square_classifier(), SUITE, two_epochs(epochs=epochs, batch_size=batch_size))
    # An epoch ends with the step at which every image has been drawn once more on average.
    ends, seen, step = [], 0, 0
    while seen < epochs * images:
        before, seen, step = seen, seen + batch_size, step + 1
        if seen // images > before // images:
            ends.append(step)
    history = tuned.training["history"]
    assert [entry["step"] for entry in history] == ends
    assert history[-1]["validation"] == fraction_right(tuned, SUITE.reference.validation)


def test_progress_is_reported_for_every_step() -> None:
    seen: list[progress.Event] = []
    with progress.listening(seen.append):
        tuned = sp.finetune(square_classifier(), SUITE, two_epochs())
    steps = [event for event in seen if event.stage == "fine-tune"]
    assert [(event.done, event.total) for event in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    losses = [event.values["loss"] for event in steps]
    history = tuned.training["history"]
    assert [entry["loss"] for entry in history] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


# The schedule.


@given(steps=st.integers(1, 3000), asked=st.integers(0, 3000))
def test_warm_up_takes_a_tenth_at_most(steps: int, asked: int) -> None:
    warmup = sp.FinetuneSettings(warmup_steps=asked).warmup(steps)
    assert warmup <= asked
    assert 10 * warmup <= steps
    assert warmup == asked or 10 * (warmup + 1) > steps


@given(total=st.integers(1, 400), warmup=st.integers(0, 400))
def test_the_rate_rises_to_its_peak_and_falls(total: int, warmup: int) -> None:
    rates = [cosine_with_warmup(step, total, warmup) for step in range(total)]
    top = min(warmup, total)
    for step, rate in enumerate(rates):
        if step < top:
            assert rate == pytest.approx((step + 1) / top)
        else:
            assert rate == pytest.approx(math.cos(math.pi / 2 * (step - top) / (total - top)) ** 2)
    assert max(rates) == pytest.approx(1)
    assert min(rates) > 0


def test_a_long_warm_up_is_capped_in_the_training_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def recorded(losses: Any, parameters: Any, optimizer: Any, lr: float, *rest: Any) -> float:
        rates.append(lr)
        return optimisation_step(losses, parameters, optimizer, lr, *rest)

    monkeypatch.setattr(training, "optimisation_step", recorded)
    sp.finetune(square_classifier(), SUITE, two_epochs(epochs=10, warmup_steps=500))
    assert len(rates) == 20
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_shows_every_image_once(images: int, batch_size: int, seed: int) -> None:
    drawn = [i for step in range(images) for i in positions_at(step, batch_size, images, seed)]
    assert len(drawn) == images * batch_size
    for epoch in range(batch_size):
        assert sorted(drawn[epoch * images : (epoch + 1) * images]) == list(range(images))
