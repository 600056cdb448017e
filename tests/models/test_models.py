"""Models: the zero-shot head against its formula, what must survive a save, and errors that say what to do."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from support.classifiers import logits_of
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range
from shiftproof.models.classifier import require_same_task
from shiftproof.models.clip import model_config
from shiftproof.models.prompts import prompt_templates
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

SPACE = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
QUICK = "shiftproof-test-quick"
PLAIN = "shiftproof-test-plain"


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip) -> sp.Classifier:
    """Treat it as immutable."""
    return sp.zero_shot_classifier(tiny, SPACE, "short")


@pytest.fixture
def pictures() -> Tensor:
    return torch.randn(5, 3, 64, 64)


@pytest.fixture
def small_towers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small transformers, known to open_clip for one test: equal but for the activation."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS})
    for name in (QUICK, PLAIN):
        config = {
            "embed_dim": 16,
            "quick_gelu": name == QUICK,
            "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
            "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
        path = tmp_path / "configs" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(config))
        open_clip.add_model_config(path)


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(math.fsum(x * x for x in vector))
    return [x / length for x in vector]


def test_the_zero_shot_head_is_the_scaled_mean_of_the_templates(tiny: sp.models.Clip) -> None:
    templates = ["a photo of a {}.", "a sketch of the {c}", "{}"]
    classifier = sp.zero_shot_classifier(tiny, SPACE, templates)
    with torch.inference_mode():
        scale = math.exp(tiny.model.logit_scale.item())
        for k, name in enumerate(["lemon", "pear", "red apple"]):
            embedded = []
            for template in templates:
                text = template.replace("{}", name).replace("{c}", name)
                embedded.append(unit(tiny.model.encode_text(tiny.tokenizer([text]))[0].tolist()))
            mean = [math.fsum(column) / len(templates) for column in zip(*embedded, strict=True)]
            expected = [scale * x for x in unit(mean)]
            assert classifier.network.head.weight[k].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert not classifier.network.head.bias.any()
    assert classifier.logit_scale == pytest.approx(scale)
    assert classifier.head == "zero-shot"
    assert classifier.prompts == ("a photo of a {}.", "a sketch of the {}", "{}")


def test_zero_shot_logits_are_scaled_cosines(tiny: sp.models.Clip, pictures: Tensor) -> None:
    result = logits_of(sp.zero_shot_classifier(tiny, SPACE, "a photo of a {}."), pictures)
    with torch.inference_mode():
        scale = math.exp(tiny.model.logit_scale.item())
        images = tiny.model.encode_image(pictures)
        texts = tiny.model.encode_text(tiny.tokenizer([f"a photo of a {name}." for name in SPACE.names]))
    for row, image in zip(result.tolist(), images.tolist(), strict=True):
        for logit, text in zip(row, texts.tolist(), strict=True):
            cosine = math.fsum(a * b for a, b in zip(unit(image), unit(text), strict=True))
            assert logit == pytest.approx(scale * cosine, abs=2e-3)


def test_the_classifier_is_a_trainable_copy(tiny: sp.models.Clip) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    classifier = sp.zero_shot_classifier(tiny, SPACE)
    assert not classifier.network.training
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())
    with torch.no_grad():
        for parameter in classifier.network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())


@pytest.mark.slow
def test_the_shipped_model_knows_what_it_was_made_for(tiny: sp.models.Clip) -> None:
    suite = sp.load_suite("emoji")
    predictions = sp.predict(sp.zero_shot_classifier(tiny, suite.classes), suite.reference.validation)
    assert sp.evaluation.accuracy(predictions.logits, predictions.labels) > 0.5


def test_equal_class_names_warn(tiny: sp.models.Clip) -> None:
    doubled = sp.ClassSpace(("n1", "n2", "n3"), ("crane", "crane", "pear"))
    with pytest.warns(UserWarning, match="classes 'n1' and 'n2' are equal .they have the same name 'crane'"):
        classifier = sp.zero_shot_classifier(tiny, doubled)
    assert torch.equal(classifier.network.head.weight[0], classifier.network.head.weight[1])


def test_prompts_that_the_text_tower_cuts_warn(tiny: sp.models.Clip) -> None:
    long = sp.ClassSpace(("pear", "talk"), ("pear", "a very " * 30 + "long name"))
    with pytest.warns(UserWarning, match="longer prompts are truncated, e.g. those of 'a very"):
        sp.zero_shot_classifier(tiny, long)
    room = tiny.context_length - 2
    words = len("a photo of a".split()) + 1  # and the full stop
    fitting = sp.ClassSpace(("a", "b"), ("lemon " * (room - words), "pear"))
    sp.zero_shot_classifier(tiny, fitting)  # warnings are errors here
    with pytest.warns(UserWarning, match="truncated"):
        sp.zero_shot_classifier(tiny, sp.ClassSpace(("a", "b"), ("lemon " * (room - words + 1), "pear")))


def test_named_prompt_sets_hold_one_place_for_the_name() -> None:
    assert prompt_templates("photo") == ("a photo of a {}.",)
    assert len(prompt_templates("short")) == 7
    openai = prompt_templates("openai")
    assert len(set(openai)) == 80
    assert "itap of a {}." in openai
    assert all(template.count("{}") == 1 for template in (*openai, *prompt_templates("short")))


def test_ones_own_templates_take_both_marks() -> None:
    assert prompt_templates("a sketch of a {c}") == prompt_templates(["a sketch of a {}"])
    assert prompt_templates(["{}", "one {c}"]) == ("{}", "one {}")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (["a photo"], "'a photo' must hold"),
        (["{} and {}"], "must hold"),
        (["{c} and {}"], "must hold"),
        (["a {kind} of {}"], "no other brace"),
        ([], "`prompts` is empty"),
        ("foto", "Did you mean 'photo'"),
    ],
)
def test_templates_without_one_place_for_the_name_are_refused(prompts: str | list[str], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        prompt_templates(prompts)


def test_braces_in_a_class_name_are_only_text(tiny: sp.models.Clip) -> None:
    assert len(sp.zero_shot_classifier(tiny, sp.ClassSpace(("a", "b"), ("{x}", "{}"))).classes) == 2


@pytest.mark.usefixtures("small_towers")
def test_quick_gelu_survives_a_save(tmp_path: Path) -> None:
    clip = sp.load_clip(f"open_clip:{QUICK}")
    made = sp.zero_shot_classifier(clip, SPACE)
    images = torch.randn(4, 3, 32, 32)
    loaded = sp.load_classifier(sp.save_classifier(made, tmp_path / "quick"))
    assert torch.equal(logits_of(loaded, images), logits_of(made, images))
    kinds = {type(module).__name__ for module in loaded.network.modules()}
    assert "QuickGELU" in kinds
    assert "GELU" not in kinds
    # The activation matters: the same weights under the other one say something else.
    plain = sp.zero_shot_classifier(sp.load_clip(f"open_clip:{PLAIN}"), SPACE).with_weights(made.state_dict())
    assert not torch.allclose(logits_of(plain, images), logits_of(made, images), atol=1e-3)
    assert sp.models.fingerprint(plain) != sp.models.fingerprint(made)


@pytest.mark.usefixtures("small_towers")
def test_quick_gelu_follows_the_weights_where_the_architecture_does_not_say_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = sp.load_clip(f"open_clip:{QUICK}")
    weights = write_state_dict(quick.model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    clip = sp.load_clip(f"open_clip:{PLAIN}/{weights}")
    images = torch.randn(4, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(clip.model.encode_image(images), quick.model.encode_image(images))
    made = sp.zero_shot_classifier(clip, SPACE)
    loaded = sp.load_classifier(sp.save_classifier(made, tmp_path / "plain"))
    assert torch.equal(logits_of(loaded, images), logits_of(made, images))


def test_random_weights_come_from_the_seed_and_leave_the_global_state() -> None:
    state = torch.random.get_rng_state()
    first, again, other = (sp.load_clip("open_clip:shiftproof-tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)
    weights = [clip.model.visual.state_dict() for clip in (first, again, other)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert not all(torch.equal(tensor, weights[2][name]) for name, tensor in weights[0].items())


FRESH = """
import sys, numpy as np, torch
import shiftproof as sp
torch.set_num_threads(int(sys.argv[3]))
classifier = sp.load_classifier(sys.argv[1])
with torch.inference_mode():
    logits = classifier.network(torch.from_numpy(np.load(sys.argv[2])))
np.save(sys.argv[2], logits.numpy())
print(sp.models.fingerprint(classifier), *classifier.classes.ids)
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(tmp_path: Path, zero: sp.Classifier, pictures: Tensor) -> None:
    folder, file = sp.save_classifier(zero, tmp_path / "zero_shot"), tmp_path / "images.npy"
    np.save(file, pictures.numpy())
    command = [sys.executable, "-c", FRESH, str(folder), str(file), str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [sp.models.fingerprint(zero), "lemon", "pear", "red_apple"]
    assert np.load(file).tobytes() == logits_of(zero, pictures).numpy().tobytes()


def test_a_directory_holds_every_field(tmp_path: Path, zero: sp.Classifier) -> None:
    made = dataclasses.replace(
        zero,
        head="trained",
        alpha=0.25,
        parents=({"role": "zero_shot", "fingerprint": "ab"}, {"role": "fine_tuned", "fingerprint": "cd"}),
        training={"recipe": "end-to-end", "seed": 3},
        preprocessing=dataclasses.replace(zero.preprocessing, resize_mode="longest", fill=7),
    )
    loaded = sp.load_classifier(sp.save_classifier(made, tmp_path))
    assert loaded == made
    assert sp.models.fingerprint(loaded) == sp.models.fingerprint(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classifier.json", "model.safetensors"]


def changed(zero: sp.Classifier, name: str) -> sp.Classifier:
    weights = {key: tensor.clone() for key, tensor in zero.state_dict().items()}
    weights[name].view(-1)[0] += 1
    return zero.with_weights(weights)


@pytest.mark.parametrize(
    "change",
    [
        lambda zero: changed(zero, "head.weight"),
        lambda zero: changed(zero, "head.bias"),
        lambda zero: changed(zero, next(iter(zero.state_dict()))),
        lambda zero: dataclasses.replace(zero, classes=sp.ClassSpace(SPACE.ids[::-1], SPACE.names)),
        lambda zero: dataclasses.replace(zero, preprocessing=dataclasses.replace(zero.preprocessing, fill=9)),
        lambda zero: dataclasses.replace(zero, architecture={**zero.architecture, "quick_gelu": True}),
    ],
)
def test_the_fingerprint_moves_with_what_decides_a_prediction(
    zero: sp.Classifier, change: Callable[[sp.Classifier], sp.Classifier]
) -> None:
    assert sp.models.fingerprint(change(zero)) != sp.models.fingerprint(zero)


def test_the_fingerprint_stays_with_another_provenance(zero: sp.Classifier) -> None:
    other = dataclasses.replace(
        zero, source="elsewhere", alpha=0.5, parents=({"a": 1},), training={"b": 2}, prompts=("{}",)
    )
    assert sp.models.fingerprint(other) == sp.models.fingerprint(zero)
    assert sp.models.fingerprint(zero.with_weights(zero.state_dict())) == sp.models.fingerprint(zero)


def test_other_weights_make_a_copy(zero: sp.Classifier) -> None:
    before = zero.network.head.bias.clone()
    made = changed(zero, "head.bias")
    assert torch.equal(zero.network.head.bias, before)
    assert made.network.head.bias[0] == before[0] + 1


def edited(folder: Path, **changes: object) -> None:
    stored = json.loads((folder / "classifier.json").read_text())
    stored |= changes
    saved = {name: value for name, value in stored.items() if value is not None}
    (folder / "classifier.json").write_text(json.dumps(saved))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_weights(folder: Path) -> None:
    tensors = read_state_dict(folder / "model.safetensors")
    write_state_dict({**tensors, "head.bias": tensors["head.bias"] + 1}, folder / "model.safetensors")


def less_weights(folder: Path, part: str) -> None:
    tensors = read_state_dict(folder / "model.safetensors")
    write_state_dict({k: v for k, v in tensors.items() if part not in k}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), ["not a classifier directory", "zero_shot"]),
        (lambda folder: (folder / "classifier.json").unlink(), ["no classifier.json", "zero_shot"]),
        (lambda folder: cut(folder / "classifier.json"), ["classifier.json is not valid JSON"]),
        (lambda folder: edited(folder, format=99), ["format 99", "zero_shot"]),
        (lambda folder: edited(folder, prompts=None), ["classifier.json lacks 'prompts'"]),
        (lambda folder: edited(folder, fingerprint=None), ["classifier.json lacks 'fingerprint'"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["zero_shot is incomplete", "model.safetensors"]),
        (lambda folder: cut(folder / "model.safetensors"), ["model.safetensors is not a complete safetensors"]),
        (other_weights, ["zero_shot are not those", "Restore both files"]),
        (lambda folder: less_weights(folder, "stem"), ["do not fit the architecture", "stem"]),
        (lambda folder: less_weights(folder, "head"), ["contain no 'head.weight'"]),
    ],
)
def test_a_damaged_directory_is_an_error_that_names_the_file(
    tmp_path: Path, zero: sp.Classifier, damage: Callable[[Path], None], message: list[str]
) -> None:
    folder = sp.save_classifier(zero, tmp_path / "zero_shot")
    damage(folder)
    with pytest.raises(sp.InputError) as caught:
        sp.load_classifier(folder)
    assert all(part in str(caught.value) for part in message), caught.value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "Did you mean 'tiny'"),
        ("ViT-B-32", "Examples: tiny, open_clip:ViT-B-32/openai"),
        ("openclip:ViT-B-32", "Did you mean 'open_clip:'"),
        ("open_clip:ViT-B32", "Did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/openia", "Did you mean 'openai'"),
        ("local-dir:/nowhere/at/all", "'local-dir:/nowhere/at/all' cannot be loaded"),
    ],
)
def test_an_unknown_model_is_an_error_that_offers_the_nearest(name: str, message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        sp.load_clip(name)


def test_classifiers_of_other_tasks_are_told_apart(zero: sp.Classifier) -> None:
    require_same_task(zero, zero.with_weights(zero.state_dict()))
    turned = dataclasses.replace(zero, classes=sp.ClassSpace.from_ids(SPACE.ids[::-1]))
    with pytest.raises(sp.IncompatibleWeightsError, match="a different order"):
        require_same_task(zero, turned)
    fewer = dataclasses.replace(zero, classes=sp.ClassSpace.from_ids(["lemon", "pear", "plum"]))
    with pytest.raises(sp.IncompatibleWeightsError, match="in one only: 'plum', 'red_apple'"):
        require_same_task(zero, fewer)
    sharper = dataclasses.replace(zero, preprocessing=dataclasses.replace(zero.preprocessing, size=128))
    with pytest.raises(sp.IncompatibleWeightsError, match="take different images"):
        require_same_task(zero, sharper)


def test_tied_tensors_are_written_each(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    tensors = read_state_dict(write_state_dict({"a": shared, "b": shared, "t": shared.T}, tmp_path / "w.safetensors"))
    assert torch.equal(tensors["a"], shared)
    assert torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["t"], shared.T)


@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    size=st.integers(8, 40),
    mode=st.sampled_from(["shortest", "squash", "longest"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    fill=st.integers(0, 255),
    seed=st.integers(0, 99),
)
def test_preprocessing_is_open_clips_own(
    height: int, width: int, size: int, mode: str, interpolation: str, fill: int, seed: int
) -> None:
    if mode == "longest":  # open_clip fails on sides that shrink to nothing
        height, width = max(height, 8), max(width, 8)
    draw_from = np.random.default_rng(seed)
    pixels = draw_from.integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    wanted = Preprocessing(size, mean, std, interpolation, mode, fill)
    result = normalise(to_unit_range([resize(pixels, wanted)]), wanted)[0]
    theirs = PreprocessCfg(
        size=size, mean=mean, std=std, interpolation=interpolation, resize_mode=mode, fill_color=fill
    )
    expected = image_transform_v2(theirs, is_train=False)(Image.fromarray(pixels))
    assert torch.equal(result, expected)


def test_an_image_thinner_than_a_pixel_is_resized_all_the_same() -> None:
    thin = np.full((200, 1, 3), 90, dtype=np.uint8)
    result = resize(thin, Preprocessing(size=16, resize_mode="longest", fill=3))
    assert result.shape == (16, 16, 3)
    assert set(result.flatten().tolist()) == {3, 90}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"resize_mode": "short"}, "Did you mean 'shortest'"),
    ],
)
def test_impossible_preprocessing_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        Preprocessing(**wrong)  # type: ignore[arg-type]


def test_the_tiny_tower_is_read_as_timm_reads_any(tiny: sp.models.Clip, pictures: Tensor) -> None:
    tower = tiny.model.visual.trunk
    with torch.inference_mode():
        last = tower.forward_features(pictures)
        assert last.shape == (5, tower.num_features, 8, 8)
        assert torch.equal(tower.forward_head(last), tower(pictures))
        torch.testing.assert_close(tower(pictures), last.mean((2, 3)))
    assert isinstance(tower.get_classifier(), nn.Identity)


@pytest.mark.parametrize(("card", "message"), [([], "holds no settings"), ({"preprocessing": {"sise": 64}}, "damaged")])
def test_a_card_of_another_form_is_refused(tiny: sp.models.Clip, tmp_path: Path, card: Any, message: str) -> None:
    path = sp.save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon"])), tmp_path / "zero")
    stored = json.loads((path / "classifier.json").read_text(encoding="utf-8"))
    content = {**stored, **card} if isinstance(card, dict) else card
    (path / "classifier.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(sp.InputError, match=message):
        sp.load_classifier(path)


def test_the_config_of_the_shipped_model_is_known_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(open_clip.factory._MODEL_CONFIGS, "shiftproof-tiny", raising=False)
    assert model_config("shiftproof-tiny")["embed_dim"] == 128
