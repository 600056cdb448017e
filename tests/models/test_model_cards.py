"""Model cards state what is known, and nothing that is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.exported import CLASSES, small_clip

import shiftproof as sp
from shiftproof.models.export.card import KnownResults, model_card
from shiftproof.models.export.exporting import Export
from shiftproof.records.accuracy import AccuracyRecord


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> sp.Classifier:
    return sp.zero_shot_classifier(sp.load_clip(small_clip(tmp_path_factory.mktemp("clip") / "clip")), CLASSES)


def card_of(classifier: sp.Classifier, results: KnownResults, tmp_path: Path, to: str = "open_clip") -> ModelCard:
    return ModelCard(model_card(classifier, Export(tmp_path / "fruit", to, to, 1e-6, (), "print()"), results))


def test_a_classifier_that_was_never_measured_says_so(zero: sp.Classifier, tmp_path: Path) -> None:
    card = card_of(zero, KnownResults(), tmp_path)
    assert card.text.lstrip().startswith("# fruit")
    assert "No accuracy is recorded for this classifier." in card.text
    assert "Its accuracy is not known." in card.text
    assert "alpha" not in card.text
    assert card.data.to_dict() == {
        "library_name": "open_clip",
        "pipeline_tag": "image-classification",
        "tags": ["shiftproof", "image-classification"],
    }


def test_paths_of_this_machine_stay_here(zero: sp.Classifier, tmp_path: Path) -> None:
    folder = str(Path(zero.source.removeprefix("local-dir:")).parent)
    parent = {"role": "start", "fingerprint": "v2:0", "source": zero.source}
    card = card_of(replace(zero, parents=(parent,)), KnownResults(), tmp_path)
    assert "`local-dir:clip`" in card.text
    assert folder not in str(card)


@pytest.mark.parametrize(
    ("source", "base"),
    [
        ("hf-hub:org/clip", "org/clip"),
        ("hf:org/clip", "org/clip"),
        ("timm:resnet18.a1_in1k", "timm/resnet18.a1_in1k"),
        ("timm:resnet18", None),
        ("open_clip:ViT-B-32/openai with weights /home/me/tuned.pt", "timm/vit_base_patch32_clip_224.openai"),
        ("torchvision:resnet18.IMAGENET1K_V1", None),
        ("lite0", None),
    ],
)
def test_the_base_model_is_named_where_the_hub_has_it(
    source: str, base: str | None, zero: sp.Classifier, tmp_path: Path
) -> None:
    card = card_of(replace(zero, source=source), KnownResults(), tmp_path)
    assert card.data.to_dict().get("base_model") == base
    assert "/home/me" not in str(card)
    assert ("Apache-2.0" in card.text) == (source == "lite0")


def test_each_kind_of_interval_is_explained(zero: sp.Classifier, tmp_path: Path) -> None:
    alone = AccuracyRecord("m", None, "photos", 0.75, (0.5, 0.9), 40)
    together = replace(alone, set="sketches", interval_method="korn-graubard", clusters=8)
    results = KnownResults((alone, together), reference="photos", kinds={"sketches": "natural"})
    text = card_of(zero, results, tmp_path, to="onnx").text
    assert "| photos | reference | 75.0 | 50.0 to 90.0 | 40 |" in text
    assert "| sketches | natural | 75.0 | 50.0 to 90.0 | 40 |" in text
    assert "Clopper and Pearson" in text
    assert "Korn and Graubard" in text
    assert "No choice was made on a shift" not in text  # nobody knows how an alpha was chosen without its rule


@pytest.mark.parametrize(
    "head", ["zero-shot", "own", "probe", "trained", "frozen", "rebuilt", "interpolated", "averaged"]
)
def test_every_kind_of_head_is_described(zero: sp.Classifier, tmp_path: Path, head: str) -> None:
    assert "head" in card_of(replace(zero, head=head), KnownResults(), tmp_path).text.lower()
