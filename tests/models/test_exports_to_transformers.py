"""Exports to transformers: CLIP of open_clip under its names, SigLIP with its bias, and timm models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.exported import CLASSES, PROMPTS, assert_usable, photo, small_clip, timm_classifier, trained
from support.transformers_models import KINDS, write_model

import shiftproof as sp
from shiftproof.models.classifier import Network
from shiftproof.models.export.exporting import export_classifier

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def zero(tmp_path_factory: pytest.TempPathFactory) -> sp.Classifier:
    """A zero-shot classifier of open_clip; treat it as immutable."""
    return sp.zero_shot_classifier(sp.load_clip(small_clip(tmp_path_factory.mktemp("clip") / "clip")), CLASSES, PROMPTS)


@pytest.mark.long
def test_a_clip_model_of_open_clip_becomes_one_of_transformers(zero: sp.Classifier, tmp_path: Path) -> None:
    export = export_classifier(zero, "transformers", tmp_path / "out")
    assert export.notes == ()
    assert_usable(zero, export, tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path / "out")
    assert model.config.vision_config.hidden_act == model.config.text_config.hidden_act == "quick_gelu"
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "out")) == 49408
    # The directory is a model like any other, from which our own loader builds the same classifier.
    again = sp.zero_shot_classifier(sp.load_clip(f"hf:{tmp_path / 'out'}"), CLASSES, PROMPTS)
    picture = Image.open(photo(tmp_path / "photo.png"))
    with torch.inference_mode():
        logits = [entry.network(entry.preprocess(picture)[None]) for entry in (zero, again)]
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_the_pipeline_of_transformers_gives_its_probabilities(zero: sp.Classifier, tmp_path: Path) -> None:
    one = sp.zero_shot_classifier(sp.load_clip(zero.source), CLASSES, "photo")
    export_classifier(one, "transformers", tmp_path / "out")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
    run = transformers.pipeline("zero-shot-image-classification", str(tmp_path / "out"), image_processor=processor)
    picture = Image.open(photo(tmp_path / "photo.png")).convert("RGB")
    answers = run(picture, candidate_labels=list(CLASSES.names), hypothesis_template="a photo of a {}.")
    with torch.inference_mode():
        expected = one.network(one.preprocess(picture)[None])[0].softmax(0).tolist()
    given = {answer["label"]: answer["score"] for answer in answers}
    assert given == pytest.approx(dict(zip(CLASSES.names, expected, strict=True)), abs=1e-3)


def test_a_trained_head_is_a_file_of_its_own(zero: sp.Classifier, tmp_path: Path) -> None:
    tuned = trained(zero)
    export = export_classifier(tuned, "transformers", tmp_path / "out")
    assert export.notes[0].startswith("transformers has no linear head")
    assert_usable(tuned, export, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["zero-shot", "trained"])
def test_models_of_transformers_return_there(kind: str, head: str, tmp_path: Path) -> None:
    start = sp.zero_shot_classifier(sp.load_clip(write_model(tmp_path / "model", kind)), CLASSES, PROMPTS)
    classifier = start if head == "zero-shot" else trained(start)
    export = export_classifier(classifier, "transformers", tmp_path / "out")
    assert ("any aspect ratio" in " ".join(export.notes)) == (kind == "siglip2-naflex")
    assert_usable(classifier, export, tmp_path)


def test_a_timm_model_is_read_by_transformers(tmp_path: Path) -> None:
    classifier = trained(timm_classifier("test_vit"))
    export = export_classifier(classifier, "transformers", tmp_path / "out")
    assert_usable(classifier, export, tmp_path)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label[0] == classifier.classes.names[0] == "tench, Tinca tinca"


def test_a_timm_probe_is_read_by_transformers(tmp_path: Path) -> None:
    start = trained(timm_classifier("test_vit"))
    network = Network(start.network.encoder, start.network.head, normalised=True)
    probe = replace(start, network=network, architecture={**start.architecture, "normalised": True})
    assert_usable(probe, export_classifier(probe, "transformers", tmp_path / "out"), tmp_path)


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("vision_cfg", {"layers": [1, 1, 1, 1], "image_size": 64}, "not a plain vision transformer"),
        ("vision_cfg", {"ls_init_value": 0.1}, "CLIPModel has no setting for ls_init_value of open_clip"),
        ("text_cfg", {"no_causal_mask": True}, "CLIPModel has no setting for no_causal_mask of open_clip"),
    ],
)
def test_towers_that_transformers_does_not_have_are_refused(
    part: str, change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    name = small_clip(tmp_path / "clip", **{part: change})
    classifier = sp.zero_shot_classifier(sp.load_clip(name), CLASSES, PROMPTS)
    with pytest.raises(sp.InputError, match=f"the format transformers cannot hold this classifier: .*{reason}"):
        export_classifier(classifier, "transformers", tmp_path / "out")
    assert json.loads((tmp_path / "clip" / "open_clip_config.json").read_text())["model_cfg"][part].keys() >= set(
        change
    )
