"""Layers compared by CKA, against features taken by hand, whatever the batches; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from open_clip.transformer import Transformer, VisionTransformer
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range
from shiftproof.data.sets import array_set
from shiftproof.diagnosis.cka import CkaTable, linear_cka
from shiftproof.diagnosis.layers import layer_names, measure_layers
from shiftproof.models.classifier import Network
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier
from shiftproof.records.comparisons import LayersRecord
from shiftproof.report.figures import figure_bytes
from shiftproof.report.layers import layers_figure, layers_table, short_names

SPACE = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
N = 11


def classifier_of(encoder: nn.Module, features: int, size: int) -> sp.Classifier:
    network = Network(encoder, nn.Linear(features, len(SPACE))).eval()
    return sp.Classifier(network, SPACE, Preprocessing(size=size), {}, "one's own", (), "trained", 1.0)


def small_transformer(batch_first: bool = True) -> sp.Classifier:
    """Of 17 tokens."""
    made = VisionTransformer(32, 8, width=24, layers=3, heads=2, mlp_ratio=2, output_dim=16)
    made.transformer = Transformer(24, 3, 2, mlp_ratio=2, batch_first=batch_first)
    return classifier_of(made, 16, 32)


def timm_classifier(name: str) -> sp.Classifier:
    made = own_head_classifier(load_encoder(f"timm:{name}"))
    nn.init.normal_(made.network.head.weight, std=0.1)  # some start at zero
    return made


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip) -> sp.Classifier:
    """Treat it as immutable."""
    return sp.zero_shot_classifier(tiny, SPACE)


@pytest.fixture(scope="module")
def images() -> sp.ImageSet:
    """Coloured noise, of which no two images have the same mean."""
    generator = np.random.default_rng(0)
    colours = generator.integers(0, 200, (N, 1, 1, 3)) + generator.integers(0, 56, (N, 40, 40, 3))
    labels = np.arange(N) % len(SPACE)
    return array_set("noise", SPACE, [str(i) for i in range(N)], labels, lambda: colours.astype(np.uint8))


# ---- which layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: small_transformer(), [f"transformer.resblocks.{i}" for i in range(3)]),
        (lambda: timm_classifier("resnet18"), [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]),
        (lambda: timm_classifier("test_vit"), [f"blocks.{i}" for i in range(6)]),
        (lambda: timm_classifier("swin_tiny_patch4_window7_224"), [f"layers.{i}" for i in range(4)]),
        (lambda: timm_classifier("test_convnext"), [f"stages.{i}" for i in range(4)]),
        (lambda: classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2)), 2, 2), "13"),
        (lambda: classifier_of(nn.Flatten(), 12, 2), []),
    ],
)
def test_the_blocks_are_named_in_order_of_depth(make: Callable[[], sp.Classifier], expected: list[str]) -> None:
    *parts, features, logits = layer_names(make())
    assert (features, logits) == ("features", "logits")
    stems = ("conv1", "patch_embed", "stem")
    assert [name.removeprefix("encoder.") for name in parts if not name.endswith(stems)] == list(expected)
    assert len(parts) - len(expected) <= 1


def test_the_tiny_net_is_its_stem_and_blocks(zero: sp.Classifier) -> None:
    expected = ("stem", "blocks.0", "blocks.1", "blocks.2", "features", "logits")
    assert short_names(layer_names(zero)) == expected


def test_of_many_blocks_some_are_taken_evenly() -> None:
    names = layer_names(classifier_of(nn.Sequential(*(nn.Linear(2, 2) for _ in range(40))), 2, 1))
    places = [int(name.rpartition(".")[2]) for name in names[:-2]]
    assert (len(places), places[0], places[-1]) == (16, 0, 39)
    assert set(np.diff(places)) == {2, 3}


# ---- the values


def by_hand(classifier: sp.Classifier, images: sp.ImageSet) -> dict[str, NDArray[np.float64]]:
    """Every layer's outputs on all images, one image at a time, with hooks of the test's own."""
    network, result = classifier.network, {name: [] for name in layer_names(classifier)}

    def keep(name: str) -> Callable[[Any, Any, Tensor], None]:
        return lambda _, __, output: result[name].append(pooled(output))

    def pooled(output: Tensor) -> Tensor:
        if output.ndim == 4:
            channels_last = output.shape[1] == output.shape[2] != output.shape[3]
            return output.double().mean((1, 2) if channels_last else (2, 3))
        return output.double().mean(0 if output.shape[1] == 1 else 1)  # one image is shorter than its tokens

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in list(result)[:-2]]
    with torch.inference_mode():
        for i in range(len(images)):
            pixels = resize(images.read(i), classifier.preprocessing)[None]
            features = network.features(normalise(to_unit_range(pixels), classifier.preprocessing))
            result["features"].append(features.double())
            result["logits"].append(network.head(features).double())
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows).numpy() for name, rows in result.items()}


@pytest.mark.slow
@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: small_transformer(), lambda: timm_classifier("test_resnet"), lambda: timm_classifier("test_vit")]
)
def test_every_cell_is_linear_cka_of_features_taken_by_hand(
    zero: sp.Classifier, images: sp.ImageSet, make: Callable[[], sp.Classifier], debiased: bool
) -> None:
    other = make()
    measured = measure_layers(zero, other, images, debiased=debiased, batch_size=4)
    one, two = by_hand(zero, images), by_hand(other, images)
    assert (measured.set, measured.n, measured.debiased) == ("noise", N, debiased)
    assert (measured.first, measured.second) == (tuple(one), tuple(two))
    expected = [[linear_cka(x, y, debiased=debiased) for y in two.values()] for x in one.values()]
    np.testing.assert_allclose(np.array(measured.values), expected, rtol=2e-3, atol=2e-4)
    assert np.ptp(expected) > 0.05  # it does tell layers apart


@pytest.mark.long
def test_maps_with_channels_last_are_known(images: sp.ImageSet) -> None:
    swin = timm_classifier("swin_tiny_patch4_window7_224")
    few = images.subset(range(5))
    measured = measure_layers(swin, swin, few, layers=["encoder.layers.0", "encoder.layers.3", "features"])
    taken = by_hand(swin, few)
    expected = [[linear_cka(taken[a], taken[b]) for b in measured.second] for a in measured.first]
    np.testing.assert_allclose(np.array(measured.values), expected, rtol=1e-3)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 17, 256])  # 17 images are as many as the tokens
@pytest.mark.parametrize("batch_first", [True, False])
def test_the_batches_make_no_difference(zero: sp.Classifier, batch_size: int, batch_first: bool) -> None:
    torch.manual_seed(1)
    network = small_transformer(batch_first=batch_first)
    noise = np.random.default_rng(0).integers(0, 256, (21, 32, 32, 3), dtype=np.uint8)
    images = array_set("noise", SPACE, [str(i) for i in range(21)], np.zeros(21, np.int64), lambda: noise)
    expected = measure_layers(zero, network, images, batch_size=8)
    measured = measure_layers(zero, network, images, batch_size=batch_size)
    np.testing.assert_allclose(np.array(measured.values), np.array(expected.values), rtol=1e-4)


def test_tokens_before_or_behind_the_images_are_the_same(images: sp.ImageSet) -> None:
    first, second = small_transformer(batch_first=True), small_transformer(batch_first=False)
    second.network.load_state_dict(first.network.state_dict())
    measured = measure_layers(first, second, images)
    np.testing.assert_allclose(np.diag(np.array(measured.values)), 1, rtol=1e-6)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_model_is_its_own_equal(zero: sp.Classifier, images: sp.ImageSet, debiased: bool) -> None:
    values = np.array(measure_layers(zero, zero, images, debiased=debiased).values)
    np.testing.assert_allclose(np.diag(values), 1, rtol=1e-9)
    np.testing.assert_allclose(values, values.T, rtol=1e-9)
    assert values[np.triu_indices(len(values), 1)].max() < 1


@given(st.integers(0, 10**6), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.booleans())
def test_a_table_is_linear_cka_of_every_pair(seed: int, sizes: list[int], debiased: bool) -> None:
    generator, n = np.random.default_rng(seed), sum(sizes) + 8
    shared = generator.normal(size=(n, 2))
    layers = [30 + generator.normal(size=(n, p)) + 3 * shared @ generator.normal(size=(2, p)) for p in (1, 4, 2, 3)]
    table = CkaTable()
    for rows in np.split(np.arange(n), np.cumsum(sizes)):
        table.add([x[rows] for x in layers[:2]], [y[rows] for y in layers[2:]])
    for x, row in zip(layers[:2], table.values(debiased), strict=True):
        for y, value in zip(layers[2:], row, strict=True):
            if value is not None:
                assert value == pytest.approx(linear_cka(x, y, debiased=debiased), rel=1e-6, abs=1e-8)
            else:
                with pytest.raises(sp.InputError, match="too little for so few"):
                    linear_cka(x, y, debiased=debiased)


class Steps(nn.Module):
    """Layers that say what they are told to: images to (B, 3), by way of something else."""

    def __init__(self, middle: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.middle = nn.Identity()
        self.middle.forward = middle
        self.again = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        self.middle(images)
        return self.again(images.mean((2, 3)) - 1)


@pytest.mark.parametrize("debiased", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, -3e4])
def test_a_layer_that_does_not_vary_has_no_value(
    zero: sp.Classifier, images: sp.ImageSet, value: float, debiased: bool
) -> None:
    still = classifier_of(Steps(lambda x: torch.full_like(x, value)), 3, 8)
    names = ["encoder.middle", "logits"]
    measured = measure_layers(
        still, zero, images, layers=names, other_layers=["features"], batch_size=3, debiased=debiased
    )
    assert measured.values[0] == (None,)
    assert measured.values[1][0] is not None
    turned = measure_layers(zero, still, images, layers=["features"], other_layers=names, debiased=debiased)
    assert turned.values[0][0] is None
    assert turned.values[0][1] == pytest.approx(measured.values[1][0], rel=1e-6)


def test_a_layer_counts_as_it_was_before_the_next_changed_it(images: sp.ImageSet) -> None:
    def body(inplace: bool) -> sp.Classifier:
        torch.manual_seed(0)
        return classifier_of(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(inplace)), 5, 2)

    measured = measure_layers(body(True), body(False), images, layers=["encoder.1"])
    assert measured.values[0][0] == pytest.approx(1, rel=1e-12)


def test_of_several_outputs_the_first_counts(images: sp.ImageSet) -> None:
    several = classifier_of(Steps(lambda x: ([x, 0 * x], None)), 3, 8)
    plain = classifier_of(Steps(lambda x: x), 3, 8)
    assert measure_layers(several, plain, images, layers=["encoder.middle"]).values[0][0] == pytest.approx(1)


# ---- what is left behind, what is refused


def state_of(classifier: sp.Classifier) -> list[Any]:
    modules = list(classifier.network.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    weights = [tensor.clone().tolist() for tensor in classifier.network.state_dict().values()]
    return [hooks, [m.training for m in modules], [sorted(vars(m)) for m in modules], weights]


@pytest.mark.slow
@pytest.mark.parametrize("fails_after", [None, 0, 1, 3])
def test_nothing_is_left_behind(images: sp.ImageSet, fails_after: int | None) -> None:
    first, second = small_transformer(), timm_classifier("test_resnet")
    first.network.train()
    first.network.encoder.transformer.eval()
    before = state_of(first), state_of(second)
    reads: list[int] = []

    def read(i: int) -> NDArray[np.uint8]:
        reads.append(i)
        if fails_after is not None and i >= fails_after:
            raise OSError("the disk is gone")
        return images.read(i)

    watched = sp.ImageSet("watched", SPACE, images.ids, images.labels, read, in_memory=True)
    if fails_after is None:
        measure_layers(first, second, watched, batch_size=2)
    else:
        with pytest.raises(OSError, match="disk is gone"):
            measure_layers(first, second, watched, batch_size=2)
    assert (state_of(first), state_of(second)) == before
    assert reads
    assert not torch.is_inference_mode_enabled()


def test_hooks_go_also_where_a_network_fails_midway(images: sp.ImageSet) -> None:
    def fail(x: Tensor) -> Tensor:
        if len(x) == 1:  # the last batch
            raise RuntimeError("out of memory")
        return x

    network, other = classifier_of(Steps(fail), 3, 8), small_transformer()
    before = state_of(network), state_of(other)
    for pair in ((network, other), (other, network)):
        with pytest.raises(RuntimeError, match="out of memory"):
            measure_layers(*pair, images, batch_size=5)
        assert (state_of(network), state_of(other)) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"layers": ["encoder.trunk.block.0"]},
            "layer of the first classifier .*Did you mean 'encoder.trunk.blocks.0'",
        ),
        ({"other_layers": ["feature"]}, "layer of the second classifier 'feature'. Did you mean 'features'"),
        (
            {"layers": ["logits", "logits"]},
            "the first classifier are 'logits', 'logits'; name at least one, and each only once",
        ),
        ({"layers": []}, "name at least one"),
    ],
)
def test_unknown_layers_are_refused(
    zero: sp.Classifier, images: sp.ImageSet, options: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(sp.InputError, match=message):
        measure_layers(zero, zero, images, **options)


@pytest.mark.parametrize(
    ("middle", "name", "message"),
    [
        (lambda x: x.mean(), "encoder.middle", r"returns \(\) for two images"),
        (lambda x: x.reshape(-1, 12), "encoder.middle", r"returns \(32, 12\) for two images"),
        (lambda x: {"a": x}, "encoder.middle", "returns a dict; it must return a tensor"),
        (lambda x: x, "encoder.never", "'encoder.never' runs 0 times"),
        (lambda x: x * float("nan"), "encoder.middle", "'encoder.middle' returns numbers that are not finite"),
    ],
)
def test_layers_that_have_no_features_are_refused(
    images: sp.ImageSet, middle: Callable[[Tensor], Any], name: str, message: str
) -> None:
    network = classifier_of(Steps(middle), 3, 8)
    network.network.encoder.never = nn.Identity()
    with pytest.raises(sp.InputError, match=message):
        measure_layers(network, network, images, layers=[name])


@pytest.mark.parametrize(("count", "debiased"), [(1, False), (3, True)])
def test_too_few_images_are_refused(zero: sp.Classifier, images: sp.ImageSet, count: int, debiased: bool) -> None:
    with pytest.raises(sp.InputError, match="this CKA needs at least"):
        measure_layers(zero, zero, images.subset(range(count)), debiased=debiased)


# ---- the report


RECORD = LayersRecord(
    "noise", 1234, ("encoder.a.0", "features"), ("features", "encoder.b"), ((0.25, None), (1.0, -0.04)), True
)


def test_the_table_holds_what_both_have() -> None:
    table = layers_table(RECORD)
    assert table.header == ("layer", "debiased linear CKA")
    assert table.rows == (("features", "1.000"),)
    assert "1,234 images of noise" in table.title


@pytest.mark.slow
def test_the_figure_writes_every_value_in_a_legible_colour() -> None:
    figure = layers_figure(RECORD, "zero_shot $1", "fine-tuned")
    axes = figure.axes[0]
    cells = {text.get_position(): text for text in axes.texts}
    assert {place: text.get_text() for place, text in cells.items()} == {
        (0, 0): "0.25",
        (1, 0): "–",
        (0, 1): "1.00",
        (1, 1): "-0.04",
    }
    mesh = axes.images[0]
    assert mesh.get_clim() == (0, 1)
    for value in np.linspace(-0.1, 1, 45):
        record = LayersRecord("s", 9, ("a",), ("b",), ((float(value),),), False)
        drawn = layers_figure(record, "one", "two").axes[0]
        back = drawn.images[0].cmap(drawn.images[0].norm(value))[:3]
        assert contrast(back, drawn.texts[0].get_color()) > 3.5
    assert figure_bytes(figure) == figure_bytes(layers_figure(RECORD, "zero_shot $1", "fine-tuned"))


def contrast(back: tuple[float, ...], ink: str) -> float:
    """The contrast of WCAG 2, (lighter + 0.05) / (darker + 0.05)."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in back]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return 1.05 / (luminance + 0.05) if ink == "white" else (luminance + 0.05) / 0.05
