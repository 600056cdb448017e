"""Encoders without text: their own head gives timm's logits, from timm's pixels, and survives a save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.classifiers import logits_of
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range
from shiftproof.models import encoders
from shiftproof.models.classifier import require_same_task
from shiftproof.models.encoders import Encoder, build_encoder, load_encoder, own_class_space, split_head
from shiftproof.models.heads import own_head_classifier

pytestmark = pytest.mark.slow

FAMILIES = [
    "resnet18",
    "vit_tiny_patch16_224",
    "convnext_atto",
    "mobilenetv3_small_050",
    "swin_tiny_patch4_window7_224",
    "test_byobnet",
    "test_efficientnet",
    "test_mambaout",
    "test_maxvit",
    "test_nfnet",
    "test_vit2",
    "test_vit3",
]


@pytest.fixture(scope="module")
def own() -> sp.Classifier:
    """Treat it as immutable."""
    return own_head_classifier(load_encoder("timm:test_resnet", seed=1))


@pytest.fixture
def weightless(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """timm without the network: pretrained weights are random ones; what was asked for is kept."""
    requests = []
    create = timm.create_model

    def recorded(name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        requests.append((name, pretrained))
        return create(name, pretrained=False, **kwargs)

    monkeypatch.setattr(timm, "create_model", recorded)
    return requests


def timms_own(name: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name).eval()


def pictures(classifier: sp.Classifier, count: int = 2) -> Tensor:
    size = classifier.preprocessing.size
    return torch.randn(count, 3, size, size)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_own_head_gives_timms_logits_also_after_a_save(tmp_path: Path, name: str) -> None:
    made = own_head_classifier(load_encoder(f"timm:{name}"))
    images = pictures(made)
    with torch.inference_mode():
        theirs = timms_own(name)
        expected = theirs(images)
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert torch.equal(made.network.features(images), features)
    assert torch.equal(logits_of(made, images), expected)
    assert torch.equal(made.network.head.weight, theirs.get_classifier().weight)
    loaded = sp.load_classifier(sp.save_classifier(made, tmp_path))
    assert torch.equal(logits_of(loaded, images), expected)
    assert loaded == made
    assert not loaded.network.normalised
    assert sp.models.fingerprint(loaded) == sp.models.fingerprint(made)


def test_an_own_head_classifier_is_a_trainable_copy() -> None:
    encoder = load_encoder("timm:test_resnet")
    before = {name: tensor.clone() for name, tensor in encoder.model.state_dict().items()}
    made = own_head_classifier(encoder)
    assert made.head == "own"
    assert (made.prompts, made.logit_scale, made.source) == ((), 1.0, "timm:test_resnet")
    assert all(parameter.requires_grad for parameter in made.network.parameters())
    assert not made.network.training
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in made.network.modules())


def test_only_clips_features_get_length_one(tiny: sp.models.Clip, own: sp.Classifier, tmp_path: Path) -> None:
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"]))
    loaded = sp.load_classifier(sp.save_classifier(zero, tmp_path))
    for classifier in (zero, loaded):
        with torch.inference_mode():
            lengths = classifier.network.features(pictures(zero)).norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(2))
        assert "normalised" not in classifier.architecture
    with torch.inference_mode():
        assert not torch.allclose(own.network.features(pictures(own)).norm(dim=1), torch.ones(2), atol=1e-2)


def test_random_weights_come_from_the_seed_and_leave_the_global_state() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (load_encoder("timm:test_vit", seed=seed).model.state_dict() for seed in (1, 1, 2))
    build_encoder({"library": "timm", "name": "test_vit", "tag": ""})
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not all(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_a_tag_asks_for_its_weights_and_is_kept_for_a_rebuild(
    tmp_path: Path, weightless: list[tuple[str, bool]]
) -> None:
    made = own_head_classifier(load_encoder("timm:test_vit.r160_in1k"))
    assert weightless == [("test_vit.r160_in1k", True)]
    assert made.architecture == {"library": "timm", "name": "test_vit", "tag": "r160_in1k", "normalised": False}
    assert made.source == "timm:test_vit.r160_in1k"
    sp.load_classifier(sp.save_classifier(made, tmp_path))
    assert weightless[1:] == [("test_vit.r160_in1k", False)]


def test_a_tag_decides_the_pixels(weightless: list[tuple[str, bool]]) -> None:
    squashed = load_encoder("timm:tf_efficientnetv2_b3.in21k_ft_in1k").preprocessing
    plain = load_encoder("timm:resnet18.tv_in1k").preprocessing
    assert weightless
    assert (squashed.size, squashed.resize_mode, squashed.crop_share) == (240, "squash", 0.9)
    assert plain == Preprocessing(
        224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear", "shortest", crop_share=0.875
    )


def test_the_classes_of_a_head_are_known_by_their_number() -> None:
    thousand = own_class_space(1000)
    assert (thousand.ids[0], thousand.names[0]) == ("n01440764", "tench, Tinca tinca")
    assert (thousand.ids[999], thousand.names[999]) == ("n15075141", "toilet tissue, toilet paper, bathroom tissue")
    assert [len(own_class_space(n)) for n in (11221, 11821, 21841, 21842, 21843)] == [11221, 11821, 21841, 21842, 21843]
    assert own_class_space(3) == sp.ClassSpace(("0", "1", "2"), ("0", "1", "2"))


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(8, 40),
    mode=st.sampled_from(["center", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    share=st.sampled_from([1.0, 0.875, 0.9, 0.95, 0.96, 0.5, 1.15]),
    seed=st.integers(0, 99),
)
def test_preprocessing_is_timms_own(
    height: int, width: int, size: int, mode: str, interpolation: str, share: float, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    resize_mode = "squash" if mode == "squash" else "shortest"
    wanted = Preprocessing(size, mean, std, interpolation, resize_mode, crop_share=share)
    result = normalise(to_unit_range([resize(pixels, wanted)]), wanted)[0]
    theirs = timm.data.create_transform(
        (3, size, size), interpolation=interpolation, mean=mean, std=std, crop_pct=share, crop_mode=mode
    )
    assert torch.equal(result, theirs(Image.fromarray(pixels)))


def test_an_image_of_the_size_before_the_crop_is_cropped_still() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    result = resize(pixels, Preprocessing(size=224, crop_share=0.875))
    assert np.array_equal(result, pixels[16:240, 16:240])


def test_an_encoders_pixels_are_timms_own() -> None:
    encoder = load_encoder("timm:test_resnet")
    pixels = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(encoder.model))
    result = normalise(to_unit_range([resize(pixels, encoder.preprocessing)]), encoder.preprocessing)[0]
    assert encoder.preprocessing.crop_share == 0.95
    assert torch.equal(result, theirs(Image.fromarray(pixels)))


@pytest.mark.parametrize("share", [0, -1.0, float("nan"), 3.0])
def test_an_impossible_crop_is_refused(share: float) -> None:
    with pytest.raises(sp.InputError, match="crop_share is .*; it must lie between"):
        Preprocessing(crop_share=share)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "must be timm:NAME.TAG"),
        ("timm:resnet81", "Did you mean 'resnet18'"),
        ("timm:vit_base_resnet50_224_in21k", "unknown timm architecture"),  # renamed long ago
        ("timm:resnet18.tv_in1", "no pretrained tag 'tv_in1'. Did you mean 'tv_in1k'"),
        ("timm:", "unknown timm architecture ''"),
    ],
)
def test_an_unknown_encoder_is_an_error_that_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        load_encoder(name)


def test_weights_that_cannot_be_had_are_an_error_at_once() -> None:
    start = time.monotonic()
    with pytest.raises(sp.InputError, match="'timm:test_nfnet.r160_in1k' cannot be loaded .*Check the network"):
        load_encoder("timm:test_nfnet.r160_in1k")
    assert time.monotonic() - start < 30


def test_an_encoder_has_no_zero_shot_head() -> None:
    with pytest.raises(sp.InputError, match="'timm:resnet18' has no text tower.*own_head_classifier"):
        sp.load_clip("timm:resnet18")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"input_size": (3, 32, 64)}, "takes images of 3 x 32 x 64"),
        ({"input_size": (1, 32, 32)}, "takes images of 1 x 32 x 32"),
        ({"crop_mode": "border"}, "crops its images by 'border'"),
    ],
)
def test_pixels_that_cannot_be_made_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: dict[str, object], message: str
) -> None:
    resolve = encoders.resolve_model_data_config
    monkeypatch.setattr(encoders, "resolve_model_data_config", lambda model: resolve(model) | config)
    with pytest.raises(sp.InputError, match=message):
        load_encoder("timm:test_vit")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("levit_128s", "'timm:levit_128s' has no linear head of its own: it ends in several heads: NormLinear"),
        ("eva02_tiny_patch14_224", "it ends in features, without a head"),
        ("resnetv2_18", "it ends in a Conv2d"),
        ("volo_d1_224", "its linear layer is not the last, or reads other features"),
    ],
)
def test_a_model_without_a_linear_head_is_refused(name: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        split_head(load_encoder(f"timm:{name}"))


class Small(nn.Module):
    """timm's protocol on 8 x 8 images; ``between`` stands between the features and the head."""

    def __init__(self, between: nn.Module, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
        self.between = between
        self.fc: nn.Module = nn.Linear(6, 4, bias=bias)
        nn.init.zeros_(self.fc.weight)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int) -> None:
        self.fc, self.between = nn.Identity(), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.between(self.body(images)))


def small(between: nn.Module, bias: bool = True) -> Encoder:
    return Encoder("timm:small", Small(between, bias).eval(), Preprocessing(size=8), {"library": "timm"})


def test_a_head_that_reads_other_features_is_refused_though_its_weights_are_zero() -> None:
    with pytest.raises(sp.InputError, match="reads other features"):
        split_head(small(nn.ReLU()))
    split_head(small(nn.Identity()))


class Doubled(Small):
    """Its logits are not yet its head's."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * (1 if isinstance(self.fc, nn.Identity) else 2)


def test_a_head_that_does_not_end_the_model_is_refused() -> None:
    doubled = dataclasses.replace(small(nn.Identity()), model=Doubled(nn.Identity()).eval())
    with pytest.raises(sp.InputError, match="its linear layer is not the last"):
        split_head(doubled)


def test_a_head_without_a_bias_gets_one_of_zeros() -> None:
    _, head = split_head(small(nn.Identity(), bias=False))
    assert head.bias.tolist() == [0.0] * 4


def test_an_unknown_library_is_an_error() -> None:
    with pytest.raises(sp.InputError, match="unknown library 'tim'.*Did you mean 'timm'"):
        build_encoder({"library": "tim"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "test_vit"}, "name"),
        ({"tag": "r160_in12k"}, "tag"),
        ({"normalised": True}, "normalised"),
        ({"library": "open_clip"}, "library"),
    ],
)
def test_another_architecture_is_another_task(own: sp.Classifier, change: dict[str, object], message: str) -> None:
    require_same_task(own, own.with_weights(own.state_dict()))
    other = dataclasses.replace(own, architecture={**own.architecture, **change})
    with pytest.raises(sp.IncompatibleWeightsError, match=rf"differ in architecture \(.*{message}"):
        require_same_task(own, other)


def test_a_timm_model_and_clip_are_no_pair(tiny: sp.models.Clip, own: sp.Classifier) -> None:
    zero = dataclasses.replace(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["a", "b"])), classes=own.classes)
    for first, second in ((own, zero), (zero, own)):
        with pytest.raises(sp.IncompatibleWeightsError, match="library, embed_dim"):
            require_same_task(first, second)


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, "first"), (1.0, "second")])
def test_own_heads_are_ensembled_in_weight_space(
    tmp_path: Path, own: sp.Classifier, alpha: float, expected: str
) -> None:
    other = own_head_classifier(load_encoder("timm:test_resnet", seed=2))
    images = pictures(own)
    loaded = sp.load_classifier(sp.save_classifier(sp.wise_ft(own, other, alpha), tmp_path))
    wanted: Callable[[Tensor], Tensor] = (own if expected == "first" else other).network
    with torch.inference_mode():
        assert torch.equal(loaded.network(images), wanted(images))
