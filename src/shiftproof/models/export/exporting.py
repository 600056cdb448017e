"""Exporting a classifier: written, read back by the library that it is for, and compared with the classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from shiftproof.errors import InputError, listed, require_choice
from shiftproof.models.classifier import Classifier, require_classifier
from shiftproof.models.export.formats import HEAD_FILE, LABELS_FILE, Format, stacked
from shiftproof.models.export.onnx import ONNX
from shiftproof.models.export.open_clip import OPEN_CLIP, spread_rows
from shiftproof.models.export.timm import TIMM
from shiftproof.models.export.torchscript import TORCHSCRIPT
from shiftproof.models.export.transformers import TRANSFORMERS
from shiftproof.storage import expanded, move_into_place, require_directory_name, staged

_FORMATS = {entry.name: entry for entry in (OPEN_CLIP, TRANSFORMERS, TIMM, ONNX, TORCHSCRIPT)}
EXPORT_FORMATS = tuple(_FORMATS)
CARD_FILE = "README.md"
_TOLERANCE = 1e-3  # of the largest logit


@dataclass(frozen=True)
class Export:
    """An exported classifier, which its library has read back.

    ``difference`` is the largest difference between the logits of the library and those of the classifier on three
    pictures. ``notes`` say what the format does not hold. ``usage`` is Python code that uses the directory and calls it
    by its name.
    """

    directory: Path
    to: str
    package: str
    difference: float
    notes: tuple[str, ...]
    usage: str


def export_classifier(classifier: Classifier, to: str, out: str | Path, *, overwrite: bool = False) -> Export:
    """Writes a classifier as a directory for another library, and checks it with that library.

    ``to`` is "open_clip", "transformers", "timm", "onnx" or "torchscript". The library reads the directory, prepares
    three pictures and computes their logits; the directory is kept only if these agree with the classifier's. With
    ``overwrite``, an earlier export in ``out`` is replaced.

    Raises an InputError that names the other formats if this one cannot hold the classifier, if the logits differ, if a
    package is missing, or if ``out`` holds other files.
    """
    require_classifier(classifier)
    require_choice("export format", to, _FORMATS)
    out, form = expanded(out), _FORMATS[to]
    require_directory_name(out, "export_classifier")
    _require_free(out, overwrite=overwrite)
    if reason := form.refusal(classifier):
        raise InputError(f"the format {to} cannot hold this classifier: {reason}. {_others(classifier, to)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged(out) as content:
        try:
            written = form.write(classifier, content)
            count = 16 if written.prompts_as_head else len(classifier.classes)
            difference = _difference(classifier, form, content, spread_rows(len(classifier.classes), count))
        except InputError as error:
            error.add_note(_others(classifier, to))
            raise
        move_into_place(content, out)
    return Export(out, to, form.package, difference, written.notes, form.usage(out, out.resolve().name))


def _others(classifier: Classifier, to: str) -> str:
    holding = [name for name, form in _FORMATS.items() if name != to and form.refusal(classifier) is None]
    return f"Choose another format: {listed(holding)}."


def _require_free(out: Path, *, overwrite: bool) -> None:
    """Raises an InputError if a directory holds an export, unless it is to be replaced, or any other file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, and an export is a directory. Choose another `out`.")
    present = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    known = {CARD_FILE, HEAD_FILE, LABELS_FILE, *(name for form in _FORMATS.values() for name in form.files)}
    if foreign := [name for name in present if name not in known]:
        raise InputError(f"{out} already holds {listed(foreign, 5)}, which no export wrote. Choose another `out`.")
    if present and not overwrite:
        raise InputError(f"{out} already holds an export. Choose another `out`, or add `overwrite=True` to replace it.")


def _difference(classifier: Classifier, form: Format, directory: Path, rows: Sequence[int]) -> float:
    """The largest difference of the logits that a library computes; raises an InputError if it is too large."""
    pictures = _pictures(classifier.preprocessing.size)
    network = classifier.network_on(device="cpu")
    with torch.inference_mode():
        expected = network(stacked(classifier.preprocess, pictures))[:, list(rows)]
    difference = (form.read(directory)(pictures, rows) - expected).abs().max().item()
    allowed = _TOLERANCE * max(1.0, expected.abs().max().item())
    if not difference <= allowed:
        raise InputError(
            f"read back as {form.name}, the classifier computes other logits: they differ by up to {difference:.3g}, "
            f"and {allowed:.3g} is allowed. Nothing was written."
        )
    return float(difference)


def _pictures(size: int) -> list[Image.Image]:
    """Three random pictures of different shapes, whose details survive resizing."""
    generator = np.random.default_rng(0)
    shapes = ((size, size), (size + size // 2, size), (size, 2 * size))
    coarse = [generator.integers(0, 256, (12, 12, 3)).astype(np.uint8) for _ in shapes]
    return [Image.fromarray(p).resize(shape, Image.Resampling.BICUBIC) for p, shape in zip(coarse, shapes, strict=True)]
