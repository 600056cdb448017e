"""Fine-tuning: what it moves, what it leaves, what it records, and how it stops."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import shiftproof as sp
from shiftproof import progress
from shiftproof.data.batches import training_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import array_set
from shiftproof.errors import DivergenceError, TrainingError
from shiftproof.finetuning import loop, recipes
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS, mixing_from
from shiftproof.mixing.plans import mix_images
from shiftproof.mixing.targets import soft_cross_entropy
from shiftproof.models.classifier import Network
from shiftproof.runs.file import MIXED_SETTINGS
from shiftproof.seeding import child_generator, child_seed
from shiftproof.training import engine as training
from shiftproof.training.engine import cosine_with_warmup, optimisation_step, parameter_groups, positions_at

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear", "plum"])
COLOURS = np.array([[230, 220, 60], [200, 30, 40], [150, 200, 70], [90, 40, 130]])
NORMS = (nn.GroupNorm, nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d)


def squares(name: str, views: int, seed: int, *, noise: float = 25, classes: sp.ClassSpace = CLASSES) -> sp.ImageSet:
    """A noisy square in the class's colour, anywhere on white; without noise, the whole image in that colour."""
    labels = np.repeat(np.arange(len(classes)), views)

    def draw() -> np.ndarray:
        generator = np.random.default_rng(seed)
        images = np.full((len(labels), 32, 32, 3), 255, dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            if not noise:
                image[:] = COLOURS[label]
                continue
            y, x = generator.integers(0, 16, 2)
            drawn = COLOURS[label] + generator.normal(0, noise, (16, 16, 3))
            image[y : y + 16, x : x + 16] = drawn.clip(0, 255)
        return images

    return array_set(name, classes, [f"{name}-{i}" for i in range(len(labels))], labels, draw)


def unreadable(name: str) -> sp.ImageSet:
    def read(_: int) -> np.ndarray:
        raise AssertionError(f"{name} was read")

    return replace(squares(name, 2, 0), read=read)


def load_run_suite(train: sp.ImageSet, validation: sp.ImageSet) -> sp.ShiftSuite:
    """What fine-tuning may read, beside a test split and a shift that must stay closed."""
    reference = sp.data.Reference("photo", train, validation, unreadable("test"))
    return sp.ShiftSuite("squares", CLASSES, reference, (sp.data.Shift("sketch", "natural", unreadable("sketch")),))


SUITE = load_run_suite(squares("train", 6, 0), squares("validation", 4, 1))


def toy(seed: int = 0, **changes: Any) -> sp.Classifier:
    """A convolution with batch norm under a linear head: fast, and with statistics that could move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        head = nn.Linear(32, len(CLASSES))
    made = sp.Classifier(
        network=Network(encoder, head).eval(),
        classes=CLASSES,
        preprocessing=Preprocessing(size=16),
        architecture={"name": "toy"},
        source="toy",
        prompts=("a {}.",),
        head="zero-shot",
        logit_scale=1.0,
    )
    return replace(made, **changes)


def settings(**changes: Any) -> sp.FinetuneSettings:
    given_ones = {"epochs": 2, "lr": 1e-2, "batch_size": 12, "warmup_steps": 0, **changes}
    return sp.FinetuneSettings(**given_ones)


def bits(classifier: sp.Classifier) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in classifier.state_dict().items()}


def fraction_right(classifier: sp.Classifier, images: sp.ImageSet) -> float:
    found = sp.predict(classifier, images)
    right = 0
    for row, label in zip(found.logits.tolist(), found.labels.tolist(), strict=True):
        right += row.index(max(row)) == label
    return right / len(images)


# What moves and what does not.


def test_head_only_keeps_every_bit_of_the_encoder() -> None:
    start = toy()
    tuned = sp.finetune(start, SUITE, settings(recipe="head-only"))
    before, after = bits(start), bits(tuned)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {"head.weight", "head.bias"}


def test_end_to_end_moves_the_encoder_and_its_statistics() -> None:
    start = toy()
    tuned = sp.finetune(start, SUITE, settings())
    before, after = bits(start), bits(tuned)
    assert {name for name in before if before[name] == after[name]} == set()


def test_end_to_end_learns_the_reference(tiny: sp.models.Clip) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    tuned = sp.finetune(start, SUITE, settings(epochs=6, lr=1e-3))
    train, validation = SUITE.reference.train, SUITE.reference.validation
    assert fraction_right(tuned, train) >= fraction_right(start, train) + 0.2
    assert fraction_right(tuned, validation) >= 0.9


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only"])
def test_the_start_stays_as_it_was(recipe: str) -> None:
    start = toy()
    before, network = bits(start), start.network
    trainable = [p.requires_grad for p in network.parameters()]
    sp.finetune(start, SUITE, settings(recipe=recipe))
    assert bits(start) == before
    assert start.network is network
    assert [p.requires_grad for p in network.parameters()] == trainable
    assert all(p.grad is None for p in network.parameters())
    assert not any(module.training for module in network.modules())
    # A frozen start could not be trained again; this one can.
    network.train()
    assert all(module.training for module in network.modules())


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (sp.finetune(toy(), SUITE, settings(), seed=seed) for seed in (0, 0, 1))
    assert bits(first) == bits(again)
    assert first.training == again.training
    assert bits(first)["head.weight"] != bits(other)["head.weight"]


def test_the_seed_decides_the_order() -> None:
    # Crops of an image of one colour are all alike, so that nothing but the order is left to differ.
    suite = load_run_suite(squares("train", 6, 0, noise=0), SUITE.reference.validation)
    first, other = (sp.finetune(toy(), suite, settings(batch_size=5), seed=seed) for seed in (0, 1))
    moved = first.state_dict()["head.weight"] - other.state_dict()["head.weight"]
    assert moved.abs().max() > 1e-4


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = sp.finetune(toy(), SUITE, settings())
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    second = sp.finetune(toy(), SUITE, settings())
    assert bits(first) == bits(second)
    assert torch.equal(state, torch.random.get_rng_state())


def test_it_is_returned_ready_to_predict_and_says_where_it_comes_from() -> None:
    start = toy()
    tuned = sp.finetune(start, SUITE, settings(), seed=3)
    assert not any(module.training for module in tuned.network.modules())
    assert tuned.head == "trained"
    assert tuned.alpha is None
    assert tuned.training["seed"] == 3
    assert tuned.training["settings"]["lr"] == 1e-2
    assert [(p["role"], p["fingerprint"]) for p in tuned.parents] == [("start", sp.models.fingerprint(start))]


def test_neither_a_shift_nor_the_test_split_is_read() -> None:
    for images in SUITE.test_sets.values():
        with pytest.raises(AssertionError, match="was read"):
            sp.predict(toy(), images)
    sp.finetune(toy(), SUITE, settings())


# Weight decay.


def test_only_matrices_decay(tiny: sp.models.Clip) -> None:
    model = tiny.model
    decaying, steady = parameter_groups(model, 0.3)
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.3, 0.0)
    exempt = {id(model.logit_scale)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS) or "bias" in name:
                exempt.add(id(parameter))
    assert len(exempt) > 20
    assert {id(p) for p in steady["params"]} == exempt
    everything = [id(p) for group in (decaying, steady) for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in model.parameters())


def test_frozen_parameters_are_in_no_group() -> None:
    network = toy().network
    network.encoder.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert [id(p) for group in groups for p in group["params"]] == [id(network.head.weight), id(network.head.bias)]


def test_decay_shrinks_matrices_and_nothing_else() -> None:
    network = toy().network
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(network, 0.5), lr=0.0)
    loss = sum(0 * p.sum() for p in network.parameters())
    assert isinstance(loss, Tensor)
    optimisation_step(loss, list(network.parameters()), optimizer, lr=0.1, clip_norm=1.0)
    for name, parameter in network.named_parameters():
        kept = 0.95 if name in ("encoder.0.weight", "head.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), kept * before[name], msg=name)


# The loss.


def smoothed_loss(rows: list[list[float]], labels: list[int], smoothing: float) -> float:
    """Mean over the rows of -sum_k q_k log p_k with q = (1 - s) onehot + s / K."""
    total = 0.0
    for row, label in zip(rows, labels, strict=True):
        high = max(row)
        log_sum = high + math.log(sum(math.exp(x - high) for x in row))
        for k, x in enumerate(row):
            target = smoothing / len(row) + (1 - smoothing if k == label else 0)
            total -= target * (x - log_sum)
    return total / len(rows)


@given(
    rows=st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5),
    smoothing=st.floats(0, 1),
    data=st.data(),
)
def test_label_smoothing_spreads_its_share_over_all_classes(
    rows: list[list[float]], smoothing: float, data: st.DataObject
) -> None:
    labels = data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows)))
    found = recipes.classification_loss(torch.tensor(rows), torch.tensor(labels), smoothing)
    assert found.item() == pytest.approx(smoothed_loss(rows, labels, smoothing), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_first_loss_is_that_of_the_start(tiny: sp.models.Clip, smoothing: float) -> None:
    # Images of one colour look the same under every crop, and the first step is taken from the start's weights.
    train = squares("train", 3, 0, noise=0)
    start = sp.zero_shot_classifier(tiny, CLASSES)
    asked = settings(epochs=1, batch_size=len(train), label_smoothing=smoothing)
    tuned = sp.finetune(start, load_run_suite(train, SUITE.reference.validation), asked)
    found = sp.predict(start, train)
    expected = smoothed_loss(found.logits.tolist(), found.labels.tolist(), smoothing)
    assert tuned.training["history"][0]["loss"] == pytest.approx(expected, rel=1e-4)


# The history.


@pytest.mark.parametrize("batch_size", [5, 7, 12, 24, 40])
def test_validation_is_scored_after_every_epoch(batch_size: int) -> None:
    epochs, images = 3, len(SUITE.reference.train)
    tuned = sp.finetune(toy(), SUITE, settings(epochs=epochs, batch_size=batch_size))
    # An epoch ends with the step at which every image has been drawn once more on average.
    ends, seen, step = [], 0, 0
    while seen < epochs * images:
        before, seen, step = seen, seen + batch_size, step + 1
        if seen // images > before // images:
            ends.append(step)
    history = tuned.training["history"]
    assert [entry["step"] for entry in history] == ends
    assert history[-1]["validation"] == fraction_right(tuned, SUITE.reference.validation)


def test_progress_is_reported_for_every_step() -> None:
    seen: list[progress.Event] = []
    with progress.listening(seen.append):
        tuned = sp.finetune(toy(), SUITE, settings())
    steps = [event for event in seen if event.stage == "fine-tune"]
    assert [(event.done, event.total) for event in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    losses = [event.values["loss"] for event in steps]
    history = tuned.training["history"]
    assert [entry["loss"] for entry in history] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])


# The schedule.


@given(steps=st.integers(1, 3000), asked=st.integers(0, 3000))
def test_warm_up_takes_a_tenth_at_most(steps: int, asked: int) -> None:
    warmup = sp.FinetuneSettings(warmup_steps=asked).warmup(steps)
    assert warmup <= asked
    assert 10 * warmup <= steps
    assert warmup == asked or 10 * (warmup + 1) > steps


@given(total=st.integers(1, 400), warmup=st.integers(0, 400))
def test_the_rate_rises_to_its_peak_and_falls(total: int, warmup: int) -> None:
    rates = [cosine_with_warmup(step, total, warmup) for step in range(total)]
    top = min(warmup, total)
    for step, rate in enumerate(rates):
        if step < top:
            assert rate == pytest.approx((step + 1) / top)
        else:
            assert rate == pytest.approx(math.cos(math.pi / 2 * (step - top) / (total - top)) ** 2)
    assert max(rates) == pytest.approx(1)
    assert min(rates) > 0


def test_a_long_warm_up_is_capped_in_the_training_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    def recorded(losses: Any, parameters: Any, optimizer: Any, lr: float, *rest: Any) -> float:
        rates.append(lr)
        return optimisation_step(losses, parameters, optimizer, lr, *rest)

    monkeypatch.setattr(training, "optimisation_step", recorded)
    sp.finetune(toy(), SUITE, settings(epochs=10, warmup_steps=500))
    assert len(rates) == 20
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)


@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 3))
def test_every_epoch_shows_every_image_once(images: int, batch_size: int, seed: int) -> None:
    drawn = [i for step in range(images) for i in positions_at(step, batch_size, images, seed)]
    assert len(drawn) == images * batch_size
    for epoch in range(batch_size):
        assert sorted(drawn[epoch * images : (epoch + 1) * images]) == list(range(images))


# How it stops.


def test_a_rate_that_is_far_too_high_stops_with_the_start_kept(tiny: sp.models.Clip, tmp_path: Path) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    with pytest.raises(TrainingError, match=r"stopped at step 2: .*nan(.|\n)*the start(.|\n)*finetune\.lr") as caught:
        sp.finetune(start, SUITE, settings(lr=1e20), checkpoints=tmp_path / "kept")
    assert str(tmp_path / "kept" / "last_good") in str(caught.value)
    kept = sp.load_classifier(tmp_path / "kept" / "last_good")
    assert sp.models.fingerprint(kept) == sp.models.fingerprint(start)


def test_weights_that_break_in_the_last_step_are_not_returned(tiny: sp.models.Clip, tmp_path: Path) -> None:
    # One step in all: no later loss could tell.
    start = sp.zero_shot_classifier(tiny, CLASSES)
    with pytest.raises(TrainingError, match="step 1"):
        sp.finetune(start, SUITE, settings(lr=1e20, epochs=1, batch_size=24), checkpoints=tmp_path / "kept")
    assert sp.models.fingerprint(sp.load_classifier(tmp_path / "kept" / "last_good")) == sp.models.fingerprint(start)


def test_the_last_good_epoch_is_kept(tiny: sp.models.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, asked = sp.zero_shot_classifier(tiny, CLASSES), settings(epochs=3, lr=1e-3)
    reached: list[str] = []

    def watched(classifier: sp.Classifier, images: sp.ImageSet, **options: Any) -> sp.evaluation.Predictions:
        reached.append(sp.models.fingerprint(classifier))
        return sp.predict(classifier, images, **options)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "predict", watched)
        sp.finetune(start, SUITE, asked)
    assert len(set(reached)) == 3

    calls = 0

    def broken(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        nonlocal calls
        calls += 1
        return smoothed(logits, labels, smoothing) * (math.inf if calls == 6 else 1)

    smoothed = recipes.classification_loss
    monkeypatch.setattr(recipes, "classification_loss", broken)
    with pytest.raises(TrainingError, match=r"stopped at step 6: the loss is inf.*weights of step 4"):
        sp.finetune(start, SUITE, asked, checkpoints=tmp_path / "kept")
    assert sp.models.fingerprint(sp.load_classifier(tmp_path / "kept" / "last_good")) == reached[1]


def test_inputs_that_are_not_finite_stop_the_first_step(tmp_path: Path) -> None:
    broken = toy(preprocessing=Preprocessing(size=16, std=(0.0, 1.0, 1.0)))
    with pytest.raises(TrainingError, match="stopped at step 1") as caught:
        sp.finetune(broken, SUITE, settings())
    assert "kept" not in str(caught.value)


class Scaling:
    """What accelerate does in float16: gradients are scaled, and a step whose gradients overflow is left out."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.scaler, self.optimizer = torch.amp.GradScaler("cpu"), optimizer
        self.zero_grad, self.param_groups = optimizer.zero_grad, optimizer.param_groups

    def backward(self, loss: torch.Tensor) -> None:
        self.scaler.scale(loss).backward()

    def clip_grad_norm_(self, parameters: list[nn.Parameter], norm: float) -> torch.Tensor:
        self.scaler.unscale_(self.optimizer)
        return nn.utils.clip_grad_norm_(parameters, norm)

    def step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


def test_float16_leaves_a_step_out_but_not_all_of_them() -> None:
    layer = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    scaling = Scaling(torch.optim.SGD(layer.parameters(), lr=0.0))

    def step(steep: bool) -> None:
        out = layer(torch.ones(1, 2))
        loss = (0 * out).abs().sqrt().sum() if steep else out.sum()
        optimisation_step(loss, list(layer.parameters()), scaling, 0.1, 1.0, scaling)  # type: ignore[arg-type]

    for _ in range(3):
        step(steep=True)
    assert all(torch.equal(p.detach(), before[name]) for name, p in layer.named_parameters())
    step(steep=False)
    assert not torch.equal(layer.bias.detach(), before["bias"])
    with pytest.raises(DivergenceError, match="gradient's norm is nan"):
        any(step(steep=True) for _ in range(60))


def test_a_step_that_is_left_out_draws_to_no_start_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.Trainer, "skipped", True)
    free, drawn = (sp.finetune(toy(), SUITE, settings(l2_to_start=pull)) for pull in (0.0, 1e9))
    assert all(torch.equal(tensor, drawn.state_dict()[name]) for name, tensor in free.state_dict().items())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_step_leaves_the_weights_alone(value: float) -> None:
    layer = nn.Linear(2, 1)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(layer, 0.1), lr=0.0)
    parameters = list(layer.parameters())
    with pytest.raises(TrainingError, match="the loss is"):
        optimisation_step(layer(torch.ones(1, 2)).sum() * value, parameters, optimizer, 0.1, 1.0)
    # A finite loss with an infinite slope.
    with pytest.raises(TrainingError, match="gradient's norm"):
        optimisation_step((0 * layer(torch.ones(1, 2))).abs().sqrt().sum(), parameters, optimizer, 0.1, 1.0)
    assert all(torch.equal(p.detach(), before[name]) for name, p in layer.named_parameters())


def test_gradients_are_clipped_to_their_global_norm() -> None:
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    optimisation_step((layer(torch.tensor([[300.0, 400.0]]))).sum(), list(layer.parameters()), optimizer, 1.0, 2.0)
    torch.testing.assert_close(before - layer.weight.detach(), torch.tensor([[1.2, 1.6]]), rtol=1e-4, atol=1e-4)


def test_other_classes_are_refused() -> None:
    other = sp.ClassSpace.from_ids(["lemon", "red_apple", "plum", "pear"])
    with pytest.raises(sp.InputError, match="classes"):
        sp.finetune(toy(classes=other), SUITE, settings())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", "end_to_end"),
        ("epochs", 0),
        ("batch_size", 0),
        ("lr", -1e-3),
        ("lr", math.nan),
        ("lr", math.inf),
        ("lr", 1e38),
        ("weight_decay", -0.1),
        ("warmup_steps", -1),
        ("clip_norm", -1.0),
        ("clip_norm", math.inf),
        ("label_smoothing", 1.5),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.5, 1.5)),
        ("mixing", "smothmix"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(sp.InputError, match=rf"finetune\.{key}"):
        sp.FinetuneSettings(**{key: value})


def test_layers_that_draw_at_random_are_seeded_and_leave_the_caller_s_state_alone() -> None:
    start = toy()
    dropping = Network(nn.Sequential(start.network.encoder, nn.Dropout(0.5)), start.network.head)
    start = replace(start, network=dropping.eval())
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        expected = torch.rand(1)
        torch.manual_seed(state)
        found.append(bits(sp.finetune(start, SUITE, settings())))
        assert torch.equal(torch.rand(1), expected)
    assert found[0] == found[1]


# Mixing.

# A batch norm follows the bias, so that its gradient is rounding alone, and the running mean goes where it goes.
UNDETERMINED = ("encoder.0.bias", "encoder.1.running_mean")
ELSEWHERE = "open_clip:ViT-B-32/openai"  # a model without settings of its own


def bare_loop(start: sp.Classifier, asked: sp.FinetuneSettings, mixing: Mixing | None, off: int = 0) -> sp.Classifier:
    """The loop without anything around it; the last ``off`` steps do not mix."""
    train, network = SUITE.reference.train, deepcopy(start.network).train()
    parameters, steps = list(network.parameters()), asked.steps(len(SUITE.reference.train))
    optimizer = torch.optim.AdamW(parameter_groups(network, asked.weight_decay), lr=0.0)
    places = [positions_at(step, asked.batch_size, len(train), child_seed(0, "finetune")) for step in range(steps)]
    for step, images in enumerate(training_batches(train, start.preprocessing, places, asked.crop_scale, seed=0)):
        labels = torch.as_tensor(train.labels[places[step]])
        if mixing is None or step >= steps - off:
            loss = functional.cross_entropy(network(images), labels, label_smoothing=asked.label_smoothing)
        else:
            mixing = replace(mixing, num_classes=len(CLASSES), label_smoothing=asked.label_smoothing)
            mixed, targets = mixing(images, labels, generator=child_generator(0, "mixing", step))
            loss = soft_cross_entropy(network(mixed), targets)
        optimisation_step(loss, parameters, optimizer, asked.lr * cosine_with_warmup(step, steps, 0), asked.clip_norm)
    return start.with_weights({name: tensor.detach() for name, tensor in network.state_dict().items()})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixing_it_is_the_bare_loop_bit_for_bit(smoothing: float) -> None:
    asked = settings(label_smoothing=smoothing, batch_size=7)
    assert bits(sp.finetune(toy(), SUITE, asked)) == bits(bare_loop(toy(), asked, None))
    assert bits(sp.finetune(toy(), SUITE, replace(asked, mixing="none"))) == bits(sp.finetune(toy(), SUITE, asked))


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_mixing_it_is_the_bare_loop_on_mixed_images_and_labels(name: str, smoothing: float) -> None:
    asked = settings(label_smoothing=smoothing, mixing=name, mixing_probability=0.75, mixing_off_epochs=1)
    found = sp.finetune(toy(), SUITE, asked).state_dict()
    mixing = replace(MIXINGS[name], probability=0.75)
    expected = bare_loop(toy(), asked, mixing, off=2).state_dict()
    for key, tensor in found.items():
        if key not in UNDETERMINED:
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4, msg=key)
    # A wrong twin would not pass: without mixing the weights are elsewhere.
    plain = bare_loop(toy(), asked, None).state_dict()
    assert (plain["head.weight"] - found["head.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("recipe", ["end-to-end", "head-only"])
@pytest.mark.parametrize("mixing", [*MIXINGS, {"mixup": 1, "cutmix": 3}])
def test_mixing_changes_the_weights_and_the_seed_repeats_them(recipe: str, mixing: Any) -> None:
    asked = settings(recipe=recipe, mixing=mixing)
    torch.manual_seed(1)
    first = sp.finetune(toy(), SUITE, asked)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again, other = (sp.finetune(toy(), SUITE, asked, seed=seed) for seed in (0, 1))
    plain = sp.finetune(toy(), SUITE, settings(recipe=recipe))
    assert torch.equal(state, torch.random.get_rng_state())
    assert bits(first) == bits(again)
    assert bits(first)["head.weight"] not in (bits(plain)["head.weight"], bits(other)["head.weight"])


@pytest.mark.parametrize("name", MIXINGS)
def test_mixing_that_is_off_in_all_epochs_is_none(name: str) -> None:
    plain = bits(sp.finetune(toy(), SUITE, settings()))
    off = sp.finetune(toy(), SUITE, settings(mixing=name, mixing_off_epochs=2))
    assert bits(off) == plain
    never = sp.finetune(toy(), SUITE, settings(mixing=name, mixing_probability=0.0)).state_dict()
    for key, tensor in sp.finetune(toy(), SUITE, settings()).state_dict().items():
        if key not in UNDETERMINED:
            torch.testing.assert_close(never[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(("off", "mixed"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 2, 3]), (2, [0, 1]), (3, [])])
def test_the_last_epochs_do_not_mix(monkeypatch: pytest.MonkeyPatch, off: int, mixed: list[int]) -> None:
    plans: list[Any] = []

    def recorded(images: Tensor, plan: Any) -> Tensor:
        plans.append(plan)
        return mix_images(images, plan)

    monkeypatch.setattr(loop, "mix_images", recorded)
    sp.finetune(toy(), SUITE, settings(epochs=3, mixing="mixup", mixing_off_epochs=off))
    expected = [MixUp().plan(12, (16, 16), child_generator(0, "mixing", step)) for step in mixed]
    assert [plan.weights.tolist() for plan in plans] == [plan.weights.tolist() for plan in expected]


@given(epochs=st.integers(1, 5), images=st.integers(1, 30), batch_size=st.integers(1, 12), data=st.data())
def test_a_step_mixes_where_its_first_image_is_of_a_mixing_epoch(
    epochs: int, images: int, batch_size: int, data: st.DataObject
) -> None:
    off = data.draw(st.integers(0, epochs))
    asked = sp.FinetuneSettings(epochs=epochs, batch_size=batch_size, mixing="cutmix", mixing_off_epochs=off)
    epoch_of = [epoch for epoch in range(epochs) for _ in range(images)]
    firsts = epoch_of[::batch_size]
    assert asked.steps(images) == len(firsts)
    found = [asked.mixes_at(step, images) for step in range(len(firsts))]
    assert found == [epoch < epochs - off for epoch in firsts]


@pytest.mark.parametrize(
    ("mixing", "mixer"),
    [
        ("none", None),
        ("smoothmix-circle", SmoothMix()),
        ("smoothmix-square", SmoothMix(kind="square")),
        ({"method": "cutout", "fill": "noise"}, Cutout(fill="noise")),
        ({"cutmix": 2, "mixup": 1}, MixChoice(mixings=(CutMix(), MixUp()), weights=(2.0, 1.0))),
        (SmoothMix(kind="square", edge=0.5), SmoothMix(kind="square", edge=0.5)),
        (MixChoice(mixings=(CutMix(), MixUp())), MixChoice(mixings=(CutMix(), MixUp()))),
        (CutMix(probability=0.3), CutMix(probability=0.3)),
    ],
)
def test_a_mixing_is_asked_for_by_name_by_settings_or_as_an_object(mixing: Any, mixer: Mixing | None) -> None:
    asked = sp.FinetuneSettings(mixing=mixing)
    assert asked.mixer == mixer
    assert json.loads(json.dumps(asked.mixing)) == asked.mixing
    if mixer is not None:
        assert replace(asked, mixing_probability=0.7).mixer == replace(mixer, probability=0.7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixing": "cutmx"}, "unknown finetune.mixing 'cutmx'.*'cutmix'"),
        ({"mixing": None}, "mixing is None"),
        ({"mixing": {"cutmx": 1}}, "unknown finetune.mixing 'cutmx'.*'cutmix'"),
        ({"mixing": {"method": "cutmx"}}, "unknown mixing method 'cutmx'.*'cutmix'"),
        ({"mixing": {"method": "cutmix", "edge": 2}}, "edge is 2"),
        ({"mixing": {"method": "cutmix", "alpha": 2}}, "unknown setting of cutmix 'alpha'"),
        ({"mixing": {"method": "cutmix", "label_smoothing": 0.1}}, r"finetune\.label_smoothing"),
        ({"mixing": CutMix(label_smoothing=0.1)}, r"finetune\.label_smoothing"),
        ({"mixing": "cutmix", "mixing_probability": 1.5}, r"finetune\.mixing_probability is 1\.5"),
        ({"mixing": "cutmix", "mixing_probability": math.nan}, r"finetune\.mixing_probability is nan"),
        ({"mixing": "cutmix", "mixing_off_epochs": -1}, r"finetune\.mixing_off_epochs is -1"),
        ({"mixing": "cutmix", "mixing_off_epochs": 11}, r"finetune\.mixing_off_epochs is 11"),
        ({"mixing_probability": 0.5}, r"finetune\.mixing_probability .*Set finetune\.mixing"),
        ({"mixing_off_epochs": 1}, r"mixing_off_epochs need a mixing"),
    ],
)
def test_a_mixing_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(sp.InputError, match=said):
        sp.FinetuneSettings(**changes)
    if not isinstance(changes.get("mixing"), Mixing):
        with pytest.raises(sp.InputError, match=said):
            sp.RunFile.resolve({"model": ELSEWHERE, "finetune": {"epochs": 10, **changes}})


@pytest.mark.parametrize(
    ("overrides", "mixer"),
    [
        (["finetune.mixing=smoothmix-square"], SmoothMix(kind="square")),
        (["finetune.mixing={method: cutout, fill: noise}"], Cutout(fill="noise")),
        (["finetune.mixing.method=cutout", "finetune.mixing.fill=noise"], Cutout(fill="noise")),
        (["finetune.mixing={mixup: 1, cutout: 3}"], MixChoice(mixings=(MixUp(), Cutout()), weights=(1.0, 3.0))),
        (["finetune.mixing=cutmix", "finetune.mixing_probability=0.5"], CutMix(probability=0.5)),
        (["finetune.mixing={method: smoothmix, spread: [0.1, 0.3]}"], SmoothMix(spread=(0.1, 0.3))),
        (["finetune.mixing=none"], None),
    ],
)
def test_the_command_line_asks_for_a_mixing(overrides: list[str], mixer: Mixing | None) -> None:
    assert sp.RunFile.resolve({"model": ELSEWHERE}, overrides).finetune.mixer == mixer


def test_the_tiny_model_mixes_as_was_found_best_for_it_unless_told_otherwise() -> None:
    found, other = MIXED_SETTINGS["tiny"], {"mixing_probability": 0.75, "label_smoothing": 0.0}
    assert set(found) == set(other)
    for given_ones, expected in (
        ({"mixing": "cutmix"}, found),
        ({"mixing": "cutmix", **other}, other),
        (
            {"mixing": {"method": "cutmix", "probability": 0.5}},
            {"mixer": CutMix(probability=0.5), "label_smoothing": 0.1},
        ),
        ({"mixing": "none"}, {"mixing_probability": None, "label_smoothing": 0.0}),
        ({}, {"mixing_probability": None, "label_smoothing": 0.0}),
    ):
        asked = sp.RunFile.resolve({"model": "tiny", "finetune": given_ones}).finetune
        assert {key: getattr(asked, key) for key in expected} == expected
    elsewhere = sp.RunFile.resolve({"model": ELSEWHERE, "finetune": {"mixing": "cutmix"}}).finetune
    assert elsewhere.mixing_probability is None


MEMBER = st.sampled_from(
    [
        *MIXINGS,
        {"method": "smoothmix", "kind": "square", "edge": 0.25},
        {"method": "smoothmix", "spread": [0.1, 0.2], "probability": 0.5},
        {"method": "cutout", "fill": "noise", "side": 1},
    ]
)
ASKED = (
    MEMBER
    | st.dictionaries(st.sampled_from([*MIXINGS]), st.integers(1, 9) | st.floats(0.1, 9), min_size=1)
    | st.fixed_dictionaries(
        {"method": st.just("choice"), "mixings": st.lists(MEMBER, min_size=2, max_size=2)},
        optional={"weights": st.lists(st.floats(0.1, 9), min_size=2, max_size=2), "probability": st.floats(0, 1)},
    )
    | MEMBER.map(mixing_from)
)


@given(mixing=ASKED, probability=st.none() | st.floats(0, 1), off=st.integers(0, 3))
def test_a_mixing_survives_the_way_to_disk(
    tmp_path_factory: pytest.TempPathFactory, mixing: Any, probability: float | None, off: int
) -> None:
    asked = sp.FinetuneSettings(epochs=3, mixing=mixing, mixing_probability=probability, mixing_off_epochs=off)
    changes = {"mixing": asked.mixing, "mixing_probability": probability, "mixing_off_epochs": off, "epochs": 3}
    resolved = sp.RunFile.resolve({"model": ELSEWHERE, "finetune": changes})
    assert resolved.finetune.mixer == asked.mixer
    file = tmp_path_factory.mktemp("mixing", numbered=True) / "run.yaml"
    file.write_text(resolved.to_yaml(), encoding="utf-8")
    again = sp.RunFile.read(file)
    assert again == resolved
    assert again.finetune.mixer == asked.mixer
    assert (again.finetune.mixing_probability, again.finetune.mixing_off_epochs) == (probability, off)


@pytest.mark.parametrize("mixing", ["cutmix", {"cutmix": 2, "mixup": 1}, SmoothMix(kind="square", edge=0.5)])
def test_a_classifier_tells_how_it_was_mixed(tmp_path: Path, mixing: Any) -> None:
    asked = settings(mixing=mixing, mixing_probability=0.5, mixing_off_epochs=1)
    saved = sp.save_classifier(sp.finetune(toy(), SUITE, asked), tmp_path / "tuned")
    told = json.loads((saved / "classifier.json").read_text(encoding="utf-8"))["training"]["settings"]
    assert {key: told[key] for key in ("mixing", "mixing_probability", "mixing_off_epochs")} == {
        "mixing": asked.mixing,
        "mixing_probability": 0.5,
        "mixing_off_epochs": 1,
    }
    assert sp.FinetuneSettings(**{**told, "crop_scale": tuple(told["crop_scale"])}) == asked
