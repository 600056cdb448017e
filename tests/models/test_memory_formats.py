"""The memory format of weights: chosen by the kind of network or by a setting, and without effect on the results."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.data.suites import Reference
from shiftproof.diagnosis.cam import class_activation_map
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.encoders import split_head
from shiftproof.models.memory import uses_channels_last
from shiftproof.runs.file import RunFile
from shiftproof.storage import read_json, write_json
from shiftproof.training.hardware import LoopSettings

CONVOLUTIONAL = ("resnet18", "tf_efficientnet_lite0", "convnext_atto", "mobilenetv3_small_100", "regnety_002")
TRANSFORMERS = ("vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "deit_tiny_patch16_224", "mixer_s32_224")


@pytest.mark.parametrize("name", [*CONVOLUTIONAL, *TRANSFORMERS])
def test_convolutional_networks_are_channels_last_and_transformers_contiguous(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name)
    for device in ("cpu", "cuda", torch.device("cuda", 1)):
        assert uses_channels_last(network, device) == (name in CONVOLUTIONAL)
        assert uses_channels_last(network, device, True)
        assert not uses_channels_last(network, device, False)
    assert not uses_channels_last(network, "mps")


def test_open_clip_s_towers_are_told_apart_by_their_convolutions() -> None:
    import open_clip

    for name, expected in (("ViT-B-32", False), ("RN50", True)):
        with torch.device("meta"):
            tower = open_clip.model._build_vision_tower(
                512, open_clip.CLIPVisionCfg(**open_clip.get_model_config(name)["vision_cfg"])
            )
        assert uses_channels_last(tower, "cpu") == expected


@pytest.fixture(scope="module")
def few() -> sp.ShiftSuite:
    """Eight images of each of three classes."""
    suite = sp.load_suite("emoji")
    classes = sp.ClassSpace(suite.classes.ids[:3], suite.classes.names[:3])
    train = suite.reference.train.of_classes(classes)
    small = Reference("small", train, train.subset(range(6)), suite.reference.test.of_classes(classes))
    return sp.ShiftSuite("small", classes, small, ())


@pytest.fixture(scope="module")
def resnet(few: sp.ShiftSuite) -> Classifier:
    """A small residual network with batch norm, which no weight format is built into."""
    encoder = sp.load_encoder("timm:test_resnet")
    features, whole = split_head(encoder)
    torch.manual_seed(0)
    network = Network(features, nn.Linear(whole.in_features, len(few.classes)), normalised=False)
    return Classifier(
        network=network.eval(),
        classes=few.classes,
        preprocessing=replace(encoder.preprocessing, size=64),
        architecture={**encoder.architecture, "normalised": False},
        source=encoder.name,
        prompts=(),
        head="trained",
        logit_scale=1.0,
    )


def maps_of(network: nn.Module) -> list[Tensor]:
    return [weight for weight in network.parameters() if weight.ndim == 4 and weight.shape[1] > 1 < weight.shape[-1]]


def is_channels_last(network: nn.Module) -> bool:
    formats = {weight.is_contiguous(memory_format=torch.channels_last) for weight in maps_of(network)}
    assert len(formats) == 1
    return formats.pop()


def test_a_classifier_runs_in_the_format_of_its_kind_and_its_weights_stay_as_they_are(resnet: Classifier) -> None:
    assert is_channels_last(resnet.network_on(device="cpu"))
    assert not is_channels_last(resnet.network)
    contiguous = replace(resnet, channels_last=False)
    assert contiguous.network_on(device="cpu") is contiguous.network
    moved = resnet.with_weights(resnet.network_on(device="cpu").state_dict())
    assert is_channels_last(moved.network_on(device="cpu"))


def test_predictions_and_maps_agree_in_both_formats(resnet: Classifier, few: sp.ShiftSuite) -> None:
    test = few.reference.test
    logits = [
        sp.predict(replace(resnet, channels_last=setting), test, device="cpu").logits for setting in (None, True, False)
    ]
    assert np.array_equal(logits[0], logits[1])
    np.testing.assert_allclose(logits[1], logits[2], rtol=1e-4, atol=1e-5)
    images, classes = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2])
    first, second = (
        class_activation_map(replace(resnet, channels_last=setting), images, classes, device="cpu")
        for setting in (True, False)
    )
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_the_sweep_has_the_logits_of_wise_ft_to_the_bit_in_either_format(
    resnet: Classifier, few: sp.ShiftSuite
) -> None:
    generator = torch.Generator().manual_seed(1)
    moved = {
        name: entry + 0.01 * torch.randn(entry.shape, generator=generator) if entry.is_floating_point() else entry
        for name, entry in resnet.state_dict().items()
    }
    for setting in (None, False):
        start = replace(resnet, channels_last=setting)
        tuned = start.with_weights({name: entry.abs() if "var" in name else entry for name, entry in moved.items()})
        swept: dict[tuple[float, str], list[object]] = {}
        sp.sweep_alpha(start, tuned, few, [0.3, 0.7], device="cpu", keep=lambda a, s, swept=swept: Kept(swept, (a, s)))
        for alpha in (0.3, 0.7):
            whole = sp.predict(sp.wise_ft(start, tuned, alpha), few.reference.test, device="cpu").logits
            assert np.array_equal(np.concatenate(swept[alpha, few.reference.name]), whole)


class Kept:
    """A context that appends the logits of one alpha and set."""

    def __init__(self, swept: dict[tuple[float, str], list[object]], key: tuple[float, str]) -> None:
        self.rows = swept.setdefault(key, [])

    def __enter__(self) -> object:
        return lambda logits: self.rows.append(logits)

    def __exit__(self, *_: object) -> None:
        pass


SETTINGS = sp.FinetuneSettings(epochs=2, lr=1e-3, batch_size=8, warmup_steps=0, optimizer="sgd")


def test_training_agrees_in_both_formats_and_returns_contiguous_weights(resnet: Classifier, few: sp.ShiftSuite) -> None:
    trained = {
        setting: sp.finetune(resnet, few, replace(SETTINGS, channels_last=setting), device="cpu")
        for setting in (None, True, False)
    }
    weights = {setting: tuned.state_dict() for setting, tuned in trained.items()}
    for name, entry in weights[None].items():
        assert torch.equal(entry, weights[True][name])
        torch.testing.assert_close(entry, weights[False][name], rtol=1e-3, atol=1e-4)
        assert entry.is_contiguous()
    assert any(not torch.equal(entry, resnet.state_dict()[name]) for name, entry in weights[None].items())
    assert [tuned.channels_last for tuned in trained.values()] == [None, True, False]


def test_a_resumed_training_keeps_the_format_that_it_started_with(
    resnet: Classifier, few: sp.ShiftSuite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats: list[bool] = []
    whole = Network.forward

    def watched(self: Network, images: Tensor) -> Tensor:
        if self.training:
            formats.append(is_channels_last(self))
        return whole(self, images)

    monkeypatch.setattr(Network, "forward", watched)
    settings = replace(SETTINGS, checkpoint_every=1, checkpoints_kept=9)
    for number, (first, second, edit) in enumerate(
        [(False, None, None), (None, None, None), (None, False, None), (None, None, "an earlier version's")]
    ):
        folder = tmp_path / str(number)
        sp.finetune(resnet, few, replace(settings, channels_last=first), device="cpu", checkpoints=folder)
        *earlier, last = sorted(folder.glob("step-*"))
        for path in last.iterdir():
            path.unlink()
        last.rmdir()
        state = read_json(earlier[-1] / "state.json")
        assert state["channels_last"] == (first is None)
        if edit:
            write_json(
                earlier[-1] / "state.json", {key: value for key, value in state.items() if key != "channels_last"}
            )
        formats.clear()
        sp.finetune(resnet, few, replace(settings, channels_last=second), device="cpu", checkpoints=folder)
        assert formats == [first is None and second is None and not edit]


def test_the_format_is_no_other_training() -> None:
    # As versions that had no automatic choice wrote it, so that their checkpoints and runs are recognised.
    for setting in (None, True, False):
        deciding = asdict(sp.FinetuneSettings(channels_last=setting).deciding())
        assert deciding["channels_last"] is False
    files = [RunFile.resolve({"finetune": {"channels_last": setting}}) for setting in (None, True, False)]
    assert all(not files[0].differences(file) for file in files)
    assert LoopSettings().channels_last is None
