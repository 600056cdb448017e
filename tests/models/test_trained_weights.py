"""Weights of other trainers in a local file: their names, what they lack, and what they have too much."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from support.classifiers import weight_bytes
from support.commands import Call, data_flags
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.models.encoders import load_encoder
from shiftproof.models.names import with_weights
from shiftproof.models.text_towers import source_clip
from shiftproof.models.tiny import TINY_ARCHITECTURE
from shiftproof.runs.starts import StartSettings, build_named_start
from shiftproof.weights.checkpoints import write_state_dict

CLASSES = sp.ClassSpace.from_ids(["lemon", "pear"])


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    """The shipped model's state dict, with other weights."""
    generator = torch.Generator().manual_seed(0)
    start = sp.load_clip("tiny").model.state_dict()
    return {
        name: tensor + 0.01 * torch.rand(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in start.items()
    }


def image_tower(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in trained.items() if name.startswith("visual.")}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_transformer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What wise-ft and model-soups leave of CLIP: all but the blocks of the text tower."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("transformer.")}


HEAD = {"classification_head.weight": torch.zeros(5, 128), "classification_head.bias": torch.zeros(5)}
# How each trainer writes a model; the names are those of its code.
WRITTEN: dict[str, Callable[[Mapping[str, Tensor]], Any]] = {
    "open_clip": lambda t: {"epoch": 3, "name": "run", "state_dict": under("module.", t), "optimizer": {"lr": 0.1}},
    "wise-ft": lambda t: under("image_encoder.model.", without_transformer(t)) | HEAD,
    "model-soups": lambda t: under("model.", without_transformer(t)) | HEAD,
    "model-soups, parallel": lambda t: under("module.", under("model.", without_transformer(t)) | HEAD),
    "FLYP": lambda t: under("model.", t),
    "plain": dict,
    "image tower": lambda t: {name.removeprefix("visual."): tensor for name, tensor in image_tower(t).items()},
}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.filterwarnings("ignore:.*entries")
@pytest.mark.parametrize("trainer", WRITTEN)
def test_every_trainers_names_are_understood(tmp_path: Path, trained: dict[str, Tensor], trainer: str) -> None:
    content = WRITTEN[trainer](trained)
    clip = sp.load_clip(with_weights("tiny", saved(content, tmp_path / "tuned.pt")))
    plain = content.get("state_dict", content)
    reached, start = clip.model.state_dict(), sp.load_clip("tiny").model.state_dict()
    for name, tensor in trained.items():
        there = trainer == "image tower" and name.startswith("visual.")
        there = there or (any(key == name or key.endswith(f".{name}") for key in plain) and trainer != "image tower")
        assert torch.equal(reached[name], tensor if there else start[name]), name
    assert clip.name == f"tiny with weights {tmp_path}/tuned.pt"


def test_half_precision_and_averages_by_key_are_read(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    halves = {name: tensor.half() for name, tensor in trained.items()}
    file = saved({"model": trained, "model_ema": halves}, tmp_path / "both.pt")
    reached = sp.load_clip(with_weights("tiny", f"{file}:model_ema")).model.state_dict()
    name = "visual.trunk.stem.0.weight"
    assert reached[name].dtype == torch.float32
    assert torch.equal(reached[name], halves[name].float())


def test_what_the_file_lacks_and_has_too_much_is_listed(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    file = saved(WRITTEN["wise-ft"](trained), tmp_path / "tuned.pt")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sp.load_clip(with_weights("tiny", file))
    (lacking,) = (str(entry.message) for entry in caught)  # the head is no unknown entry
    assert "entries of the text tower, such as 'transformer." in lacking and "stay those of 'tiny'" in lacking
    file = saved({**trained, "visual.extra": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.warns(UserWarning, match="entries that 'tiny' does not have, which are not used: 'visual.extra'"):
        sp.load_clip(with_weights("tiny", file))


def test_weights_of_another_architecture_are_refused_with_what_differs(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    name = next(name for name in trained if name.startswith("visual.") and trained[name].ndim == 4)
    fewer = {key: tensor for key, tensor in trained.items() if key != name}
    with pytest.raises(sp.InputError, match=rf"do not fit 'tiny'.*The file lacks '{name}'\. Name the architecture"):
        sp.load_clip(with_weights("tiny", saved(fewer, tmp_path / "fewer.pt")))
    reshaped = {**trained, name: trained[name][:1]}
    with pytest.raises(sp.InputError, match=f"Of another shape are '{name}'"):
        sp.load_clip(with_weights("tiny", saved(reshaped, tmp_path / "reshaped.pt")))


def test_a_text_tower_is_never_random(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    """A name without a tag needs both towers from the file."""
    name = f"open_clip:{TINY_ARCHITECTURE}"
    file = saved(image_tower(trained), tmp_path / "tower.pt")
    with pytest.raises(sp.InputError, match="The file lacks"):
        build_named_start(name, CLASSES, StartSettings(weights=file))
    whole = saved(dict(trained), tmp_path / "whole.pt")
    start = build_named_start(name, CLASSES, StartSettings(weights=whole))
    assert start.source == f"{name} with weights {whole}"


def test_a_name_without_a_tag_may_have_the_wrong_activation(
    tmp_path: Path, trained: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"open_clip:{TINY_ARCHITECTURE}"
    file = saved(dict(trained), tmp_path / "tuned.pt")
    sp.load_clip(with_weights(name, file))  # this architecture has no variant with another activation
    known = [TINY_ARCHITECTURE, f"{TINY_ARCHITECTURE}-quickgelu"]
    monkeypatch.setattr(open_clip, "list_models", lambda: known)
    with pytest.warns(UserWarning, match="has the activation GELU.*QuickGELU, name the model .*/openai"):
        sp.load_clip(with_weights(name, file))


def test_a_pickled_model_as_wise_ft_and_flyp_save_it_is_refused_and_not_executed(tmp_path: Path) -> None:
    file = saved(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(sp.InputError, match=r"could execute code, so it is not loaded.*state_dict\(\) as safetensors"):
        sp.load_clip(with_weights("tiny", file))


def test_contrastive_fine_tuning_finds_the_text_tower_again(tmp_path: Path, trained: dict[str, Tensor]) -> None:
    start = build_named_start("tiny", CLASSES, StartSettings(weights=saved(dict(trained), tmp_path / "tuned.pt")))
    reached = source_clip(start).model.state_dict()
    assert all(torch.equal(reached[name], tensor) for name, tensor in trained.items())


def test_the_head_that_was_trained_with_the_tower_is_kept_where_it_is_asked_for(
    tmp_path: Path, trained: dict[str, Tensor]
) -> None:
    weight = torch.randn(1000, 128, generator=torch.Generator().manual_seed(1))
    head = {"classification_head.weight": weight, "classification_head.bias": torch.arange(1000.0)}
    file = saved(under("model.", dict(trained)) | head, tmp_path / "soup.pt")
    fish = sp.ClassSpace.from_ids(["n01443537", "n01440764"])
    own = build_named_start("tiny", fish, StartSettings(head="own", weights=file))
    assert torch.equal(own.network.head.weight, weight[[1, 0]])
    assert own.network.head.bias.tolist() == [1.0, 0.0]
    assert (own.head, own.prompts, own.network.normalised) == ("own", (), True)
    assert own.classes.names[0] == "goldfish, Carassius auratus"
    assert len(build_named_start("tiny", None, StartSettings(head="own", weights=file)).classes) == 1000
    with pytest.warns(UserWarning, match=r"head of 1,000 classes, which a zero-shot head replaces.*`head='own'`"):
        assert build_named_start("tiny", fish, StartSettings(weights=file)).head == "zero-shot"
    with pytest.raises(sp.InputError, match="it lacks 2 of the 2 classes of the data"):
        build_named_start("tiny", CLASSES, StartSettings(head="own", weights=file))
    plain = saved(dict(trained), tmp_path / "plain.pt")
    with pytest.raises(sp.InputError, match="has no classification head for 'tiny with weights"):
        build_named_start("tiny", fish, StartSettings(head="own", weights=plain))


def encoder_weights(**head: Tensor) -> dict[str, Tensor]:
    return load_encoder("timm:test_resnet", seed=5).model.state_dict() | head


@pytest.mark.filterwarnings("ignore:.*entries")
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "backbone."])
def test_a_network_takes_a_file_with_its_head_or_loses_its_own(tmp_path: Path, prefix: str) -> None:
    whole = under(prefix, encoder_weights())
    write_state_dict(whole, tmp_path / "whole.safetensors")
    encoder = load_encoder(with_weights("timm:test_resnet", tmp_path / "whole.safetensors"))
    own = sp.own_head_classifier(encoder)
    assert weight_bytes(own) == weight_bytes(sp.own_head_classifier(load_encoder("timm:test_resnet", seed=5)))
    assert own.source == f"timm:test_resnet with weights {tmp_path}/whole.safetensors"
    write_state_dict(whole | under(prefix, {"fc.weight": torch.zeros(7, 64)}), tmp_path / "seven.safetensors")
    seven = load_encoder(with_weights("timm:test_resnet", tmp_path / "seven.safetensors"))
    with pytest.raises(sp.InputError, match="features, without a head"):
        sp.own_head_classifier(seven)
    features = seven.model.state_dict()
    assert features and all(torch.equal(whole[prefix + name], tensor) for name, tensor in features.items())


def test_a_network_does_not_take_half_of_a_file(tmp_path: Path) -> None:
    some = dict(list(encoder_weights().items())[:-8])
    write_state_dict(some, tmp_path / "some.safetensors")
    with pytest.raises(sp.InputError, match=r"do not fit 'timm:test_resnet'.*The file lacks 'layer4"):
        load_encoder(with_weights("timm:test_resnet", tmp_path / "some.safetensors"))


def test_the_commands_take_a_file(call: Call, folders: Path, tmp_path: Path, trained: dict[str, Tensor]) -> None:
    saved(
        under("module.", trained),
        Path("tuned.pt") if Path("tuned.pt").parent.samefile(tmp_path) else tmp_path / "tuned.pt",
    )
    result = call("zeroshot", "tiny", "--weights", "tuned.pt", *data_flags(folders), "--out", "start")
    assert result.code == 0
    start = sp.load_classifier("start")
    tower = {name.removeprefix("encoder."): t for name, t in start.state_dict().items() if name.startswith("encoder.")}
    assert all(torch.equal(trained[f"visual.{name}"], tensor) for name, tensor in tower.items())
    refused = call("zeroshot", "start", "--weights", "tuned.pt", *data_flags(folders), "--out", "again")
    assert refused.code == 2 and "which has weights. Omit --weights" in refused.err


def test_the_path_in_a_run_file_is_relative_to_the_run_file(tmp_path: Path) -> None:
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "run.yaml").write_text("model: tiny\nweights: tuned.pt\n", encoding="utf-8")
    assert sp.RunFile.read(folder / "run.yaml").weights == str(folder / "tuned.pt")
