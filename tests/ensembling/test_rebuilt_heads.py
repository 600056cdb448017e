"""Combined classifiers whose text towers were fine-tuned: the combined text tower writes the head, or there is none."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support.text_towers import contrastive, weighted, written_head
from torch import Tensor, nn
from typer.testing import CliRunner

import shiftproof as sp
from shiftproof.cli.app import app
from shiftproof.data.sets import array_set
from shiftproof.ensembling import model_stock_soup
from shiftproof.models.classifier import Network
from shiftproof.models.text_towers import text_weights
from shiftproof.weights.schedules import alphas_by_pattern

CLASSES = sp.ClassSpace.from_ids(["lemon", "red_apple", "pear"])
PROMPTS = ("a photo of a {}.", "a drawing of one {}.")
HEAD = {"head.weight", "head.bias"}


@pytest.fixture(scope="module")
def zero(tiny: sp.models.Clip) -> sp.Classifier:
    return sp.zero_shot_classifier(tiny, CLASSES, PROMPTS)


@pytest.fixture(scope="module")
def members(zero: sp.Classifier, tiny: sp.models.Clip) -> list[sp.Classifier]:
    """Three classifiers as contrastive fine-tuning returns them: both towers near the start's, the head rebuilt."""
    return [contrastive(zero, tiny, seed) for seed in range(3)]


def pictures(count: int = 9) -> sp.ImageSet:
    pixels = np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3)).astype(np.uint8)
    ids, labels = [str(i) for i in range(count)], np.arange(count) % len(CLASSES)
    return array_set("pictures", CLASSES, ids, labels, lambda: pixels)


def assert_written_by(classifier: sp.Classifier, clip: sp.models.Clip, text: Mapping[str, Tensor]) -> None:
    head = classifier.network.head
    torch.testing.assert_close(
        head.weight.detach(), written_head(clip, PROMPTS, text, CLASSES.names), rtol=1e-4, atol=1e-4
    )
    assert classifier.head == "rebuilt" and not head.bias.any()
    assert classifier.logit_scale == pytest.approx(math.exp(float(text["logit_scale"])), rel=1e-5)
    assert classifier.text is not None and classifier.text.keys() == text.keys()
    for name, entry in classifier.text.items():
        torch.testing.assert_close(entry, text[name], rtol=1e-5, atol=1e-6)


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# wise_ft.


@pytest.mark.parametrize("of_head", [0.3, 0.8])
def test_with_an_alpha_per_layer_the_text_tower_takes_that_of_the_head(
    zero: sp.Classifier, members: list[sp.Classifier], tiny: sp.models.Clip, of_head: float
) -> None:
    first, second = zero.state_dict(), members[0].state_dict()
    alphas = alphas_by_pattern(list(first), {"encoder.trunk.stem*": 0.1, "head.*": of_head}, 0.6)
    merged = sp.wise_ft(zero, members[0], alphas)
    text = weighted([text_weights(tiny), members[0].text or {}], lambda _: (1 - of_head, of_head))
    assert_written_by(merged, tiny, text)
    assert merged.alpha is None
    between = weighted([first, second], lambda name: (1 - alphas[name], alphas[name]))
    for name, entry in merged.state_dict().items():
        if name not in HEAD:
            torch.testing.assert_close(entry, between[name], rtol=1e-5, atol=1e-6)
    rows = between["head.weight"]  # the average of two heads is another
    assert (rows - written_head(tiny, PROMPTS, text, CLASSES.names)).norm() > 100 * (
        merged.network.head.weight - written_head(tiny, PROMPTS, text, CLASSES.names)
    ).norm()


@pytest.mark.slow
def test_one_alpha_for_every_entry_is_that_alpha(zero: sp.Classifier, members: list[sp.Classifier]) -> None:
    one, each = (sp.wise_ft(zero, members[0], a) for a in (0.4, dict.fromkeys(zero.state_dict(), 0.4)))
    assert same_bits(one.state_dict(), each.state_dict()) and same_bits(one.text or {}, each.text or {})
    for alpha, end in ((0.0, zero), (1.0, members[0])):
        same = sp.wise_ft(zero, members[0], dict.fromkeys(zero.state_dict(), alpha))
        assert same_bits(same.state_dict(), end.state_dict()) and same.logit_scale == end.logit_scale


@pytest.mark.slow
def test_two_fine_tuned_text_towers_lie_on_one_path(members: list[sp.Classifier], tiny: sp.models.Clip) -> None:
    first, second, _ = members
    text = weighted([first.text or {}, second.text or {}], lambda _: (0.7, 0.3))
    assert_written_by(sp.wise_ft(first, second, 0.3), tiny, text)
    with_head = {**second.state_dict(), **{f"encoder.{n}": t for n, t in first.network.encoder.state_dict().items()}}
    same_encoder = second.with_weights(with_head, text=second.text)
    suite = sp.ShiftSuite("s", CLASSES, sp.data.Reference("p", pictures(), pictures(), pictures()), ())
    path = sp.sweep_alpha(first, same_encoder, suite, (0.0, 0.3, 1.0))
    for alpha in path.alphas:  # also where only the heads differ
        predictions = sp.predict(sp.wise_ft(first, same_encoder, alpha), pictures())
        assert path.at(alpha).accuracy["p"] == np.mean(predictions.logits.argmax(1) == predictions.labels)


# Soups.


def test_a_uniform_soup_averages_the_text_towers(members: list[sp.Classifier], tiny: sp.models.Clip) -> None:
    soup = sp.uniform_soup(members)
    assert_written_by(soup, tiny, weighted([m.text or {} for m in members], lambda _: (1 / 3,) * 3))
    means = weighted([m.state_dict() for m in members], lambda _: (1 / 3,) * 3)
    for name, entry in soup.state_dict().items():
        if name not in HEAD:
            torch.testing.assert_close(entry, means[name], rtol=1e-5, atol=1e-6)


def test_a_soup_of_one_is_that_one(members: list[sp.Classifier]) -> None:
    soup = sp.uniform_soup(members[1:2])
    assert same_bits(soup.state_dict(), members[1].state_dict()) and same_bits(soup.text or {}, members[1].text or {})
    assert (soup.head, soup.logit_scale) == ("rebuilt", members[1].logit_scale)


@pytest.mark.slow
def test_a_greedy_soup_is_the_uniform_one_of_what_it_took(members: list[sp.Classifier]) -> None:
    greedy = sp.greedy_soup(members, pictures())
    for trial in greedy.record.trials:
        before = [t.candidate for t in greedy.record.trials[: greedy.record.trials.index(trial)] if t.taken]
        tried = sp.uniform_soup([members[i] for i in sorted([*before, trial.candidate])])
        predictions = sp.predict(tried, pictures())
        assert trial.soup == np.mean(predictions.logits.argmax(1) == predictions.labels)
    expected = sp.uniform_soup([members[i] for i in sorted(greedy.record.members)])
    assert same_bits(greedy.classifier.state_dict(), expected.state_dict())


def stock_shares(start: Tensor, tuned: Sequence[Tensor]) -> tuple[float, ...]:
    """(1 - t, t / N, ...) with t = N cos / (1 + (N - 1) cos) of the mean cosine between task vectors."""
    vectors = [(entry.double() - start.double()).flatten() for entry in tuned]
    count = len(vectors)
    if any(not vector.any() for vector in vectors):
        return (1.0, *[0.0] * count)
    cosines = [float(a @ b / a.norm() / b.norm()) for i, a in enumerate(vectors) for b in vectors[:i]]
    cosine = max(sum(cosines) / len(cosines), 0.0)
    t = count * cosine / (1 + (count - 1) * cosine)
    return (1 - t, *[t / count] * count)


@pytest.mark.slow
def test_model_stock_moves_the_text_towers_by_the_papers_ratio(
    zero: sp.Classifier, members: list[sp.Classifier], tiny: sp.models.Clip
) -> None:
    towers = [text_weights(tiny), *(member.text or {} for member in members)]
    text = weighted(towers, lambda name: stock_shares(towers[0][name], [tower[name] for tower in towers[1:]]))
    assert_written_by(model_stock_soup(zero, members), tiny, text)


# What is refused.


def test_a_missing_text_tower_is_refused_wherever_heads_would_be_averaged(
    zero: sp.Classifier, members: list[sp.Classifier]
) -> None:
    lost = replace(members[0], text=None)
    combinations: list[Callable[[], object]] = [
        lambda: sp.wise_ft(zero, lost, 0.5),
        lambda: sp.wise_ft(zero, lost, dict.fromkeys(zero.state_dict(), 0.5)),
        lambda: sp.uniform_soup([members[1], lost]),
        lambda: sp.greedy_soup([members[1], lost], pictures()),
        lambda: model_stock_soup(zero, [members[1], lost]),
    ]
    for combine in combinations:
        with pytest.raises(sp.InputError, match=r"missing \(`text` is None\).*text_tower\.safetensors"):
            combine()


def test_heads_that_were_made_in_different_ways_are_refused(zero: sp.Classifier, members: list[sp.Classifier]) -> None:
    trained = replace(zero, head="trained")
    combinations: list[Callable[[], object]] = [
        lambda: sp.wise_ft(trained, members[0], 0.5),
        lambda: sp.wise_ft(members[0], trained, 0.5),
        lambda: sp.uniform_soup([members[0], trained]),
        lambda: sp.greedy_soup([trained, members[0]], pictures()),
        lambda: model_stock_soup(zero, [members[0], trained]),
    ]
    for combine in combinations:
        with pytest.raises(sp.InputError, match="others have a head that is trained"):
            combine()
    other_prompts = replace(members[1], prompts=("a {}.",))
    with pytest.raises(sp.InputError, match="different prompts or class names"):
        sp.uniform_soup([members[0], other_prompts])


@pytest.mark.slow
def test_a_start_with_another_encoder_has_no_known_text_tower(
    zero: sp.Classifier, members: list[sp.Classifier]
) -> None:
    moved = replace(members[1], head="zero-shot", text=None)
    with pytest.raises(sp.InputError, match="encoder is not that of 'tiny'"):
        sp.wise_ft(moved, members[0], 0.5)


def test_reestimated_statistics_keep_the_text_tower(members: list[sp.Classifier]) -> None:
    """A classifier directory with a rebuilt head needs its text tower."""
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Network(encoder, nn.Linear(4, len(CLASSES)))
    renewed = sp.ensembling.reestimate_batch_norm(replace(members[0], network=network), pictures())
    assert renewed.head == "rebuilt" and renewed.text is members[0].text


# On the command line.


@pytest.fixture
def directories(zero: sp.Classifier, members: list[sp.Classifier], tmp_path: Path) -> list[str]:
    names = ("zero", "first", "second")
    return [
        str(sp.save_classifier(classifier, tmp_path / name))
        for name, classifier in zip(names, (zero, *members[:2]), strict=True)
    ]


def test_a_merge_of_directories_with_rebuilt_heads_is_refused(directories: list[str], tmp_path: Path) -> None:
    for method in (["--alpha", "0.5"], ["--method", "uniform"], ["--depth", "0.2:0.8"]):
        answer = CliRunner().invoke(app, ["merge", *directories[:2], *method, "--out", str(tmp_path / "out")])
        assert answer.exit_code == 2
        assert "a fine-tuned text tower wrote the head of" in answer.output and "sweep" in answer.output
        assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_sweep_of_directories_rebuilds_the_heads(
    directories: list[str], zero: sp.Classifier, members: list[sp.Classifier], folders: Path, tmp_path: Path
) -> None:
    data = ["--reference", f"folder:{folders}/train", "--validation", f"folder:{folders}/validation"]
    data += ["--test", f"folder:{folders}/test", "--shift", f"sketch=folder:{folders}/sketch"]
    out = tmp_path / "out"
    answer = CliRunner().invoke(app, ["sweep", *directories[:2], *data, "--alphas", "3", "--out", str(out)])
    assert answer.exit_code == 0, answer.output
    ensemble, expected = sp.load_classifier(out / "ensemble"), sp.wise_ft(zero, members[0], 0.5)
    assert ensemble.head == "rebuilt" and same_bits(ensemble.state_dict(), expected.state_dict())
    assert same_bits(ensemble.text or {}, expected.text or {})
    (Path(directories[1]) / "text_tower.safetensors").unlink()
    answer = CliRunner().invoke(app, ["sweep", *directories[:2], *data, "--out", str(tmp_path / "other")])
    assert answer.exit_code == 2 and "text_tower.safetensors" in answer.output


def test_a_soup_of_directories_is_saved_with_its_text_tower(directories: list[str], tmp_path: Path) -> None:
    soup = sp.uniform_soup([sp.load_classifier(path) for path in directories[1:]])
    again = sp.load_classifier(sp.save_classifier(soup, tmp_path / "soup"))
    assert same_bits(again.text or {}, soup.text or {}) and again == soup
    assert json.loads((tmp_path / "soup" / "classifier.json").read_text())["head"] == "rebuilt"
