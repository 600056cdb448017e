"""Evaluation in bfloat16 and float16: against a twin from the formula, along the path, and in what is recorded."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.classifiers import classifier_around, convolution_classifier, weight_bytes
from support.commands import Call, assert_mistake, data_flags
from torch import nn

import shiftproof as sp
from shiftproof.data.sets import array_set
from shiftproof.models.precision import encoded_in
from shiftproof.runs.tables import predict_table

CLASSES = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])


def noise(count: int, seed: int = 0) -> sp.ImageSet:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return array_set("noise", CLASSES, [f"{i}" for i in range(count)], np.arange(count) % 3, lambda: pixels)


def suite_of_noise() -> sp.ShiftSuite:
    splits = (noise(6, seed) for seed in range(3))
    return sp.ShiftSuite("noise", CLASSES, sp.data.Reference("noise", *splits), ())


def ends() -> tuple[sp.Classifier, sp.Classifier]:
    zero = convolution_classifier(CLASSES)
    moved = {name: t * 1.25 if t.is_floating_point() else t for name, t in zero.state_dict().items()}
    return zero, zero.with_weights(moved, head="trained")


def test_the_encoder_rounds_to_bfloat16_and_the_head_does_not() -> None:
    """The twin rounds inputs and weights, multiplies in float64, rounds the features, and rounds no logits."""
    linear, head = nn.Linear(768, 32), nn.Linear(32, 3)
    head.weight.data *= 100
    classifier = classifier_around(nn.Sequential(nn.Flatten(), linear), head, CLASSES)
    images = noise(5)
    found = sp.predict(classifier, images, device="cpu", precision="bfloat16").logits

    def rounded(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.detach().bfloat16().double()

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (classifier.preprocessing.mean, classifier.preprocessing.std))
    pixels = torch.stack([torch.tensor(images.read(i)).permute(2, 0, 1) / 255 for i in range(5)])
    inputs = rounded(((pixels - mean) / std).flatten(1))
    features = rounded((inputs @ rounded(linear.weight).T + rounded(linear.bias)).float())
    lengths = features.norm(dim=1, keepdim=True)
    expected = (features / lengths) @ head.weight.detach().double().T + head.bias.detach().double()
    # A sum in another order may round a feature to its neighbour, 2^-8 of it away; a rounded head is off by more.
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found.dtype == np.float32
    assert not np.array_equal(found, torch.from_numpy(found).bfloat16().float().numpy())
    exact = sp.predict(classifier, images, device="cpu").logits
    assert not np.array_equal(found, exact)


@pytest.mark.parametrize("space", ["weights", "outputs"])
@pytest.mark.parametrize("only_head", [False, True])
def test_a_path_in_bfloat16_has_the_logits_of_its_ensembles_in_bfloat16(space: str, only_head: bool) -> None:
    (zero, tuned), suite = ends(), suite_of_noise()
    if only_head:
        head = {name: entry for name, entry in tuned.state_dict().items() if name.startswith("head.")}
        tuned = zero.with_weights({**zero.state_dict(), **head})
    before = [weight_bytes(model) for model in (zero, tuned)]
    found: dict[float, NDArray[np.float32]] = {}

    @contextlib.contextmanager
    def keep(alpha: float, name: str) -> Iterator[Callable[[NDArray[np.float32]], object]]:
        rows: list[NDArray[np.float32]] = []
        yield rows.append
        found[alpha] = np.concatenate(rows)

    ensemble = sp.wise_ft if space == "weights" else sp.output_ensemble
    sp.sweep_alpha(zero, tuned, suite, (0.0, 0.4, 1.0), space=space, device="cpu", precision="bfloat16", keep=keep)
    for alpha, logits in found.items():
        own, exact = (
            sp.predict(ensemble(zero, tuned, alpha), suite.reference.test, device="cpu", precision=precision).logits
            for precision in ("bfloat16", "float32")
        )
        np.testing.assert_allclose(logits, own, atol=1e-5 if only_head else 0)
        assert not np.allclose(logits, exact, atol=1e-5)
    assert [weight_bytes(model) for model in (zero, tuned)] == before
    assert zero.network.precision == "float32"


def test_a_network_in_another_precision_shares_the_weights_and_leaves_the_caller_s_alone() -> None:
    classifier = convolution_classifier(CLASSES)
    half = classifier.network_on(device="cpu", precision="bfloat16")
    assert half.in_precision("float32").encoder is half.encoder
    assert half.in_precision("bfloat16") is half
    assert (half.precision, classifier.network.precision, half.training) == ("bfloat16", "float32", False)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ("float16", "float16 needs a GPU. Use bfloat16"),
        ("bfloat", "unknown precision 'bfloat'. Did you mean 'bfloat16'"),
    ],
)
def test_a_precision_that_cannot_be_used_is_refused(precision: str, said: str) -> None:
    zero, tuned = ends()
    for job in (
        lambda: sp.predict(zero, noise(2), device="cpu", precision=precision),
        lambda: sp.sweep_alpha(zero, tuned, suite_of_noise(), 2, device="cpu", precision=precision),
    ):
        with pytest.raises(sp.InputError, match=said):
            job()


def test_features_beyond_the_range_of_float16_are_refused() -> None:
    def encoder(images: torch.Tensor) -> torch.Tensor:
        return images * torch.inf

    with pytest.raises(sp.InputError, match=r"not finite in float16.*Use the precision bfloat16 or float32"):
        encoded_in("float16", encoder, torch.ones(1, 2))
    assert encoded_in("bfloat16", encoder, torch.ones(1, 2)).isinf().all()  # what reads the logits says so


@pytest.mark.slow
def test_a_sweep_is_continued_in_its_precision_only(folders: Path, call: Call) -> None:
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), CLASSES)
    tuned = zero.with_weights({name: entry * 1.01 for name, entry in zero.state_dict().items()}, head="trained")
    for name, classifier in (("zero", zero), ("tuned", tuned)):
        sp.save_classifier(classifier, name)
    asked = ["sweep", "zero", "tuned", *data_flags(folders, shift=False), "--alphas", "2", "--device", "cpu"]
    asked += ["--set", "limit=1"]
    assert call(*asked, "--precision", "bfloat16", "--out", "half").code == 0
    assert json.loads(Path("half/sweep.json").read_text(encoding="utf-8"))["precision"] == "bfloat16"
    assert_mistake(call(*asked, "--out", "half", "--resume"), "these differ: 'precision'")
    assert call(*asked, "--precision", "bfloat16", "--alphas", "3", "--out", "half", "--resume").code == 0
    # Earlier versions knew no other precision than float32, and did not record it.
    assert call(*asked, "--out", "whole").code == 0
    request = json.loads(Path("whole/sweep.json").read_text(encoding="utf-8"))
    Path("whole/sweep.json").write_text(json.dumps({k: v for k, v in request.items() if k != "precision"}))
    assert_mistake(call(*asked, "--precision", "bfloat16", "--out", "whole", "--resume"), "these differ: 'precision'")
    assert call(*asked, "--out", "whole", "--resume").code == 0


@pytest.mark.slow
def test_commands_record_the_precision_and_hold_a_table_to_it(folders: Path, call: Call) -> None:
    sp.save_classifier(sp.zero_shot_classifier(sp.load_clip("tiny"), CLASSES), "zero")
    asked = ["--device", "cpu", "--precision", "bfloat16"]
    assert call("evaluate", "zero", "--test", f"folder:{folders}/test", "--out", "scores", *asked).code == 0
    lines = Path("scores/results.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["precision"] for line in lines] == ["bfloat16"]
    image = next((folders / "test" / "lemon").iterdir())
    whole, half = (
        json.loads(call("predict", "zero", image, "--json", *options).out)[0]["top"] for options in ([], asked)
    )
    assert [entry["class"] for entry in whole] == [entry["class"] for entry in half]
    assert whole != half
    predict_table("zero", f"folder:{folders}/test", "table.csv", device="cpu", precision="bfloat16")
    with pytest.raises(sp.InputError, match="written with another precision"):
        predict_table("zero", f"folder:{folders}/test", "table.csv", device="cpu", resume=True)


def test_a_run_file_means_the_precision_of_its_device_and_asks_for_it() -> None:
    asked = sp.RunFile.resolve({"evaluation": {"precision": "fastest"}})
    resolved = asked.resolved_on(device="cpu")
    assert resolved.evaluation.precision in ("float32", "bfloat16")
    assert resolved.resolved_on(device="cpu") == resolved
    other = sp.RunFile.resolve({"evaluation": {"precision": "float16"}})
    assert resolved.differences(other) == ["evaluation"]
    with pytest.raises(sp.InputError, match="float16 needs a GPU"):
        other.resolved_on(device="cpu")
    with pytest.raises(sp.InputError, match=r"unknown run-file key 'evaluation\.precison'\. Did you mean"):
        sp.RunFile.resolve({"evaluation": {"precison": "bfloat16"}})
