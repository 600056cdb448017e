"""The recipes of fine-tuning: what each of them moves, by which loss, and what comes of it, as far as the disk."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet
from timm.layers import BatchNormAct2d, LayerNorm2d, RmsNorm
from torch import Tensor, nn
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.loading import Preprocessing, crop_draws, normalise, resized_crop, to_unit_range
from shiftproof.finetuning import loop, probe, recipes
from shiftproof.finetuning.depths import decayed_groups, lock_layers
from shiftproof.finetuning.loop import few_shot
from shiftproof.finetuning.probe import PENALTIES, Head, logistic_head
from shiftproof.finetuning.recipes import Recipe, class_targets, distillation_loss, recipe_of
from shiftproof.finetuning.settings import RECIPES
from shiftproof.mixing.methods import MixUp
from shiftproof.mixing.targets import mix_targets
from shiftproof.models import text_towers
from shiftproof.models.classifier import Network
from shiftproof.models.clip import build_encoder
from shiftproof.pretraining.loss import contrastive_loss
from shiftproof.seeding import child_generator, child_seed
from shiftproof.training import engine as training
from shiftproof.training.engine import cosine_with_warmup, optimisation_step
from shiftproof.training.hardware import checkpoint_gradients

PROMPTS = ("a photo of a {}.", "a drawing of one {}.")
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm2d)
VIT = "open_clip:ViT-S-32-alt"  # random weights: nothing is downloaded
VIT_CONFIG = {"image_size": 64, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
SMALL_VIT = {"library": "open_clip", "name": "small", "embed_dim": 16, "vision_cfg": VIT_CONFIG, "quick_gelu": False}

Trained = Callable[[str], sp.Classifier]


def some(images: sp.ImageSet, views: range) -> sp.ImageSet:
    """The given views of every class."""
    chosen = [np.flatnonzero(images.labels == label)[views] for label in range(len(images.classes))]
    return images.subset(np.concatenate(chosen).tolist())


@pytest.fixture(scope="module")
def few() -> sp.ShiftSuite:
    """A dozen emoji: two views each to train on, one in every other set."""
    whole = sp.load_suite("emoji-development-1")
    classes = sp.ClassSpace(whole.classes.ids[:12], whole.classes.names[:12])
    train, validation, sketch = (
        images.of_classes(classes)
        for images in (whole.reference.train, whole.reference.validation, whole.shifts[0].data)
    )
    held_out = some(validation, range(1))
    reference = sp.data.Reference("colour", some(train, range(2)), held_out, some(validation, range(1, 2)))
    return sp.ShiftSuite("few", classes, reference, (sp.data.Shift("sketch", "natural", some(sketch, range(1))),))


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.zero_shot_classifier(tiny, few.classes, PROMPTS)


@pytest.fixture(scope="module")
def tuned_by(zero: sp.Classifier, few: sp.ShiftSuite) -> Trained:
    """What a recipe makes in two steps with the seed 0; trained once for all that look at it."""
    return functools.cache(lambda recipe: sp.finetune(zero, few, settings(recipe=recipe)))


def smaller(suite: sp.ShiftSuite, images: int) -> sp.ShiftSuite:
    reference = suite.reference
    train, validation = (part.subset(range(images)) for part in (reference.train, reference.validation))
    return replace(suite, reference=replace(reference, train=train, validation=validation))


def built(make: Callable[[], nn.Module], width: int, classes: sp.ClassSpace, **told: Any) -> sp.Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Network(make(), nn.Linear(width, len(classes)))
    about: dict[str, Any] = {"architecture": {"name": "toy"}, "preprocessing": Preprocessing(size=16), **told}
    return sp.Classifier(
        network=network.eval(),
        classes=classes,
        source="toy",
        prompts=("a {}.",),
        head="zero-shot",
        logit_scale=1.0,
        **about,
    )


def toy(classes: sp.ClassSpace) -> sp.Classifier:
    """Two convolutions with batch norm: fast, and with statistics that could move."""

    def encoder() -> nn.Module:
        first = (nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        return nn.Sequential(*first, nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    return built(encoder, 8, classes)


def vit(classes: sp.ClassSpace) -> sp.Classifier:
    """open_clip's transformer with two small blocks."""
    told = {"architecture": SMALL_VIT, "preprocessing": Preprocessing(size=64)}
    return built(lambda: build_encoder(SMALL_VIT), 16, classes, **told)


def settings(**changes: Any) -> sp.FinetuneSettings:
    """Two steps in all, unless asked for otherwise."""
    return sp.FinetuneSettings(**{"epochs": 1, "lr": 1e-3, "batch_size": 12, "warmup_steps": 0, **changes})


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> set[str]:
    assert first.keys() == second.keys()
    return {name for name in first if first[name].numpy().tobytes() != second[name].numpy().tobytes()}


def moved(start: sp.Classifier, tuned: sp.Classifier) -> set[str]:
    return differing(start.state_dict(), tuned.state_dict())


def parameters(classifier: sp.Classifier) -> set[str]:
    return {name for name, _ in classifier.network.named_parameters()}


def close(first: Mapping[str, Tensor], second: Mapping[str, Tensor], *, atol: float = 1e-6, rtol: float = 1e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor, second[name], atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}")


@dataclass
class Seen:
    """What a fine-tuning did: its recipe, and every step's weights before and after, gradients and rates by name."""

    recipe: Any = None
    start: Any = None
    before: list[dict[str, Tensor]] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    rates: list[dict[str, float]] = field(default_factory=list)
    decays: list[dict[str, float]] = field(default_factory=list)

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.recipe.module.state_dict().items()}


def watch(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()

    def made(start: sp.Classifier, *rest: Any, **options: Any) -> Recipe:
        found.start, found.recipe = start, recipe_of(start, *rest, **options)
        return found.recipe

    def taken(losses: Any, trainable: list[nn.Parameter], optimizer: Any, *rest: Any) -> float:
        found.before.append(found.weights())
        loss = optimisation_step(losses, trainable, optimizer, *rest)
        found.after.append(found.weights())
        names = {id(parameter): name for name, parameter in found.recipe.module.named_parameters()}
        assert sorted(map(id, trainable)) == sorted(id(p) for g in optimizer.param_groups for p in g["params"])
        found.gradients.append({names[id(p)]: p.grad.clone() for p in trainable if p.grad is not None})
        for told, key in ((found.rates, "lr"), (found.decays, "weight_decay")):
            told.append({names[id(p)]: group[key] for group in optimizer.param_groups for p in group["params"]})
        return loss

    monkeypatch.setattr(loop, "recipe_of", made)
    monkeypatch.setattr(training, "optimisation_step", taken)
    return found


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Iterator[None]:
    """A text tower is asked for again and again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_towers, "load_clip", functools.cache(sp.load_clip))
        yield


# What moves and what does not.


def matrices(encoder: nn.Module) -> list[str]:
    """The weights of linear layers, convolutions and attention, but for the first, which looks at pixels."""
    found = []
    for name, module in encoder.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            found.append(f"encoder.{name}.weight")
        elif isinstance(module, nn.MultiheadAttention):
            found.append(f"encoder.{name}.in_proj_weight")
    return found[1:]


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
    asked = settings(
        recipe="lora", lora_rank=RANK, lora_scale=SCALE, lr=1e-2, batch_size=len(suite.reference.train) // 2
    )
    with pytest.MonkeyPatch.context() as patched:
        found = watch(patched)
        tuned = sp.finetune(start, suite, asked)
    return start, before, tuned, found


def test_lora_trains_adapters_and_all_of_them(adapted: Adapted) -> None:
    start, _, _, seen = adapted
    places = {name.removesuffix(".in_proj_weight").removesuffix(".weight") for name in matrices(start.network.encoder)}
    expected = {f"{place}.lora_{side}" for place in places for side in "AB"}
    first, second = seen.gradients
    for found in (*seen.rates, first, second):
        assert unwrapped(found).keys() == expected
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
    tuned = sp.finetune(zero, few, settings(recipe="lora", epochs=3, lr=1e-2))
    scores = [entry["validation"] for entry in tuned.training["history"]]
    assert len(scores) == 3
    found = sp.predict(tuned, few.reference.validation)
    assert scores[-1] == np.mean(found.logits.argmax(1) == found.labels)


def test_lora_is_drawn_by_the_seed_and_leaves_the_global_state_alone(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    found = []
    for state, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(state)
        kept = torch.random.get_rng_state()
        recipe = recipe_of(zero, settings(recipe="lora"), zero, seed=seed, device="cpu")
        assert torch.equal(kept, torch.random.get_rng_state())
        found.append({name: p.detach() for name, p in recipe.module.named_parameters() if "lora_A" in name})
    assert differing(found[0], found[1]) == set()
    assert differing(found[0], found[2]) == found[0].keys()


def test_lora_leaves_the_statistics_of_batch_norm(few: sp.ShiftSuite) -> None:
    # Nothing but adapters moves: what they are merged into must be what they were trained beside.
    start = toy(few.classes)
    tuned = sp.finetune(start, few, settings(recipe="lora", lr=1e-2))
    assert moved(start, tuned) == {"encoder.3.weight"}


def test_lora_says_where_there_is_nothing_to_adapt(few: sp.ShiftSuite) -> None:
    start = built(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 4, few.classes)
    with pytest.raises(sp.InputError, match=r"no layer that LoRA could adapt.*finetune\.recipe"):
        sp.finetune(start, few, settings(recipe="lora"))


def test_head_only_and_a_frozen_head_share_the_network_between_them(zero: sp.Classifier, tuned_by: Trained) -> None:
    head_only, frozen = tuned_by("head-only"), tuned_by("frozen-head")
    assert moved(zero, head_only) == {"head.weight", "head.bias"}
    assert moved(zero, frozen) == parameters(zero) - {"head.weight", "head.bias"}
    assert (head_only.head, frozen.head) == ("trained", "frozen")


@pytest.mark.parametrize("tower", ["tiny", "vit", "toy"])
def test_norms_and_biases_moves_only_these(zero: sp.Classifier, few: sp.ShiftSuite, tower: str) -> None:
    start = {"tiny": lambda _: zero, "vit": vit, "toy": toy}[tower](few.classes)
    tuned = sp.finetune(start, few, settings(recipe="norms-and-biases"))
    expected = {"head.bias"}
    for place, module in start.network.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) or (name in ("bias", "in_proj_bias") and parameter.ndim == 1):
                expected.add(f"{place}.{name}")
    assert moved(start, tuned) & parameters(start) == expected
    if tower == "vit":  # these are no matrices either
        assert not moved(start, tuned) & {"encoder.class_embedding", "encoder.positional_embedding"}
    assert tuned.head == "trained"


# The linear probe.


def slow_head(features: np.ndarray, labels: Sequence[int], start: np.ndarray, penalty: float) -> np.ndarray:
    """Newton's method on the (K, D + 1) weights in float64, halving steps that do not help."""
    inputs = np.concatenate([features, np.ones((len(features), 1))], 1)
    count, classes = len(inputs), len(start)
    targets = np.eye(classes)[list(labels)]

    def loss_at(theta: np.ndarray) -> float:
        total = 0.0
        for row, label in zip(inputs, labels, strict=True):
            logits = [float(row @ weights) for weights in theta]
            top = max(logits)
            total += top + math.log(math.fsum(math.exp(x - top) for x in logits)) - logits[label]
        return total / count + penalty / 2 * float(((theta - start) ** 2).sum())

    theta, value = start.copy(), loss_at(start)
    for _ in range(100):
        logits = inputs @ theta.T
        shares = np.exp(logits - logits.max(1, keepdims=True))
        shares /= shares.sum(1, keepdims=True)
        gradient = (shares - targets).T @ inputs / count + penalty * (theta - start)
        hessian = penalty * np.eye(theta.size)
        for row, share in zip(inputs, shares, strict=True):
            hessian += np.kron(np.diag(share) - np.outer(share, share), np.outer(row, row)) / count
        step = np.linalg.solve(hessian, gradient.flatten()).reshape(theta.shape)
        while (reached := loss_at(theta - step)) > value and np.abs(step).max() > 1e-12:
            step /= 2
        if reached >= value:
            break
        theta, value = theta - step, reached
    return theta


@pytest.mark.parametrize("penalty", [10.0, *PENALTIES])
def test_the_head_is_the_one_that_newton_s_method_finds(penalty: float) -> None:
    # As zero-shot heads are: features of length 1, rows that are long.
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(24) % 3
    rows = 20 * functional.normalize(torch.randn(3, 4, generator=generator), dim=1)
    features = functional.normalize(rows[labels] / 20 + torch.randn(24, 4, generator=generator), dim=1)
    start = Head(rows, torch.tensor([0.5, -0.5, 0.0]))
    origin = np.concatenate([start.weight.numpy(), start.bias.numpy()[:, None]], 1).astype(float)
    expected = slow_head(features.numpy().astype(float), labels.tolist(), origin, penalty)
    # Where the search begins decides nothing.
    for begin in (None, Head(-rows, torch.ones(3))):
        found = logistic_head(features, labels, start, penalty, begin)
        theta = np.concatenate([found.weight.numpy(), found.bias.numpy()[:, None]], 1)
        assert np.linalg.norm(theta - expected) < 0.02 * np.linalg.norm(expected - origin)
        assert (found.weight.dtype, found.bias.dtype) == (torch.float32, torch.float32)


def slope(features: Tensor, labels: Tensor, start: Head, penalty: float, head: Head) -> float:
    """The norm of the objective's gradient."""
    weight, bias = head.weight.double().requires_grad_(), head.bias.double().requires_grad_()
    loss = functional.cross_entropy(features.double() @ weight.T + bias, labels)
    loss = loss + penalty / 2 * ((weight - start.weight).square().sum() + (bias - start.bias).square().sum())
    return math.sqrt(sum(float(g.square().sum()) for g in torch.autograd.grad(loss, (weight, bias))))


@settings_of(max_examples=10)
@given(seed=st.integers(0, 1000), penalty=st.sampled_from([1.0, *PENALTIES[:4]]), classes=st.integers(2, 5))
def test_at_the_head_the_objective_is_flat(seed: int, penalty: float, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(20, 6, generator=generator)
    labels = torch.randint(classes, (20,), generator=generator)
    start = Head(torch.randn(classes, 6, generator=generator), torch.randn(classes, generator=generator))
    found = logistic_head(features, labels, start, penalty)
    assert slope(features, labels, start, penalty, found) < 1e-3 * slope(features, labels, start, penalty, start)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_on_real_features_the_search_ends_at_the_minimum(
    zero: sp.Classifier, few: sp.ShiftSuite, penalty: float
) -> None:
    with torch.inference_mode():
        features = zero.network.features(next(evaluation_batches(few.reference.train, zero.preprocessing, 24)))
    features, labels = features.clone(), torch.as_tensor(few.reference.train.labels)
    start = Head(zero.network.head.weight.detach(), zero.network.head.bias.detach())
    found = logistic_head(features, labels, start, penalty)
    far = math.hypot((found.weight - start.weight).norm().item(), (found.bias - start.bias).norm().item())
    # The objective is as strongly convex as the penalty says, so that the minimum is no farther than slope / penalty.
    assert slope(features, labels, start, penalty, found) / penalty < 0.05 * far


def test_a_huge_penalty_keeps_the_start() -> None:
    start = Head(torch.randn(3, 5), torch.randn(3))
    found = logistic_head(torch.randn(30, 5), torch.arange(30) % 3, start, 1e12)
    torch.testing.assert_close(found.weight, start.weight, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.bias, start.bias, rtol=1e-6, atol=1e-6)


def closed(images: sp.ImageSet) -> sp.ImageSet:
    def read(_: int) -> np.ndarray:
        raise AssertionError("it was read")

    return replace(images, read=read, in_memory=False)


def test_the_penalty_is_the_largest_that_is_best_on_the_validation_split(
    few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, suite = toy(few.classes), few
    counts = [2, 4, 4, 1, 1]  # images of the first classes in the validation split
    validation = suite.reference.train.subset([2 * k + i % 2 for k, count in enumerate(counts) for i in range(count)])
    closed_test, closed_shift = closed(suite.reference.test), closed(suite.shifts[0].data)
    reference = replace(suite.reference, validation=validation, test=closed_test)
    suite = replace(suite, reference=reference, shifts=(replace(suite.shifts[0], data=closed_shift),))
    asked: list[float] = []

    def favours(features: Tensor, labels: Tensor, origin: Head, penalty: float, **_: Any) -> Head:
        """The n-th penalty's head says that everything is of the n-th class."""
        assert torch.equal(origin.weight, start.network.head.weight)
        asked.append(penalty)
        return Head(torch.zeros(12, 8), 1.0 * (torch.arange(12) == len(asked) - 1))

    monkeypatch.setattr(probe, "logistic_head", favours)
    tuned = sp.finetune(start, suite, settings(recipe="linear-probe"))
    assert asked == sorted(PENALTIES, reverse=True)
    assert tuned.network.head.bias.tolist() == [0.0, 1.0, *[0.0] * 10]
    trials = tuned.training["probe"]
    assert [trial["penalty"] for trial in trials] == asked
    assert [trial["validation"] for trial in trials] == [count / 12 for count in [*counts, 0, 0, 0]][: len(asked)]
    assert moved(start, tuned) == {"head.weight", "head.bias"}
    assert (tuned.training["history"], tuned.head) == ([], "trained")


def test_the_probe_sees_the_features_of_random_crops(few: sp.ShiftSuite, monkeypatch: pytest.MonkeyPatch) -> None:
    start, train = vit(few.classes), few.reference.train
    given_ones: list[tuple[Tensor, Tensor]] = []

    def watched(features: Tensor, labels: Tensor, origin: Head, penalty: float, **_: Any) -> Head:
        given_ones.append((features, labels))
        return origin

    monkeypatch.setattr(probe, "logistic_head", watched)
    sp.finetune(start, few, settings(recipe="linear-probe", crop_scale=(0.3, 0.6)), seed=5)
    features, labels = given_ones[0]
    count, views = len(train), len(features) // len(train)
    assert views >= 2
    assert labels.tolist() == train.labels.tolist() * views
    # One batch: the draws of all views are those of its places.
    draws = crop_draws(views * count, child_generator(child_seed(5, "probe"), "crops", 0))
    rows = []
    for place in range(views * count):
        crop = resized_crop(train.read(place % count), start.preprocessing, (0.3, 0.6), draws[place])
        image = normalise(to_unit_range([crop]), start.preprocessing)
        with torch.no_grad():
            rows.append(functional.normalize(start.network.encoder(image), dim=-1)[0])
    torch.testing.assert_close(features, torch.stack(rows), rtol=1e-4, atol=1e-5)
    first, second = features[:count], features[count : 2 * count]
    assert (first - second).abs().amax(1).min() > 1e-3


def test_lp_ft_begins_with_the_probe_s_head(zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen) -> None:
    probed = sp.finetune(zero, few, settings(recipe="linear-probe"), seed=2)
    tuned = sp.finetune(zero, few, settings(recipe="lp-ft", l2_to_start=1e12, batch_size=24), seed=2)
    assert moved(zero, probed) == {"head.weight", "head.bias"}
    assert differing(seen.before[0], probed.state_dict()) == set()
    assert tuned.training["probe"] == probed.training["probe"]
    assert [parent["fingerprint"] for parent in tuned.parents] == [sp.models.fingerprint(zero)]
    # It is drawn to the start, where the alpha path begins, and not to the probe.
    close(tuned.state_dict(), zero.state_dict())


# Contrastive fine-tuning.


def slow_contrastive(
    images: list[list[float]], texts: list[list[float]], scale: float, shares: list[list[float]]
) -> float:
    """Both directions of the cross-entropy, written out: ``shares[i][j]`` of caption j are in image i."""
    total = 0.0
    turned = [list(column) for column in zip(*shares, strict=True)]
    for rows, columns, targets in ((images, texts, shares), (texts, images, turned)):
        losses = []
        for row, wanted in zip(rows, targets, strict=True):
            logits = [scale * math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in columns]
            top = max(logits)
            log_sum = top + math.log(math.fsum(math.exp(x - top) for x in logits))
            if sum(wanted):
                pairs = zip(wanted, logits, strict=True)
                losses.append(math.fsum(w / sum(wanted) * (log_sum - x) for w, x in pairs))
        total += sum(losses) / len(losses)
    return total / 2


def features_of(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = functional.normalize(torch.randn(2, count, 5, generator=generator, dtype=torch.float64), dim=-1)
    return images, texts


@given(seed=st.integers(0, 1000), labels=st.lists(st.integers(0, 3), min_size=1, max_size=8), scale=st.floats(0.1, 90))
def test_captions_of_one_class_are_no_negatives_of_each_other(seed: int, labels: list[int], scale: float) -> None:
    images, texts = features_of(seed, len(labels))
    soft = functional.one_hot(torch.tensor(labels), 4).float()
    factor = torch.tensor(scale, dtype=torch.float64)
    found = contrastive_loss(images, texts, factor, class_targets(soft, torch.tensor(labels))).item()
    shares = [[float(one == other) for other in labels] for one in labels]
    assert found == pytest.approx(slow_contrastive(images.tolist(), texts.tolist(), scale, shares), rel=1e-6, abs=1e-9)
    if len(set(labels)) == len(labels):
        assert found == pytest.approx(contrastive_loss(images, texts, factor).item(), rel=1e-9, abs=1e-12)


def contrastive(zero: sp.Classifier, batch_size: int) -> Recipe:
    return recipe_of(zero, settings(recipe="flyp", batch_size=batch_size), zero, seed=3, device="cpu")


def captioned(recipe: Recipe, targets: Tensor, step: int = 0) -> tuple[float, Tensor]:
    """The loss of a batch whose features are drawn, and the captions that were to be read."""
    images, texts = features_of(1, len(targets))
    read: list[Tensor] = []

    def model(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert len(pixels) == len(tokens)
        read.append(tokens)
        return images, texts, torch.tensor(7.0)

    (loss,) = recipe.losses(model, torch.zeros(len(targets), 3, 64, 64), targets, step)  # type: ignore[arg-type]
    return loss.item(), read[0]


def test_a_batch_is_captioned_by_its_classes_and_its_loss_counts_all_of_them(
    zero: sp.Classifier, tiny: sp.models.Clip
) -> None:
    labels = [0, 1, 0, 2, 0, 1, 5, 5]
    recipe = contrastive(zero, len(labels))
    images, texts = (features.tolist() for features in features_of(1, len(labels)))
    shares = [[float(one == other) for other in labels] for one in labels]
    drawn: Counter[str] = Counter()
    for step in range(40):
        loss, tokens = captioned(recipe, torch.tensor(labels), step)
        assert loss == pytest.approx(slow_contrastive(images, texts, 7.0, shares), rel=1e-5)
        for label, row in zip(labels, tokens, strict=True):
            said = [prompt.format(zero.classes.names[label]) for prompt in PROMPTS]
            (told,) = [
                prompt
                for prompt, text in zip(PROMPTS, said, strict=True)
                if torch.equal(tiny.tokenizer([text])[0], row)
            ]
            drawn[told] += 1
        assert torch.equal(tokens, captioned(recipe, torch.tensor(labels), step)[1])
    assert drawn[PROMPTS[0]] + drawn[PROMPTS[1]] == 320
    assert min(drawn.values()) > 120  # 160 +- 4 standard deviations


def test_mixed_images_are_what_their_shares_say(zero: sp.Classifier, tiny: sp.models.Clip) -> None:
    plan = MixUp().plan(6, (64, 64), torch.Generator().manual_seed(2))
    soft = mix_targets(torch.tensor([0, 0, 1, 2, 3, 3]), plan, 12)
    loss, tokens = captioned(contrastive(zero, 6), soft)
    images, texts = (features.tolist() for features in features_of(1, 6))
    leading = [max(range(12), key=row.__getitem__) for row in soft.tolist()]
    for label, row in zip(leading, tokens, strict=True):
        said = [prompt.format(zero.classes.names[label]) for prompt in PROMPTS]
        assert any(torch.equal(tiny.tokenizer([text])[0], row) for text in said)
    shares = [[row[label] for label in leading] for row in soft.tolist()]
    assert loss == pytest.approx(slow_contrastive(images, texts, 7.0, shares), rel=1e-5)


def written_head(clip: sp.models.Clip, text: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The head's rows, prompt by prompt, from the text tower's weights."""
    model, rows = deepcopy(clip.model), []
    model.load_state_dict({**model.state_dict(), **text})
    with torch.inference_mode():
        for name in names:
            total = torch.zeros(128)
            for prompt in PROMPTS:
                (row,) = model.encode_text(clip.tokenizer([prompt.format(name)]))
                total += row / row.norm()
            rows.append(text["logit_scale"].exp() * total / total.norm())
    return torch.stack(rows)


@pytest.fixture(scope="module")
def flyp(zero: sp.Classifier, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.finetune(zero, few, settings(recipe="flyp", lr=3e-3, epochs=2))


def text_of(clip: sp.models.Clip) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in clip.model.state_dict().items() if not name.startswith("visual.")}


def test_both_towers_move_and_the_text_tower_writes_the_head(
    flyp: sp.Classifier, zero: sp.Classifier, tiny: sp.models.Clip
) -> None:
    assert flyp.text is not None
    assert differing(text_of(tiny), flyp.text) == text_of(tiny).keys()
    assert moved(zero, flyp) == parameters(zero) - {"head.bias"}
    assert flyp.head == "rebuilt"
    assert flyp.logit_scale == pytest.approx(flyp.text["logit_scale"].exp().item())
    head = flyp.network.head
    torch.testing.assert_close(head.weight.detach(), written_head(tiny, flyp.text, flyp.classes.names))
    assert not head.bias.any()


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_the_ensemble_merges_both_towers_and_then_writes_the_head(
    flyp: sp.Classifier, zero: sp.Classifier, tiny: sp.models.Clip, alpha: float
) -> None:
    assert flyp.text is not None
    merged = sp.wise_ft(zero, flyp, alpha)
    start, text = text_of(tiny), {}
    for name, tensor in flyp.text.items():
        text[name] = (1 - alpha) * start[name] + alpha * tensor
    rows = written_head(tiny, text, zero.classes.names)
    torch.testing.assert_close(merged.network.head.weight.detach(), rows, rtol=1e-4, atol=1e-4)
    assert merged.text is not None
    close(dict(merged.text), text)
    assert (merged.head, merged.logit_scale) == ("rebuilt", pytest.approx(text["logit_scale"].exp().item()))
    first, second = zero.state_dict(), flyp.state_dict()
    for name in parameters(zero) - {"head.weight", "head.bias"}:
        between = (1 - alpha) * first[name] + alpha * second[name]
        torch.testing.assert_close(merged.state_dict()[name], between, rtol=1e-5, atol=1e-6)
    # The average of two heads is another.
    of_heads = (1 - alpha) * first["head.weight"] + alpha * second["head.weight"]
    assert (of_heads - rows).norm() > 100 * (merged.network.head.weight - rows).norm()


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_of_the_path_are_the_two_bit_for_bit(flyp: sp.Classifier, zero: sp.Classifier, alpha: float) -> None:
    end = flyp if alpha else zero
    assert moved(end, sp.wise_ft(zero, flyp, alpha)) == set()
    assert sp.wise_ft(zero, flyp, alpha).logit_scale == end.logit_scale


def test_the_sweep_runs_what_the_ensemble_is(flyp: sp.Classifier, zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    kept: dict[tuple[float, str], np.ndarray] = {}

    @contextlib.contextmanager
    def keep(alpha: float, name: str) -> Iterator[Callable[[np.ndarray], None]]:
        rows: list[np.ndarray] = []
        yield rows.append
        kept[alpha, name] = np.concatenate(rows)

    path = sp.sweep_alpha(zero, flyp, few, (0.0, 0.3, 1.0), keep=keep)
    for alpha, (name, images) in itertools.product(path.alphas, few.test_sets.items()):
        expected = sp.predict(sp.wise_ft(zero, flyp, alpha), images)
        assert np.array_equal(kept[alpha, name], expected.logits)
        assert path.at(alpha).accuracy[name] == np.mean(expected.logits.argmax(1) == images.labels)


def test_the_text_tower_survives_the_way_to_disk(flyp: sp.Classifier, zero: sp.Classifier, tmp_path: Path) -> None:
    again = sp.load_classifier(sp.save_classifier(flyp, tmp_path / "flyp"))
    assert flyp.text is not None and again.text is not None
    assert differing(dict(flyp.text), dict(again.text)) == set()
    assert moved(sp.wise_ft(zero, flyp, 0.4), sp.wise_ft(zero, again, 0.4)) == set()
    merged = sp.wise_ft(zero, flyp, 0.4)
    kept = sp.load_classifier(sp.save_classifier(merged, tmp_path / "merged"))
    assert merged.text is not None and kept.text is not None
    assert differing(dict(merged.text), dict(kept.text)) == set()
    # A classifier whose head nobody wrote keeps none.
    sp.save_classifier(zero, tmp_path / "zero")
    assert {path.name for path in (tmp_path / "zero").iterdir()} == {"classifier.json", "model.safetensors"}


def test_a_start_whose_text_tower_is_not_known_is_refused(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    weights = zero.state_dict()
    name = "encoder.head.proj.weight"
    other = zero.with_weights({**weights, name: weights[name] * 1.001})
    with pytest.raises(sp.InputError, match=r"encoder is not that of 'tiny'.*Start from the zero-shot classifier"):
        sp.finetune(other, few, settings(recipe="flyp"))
    with pytest.raises(sp.InputError, match=r"no text tower.*another finetune\.recipe"):
        sp.finetune(replace(zero, prompts=(), source="timm:resnet18"), few, settings(recipe="flyp"))
    with pytest.raises(sp.InputError, match="unknown model 'elsewhere'"):
        sp.finetune(replace(zero, source="elsewhere"), few, settings(recipe="flyp"))


def test_an_average_of_both_towers_writes_the_head(
    zero: sp.Classifier, few: sp.ShiftSuite, tiny: sp.models.Clip, seen: Seen
) -> None:
    decay = 0.7
    tuned = sp.finetune(zero, few, settings(recipe="flyp", lr=3e-3, epochs=2, ema_decay=decay))
    steps = len(seen.after)
    assert steps == 4
    expected = {}
    for name in seen.after[0]:
        shares = [(1 - decay) * decay ** (steps - 1 - t) / (1 - decay**steps) for t in range(steps)]
        terms = [share * weights[name].double() for share, weights in zip(shares, seen.after, strict=True)]
        expected[name.removeprefix("model.")] = torch.stack(terms).sum(0).float()
    text = {name: tensor for name, tensor in expected.items() if not name.startswith("visual.")}
    visual = {name.replace("visual.", "encoder."): t for name, t in expected.items() if name.startswith("visual.")}
    assert tuned.text is not None
    close(dict(tuned.text), text)
    close({name: tuned.state_dict()[name] for name in visual}, visual)
    rows = written_head(tiny, tuned.text, zero.classes.names)
    torch.testing.assert_close(tuned.network.head.weight.detach(), rows)


# What draws to the start.


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only", "frozen-head", "norms-and-biases"])
def test_a_huge_pull_stays_at_the_start(few: sp.ShiftSuite, recipe: str) -> None:
    start = vit(few.classes)
    tuned = sp.finetune(start, few, settings(recipe=recipe, lr=1e-2, l2_to_start=1e15))
    close(tuned.state_dict(), start.state_dict(), atol=1e-9, rtol=1e-7)
    free = sp.finetune(start, few, settings(recipe=recipe, lr=1e-2))
    assert moved(start, free)


def test_a_huge_pull_stays_at_the_start_with_both_towers(
    zero: sp.Classifier, few: sp.ShiftSuite, tiny: sp.models.Clip
) -> None:
    tuned = sp.finetune(zero, few, settings(recipe="flyp", lr=1e-2, l2_to_start=1e15))
    assert tuned.text is not None
    close(dict(tuned.text), text_of(tiny), atol=1e-9, rtol=1e-6)
    close(tuned.state_dict(), zero.state_dict(), atol=1e-4)


def test_a_pull_is_the_proximal_step_after_every_other(few: sp.ShiftSuite, seen: Seen) -> None:
    start, pull, lr = vit(few.classes), 30.0, 1e-2
    tuned = sp.finetune(start, few, settings(lr=lr, l2_to_start=pull, batch_size=8))
    theta_0, ends = start.state_dict(), [*seen.before[1:], tuned.state_dict()]
    assert len(ends) == 3
    for step, (stepped, drawn) in enumerate(zip(seen.after, ends, strict=True)):
        strength = lr * cosine_with_warmup(step, 3, 0) * pull
        # argmin over theta of |theta - stepped|^2 / 2 + strength |theta - theta_0|^2 / 2
        expected = {name: (stepped[name] + strength * theta_0[name]) / (1 + strength) for name in theta_0}
        close(drawn, expected, atol=1e-7, rtol=1e-5)
        assert differing(drawn, stepped) == parameters(start)


def test_layers_that_learn_slowly_are_drawn_slowly(few: sp.ShiftSuite, seen: Seen) -> None:
    # As weight decay is, whose step is of a layer's own rate.
    start, pull = vit(few.classes), 30.0
    tuned = sp.finetune(start, few, settings(lr=1e-2, l2_to_start=pull, layer_decay=0.5, batch_size=24))
    (stepped,), (rates,), theta_0 = seen.after, seen.rates, start.state_dict()
    expected = {n: (stepped[n] + rates[n] * pull * theta_0[n]) / (1 + rates[n] * pull) for n in theta_0}
    close(tuned.state_dict(), expected, atol=1e-7, rtol=1e-5)


def slow_log_softmax(row: Sequence[float], temperature: float = 1.0) -> list[float]:
    scaled = [x / temperature for x in row]
    top = max(scaled)
    log_sum = top + math.log(math.fsum(math.exp(x - top) for x in scaled))
    return [x - log_sum for x in scaled]


def slow_divergence(student: list[list[float]], teacher: list[list[float]], temperature: float) -> float:
    """T^2 KL(teacher || student), mean over the rows."""
    total = 0.0
    for own, taught in zip(student, teacher, strict=True):
        q, p = slow_log_softmax(own, temperature), slow_log_softmax(taught, temperature)
        total += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


ROWS = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=4, max_size=4), min_size=3, max_size=3)


@given(student=ROWS, teacher=ROWS, temperature=st.floats(0.5, 10))
def test_distillation_is_the_divergence_from_the_teacher(
    student: list[list[float]], teacher: list[list[float]], temperature: float
) -> None:
    found = distillation_loss(torch.tensor(student), torch.tensor(teacher), temperature).item()
    assert found == pytest.approx(slow_divergence(student, teacher, temperature), rel=1e-3, abs=1e-3)
    assert distillation_loss(torch.tensor(teacher), torch.tensor(teacher), temperature).item() == pytest.approx(
        0, abs=1e-4
    )


def test_the_loss_is_shared_between_labels_and_teacher(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    weight, temperature, smoothing = 0.3, 2.0, 0.1
    weights = zero.state_dict()
    begun = zero.with_weights({**weights, "head.bias": torch.linspace(-2, 2, 12)})
    asked = settings(
        distillation=weight, distillation_temperature=temperature, label_smoothing=smoothing, batch_size=6, accumulate=2
    )
    recipe = recipe_of(begun, asked, zero, seed=0, device="cpu")
    images, labels = torch.randn(6, 3, 64, 64), [0, 3, 3, 5, 11, 7]
    losses = list(recipe.losses(recipe.module, images, torch.tensor(labels), 0))
    assert len(losses) == 2
    with torch.no_grad():
        student, teacher = begun.network(images).tolist(), zero.network(images).tolist()
    of_labels = 0.0
    for row, label in zip(student, labels, strict=True):
        logs = slow_log_softmax(row)
        of_labels -= ((1 - smoothing) * logs[label] + smoothing * sum(logs) / 12) / 6
    expected = (1 - weight) * of_labels + weight * slow_divergence(student, teacher, temperature)
    assert sum(loss.item() for loss in losses) == pytest.approx(expected, rel=1e-4)


def test_full_distillation_keeps_what_the_start_says(zero: sp.Classifier, few: sp.ShiftSuite) -> None:
    asked = settings(optimizer="sgd", momentum=0.0, lr=0.03, weight_decay=0.0, epochs=2)
    images = few.reference.test
    first, kept, free = (
        sp.predict(classifier, images).logits
        for classifier in (
            zero,
            sp.finetune(zero, few, replace(asked, distillation=1.0)),
            sp.finetune(zero, few, asked),
        )
    )
    assert kept.argmax(1).tolist() == first.argmax(1).tolist()
    # Where teacher and network agree, there is no slope but rounding.
    assert np.abs(kept - first).max() < 0.01 * np.abs(free - first).max()


# Layers.

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
    found = {}
    for name in names:
        (found[name],) = {depth for place, depth in places.items() if name == place or name.startswith(f"{place}.")}
    return found


@pytest.mark.parametrize(("tower", "places"), [("tiny", TINY_DEPTHS), ("vit", VIT_DEPTHS)])
def test_the_rate_falls_from_layer_to_layer(
    zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen, tower: str, places: dict[str, int]
) -> None:
    start = zero if tower == "tiny" else vit(few.classes)
    sp.finetune(start, few, settings(layer_decay=0.5, lr=1e-3, weight_decay=0.3))
    depth = below(parameters(start), places)
    for step, (rates, decays) in enumerate(zip(seen.rates, seen.decays, strict=True)):
        peak = 1e-3 * cosine_with_warmup(step, 2, 0)
        assert rates == pytest.approx({name: peak * 0.5 ** depth[name] for name in depth})
        matrix = {name: tensor.ndim >= 2 for name, tensor in start.state_dict().items()}
        assert decays == {name: 0.3 if matrix[name] else 0.0 for name in depth}


def test_layers_fall_within_a_timm_transformer_too(few: sp.ShiftSuite) -> None:
    import timm

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
    start = vit(few.classes)
    tuned = sp.finetune(start, few, settings(locked_layers=count))
    depth = below(parameters(start), VIT_DEPTHS)
    assert moved(start, tuned) == {name for name in depth if 4 - depth[name] >= count}


@pytest.mark.parametrize("recipe", ["end-to-end", "frozen-head", "norms-and-biases"])
def test_so_many_locked_layers_stay_and_no_more(few: sp.ShiftSuite, recipe: str) -> None:
    # Of an encoder that begins with a numbered layer, that layer is the lowest.
    start = toy(few.classes)
    free = sp.finetune(start, few, settings(recipe=recipe))
    locked = sp.finetune(start, few, settings(recipe=recipe, locked_layers=1))
    assert moved(start, free) - moved(start, locked) == {
        name for name in moved(start, free) if name.startswith("encoder.0.")
    }
    both = sp.finetune(start, few, settings(recipe=recipe, locked_layers=2))
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
        sp.finetune(vit(few.classes), few, settings(locked_layers=9))
    tuned = sp.finetune(vit(few.classes), few, settings(locked_layers=4))
    assert moved(vit(few.classes), tuned) == {"head.weight", "head.bias"}


def test_a_network_without_anything_to_train_is_refused(few: sp.ShiftSuite) -> None:
    with pytest.raises(sp.InputError, match=r"finetune\.locked_layers"):
        sp.finetune(vit(few.classes), few, settings(recipe="frozen-head", locked_layers=4))


# How long, on what, by which optimiser.


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> tuple[list[float], list[str]]:
    """Validation accuracies to come, epoch by epoch, and the fingerprints of what was scored."""
    planned: list[float] = []
    scored: list[str] = []

    def watched(classifier: sp.Classifier, *rest: Any, **options: Any) -> sp.evaluation.Predictions:
        scored.append(sp.models.fingerprint(classifier))
        return sp.predict(classifier, *rest, **options)

    monkeypatch.setattr(loop, "predict", watched)
    monkeypatch.setattr(loop, "accuracy", lambda *_: planned[len(scored) - 1])
    return planned, scored


@pytest.mark.parametrize(
    ("planned", "patience", "epochs", "best"),
    [
        ([0.2, 0.6, 0.5, 0.6, 0.9, 0.9], 2, 4, 1),  # an equal epoch is no better one
        ([0.2, 0.6, 0.5, 0.7, 0.9, 0.8], 2, 6, 4),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 1, 2, 0),
        ([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], 9, 6, 0),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 3, 4, 0),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 1, 6, 5),
    ],
)
@pytest.mark.parametrize("ema_decay", [0.0, 0.5])
def test_early_stopping_returns_the_best_epoch(
    few: sp.ShiftSuite,
    scores: tuple[list[float], list[str]],
    planned: list[float],
    patience: int,
    epochs: int,
    best: int,
    ema_decay: float,
) -> None:
    scores[0].extend(planned)
    tuned = sp.finetune(toy(few.classes), few, settings(epochs=6, early_stopping=patience, ema_decay=ema_decay))
    assert [entry["validation"] for entry in tuned.training["history"]] == planned[:epochs]
    assert len(set(scores[1])) == len(scores[1]) == epochs
    assert sp.models.fingerprint(tuned) == scores[1][best]


def test_without_it_the_last_epoch_is_returned(few: sp.ShiftSuite, scores: tuple[list[float], list[str]]) -> None:
    scores[0].extend([0.9, 0.1, 0.0])
    tuned = sp.finetune(toy(few.classes), few, settings(epochs=3))
    assert len(scores[1]) == 3
    assert sp.models.fingerprint(tuned) == scores[1][-1]


@given(seed=st.integers(0, 50), shots=st.integers(1, 6), counts=st.lists(st.integers(1, 6), min_size=2, max_size=4))
def test_shots_are_so_many_of_every_class_drawn_by_the_seed(seed: int, shots: int, counts: list[int]) -> None:
    labels = np.random.default_rng(seed).permutation([k for k, count in enumerate(counts) for _ in range(count)])
    classes = sp.ClassSpace.from_ids([f"class{k}" for k in range(len(counts))])
    ids = tuple(f"{label}-{i}" for i, label in enumerate(labels))
    images = sp.ImageSet("all", classes, ids, labels, lambda i: np.full((2, 2, 3), i, np.uint8))
    found, again = few_shot(images, shots, seed=seed), few_shot(images, shots, seed=seed)
    assert Counter(found.labels.tolist()) == {k: min(count, shots) for k, count in enumerate(counts)}
    assert found.ids == again.ids == tuple(name for name in ids if name in set(found.ids))
    assert all(images.ids[found.read(i)[0, 0, 0]] == name for i, name in enumerate(found.ids))
    assert [int(name.split("-")[0]) for name in found.ids] == found.labels.tolist()


def test_another_seed_draws_other_shots(few: sp.ShiftSuite) -> None:
    train = few.reference.train
    drawn = [few_shot(train, 1, seed=seed).ids for seed in range(12)]
    assert len(set(drawn)) == 12
    assert set(itertools.chain(*drawn)) == set(train.ids)


@pytest.mark.parametrize("recipe", ["end-to-end", "linear-probe"])
def test_only_the_shots_are_read(few: sp.ShiftSuite, recipe: str) -> None:
    train, read = few.reference.train, set[str]()

    def watched(i: int) -> np.ndarray:
        read.add(train.ids[i])
        return train.read(i)

    reference = replace(few.reference, train=replace(train, read=watched))
    tuned = sp.finetune(toy(few.classes), replace(few, reference=reference), settings(recipe=recipe, shots=1), seed=4)
    assert read == set(few_shot(train, 1, seed=4).ids)
    assert tuned.training["settings"]["shots"] == 1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_the_textbook_s(few: sp.ShiftSuite, seen: Seen, momentum: float) -> None:
    lr, decay, start = 0.1, 0.2, vit(few.classes)
    asked = settings(optimizer="sgd", momentum=momentum, lr=lr, weight_decay=decay, batch_size=8, clip_norm=0.5)
    tuned = sp.finetune(start, few, asked)
    weights = {name: tensor.double() for name, tensor in start.state_dict().items()}
    velocity = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    for step, gradients in enumerate(seen.gradients):
        assert math.sqrt(sum(float(g.square().sum()) for g in gradients.values())) < 0.5001
        for name, gradient in gradients.items():
            slope = gradient + (decay * weights[name] if weights[name].ndim >= 2 else 0)
            velocity[name] = momentum * velocity[name] + slope
            weights[name] = weights[name] - lr * cosine_with_warmup(step, 3, 0) * velocity[name]
    close(tuned.state_dict(), {name: tensor.float() for name, tensor in weights.items()}, atol=1e-6)


# What only saves memory or time.

# A rate at which the weights move by about a thousandth, and no adaptive step that would magnify rounding.
STEADY = {"optimizer": "sgd", "lr": 0.1, "clip_norm": 1.0}


@pytest.mark.parametrize("accumulate", [2, 5, 30])
@pytest.mark.parametrize("mixing", ["none", "mixup"])
def test_parts_of_a_batch_add_up_to_the_batch(few: sp.ShiftSuite, accumulate: int, mixing: str) -> None:
    asked = settings(**STEADY, mixing=mixing, label_smoothing=0.1, distillation=0.2)
    start = vit(few.classes)
    whole, parts = (sp.finetune(start, few, replace(asked, accumulate=count)) for count in (1, accumulate))
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
    sp.finetune(toy(few.classes), few, settings(accumulate=5))
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
    saving = sp.finetune(zero, few, settings(recipe=recipe, gradient_checkpointing=True))
    assert ran[True] == 2 * 3 * 2  # in two steps three blocks ran twice
    close(saving.state_dict(), plain.state_dict(), atol=1e-6)


@pytest.mark.parametrize("recipe", ["end-to-end", "lora", "norms-and-biases"])
def test_gradient_checkpointing_changes_no_weight_of_a_transformer(few: sp.ShiftSuite, recipe: str) -> None:
    start = vit(few.classes)
    plain, saving = (
        sp.finetune(start, few, settings(recipe=recipe, gradient_checkpointing=given_one))
        for given_one in (False, True)
    )
    close(saving.state_dict(), plain.state_dict(), atol=1e-6)
    assert moved(start, saving) == moved(start, plain)


def test_a_tower_that_knows_no_checkpointing_says_so(few: sp.ShiftSuite) -> None:
    with pytest.raises(
        sp.InputError,
        match=r"Sequential does not support gradient checkpointing.*twice.*gradient_checkpointing to false",
    ):
        sp.finetune(toy(few.classes), few, settings(gradient_checkpointing=True))


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
    for tower, said in ((resnet, "open_clip has none"), (Reluctant(), "not supported"), (nn.Linear(1, 1), "attribute")):
        with pytest.raises(
            sp.InputError, match=f"{type(tower).__name__} does not support gradient checkpointing .*{said}"
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
    asked = settings(**STEADY, recipe=recipe)
    plain = sp.finetune(zero, few, asked)
    found = sp.finetune(zero, few, replace(asked, channels_last=True), checkpoints=tmp_path)
    close(found.state_dict(), plain.state_dict(), atol=1e-4, rtol=1e-3)
    assert moved(zero, found) == moved(zero, plain)
    again = sp.load_classifier(sp.save_classifier(found, tmp_path / "saved"))
    assert moved(found, again) == set()


@pytest.mark.parametrize("recipe", ["end-to-end", "flyp", "lora"])
def test_bfloat16_trains_float32_weights(zero: sp.Classifier, few: sp.ShiftSuite, seen: Seen, recipe: str) -> None:
    asked, suite = settings(recipe=recipe, batch_size=8), smaller(few, 8)
    plain, rough = (sp.finetune(zero, suite, replace(asked, precision=name)) for name in ("float32", "bfloat16"))
    for weights in (*seen.after, rough.state_dict()):
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
        assert all(tensor.isfinite().all() for tensor in weights.values())
    assert {gradient.dtype for gradient in seen.gradients[-1].values()} == {torch.float32}
    losses = [tuned.training["history"][0]["loss"] for tuned in (plain, rough)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)


# The whole way, for every recipe.

HEADS = {"frozen-head": "frozen", "lora": "frozen", "flyp": "rebuilt"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_goes_all_the_way(
    zero: sp.Classifier, few: sp.ShiftSuite, tuned_by: Trained, tmp_path: Path, recipe: str
) -> None:
    before = {name: tensor.clone() for name, tensor in zero.state_dict().items()}
    trainable = [p.requires_grad for p in zero.network.parameters()]
    tuned = sp.finetune(zero, few, settings(recipe=recipe))
    assert tuned.head == HEADS.get(recipe, "trained")
    assert tuned.training["settings"]["recipe"] == recipe
    assert type(tuned.network) is Network
    assert not any(module.training for module in tuned.network.modules())
    assert all(p.requires_grad for p in tuned.network.parameters())
    assert moved(zero, tuned)
    assert moved(tuned, tuned_by(recipe)) == set()
    # The start stays as it was.
    assert differing(before, zero.state_dict()) == set()
    assert [p.requires_grad for p in zero.network.parameters()] == trainable
    assert not any(module.training for module in zero.network.modules())
    path = sp.sweep_alpha(zero, tuned, few, 3)
    middle = sp.wise_ft(zero, tuned, 0.5)
    for alpha, classifier in ((0.0, zero), (0.5, middle), (1.0, tuned)):
        found = sp.predict(classifier, few.shifts[0].data)
        assert path.at(alpha).accuracy["sketch"] == np.mean(found.logits.argmax(1) == found.labels)
        again = sp.load_classifier(sp.save_classifier(classifier, tmp_path / f"{alpha}"))
        assert sp.models.fingerprint(again) == sp.models.fingerprint(classifier)
        assert np.array_equal(sp.predict(again, few.shifts[0].data).logits, found.logits)
        assert (again.head, again.logit_scale) == (classifier.head, classifier.logit_scale)
    assert json.loads(json.dumps(tuned.training)) == sp.load_classifier(tmp_path / "1.0").training


# What is refused.

SOME = {
    "mixing": "mixup",
    "ema_decay": 0.9,
    "l2_to_start": 0.1,
    "distillation": 0.5,
    "layer_decay": 0.5,
    "locked_layers": 1,
    "early_stopping": 1,
    "label_smoothing": 0.1,
    "accumulate": 2,
}
USELESS = {
    "linear-probe": {*SOME} - {"accumulate"},
    "flyp": {"distillation", "label_smoothing", "layer_decay", "locked_layers", "accumulate"},
    "lora": {"l2_to_start", "ema_decay", "layer_decay", "locked_layers"},
    "head-only": {"layer_decay", "locked_layers"},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("key", SOME)
def test_what_a_recipe_has_no_use_for_is_refused_by_name(recipe: str, key: str) -> None:
    if key in USELESS.get(recipe, ()):
        with pytest.raises(sp.InputError, match=rf"finetune\.{key} "):
            sp.FinetuneSettings(recipe=recipe, **{key: SOME[key]})
    else:
        assert getattr(sp.FinetuneSettings(recipe=recipe, **{key: SOME[key]}), key) == SOME[key]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": "lorra"}, r"unknown finetune\.recipe 'lorra'. Did you mean 'lora'\?"),
        ({"recipe": "head_only"}, r"Did you mean 'head-only'\?"),
        ({"recipe": "linear_probe"}, r"Did you mean 'linear-probe'\?"),
        ({"optimizer": "adam"}, r"unknown finetune\.optimizer 'adam'. Did you mean 'adamw'\?"),
        ({"precision": "bfloat"}, r"unknown finetune\.precision 'bfloat'. Did you mean 'bfloat16'\?"),
        ({"accumulate": 0}, r"finetune\.accumulate is 0"),
        ({"checkpoint_every": 0}, r"finetune\.checkpoint_every is 0"),
        ({"checkpoints_kept": 0}, r"finetune\.checkpoints_kept is 0"),
        ({"layer_decay": 0.0}, r"finetune\.layer_decay is 0\.0"),
        ({"layer_decay": 1.5}, r"finetune\.layer_decay is 1\.5"),
        ({"locked_layers": -1}, r"finetune\.locked_layers is -1"),
        ({"l2_to_start": -1.0}, r"finetune\.l2_to_start is -1"),
        ({"l2_to_start": math.nan}, r"finetune\.l2_to_start is nan"),
        ({"distillation": 1.5}, r"finetune\.distillation is 1\.5"),
        ({"distillation_temperature": 0.0}, r"finetune\.distillation_temperature is 0"),
        ({"momentum": -0.1}, r"finetune\.momentum is -0\.1"),
        ({"lora_rank": 0}, r"finetune\.lora_rank is 0"),
        ({"lora_scale": 0.0}, r"finetune\.lora_scale is 0"),
        ({"early_stopping": -1}, r"finetune\.early_stopping is -1"),
        ({"shots": 0}, r"finetune\.shots is 0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        sp.FinetuneSettings(**changes)
    with pytest.raises(sp.InputError, match=said):
        sp.RunFile.resolve({"finetune": changes})


def test_a_key_that_is_misspelt_is_told(zero: sp.Classifier) -> None:
    with pytest.raises(sp.InputError, match=r"early_stoping"):
        sp.RunFile.resolve({}, ["finetune.early_stoping=1"])


def test_float16_needs_a_gpu(few: sp.ShiftSuite) -> None:
    with pytest.raises(sp.InputError, match=r"float16 needs a GPU. Use bfloat16"):
        sp.finetune(toy(few.classes), few, settings(precision="float16"))
