"""The fingerprint of a classifier: what it covers, and that the form of earlier versions is still recognised."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.models.identity import fingerprint, fingerprint_of, first_fingerprint, has_fingerprint

# What the version before 0.2 computed for the classifiers of `counted`.
FIRST_FORM = {
    "tiny": "00ea06cb8a66db0fd185300cc76b6e9c9a704bd99d535cd482fc06ee5ef3c9bc",
    "cropped": "ce7a4041ad5b6ebf76c091f74f75590edb9ed5c7beaee3b2dd2a86533d8062b6",
    "timm": "e9f417675fde8e033152b25f393d39d2de868fa92db4dd9cb599774735b986a4",
}
SECOND_FORM = {
    "tiny": "v2:058a8ffd5b9f8e01317391dbfcf0fe93ec70e55de5cd2ce90cd249357dc7ed42",
    "cropped": "v2:f62150d12def498d48e211165a670f75f5a0cded1247396cc845b0c904863a04",
    "timm": "v2:9231881ff1d5098d500a08ea0164d48393f2167c3ad516a71aa7561b9e1ad739",
}


def counted(classifier: sp.Classifier) -> sp.Classifier:
    """The classifier with weights that are the same on every machine."""
    tensors = classifier.state_dict().items()
    return classifier.with_weights({name: _count(tensor).to(tensor.dtype) for name, tensor in tensors})


def _count(tensor: torch.Tensor) -> torch.Tensor:
    return torch.arange(tensor.numel(), dtype=torch.float64).reshape(tensor.shape) % 97 / 97


@pytest.fixture(scope="module")
def classifiers(tiny: sp.models.Clip) -> dict[str, sp.Classifier]:
    """Treat them as immutable."""
    space = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
    zero = counted(sp.zero_shot_classifier(tiny, space, "short"))
    cropped = replace(zero, preprocessing=replace(zero.preprocessing, crop_share=0.875))
    timm = counted(sp.own_head_classifier(sp.load_encoder("timm:test_resnet")))
    return {"tiny": zero, "cropped": cropped, "timm": timm}


@pytest.mark.parametrize("name", FIRST_FORM)
def test_both_forms_are_what_they_always_were(classifiers: dict[str, sp.Classifier], name: str) -> None:
    assert first_fingerprint(classifiers[name]) == FIRST_FORM[name]
    assert fingerprint(classifiers[name]) == SECOND_FORM[name]


@pytest.mark.parametrize("name", FIRST_FORM)
def test_the_fingerprint_follows_its_definition(classifiers: dict[str, sp.Classifier], name: str) -> None:
    """A canonical JSON document written out by hand, then the bytes of the tensors by name."""
    classifier = classifiers[name]
    wanted = classifier.preprocessing
    whole = {True: "1", False: repr(wanted.crop_share)}[wanted.crop_share == 1]
    mean, std = (",".join(map(repr, values)).replace("0.0,", "0,") for values in (wanted.mean, wanted.std))
    preprocessing = (
        f'{{"crop_share":{whole},"fill":{wanted.fill},"interpolation":"{wanted.interpolation}","mean":[{mean}],'
        f'"resize_mode":"{wanted.resize_mode}","size":{wanted.size},"std":[{std}]}}'
    )
    architecture = json.dumps(classifier.architecture, sort_keys=True, separators=(",", ":"))
    classes = "[" + ",".join(f'"{label}"' for label in classifier.classes.ids) + "]"
    tensors, content = [], b""
    for entry in sorted(classifier.state_dict()):
        tensor = classifier.state_dict()[entry]
        shape = ",".join(map(str, tensor.shape))
        tensors.append(f'{{"dtype":"{str(tensor.dtype)[6:]}","name":"{entry}","shape":[{shape}]}}')
        content += tensor.numpy().tobytes()
    document = (
        f'{{"architecture":{architecture},"classes":{classes},"preprocessing":{preprocessing},'
        f'"tensors":[{",".join(tensors)}],"version":2}}'
    )
    assert fingerprint(classifier) == "v2:" + hashlib.sha256(document.encode() + content).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, preprocessing=replace(c.preprocessing, crop_share=1)),
        lambda c: replace(c, preprocessing=replace(c.preprocessing, mean=list(c.preprocessing.mean))),
        lambda c: replace(c, architecture=dict(reversed(c.architecture.items()))),
        lambda c: replace(c, architecture=json.loads(json.dumps(c.architecture))),
    ],
)
def test_equal_values_have_one_fingerprint(
    classifiers: dict[str, sp.Classifier], change: Callable[[sp.Classifier], sp.Classifier]
) -> None:
    assert fingerprint(change(classifiers["tiny"])) == fingerprint(classifiers["tiny"])


def test_tensors_of_equal_bytes_are_told_apart(classifiers: dict[str, sp.Classifier]) -> None:
    task, zeros = classifiers["tiny"], torch.zeros(4)
    entries: list[dict[str, torch.Tensor]] = [
        {"w": zeros},
        {"v": zeros},
        {"w": zeros.reshape(2, 2)},
        {"w": zeros.int()},
        {"w": zeros[:2], "x": zeros[2:]},
        {"w": torch.zeros(()), "x": torch.zeros(3)},
        {"w": torch.zeros(0, 4)},
        {"w": torch.zeros(4, 0)},
    ]
    assert len({fingerprint_of(task, tensors) for tensors in entries}) == len(entries)


@pytest.mark.parametrize("recorded", [None, "", 3, "0" * 64, "v2:" + "0" * 64])
def test_anything_else_is_not_a_fingerprint_of_the_classifier(
    classifiers: dict[str, sp.Classifier], recorded: object
) -> None:
    assert not has_fingerprint(classifiers["tiny"], recorded)


@pytest.mark.parametrize("name", FIRST_FORM)
def test_a_directory_with_the_first_form_is_read(
    classifiers: dict[str, sp.Classifier], name: str, tmp_path: Path
) -> None:
    classifier = classifiers[name]
    stored = _written(classifier, tmp_path)
    assert stored["fingerprint"] == SECOND_FORM[name]
    stored["fingerprint"] = FIRST_FORM[name]
    (tmp_path / "classifier.json").write_text(json.dumps(stored))
    assert sp.load_classifier(tmp_path) == classifier
    sp.save_classifier(classifier.with_weights({**classifier.state_dict(), **_moved(classifier)}), tmp_path / "other")
    (tmp_path / "other" / "classifier.json").write_text(json.dumps(stored))
    with pytest.raises(sp.InputError, match="the weights in .*other are not those"):
        sp.load_classifier(tmp_path / "other")


def test_a_directory_from_before_there_was_a_crop_is_read(
    classifiers: dict[str, sp.Classifier], tmp_path: Path
) -> None:
    stored = _written(classifiers["tiny"], tmp_path)
    del stored["preprocessing"]["crop_share"]
    stored["fingerprint"] = FIRST_FORM["tiny"]
    (tmp_path / "classifier.json").write_text(json.dumps(stored))
    loaded = sp.load_classifier(tmp_path)
    assert loaded == classifiers["tiny"] and loaded.preprocessing == replace(loaded.preprocessing, crop_share=1)
    assert isinstance(loaded.preprocessing, Preprocessing)


def _written(classifier: sp.Classifier, folder: Path) -> Any:
    return json.loads((sp.save_classifier(classifier, folder) / "classifier.json").read_text())


def _moved(classifier: sp.Classifier) -> dict[str, torch.Tensor]:
    return {"head.bias": classifier.state_dict()["head.bias"] + 1}
