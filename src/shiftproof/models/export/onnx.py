"""ONNX: one file that onnxruntime and other runtimes execute, with any number of images at once."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from shiftproof.data.transforms import ImageTransform
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import quiet_logging
from shiftproof.models.export.formats import (
    Format,
    Logits,
    Written,
    labels_from,
    labels_json,
    names_code,
    needing,
    plain_network,
    read_labels,
    stacked,
    transform_code,
    write_labels,
)

_FILE = "model.onnx"
_DATA_FILE = f"{_FILE}.data"
_LABELS = ("ids", "names", "prompts", "preprocessing", "normalised")  # entries of the metadata
_LARGEST = 2_000_000_000  # bytes; a protocol buffer holds 2 GiB


def _write(classifier: Classifier, directory: Path) -> Written:
    with needing("onnx", "the format onnx"):
        import onnxscript  # noqa: F401
    network = plain_network(classifier)
    size = classifier.preprocessing.size
    large = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values()) > _LARGEST
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim.DYNAMIC}},
            dynamo=True,
            verbose=False,
        )
        assert program is not None  # with dynamo, torch returns the program
        program.model.metadata_props.update({key: json.dumps(value) for key, value in labels_json(classifier).items()})
        program.save(str(directory / _FILE), external_data=large)
    write_labels(classifier, directory)
    note = (
        f"The weights are in {_DATA_FILE}, because an ONNX file can hold no more than 2 GB; keep both files together."
    )
    return Written((note,) if large else ())


def _read(directory: Path) -> Logits:
    with needing("onnx", "the format onnx"):
        import onnxruntime
    session = onnxruntime.InferenceSession(str(directory / _FILE), providers=["CPUExecutionProvider"])
    stored = session.get_modelmeta().custom_metadata_map
    transform = ImageTransform(labels_from({key: json.loads(stored[key]) for key in _LABELS}).preprocessing)

    def logits(images: Sequence[Image.Image], rows: Sequence[int]) -> Tensor:
        (answers,) = session.run(["logits"], {"images": stacked(transform, images).numpy()})
        return torch.from_numpy(answers)[:, list(rows)]

    return logits


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter, which prints its progress and warns about its own dependencies."""
    with quiet_logging(), warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.simplefilter("ignore")
        yield


def _usage(directory: Path, place: str) -> str:
    return f"""\
import json
from pathlib import Path

import onnxruntime
from PIL import Image
{transform_code(read_labels(directory).preprocessing)}

session = onnxruntime.InferenceSession("{place}/{_FILE}", providers=["CPUExecutionProvider"])
images = preprocess(Image.open("photo.jpg").convert("RGB"))[None]
(logits,) = session.run(["logits"], {{"images": images.numpy()}})
{names_code(place)}"""


ONNX = Format("onnx", "onnx", (_FILE, _DATA_FILE), lambda _: None, _write, _read, _usage)
