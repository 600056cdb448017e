"""Exports are read back by the library they are for, and compute the classifier's logits there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from support.classifiers import convolution_classifier
from support.exported import CLASSES, PROMPTS, assert_usable, photo, small_clip, timm_classifier, trained
from support.text_towers import contrastive

import shiftproof as sp
from shiftproof.models.classifier import Network
from shiftproof.models.export import exporting
from shiftproof.models.export.exporting import export_classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> sp.models.Clip:
    return sp.load_clip(small_clip(tmp_path_factory.mktemp("small") / "clip"))


@pytest.fixture(scope="module")
def zero(clip: sp.models.Clip) -> sp.Classifier:
    """Treat it as immutable."""
    return sp.zero_shot_classifier(clip, CLASSES, PROMPTS)


@pytest.fixture(scope="module")
def vit() -> sp.Classifier:
    return trained(timm_classifier("test_vit"))


def test_a_zero_shot_classifier_goes_to_open_clip_with_its_text_tower(zero: sp.Classifier, tmp_path: Path) -> None:
    export = export_classifier(zero, "open_clip", tmp_path / "out")
    assert export.notes == ()
    assert sorted(path.name for path in export.directory.iterdir()) == [
        "labels.json",
        "open_clip_config.json",
        "open_clip_model.safetensors",
    ]
    assert_usable(zero, export, tmp_path)
    # The directory is a model like any other: our own loader builds the same classifier from it.
    again = sp.zero_shot_classifier(sp.load_clip(f"local-dir:{export.directory}"), CLASSES, PROMPTS)
    assert again.preprocessing == zero.preprocessing
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in zero.state_dict().items())


def test_open_clip_gets_activation_and_preprocessing(zero: sp.Classifier, tmp_path: Path) -> None:
    export_classifier(zero, "open_clip", tmp_path / "out")
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'out'}")
    assert type(model.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    picture = Image.open(photo(tmp_path / "photo.png"))
    assert torch.allclose(preprocess(picture), zero.preprocess(picture), atol=1e-6)


def test_a_rebuilt_head_goes_with_the_text_tower_that_wrote_it(
    zero: sp.Classifier, clip: sp.models.Clip, tmp_path: Path
) -> None:
    tuned = contrastive(zero, clip, seed=1)
    export = export_classifier(tuned, "open_clip", tmp_path / "out")
    stored = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert torch.equal(stored["token_embedding.weight"], tuned.text["token_embedding.weight"])
    assert export.notes == ()
    assert_usable(tuned, export, tmp_path)


def test_a_trained_head_is_a_file_of_its_own(zero: sp.Classifier, tmp_path: Path) -> None:
    tuned = trained(zero)
    export = export_classifier(sp.wise_ft(zero, tuned, 0.5), "open_clip", tmp_path / "out")
    assert "head.safetensors" in export.notes[0]
    assert_usable(sp.wise_ft(zero, tuned, 0.5), export, tmp_path)


def test_the_tiny_model_is_read_after_one_import(tiny: sp.models.Clip, tmp_path: Path) -> None:
    classifier = sp.zero_shot_classifier(tiny, CLASSES)
    export = export_classifier(classifier, "open_clip", tmp_path / "out")
    assert "import shiftproof.models.tiny" in export.usage
    assert_usable(classifier, export, tmp_path)


def test_a_text_tower_that_did_not_write_the_head_is_refused(zero: sp.Classifier, tmp_path: Path) -> None:
    other = replace(zero, source=small_clip(tmp_path / "other", seed=5))
    with pytest.raises(sp.InputError, match="does not write the head") as caught:
        export_classifier(other, "open_clip", tmp_path / "out")
    assert "'onnx', 'torchscript'" in caught.value.__notes__[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet", "test_convnext"])
def test_a_timm_model_goes_to_timm_with_its_head(name: str, tmp_path: Path) -> None:
    classifier = trained(timm_classifier(name))
    export = export_classifier(classifier, "timm", tmp_path / "out")
    assert export.notes == ()
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == name
    assert config["num_classes"] == 1000
    assert config["label_names"][0] == "n01440764"
    assert_usable(classifier, export, tmp_path)


def test_a_head_on_features_of_length_1_is_a_file_of_its_own(vit: sp.Classifier, tmp_path: Path) -> None:
    network = Network(vit.network.encoder, vit.network.head, normalised=True)
    probe = replace(vit, network=network, architecture={**vit.architecture, "normalised": True})
    export = export_classifier(probe, "timm", tmp_path / "out")
    assert "features of length 1" in export.notes[0]
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 0
    assert_usable(probe, export, tmp_path)


@pytest.mark.parametrize("kind", ["clip", "tiny", "vit", "test_resnet"])
def test_every_classifier_goes_to_torchscript(
    kind: str, zero: sp.Classifier, vit: sp.Classifier, tiny: sp.models.Clip, tmp_path: Path
) -> None:
    if kind == "test_resnet":
        classifier = trained(timm_classifier(kind))
    else:
        classifier = {"clip": zero, "vit": vit, "tiny": sp.zero_shot_classifier(tiny, CLASSES)}[kind]
    export = export_classifier(classifier, "torchscript", tmp_path / "out")
    assert export.notes == ()
    assert_usable(classifier, export, tmp_path)


@pytest.fixture(scope="module")
def in_onnx(zero: sp.Classifier, tmp_path_factory: pytest.TempPathFactory) -> exporting.Export:
    """Treat it as immutable; torch takes seconds to translate a network."""
    return export_classifier(zero, "onnx", tmp_path_factory.mktemp("onnx") / "out")


@pytest.mark.slow
def test_a_clip_model_goes_to_onnx(zero: sp.Classifier, in_onnx: exporting.Export, tmp_path: Path) -> None:
    assert sorted(path.name for path in in_onnx.directory.iterdir()) == ["labels.json", "model.onnx"]
    onnx.checker.check_model(str(in_onnx.directory / "model.onnx"), full_check=True)
    assert_usable(zero, in_onnx, tmp_path)


@pytest.mark.slow
def test_onnx_takes_any_number_of_images_and_describes_itself(zero: sp.Classifier, in_onnx: exporting.Export) -> None:
    session = onnxruntime.InferenceSession(in_onnx.directory / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = zero.network(images).numpy()
        np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, rtol=1e-3, atol=1e-3)
    stored = session.get_modelmeta().custom_metadata_map
    assert json.loads(stored["names"]) == list(CLASSES.names)
    assert json.loads(stored["preprocessing"])["mean"] == [0.4, 0.5, 0.6]


@pytest.mark.slow
def test_weights_that_exceed_an_onnx_file_are_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftproof.models.export.onnx._LARGEST", 1000)
    classifier = convolution_classifier(CLASSES)
    export = export_classifier(classifier, "onnx", tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").is_file()
    assert "model.onnx.data" in export.notes[0]
    assert_usable(classifier, export, tmp_path)


def test_torchscript_takes_any_number_of_images_and_describes_itself(zero: sp.Classifier, tmp_path: Path) -> None:
    export_classifier(zero, "torchscript", tmp_path / "out")
    extra = {"labels.json": ""}
    model = torch.jit.load(tmp_path / "out" / "model.torchscript.pt", _extra_files=extra)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            assert torch.allclose(model(images), zero.network(images), rtol=1e-4, atol=1e-4)
    assert json.loads(extra["labels.json"])["ids"] == list(CLASSES.ids)


@pytest.mark.parametrize(
    ("to", "kind", "reason"),
    [
        ("timm", "clip", "its encoder is a model of open_clip.*'open_clip', .*'onnx', 'torchscript'"),
        ("open_clip", "vit", "its encoder is a model of timm, to which no text tower belongs.*'timm'"),
        ("coreml", "clip", "unknown export format 'coreml'"),
    ],
)
def test_a_format_that_cannot_hold_a_classifier_says_why_and_which_can(
    to: str, kind: str, reason: str, zero: sp.Classifier, vit: sp.Classifier, tmp_path: Path
) -> None:
    with pytest.raises(sp.InputError, match=reason):
        export_classifier({"clip": zero, "vit": vit}[kind], to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_whose_logits_differ_is_not_written(
    zero: sp.Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = exporting._FORMATS["torchscript"]

    def write(classifier: sp.Classifier, directory: Path) -> object:
        return form.write(trained(classifier), directory)

    monkeypatch.setitem(exporting._FORMATS, "torchscript", replace(form, write=write))
    with pytest.raises(sp.InputError, match="computes other logits: they differ by up to"):
        export_classifier(zero, "torchscript", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_replaced_only_where_that_is_asked_for(zero: sp.Classifier, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export_classifier(zero, "open_clip", out)
    with pytest.raises(sp.InputError, match="already holds an export.*`overwrite=True`"):
        export_classifier(zero, "torchscript", out)
    export_classifier(zero, "torchscript", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["labels.json", "model.torchscript.pt"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(sp.InputError, match=r"already holds 'thesis.txt', which no export wrote"):
        export_classifier(zero, "torchscript", out, overwrite=True)


def test_a_file_in_the_place_of_an_export_is_left_alone(zero: sp.Classifier, tmp_path: Path) -> None:
    (tmp_path / "mymodel").write_text("mine", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(sp.InputError, match="mymodel is a file, and an export is a directory"):
            export_classifier(zero, "torchscript", tmp_path / "mymodel", overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["mymodel"]
    assert (tmp_path / "mymodel").read_text(encoding="utf-8") == "mine"
