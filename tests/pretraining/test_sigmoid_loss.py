"""SigLIP's loss: its formula, the loss of two other libraries, and pretraining with it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.loss import SigLipLoss
from support.transformers_models import theirs, write_model
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.captions import load_captioned_set
from shiftproof.pretraining.loss import sigmoid_loss
from shiftproof.pretraining.towers import TwoTowers


def features_of(seed: int, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images, texts = functional.normalize(torch.randn(2, count, 5, generator=generator, dtype=torch.float64), dim=-1)
    return images, texts


def slow_sigmoid(
    images: list[list[float]], texts: list[list[float]], scale: float, bias: float, shares: list[list[float]]
) -> float:
    """Equation 1 of the paper pair by pair; a share in between is a mean over both answers."""
    total = 0.0
    for image, wanted in zip(images, shares, strict=True):
        for text, share in zip(texts, wanted, strict=True):
            logit = scale * math.fsum(a * b for a, b in zip(image, text, strict=True)) + bias
            matches, differs = (math.log1p(math.exp(-sign * logit)) for sign in (1, -1))
            total += share * matches + (1 - share) * differs
    return total / len(images)


@given(seed=st.integers(0, 1000), count=st.integers(1, 6), scale=st.floats(0.1, 120), bias=st.floats(-14, 2))
def test_the_loss_is_equation_1(seed: int, count: int, scale: float, bias: float) -> None:
    images, texts = features_of(seed, count)
    factor, offset = torch.tensor([scale], dtype=torch.float64), torch.tensor([bias], dtype=torch.float64)
    identity = torch.eye(count).tolist()
    expected = slow_sigmoid(images.tolist(), texts.tolist(), scale, bias, identity)
    assert sigmoid_loss(images, texts, factor, offset).item() == pytest.approx(expected, rel=1e-9)
    library = SigLipLoss()(images, texts, factor, offset)
    assert sigmoid_loss(images, texts, factor, offset).item() == pytest.approx(library.item(), rel=1e-9)
    shares = torch.rand(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    expected = slow_sigmoid(images.tolist(), texts.tolist(), scale, bias, shares.tolist())
    assert sigmoid_loss(images, texts, factor, offset, shares).item() == pytest.approx(expected, rel=1e-9)


def test_targets_of_another_shape_are_refused() -> None:
    images, texts = features_of(0, 3)
    with pytest.raises(sp.InputError, match=r"targets have the shape \(3, 4\)"):
        sigmoid_loss(images, texts, torch.tensor(1.0), torch.tensor(0.0), torch.zeros(3, 4))


def test_the_loss_of_a_model_is_that_of_transformers(tmp_path: Path) -> None:
    name = write_model(tmp_path / "siglip", "siglip")
    clip, library = sp.load_clip(name), theirs(name)
    tokens = clip.tokenizer(["a lemon", "a pear", "an apple"])
    images = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        expected = library(input_ids=tokens, pixel_values=images, return_loss=True).loss
        image_features, text_features, scale, bias = TwoTowers(clip.model)(images, tokens)
        assert bias is not None
        loss = sigmoid_loss(image_features, text_features, scale, bias)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_scale_is_bounded_for_the_softmax_loss_only(tmp_path: Path, tiny: sp.models.Clip) -> None:
    from copy import deepcopy

    softmax, sigmoid = TwoTowers(deepcopy(tiny.model)), TwoTowers(sp.load_clip(write_model(tmp_path, "siglip")).model)
    for towers, expected in ((softmax, math.log(100)), (sigmoid, 4.77)):
        with torch.no_grad():
            towers.model.logit_scale.fill_(4.77)
        towers.clamp_scale()
        assert towers.model.logit_scale.item() == pytest.approx(expected)
    assert sigmoid.sigmoid
    assert not softmax.sigmoid


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_pretraining_writes_a_model_that_transformers_reads(folders: Path, tmp_path: Path, kind: str) -> None:
    name = write_model(tmp_path / "start", kind)
    start = sp.load_clip(name)
    settings = sp.PretrainSettings(steps=2, batch_size=4, lr=1e-3, warmup_steps=0)
    data = load_captioned_set(f"folder:{_captioned(folders, tmp_path / 'data')}")
    record = sp.pretrain(start, data, settings, seed=0, out=tmp_path / "out", device="cpu")
    assert math.isfinite(record.final_loss)
    trained, library = sp.load_clip(f"hf:{tmp_path}/out/model"), theirs(str(tmp_path / "out/model"))
    changed = {n for n, t in trained.model.state_dict().items() if not torch.equal(t, start.model.state_dict()[n])}
    assert ("logit_bias" in changed) == (kind == "siglip")
    assert "logit_scale" in changed
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = library.get_image_features(images).pooler_output
        torch.testing.assert_close(trained.model.encode_image(images), expected)  # type: ignore[operator]


def _captioned(folders: Path, data: Path) -> Path:
    data.mkdir()
    for number, file in enumerate(sorted(folders.glob("train/*/*.png"))[::3]):
        (data / f"{number}.png").write_bytes(file.read_bytes())
        (data / f"{number}.txt").write_text(f"a {file.parent.name} {number}", encoding="utf-8")
    return data
