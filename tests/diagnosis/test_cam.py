"""Class activation maps: exact CAM against its formula, Grad-CAM against gradients by hand, nothing left behind."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.diagnosis.cam import class_activation_map, class_evidence, map_kind, scale_to_one
from shiftproof.models.classifier import Network
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier

SPACE = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
CLASSES = torch.tensor([2, 0])


def classifier_of(encoder: nn.Module, features: int, size: int = 64, normalised: bool = True) -> sp.Classifier:
    head = nn.Linear(features, len(SPACE))
    network = Network(encoder, head, normalised).eval()
    return sp.Classifier(network, SPACE, Preprocessing(size=size), {}, "one's own", (), "trained", 1.0)


def timm_classifier(name: str) -> sp.Classifier:
    return own_head_classifier(load_encoder(f"timm:{name}"))


def tower(**changes: Any) -> sp.Classifier:
    """The tiny tower as open_clip wraps it, with other ends."""
    made = TimmModel("shiftproof_tiny", 16, **({"image_size": 64, "pool": "avg", "proj": "linear"} | changes))
    for parameter in made.parameters():  # biases start at zero, where an error would not show
        nn.init.normal_(parameter, std=0.1)
    return classifier_of(made, 16)


def two_layers() -> sp.Classifier:
    """Two linear maps with biases between the mean and the features."""
    made = tower(proj_bias=True)
    made.network.encoder.trunk.reset_classifier(192)
    nn.init.normal_(made.network.encoder.trunk.fc.bias)
    return made


def small_transformer(**changes: Any) -> VisionTransformer:
    given = {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "heads": 2, "mlp_ratio": 2, "output_dim": 16}
    return VisionTransformer(**(given | changes))


def resnet() -> ModifiedResNet:
    made = ModifiedResNet((1, 1, 1, 1), 16, 4, image_size=64, width=8)
    for parameter in made.attnpool.parameters():  # nearly uniform attention has nearly no gradient
        nn.init.normal_(parameter)
    return made


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip) -> sp.Classifier:
    """Treat it as immutable."""
    return sp.zero_shot_classifier(tiny, SPACE)


def images_of(classifier: sp.Classifier, count: int = 2) -> Tensor:
    size = classifier.preprocessing.size
    return torch.randn(count, 3, size, size)


def class_logits(classifier: sp.Classifier, images: Tensor, classes: Tensor) -> Tensor:
    with torch.inference_mode():
        return classifier.network(images)[torch.arange(len(images)), classes]


def enlarged(maps: Tensor, images: Tensor) -> Tensor:
    return functional.interpolate(maps.relu()[:, None], images.shape[2:], mode="bilinear")[:, 0]


# ---- exact CAM


def slow_evidence(network: Network, image: Tensor, k: int) -> list[list[float]]:
    """Zhou et al., Eq. 2, on a projected and normalised mean, with one sum at a time."""
    with torch.inference_mode():
        places = network.encoder.trunk.forward_features(image[None])[0].double().tolist()
    projection = network.encoder.head.proj.weight.double().tolist()
    row = network.head.weight[k].double().tolist()
    means = [math.fsum(x for line in channel for x in line) / 64 for channel in places]
    embedding = [math.fsum(p * m for p, m in zip(line, means, strict=True)) for line in projection]
    length = math.sqrt(math.fsum(x * x for x in embedding))
    weights = [math.fsum(w * line[c] for w, line in zip(row, projection, strict=True)) for c in range(len(means))]
    return [
        [math.fsum(w * channel[i][j] for w, channel in zip(weights, places, strict=True)) / length for j in range(8)]
        for i in range(8)
    ]


def slow_enlarged(grid: list[list[float]], size: int) -> list[list[float]]:
    """Bilinear between the places' centres, the edge carried on."""

    def parts(pixel: int) -> tuple[int, int, float]:
        at = min(max((pixel + 0.5) * len(grid) / size - 0.5, 0), len(grid) - 1)
        return int(at), min(int(at) + 1, len(grid) - 1), at - int(at)

    clipped = [[max(x, 0.0) for x in line] for line in grid]
    rows = []
    for y in range(size):
        top, bottom, v = parts(y)
        across = [(1 - v) * a + v * b for a, b in zip(clipped[top], clipped[bottom], strict=True)]
        rows.append([(1 - u) * across[left] + u * across[right] for left, right, u in map(parts, range(size))])
    return rows


def test_the_map_is_the_papers_formula(zero: sp.Classifier) -> None:
    images = images_of(zero)
    heat_map = class_activation_map(zero, images, CLASSES, method="cam")
    evidence = class_evidence(zero, images, CLASSES)
    assert heat_map.shape == (2, 64, 64)
    assert heat_map.dtype == torch.float32
    for b, k in enumerate(CLASSES.tolist()):
        slow = slow_evidence(zero.network, images[b], k)
        torch.testing.assert_close(evidence.maps[b], torch.tensor(slow), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(heat_map[b], torch.tensor(slow_enlarged(slow, 64)), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: tower(),
        lambda: tower(proj_bias=True),
        lambda: tower(drop=0.5),
        lambda: tower(proj=""),
        lambda: two_layers(),
        lambda: timm_classifier("resnet18"),
        lambda: timm_classifier("swin_tiny_patch4_window7_224"),
        lambda: timm_classifier("test_efficientnet"),
        lambda: timm_classifier("test_nfnet"),
        lambda: timm_classifier("mixer_s32_224"),
        lambda: timm_classifier("regnetx_002"),
    ],
)
def test_the_mean_of_the_evidence_and_its_bias_are_the_logit(make: Callable[[], sp.Classifier]) -> None:
    classifier = make()
    nn.init.normal_(classifier.network.head.weight)  # some start at zero
    nn.init.normal_(classifier.network.head.bias)
    images = images_of(classifier)
    assert map_kind(classifier) == "cam"
    evidence = class_evidence(classifier, images, CLASSES)
    assert evidence.maps.min() < 0 < evidence.maps.max()
    expected = class_logits(classifier, images, CLASSES)
    torch.testing.assert_close(evidence.maps.mean((1, 2)) + evidence.bias, expected, rtol=1e-4, atol=1e-4)
    maps = class_activation_map(classifier, images, CLASSES)
    torch.testing.assert_close(maps, enlarged(evidence.maps, images))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: tower(proj="mlp"),
        lambda: timm_classifier("test_convnext"),  # a norm behind the mean
        lambda: timm_classifier("mobilenetv3_small_050"),  # a convolution behind it
        lambda: timm_classifier("test_vit2"),  # tokens averaged, then a norm
        lambda: timm_classifier("test_vit"),
        lambda: timm_classifier("test_vit3"),  # attention pooling
        lambda: classifier_of(timm.create_model("test_resnet", num_classes=0, global_pool="max"), 96, 160),
        lambda: classifier_of(small_transformer(), 16, 32),
        lambda: classifier_of(resnet(), 16),
    ],
)
@pytest.mark.parametrize("blank", [True, False])
def test_where_the_end_is_not_linear_in_a_mean_there_is_no_exact_map(
    make: Callable[[], sp.Classifier], blank: bool
) -> None:
    classifier = make()
    images = images_of(classifier)
    images = torch.zeros_like(images) if blank else images
    assert map_kind(classifier) == "grad-cam"
    with pytest.raises(sp.InputError, match="CAM is exact only .*method='grad-cam'"):
        class_activation_map(classifier, images, CLASSES, method="cam")
    with pytest.raises(sp.InputError, match="CAM is exact only"):
        class_evidence(classifier, images, CLASSES)
    maps = class_activation_map(classifier, images, CLASSES)
    assert maps.shape == (2, *images.shape[2:])
    assert maps.isfinite().all()
    assert maps.min() >= 0
    assert maps.equal(class_activation_map(classifier, images, CLASSES, method="grad-cam"))


class Colours(nn.Module):
    """timm's protocol, knowing no more than colours: its last map is the image, 8 times smaller."""

    def __init__(self, last: bool = False, channels: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)
        self.channels = channels
        self.output_fmt = "NHWC" if last else "NCHW"

    def get_classifier(self) -> nn.Module:
        return nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        found = self.pool(images).repeat(1, 3, 1, 1)[:, : self.channels]
        return found.permute(0, 2, 3, 1) if self.output_fmt == "NHWC" else found

    def forward_head(self, places: Tensor) -> Tensor:
        return places.mean((1, 2) if self.output_fmt == "NHWC" else (2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("channels", [3, 8])  # with 8 the map is a cube, which only the model can tell
@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_evidence_is_found_where_it_was_planted(last: bool, channels: int, method: str) -> None:
    classifier = classifier_of(Colours(last, channels), channels, normalised=False)
    with torch.no_grad():
        classifier.network.head.weight.copy_(torch.eye(3, channels))
    images = torch.zeros(2, 3, 64, 64)
    images[0, 2, 8:16, 40:48] = 1  # class 2 is the third colour
    images[1, 0, 56:64, 0:8] = 1
    maps = class_activation_map(classifier, images, CLASSES, method=method)
    assert divmod(maps[0].argmax().item(), 64) == pytest.approx((11.5, 43.5), abs=1)
    assert divmod(maps[1].argmax().item(), 64) == pytest.approx((60, 3.5), abs=4)
    assert not maps[0, 32:].any()
    assert not maps[1, :40].any()
    assert not class_activation_map(classifier, images, torch.tensor([1, 1]), method=method).any()


# ---- Grad-CAM


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "test_efficientnet"])
def test_grad_cam_is_exact_cam_where_the_head_is_linear_on_the_mean(name: str) -> None:
    classifier = timm_classifier(name)
    nn.init.normal_(classifier.network.head.weight)
    images = images_of(classifier)
    exact = class_activation_map(classifier, images, CLASSES, method="cam")
    heat_map = class_activation_map(classifier, images, CLASSES, method="grad-cam")
    assert exact.any()
    places = class_evidence(classifier, images, CLASSES).maps[0].numel()
    torch.testing.assert_close(heat_map * places, exact, rtol=1e-3, atol=1e-4)


def by_hand(
    classifier: sp.Classifier, module: nn.Module, images: Tensor, to_grid: Callable[[Tensor], Tensor]
) -> Tensor:
    """Selvaraju et al., Eq. 1 and 2, with a hook of the test's own."""
    saved: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        output.retain_grad()
        saved.append(output)

    handle = module.register_forward_hook(keep)
    logits = classifier.network(images)
    handle.remove()
    logits[torch.arange(len(images)), CLASSES].sum().backward()
    places, gradient = to_grid(saved[0].detach()), to_grid(saved[0].grad)
    assert gradient.any()
    return enlarged((gradient.mean((2, 3), keepdim=True) * places).sum(1), images)


def grid(prefix: int, rows: int, columns: int) -> Callable[[Tensor], Tensor]:
    return lambda tokens: torch.stack(
        [tokens[:, prefix + i * columns : prefix + (i + 1) * columns] for i in range(rows)], 1
    ).permute(0, 3, 1, 2)


def with_trained_head(classifier: sp.Classifier) -> sp.Classifier:
    nn.init.normal_(classifier.network.head.weight)
    return classifier


@pytest.mark.parametrize(
    ("encoder", "image_size", "module", "to_grid"),
    [
        (lambda: small_transformer(), (32, 32), "transformer.resblocks.2.ln_1", grid(1, 4, 4)),
        (lambda: small_transformer(image_size=(32, 48)), (32, 48), "transformer.resblocks.2.ln_1", grid(1, 4, 6)),
        (lambda: small_transformer(patch_size=(4, 16)), (32, 32), "transformer.resblocks.2.ln_1", grid(1, 8, 2)),
        (lambda: small_transformer(pool_type="avg"), (32, 32), "transformer.resblocks.2.ln_1", grid(1, 4, 4)),
        (lambda: timm_vit(img_size=32), (32, 32), "blocks.5.norm1", grid(1, 2, 2)),
        (lambda: timm_vit(img_size=(32, 48)), (32, 48), "blocks.5.norm1", grid(1, 2, 3)),
        (lambda: timm_vit(img_size=64, reg_tokens=4), (64, 64), "blocks.5.norm1", grid(5, 4, 4)),
        # As many patches as the usual image has, but otherwise laid out.
        (lambda: timm_vit(dynamic_img_size=True, img_size=64), (32, 128), "blocks.5.norm1", grid(1, 2, 8)),
        (lambda: timm_vit(class_token=False, global_pool="avg"), (160, 160), "blocks.5.norm1", grid(0, 10, 10)),
        (lambda: resnet(), (64, 64), "layer4", lambda places: places),
    ],
)
def test_grad_cam_is_the_gradient_by_hand(
    encoder: Callable[[], nn.Module], image_size: tuple[int, int], module: str, to_grid: Callable[[Tensor], Tensor]
) -> None:
    made = encoder().eval()
    classifier = with_trained_head(classifier_of(made, 16 if hasattr(made, "output_dim") else 64, image_size[0]))
    images = torch.randn(2, 3, *image_size)
    expected = by_hand(classifier, made.get_submodule(module), images, to_grid)
    heat_map = class_activation_map(classifier, images, CLASSES, method="grad-cam")
    assert heat_map.any()
    torch.testing.assert_close(heat_map, expected, rtol=1e-3, atol=1e-3 * expected.max().item())
    named = class_activation_map(classifier, images, CLASSES, layer=f"encoder.{module}")
    torch.testing.assert_close(named, heat_map)


def timm_vit(**changes: Any) -> Any:
    return timm.create_model("test_vit", num_classes=0, **changes)


def test_grad_cam_on_the_tiny_model_reads_its_last_map(zero: sp.Classifier) -> None:
    images = images_of(zero)
    last = zero.network.encoder.trunk.blocks[-1]
    expected = by_hand(zero, last, images, lambda places: places)
    heat_map = class_activation_map(zero, images, CLASSES, method="grad-cam")
    torch.testing.assert_close(heat_map, expected, rtol=1e-3, atol=1e-6)
    named = class_activation_map(zero, images, CLASSES, layer="encoder.trunk.blocks.2")
    torch.testing.assert_close(named, heat_map)
    for parameter in zero.network.parameters():
        parameter.grad = None


@pytest.mark.slow
def test_any_layer_with_a_map_can_be_named() -> None:
    classifier = timm_classifier("resnet18")
    images = images_of(classifier)
    coarse = class_activation_map(classifier, images, CLASSES, layer="encoder.layer4")
    torch.testing.assert_close(coarse, class_activation_map(classifier, images, CLASSES, method="grad-cam"))
    fine = class_activation_map(classifier, images, CLASSES, layer="encoder.layer2")
    assert not torch.allclose(fine, coarse)


@pytest.mark.slow
def test_an_open_clip_model_from_its_name_has_maps() -> None:
    name = "open_clip:ViT-S-32-alt"
    assert name.removeprefix("open_clip:") in open_clip.list_models()
    classifier = sp.zero_shot_classifier(sp.load_clip(name), SPACE)
    images = images_of(classifier)
    assert map_kind(classifier) == "grad-cam"
    maps = class_activation_map(classifier, images, CLASSES)
    assert maps.shape == (2, 224, 224)
    assert maps.any()


# ---- what both keep


def state_of(classifier: sp.Classifier) -> dict[str, object]:
    network = classifier.network
    return {
        "weights": {name: tensor.clone() for name, tensor in network.state_dict().items()},
        "trainable": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in network.parameters()],
        "modes": [module.training for module in network.modules()],
        "hooks": [
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()
        ],
        "names": [sorted(vars(module)) for module in network.modules()],
        "grad_mode": torch.is_grad_enabled(),
    }


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_nothing_is_left_behind(method: str) -> None:
    classifier = timm_classifier("test_resnet")  # batch norm, whose statistics move in training mode
    images = images_of(classifier)
    expected = class_activation_map(classifier, images, CLASSES, method=method)
    network = classifier.network.train()
    network.encoder.layer2.eval()
    network.head.requires_grad_(False)
    network.head.weight.grad = torch.ones_like(network.head.weight)
    before, pixels = state_of(classifier), images.clone()
    heat_map = class_activation_map(classifier, images, CLASSES, method=method)
    assert torch.equal(heat_map, expected)
    with pytest.raises(sp.InputError):
        class_activation_map(classifier, images, CLASSES, layer="head")
    map_kind(classifier)
    assert same(state_of(classifier), before)
    assert torch.equal(images, pixels)
    assert images.grad is None
    assert not images.requires_grad
    assert not heat_map.requires_grad


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_a_frozen_model_and_a_callers_inference_mode_make_no_difference(method: str) -> None:
    classifier = timm_classifier("test_resnet")
    images = images_of(classifier)
    expected = class_activation_map(classifier, images, CLASSES, method=method)
    classifier.network.requires_grad_(False)
    assert torch.equal(class_activation_map(classifier, images, CLASSES, method=method), expected)
    with torch.no_grad():
        assert torch.equal(class_activation_map(classifier, images, CLASSES, method=method), expected)
    with torch.inference_mode():
        inside = timm_classifier("test_resnet")
        assert torch.equal(class_activation_map(inside, images + 0, CLASSES + 0, method=method), expected)
        assert torch.is_inference_mode_enabled()


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_an_image_gets_its_map_whatever_stands_beside_it(method: str) -> None:
    classifier = timm_classifier("test_resnet")
    images = images_of(classifier, 3)
    together = class_activation_map(classifier, images, torch.tensor([2, 0, 7]), method=method)
    alone = class_activation_map(classifier, images[1:2], torch.tensor([0]), method=method)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_other_dtypes_are_worked_out_in_float32(dtype: torch.dtype, method: str) -> None:
    classifier = timm_classifier("test_resnet")
    images = images_of(classifier)
    expected = class_activation_map(classifier, images, CLASSES, method=method)
    classifier.network.to(dtype)
    heat_map = class_activation_map(classifier, images.to(dtype), CLASSES.int(), method=method)
    assert heat_map.dtype == torch.float32
    assert next(classifier.network.parameters()).dtype == dtype
    torch.testing.assert_close(heat_map, expected, rtol=0.1, atol=0.05 * expected.max().item())


@pytest.mark.parametrize("method", ["cam", "grad-cam"])
def test_evidence_against_a_class_is_an_empty_map(method: str) -> None:
    classifier = timm_classifier("test_resnet")  # its features are not negative
    nn.init.constant_(classifier.network.head.weight, -1)
    maps = class_activation_map(classifier, images_of(classifier), CLASSES, method=method)
    assert not maps.any()
    assert torch.equal(scale_to_one(maps), maps)


def test_maps_are_scaled_one_by_one() -> None:
    maps = torch.rand(3, 4, 5) * torch.tensor([1e-30, 1.0, 1e30]).view(3, 1, 1)
    result = scale_to_one(maps)
    assert result.amax((1, 2)).tolist() == [1.0, 1.0, 1.0]
    torch.testing.assert_close(result[1] * maps[1].max(), maps[1])


# ---- errors


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (torch.zeros(2, 64, 64, 3), CLASSES, r"images are \(2, 64, 64, 3\)"),
        (torch.zeros(3, 64, 64), CLASSES, "must be .B, 3, H, W. floats"),
        (torch.zeros(0, 3, 64, 64), torch.zeros(0, dtype=torch.long), r"images are \(0, 3"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), CLASSES, "uint8; they must be"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0]), r"classes are \(1,\).*must be 2 integers"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([[0], [1]]), r"classes are \(2, 1\)"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0.0, 1.0]), "float32; they must be 2 integers"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([True, False]), "bool; they must be"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([0, 3]), r"range from 0 to 3; they must be in 0..2"),
        (torch.zeros(2, 3, 64, 64), torch.tensor([-1, 0]), "range from -1 to 0"),
    ],
)
def test_wrong_images_and_classes_are_refused(
    zero: sp.Classifier, images: Tensor, classes: Tensor, message: str
) -> None:
    for run in (class_activation_map, class_evidence):
        with pytest.raises(sp.InputError, match=message):
            run(zero, images, classes)


def test_an_image_size_that_the_model_does_not_take_is_told() -> None:
    classifier = classifier_of(timm_vit(img_size=32, dynamic_img_size=False).eval(), 64, 32)
    with pytest.raises(sp.InputError, match="does not accept images of 48 x 32 .*Give it 32 x 32"):
        class_activation_map(classifier, torch.zeros(2, 3, 48, 32), CLASSES)


def test_a_convolutional_model_takes_any_size(zero: sp.Classifier) -> None:
    images = torch.randn(2, 3, 96, 48)
    assert class_activation_map(zero, images, CLASSES).shape == (2, 96, 48)
    evidence = class_evidence(zero, images, CLASSES)
    assert evidence.maps.shape == (2, 12, 6)
    expected = class_logits(zero, images, CLASSES)
    torch.testing.assert_close(evidence.maps.mean((1, 2)) + evidence.bias, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "gradcam"}, "Did you mean 'grad-cam'"),
        ({"method": "cam", "layer": "encoder.norm"}, "'encoder.norm' is for Grad-CAM"),
        ({"layer": "encoder.blocks.5.norm"}, "no layer 'encoder.blocks.5.norm'. Did you mean 'encoder.blocks.5.norm"),
        ({"layer": ""}, "no layer ''"),
        ({"layer": "encoder"}, r"returns \(2, 64\)"),
        ({"layer": "encoder.norm"}, "depend only on the class token of this layer"),
        ({"layer": "encoder.blocks.5"}, "depend only on the class token of this layer"),
        ({"layer": "twice"}, "runs 2 times and gets 2 gradients"),
        ({"layer": "never"}, "runs 0 times and gets 0 gradients"),
    ],
)
def test_a_layer_that_does_not_do_is_an_error(options: dict[str, str], message: str) -> None:
    classifier = classifier_of(timm_vit(img_size=32).eval(), 64, 32)
    network = classifier.network
    network.never, network.twice = nn.Identity(), network.encoder.blocks[0].norm1
    network.encoder.blocks[1].norm1 = network.twice
    with pytest.raises(sp.InputError, match=message):
        class_activation_map(classifier, torch.randn(2, 3, 32, 32), CLASSES, **options)


def test_an_unknown_architecture_wants_a_layer() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(2), nn.Flatten())
    classifier = classifier_of(body, 32, 16)
    images = images_of(classifier)
    for run in (lambda: class_activation_map(classifier, images, CLASSES), lambda: map_kind(classifier)):
        with pytest.raises(sp.InputError, match="Sequential is unknown.*'encoder.NAME' with NAME one of '0', '1'"):
            run()
    heat_map = class_activation_map(classifier, images, CLASSES, layer="encoder.1")
    body[1] = nn.ReLU()
    expected = by_hand(classifier, body[1], images, lambda places: places)
    torch.testing.assert_close(heat_map, expected, rtol=1e-4, atol=1e-6)


def test_a_layer_is_explained_as_it_was_before_the_next_one_changed_it() -> None:
    body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveMaxPool2d(2), nn.Flatten())
    classifier = classifier_of(body, 32, 16)
    images = images_of(classifier)
    heat_map = class_activation_map(classifier, images, CLASSES, layer="encoder.0")
    body[1] = nn.ReLU()
    expected = by_hand(classifier, body[0], images, lambda places: places)
    torch.testing.assert_close(heat_map, expected, rtol=1e-4, atol=1e-6)


def test_tokens_that_fill_no_grid_are_told() -> None:
    body = nn.Sequential(nn.Conv2d(3, 12, 4, 4), nn.Flatten(2), nn.Linear(16, 8), nn.Flatten())
    classifier = classifier_of(body, 96, 16)
    with pytest.raises(sp.InputError, match="12 tokens do not fill a grid"):  # 3 x 4 has not a square's proportions
        class_activation_map(classifier, images_of(classifier), CLASSES, layer="encoder.2")


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, zero: sp.Classifier) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    images = images_of(zero)
    with pytest.raises(sp.InputError, match=r"Grad-CAM needs .*pip install 'shiftproof\[cam\]'"):
        class_activation_map(zero, images, CLASSES, method="grad-cam")
    assert class_activation_map(zero, images, CLASSES).any()  # exact CAM does without
