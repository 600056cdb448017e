"""torchvision's networks: their logits, pixels and names, after a save too."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from support.classifiers import logits_of
from torch import nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.googlenet import InceptionAux

import shiftproof as sp
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range
from shiftproof.models.classifier import require_same_task
from shiftproof.models.encoders import load_encoder, without_head
from shiftproof.models.heads import own_head_classifier, unlearned_classifier
from shiftproof.models.torchvision_models import preprocessing_of

# Heads of every kind: a bare layer, the last of several, within a block, and beside auxiliary ones.
FAMILIES = ["shufflenet_v2_x0_5", "mobilenet_v3_small", "googlenet"]
ARCHITECTURES = torchvision.models.list_models(module=torchvision.models)


def theirs(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, **options).eval()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_own_head_gives_torchvisions_logits_also_after_a_save(tmp_path: Path, name: str) -> None:
    own = own_head_classifier(load_encoder(f"torchvision:{name}"))
    size = own.preprocessing.size
    images = torch.randn(2, 3, size, size)
    network = theirs(name, **({"init_weights": False, "transform_input": False} if name == "googlenet" else {}))
    with torch.inference_mode():
        expected = network(images)
    torch.testing.assert_close(logits_of(own, images), expected)
    loaded = sp.load_classifier(sp.save_classifier(own, tmp_path))
    assert torch.equal(logits_of(loaded, images), logits_of(own, images))
    assert loaded.architecture == {"library": "torchvision", "name": name, "tag": "", "normalised": False}
    assert own.classes.ids[:2] == ("n01440764", "n01443537")
    assert not any(isinstance(module, InceptionAux) for module in own.network.modules())


def test_a_network_without_a_linear_layer_is_refused() -> None:
    encoder = load_encoder("torchvision:squeezenet1_1")
    for build in (own_head_classifier, without_head):
        with pytest.raises(sp.InputError, match="SqueezeNet has no linear layer"):
            build(encoder)


def test_a_probe_begins_with_a_head_of_zeros() -> None:
    classes = sp.ClassSpace.from_ids(["lemon", "pear"])
    blank = unlearned_classifier(load_encoder("torchvision:resnet18"), classes)
    assert blank.classes == classes
    assert blank.network.head.weight.shape == (2, 512)
    assert not blank.network.head.weight.any() and not blank.network.head.bias.any()
    assert not blank.network.normalised


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pixels_are_resized_to_the_side_that_every_set_of_weights_expects(architecture: str) -> None:
    for weights in get_model_weights(architecture):
        expected = weights.transforms()
        preprocessing = preprocessing_of(architecture, weights.name)
        assert [preprocessing.size] == expected.crop_size
        assert [math.floor(preprocessing.size / preprocessing.crop_share)] == expected.resize_size
        assert preprocessing.resize_mode == "shortest"


@pytest.mark.parametrize(
    "name", ["resnet50.IMAGENET1K_V1", "resnet50.IMAGENET1K_V2", "vit_b_16.IMAGENET1K_SWAG_E2E_V1"]
)
@pytest.mark.parametrize("size", [(500, 375), (300, 301), (200, 640)])
def test_pixels_are_those_of_torchvisions_own_transform(name: str, size: tuple[int, int]) -> None:
    architecture, tag = name.split(".")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    expected = get_model_weights(architecture)[tag].transforms()(image)
    preprocessing = preprocessing_of(architecture, tag)
    made = normalise(to_unit_range([resize(np.asarray(image), preprocessing)]), preprocessing)[0]
    torch.testing.assert_close(made, expected)


def test_a_tag_is_the_name_of_the_weights_and_decides_the_rebuild(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    loaded = []

    def state_dict(weights: WeightsEnum, **_: Any) -> Any:
        loaded.append(str(weights))
        return theirs("mobilenet_v3_small").state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", state_dict)
    encoder = load_encoder("torchvision:mobilenet_v3_small.DEFAULT", random_weights=False)
    assert loaded == ["MobileNet_V3_Small_Weights.IMAGENET1K_V1"]
    assert encoder.architecture["tag"] == "IMAGENET1K_V1"
    own = own_head_classifier(encoder)
    torch.testing.assert_close(own.network.head.weight, theirs("mobilenet_v3_small").classifier[-1].weight)
    sp.load_classifier(sp.save_classifier(own, tmp_path))
    assert len(loaded) == 1
    other = own_head_classifier(load_encoder("torchvision:mobilenet_v3_small"))
    with pytest.raises(sp.IncompatibleWeightsError, match=r"differ in architecture \(tag\)"):
        require_same_task(own, other)


def test_random_weights_come_from_the_seed_and_leave_the_global_state() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        load_encoder("torchvision:shufflenet_v2_x0_5", seed=seed).model.state_dict() for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet81", "unknown torchvision architecture 'resnet81'. Did you mean 'resnet18'"),
        (
            "torchvision:resnet18.IMAGENET1K_V9",
            "no weights 'IMAGENET1K_V9' in torchvision. Did you mean 'IMAGENET1K_V1'",
        ),
        ("torchvision:fcn_resnet50", "unknown torchvision architecture"),
        ("torchvision:mnasnet0_5", "unknown torchvision architecture"),
        ("resnet18", "It must be timm:NAME.TAG.*torchvision:NAME.WEIGHTS.*or lite0"),
    ],
)
def test_an_unknown_name_is_an_error_that_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        load_encoder(name)


def test_a_name_without_a_tag_is_refused_where_weights_are_needed() -> None:
    with pytest.raises(sp.InputError, match=r"random weights.*e\.g\. torchvision:resnet50\.IMAGENET1K_V2"):
        load_encoder("torchvision:resnet50", random_weights=False)


def test_the_default_preprocessing_is_that_of_the_default_weights() -> None:
    expected = Preprocessing(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "shortest", crop_share=224 / 232
    )
    assert load_encoder("torchvision:regnet_y_400mf").preprocessing == expected
