"""TorchScript: one file that ``torch.jit.load`` runs without Python classes, in C++ too."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shiftproof.data.transforms import ImageTransform
from shiftproof.models.classifier import Classifier
from shiftproof.models.export.formats import (
    LABELS_FILE,
    Format,
    Logits,
    Written,
    labels_from,
    labels_json,
    names_code,
    plain_network,
    read_labels,
    stacked,
    transform_code,
    write_labels,
)

_FILE = "model.torchscript.pt"


def _write(classifier: Classifier, directory: Path) -> Written:
    network = plain_network(classifier)
    size = classifier.preprocessing.size
    with _quiet(), torch.no_grad():
        example = torch.zeros(2, 3, size, size)
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(directory / _FILE), _extra_files={LABELS_FILE: json.dumps(labels_json(classifier))})
    write_labels(classifier, directory)
    return Written()


def _read(directory: Path) -> Logits:
    extra = {LABELS_FILE: ""}
    with _quiet():
        model = torch.jit.load(str(directory / _FILE), "cpu", _extra_files=extra)  # type: ignore[no-untyped-call]
    transform = ImageTransform(labels_from(json.loads(extra[LABELS_FILE])).preprocessing)

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        with torch.inference_mode():
            return model(stacked(transform, images))[:, list(rows)]  # type: ignore[no-any-return]

    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch, which announces the end of TorchScript and warns of constants that a trace holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", torch.jit._trace.TracerWarning)
        yield


def _usage(directory: Path, place: str) -> str:
    return f"""\
import json
from pathlib import Path

import torch
from PIL import Image
{transform_code(read_labels(directory).preprocessing)}

model = torch.jit.load("{place}/{_FILE}")
images = preprocess(Image.open("photo.jpg").convert("RGB"))[None]
with torch.inference_mode():
    logits = model(images)
{names_code(place)}"""


TORCHSCRIPT = Format("torchscript", "torch", (_FILE,), lambda _: None, _write, _read, _usage)
