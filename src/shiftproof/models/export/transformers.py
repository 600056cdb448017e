"""transformers: a directory that ``from_pretrained`` reads, for CLIP, SigLIP and SigLIP 2, and for timm models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shiftproof.models.classifier import Classifier
from shiftproof.models.export.clip_conversion import converted, why_not_plain
from shiftproof.models.export.formats import (
    Format,
    Logits,
    Written,
    has_head_file,
    head_code,
    head_logits,
    head_note,
    names_code,
    needing,
    read_labels,
    write_head,
    write_labels,
)
from shiftproof.models.export.open_clip import both_towers, is_head_of
from shiftproof.models.export.timm import MODEL_FILES, write_timm_model
from shiftproof.models.prompts import texts_of
from shiftproof.models.transformers import quiet_transformers, save_transformers
from shiftproof.storage import read_json

_FILES = (
    *(*MODEL_FILES, "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
)
_SQUARE_NOTE = (
    "SigLIP 2 takes images of any aspect ratio; this classifier was made with square ones, as in the code above."
)


def _refusal(classifier: Classifier) -> str | None:
    library = classifier.architecture["library"]
    if library == "open_clip":
        return why_not_plain(classifier)
    return None if library in ("timm", "transformers") else f"its encoder is a model of {library}"


def _write(classifier: Classifier, directory: Path) -> Written:
    library = classifier.architecture["library"]
    with needing("hf", "the format transformers"):
        import transformers  # noqa: F401
    if library == "timm":
        return write_timm_model(classifier, directory, classifier.classes.names)
    clip = both_towers(classifier)
    prompts_as_head = is_head_of(clip, classifier)
    model, tokenizer = (clip.model, clip.tokenizer) if library == "transformers" else converted(clip)
    save_transformers(model, tokenizer, classifier.preprocessing, directory)  # type: ignore[arg-type]
    write_labels(classifier, directory)
    if not prompts_as_head:
        write_head(classifier, directory)
    notes = [] if prompts_as_head else [head_note(classifier, "transformers")]
    notes += [_SQUARE_NOTE] if _kind(directory) == "siglip2" else []
    return Written(tuple(notes), prompts_as_head)


def _kind(directory: Path) -> str:
    """The type of the model in a directory; the config of a timm model has none."""
    return str(read_json(directory / "config.json").get("model_type", "timm"))


def _read(directory: Path) -> Logits:
    return _read_timm(directory) if _kind(directory) == "timm" else _read_clip(directory)


def _read_timm(directory: Path) -> Logits:
    import transformers

    separate = has_head_file(directory)
    with quiet_transformers():
        processor = transformers.AutoImageProcessor.from_pretrained(directory)
        read = transformers.AutoModel if separate else transformers.AutoModelForImageClassification
        model = read.from_pretrained(directory).eval()

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            outputs = model(**processor(list(images)))
            answers = head_logits(directory, outputs.pooler_output) if separate else outputs.logits
            return answers[:, list(rows)]

    return logits


def _read_clip(directory: Path) -> Logits:
    import transformers

    labels, kind, separate = read_labels(directory), _kind(directory), has_head_file(directory)
    with quiet_transformers():
        # The other backend resizes in another way than Pillow, with which models were trained.
        processor = transformers.AutoImageProcessor.from_pretrained(directory, backend="pil")
        model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = None if separate else transformers.AutoTokenizer.from_pretrained(directory)

    def prompts_of(row: int) -> list[str]:
        prompts = texts_of(labels.prompts, labels.classes)[row]
        lowers = _lowers(kind, read_json(directory / "tokenizer_config.json"))
        return [prompt.lower() if lowers else prompt for prompt in prompts]

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        size = (labels.preprocessing.size,) * 2
        shown = [image.resize(size, Image.Resampling.BILINEAR) if kind == "siglip2" else image for image in images]
        with torch.inference_mode():
            features = model.get_image_features(**processor(images=shown, return_tensors="pt")).pooler_output
            if separate:
                return head_logits(directory, features)[:, list(rows)]
            texts = torch.stack([_text_features(model, tokenizer, prompts_of(row)) for row in rows])
            scaled = model.logit_scale.exp() * functional.normalize(features, dim=-1) @ texts.T
            return scaled + getattr(model, "logit_bias", 0)  # type: ignore[no-any-return]

    return logits


def _text_features(model: Any, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """The (D,) mean of the features of a class's prompts, of length 1."""
    length = model.config.text_config.max_position_embeddings
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    features = model.get_text_features(input_ids=tokens["input_ids"]).pooler_output
    return functional.normalize(functional.normalize(features, dim=-1).mean(0), dim=-1)


_TIMM_CODE = """\
processor = AutoImageProcessor.from_pretrained("{place}")
model = {model}.from_pretrained("{place}").eval()
with torch.inference_mode():
    outputs = model(**processor(Image.open("photo.jpg").convert("RGB")))
{outputs}"""
_CLIP_CODE = """\
processor = AutoImageProcessor.from_pretrained("{place}", backend="pil")
model = AutoModel.from_pretrained("{place}").eval()
image = Image.open("photo.jpg").convert("RGB"){resized}
with torch.inference_mode():
    features = model.get_image_features(**processor(images=[image], return_tensors="pt")).pooler_output"""
_PROMPTS_CODE = """\
tokenizer = AutoTokenizer.from_pretrained("{place}")
length = model.config.text_config.max_position_embeddings
settings = {{"padding": "max_length", "max_length": length, "truncation": True, "return_tensors": "pt"}}
labels = json.loads(Path("{place}/labels.json").read_text(encoding="utf-8"))
with torch.inference_mode():
    rows = []
    for key, name in zip(labels["ids"], labels["names"]):
        prompts = labels["prompts"] if isinstance(labels["prompts"], list) else labels["prompts"][key]
        tokens = tokenizer([prompt.replace("{{}}", name){lower} for prompt in prompts], **settings)["input_ids"]
        texts = torch.nn.functional.normalize(model.get_text_features(input_ids=tokens).pooler_output, dim=-1)
        rows.append(torch.nn.functional.normalize(texts.mean(0), dim=-1))
    logits = model.logit_scale.exp() * torch.nn.functional.normalize(features, dim=-1) @ torch.stack(rows).T{bias}"""


def _usage(directory: Path, place: str) -> str:
    separate, kind = has_head_file(directory), _kind(directory)
    classes = ["AutoImageProcessor"]
    if kind == "timm":
        model = "AutoModel" if separate else "AutoModelForImageClassification"
        classes.append(model)
        outputs = "features = outputs.pooler_output" if separate else "logits = outputs.logits"
        code = [_TIMM_CODE.format(place=place, model=model, outputs=outputs)]
    else:
        classes += ["AutoModel"] if separate else ["AutoModel", "AutoTokenizer"]
        code = [_CLIP_CODE.format(place=place, resized=_resizing(directory, kind))]
        if not separate:
            code.append(_prompts_code(directory, place, kind))
    return "\n".join(
        [
            "import json\nfrom pathlib import Path\n\nimport torch\nfrom PIL import Image",
            *(["from safetensors.torch import load_file"] if separate else []),
            f"from transformers import {', '.join(classes)}\n",
            *code,
            *([head_code(directory, place)] if separate else []),
            names_code(place),
        ]
    )


def _resizing(directory: Path, kind: str) -> str:
    size = read_labels(directory).preprocessing.size
    return f".resize(({size}, {size}), Image.Resampling.BILINEAR)" if kind == "siglip2" else ""


def _prompts_code(directory: Path, place: str, kind: str) -> str:
    lower = ".lower()" if _lowers(kind, read_json(directory / "tokenizer_config.json")) else ""
    bias = "" if kind == "clip" else " + model.logit_bias"
    return _PROMPTS_CODE.format(place=place, lower=lower, bias=bias)


def _lowers(kind: str, tokenizer: Mapping[str, Any]) -> bool:
    """Whether texts are put into lower case before they reach the tokenizer, as SigLIP was trained."""
    return kind != "clip" and bool(tokenizer.get("do_lower_case", True))


TRANSFORMERS = Format("transformers", "transformers", _FILES, _refusal, _write, _read, _usage)
