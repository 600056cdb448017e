"""Fine-tuning on mixed images, against a bare loop."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.classifiers import weight_bytes
from support.squares import CLASSES, SUITE, square_classifier, two_epochs
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.batches import training_batches
from shiftproof.finetuning import loop
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from shiftproof.mixing.named import MIXINGS, mixing_from
from shiftproof.mixing.plans import mix_images
from shiftproof.mixing.targets import soft_cross_entropy
from shiftproof.runs.file import MIXED_SETTINGS
from shiftproof.seeding import child_generator, child_seed
from shiftproof.training.engine import cosine_with_warmup, optimisation_step, parameter_groups, positions_at

# A batch norm follows the bias, so that its gradient is rounding alone, and the running mean goes where it goes.
UNDETERMINED = ("encoder.0.bias", "encoder.1.running_mean")
ELSEWHERE = "open_clip:ViT-B-32/openai"  # a model without settings of its own


def bare_loop(
    start: sp.Classifier, settings: sp.FinetuneSettings, mixing: Mixing | None, off: int = 0
) -> sp.Classifier:
    """The loop without anything around it, in channels-last memory; the last ``off`` steps do not mix."""
    train, network = SUITE.reference.train, deepcopy(start.network).train().to(memory_format=torch.channels_last)
    parameters, steps = list(network.parameters()), settings.steps(len(SUITE.reference.train))
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.weight_decay), lr=0.0)
    places = [positions_at(step, settings.batch_size, len(train), child_seed(0, "finetune")) for step in range(steps)]
    for step, batch in enumerate(training_batches(train, start.preprocessing, places, settings.crop_scale, seed=0)):
        images, labels = batch.to(memory_format=torch.channels_last), torch.as_tensor(train.labels[places[step]])
        if mixing is None or step >= steps - off:
            loss = functional.cross_entropy(network(images), labels, label_smoothing=settings.label_smoothing)
        else:
            mixing = replace(mixing, num_classes=len(CLASSES), label_smoothing=settings.label_smoothing)
            mixed, targets = mixing(images, labels, generator=child_generator(0, "mixing", step))
            loss = soft_cross_entropy(network(mixed), targets)
        optimisation_step(
            loss, parameters, optimizer, settings.lr * cosine_with_warmup(step, steps, 0), settings.clip_norm
        )
    return start.with_weights({name: tensor.detach() for name, tensor in network.state_dict().items()})


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixing_it_is_the_bare_loop_bit_for_bit(smoothing: float) -> None:
    settings = two_epochs(label_smoothing=smoothing, batch_size=7)
    assert weight_bytes(sp.finetune(square_classifier(), SUITE, settings)) == weight_bytes(
        bare_loop(square_classifier(), settings, None)
    )
    assert weight_bytes(sp.finetune(square_classifier(), SUITE, replace(settings, mixing="none"))) == weight_bytes(
        sp.finetune(square_classifier(), SUITE, settings)
    )


@pytest.mark.parametrize("name", MIXINGS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_with_mixing_it_is_the_bare_loop_on_mixed_images_and_labels(name: str, smoothing: float) -> None:
    settings = two_epochs(label_smoothing=smoothing, mixing=name, mixing_probability=0.75, mixing_off_epochs=1)
    tensors = sp.finetune(square_classifier(), SUITE, settings).state_dict()
    mixing = replace(MIXINGS[name], probability=0.75)
    expected = bare_loop(square_classifier(), settings, mixing, off=2).state_dict()
    for key, tensor in tensors.items():
        if key not in UNDETERMINED:
            torch.testing.assert_close(tensor, expected[key], rtol=1e-3, atol=1e-4, msg=key)
    # A wrong twin would not pass: without mixing the weights are elsewhere.
    plain = bare_loop(square_classifier(), settings, None).state_dict()
    assert (plain["head.weight"] - tensors["head.weight"]).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["end-to-end", "head-only"])
@pytest.mark.parametrize("mixing", [*MIXINGS, {"mixup": 1, "cutmix": 3}])
def test_mixing_changes_the_weights_and_the_seed_repeats_them(recipe: str, mixing: Any) -> None:
    settings = two_epochs(recipe=recipe, mixing=mixing)
    torch.manual_seed(1)
    first = sp.finetune(square_classifier(), SUITE, settings)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    again, other = (sp.finetune(square_classifier(), SUITE, settings, seed=seed) for seed in (0, 1))
    plain = sp.finetune(square_classifier(), SUITE, two_epochs(recipe=recipe))
    assert torch.equal(state, torch.random.get_rng_state())
    assert weight_bytes(first) == weight_bytes(again)
    assert weight_bytes(first)["head.weight"] not in (
        weight_bytes(plain)["head.weight"],
        weight_bytes(other)["head.weight"],
    )


@pytest.mark.parametrize("name", MIXINGS)
def test_mixing_that_is_off_in_all_epochs_is_none(name: str) -> None:
    plain = weight_bytes(sp.finetune(square_classifier(), SUITE, two_epochs()))
    off = sp.finetune(square_classifier(), SUITE, two_epochs(mixing=name, mixing_off_epochs=2))
    assert weight_bytes(off) == plain
    never = sp.finetune(square_classifier(), SUITE, two_epochs(mixing=name, mixing_probability=0.0)).state_dict()
    for key, tensor in sp.finetune(square_classifier(), SUITE, two_epochs()).state_dict().items():
        if key not in UNDETERMINED:
            torch.testing.assert_close(never[key], tensor, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize(("off", "mixed"), [(0, [0, 1, 2, 3, 4, 5]), (1, [0, 1, 2, 3]), (2, [0, 1]), (3, [])])
def test_the_last_epochs_do_not_mix(monkeypatch: pytest.MonkeyPatch, off: int, mixed: list[int]) -> None:
    plans: list[Any] = []

    def recorded(images: Tensor, plan: Any) -> Tensor:
        plans.append(plan)
        return mix_images(images, plan)

    monkeypatch.setattr(loop, "mix_images", recorded)
    sp.finetune(square_classifier(), SUITE, two_epochs(epochs=3, mixing="mixup", mixing_off_epochs=off))
    expected = [MixUp().plan(12, (16, 16), child_generator(0, "mixing", step)) for step in mixed]
    assert [plan.weights.tolist() for plan in plans] == [plan.weights.tolist() for plan in expected]


@given(epochs=st.integers(1, 5), images=st.integers(1, 30), batch_size=st.integers(1, 12), data=st.data())
def test_a_step_mixes_where_its_first_image_is_of_a_mixing_epoch(
    epochs: int, images: int, batch_size: int, data: st.DataObject
) -> None:
    off = data.draw(st.integers(0, epochs))
    settings = sp.FinetuneSettings(epochs=epochs, batch_size=batch_size, mixing="cutmix", mixing_off_epochs=off)
    epoch_of = [epoch for epoch in range(epochs) for _ in range(images)]
    firsts = epoch_of[::batch_size]
    assert settings.steps(images) == len(firsts)
    result = [settings.mixes_at(step, images) for step in range(len(firsts))]
    assert result == [epoch < epochs - off for epoch in firsts]


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
    settings = sp.FinetuneSettings(mixing=mixing)
    assert settings.mixer == mixer
    assert json.loads(json.dumps(settings.mixing)) == settings.mixing
    if mixer is not None:
        assert replace(settings, mixing_probability=0.7).mixer == replace(mixer, probability=0.7)


@pytest.mark.parametrize(
    ("changes", "message"),
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
def test_a_mixing_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.FinetuneSettings(**changes)
    if not isinstance(changes.get("mixing"), Mixing):
        with pytest.raises(sp.InputError, match=message):
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
    result, other = MIXED_SETTINGS["tiny"], {"mixing_probability": 0.75, "label_smoothing": 0.0}
    assert set(result) == set(other)
    for given_ones, expected in (
        ({"mixing": "cutmix"}, result),
        ({"mixing": "cutmix", **other}, other),
        (
            {"mixing": {"method": "cutmix", "probability": 0.5}},
            {"mixer": CutMix(probability=0.5), "label_smoothing": 0.1},
        ),
        ({"mixing": "none"}, {"mixing_probability": None, "label_smoothing": 0.0}),
        ({}, {"mixing_probability": None, "label_smoothing": 0.0}),
    ):
        file = sp.RunFile.resolve({"model": "tiny", "finetune": given_ones}).finetune
        assert {key: getattr(file, key) for key in expected} == expected
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
    settings = sp.FinetuneSettings(epochs=3, mixing=mixing, mixing_probability=probability, mixing_off_epochs=off)
    changes = {"mixing": settings.mixing, "mixing_probability": probability, "mixing_off_epochs": off, "epochs": 3}
    resolved = sp.RunFile.resolve({"model": ELSEWHERE, "finetune": changes})
    assert resolved.finetune.mixer == settings.mixer
    file = tmp_path_factory.mktemp("mixing", numbered=True) / "run.yaml"
    file.write_text(resolved.to_yaml(), encoding="utf-8")
    again = sp.RunFile.read(file)
    assert again == resolved
    assert again.finetune.mixer == settings.mixer
    assert (again.finetune.mixing_probability, again.finetune.mixing_off_epochs) == (probability, off)


@pytest.mark.parametrize("mixing", ["cutmix", {"cutmix": 2, "mixup": 1}, SmoothMix(kind="square", edge=0.5)])
def test_a_classifier_tells_how_it_was_mixed(tmp_path: Path, mixing: Any) -> None:
    settings = two_epochs(mixing=mixing, mixing_probability=0.5, mixing_off_epochs=1)
    saved = sp.save_classifier(sp.finetune(square_classifier(), SUITE, settings), tmp_path / "tuned")
    reported = json.loads((saved / "classifier.json").read_text(encoding="utf-8"))["training"]["settings"]
    assert {key: reported[key] for key in ("mixing", "mixing_probability", "mixing_off_epochs")} == {
        "mixing": settings.mixing,
        "mixing_probability": 0.5,
        "mixing_off_epochs": 1,
    }
    assert sp.FinetuneSettings(**{**reported, "crop_scale": tuple(reported["crop_scale"])}) == settings
