"""The logit scale in the record of a combined classifier is that of the head that it has, however it was combined."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.text_towers import contrastive

import shiftproof as sp
from shiftproof.data.sets import array_set
from shiftproof.ensembling import greedy_soup, model_stock_soup, uniform_soup
from shiftproof.merging.files import merge_files
from shiftproof.models.classifier import Network
from shiftproof.weights.schedules import alphas_by_pattern

CLASSES = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
HEAD = {"head.weight", "head.bias"}


def of_scale(tiny: sp.models.Clip, scale: float) -> sp.Classifier:
    """The zero-shot classifier of a text tower with this logit scale."""
    clip = replace(tiny, model=deepcopy(tiny.model))
    with torch.no_grad():
        clip.model.logit_scale.fill_(math.log(scale))  # type: ignore[union-attr, operator]
    return sp.zero_shot_classifier(clip, CLASSES)


@pytest.fixture(scope="module")
def pair(tiny: sp.models.Clip) -> tuple[sp.Classifier, sp.Classifier]:
    """Two heads whose rows have the same directions, and the lengths 10 and 90."""
    return of_scale(tiny, 10), of_scale(tiny, 90)


@pytest.fixture(scope="module")
def trained(pair: tuple[sp.Classifier, sp.Classifier]) -> sp.Classifier:
    """The first with a head whose rows have other directions and lengths."""
    generator = torch.Generator().manual_seed(4)
    weights = pair[0].state_dict()
    moved = {name: weights[name] + 5 * torch.randn(weights[name].shape, generator=generator) for name in HEAD}
    return pair[0].with_weights({**weights, **moved}, head="trained")


def lengths(classifier: sp.Classifier) -> list[float]:
    """The lengths of the head's rows, from the formula."""
    return [math.sqrt(math.fsum(x * x for x in row)) for row in classifier.network.head.weight.tolist()]


def assert_scale_is_that_of_the_head(classifier: sp.Classifier, expected: float | None = None) -> None:
    assert classifier.logit_scale == pytest.approx(math.fsum(lengths(classifier)) / len(CLASSES), rel=1e-6)
    if expected is not None:
        assert classifier.logit_scale == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("alpha", "scale"), [(0.0, 10), (0.25, 30), (0.5, 50), (1.0, 90)])
def test_between_scales_of_10_and_90_the_head_has_the_length_between(
    pair: tuple[sp.Classifier, sp.Classifier], alpha: float, scale: float
) -> None:
    assert_scale_is_that_of_the_head(sp.wise_ft(*pair, alpha), scale)
    by_layer = alphas_by_pattern(pair[0].state_dict(), {"head.*": alpha}, default=0.9)
    assert_scale_is_that_of_the_head(sp.wise_ft(*pair, by_layer), scale)


def pictures() -> sp.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 255, (6, 64, 64, 3)).astype(np.uint8)
    return array_set("pictures", CLASSES, [str(i) for i in range(6)], np.arange(6) % 3, lambda: pixels)


COMBINED: dict[str, Callable[[list[sp.Classifier]], sp.Classifier]] = {
    "alpha 0.3": lambda members: sp.wise_ft(members[0], members[1], 0.3),
    "uniform soup": uniform_soup,
    "greedy soup": lambda members: greedy_soup(members, pictures(), device="cpu").classifier,
    "model stock": lambda members: model_stock_soup(members[0], members[1:]),
}


@pytest.mark.parametrize("name", COMBINED)
def test_the_scale_of_every_combination_is_that_of_its_head(
    pair: tuple[sp.Classifier, sp.Classifier], trained: sp.Classifier, name: str, tmp_path: Path
) -> None:
    combined = COMBINED[name]([*pair, trained])
    assert_scale_is_that_of_the_head(combined)
    assert sp.load_classifier(sp.save_classifier(combined, tmp_path / "saved")).logit_scale == combined.logit_scale
    assert_scale_is_that_of_the_head(COMBINED[name]([pair[0], trained, pair[1]]))


@pytest.mark.parametrize("method", ["linear", "uniform", "model-stock"])
def test_the_scale_of_merged_directories_is_that_of_the_head(
    pair: tuple[sp.Classifier, sp.Classifier], trained: sp.Classifier, method: str, tmp_path: Path
) -> None:
    members = [*pair] if method == "linear" else [*pair, trained]
    folders = [sp.save_classifier(member, tmp_path / str(i)) for i, member in enumerate(members)]
    merge_files(*folders, settings=sp.MergeSettings(method=method), out=tmp_path / "merged")
    assert_scale_is_that_of_the_head(sp.load_classifier(tmp_path / "merged"), 50 if method == "linear" else None)


@pytest.mark.slow
def test_a_rebuilt_head_has_the_scale_of_the_combined_text_tower(tiny: sp.models.Clip) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    members = [contrastive(start, tiny, seed) for seed in range(2)]
    for combine in COMBINED.values():
        combined = combine([start, *members])
        assert combined.head == "rebuilt" and combined.text is not None
        assert_scale_is_that_of_the_head(combined, math.exp(float(combined.text["logit_scale"])))


def test_a_trained_head_has_its_own_scale_and_an_unchanged_one_keeps_it(
    pair: tuple[sp.Classifier, sp.Classifier], trained: sp.Classifier
) -> None:
    assert_scale_is_that_of_the_head(trained)
    assert abs(trained.logit_scale - pair[0].logit_scale) > 1
    assert trained.with_weights(trained.state_dict()).logit_scale == trained.logit_scale
    turned = trained.in_order_of(sp.ClassSpace(CLASSES.ids[::-1], CLASSES.names[::-1]))
    assert turned.logit_scale == trained.logit_scale


def test_a_head_on_features_of_any_length_has_no_scale(trained: sp.Classifier) -> None:
    network = Network(trained.network.encoder, trained.network.head, normalised=False)
    own = replace(trained, network=network, logit_scale=1.0)
    doubled = {name: 2 * tensor if name in HEAD else tensor for name, tensor in own.state_dict().items()}
    assert sp.wise_ft(own, own.with_weights(doubled), 0.5).logit_scale == 1.0


def test_a_directory_that_an_earlier_version_wrote_is_read_as_it_is(
    pair: tuple[sp.Classifier, sp.Classifier], tmp_path: Path
) -> None:
    """Such a directory may hold the geometric mean, 30, of scales whose head has the length 50."""
    folder = sp.save_classifier(sp.wise_ft(*pair, 0.5), tmp_path / "old")
    card = json.loads((folder / "classifier.json").read_text(encoding="utf-8"))
    (folder / "classifier.json").write_text(json.dumps({**card, "logit_scale": 30.0}), encoding="utf-8")
    old = sp.load_classifier(folder)
    assert old.logit_scale == 30.0
    assert sp.models.fingerprint(old) == card["fingerprint"]
    assert_scale_is_that_of_the_head(sp.wise_ft(pair[0], old, 1.0), 50)
