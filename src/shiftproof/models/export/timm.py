"""timm: a directory that ``timm.create_model("local-dir:PATH")`` and the hub read, for classifiers of timm models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from shiftproof.data.loading import Preprocessing
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.export.formats import (
    Format,
    Logits,
    Written,
    has_head_file,
    head_code,
    head_logits,
    names_code,
    plain_network,
    stacked,
    write_head,
    write_labels,
)
from shiftproof.storage import read_json, write_json

MODEL_FILES = ("config.json", "model.safetensors")
_CROP_MODES = {"shortest": "center", "squash": "squash", "longest": "border"}


def write_timm_model(classifier: Classifier, directory: Path, label_names: Sequence[str]) -> Written:
    """Writes a timm model with the classifier's weights, and its head beside it where timm has no place for one.

    ``label_names`` are the names that the config gives the classes.
    """
    network = plain_network(classifier)
    model, holds_head = network.encoder, _put_head(network)
    from timm.models import save_for_hf

    save_for_hf(
        model,
        str(directory),
        model_config={
            "label_names": list(label_names),
            "label_descriptions": dict(zip(label_names, classifier.classes.names, strict=True)),
        }
        if holds_head
        else None,
        safe_serialization=True,
    )
    config = read_json(directory / "config.json")
    # transformers passes this number beside the arguments, which must not contain it; timm reads it elsewhere.
    config.get("model_args", {}).pop("num_classes", None)
    for name in ("test_input_size", "test_crop_pct"):  # timm would prefer these
        config["pretrained_cfg"].pop(name, None)
    config["pretrained_cfg"] |= _data_config(classifier.preprocessing)
    write_json(directory / "config.json", config)
    write_labels(classifier, directory)
    if holds_head:
        return Written()
    write_head(classifier, directory)
    reason = "reads features of length 1" if network.normalised else "has a bias"
    return Written(
        (
            f"The model returns features, because timm has no head that {reason}. The head is in head.safetensors, and "
            "the code above applies it.",
        )
    )


def _put_head(network: Network) -> bool:
    """Gives a network's timm model its head, and returns whether timm's own layer computes the same logits."""
    if network.normalised:
        return False
    model: Any = network.encoder
    with torch.random.fork_rng(devices=[]):
        model.reset_classifier(network.head.out_features)
    layer = model.get_classifier()
    if not isinstance(layer, nn.Linear) or (layer.bias is None and bool(network.head.bias.any())):
        model.reset_classifier(0)
        return False
    with torch.no_grad():
        layer.weight.copy_(network.head.weight)
        if layer.bias is not None:
            layer.bias.copy_(network.head.bias)
    return True


def _data_config(preprocessing: Preprocessing) -> dict[str, Any]:
    return {
        "input_size": (3, preprocessing.size, preprocessing.size),
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop_share,
        "crop_mode": _CROP_MODES[preprocessing.resize_mode],
    }


def _write(classifier: Classifier, directory: Path) -> Written:
    return write_timm_model(classifier, directory, classifier.classes.ids)


def refusal_of_other_libraries(classifier: Classifier) -> str | None:
    """The reason why no timm model can hold a classifier's encoder, or None."""
    library = classifier.architecture["library"]
    return None if library == "timm" else f"its encoder is a model of {library}"


def _read(directory: Path) -> Logits:
    import timm
    from timm.data import create_transform, resolve_model_data_config

    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            outputs = model(stacked(transform, images))
            answers = head_logits(directory, outputs) if has_head_file(directory) else outputs
            return answers[:, list(rows)]

    return logits


def _usage(directory: Path, place: str) -> str:
    separate = has_head_file(directory)
    return "\n".join(
        [
            "import json\nfrom pathlib import Path\n\nimport timm\nimport torch\nfrom PIL import Image",
            *(["from safetensors.torch import load_file"] if separate else []),
            "",
            f'model = timm.create_model("local-dir:{place}", pretrained=True).eval()',
            "preprocess = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
            'images = preprocess(Image.open("photo.jpg").convert("RGB"))[None]',
            "with torch.inference_mode():",
            f"    {'features' if separate else 'logits'} = model(images)",
            *([head_code(directory, place)] if separate else []),
            names_code(place),
        ]
    )


TIMM = Format("timm", "timm", MODEL_FILES, refusal_of_other_libraries, _write, _read, _usage)
