"""Fine-tuning of SigLIP: the sigmoid loss of FLYP, the logit bias in heads, and ensembles of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.recipes import differing, text_of, two_steps
from support.transformers_models import write_model
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.finetuning.recipes import Batch, recipe_of
from shiftproof.mixing.plans import MixPlan

pytestmark = pytest.mark.slow

PROMPTS = ("a photo of a {}.", "one {}.")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> sp.models.Clip:
    return sp.load_clip(write_model(tmp_path_factory.mktemp("models") / "siglip", "siglip"))


@pytest.fixture(scope="module")
def zero(clip: sp.models.Clip, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.zero_shot_classifier(clip, few.classes, PROMPTS)


@pytest.fixture(scope="module")
def flyp(zero: sp.Classifier, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.finetune(zero, few, two_steps(recipe="flyp", lr=3e-3, epochs=2), device="cpu")


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def loss_of(zero: sp.Classifier, labels: Sequence[int], plan: MixPlan | None) -> tuple[float, Tensor, Tensor]:
    """The loss of a batch whose features are drawn, with scale 7 and bias -2, and those features."""
    recipe = recipe_of(zero, two_steps(recipe="flyp", batch_size=len(labels)), zero, seed=3, device="cpu")
    generator = torch.Generator().manual_seed(1)
    images, texts = functional.normalize(torch.randn(2, len(labels), 5, generator=generator), dim=-1)

    def model(pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return images, texts, torch.tensor([7.0]), torch.tensor([-2.0])

    batch = Batch(torch.zeros(len(labels), 3, 32, 32), torch.tensor(labels), plan)
    (loss,) = recipe.losses(model, batch, 0)  # type: ignore[arg-type]
    return loss.item(), images, texts


@pytest.mark.parametrize("mixed", [False, True])
def test_a_caption_is_positive_for_every_image_with_its_class(zero: sp.Classifier, mixed: bool) -> None:
    labels = [0, 1, 0, 2]
    plan = sp.mixing.MixUp().plan(len(labels), (32, 32), torch.Generator().manual_seed(2))
    weights, partners = plan.weights.tolist(), plan.partners.tolist()
    loss, images, texts = loss_of(zero, labels, plan if mixed else None)
    total = 0.0
    for i, image in enumerate(images.tolist()):
        for j, text in enumerate(texts.tolist()):
            share = float(labels[i] == labels[j])
            if mixed:
                share = weights[i] * share + (1 - weights[i]) * float(labels[partners[i]] == labels[j])
            matches = sigmoid(7 * math.fsum(a * b for a, b in zip(image, text, strict=True)) - 2)
            total -= share * math.log(matches) + (1 - share) * math.log(1 - matches)
    assert loss == pytest.approx(total / len(labels), rel=1e-5)


def test_both_towers_the_scale_and_the_bias_are_trained(
    clip: sp.models.Clip, zero: sp.Classifier, flyp: sp.Classifier
) -> None:
    assert flyp.text is not None
    assert {"logit_scale", "logit_bias"} <= differing(text_of(clip), flyp.text)
    bias, scale = float(flyp.text["logit_bias"]), float(flyp.text["logit_scale"].exp())
    assert flyp.network.head.bias.tolist() == pytest.approx([bias] * len(zero.classes))
    assert scale > 100  # the bound of CLIP's scale is none of SigLIP's
    assert flyp.logit_scale == pytest.approx(scale)
    assert flyp.network.head.weight.norm(dim=1).tolist() == pytest.approx([scale] * len(zero.classes), rel=1e-4)


@pytest.mark.parametrize("alpha", [0.25, 0.5])
def test_an_ensemble_has_the_mean_bias_and_the_mean_logarithm_of_the_scale(
    zero: sp.Classifier, flyp: sp.Classifier, alpha: float
) -> None:
    assert flyp.text is not None
    merged = sp.wise_ft(zero, flyp, alpha)
    bias = (1 - alpha) * -12.9 + alpha * float(flyp.text["logit_bias"])
    scale = math.exp((1 - alpha) * 4.77 + alpha * float(flyp.text["logit_scale"]))
    assert merged.head == "rebuilt"
    assert merged.network.head.bias.tolist() == pytest.approx([bias] * len(zero.classes), rel=1e-5)
    assert merged.logit_scale == pytest.approx(scale, rel=1e-5)


def test_the_head_of_a_supervised_training_starts_at_the_bias_and_interpolates_linearly(
    zero: sp.Classifier, few: sp.ShiftSuite
) -> None:
    tuned = sp.finetune(zero, few, two_steps(lr=1e-3), device="cpu")
    ends = zero.network.head.bias.detach(), tuned.network.head.bias.detach()
    assert (ends[1] + 12.9).abs().max() < 0.1
    assert not torch.equal(*ends)
    torch.testing.assert_close(sp.wise_ft(zero, tuned, 0.25).network.head.bias.detach(), torch.lerp(*ends, 0.25))


def test_a_directory_of_the_fine_tuned_towers_gives_the_same_ensemble(
    zero: sp.Classifier, flyp: sp.Classifier, tmp_path: Path
) -> None:
    read = [
        sp.load_classifier(sp.save_classifier(end, tmp_path / name)) for end, name in ((zero, "zero"), (flyp, "tuned"))
    ]
    result, expected = (sp.wise_ft(*ends, 0.5) for ends in (read, (zero, flyp)))
    assert differing(result.state_dict(), expected.state_dict()) == set()
