"""Contrastive pretraining: its loss and order against twins, what it shows a model, and how it stops and goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.nn import functional

import shiftproof as sp
from shiftproof import progress
from shiftproof.data import captions
from shiftproof.data.captions import CaptionedSet, load_captioned_set
from shiftproof.data.emoji.drawings import RENDITIONS, concepts
from shiftproof.data.loading import Preprocessing
from shiftproof.data.photometric import vary_appearance
from shiftproof.errors import TrainingError
from shiftproof.records.codec import to_json
from shiftproof.records.pretraining import PretrainRecord
from shiftproof.training.checkpoints import (
    TrainingState,
    load_checkpoint,
    load_optimizer,
    optimizer_tensors,
    save_checkpoint,
)
from shiftproof.training.engine import (
    Course,
    cosine_with_warmup,
    optimisation_step,
    parameter_groups,
    positions_at,
    training,
)
from shiftproof.training.hardware import LoopSettings

pytestmark = pytest.mark.slow

RANDOM = "open_clip:shiftproof-tiny"
SHORT = sp.PretrainSettings(steps=6, batch_size=8, warmup_steps=2, checkpoint_every=3)


# The loss


def slow_loss(images: list[list[float]], texts: list[list[float]], scale: float) -> float:
    """Mean over both directions of -log softmax of the own pair, written out."""
    count, total = len(images), 0.0
    for rows, columns in ((images, texts), (texts, images)):
        for i in range(count):
            logits = [scale * math.fsum(a * b for a, b in zip(rows[i], column, strict=True)) for column in columns]
            largest = max(logits)
            total += largest + math.log(math.fsum(math.exp(x - largest) for x in logits)) - logits[i]
    return total / (2 * count)


@given(seed=st.integers(0, 10_000), count=st.integers(2, 7), scale=st.floats(0.1, 100))
def test_the_loss_is_the_mean_cross_entropy_of_both_directions(seed: int, count: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    images, texts = functional.normalize(torch.randn(2, count, 5, generator=generator, dtype=torch.float64), dim=-1)
    factor = torch.tensor(scale, dtype=torch.float64)
    loss = sp.pretraining.contrastive_loss(images, texts, factor).item()
    assert loss == pytest.approx(slow_loss(images.tolist(), texts.tolist(), scale), rel=1e-9, abs=1e-12)
    assert sp.pretraining.contrastive_loss(texts, images, factor).item() == pytest.approx(loss, rel=1e-12, abs=1e-12)
    order = torch.randperm(count, generator=generator)
    assert sp.pretraining.contrastive_loss(images[order], texts[order], factor).item() == pytest.approx(
        loss, rel=1e-9, abs=1e-12
    )


def test_the_loss_knows_right_pairs_from_wrong_ones() -> None:
    eye = torch.eye(6)
    assert sp.pretraining.contrastive_loss(eye, eye, torch.tensor(100.0)).item() == pytest.approx(0, abs=1e-6)
    assert sp.pretraining.contrastive_loss(eye, eye.roll(1, 0), torch.tensor(100.0)).item() == pytest.approx(
        100, rel=1e-4
    )
    assert sp.pretraining.contrastive_loss(eye, eye, torch.tensor(0.0)).item() == pytest.approx(math.log(6), rel=1e-6)


# Order and schedule


@given(count=st.integers(1, 20), batch=st.integers(1, 13), epochs=st.integers(1, 4), seed=st.integers(0, 1000))
def test_epochs_show_everything_once_at_every_batch_size(count: int, batch: int, epochs: int, seed: int) -> None:
    steps = -(-count * epochs // batch)
    shown = [position for step in range(steps) for position in positions_at(step, batch, count, seed)]
    assert len(shown) == steps * batch
    for epoch in range(epochs):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_the_order_moves_with_seed_and_epoch_and_not_with_the_batch_size() -> None:
    def order(batch: int, seed: int) -> list[int]:
        return [p for step in range(60 // batch) for p in positions_at(step, batch, 30, seed)]

    assert order(5, 0) == order(12, 0) == order(60, 0)
    assert order(5, 0) != order(5, 1)
    assert order(5, 0)[:30] != order(5, 0)[30:]


@given(total=st.integers(1, 200), warmup=st.integers(0, 250))
def test_the_rate_rises_straight_and_falls_as_half_a_cosine(total: int, warmup: int) -> None:
    rates = [cosine_with_warmup(step, total, warmup) for step in range(total)]
    rising = min(warmup, total)
    assert rates[:rising] == pytest.approx([(step + 1) / rising for step in range(rising)])
    falling = rates[rising:]
    assert falling == pytest.approx(
        [math.cos(math.pi * k / len(falling) / 2) ** 2 for k in range(len(falling))], abs=1e-12
    )
    assert max(rates) == 1
    assert min(rates) > 0


def test_matrices_decay_and_biases_norms_and_scales_do_not() -> None:
    model = sp.load_clip(RANDOM).model
    model.visual.trunk.stem[0].weight.requires_grad_(False)
    decaying, steady = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kinds = [{names[id(p)] for p in group["params"]} for group in (decaying, steady)]
    assert (decaying["weight_decay"], steady["weight_decay"]) == (0.1, 0.0)
    assert not kinds[0] & kinds[1]
    assert kinds[0] | kinds[1] == set(names.values()) - {"visual.trunk.stem.0.weight"}
    assert "logit_scale" in kinds[1]
    assert "text_projection" in kinds[0]
    norms = {f"{m}.weight" for m, module in model.named_modules() if isinstance(module, (nn.GroupNorm, nn.LayerNorm))}
    biases = {name for name in names.values() if name.endswith("bias")}
    assert norms
    assert norms | biases <= kinds[1]


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(broken: str) -> None:
    weight = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    # The square root has an infinite slope at 0.
    loss = weight.sum() * math.nan if broken == "loss" else weight.sqrt().sum()
    with pytest.raises(TrainingError, match="nan" if broken == "loss" else "gradient's norm is inf"):
        optimisation_step(loss, [weight], optimizer, 0.1, 1.0)
    assert weight.tolist() == [1.0, 0.0]
    assert optimizer.state_dict()["state"] == {}


def test_a_step_is_clipped_to_the_norm() -> None:
    weight = nn.Parameter(torch.tensor([0.0, 0.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    optimisation_step(weight @ torch.tensor([30.0, -40.0]), [weight], optimizer, 0.5, clip_norm=2.0)
    assert weight.tolist() == pytest.approx([-0.5 * 2 * 0.6, 0.5 * 2 * 0.8], rel=1e-5)


def test_a_checkpoint_holds_everything_and_replaces_the_older(tmp_path: Path) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = nn.Linear(3, 2)
        return model, torch.optim.AdamW(parameter_groups(model, 0.1), lr=0.1)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimisation_step(model(torch.ones(1, 3)).square().sum(), list(model.parameters()), optimizer, 0.1, 1.0)

    def state(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainingState:
        parts = {"model": model.state_dict(), "optimizer": optimizer_tensors(optimizer)}
        return TrainingState(step, parts, {"history": [step]})

    first, other = made(), made()
    assert load_checkpoint(tmp_path / "none") is None
    for step in (1, 2):
        train(*first)
        assert save_checkpoint(tmp_path, state(step, *first)) == tmp_path / f"step-0000000{step}"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    result = load_checkpoint(tmp_path)
    assert result is not None
    assert (result.step, result.state) == (2, {"history": [2]})
    other[0].load_state_dict(dict(result.parts["model"]))
    load_optimizer(other[1], result.parts["optimizer"])
    for pair in (first, other):
        train(*pair)
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), other[0].parameters(), strict=True))
    for step in (3, 4):
        save_checkpoint(tmp_path, state(step, *first), keep_last=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_checkpoint_of_another_model_or_training_is_refused(tmp_path: Path) -> None:
    def begin(model: nn.Module, origin: dict[str, Any]) -> int:
        course = Course("pretrain", "pretrain", 4, 0, 0.1, 1.0, 2, origin)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
        with training(model, optimizer, course, LoopSettings(), device="cpu", folder=tmp_path) as trainer:
            if trainer.begun is None:
                trainer.take(0, [model(torch.ones(1, 3)).square().sum()])
                trainer.save(1, {})
            return trainer.first

    assert begin(nn.Linear(3, 2), {"seed": 0}) == 0
    assert begin(nn.Linear(3, 2), {"seed": 0}) == 1
    with pytest.raises(sp.InputError, match=r"the checkpoint is of another model (.|\n)*Choose another `out`"):
        begin(nn.Linear(4, 2), {"seed": 0})
    with pytest.raises(sp.InputError, match=r"another training; these differ: 'seed'") as caught:
        begin(nn.Linear(3, 2), {"seed": 1})
    assert str(tmp_path) in str(caught.value)


def test_other_captions_of_as_many_images_are_another_training(tmp_path: Path, tiny: sp.models.Clip) -> None:
    (data := tmp_path / "shades").mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 0)).save(data / f"{number}.png")
        (data / f"{number}.txt").write_text(f"shade {number}", encoding="utf-8")
    settings = sp.PretrainSettings(steps=1, batch_size=4)
    sp.pretrain(tiny, load_captioned_set(f"folder:{data}"), settings, seed=0, out=tmp_path / "out")
    (data / "3.txt").write_text("shade three", encoding="utf-8")
    with pytest.raises(sp.InputError, match="another training; these differ: 'images'"):
        sp.pretrain(tiny, load_captioned_set(f"folder:{data}"), settings, seed=0, out=tmp_path / "out")


# Photometric changes


@given(seed=st.integers(0, 1000))
def test_photometric_changes_stay_in_range_and_leave_the_input(seed: int) -> None:
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    original = images.clone()
    result, again = (vary_appearance(images, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(images, original)
    assert torch.equal(result, again)
    assert result.min() >= 0
    assert result.max() <= 1
    assert result.shape == images.shape


def test_photometric_changes_strike_each_sample_on_its_own() -> None:
    image = torch.rand(1, 3, 16, 16)
    result = vary_appearance(image.expand(2000, 3, 16, 16), torch.Generator().manual_seed(0))
    untouched = (result == image).flatten(1).all(1).double().mean().item()
    assert untouched == pytest.approx(0.5 * 0.85 * 0.8 * 0.7 * 0.9 * 0.95, abs=0.04)
    grey = (result.std(1) < 1e-6).flatten(1).all(1).double().mean().item()
    assert grey == pytest.approx(0.15 * 0.9, abs=0.03)  # noise colours one in ten again


# Captioned data


@pytest.fixture(scope="module")
def captioned(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> CaptionedSet:
    """Twelve images of a CSV, some with several captions."""
    rows = ["filepath,caption"]
    for name in ("lemon", "pear", "red_apple"):
        for number in range(4):
            file = folders / "train" / name / f"{name}-{number}.png"
            rows += [f"{file},a {name} number {number}"] + [f"{file},one more {name}"] * (number % 3 == 0)
    path = tmp_path_factory.mktemp("captions") / "pairs.csv"
    path.write_text("\n".join(rows))
    return load_captioned_set(f"csv:{path}")


def test_rows_of_one_file_are_captions_of_one_image(captioned: CaptionedSet, tiny: sp.models.Clip) -> None:
    assert len(captioned) == 12
    generator = torch.Generator().manual_seed(0)
    drawn: Counter[str] = Counter()
    for _ in range(100):
        images, texts = captioned.batch([0, 1], tiny.preprocessing, generator, train=True)
        assert images.shape == (2, 3, 64, 64)
        assert texts[1] == "a lemon number 1"
        drawn[texts[0]] += 1
    assert set(drawn) == {"a lemon number 0", "one more lemon"}
    assert min(drawn.values()) > 30


def test_held_out_views_of_files_are_neither_cropped_nor_drawn(captioned: CaptionedSet, tiny: sp.models.Clip) -> None:
    views = [
        captioned.batch([0, 5], tiny.preprocessing, torch.Generator().manual_seed(seed), train=False) for seed in (0, 1)
    ]
    assert torch.equal(views[0][0], views[1][0])
    assert views[0][1] == views[1][1] == ["a lemon number 0", "a pear number 1"]
    train = [
        captioned.batch([0], tiny.preprocessing, torch.Generator().manual_seed(seed), train=True)[0]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(train[0], train[1])
    assert not torch.equal(train[0], train[2])


def test_a_folder_reads_its_captions_from_the_texts_beside(folders: Path, tmp_path: Path, tiny: sp.models.Clip) -> None:
    source = (folders / "train" / "pear" / "pear-0.png").read_bytes()
    for name, text in {"a/one.png": "a pear\n\n  a green pear  \n", "two.png": "ein Birnbaum ä\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(source)
        (tmp_path / name).with_suffix(".txt").write_text(text, encoding="utf-8")
    images = load_captioned_set(f"folder:{tmp_path}")
    assert len(images) == 2
    assert images.batch([0, 1], tiny.preprocessing, Generator(), train=False)[1] == [
        "a pear",
        "ein Birnbaum ä",
    ]
    (tmp_path / "three.png").write_bytes(source)
    with pytest.raises(sp.InputError, match=r"three.png has no captions. Write them to .*three.txt"):
        load_captioned_set(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("spec", "text", "message"),
    [
        ("csv:{}/pairs.csv", None, "does not exist"),
        ("csv:{}/pairs.csv", "filepath,label\na.png,x", "needs 'filepath' and 'caption'"),
        ("csv:{}/pairs.csv", "filepath,caption\n", "contains no image with a caption"),
        ("csv:{}/pairs.csv", "filepath,caption\na.png,a pear\nb.png", "line 3 of .*pairs.csv lacks its caption"),
        ("folder:{}/none", None, "does not exist"),
        ("folder:{}", None, "contains no image with a caption"),
        ("cvs:{}", None, "Did you mean 'csv'"),
        ("emoji", None, "Did you mean 'emoji-captions'"),
    ],
)
def test_captioned_data_that_cannot_be_used_says_why(tmp_path: Path, spec: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(sp.InputError, match=message):
        load_captioned_set(spec.format(tmp_path))


def test_a_withheld_concept_is_shown_in_colour_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawings of one grey each, by rendition, in the place of the real ones.
    greys = np.broadcast_to(
        np.arange(4, dtype=np.uint8)[None, :, None, None, None] * 60, (len(concepts()), 4, 64, 64, 4)
    )
    shown: list[int] = []

    def watched(drawings: Tensor, placements: Tensor, backgrounds: Tensor) -> tuple[Tensor, Tensor]:
        shown.extend((drawings[:, 0, 32, 32] * 255 / 60).round().int().tolist())
        return backgrounds, backgrounds[:, 0]

    monkeypatch.setattr(captions, "sprites", lambda: greys)
    monkeypatch.setattr(captions, "compose", watched)
    data = load_captioned_set("emoji-captions")
    positions = list(range(len(concepts())))
    spoken: list[str] = []
    for train in (True, False):
        spoken += data.batch(positions, Preprocessing(size=8), torch.Generator().manual_seed(3), train=train)[1]
    styles = {
        "sketch": ("sketch", "outline drawing"),
        "painting": ("painting", "without outlines"),
        "monochrome": ("black", "monochrome"),
        "colour": ("colour", "cartoon"),
    }
    counts: Counter[str] = Counter()
    styled: Counter[str] = Counter()
    for concept, rendition, text in zip([*concepts()] * 2, shown, spoken, strict=True):
        assert concept.name in text
        if concept.withheld:
            assert RENDITIONS[rendition] == "colour"
        else:
            counts[RENDITIONS[rendition]] += 1
        around = text.replace(concept.name, "")
        reported = [style for style, words in styles.items() if any(word in around for word in words)]
        assert reported in ([], [RENDITIONS[rendition]])  # a caption that names a style names the one shown
        styled[RENDITIONS[rendition]] += bool(reported)
    assert set(counts) == set(RENDITIONS)
    assert min(counts.values()) > 0.2 * sum(counts.values())
    assert all(styled[rendition] > 0.2 * counts[rendition] for rendition in RENDITIONS)


def test_emoji_views_are_new_at_each_visit(tiny: sp.models.Clip) -> None:
    data = load_captioned_set("emoji-captions")
    assert len(data) == len(concepts())
    generator = torch.Generator().manual_seed(0)
    first, _ = data.batch([0, 1, 2], tiny.preprocessing, generator, train=True)
    second, _ = data.batch([0, 1, 2], tiny.preprocessing, generator, train=True)
    again, _ = data.batch([0, 1, 2], tiny.preprocessing, torch.Generator().manual_seed(0), train=True)
    assert first.shape == (3, 3, 64, 64)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


# The training


def trained(data: CaptionedSet, out: Path, clip_seed: int = 0, **changes: Any) -> PretrainRecord:
    clip = sp.load_clip(RANDOM, seed=clip_seed)
    return sp.pretrain(clip, data, dataclasses.replace(SHORT, **changes), seed=5, out=out)


def weights_in(out: Path) -> dict[str, Tensor]:
    return load_file(out / "model" / "open_clip_model.safetensors")


class StopError(Exception):
    """What ends the process from outside."""


def stop_at(step: int) -> Any:
    def listener(event: progress.Event) -> None:
        if event.stage == "pretrain" and event.done == step:
            raise StopError

    return progress.listening(listener)


def test_a_pretraining_that_was_stopped_ends_with_the_same_bits(captioned: CaptionedSet, tmp_path: Path) -> None:
    whole = trained(captioned, tmp_path / "whole")
    with stop_at(5), pytest.raises(StopError):
        trained(captioned, tmp_path / "stopped")
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["checkpoints"]
    # It goes on from the checkpoint: the weights of the model that is handed in do not matter.
    resumed = trained(captioned, tmp_path / "stopped", clip_seed=9)
    first, second = weights_in(tmp_path / "whole"), weights_in(tmp_path / "stopped")
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert dataclasses.replace(whole, seconds=resumed.seconds) == resumed
    assert [point.step for point in resumed.history] == [3, 6]
    assert json.loads((tmp_path / "stopped" / "card.json").read_text()) == to_json(resumed)
    start = sp.load_clip(RANDOM).model.state_dict()
    assert any(not torch.equal(tensor, start[name]) for name, tensor in first.items())


def test_the_written_model_is_loaded_by_name_and_by_open_clip(captioned: CaptionedSet, tmp_path: Path) -> None:
    import open_clip

    record = trained(captioned, tmp_path, steps=2)
    assert (record.model, record.data, record.pairs_seen) == (RANDOM, captioned.name, 16)
    model = sp.load_clip(f"local-dir:{tmp_path / 'model'}")
    weights = weights_in(tmp_path)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())
    assert model.preprocessing == sp.load_clip(RANDOM).preprocessing
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'model'}")
    images = torch.randn(2, 3, 64, 64)
    space = sp.ClassSpace.from_ids(["lemon", "pear"])
    with torch.inference_mode():
        assert torch.equal(theirs.eval().encode_image(images), model.model.encode_image(images))
    zero = sp.zero_shot_classifier(model, space)
    again = sp.load_classifier(sp.save_classifier(zero, tmp_path / "zero_shot"))
    with torch.inference_mode():
        assert torch.equal(again.network(images), zero.network(images))


def test_the_model_that_was_handed_in_stays_as_it_was(captioned: CaptionedSet, tmp_path: Path) -> None:
    clip = sp.load_clip(RANDOM)
    before = {name: tensor.clone() for name, tensor in clip.model.state_dict().items()}
    sp.pretrain(clip, captioned, dataclasses.replace(SHORT, steps=1), seed=0, out=tmp_path)
    assert not clip.model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in clip.model.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_emoji_captions_can_be_learned_from(tmp_path: Path, precision: str) -> None:
    record = trained(load_captioned_set("emoji-captions"), tmp_path, steps=2, precision=precision)
    assert record.history[0].step == 2
    assert 0 < record.final_loss < 10
    assert {tensor.dtype for tensor in weights_in(tmp_path).values()} == {torch.float32}
    for direction in ("image_to_text", "text_to_image"):
        recalls = [record.recall[direction][f"recall@{k}"] for k in (1, 5, 10)]
        assert recalls == sorted(recalls)
        assert 0 <= recalls[0] <= recalls[2] < 0.5


def test_learning_lowers_the_loss(captioned: CaptionedSet, tmp_path: Path) -> None:
    averages: list[float] = []
    with progress.listening(lambda event: averages.append(event.values["loss"])):
        trained(captioned, tmp_path, steps=25, checkpoint_every=25, photometric=False)
    # What is reported is a running mean with weights of 0.98 and 0.02.
    pairs = itertools.pairwise(averages)
    losses = [averages[0]] + [(new - 0.98 * old) / 0.02 for old, new in pairs]
    assert losses[0] == pytest.approx(math.log(8), rel=0.3)  # nothing known: one of the eight
    assert sum(losses[-5:]) / 5 < 0.8 * losses[0]


@pytest.mark.parametrize(("start", "bound"), [(6.0, math.log(100)), (-1.0, 0.0)])
def test_the_logit_scale_is_kept_between_one_and_a_hundred(
    captioned: CaptionedSet, tmp_path: Path, start: float, bound: float
) -> None:
    clip = sp.load_clip(RANDOM)
    with torch.no_grad():
        clip.model.logit_scale.fill_(start)
    sp.pretrain(clip, captioned, dataclasses.replace(SHORT, steps=1), seed=0, out=tmp_path)
    assert weights_in(tmp_path)["logit_scale"].item() == pytest.approx(bound, rel=1e-6)


class Poisoned(CaptionedSet):
    """The same set, whose images are not finite from some batch on."""

    def __init__(self, data: CaptionedSet, good: int) -> None:
        self.name, self.data, self.good = data.name, data, good

    def __len__(self) -> int:
        return len(self.data)

    def digest(self) -> str:
        return self.data.digest()

    def batch(
        self, positions: Sequence[int], preprocessing: Preprocessing, generator: Generator, train: bool
    ) -> tuple[Tensor, list[str]]:
        images, texts = self.data.batch(positions, preprocessing, generator, train)
        self.good -= 1
        return (images if self.good >= 0 else images * math.nan), texts


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_weights(
    captioned: CaptionedSet, tmp_path: Path
) -> None:
    with pytest.raises(TrainingError, match=r"stopped at step 5: the loss is nan.*checkpoints") as caught:
        trained(Poisoned(captioned, good=4), tmp_path)
    assert str(tmp_path / "checkpoints") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    steps = sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert steps == ["step-00000000", "step-00000003"]
    saved = load_file(tmp_path / "checkpoints" / "step-00000003" / "model.safetensors")
    assert all(tensor.isfinite().all() for tensor in saved.values())
    # They are good to go on from.
    assert trained(captioned, tmp_path).history[-1].step == 6


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"batch_size": 1}, {"lr": -1.0}, {"checkpoint_every": 0}, {"precision": "float8"}]
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(sp.InputError, match=f"pretrain.{next(iter(wrong))}"):
        sp.PretrainSettings(**wrong)
