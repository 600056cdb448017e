"""Soups: the averages against float64, greedy selection against its recipe, and what a soup says of itself."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.classifiers import accuracy_of, convolution_classifier, weight_bytes
from torch import Tensor

import shiftproof as sp
from shiftproof.data.sets import array_set
from shiftproof.ensembling.batch_norm import reestimate_batch_norm
from shiftproof.ensembling.soups import SoupRecord, greedy_members, greedy_soup, model_stock_soup, uniform_soup
from shiftproof.weights.arithmetic import average_weights, model_stock, weight_distance
from shiftproof.weights.schedules import alphas_by_depth, alphas_by_pattern

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear"])


def seeded_classifier(seed: int = 0, **changes: Any) -> sp.Classifier:
    return convolution_classifier(CLASSES, seed, relu=False, **{"source": f"toy-{seed}", **changes})


def pictures(count: int = 30, seed: int = 0) -> sp.ImageSet:
    labels = np.arange(count) % len(CLASSES)

    def draw() -> NDArray[np.uint8]:
        generator = np.random.default_rng(seed)
        tints = np.array([[220, 200, 60], [200, 30, 40], [120, 190, 60]])[labels][:, None, None]
        return (tints + generator.normal(0, 60, (count, 16, 16, 3))).clip(0, 255).astype(np.uint8)

    return array_set("validation", CLASSES, [str(i) for i in range(count)], labels, draw)


def tuned(start: sp.Classifier, seed: int, **changes: Any) -> sp.Classifier:
    """A classifier near its start, which it names as fine-tuning does."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in start.state_dict().items()
        if "running_var" not in name
    }
    weights = {**start.state_dict(), **weights}
    parent = {"role": "start", "fingerprint": sp.models.fingerprint(start), "source": start.source}
    return start.with_weights(weights, parents=(parent,), head="trained", **changes)


def wide(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.double().numpy()


# The arithmetic.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@given(count=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_average_is_the_float64_mean_rounded_once(dtype: torch.dtype, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    thetas = [{"w": torch.randn(5, 4, generator=generator).to(dtype)} for _ in range(count)]
    tensors = average_weights(thetas)["w"]
    exact = np.mean([wide(theta["w"]) for theta in thetas], axis=0)
    assert tensors.dtype == dtype
    size = np.max([np.abs(wide(theta["w"])) for theta in thetas], axis=0)
    arithmetic = 2.0**-50 if dtype == torch.float64 else 2.0**-21
    allowed = torch.finfo(dtype).eps / 2 * np.abs(exact) + count * arithmetic * size + 2.0**-25
    assert (np.abs(wide(tensors) - exact) <= allowed).all()


def test_counters_of_an_average_are_the_lasts() -> None:
    thetas = [{"w": torch.ones(1), "n": torch.tensor(n)} for n in (3, 9, 4)]
    assert average_weights(thetas)["n"].item() == 4


def stock_by_hand(start: Tensor, tuned: Sequence[Tensor]) -> NDArray[np.float64]:
    """t w_avg + (1 - t) w_0 with t = N cos / (1 + (N - 1) cos), cos the mean over all pairs of task vectors."""
    origin = wide(start)
    vectors = [(wide(w) - origin).ravel() for w in tuned]
    count = len(vectors)
    if not all(np.linalg.norm(v) for v in vectors):
        return origin
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosines = [vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j]) for i, j in pairs]
    cosine = max(sum(cosines) / len(pairs), 0.0)
    t = count * cosine / (1 + (count - 1) * cosine)
    average = sum(wide(w) for w in tuned) / count
    return np.asarray(t * average + (1 - t) * origin)


@given(count=st.integers(2, 5), shared=st.floats(-1, 1), seed=st.integers(0, 1000))
def test_model_stock_follows_the_papers_formula_entry_by_entry(count: int, shared: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn() -> Tensor:
        return torch.randn(6, 5, generator=generator)

    theta_0 = {"a": drawn(), "b": drawn(), "unmoved": drawn(), "n": torch.tensor(2)}
    along = {"a": drawn(), "b": shared * drawn()}
    thetas = [
        {"a": theta_0["a"] + along["a"] + 0.3 * drawn(), "b": theta_0["b"] + along["b"] + drawn()}
        | {"unmoved": theta_0["unmoved"].clone(), "n": torch.tensor(7)}
        for _ in range(count)
    ]
    result = model_stock(theta_0, thetas)
    for name in ("a", "b", "unmoved"):
        expected = stock_by_hand(theta_0[name], [theta[name] for theta in thetas])
        np.testing.assert_allclose(wide(result[name]), expected, rtol=1e-5, atol=2e-6)
    assert torch.equal(result["unmoved"], theta_0["unmoved"])
    assert result["n"].item() == 2


def test_model_stock_of_one_direction_is_the_mean_and_of_opposite_ones_the_start() -> None:
    start, step = torch.randn(20), torch.randn(20)
    agreed = model_stock({"w": start}, [{"w": start + step}, {"w": start + 3 * step}])["w"]
    torch.testing.assert_close(agreed, start + 2 * step)
    opposed = model_stock({"w": start}, [{"w": start + step}, {"w": start - step}])["w"]
    assert torch.equal(opposed, start)


def test_model_stock_needs_two_models() -> None:
    with pytest.raises(sp.InputError, match="fine-tuned models is 1; it must be at least 2"):
        model_stock({"w": torch.ones(1)}, [{"w": torch.ones(1)}])


def test_the_distance_counts_every_float_once() -> None:
    def theta() -> dict[str, Tensor]:
        tied = torch.randn(4, 3).half()
        return {"embed": tied, "head": tied, "w": torch.randn(5), "n": torch.tensor(1)}

    theta_0, theta_1 = theta(), theta() | {"n": torch.tensor(9)}
    squares = [np.square(wide(theta_0[name]) - wide(theta_1[name])).sum() for name in ("embed", "w")]
    assert weight_distance(theta_0, theta_1) == pytest.approx(math.sqrt(sum(squares)), rel=1e-12)
    assert weight_distance(theta_0, theta_0) == 0


# One alpha for every layer.


def towers(name: str) -> list[str]:
    """The real names of a model's entries; on the meta device, which costs no memory."""
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        model = open_clip.CLIP(**config) if config else timm.create_model(name)
    return list(model.state_dict())


def test_a_pattern_that_comes_first_wins(tiny: sp.models.Clip) -> None:
    names = list(tiny.model.state_dict())
    alphas = alphas_by_pattern(names, {"*.bias": 0.25, "visual.*": 0.75}, default=0.5)
    assert list(alphas) == names
    for name, alpha in alphas.items():
        assert alpha == (0.25 if name.endswith(".bias") else 0.75 if name.startswith("visual.") else 0.5)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [({"vision.*": 0.5}, r"matches the pattern 'vision\.\*'"), ({"visual.*": 1.5}, "must lie between 0 and 1")],
)
def test_a_pattern_that_makes_no_sense_is_refused(
    tiny: sp.models.Clip, patterns: dict[str, float], message: str
) -> None:
    with pytest.raises(sp.InputError, match=message):
        alphas_by_pattern(tiny.model.state_dict(), patterns, default=0.5)


def test_depths_of_the_tiny_model(tiny: sp.models.Clip) -> None:
    alphas = alphas_by_depth(tiny.model.state_dict(), 0.0, 1.0)
    expected = {
        "positional_embedding": 0,
        "token_embedding.weight": 0,
        "visual.trunk.stem.0.weight": 0,
        "visual.trunk.blocks.1.shortcut.weight": 2 / 4,
        "visual.trunk.blocks.2.conv1.weight": 3 / 4,
        "visual.head.proj.weight": 1,
        "transformer.resblocks.0.mlp.c_proj.weight": 1 / 3,
        "transformer.resblocks.1.attn.out_proj.weight": 2 / 3,
        "ln_final.weight": 1,
        "text_projection": 1,
        "logit_scale": 1,
    }
    assert {name: alphas[name] for name in expected} == pytest.approx(expected)


def test_depths_of_an_open_clip_vit() -> None:
    alphas = alphas_by_depth(towers("ViT-B-32"), 0.2, 0.8)
    for tower in ("visual.transformer", "transformer"):
        for i in range(12):
            for part in ("ln_1.weight", "attn.out_proj.bias", "mlp.c_proj.weight"):
                assert alphas[f"{tower}.resblocks.{i}.{part}"] == pytest.approx(0.2 + 0.6 * (i + 1) / 13)
    before = ["visual.conv1.weight", "visual.class_embedding", "visual.ln_pre.bias", "token_embedding.weight"]
    behind = ["visual.ln_post.weight", "visual.proj", "text_projection", "ln_final.bias", "logit_scale"]
    assert {alphas[name] for name in before} == {0.2}
    assert [alphas[name] for name in behind] == pytest.approx([0.8] * 5)


def test_depths_of_a_clip_from_transformers() -> None:
    layers = [
        f"{tower}.encoder.layers.{i}.mlp.fc1.weight" for tower in ("vision_model", "text_model") for i in range(3)
    ]
    before = ["vision_model.embeddings.class_embedding", "vision_model.pre_layrnorm.weight"]
    before += ["vision_model.embeddings.patch_embedding.weight", "text_model.embeddings.token_embedding.weight"]
    behind = ["vision_model.post_layernorm.weight", "text_model.final_layer_norm.bias", "visual_projection.weight"]
    behind += ["text_projection.weight", "logit_scale"]
    alphas = alphas_by_depth(before + layers + behind, 0.0, 1.0)
    assert [alphas[name] for name in before] == [0.0] * 4
    assert [alphas[name] for name in layers] == [0.25, 0.5, 0.75] * 2
    assert [alphas[name] for name in behind] == [1.0] * 5


@pytest.mark.parametrize(
    ("name", "stem", "last"),
    [("resnet18", "conv1", "fc"), ("convnext_atto", "stem", "head"), ("swin_tiny_patch4_window7_224", "patch", "norm")],
)
def test_depth_rises_through_the_stages_of_one_tower(name: str, stem: str, last: str) -> None:
    # The state dict of these models lists them from the input to the output.
    alphas = alphas_by_depth(towers(name), 0.0, 1.0)
    depths = list(alphas.values())
    assert depths == sorted(depths)
    assert {alpha for key, alpha in alphas.items() if key.startswith(stem)} == {0.0}
    inner = {alpha for key, alpha in alphas.items() if not key.startswith((stem, "bn1", last, "head"))}
    assert max(inner) < 1
    assert min(inner) > 0
    steps = np.diff(sorted({0.0, *inner, 1.0}))
    np.testing.assert_allclose(steps, 1 / (len(inner) + 1))
    assert {alpha for key, alpha in alphas.items() if key.startswith(last)} == {1.0}


def test_depth_can_fall_and_needs_blocks() -> None:
    assert alphas_by_depth(["a", "blocks.0.w", "head.w"], 1.0, 0.0) == {"a": 1.0, "blocks.0.w": 0.5, "head.w": 0.0}
    with pytest.raises(sp.InputError, match=r"no entry belongs to a numbered block(.|\n)*Use one alpha"):
        alphas_by_depth(["w", "head.w"], 0.0, 1.0)


# Greedy selection.


@given(data=st.data(), count=st.integers(1, 6))
def test_greedy_selection_follows_the_recipe(data: st.DataObject, count: int) -> None:
    levels = st.integers(0, 4)  # few, so that ties are common
    alone = [data.draw(levels) / 4 for _ in range(count)]
    settings: list[tuple[int, ...]] = []
    given_scores: dict[frozenset[int], float] = {frozenset([i]): alone[i] for i in range(count)}

    def score(members: tuple[int, ...]) -> float:
        settings.append(members)
        return given_scores.setdefault(frozenset(members), data.draw(levels) / 4)

    trials = greedy_members(alone, score)
    # Recipe 1, with an empty soup to begin with.
    order = [i for level in range(4, -1, -1) for i in range(count) if alone[i] == level / 4]
    soup: list[int] = []
    for trial, candidate in zip(trials, order, strict=True):
        reached = given_scores[frozenset([*soup, candidate])]
        keeps = not soup or reached >= given_scores[frozenset(soup)]
        assert asdict(trial) == {
            "candidate": candidate,
            "alone": alone[candidate],
            "soup": reached,
            "taken": keeps,
        }
        soup += [candidate] if keeps else []
    record = SoupRecord(tuple("abcdef"[:count]), trials)
    assert record.members == tuple(soup)
    assert record.accuracy == given_scores[frozenset(soup)] >= max(alone)
    assert record.is_best_single == (len(soup) == 1)
    assert len(settings) == count - 1


@pytest.mark.parametrize(
    ("alone", "message"), [([], "candidates is 0; it must be at least 1"), ([0.5, math.nan], r"\[1\] are not finite")]
)
def test_scores_that_rank_nothing_are_refused(alone: list[float], message: str) -> None:
    with pytest.raises(sp.InputError, match=message):
        greedy_members(alone, lambda members: 1.0)


def test_a_greedy_soup_is_the_average_of_what_it_took() -> None:
    start, images = seeded_classifier(), pictures()
    members = [tuned(start, seed) for seed in range(1, 6)]
    before = [weight_bytes(member) for member in members]
    greedy = greedy_soup(members, images)
    soup, record = greedy.classifier, greedy.record
    assert [weight_bytes(member) for member in members] == before
    assert record.candidates == tuple(sp.models.fingerprint(member) for member in members)
    reached: list[int] = []
    for trial in record.trials:
        tried = uniform_soup([members[i] for i in sorted((*reached, trial.candidate))])
        assert trial.alone == accuracy_of(members[trial.candidate], images)
        assert trial.soup == accuracy_of(tried, images)
        reached += [trial.candidate] if trial.taken else []
    reached.sort()  # a soup does not depend on the order in which its members were tried
    assert weight_bytes(soup) == weight_bytes(uniform_soup([members[i] for i in reached]))
    assert [parent["fingerprint"] for parent in soup.parents] == [record.candidates[i] for i in reached]
    assert record.accuracy == accuracy_of(soup, images)


@pytest.mark.parametrize("seed", range(4))
def test_a_greedy_soup_is_chosen_with_the_statistics_and_in_the_precision_that_it_is_used_with(seed: int) -> None:
    start, images, train = seeded_classifier(seed), pictures(), pictures(40, seed=1)
    members = [tuned(start, seed) for seed in range(1, 5)]
    greedy = greedy_soup(members, images, batch_norm_images=train, device="cpu", precision="bfloat16")
    reached: list[int] = []
    for trial in greedy.record.trials:
        tried = uniform_soup([members[i] for i in sorted((*reached, trial.candidate))])
        tried = reestimate_batch_norm(tried, train, device="cpu") if reached else members[trial.candidate]
        predictions = sp.predict(tried, images, device="cpu", precision="bfloat16")
        assert trial.soup == float(np.mean(predictions.logits.argmax(1) == predictions.labels))
        reached += [trial.candidate] if trial.taken else []
    whole = [members[i] for i in sorted(reached)]
    assert weight_bytes(greedy.classifier) == weight_bytes(uniform_soup(whole, batch_norm_images=train, device="cpu"))
    if len(whole) > 1:
        assert weight_bytes(greedy.classifier) != weight_bytes(uniform_soup(whole))


def test_a_soup_of_one_keeps_its_statistics_and_a_network_without_any_is_refused(tiny: sp.models.Clip) -> None:
    only = tuned(seeded_classifier(), 1)
    assert weight_bytes(uniform_soup([only], batch_norm_images=pictures())) == weight_bytes(only)
    plain = sp.zero_shot_classifier(tiny, CLASSES)
    for refused in (
        lambda: uniform_soup([plain], batch_norm_images=pictures()),
        lambda: greedy_soup([plain, plain], pictures(), batch_norm_images=pictures()),
    ):
        with pytest.raises(sp.InputError, match="batch norm cannot be re-estimated for tiny"):
            refused()


def test_the_best_single_is_an_ordinary_outcome() -> None:
    start, images = seeded_classifier(), pictures()
    good = sp.finetune(start, suite(images), sp.FinetuneSettings(epochs=6, lr=1e-2, batch_size=15, warmup_steps=0))
    head = {name: -tensor if "head" in name else tensor for name, tensor in good.state_dict().items()}
    greedy = greedy_soup([good.with_weights(head), good], images)
    soup, record = greedy.classifier, greedy.record
    assert record.is_best_single
    assert record.members == (1,)
    assert [trial.taken for trial in record.trials] == [True, False]
    assert record.trials[1].soup < record.accuracy == accuracy_of(good, images)
    assert weight_bytes(soup) == weight_bytes(good)


def suite(images: sp.ImageSet) -> sp.ShiftSuite:
    return sp.ShiftSuite("tints", CLASSES, sp.data.Reference("photo", images, images, images), ())


# What a soup is and says.


def test_a_uniform_soup_is_the_mean_and_says_of_whom(tmp_path: Path) -> None:
    start = seeded_classifier()
    members = [tuned(start, seed, alpha=0.5, training={"seed": seed}) for seed in (1, 2, 3)]
    soup = uniform_soup(members)
    for name, tensor in soup.state_dict().items():
        parts = [member.state_dict()[name] for member in members]
        np.testing.assert_allclose(wide(tensor), np.mean([wide(part) for part in parts], axis=0), atol=1e-6)
    expected = [("member", sp.models.fingerprint(member), member.source) for member in members]
    assert [(p["role"], p["fingerprint"], p["source"]) for p in soup.parents] == expected
    assert (soup.head, soup.alpha, soup.training) == ("averaged", None, {})
    assert not soup.network.training


def test_a_model_stock_soup_names_its_start_and_members(tiny: sp.models.Clip, tmp_path: Path) -> None:
    start = sp.zero_shot_classifier(tiny, CLASSES)
    members = [tuned(start, seed) for seed in (1, 2)]
    soup = model_stock_soup(start, members)
    expected = model_stock(start.state_dict(), [member.state_dict() for member in members])
    assert all(torch.equal(tensor, expected[name]) for name, tensor in soup.state_dict().items())
    assert [parent["role"] for parent in soup.parents] == ["zero_shot", "member", "member"]
    assert soup.parents[0]["fingerprint"] == sp.models.fingerprint(start)
    assert sp.load_classifier(sp.save_classifier(soup, tmp_path)) == soup


def test_members_from_other_starts_are_warned_of() -> None:
    start, other = seeded_classifier(0), seeded_classifier(1)
    strangers = [tuned(start, 1), tuned(other, 2)]
    with pytest.warns(UserWarning, match=r"fine-tuned from 2 different starts(.|\n)*use one start"):
        uniform_soup(strangers)
    with pytest.warns(UserWarning, match="fine-tuned from 2 different starts"):
        greedy_soup(strangers, pictures(6))
    with pytest.warns(UserWarning, match="fine-tuned from 2 different starts"):
        model_stock_soup(other, [tuned(start, 1), tuned(start, 2)])
    with pytest.warns(UserWarning, match="fine-tuned from 2 different starts"):
        uniform_soup([sp.wise_ft(start, tuned(start, 1)), tuned(other, 2)])


def test_one_start_or_an_unknown_one_is_no_reason_to_warn() -> None:
    start = seeded_classifier()
    members = [tuned(start, 1), tuned(start, 2)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniform_soup(members)
        greedy_soup(members, pictures(6))
        model_stock_soup(start, members)
        uniform_soup([*members, sp.wise_ft(start, members[0])])
        uniform_soup([*members, replace(tuned(seeded_classifier(1), 3), parents=())])
        model_stock_soup(start, [replace(member, parents=()) for member in members])


def test_soups_of_what_does_not_fit_are_refused() -> None:
    start = seeded_classifier()
    with pytest.raises(sp.InputError, match="classifiers in a soup is 0; it must be at least 1"):
        uniform_soup([])
    with pytest.raises(sp.InputError, match="classifiers in a soup is 1; it must be at least 2"):
        model_stock_soup(start, [tuned(start, 1)])
    renamed = replace(start, classes=sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    for refused in (
        lambda: uniform_soup([start, renamed]),
        lambda: greedy_soup([start, renamed], pictures(6)),
        lambda: model_stock_soup(renamed, [start, start]),
    ):
        with pytest.raises(sp.IncompatibleWeightsError, match="different classes"):
            refused()
