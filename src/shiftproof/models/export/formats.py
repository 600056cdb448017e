"""What every export format has in common: its description, the files it adds, and code that prepares images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.memory import lay_out
from shiftproof.models.names import short_name
from shiftproof.models.prompts import Prompts, stored_prompts
from shiftproof.storage import read_json, write_json
from shiftproof.weights.checkpoints import read_state_dict, write_state_dict

HEAD_FILE = "head.safetensors"
LABELS_FILE = "labels.json"
# Reads images and class numbers, and returns the (B, rows) logits that the library computes.
Logits: TypeAlias = Callable[[Sequence[Image.Image], Sequence[int]], Tensor]


@dataclass(frozen=True)
class Written:
    """What was lost in a written directory, in sentences, and whether prompts take the place of a head there."""

    notes: tuple[str, ...] = ()
    prompts_as_head: bool = False


@dataclass(frozen=True)
class Format:
    """One form in which a library or runtime reads a classifier.

    ``refusal`` gives the reason why the form cannot hold a classifier, or None. ``write`` fills an empty directory, and
    ``files`` are the names that it may use in addition to those of every format. ``read`` loads the directory with the
    library alone. ``usage`` returns Python code that names the class of ``photo.jpg``; it takes the directory, and the
    path under which the code finds it.
    """

    name: str
    package: str
    files: tuple[str, ...]
    refusal: Callable[[Classifier], str | None]
    write: Callable[[Classifier, Path], Written]
    read: Callable[[Path], Logits]
    usage: Callable[[Path, str], str]


@dataclass(frozen=True)
class Labels:
    """What ``labels.json`` says: the classes in the order of the logits, and how images and text become logits.

    ``normalised`` says whether the head reads features of length 1.
    """

    classes: ClassSpace
    prompts: Prompts
    preprocessing: Preprocessing
    normalised: bool


def labels_json(classifier: Classifier) -> dict[str, Any]:
    """The content of ``labels.json``."""
    return {
        "ids": classifier.classes.ids,
        "names": classifier.classes.names,
        "prompts": classifier.prompts,
        "preprocessing": asdict(classifier.preprocessing),
        "normalised": classifier.network.normalised,
    }


def write_labels(classifier: Classifier, directory: Path) -> None:
    """Writes ``labels.json``."""
    write_json(directory / LABELS_FILE, labels_json(classifier))


def labels_from(stored: Mapping[str, Any]) -> Labels:
    """What the content of ``labels.json`` says."""
    preprocessing: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in stored["preprocessing"].items()
    }
    return Labels(
        ClassSpace(tuple(stored["ids"]), tuple(stored["names"])),
        stored_prompts(stored["prompts"]),
        Preprocessing(**preprocessing),
        stored["normalised"],
    )


def read_labels(directory: Path) -> Labels:
    """Reads ``labels.json``."""
    return labels_from(read_json(directory / LABELS_FILE))


def plain_network(classifier: Classifier) -> Network:
    """A copy of the network on the CPU in evaluation mode, with contiguous weights, which files and graphs hold."""
    return lay_out(deepcopy(classifier.network).to("cpu"), channels_last=False).eval()


def write_head(classifier: Classifier, directory: Path) -> None:
    """Writes the linear head, (K, D) ``weight`` and (K,) ``bias``, to a file of its own."""
    head = classifier.network.head
    tensors = {"weight": head.weight.detach().cpu(), "bias": head.bias.detach().cpu()}
    write_state_dict(tensors, directory / HEAD_FILE)


def head_logits(directory: Path, features: Tensor) -> Tensor:
    """The (B, K) logits of the head in a directory for the (B, D) features of its encoder."""
    head, normalised = read_state_dict(directory / HEAD_FILE), read_labels(directory).normalised
    scaled = functional.normalize(features, dim=-1) if normalised else features
    return functional.linear(scaled, head["weight"], head["bias"])


def head_note(classifier: Classifier, library: str) -> str:
    """The note on a head in a file of its own, beside both towers of a model."""
    return (
        f"{library} has no linear head, so the one of this classifier is in {HEAD_FILE}, and the code above applies "
        f"it. The text tower is that of {short_name(classifier.source)}: its prompts give other logits than the head."
    )


def has_head_file(directory: Path) -> bool:
    """Whether the head of an exported classifier is in a file of its own."""
    return (directory / HEAD_FILE).is_file()


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Turns the absence of a package into an InputError that names the extra to install."""
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{what} needs packages that are not installed. Install them: pip install 'shiftproof[{extra}]'."
        ) from error


def transform_code(preprocessing: Preprocessing) -> str:
    """Python code that defines ``preprocess``, a function from a Pillow image to the (3, size, size) input."""
    if preprocessing.resize_mode == "longest":
        described = ", ".join(f"{name}={value!r}" for name, value in asdict(preprocessing).items())
        return (
            "from shiftproof.data import ImageTransform, Preprocessing\n\n"
            f"preprocess = ImageTransform(Preprocessing({described}))"
        )
    side = math.floor(preprocessing.size / preprocessing.crop_share)
    scaled = f"{side}" if preprocessing.resize_mode == "shortest" else f"({side}, {side})"
    return (
        "from torchvision import transforms\n\n"
        "preprocess = transforms.Compose([\n"
        f"    transforms.Resize({scaled}, transforms.InterpolationMode.{preprocessing.interpolation.upper()}),\n"
        f"    transforms.CenterCrop({preprocessing.size}),\n"
        "    transforms.ToTensor(),\n"
        f"    transforms.Normalize({preprocessing.mean}, {preprocessing.std}),\n"
        "])"
    )


def head_code(directory: Path, place: str) -> str:
    """Python code that turns ``features`` into ``logits`` by the head in a file of its own."""
    features = "torch.nn.functional.normalize(features, dim=-1)" if read_labels(directory).normalised else "features"
    return (
        f'head = load_file("{place}/{HEAD_FILE}")\n'
        f'logits = torch.nn.functional.linear({features}, head["weight"], head["bias"])'
    )


def names_code(place: str) -> str:
    """Python code that prints the name of the most probable class."""
    return (
        f'names = json.loads(Path("{place}/{LABELS_FILE}").read_text(encoding="utf-8"))["names"]\n'
        "print(names[int(logits.argmax())])"
    )


def stacked(transform: Callable[[Image.Image], Any], images: Sequence[Image.Image]) -> Tensor:
    """The (B, 3, size, size) inputs of Pillow images."""
    return torch.stack([transform(image) for image in images])
