"""What fine-tuning moves and what it leaves, and what its seed decides."""

from __future__ import annotations

import pytest
import torch
from support.classifiers import weight_bytes
from support.squares import CLASSES, SUITE, closed_suite, fraction_right, square_classifier, squares, two_epochs

import shiftproof as sp


def test_head_only_keeps_every_bit_of_the_encoder() -> None:
    start = square_classifier()
    tuned = sp.finetune(start, SUITE, two_epochs(recipe="head-only"))
    before, after = weight_bytes(start), weight_bytes(tuned)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"head.weight", "head.bias"}


def test_end_to_end_moves_the_encoder_and_its_statistics() -> None:
    start = square_classifier()
    tuned = sp.finetune(start, SUITE, two_epochs())
    before, after = weight_bytes(start), weight_bytes(tuned)
    assert {name for name in before if before[name] == after[name]} == set()


@pytest.mark.slow
def test_end_to_end_learns_the_reference(tiny: sp.models.Clip) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    tuned = sp.finetune(start, SUITE, two_epochs(epochs=6, lr=1e-3))
    train, validation = SUITE.reference.train, SUITE.reference.validation
    assert fraction_right(tuned, train) >= fraction_right(start, train) + 0.2
    assert fraction_right(tuned, validation) >= 0.9


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only"])
def test_the_start_stays_as_it_was(recipe: str) -> None:
    start = square_classifier()
    before, network = weight_bytes(start), start.network
    trainable = [p.requires_grad for p in network.parameters()]
    sp.finetune(start, SUITE, two_epochs(recipe=recipe))
    assert weight_bytes(start) == before
    assert start.network is network
    assert [p.requires_grad for p in network.parameters()] == trainable
    assert all(p.grad is None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    # A frozen start could not be trained again; this one can.
    network.train()
    assert all(module.training for module in network.modules())


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (sp.finetune(square_classifier(), SUITE, two_epochs(), seed=seed) for seed in (0, 0, 1))
    assert weight_bytes(first) == weight_bytes(again)
    assert first.training == again.training
    assert weight_bytes(first)["head.weight"] != weight_bytes(other)["head.weight"]


def test_the_seed_decides_the_order() -> None:
    # Crops of an image of one colour are all alike, so that nothing but the order is left to differ.
    suite = closed_suite(squares("train", 6, 0, noise=0), SUITE.reference.validation)
    first, other = (sp.finetune(square_classifier(), suite, two_epochs(batch_size=5), seed=seed) for seed in (0, 1))
    moved = first.state_dict()["head.weight"] - other.state_dict()["head.weight"]
    assert moved.abs().max() > 1e-4


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = sp.finetune(square_classifier(), SUITE, two_epochs())
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = sp.finetune(square_classifier(), SUITE, two_epochs())
    assert weight_bytes(first) == weight_bytes(second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_it_is_returned_ready_to_predict_and_says_where_it_comes_from() -> None:
    start = square_classifier()
    tuned = sp.finetune(start, SUITE, two_epochs(), seed=3)
    assert not any(module.training for module in tuned.network.modules())
    assert tuned.head == "trained"
    assert tuned.alpha is None
    assert tuned.training["seed"] == 3
    assert tuned.training["settings"]["lr"] == 1e-2
    assert [(p["role"], p["fingerprint"]) for p in tuned.parents] == [("start", sp.models.fingerprint(start))]


def test_neither_a_shift_nor_the_test_split_is_read() -> None:
    for images in SUITE.test_sets.values():
        with pytest.raises(AssertionError, match="was read"):
            sp.predict(square_classifier(), images)
    sp.finetune(square_classifier(), SUITE, two_epochs())
