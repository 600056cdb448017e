"""CLIP, SigLIP and SigLIP 2 of transformers: their logits, what survives a save, and models that are refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
import torch
import transformers
from PIL import Image
from support.classifiers import logits_of
from support.transformers_models import KINDS, SIZE, theirs, write_model
from torch import Tensor
from torch.nn import functional

import shiftproof as sp
from shiftproof.data.loading import Preprocessing, normalise, resize, to_unit_range
from shiftproof.models.processors import preprocessing_of, processor_config
from shiftproof.models.transformers import build_image_tower, save_transformers

SPACE = sp.ClassSpace.from_ids(["lemon", "pear", "Red_Apple"])
PROMPTS = [f"a photo of a {name}." for name in SPACE.names]


@pytest.fixture(scope="module", params=KINDS)
def name(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Treat the directory as immutable."""
    return write_model(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def clip(name: str) -> sp.models.Clip:
    """Treat it as immutable."""
    return sp.load_clip(name)


@pytest.fixture
def pictures() -> list[Image.Image]:
    """Square pictures: transformers keeps the aspect ratio of others for SigLIP 2 of any aspect ratio."""
    draw = np.random.default_rng(0)
    return [Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)) for side in (SIZE, 40, 57)]


def inputs_of(clip: sp.models.Clip, pictures: list[Image.Image]) -> Tensor:
    pixels = [resize(np.asarray(picture), clip.preprocessing) for picture in pictures]
    return normalise(to_unit_range(pixels), clip.preprocessing)


@torch.inference_mode()
def their_logits(name: str, pictures: list[Image.Image], prompts: list[str]) -> Tensor:
    folder = name.removeprefix("hf:")
    model = theirs(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    if "siglip" in model.config.model_type:
        prompts = [prompt.lower() for prompt in prompts]  # as SigLIP was trained
        settings = {"padding": "max_length", "max_length": model.config.text_config.max_position_embeddings}
    else:
        settings = {"padding": True}
    tokens = tokenizer(prompts, return_tensors="pt", **settings)["input_ids"]
    images = processor(images=pictures, return_tensors="pt")
    return model(input_ids=tokens, **images).logits_per_image


def test_zero_shot_logits_are_those_of_transformers(
    name: str, clip: sp.models.Clip, pictures: list[Image.Image]
) -> None:
    classifier = sp.zero_shot_classifier(clip, SPACE)
    expected = their_logits(name, pictures, PROMPTS)
    torch.testing.assert_close(logits_of(classifier, inputs_of(clip, pictures)), expected, rtol=1e-4, atol=2e-3)
    assert expected.std() > 0.5
    bias = -12.9 if "siglip" in name else 0.0
    assert classifier.network.head.bias.tolist() == pytest.approx([bias] * len(SPACE))
    assert classifier.logit_scale == pytest.approx(math.exp(4.77 if "siglip" in name else 4.6))
    assert not classifier.network.training
    assert all(parameter.requires_grad for parameter in classifier.network.parameters())


def test_a_classifier_directory_is_read_without_the_directory_of_the_model(
    name: str, tmp_path: Path, pictures: list[Image.Image]
) -> None:
    copied = tmp_path / "model"
    shutil.copytree(name.removeprefix("hf:"), copied)
    clip = sp.load_clip(f"hf:{copied}")
    built = sp.zero_shot_classifier(clip, SPACE)
    directory = sp.save_classifier(built, tmp_path / "classifier")
    shutil.rmtree(copied)
    read = sp.load_classifier(directory)
    images = inputs_of(clip, pictures)
    assert torch.equal(logits_of(read, images), logits_of(built, images))
    assert read.preprocessing == built.preprocessing
    assert sp.models.fingerprint(read) == sp.models.fingerprint(built)


def test_building_a_tower_leaves_the_global_random_state(name: str, clip: sp.models.Clip) -> None:
    state = torch.random.get_rng_state()
    build_image_tower(clip.architecture)
    sp.load_clip(name)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_saved_model_is_read_here_and_by_transformers(
    name: str, tmp_path: Path, clip: sp.models.Clip, pictures: list[Image.Image]
) -> None:
    folder = save_transformers(clip.model, clip.tokenizer, clip.preprocessing, tmp_path / "saved")  # type: ignore[arg-type]
    again = sp.load_clip(f"hf:{folder}")
    assert again.preprocessing == clip.preprocessing
    assert again.architecture == clip.architecture
    assert all(torch.equal(t, clip.model.state_dict()[n]) for n, t in again.model.state_dict().items())
    saved, before = (their_logits(place, pictures, PROMPTS) for place in (str(folder), name))
    torch.testing.assert_close(saved, before, rtol=0, atol=0)


def test_float16_weights_are_read_in_float32(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    shutil.copytree(name.removeprefix("hf:"), folder)
    transformers.AutoModel.from_pretrained(folder, dtype=torch.float16).save_pretrained(folder)
    clip = sp.load_clip(f"hf:{folder}")
    assert {tensor.dtype for tensor in clip.model.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }


def test_long_prompts_of_these_tokenizers_are_warned_of(clip: sp.models.Clip) -> None:
    long = sp.ClassSpace(("pear", "talk"), ("pear", "q" * 80))
    with pytest.warns(UserWarning, match="longer prompts are truncated, e.g. those of 'qqq"):
        sp.zero_shot_classifier(clip, long)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "clip"
    write_model(folder, "clip")
    return folder


@pytest.fixture
def copied(clip_folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(clip_folder, tmp_path / "copied")
    return tmp_path / "copied"


def test_tokens_of_clip_are_those_of_open_clip(tmp_path: Path) -> None:
    """Both libraries with CLIP's whole vocabulary, which transformers fills with two tokens from old arguments."""
    import open_clip

    simple = open_clip.get_tokenizer("ViT-B-32")
    renamed = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {renamed.get(word, word): number for word, number in simple.encoder.items()}
    merges = sorted(simple.bpe_ranks, key=simple.bpe_ranks.__getitem__)
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in merges])
    assert len(tokenizer) == 49408
    texts = ["a photo of a Granny Smith.", "it's 2 crème brûlées", "a " * 100]
    ours = sp.load_clip(write_model(tmp_path / "whole", "clip", tokenizer=tokenizer)).tokenizer(texts)
    for row, expected in zip(ours.tolist(), simple(texts).tolist(), strict=True):
        end = expected.index(49407)
        assert row[: end + 1] == expected[: end + 1]


def test_tokens_of_siglip_are_the_pieces_of_its_sentencepiece_model(tmp_path: Path) -> None:
    clip = sp.load_clip(write_model(tmp_path / "siglip", "siglip"))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "siglip" / "spiece.model"))
    texts = {
        "A photo of a Lemon.": "a photo of a lemon",
        "it's 2 green PEARS!": "its 2 green pears",
        "q" * 80: "q" * 80,
    }
    tokens = clip.tokenizer(list(texts))
    assert tokens.shape == (3, 64)
    for row, (text, cleaned) in zip(tokens.tolist(), texts.items(), strict=True):
        expected = [*pieces.encode(cleaned), pieces.eos_id()]
        assert pieces.unk_id() not in row
        assert clip.tokenizer.lengths([text]) == [len(expected)]  # type: ignore[attr-defined]
        if len(expected) <= 64:
            assert row == expected + [pieces.eos_id()] * (64 - len(expected))  # which also stands for padding


def test_a_model_without_the_packages_of_its_tokenizer_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = write_model(tmp_path / "siglip", "siglip")
    other = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()))
    other.add_tokens([f"{number}" for number in range(40)])
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda place: other)
    with pytest.raises(sp.InputError, match="needs the packages sentencepiece and protobuf"):
        sp.load_clip(name)


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 32, "crop_size": 32, "do_center_crop": True}, Preprocessing(size=32)),
        ({"size": {"shortest_edge": 36}, "do_center_crop": True}, Preprocessing(size=32, crop_share=32 / 36)),
        ({"size": {"height": 32, "width": 32}, "do_center_crop": False}, Preprocessing(size=32, resize_mode="squash")),
        ({"resample": 2}, Preprocessing(size=32, interpolation="bilinear")),
        ({"do_normalize": False}, Preprocessing(size=32, mean=(0.0,) * 3, std=(1.0,) * 3)),
    ],
)
def test_the_image_processor_becomes_a_preprocessing(
    copied: Path, processor: dict[str, object], expected: Preprocessing, pictures: list[Image.Image]
) -> None:
    file = copied / "preprocessor_config.json"
    stored = json.loads(file.read_text())
    stored |= {"image_mean": list(Preprocessing().mean), "image_std": list(Preprocessing().std)}
    file.write_text(json.dumps(stored | processor))
    clip = sp.load_clip(f"hf:{copied}")
    assert clip.preprocessing == expected
    library = transformers.AutoImageProcessor.from_pretrained(copied, backend="pil")
    # Where an odd number of pixels is cropped, transformers rounds down and torchvision to the even number.
    for picture in [*pictures, pictures[2].crop((0, 0, 57, 40)).resize((64, 48))]:
        (theirs,) = library(images=[picture], return_tensors="pt")["pixel_values"]
        (ours,) = inputs_of(clip, [picture])
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("clip", Preprocessing()),
        ("clip", Preprocessing(crop_share=224 / 256, interpolation="bilinear")),
        ("siglip", Preprocessing(resize_mode="squash", mean=(0.5, 0.5, 0.5))),
        ("siglip", Preprocessing(crop_share=224 / 248)),
        ("siglip2", Preprocessing(size=256, resize_mode="squash")),
    ],
)
def test_a_processor_that_is_written_is_read_as_the_same_preprocessing(kind: str, wanted: Preprocessing) -> None:
    config = transformers.AutoConfig.for_model(kind)
    written = processor_config(kind, wanted, 16)
    assert preprocessing_of("a model", written, config) == wanted


def test_padded_images_have_no_processor() -> None:
    with pytest.raises(sp.InputError, match="padded to a square"):
        processor_config("clip", Preprocessing(resize_mode="longest"), 16)


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"rescale_factor": 1.0}, "the rescale_factor 1.0"),
        ({"resample": 1}, "the filter 1"),
        ({"do_rescale": False}, "only 1/255"),
        ({"crop_size": {"height": 24, "width": 24}}, "makes images of 24 pixels, and the model takes 32"),
        ({"crop_size": {"height": 32, "width": 24}}, "must be a square"),
        ({"do_resize": False}, "must be a square"),
    ],
)
def test_processors_that_are_not_supported_are_refused(
    copied: Path, processor: dict[str, object], message: str
) -> None:
    file = copied / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | processor))
    with pytest.raises(sp.InputError, match=message):
        sp.load_clip(f"hf:{copied}")


def test_missing_weights_are_not_filled_with_random_ones(copied: Path) -> None:
    from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

    weights = read_state_dict(copied / "model.safetensors")
    del weights["visual_projection.weight"]
    write_state_dict(weights, copied / "model.safetensors")
    with pytest.raises(sp.InputError, match="lack 'visual_projection.weight'"):
        sp.load_clip(f"hf:{copied}")


def test_a_directory_without_weights_or_of_another_model_is_refused(copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(sp.InputError, match="no weights file"):
        sp.load_clip(f"hf:{copied}")
    bert = transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    transformers.BertModel(bert).save_pretrained(copied)
    with pytest.raises(sp.InputError, match="of the type 'bert'"):
        sp.load_clip(f"hf:{copied}")


def test_a_damaged_file_and_an_unknown_name_are_mistakes(copied: Path) -> None:
    (copied / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(sp.InputError, match="Git LFS pointer"):
        sp.load_clip(f"hf:{copied}")
    with pytest.raises(sp.InputError, match="cannot be loaded"):
        sp.load_clip("hf:nobody/no-such-model")


def test_a_missing_tokenizer_is_a_mistake(copied: Path) -> None:
    for file in copied.glob("*token*"):
        file.unlink()
    with pytest.raises(sp.InputError, match="has 2 tokens, and its text tower 514"):
        sp.load_clip(f"hf:{copied}")


def test_the_softmax_of_sigmoid_logits_is_the_probability_given_that_exactly_one_class_is_there() -> None:
    """The numbers of a SigLIP classifier are calibrated by the same softmax as those of CLIP; the bias cancels."""
    logits = torch.randn(7, 4, dtype=torch.float64) * 3 - 5
    present = torch.sigmoid(logits)
    alone = torch.stack(
        [present[:, k] * torch.stack([1 - present[:, j] for j in range(4) if j != k]).prod(0) for k in range(4)],
        1,
    )
    torch.testing.assert_close(functional.softmax(logits, 1), alone / alone.sum(1, keepdim=True))
