"""LoRA, frozen heads and recipes that train norms and biases: what moves, and what keeps its bits."""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from support.recipes import (
    Seen,
    Trained,
    differing,
    moved,
    parameters,
    seeded_classifier,
    small_transformer,
    smaller,
    two_convolutions,
    two_steps,
    watch,
)
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.finetuning.recipes import recipe_of

pytestmark = pytest.mark.slow

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
VIT = "open_clip:ViT-S-32-alt"  # random weights: nothing is downloaded


# What moves and what does not.


def matrices(encoder: nn.Module) -> list[str]:
    """The weights of linear layers, convolutions and attention, but for the first, which looks at pixels."""
    result = []
    for name, module in encoder.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            result.append(f"encoder.{name}.weight")
        elif isinstance(module, nn.MultiheadAttention):
            result.append(f"encoder.{name}.in_proj_weight")
    return result[1:]


RANK, SCALE = 2, 0.5


def unwrapped(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names that they had before adapters were put in."""
    plain = r"\.parametrizations\.(\w+)\.original$", r".\1"
    adapter = r"\.parametrizations\.\w+\.0\.(lora_[AB])$", r".\1"
    return {re.sub(*adapter, re.sub(*plain, name)): tensor for name, tensor in weights.items()}


Adapted = tuple[sp.Classifier, dict[str, Tensor], sp.Classifier, Seen]


@pytest.fixture(scope="module", params=["tiny", VIT])
def adapted(request: pytest.FixtureRequest, zero: sp.Classifier, few: sp.ShiftSuite) -> Adapted:
    """A start, its weights, what LoRA made of it in two steps, and how."""
    tiny_one = request.param == "tiny"
    start = zero if tiny_one else sp.zero_shot_classifier(sp.load_clip(request.param), few.classes)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    suite = few if tiny_one else smaller(few, 4)
    settings = two_steps(
        recipe="lora", lora_rank=RANK, lora_scale=SCALE, lr=1e-2, batch_size=len(suite.reference.train) // 2
    )
    with pytest.MonkeyPatch.context() as patched:
        result = watch(patched)
        tuned = sp.finetune(start, suite, settings)
    return start, before, tuned, result


def test_lora_trains_adapters_and_all_of_them(adapted: Adapted) -> None:
    start, _, _, seen = adapted
    places = {name.removesuffix(".in_proj_weight").removesuffix(".weight") for name in matrices(start.network.encoder)}
    expected = {f"{place}.lora_{side}" for place in places for side in "AB"}
    first, second = seen.gradients
    for result in (*seen.rates, first, second):
        assert unwrapped(result).keys() == expected
    # B begins at 0, so that A's first gradient is 0; after a step all move.
    assert all(bool(gradient.any()) == ("lora_B" in name) for name, gradient in first.items())
    assert all(gradient.any() for gradient in second.values())


def test_under_lora_every_weight_of_the_start_keeps_its_bits(adapted: Adapted) -> None:
    _, before, _, seen = adapted
    for weights in (*seen.before, *seen.after):
        assert differing(before, {n: t for n, t in unwrapped(weights).items() if "lora_" not in n}) == set()


def test_lora_s_adapters_are_merged_by_the_formula(adapted: Adapted) -> None:
    start, before, tuned, seen = adapted
    after, places = tuned.state_dict(), matrices(start.network.encoder)
    assert moved(start, tuned) == set(places)
    assert len(places) in (9, 12 * 4)
    adapters = unwrapped(seen.after[-1])
    for name in places:
        place = name.removesuffix(".in_proj_weight").removesuffix(".weight")
        a, b = (adapters[f"{place}.lora_{side}"].double().flatten(1) for side in "AB")
        assert a.shape[0] == b.shape[1] == RANK
        change = (after[name].double() - before[name].double()).flatten(1)
        if name in places[:9]:  # it takes its time
            values = torch.linalg.svdvals(change)
            assert (values[RANK:] < 1e-3 * values[0]).all()
        torch.testing.assert_close(change, SCALE * b @ a, atol=1e-6, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    assert tuned.head == "frozen"
    assert type(tuned.network.encoder) is type(start.network.encoder)


def test_lora_goes_on_after_an_epoch_was_scored(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    tuned = sp.finetune(zero, few, two_steps(recipe="lora", epochs=3, lr=1e-2))
    scores = [entry["validation"] for entry in tuned.training["history"]]
    assert len(scores) == 3
    predictions = sp.predict(tuned, few.reference.validation)
    assert scores[-1] == np.mean(predictions.logits.argmax(1) == predictions.labels)


def test_lora_is_drawn_by_the_seed_and_leaves_the_global_state_alone(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    result = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        original = torch.random.get_rng_state()
        recipe = recipe_of(zero, two_steps(recipe="lora"), zero, seed=seed, device="cpu")
        assert torch.equal(original, torch.random.get_rng_state())
        result.append({name: p.detach() for name, p in recipe.module.named_parameters() if "lora_A" in name})
    assert differing(result[0], result[1]) == set()
    assert differing(result[0], result[2]) == result[0].keys()


def test_lora_leaves_the_statistics_of_batch_norm(few: sp.ShiftSuite) -> None:
    # Nothing but adapters moves: what they are merged into must be what they were trained beside.
    start = two_convolutions(few.classes)
    tuned = sp.finetune(start, few, two_steps(recipe="lora", lr=1e-2))
    assert moved(start, tuned) == {"encoder.3.weight"}


def test_lora_says_where_there_is_nothing_to_adapt(few: sp.ShiftSuite) -> None:
    start = seeded_classifier(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4, few.classes
    )
    with pytest.raises(sp.InputError, match=r"no layer that LoRA could adapt.*finetune\.recipe"):
        sp.finetune(start, few, two_steps(recipe="lora"))


def test_head_only_and_a_frozen_head_share_the_network_between_them(zero: sp.Classifier, tuned_by: Trained) -> None:
    head_only, frozen = tuned_by("head-only"), tuned_by("frozen-head")
    assert moved(zero, head_only) == {"head.weight", "head.bias"}
    assert moved(zero, frozen) == parameters(zero) - {"head.weight", "head.bias"}
    assert (head_only.head, frozen.head) == ("trained", "frozen")


@pytest.mark.parametrize("tower", ["tiny", "vit", "toy"])
def test_norms_and_biases_moves_only_these(zero: sp.Classifier, few: sp.ShiftSuite, tower: str) -> None:
    start = {"tiny": lambda _: zero, "vit": small_transformer, "toy": two_convolutions}[tower](few.classes)
    tuned = sp.finetune(start, few, two_steps(recipe="norms-and-biases"))
    expected = {"head.bias"}
    for place, module in start.network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) or (name in ("bias", "in_proj_bias") and parameter.ndim == 1):
                expected.add(f"{place}.{name}")
    assert moved(start, tuned) & parameters(start) == expected
    if tower == "vit":  # these are no matrices either
        assert not moved(start, tuned) & {"encoder.class_embedding", "encoder.positional_embedding"}
    assert tuned.head == "trained"
