"""The samples of a run: thumbnails with each model's answer, read from ``samples/samples.json``."""

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

# By content, not by ending: what a browser is told must be what the bytes are.
_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
_SMALL = 112


@dataclass(frozen=True)
class Answer:
    """One model's prediction for one sample, its confidence, and whether it is the true class."""

    prediction: str
    confidence: float
    right: bool


@dataclass(frozen=True)
class Sample:
    """One test image with its true class; ``image`` is a data URI, ``small`` asks for sharp enlarging.

    ``maps`` are data URIs of the image with each model's class activation map over it, where the run made them.
    """

    set: str
    id: str
    label: str
    image: str
    small: bool
    answers: Mapping[str, Answer]
    maps: Mapping[str, str]


def read_samples(directory: Path) -> tuple[Sample, ...]:
    """The samples of a run directory, none where it has no ``samples/samples.json``."""
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
            f"{path} is damaged ({error!r}). Run again to write it anew, or delete the folder "
            f"{path.parent} to report without samples."
        ) from error


def data_uri(content: bytes) -> str | None:
    """An image's bytes as a data URI, or None where they are no PNG, JPEG or WebP.

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
        raise InputError(f"{folder / entry['file']} is no PNG, JPEG or WebP image. Run again to write it anew.")
    answers = {model: _answer(entry["answers"][model], label) for model in MODELS}
    # A PNG's width stands in its first chunk; only small images are enlarged, and only these stay sharp.
    small = uri.startswith("data:image/png") and int.from_bytes(content[16:20], "big") <= _SMALL
    maps = _maps(content, folder.parent / "maps", Path(str(entry["file"])).stem)
    return Sample(str(entry["set"]), str(entry["id"]), label, uri, small, answers, maps)


def _maps(content: bytes, folder: Path, stem: str) -> dict[str, str]:
    """The thumbnail under each model's map, none where the run has no maps of it."""
    files = {model: folder / f"{stem}-{model}.png" for model in MODELS}
    if not all(file.is_file() for file in files.values()):
        return {}
    return {model: _overlaid(content, file) for model, file in files.items()}


def _overlaid(content: bytes, file: Path) -> str:
    thumbnail = Image.open(io.BytesIO(content)).convert("RGB")
    try:
        found = Image.open(file).convert("L").resize(thumbnail.size, Image.Resampling.BILINEAR)
    except OSError as error:
        raise InputError(
            f"the map {file} cannot be read ({error}). Run again, or delete the folder {file.parent} to report without."
        ) from error
    colours = Image.fromarray(matplotlib.colormaps["jet"](np.asarray(found), bytes=True)[..., :3])
    buffer = io.BytesIO()
    Image.blend(thumbnail, colours, 0.45).save(buffer, "JPEG", quality=80)
    return data_uri(buffer.getvalue()) or ""


def _answer(value: Mapping[str, Any], label: str) -> Answer:
    prediction = str(value["prediction"])
    confidence = require_between("a confidence", value["confidence"], 0.0, 1.0)
    return Answer(prediction, confidence, prediction == label)


def _thumbnail(folder: Path, name: str) -> bytes:
    # A name that leads out of the folder would put a foreign file into a page meant to be passed on.
    if Path(name).name != name or not name:
        raise InputError(f"{folder / 'samples.json'} names the file {name!r}; it must lie in {folder} itself.")
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise InputError(
            f"{folder / name}, which samples.json names, cannot be read ({error.strerror}). "
            f"Run again, or delete the folder {folder} to report without samples."
        ) from error
