"""Merged checkpoints in the libraries that they came from: open_clip, transformers, peft, and our own directories."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import shiftproof as sp
from shiftproof.merging.files import merge_files
from shiftproof.merging.methods import MergeSettings

pytestmark = pytest.mark.slow

SMALL_OPEN_CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The libraries warn of random weights and of each other; what is tested is what they load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def images(size: int = 32) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(5))


def texts() -> Tensor:
    return torch.randint(0, 400, (3, 12), generator=torch.Generator().manual_seed(6))


# open_clip


def small_open_clip(seed: int, folder: Path) -> nn.Module:
    torch.manual_seed(seed)
    model = open_clip.CLIP(
        SMALL_OPEN_CLIP["embed_dim"], dict(SMALL_OPEN_CLIP["vision_cfg"]), dict(SMALL_OPEN_CLIP["text_cfg"])
    ).eval()
    with torch.no_grad():
        model.logit_scale.fill_(1.0 + seed)
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": SMALL_OPEN_CLIP, "preprocess_cfg": {}}))
    return model


def test_a_merged_open_clip_directory_loads_in_open_clip(tmp_path: Path) -> None:
    zero, tuned = small_open_clip(0, tmp_path / "zero"), small_open_clip(1, tmp_path / "tuned")
    want = small_open_clip(2, tmp_path / "other")
    want.load_state_dict(sp.interpolate_weights(zero.state_dict(), tuned.state_dict(), 0.3))
    merge_files(tmp_path / "zero", tmp_path / "tuned", alpha=0.3, out=tmp_path / "merged")
    result = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'merged'}")(["a photo of a lemon"])
    with torch.inference_mode():
        for ours, theirs in zip(result(images(), tokens), want(images(), tokens), strict=True):
            assert torch.equal(ours, theirs)
    # The logit scale is a logarithm: temperatures are interpolated in log space.
    scales = [model.logit_scale.exp().item() for model in (zero, tuned, result)]
    assert scales[2] == pytest.approx(scales[0] ** 0.7 * scales[1] ** 0.3)
    # Both towers are merged, so the head that the merged text tower writes is the ensemble's.
    clip = sp.load_clip(f"local-dir:{tmp_path / 'merged'}")
    head = sp.zero_shot_classifier(clip, sp.ClassSpace.from_ids(["lemon", "pear"])).network.head
    assert torch.isfinite(head.weight).all()
    assert {path.name for path in (tmp_path / "merged").iterdir()} >= {
        "open_clip_config.json",
        "merge.json",
        "README.md",
    }


def test_open_clip_gets_no_shards(tmp_path: Path) -> None:
    for seed, name in enumerate(("zero", "tuned")):
        small_open_clip(seed, tmp_path / name)
    with pytest.raises(sp.InputError, match="open_clip reads one weights file"):
        merge_files(
            tmp_path / "zero",
            tmp_path / "tuned",
            out=tmp_path / "merged",
            settings=MergeSettings(shard_size=100_000),
        )
    assert not (tmp_path / "merged").exists()


def test_open_clip_state_dicts_merge_as_files(tmp_path: Path) -> None:
    """A .pt file as open_clip's trainer leaves it, against safetensors of the same model."""
    zero, tuned = small_open_clip(0, tmp_path / "zero"), small_open_clip(1, tmp_path / "tuned")
    wrapped = {f"module.{name}": tensor for name, tensor in tuned.state_dict().items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped, "optimizer": {"lr": 0.1}}, tmp_path / "epoch_3.pt")
    merge_files(tmp_path / "zero", tmp_path / "epoch_3.pt", out=tmp_path / "merged")
    model = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}")
    want = sp.interpolate_weights(zero.state_dict(), tuned.state_dict(), 0.5)
    assert all(torch.equal(tensor, want[name]) for name, tensor in model.state_dict().items())


# transformers


def small_clip(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        text_config={**TOWER, "vocab_size": 400},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    return transformers.CLIPModel(config).eval()


def small_siglip(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    config = transformers.SiglipConfig(
        text_config={**TOWER, "vocab_size": 400},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
    )
    return transformers.SiglipModel(config).eval()


def small_bert(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return transformers.BertForMaskedLM(transformers.BertConfig(**TOWER, vocab_size=400)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.inference_mode():
        if isinstance(model, transformers.BertForMaskedLM):
            return model(input_ids=texts()).logits
        pixels = images().to(next(model.parameters()).dtype)
        return model(input_ids=texts(), pixel_values=pixels).logits_per_image


@pytest.mark.parametrize("build", [small_clip, small_siglip, small_bert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shard", ["50KB", "1GB"])
def test_a_merged_transformers_directory_loads_in_transformers(
    tmp_path: Path, build: Callable[[int], nn.Module], dtype: torch.dtype, shard: str
) -> None:
    zero, tuned, want = (build(seed).to(dtype) for seed in range(3))
    zero.save_pretrained(tmp_path / "zero", max_shard_size=shard)
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="80KB" if shard == "50KB" else "1GB")
    want.load_state_dict(sp.interpolate_weights(zero.state_dict(), tuned.state_dict(), 0.4))
    (record,) = merge_files(tmp_path / "zero", tmp_path / "tuned", alpha=0.4, out=tmp_path / "merged")
    assert (len(record.files) > 1) == (shard == "50KB")
    model = type(zero).from_pretrained(tmp_path / "merged", dtype="auto").eval()
    assert next(model.parameters()).dtype == dtype
    assert torch.equal(logits(model), logits(want))
    assert not torch.equal(logits(model), logits(zero))


def test_the_processor_goes_along_and_weights_of_other_formats_do_not(tmp_path: Path) -> None:
    for seed, name in enumerate(("zero", "tuned")):
        small_clip(seed).save_pretrained(tmp_path / name)
    transformers.CLIPImageProcessorPil().save_pretrained(tmp_path / "zero")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "trainer_state.json", "eval_results.json"):
        (tmp_path / "zero" / name).write_bytes(b"stale")
    (record,) = merge_files(tmp_path / "zero", tmp_path / "tuned", out=tmp_path / "merged")
    written = {path.name for path in (tmp_path / "merged").iterdir()}
    assert written == {"config.json", "preprocessor_config.json", "model.safetensors", "merge.json", "README.md"}
    assert set(record.copied_files) == {"config.json", "preprocessor_config.json"}


def test_pickled_transformers_weights_become_safetensors(tmp_path: Path) -> None:
    """Tied weights share memory in a torch file; both names are written, and the library ties them again."""
    zero, tuned, want = (small_bert(seed) for seed in range(3))
    for model, name in ((zero, "zero"), (tuned, "tuned")):
        model.save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
    (record,) = merge_files(tmp_path / "zero", tmp_path / "tuned", out=tmp_path / "merged")
    assert set(record.tied) | set(record.tied.values()) >= {
        "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    }
    want.load_state_dict(sp.interpolate_weights(zero.state_dict(), tuned.state_dict(), 0.5))
    result = transformers.BertForMaskedLM.from_pretrained(tmp_path / "merged").eval()
    assert torch.equal(logits(result), logits(want))
    assert result.cls.predictions.decoder.weight is result.bert.embeddings.word_embeddings.weight


# peft


def lora(base: nn.Module, seed: int, **changes: Any) -> peft.PeftModel:
    """A LoRA adapter with random products on a copy of the base."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], **changes}
    copy = type(base)(base.config).eval()
    copy.load_state_dict(base.state_dict())
    model = peft.get_peft_model(copy, peft.LoraConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def path_point(base: nn.Module, adapted: peft.PeftModel, alpha: float) -> nn.Module:
    """The slow twin: peft merges the adapter, and the weights are interpolated in float64."""
    merged = adapted.merge_and_unload().state_dict()
    start = base.state_dict()
    between = {
        name: (start[name].double() + alpha * (merged[name].double() - start[name].double())).to(start[name].dtype)
        for name in start
        if start[name].is_floating_point()
    }
    copy = type(base)(base.config).eval()
    copy.load_state_dict(start | between)
    return copy


ADAPTERS: list[dict[str, Any]] = [
    {},
    {"use_rslora": True},
    {"alpha_pattern": {"v_proj": 2}, "rank_pattern": {"vision_model.encoder.layers.1.self_attn.q_proj": 7}},
    {"target_modules": ["token_embedding", "fc1"]},
    {"target_modules": ["patch_embedding", "fc2"]},
    {"modules_to_save": ["visual_projection"]},
]


@pytest.mark.parametrize("settings", ADAPTERS, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_scales_the_product_of_a_lora_adapter(tmp_path: Path, settings: dict[str, Any], alpha: float) -> None:
    base = small_clip(0)
    base.save_pretrained(tmp_path / "base")
    adapted = lora(base, 1, **settings)
    if "modules_to_save" in settings:
        with torch.no_grad():
            adapted.base_model.model.visual_projection.modules_to_save["default"].weight.mul_(1.5)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_files(tmp_path / "base", tmp_path / "adapter", alpha=alpha, out=tmp_path / "merged")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "merged").eval()
    want = path_point(base, adapted, alpha)
    torch.testing.assert_close(dict(model.state_dict()), dict(want.state_dict()), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits(model), logits(want), rtol=1e-4, atol=1e-5)
    if alpha == 0:
        assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("settings", ADAPTERS[:4], ids=str)
def test_one_adapter_is_scaled_as_an_adapter(tmp_path: Path, settings: dict[str, Any]) -> None:
    base = small_clip(0)
    adapted = lora(base, 1, **settings)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_files(tmp_path / "adapter", alpha=0.4, out=tmp_path / "scaled")
    model = peft.PeftModel.from_pretrained(small_clip(0), tmp_path / "scaled").eval()
    torch.testing.assert_close(logits(model), logits(path_point(base, adapted, 0.4)), rtol=1e-4, atol=1e-5)


def test_two_adapters_are_interpolated_by_their_products(tmp_path: Path) -> None:
    base = small_clip(0)
    one, other = lora(base, 1), lora(base, 2, r=2, lora_alpha=9, target_modules=["q_proj", "fc1"])
    one.save_pretrained(tmp_path / "one")
    other.save_pretrained(tmp_path / "other")
    merge_files(tmp_path / "one", tmp_path / "other", alpha=0.7, out=tmp_path / "merged")
    tensors = peft.PeftModel.from_pretrained(small_clip(0), tmp_path / "merged").eval().merge_and_unload().state_dict()
    first, second, start = one.merge_and_unload().state_dict(), other.merge_and_unload().state_dict(), base.state_dict()
    for name, tensor in tensors.items():
        want = start[name] + 0.3 * (first[name] - start[name]) + 0.7 * (second[name] - start[name])
        torch.testing.assert_close(tensor, want.to(tensor.dtype), rtol=1e-5, atol=1e-6)
    # Averaging A and B apart is another thing, and wrong.
    key = "vision_model.encoder.layers.0.self_attn.q_proj.weight"
    assert (tensors[key] - start[key]).abs().max() > 0.01


def test_attention_of_open_clip_takes_an_adapter(tmp_path: Path) -> None:
    """nn.MultiheadAttention keeps one matrix for three projections, which peft wraps in a layer of its own."""
    zero = small_open_clip(0, tmp_path / "base")
    copy = small_open_clip(0, tmp_path / "copy")
    adapted = peft.get_peft_model(copy, peft.LoraConfig(r=2, lora_alpha=4, target_modules=["attn"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    merge_files(tmp_path / "base", tmp_path / "adapter", alpha=0.5, out=tmp_path / "merged")
    tensors = open_clip.create_model(f"local-dir:{tmp_path / 'merged'}").state_dict()
    full, start = adapted.merge_and_unload().state_dict(), zero.state_dict()
    moved = 0
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, (start[name] + full[name]) / 2, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(tensor, start[name])
    assert moved == 6  # in and out projections of three blocks
    # As an adapter of its own: peft adds the output projection's product as often as it did.
    merge_files(tmp_path / "adapter", alpha=0.5, out=tmp_path / "scaled")
    scaled = peft.PeftModel.from_pretrained(small_open_clip(0, tmp_path / "again"), tmp_path / "scaled")
    for name, tensor in scaled.merge_and_unload().state_dict().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "DoRA adapter: its magnitudes do not scale linearly"),
        ({"init_lora_weights": "pissa"}, "changes the base weights as well"),
        ({"lora_bias": True}, "not a plain product"),
    ],
)
def test_adapters_whose_change_is_no_product_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    base = small_clip(0)
    base.save_pretrained(tmp_path / "base")
    lora(base, 1, **settings).save_pretrained(tmp_path / "adapter")
    with pytest.raises(sp.InputError, match=message):
        merge_files(tmp_path / "base", tmp_path / "adapter", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    lora(small_clip(0), 1).save_pretrained(tmp_path / "adapter")
    small_siglip(0).save_pretrained(tmp_path / "siglip")
    small_clip(0).save_pretrained(tmp_path / "base")
    lora(small_clip(0), 1, r=3).save_pretrained(tmp_path / "adapter")
    wider = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**TOWER, "hidden_size": 16}, vision_config={**TOWER, "hidden_size": 16})
    )
    wider.save_pretrained(tmp_path / "other")
    with pytest.raises(sp.InputError, match="Name the base that the adapter was trained on"):
        merge_files(tmp_path / "other", tmp_path / "adapter", out=tmp_path / "merged")
    with pytest.raises(sp.InputError, match="Name its base first"):
        merge_files(tmp_path / "adapter", tmp_path / "base", out=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# classifier directories


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory, tiny: sp.models.Clip) -> tuple[Path, Path, Path]:
    """A zero-shot classifier and two that stand for fine-tuned ones, as directories."""
    root = tmp_path_factory.mktemp("classifiers")
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    generator = torch.Generator().manual_seed(3)
    folders = [sp.save_classifier(zero, root / "zero")]
    for name in ("one", "other"):
        weights = {
            key: tensor + 0.02 * torch.randn(tensor.shape, generator=generator)
            for key, tensor in zero.state_dict().items()
        }
        folders.append(sp.save_classifier(zero.with_weights(weights, head="trained"), root / name))
    return folders[0], folders[1], folders[2]


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_merged_classifier_directories_are_the_ensemble(
    tmp_path: Path, classifiers: tuple[Path, Path, Path], alpha: float
) -> None:
    zero, tuned, _ = classifiers
    (zero / "results.jsonl").write_text("{}")  # the zero-shot model's own
    (record,) = merge_files(zero, tuned, alpha=alpha, out=tmp_path / "merged")
    assert not (tmp_path / "merged" / "results.jsonl").exists()
    result, want = sp.load_classifier(tmp_path / "merged"), sp.wise_ft(*map(sp.load_classifier, (zero, tuned)), alpha)
    assert sp.models.fingerprint(result) == sp.models.fingerprint(want)
    assert (result.alpha, result.head, result.parents) == (want.alpha, want.head, want.parents)
    assert result.logit_scale == pytest.approx(want.logit_scale)
    assert [entry.role for entry in record.inputs] == ["zero_shot", "fine_tuned"]


def test_soups_of_classifier_directories_are_those_in_memory(
    tmp_path: Path, classifiers: tuple[Path, Path, Path]
) -> None:
    zero, one, other = map(sp.load_classifier, classifiers)
    merge_files(*classifiers[1:], out=tmp_path / "uniform", settings=MergeSettings(method="uniform"))
    merge_files(*classifiers, out=tmp_path / "stock", settings=MergeSettings(method="model-stock"))
    for name, want in (
        ("uniform", sp.uniform_soup([one, other])),
        ("stock", sp.model_stock_soup(zero, [one, other])),
    ):
        loaded = sp.load_classifier(tmp_path / name)
        assert sp.models.fingerprint(loaded) == sp.models.fingerprint(want), name
        assert (loaded.head, loaded.alpha) == ("averaged", None)
        assert [parent["role"] for parent in loaded.parents] == [parent["role"] for parent in want.parents]


def test_classifiers_of_other_tasks_are_refused(
    tmp_path: Path, classifiers: tuple[Path, Path, Path], tiny: sp.models.Clip
) -> None:
    other = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "plum"]))
    sp.save_classifier(other, tmp_path / "other")
    with pytest.raises(
        sp.IncompatibleWeightsError, match="different classes; these are in one only: 'plum', 'red_apple'"
    ):
        merge_files(classifiers[0], tmp_path / "other", out=tmp_path / "merged")
    card = json.loads((tmp_path / "other" / "classifier.json").read_text())
    assert card["fingerprint"] == sp.models.fingerprint(other)
    assert not (tmp_path / "merged").exists()


def test_a_merged_classifier_predicts(tmp_path: Path, classifiers: tuple[Path, Path, Path], folders: Path) -> None:
    merge_files(*classifiers[:2], out=tmp_path / "merged")
    merged = sp.load_classifier(tmp_path / "merged")
    images_of = sp.load_data(f"folder:{folders}/test", merged.classes)
    predictions = sp.predict(merged, images_of).logits
    want = sp.predict(sp.wise_ft(*map(sp.load_classifier, classifiers[:2])), images_of).logits
    np.testing.assert_array_equal(predictions, want)


def test_batch_norm_statistics_are_averaged_and_named(tmp_path: Path) -> None:
    for seed in range(2):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        model.train()
        model(torch.randn(8, 3, 5, 5))
        torch.save(model.state_dict(), tmp_path / f"{seed}.pt")
    (record,) = merge_files(tmp_path / "0.pt", tmp_path / "1.pt", out=tmp_path / "merged.safetensors")
    assert record.batch_norm == ("1.running_mean", "1.running_var")
    assert record.copied == ("1.num_batches_tracked",)
    assert load_file(tmp_path / "merged.safetensors")["1.num_batches_tracked"].item() == 1
    assert "re-estimate them on training images" in (tmp_path / "merged.md").read_text()
