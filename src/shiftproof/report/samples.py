"""The samples of a run: thumbnails with the predictions of every model, read from ``samples/samples.json``."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from shiftproof.errors import InputError, require_between
from shiftproof.records.runs import MODELS
from shiftproof.storage import read_json

# The type comes from the content and not from the suffix, because the browser is given the bytes.
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_SMALL = 112


@dataclass(frozen=True)
class Answer:
    """A model's prediction for one sample, its confidence (0 to 1), and whether it is the true class."""

    prediction: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Sample:
    """A test image with its true class and each model's answer.

    ``image`` is a data URI, and ``small`` says that the image should be enlarged without smoothing. ``maps`` are data
    URIs of the image with each model's class activation map over it; it is empty if the run has no maps.
    """

    set: str
    id: str
    label: str
    image: str
    small: bool
    answers: Mapping[str, Answer]
    maps: Mapping[str, str]


def read_samples(directory: Path) -> tuple[Sample, ...]:
    """Reads the samples of a run directory; there are none if it has no ``samples/samples.json``.

    Raises an InputError if the file, or an image that it names, is missing or damaged.
    """
    path = directory / "samples" / "samples.json"
    if not path.exists():
        return ()
    value = read_json(path)
    try:
        return tuple(_sample(entry, path.parent) for entry in value["samples"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} is damaged ({error!r}). Repeat the run, or delete the folder {path.parent} to make the report "
            "without samples."
        ) from error


def data_uri(content: bytes) -> str | None:
    """Returns the bytes of an image as a data URI, or None if they are not a PNG, JPEG or WebP image.

    >>> data_uri(b"GIF89a") is None
    True
    """
    for signature, kind in _SIGNATURES.items():
        if content.startswith(signature):
            return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
    return None


def _sample(entry: Mapping[str, Any], folder: Path) -> Sample:
    label = str(entry["label"])
    content = _thumbnail(folder, str(entry["file"]))
    uri = data_uri(content)
    if uri is None:
        raise InputError(
            f"{folder / entry['file']} is not a PNG, JPEG or WebP image. Repeat the run to write it again."
        )
    answers = {model: _answer(entry["answers"][model], label) for model in MODELS}
    # The first chunk of a PNG has its width. Small images are enlarged without smoothing.
    small = uri.startswith("data:image/png") and int.from_bytes(content[16:20], "big") <= _SMALL
    maps = _maps(content, folder.parent / "maps", Path(str(entry["file"])).stem)
    return Sample(str(entry["set"]), str(entry["id"]), label, uri, small, answers, maps)


def _maps(content: bytes, folder: Path, stem: str) -> dict[str, str]:
    """Returns the thumbnail with each model's map over it; the result is empty if a map is missing."""
    files = {model: folder / f"{stem}-{model}.png" for model in MODELS}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {model: _overlaid(content, file) for model, file in files.items()}


def _overlaid(content: bytes, file: Path) -> str:
    thumbnail = Image.open(io.BytesIO(content)).convert("RGB")
    try:
        heat = Image.open(file).convert("L").resize(thumbnail.size, Image.Resampling.BILINEAR)
    except OSError as error:
        raise InputError(
            f"the map {file} cannot be read ({error}). Repeat the run, or delete the folder {file.parent} to make "
            "the report without maps."
        ) from error
    colours = Image.fromarray(matplotlib.colormaps["jet"](np.asarray(heat), bytes=True)[..., :3])
    buffer = io.BytesIO()
    Image.blend(thumbnail, colours, 0.45).save(buffer, "JPEG", quality=80)
    return data_uri(buffer.getvalue()) or ""


def _answer(value: Mapping[str, Any], label: str) -> Answer:
    prediction = str(value["prediction"])
    confidence = require_between("a confidence", value["confidence"], 0.0, 1.0)
    right = value.get("right", prediction == label)  # earlier versions wrote the names alone
    if not isinstance(right, bool):
        raise ValueError(f"right is {right!r}")
    return Answer(prediction, confidence, right)


def _thumbnail(folder: Path, name: str) -> bytes:
    # The page may be shared, so a name that points outside the folder must not put another file into it.
    if Path(name).name != name or not name:
        raise InputError(
            f"{folder / 'samples.json'} names the file {name!r}; the file must lie in {folder} itself. Repeat the run."
        )
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder / name}, which samples.json names, cannot be read ({error.strerror}). "
            f"Repeat the run, or delete the folder {folder} to make the report without samples."
        ) from error
