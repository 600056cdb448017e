"""How zero-shot heads are computed: in batches over classes and prompts, without padding, and once with a cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CustomTextCLIP
from support.transformers_models import write_model
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.models import head_cache, text_encoding
from shiftproof.models.head_cache import cached_class_embeddings
from shiftproof.models.text_encoding import class_embeddings, text_encoder
from shiftproof.models.text_towers import text_weights, with_text
from shiftproof.weights.checkpoints import write_state_dict

SPACE = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
RAGGED = (("a lemon.",), ("a pear.", "one green pear on a tree", "pear"), ("an apple.", "red"), ("x",))
TOWERS = {
    "causal": {},
    "custom": {"custom_text": True},
    "bidirectional": {"custom_text": True, "no_causal_mask": True, "pool_type": "last"},
}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, sp.models.Clip]:
    """Text towers that differ in how they treat padding; treat them as immutable."""
    folder = tmp_path_factory.mktemp("models")
    names = {kind: write_model(folder / kind, kind) for kind in ("clip", "siglip")}
    names |= {kind: small_open_clip(folder / kind, **settings) for kind, settings in TOWERS.items()}
    return {kind: sp.load_clip(name) for kind, name in names.items()}


def small_open_clip(folder: Path, custom_text: bool = False, quick_gelu: bool = False, **text: object) -> str:
    config: dict[str, Any] = {
        "embed_dim": 16,
        "quick_gelu": quick_gelu,
        "custom_text": custom_text,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2, **text},
    }
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        towers = CustomTextCLIP if config.pop("custom_text") else open_clip.CLIP
        model = towers(**config)
    write_state_dict(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@torch.inference_mode()
def one_by_one(clip: sp.models.Clip, texts: Sequence[Sequence[str]]) -> Tensor:
    rows = []
    for of_class in texts:
        embedded = [functional.normalize(clip.encode_text([text])[0], dim=0) for text in of_class]
        rows.append(functional.normalize(torch.stack(embedded).mean(0), dim=0))
    return torch.stack(rows)


@pytest.mark.parametrize("kind", ["clip", "siglip", *TOWERS])
@pytest.mark.parametrize("batch", [1, 2, 256])
def test_rows_do_not_depend_on_batches_or_padding(
    kind: str, batch: int, clips: dict[str, sp.models.Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_encoding, "_BATCH", batch)
    with torch.inference_mode():
        result = class_embeddings(clips[kind], RAGGED)
    torch.testing.assert_close(result, one_by_one(clips[kind], RAGGED), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "trimmed"),
    [("clip", True), ("siglip", False), ("causal", True), ("custom", True), ("bidirectional", False)],
)
def test_only_causal_towers_leave_the_padding_out(kind: str, trimmed: bool, clips: dict[str, sp.models.Clip]) -> None:
    clip = clips[kind]
    tokens = clip.tokenizer(["a lemon.", "a longer text about one pear"])
    lengths: list[int] = []
    table = next(module for name, module in clip.model.named_modules() if name.endswith("token_embedding"))
    handle = table.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[-1]))
    with torch.inference_mode():
        torch.testing.assert_close(
            text_encoder(clip.model)(tokens), clip.model.encode_text(tokens), rtol=1e-4, atol=1e-5
        )  # type: ignore[operator]
    handle.remove()
    assert lengths[1] == clip.context_length
    assert (lengths[0] < 40) == trimmed
    mask = getattr(clip.model, "attn_mask", None)
    assert mask is None or len(mask) == clip.context_length  # the model is as it was


def test_a_head_is_computed_in_few_batches(tiny: sp.models.Clip) -> None:
    calls: list[int] = []
    encode = tiny.model.encode_text

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny.model

        def encode_text(self, tokens: Tensor) -> Tensor:
            calls.append(len(tokens))
            return encode(tokens)  # type: ignore[operator, no-any-return]

    names = [f"thing {number}" for number in range(60)]
    texts = [[f"a {name}", f"one {name}", name] for name in names]
    with torch.inference_mode():
        class_embeddings(replace(tiny, model=Watched()), texts)
    assert sum(calls) == 180
    assert len(calls) == 1


# The cache


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Tensor]:
    """``cached_class_embeddings`` for heads of any size, in a cache of its own; ``computed`` counts the classes."""
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(head_cache, "_WORTH", 1)
    computed: list[int] = []

    def watched(clip: sp.models.Clip, texts: Sequence[Sequence[str]]) -> Tensor:
        computed.append(len(texts))
        return class_embeddings(clip, texts)

    monkeypatch.setattr(head_cache, "class_embeddings", watched)

    def run(clip: sp.models.Clip, texts: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
        computed.clear()
        with torch.inference_mode():
            return cached_class_embeddings(clip, texts), max(computed)

    return run  # type: ignore[return-value]


def test_a_second_head_is_read(cached: Callable[..., tuple[Tensor, int]], tiny: sp.models.Clip, tmp_path: Path) -> None:
    first, computed = cached(tiny, RAGGED)
    assert computed == len(RAGGED)
    second, computed = cached(tiny, RAGGED)
    assert torch.equal(first, second)
    assert computed == 1
    (file,) = (tmp_path / "cache" / "zero-shot-heads").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    third, computed = cached(tiny, RAGGED)
    assert torch.equal(first, third)
    assert computed == len(RAGGED)
    assert cached(tiny, RAGGED)[1] == 1


def test_other_weights_texts_or_groups_are_another_head(
    cached: Callable[..., tuple[Tensor, int]], tiny: sp.models.Clip
) -> None:
    cached(tiny, RAGGED)
    text = text_weights(tiny)
    moved = with_text(tiny, {**text, "ln_final.bias": text["ln_final.bias"] + 1e-3})
    for clip, texts in (
        (moved, RAGGED),
        (tiny, (*RAGGED[:3], ("y",))),
        (tiny, (("a lemon.", *RAGGED[1]), *RAGGED[2:])),
    ):
        rows, computed = cached(clip, texts)
        assert computed == len(texts)
        with torch.inference_mode():
            assert torch.equal(rows, class_embeddings(clip, texts))


def test_a_difference_that_is_in_no_weight_is_noticed(
    cached: Callable[..., tuple[Tensor, int]], clips: dict[str, sp.models.Clip], tmp_path: Path
) -> None:
    plain = clips["causal"]
    quick = sp.load_clip(small_open_clip(tmp_path / "quick", quick_gelu=True))
    quick = with_text(quick, text_weights(plain))
    cached(plain, RAGGED)
    rows, computed = cached(quick, RAGGED)
    assert computed == len(RAGGED)
    with torch.inference_mode():
        assert torch.equal(rows, class_embeddings(quick, RAGGED))


def test_a_cache_that_cannot_be_written_is_no_error(
    cached: Callable[..., tuple[Tensor, int]], tiny: sp.models.Clip, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file stands in its place")
    assert cached(tiny, RAGGED)[1] == len(RAGGED)
    assert cached(tiny, RAGGED)[1] == len(RAGGED)


def test_small_heads_and_heads_without_cache_are_not_stored(
    tiny: sp.models.Clip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHIFTPROOF_CACHE", str(tmp_path / "cache"))
    sp.zero_shot_classifier(tiny, SPACE, "short")
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(head_cache, "_WORTH", 1)
    sp.zero_shot_classifier(tiny, SPACE, "short", cache=False)
    assert not (tmp_path / "cache").exists()
    sp.zero_shot_classifier(tiny, SPACE, "short")
    assert len(list((tmp_path / "cache" / "zero-shot-heads").iterdir())) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_head_is_computed_on_a_gpu_and_comes_back(clips: dict[str, sp.models.Clip]) -> None:
    for clip in clips.values():
        there, here = (sp.zero_shot_classifier(clip, SPACE, device=device) for device in ("cuda", "cpu"))
        assert {parameter.device.type for parameter in there.network.parameters()} == {"cpu"}
        torch.testing.assert_close(there.network.head.weight, here.network.head.weight, rtol=1e-3, atol=1e-3)
        assert next(clip.model.parameters()).device.type == "cpu"
