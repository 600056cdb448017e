"""Layers: rates that fall with depth, locked layers and norms."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy

import pytest
import timm
import torch
from support.recipes import Seen, moved, parameters, small_transformer, two_convolutions, two_steps
from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm
from torch import nn

import shiftproof as sp
from shiftproof.finetuning import recipes
from shiftproof.finetuning.depths import decayed_groups, lock_layers
from shiftproof.models.classifier import Network
from shiftproof.training.engine import cosine_with_warmup

pytestmark = pytest.mark.slow

TINY_DEPTHS = {
    "encoder.trunk.stem.0": 6,
    "encoder.trunk.stem.1": 5,
    "encoder.trunk.blocks.0": 4,
    "encoder.trunk.blocks.1": 3,
    "encoder.trunk.blocks.2": 2,
    "encoder.head.proj": 1,
    "head": 0,
}
VIT_DEPTHS = {
    "encoder.class_embedding": 4,
    "encoder.positional_embedding": 4,
    "encoder.conv1": 4,
    "encoder.ln_pre": 4,
    "encoder.transformer.resblocks.0": 3,
    "encoder.transformer.resblocks.1": 2,
    "encoder.ln_post": 1,
    "encoder.proj": 1,
    "head": 0,
}


def below(names: set[str], places: Mapping[str, int]) -> dict[str, int]:
    """How many layers every parameter is below the head."""
    result = {}
    for name in names:
        (result[name],) = {depth for place, depth in places.items() if name == place or name.startswith(f"{place}.")}
    return result


@pytest.mark.parametrize(("tower", "places"), [("tiny", TINY_DEPTHS), ("vit", VIT_DEPTHS)])
def test_the_rate_falls_from_layer_to_layer(
    zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen, tower: str, places: dict[str, int]
) -> None:
    start = zero if tower == "tiny" else small_transformer(few.classes)
    sp.finetune(start, few, two_steps(layer_decay=0.5, lr=1e-3, weight_decay=0.3))
    depth = below(parameters(start), places)
    for step, (rates, decays) in enumerate(zip(seen.rates, seen.decays, strict=True)):
        peak = 1e-3 * cosine_with_warmup(step, 2, 0)
        assert rates == pytest.approx({name: peak * 0.5 ** depth[name] for name in depth})
        matrix = {name: tensor.ndim >= 2 for name, tensor in start.state_dict().items()}
        assert decays == {name: 0.3 if matrix[name] else 0.0 for name in depth}


def test_layers_fall_within_a_timm_transformer_too(few: sp.ShiftSuite) -> None:

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, embed_dim=12, num_heads=2, num_classes=0)
    network = Network(nn.ModuleDict({"trunk": model, "head": nn.Linear(12, 8)}), nn.Linear(8, 12))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    shares = {names[id(p)]: group["lr_share"] for group in decayed_groups(network, 0.1, 0.5) for p in group["params"]}
    places = {f"encoder.trunk.{name}": 4 for name in ("cls_token", "pos_embed", "patch_embed")}
    # timm counts the last norm to the last block.
    places |= {"encoder.trunk.blocks.0": 3, "encoder.trunk.blocks.1": 2, "encoder.trunk.norm": 2}
    places |= {"encoder.head": 1, "head": 0}
    assert shares == pytest.approx({name: 0.5**depth for name, depth in below(set(names.values()), places).items()})


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_locked_layers_of_a_transformer_keep_their_bits(few: sp.ShiftSuite, count: int) -> None:
    start = small_transformer(few.classes)
    tuned = sp.finetune(start, few, two_steps(locked_layers=count))
    depth = below(parameters(start), VIT_DEPTHS)
    assert moved(start, tuned) == {name for name in depth if 4 - depth[name] >= count}


@pytest.mark.parametrize("recipe", ["end-to-end", "frozen-head", "norms-and-biases"])
def test_so_many_locked_layers_stay_and_no_more(few: sp.ShiftSuite, recipe: str) -> None:
    # Of an encoder that begins with a numbered layer, that layer is the lowest.
    start = two_convolutions(few.classes)
    free = sp.finetune(start, few, two_steps(recipe=recipe))
    locked = sp.finetune(start, few, two_steps(recipe=recipe, locked_layers=1))
    assert moved(start, free) - moved(start, locked) == {
        name for name in moved(start, free) if name.startswith("encoder.0.")
    }
    both = sp.finetune(start, few, two_steps(recipe=recipe, locked_layers=2))
    # Its statistics are locked, too.
    assert not {name for name in moved(start, both) if name.startswith(("encoder.0.", "encoder.1."))}
    assert {"encoder.4.weight", "encoder.4.running_mean"} <= moved(start, both)


def test_what_stands_above_locked_layers_goes_on_training() -> None:
    class Tower(nn.Module):
        """Its own parameter is of layer 0, which says nothing of what is in it."""

        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(4))
            block = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
            self.blocks = nn.ModuleList(nn.Sequential(*deepcopy(block)) for _ in range(3))
            self.dropout = nn.Dropout(0.5)

    network = Network(Tower(), nn.Linear(4, 2))
    lock_layers(network, 2)
    network.train()
    training = {name for name, module in network.encoder.named_modules() if name and module.training}
    locked = {name for name, _ in network.encoder.named_modules() if name.startswith("blocks.0")}
    assert len(locked) == 4
    assert training == {name for name, _ in network.encoder.named_modules() if name} - locked
    assert not network.encoder.token.requires_grad


def test_norms_of_every_name_move() -> None:
    layers = RmsNorm(4), BatchNormAct2d(4), LayerNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 4, bias=False)
    network = Network(nn.Sequential(*layers), nn.Linear(4, 2))
    recipes._only_norms_and_biases(network)
    still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert still == {"encoder.4.weight", "head.weight"}


def test_more_locked_layers_than_there_are_is_an_error(few: sp.ShiftSuite) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.locked_layers is 9; the encoder has 4 layers"):
        sp.finetune(small_transformer(few.classes), few, two_steps(locked_layers=9))
    tuned = sp.finetune(small_transformer(few.classes), few, two_steps(locked_layers=4))
    assert moved(small_transformer(few.classes), tuned) == {"head.weight", "head.bias"}


def test_a_network_without_anything_to_train_is_refused(few: sp.ShiftSuite) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.locked_layers"):
        sp.finetune(small_transformer(few.classes), few, two_steps(recipe="frozen-head", locked_layers=4))
