"""The layers of encoders: timm's own groups where there are some, numbered blocks elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from timm.models import group_parameters
from torch import nn

import shiftproof as sp
from shiftproof.finetuning.depths import has_timm_layers, parameter_depths
from shiftproof.models.classifier import Network
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier

CLASSES = sp.ClassSpace.from_ids(["lemon", "pear"])


def network_of(name: str) -> Network:
    if name.startswith("timm:"):
        return own_head_classifier(load_encoder(name)).network
    return sp.zero_shot_classifier(sp.load_clip(name), CLASSES).network


@pytest.mark.parametrize("name", ["timm:test_vit", "timm:test_resnet", "timm:test_convnext", "timm:regnety_002"])
def test_the_layers_of_a_timm_model_are_timms_own(name: str) -> None:
    network = network_of(name)
    expected = group_parameters(network.encoder, network.encoder.group_matcher(), reverse=True)
    depths = parameter_depths(network)
    assert {key.removeprefix("encoder."): depth for key, depth in depths.items() if key.startswith("enc")} == expected
    # A network of blocks without numbers, such as RegNet's s1.b1, must not fall into one layer.
    assert depths["head.weight"] == depths["head.bias"] == max(expected.values()) + 1 > 4


def test_the_layers_of_the_tiny_model_are_its_numbered_blocks(tiny: sp.models.Clip) -> None:
    network = network_of("tiny")
    assert not has_timm_layers(network.encoder)
    depths = parameter_depths(network)
    blocks = [depths[f"encoder.trunk.blocks.{number}.conv1.weight"] for number in range(3)]
    assert blocks == list(range(blocks[0], blocks[0] + 3))
    assert depths["head.weight"] == max(depths.values()) > depths["encoder.head.proj.weight"] > blocks[-1]


@pytest.mark.slow
def test_a_checkpoint_that_counted_other_layers_is_refused(tmp_path: Path, folders: Path) -> None:
    """The parameters of its optimiser are in another order, so resuming it would mix up their moments."""
    suite = sp.own_suite({split: f"folder:{folders / split}" for split in ("train", "validation", "test")}, {})
    start = replace(own_head_classifier(load_encoder("timm:test_resnet")), classes=suite.classes)
    head = {"head.weight": torch.zeros(3, start.network.head.in_features), "head.bias": torch.zeros(3)}
    network = Network(start.network.encoder, nn.Linear(start.network.head.in_features, 3))
    start = replace(start, network=network).with_weights(start.state_dict() | head)
    settings = sp.FinetuneSettings(epochs=1, batch_size=18, layer_decay=0.5)
    sp.finetune(start, suite, settings, checkpoints=tmp_path, device="cpu")
    sp.finetune(start, suite, settings, checkpoints=tmp_path, device="cpu")
    (file,) = tmp_path.glob("step-*/state.json")
    state = json.loads(file.read_text(encoding="utf-8"))
    assert state["origin"].pop("layers") == "timm"
    file.write_text(json.dumps(state), encoding="utf-8")
    with pytest.raises(sp.InputError, match="another training; these differ: 'layers'"):
        sp.finetune(start, suite, settings, checkpoints=tmp_path, device="cpu")


def test_settings_that_count_no_layers_resume_what_an_earlier_version_wrote(tmp_path: Path, folders: Path) -> None:
    suite = sp.own_suite({split: f"folder:{folders / split}" for split in ("train", "validation", "test")}, {})
    start = sp.zero_shot_classifier(sp.load_clip("tiny"), suite.classes)
    sp.finetune(start, suite, sp.FinetuneSettings(epochs=1, batch_size=18), checkpoints=tmp_path, device="cpu")
    (file,) = tmp_path.glob("step-*/state.json")
    assert "layers" not in json.loads(file.read_text(encoding="utf-8"))["origin"]
