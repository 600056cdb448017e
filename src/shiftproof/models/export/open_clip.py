"""open_clip: a directory that ``local-dir:PATH`` reads, with both towers, for classifiers of open_clip models."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.errors import InputError
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import Clip, load_clip, model_config, quiet_logging
from shiftproof.models.export.formats import (
    Format,
    Logits,
    Written,
    has_head_file,
    head_code,
    head_logits,
    head_note,
    names_code,
    read_labels,
    stacked,
    write_head,
    write_labels,
)
from shiftproof.models.prompts import texts_of
from shiftproof.models.text_encoding import class_embeddings
from shiftproof.models.text_towers import rebuilt_head, with_text
from shiftproof.models.tiny import TINY_SIZES
from shiftproof.models.zero_shot import logit_scale_and_bias
from shiftproof.storage import read_json, write_json
from shiftproof.weights.checkpoints import write_state_dict

_CONFIG, _WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
# A frozen head is that of the start, which a text tower may have written.
_WRITTEN_BY_TEXT = ("zero-shot", "rebuilt", "frozen")
_COMPARED_CLASSES = 16  # whose rows are built again; building all of 1,000 classes can take hours on a CPU
_ROUNDING = 1e-4  # of a row's length


def spread_rows(classes: int, count: int = _COMPARED_CLASSES) -> list[int]:
    """The numbers of at most ``count`` classes, evenly spread.

    >>> spread_rows(10, 3)
    [0, 4, 9]
    """
    return sorted({round(row) for row in torch.linspace(0, classes - 1, min(classes, count)).tolist()})


def both_towers(classifier: Classifier) -> Clip:
    """The model that a classifier came from, with the classifier's image tower and, if it has one, its text tower.

    Raises an InputError where the model cannot be loaded, or has another image tower.
    """
    clip = load_clip(classifier.source)
    if classifier.text is not None:
        clip = with_text(clip, classifier.text)
    model: Any = deepcopy(clip.model)
    encoder = {name: tensor.cpu() for name, tensor in classifier.network.encoder.state_dict().items()}
    try:
        model.visual.load_state_dict(encoder)
    except RuntimeError as error:
        raise InputError(
            f"the text tower of {classifier.source!r} does not belong to the classifier: that model now has another "
            "image tower. Restore the model that the classifier was made from."
        ) from error
    return replace(clip, model=model.eval())


def is_head_of(clip: Clip, classifier: Classifier) -> bool:
    """Whether a model's text tower writes the classifier's head from its prompts, as far as 16 classes tell.

    Raises an InputError where the classifier says that a text tower wrote its head, but this one writes another.
    """
    if classifier.head not in _WRITTEN_BY_TEXT or not classifier.prompts:
        return False
    rows = spread_rows(len(classifier.classes))
    ids, names = ([entries[row] for row in rows] for entries in (classifier.classes.ids, classifier.classes.names))
    head, scale = rebuilt_head(clip, replace(classifier, classes=ClassSpace(tuple(ids), tuple(names))))
    stored_head = classifier.network.head
    written = all(
        torch.allclose(entries, getattr(stored_head, name).detach().cpu()[rows], rtol=0, atol=_ROUNDING * scale)
        for name, entries in (("weight", head["head.weight"]), ("bias", head["head.bias"]))
    )
    if not written and classifier.head != "frozen":
        raise InputError(
            f"the text tower of {classifier.source!r} does not write the head of the classifier, so it is not the one "
            "that the classifier was made with (random weights depend on the seed)."
        )
    return written


def _refusal(classifier: Classifier) -> str | None:
    library = classifier.architecture["library"]
    return None if library == "open_clip" else f"its encoder is a model of {library}, to which no text tower belongs"


def _write(classifier: Classifier, directory: Path) -> Written:
    clip = both_towers(classifier)
    prompts_as_head = is_head_of(clip, classifier)
    write_state_dict(clip.model.state_dict(), directory / _WEIGHTS)
    write_json(directory / _CONFIG, _config(classifier))
    if save_tokenizer := getattr(clip.tokenizer, "save_pretrained", None):  # CLIP's own tokenizer has no files
        save_tokenizer(str(directory))
    write_labels(classifier, directory)
    notes = []
    if not prompts_as_head:
        write_head(classifier, directory)
        notes.append(head_note(classifier, "open_clip"))
    if _has_tiny_tower(directory):
        notes.append("The image tower is shiftproof's own; `import shiftproof.models.tiny` registers it with timm.")
    return Written(tuple(notes), prompts_as_head)


def _config(classifier: Classifier) -> dict[str, Any]:
    """The content of ``open_clip_config.json``."""
    described, preprocessing = classifier.architecture, classifier.preprocessing
    config = model_config(described["name"])
    text = {**config["text_cfg"], **({"hf_model_pretrained": False} if "hf_model_name" in config["text_cfg"] else {})}
    return {
        "model_cfg": {
            **config,
            "vision_cfg": dict(described["vision_cfg"]),
            "text_cfg": text,
            "quick_gelu": described["quick_gelu"],
        },
        "preprocess_cfg": {
            "size": preprocessing.size,
            "mean": preprocessing.mean,
            "std": preprocessing.std,
            "interpolation": preprocessing.interpolation,
            "resize_mode": preprocessing.resize_mode,
            "fill_color": preprocessing.fill,
        },
    }


def _has_tiny_tower(directory: Path) -> bool:
    vision = read_json(directory / _CONFIG)["model_cfg"]["vision_cfg"]
    return vision.get("timm_model_name") in TINY_SIZES.values()


def _read(directory: Path) -> Logits:
    import open_clip

    name, labels = f"local-dir:{directory}", read_labels(directory)
    with torch.random.fork_rng(devices=[]), quiet_logging():
        model, transform = open_clip.create_model_from_pretrained(name, return_transform=True)
        tokenizer = open_clip.get_tokenizer(name)
    clip = Clip(name, model.eval(), tokenizer, labels.preprocessing, {}, model.context_length)

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            features = model.encode_image(stacked(transform, images))
            if has_head_file(directory):
                return head_logits(directory, features)[:, list(rows)]
            ids, names = ([entries[row] for row in rows] for entries in (labels.classes.ids, labels.classes.names))
            texts = texts_of(labels.prompts, ClassSpace(tuple(ids), tuple(names)))
            scale, bias = logit_scale_and_bias(clip)
            embeddings = class_embeddings(clip, texts)
            return scale * functional.normalize(features, dim=-1) @ embeddings.T + bias

    return logits


_PROMPTS_CODE = """\
tokenizer = open_clip.get_tokenizer("local-dir:{place}")
labels = json.loads(Path("{place}/labels.json").read_text(encoding="utf-8"))
with torch.inference_mode():
    rows = []
    for key, name in zip(labels["ids"], labels["names"]):
        prompts = labels["prompts"] if isinstance(labels["prompts"], list) else labels["prompts"][key]
        texts = model.encode_text(tokenizer([prompt.replace("{{}}", name) for prompt in prompts]), normalize=True)
        rows.append(torch.nn.functional.normalize(texts.mean(0), dim=-1))
    logits = model.logit_scale.exp() * torch.nn.functional.normalize(features, dim=-1) @ torch.stack(rows).T
    logits = logits + (0 if model.logit_bias is None else model.logit_bias)"""


def _usage(directory: Path, place: str) -> str:
    separate = has_head_file(directory)
    extra = ["from safetensors.torch import load_file"] if separate else []
    extra += ["import shiftproof.models.tiny"] if _has_tiny_tower(directory) else []
    return "\n".join(
        [
            "import json\nfrom pathlib import Path\n\nimport open_clip\nimport torch\nfrom PIL import Image",
            *extra,
            "",
            f'model, preprocess = open_clip.create_model_from_pretrained("local-dir:{place}")',
            'images = preprocess(Image.open("photo.jpg").convert("RGB"))[None]',
            "with torch.inference_mode():",
            "    features = model.eval().encode_image(images)",
            head_code(directory, place) if separate else _PROMPTS_CODE.format(place=place),
            names_code(place),
        ]
    )


OPEN_CLIP = Format("open_clip", "open_clip", (_CONFIG, _WEIGHTS), _refusal, _write, _read, _usage)
