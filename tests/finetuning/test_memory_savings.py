"""What only saves memory or time: accumulation, checkpointing, channels last and bfloat16."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from support.recipes import Seen, Trained, close, moved, small_transformer, smaller, two_convolutions, two_steps
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.finetuning import recipes
from shiftproof.training.hardware import checkpoint_gradients

pytestmark = pytest.mark.slow

# A rate at which the weights move by about a thousandth, and no adaptive step that would magnify rounding.
STEADY = {"optimizer": "sgd", "lr": 0.1, "clip_norm": 1.0}


@pytest.mark.parametrize("accumulate", [2, 5, 30])
@pytest.mark.parametrize("mixing", ["none", "mixup"])
def test_parts_of_a_batch_add_up_to_the_batch(few: sp.ShiftSuite, accumulate: int, mixing: str) -> None:
    settings = two_steps(**STEADY, mixing=mixing, label_smoothing=0.1, distillation=0.2)
    start = small_transformer(few.classes)
    whole, parts = (sp.finetune(start, few, replace(settings, accumulate=count)) for count in (1, accumulate))
    close(parts.state_dict(), whole.state_dict(), atol=2e-6)
    assert (whole.network.head.weight - start.network.head.weight).abs().max() > 1e-4
    (one,), (other,) = (tuned.training["history"] for tuned in (whole, parts))
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_parts_of_a_batch_run_one_after_the_other(few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    loss = recipes.classification_loss

    def watched(logits: Tensor, *rest: Any) -> Tensor:
        sizes.append(len(logits))
        return loss(logits, *rest)

    monkeypatch.setattr(recipes, "classification_loss", watched)
    sp.finetune(two_convolutions(few.classes), few, two_steps(accumulate=5))
    assert sizes == [3, 3, 2, 2, 2] * 2


@pytest.mark.parametrize("recipe", ["end-to-end", "lora", "flyp"])
def test_gradient_checkpointing_changes_no_weight(
    zero: sp.Classifier, few: sp.ShiftSuite, tuned_by: Trained, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    plain, ran = tuned_by(recipe), Counter[bool]()
    block = type(zero.network.encoder.trunk.blocks[0])
    forward = block.forward

    def watched(self: nn.Module, x: Tensor) -> Tensor:
        ran[self.training] += 1
        return forward(self, x)

    monkeypatch.setattr(block, "forward", watched)
    saving = sp.finetune(zero, few, two_steps(recipe=recipe, gradient_checkpointing=True))
    assert ran[True] == 2 * 3 * 2  # in two steps three blocks ran twice
    close(saving.state_dict(), plain.state_dict(), atol=1e-6)


@pytest.mark.parametrize("recipe", ["end-to-end", "lora", "norms-and-biases"])
def test_gradient_checkpointing_changes_no_weight_of_a_transformer(few: sp.ShiftSuite, recipe: str) -> None:
    start = small_transformer(few.classes)
    plain, saving = (
        sp.finetune(start, few, two_steps(recipe=recipe, gradient_checkpointing=given_one))
        for given_one in (False, True)
    )
    close(saving.state_dict(), plain.state_dict(), atol=1e-6)
    assert moved(start, saving) == moved(start, plain)


def test_a_tower_that_knows_no_checkpointing_says_so(few: sp.ShiftSuite) -> None:
    with pytest.raises(
        sp.InputError,
        match=r"Sequential does not support gradient checkpointing.*twice.*gradient_checkpointing to false",
    ):
        sp.finetune(two_convolutions(few.classes), few, two_steps(gradient_checkpointing=True))


class Reluctant(nn.Module):
    """A tower as open_clip wraps one of timm's: its own call hides that the trunk refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Refusing()

    def set_grad_checkpointing(self) -> None:
        """Says nothing, and does nothing."""


class Refusing(nn.Module):
    def set_grad_checkpointing(self) -> None:
        raise AssertionError("gradient checkpointing not supported")


def test_a_tower_that_would_only_pretend_to_checkpoint_says_so() -> None:
    resnet = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=8, heads=2, image_size=32, width=8)
    for tower, message in (
        (resnet, "open_clip does not implement it"),
        (Reluctant(), "not supported"),
        (nn.Linear(1, 1), "attribute"),
    ):
        with pytest.raises(
            sp.InputError, match=f"{type(tower).__name__} does not support gradient checkpointing .*{message}"
        ):
            checkpoint_gradients(tower)


def test_batch_norm_moves_once_a_step_where_gradients_are_checkpointed() -> None:
    resnet = timm.create_model("resnet18", num_classes=0).train()
    with pytest.raises(
        sp.InputError, match="ResNet does not support gradient checkpointing .its batch norm would count"
    ):
        checkpoint_gradients(resnet)
    checkpoint_gradients(resnet.eval())  # a frozen encoder moves none


@pytest.mark.parametrize("recipe", ["end-to-end", "flyp"])
def test_channels_last_changes_the_last_bits_only(
    zero: sp.Classifier, few: sp.ShiftSuite, recipe: str, tmp_path: Path
) -> None:
    settings = two_steps(**STEADY, recipe=recipe)
    plain = sp.finetune(zero, few, replace(settings, channels_last=False))
    tuned = sp.finetune(zero, few, replace(settings, channels_last=True), checkpoints=tmp_path)
    close(tuned.state_dict(), plain.state_dict(), atol=1e-4, rtol=1e-3)
    assert moved(zero, tuned) == moved(zero, plain)
    again = sp.load_classifier(sp.save_classifier(tuned, tmp_path / "saved"))
    assert moved(tuned, again) == set()


@pytest.mark.parametrize("recipe", ["end-to-end", "flyp", "lora"])
def test_bfloat16_trains_float32_weights(zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen, recipe: str) -> None:
    settings, suite = two_steps(recipe=recipe, batch_size=8), smaller(few, 8)
    plain, rough = (sp.finetune(zero, suite, replace(settings, precision=name)) for name in ("float32", "bfloat16"))
    for weights in (*seen.after, rough.state_dict()):
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in weights.values())
    assert {gradient.dtype for gradient in seen.gradients[-1].values()} == {torch.float32}
    losses = [tuned.training["history"][0]["loss"] for tuned in (plain, rough)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
