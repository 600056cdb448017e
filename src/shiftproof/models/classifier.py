"""A classifier: an image encoder, a linear head on its features, and everything needed to use it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.data.transforms import ImageTransform
from shiftproof.errors import IncompatibleWeightsError, InputError, listed, refuse_path
from shiftproof.models.devices import resolve_device
from shiftproof.models.encoders import build_encoder
from shiftproof.models.memory import is_laid_out, lay_out, uses_channels_last
from shiftproof.models.precision import encoded_in, resolved_precision
from shiftproof.models.prompts import Prompts


class Network(nn.Module):
    """(B, 3, size, size) images to (B, K) logits: head(normalise(encoder(x))).

    ``normalised`` says whether features are scaled to length 1, as CLIP's are; the head of an image network takes them
    unscaled. The encoder runs in ``precision``; features and logits are float32 (``encoded_in``).
    """

    def __init__(
        self, encoder: nn.Module, head: nn.Linear, normalised: bool = True, precision: str = "float32"
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.normalised = normalised
        self.precision = precision

    def in_precision(self, precision: str) -> Network:
        """The network with an encoder that runs in a precision; encoder and head are the same modules."""
        if precision == self.precision:
            return self
        return Network(self.encoder, self.head, self.normalised, precision).train(self.training)

    def features(self, images: Tensor) -> Tensor:
        """(B, D) features as the head reads them, of length 1 where ``normalised``."""
        features = encoded_in(self.precision, self.encoder, images)
        return functional.normalize(features, dim=-1) if self.normalised else features

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, size, size) images to (B, K) logits."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


class Pretrained(Protocol):
    """What a classifier keeps of the model that its encoder is from: a zero-shot model or an image network."""

    @property
    def name(self) -> str: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def architecture(self) -> Mapping[str, Any]: ...


class Task(Protocol):
    """What two classifiers must share to be combined, and what a fingerprint covers in addition to the weights."""

    @property
    def classes(self) -> ClassSpace: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def architecture(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Classifier:
    """A network with its class space, preprocessing and provenance; treat it as immutable.

    ``architecture`` describes how to rebuild the encoder. ``head`` says what the head's rows are: "zero-shot" (text
    embeddings), "own" (the pretrained head of the encoder), "probe" (a linear probe of the start's features),
    "trained", "frozen" (the start's, with a trained encoder), "rebuilt" (by a fine-tuned text tower, whose weights are
    ``text``), "interpolated" or "averaged". ``logit_scale`` is the factor already folded into the head: the scale of
    the text tower that wrote it, and for other heads on features of length 1 the mean length of the rows
    (``head_scale``). It is 1 where features are not scaled to length 1. ``alpha`` (0 is the start, 1 is fine-tuned) and
    ``parents`` state what an ensemble was made from, and ``training`` how the classifier was trained.
    ``channels_last`` says whether it runs in this memory format; None chooses by the kind of network.
    """

    network: Network = field(repr=False, compare=False)
    classes: ClassSpace
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]
    source: str
    prompts: Prompts
    head: str
    logit_scale: float
    alpha: float | None = None
    parents: tuple[Mapping[str, Any], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    text: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)
    channels_last: bool | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        alpha = "" if self.alpha is None else f", alpha {self.alpha:g}"
        return f"Classifier({self.source!r}, {len(self.classes)} classes, {self.head} head{alpha})"

    @property
    def preprocess(self) -> ImageTransform:
        """The preprocessing as a function: a Pillow image to the (3, size, size) input of ``network``."""
        return ImageTransform(self.preprocessing)

    def state_dict(self) -> dict[str, Tensor]:
        """The network's tensors by name."""
        return dict(self.network.state_dict())

    def network_on(self, *, device: str | torch.device = "auto", precision: str = "float32") -> Network:
        """Returns the network on a device, in its memory format there (``uses_channels_last``) and in evaluation mode.

        It is the network itself if that is the case already, and a copy otherwise. The encoder runs in ``precision``:
        "float32", "bfloat16", "float16", or "fastest" on the device. Features and logits are float32 in all of them.
        Raises an InputError for another precision, and for float16 on a CPU.
        """
        place = torch.device(resolve_device(device))
        precision = resolved_precision(precision, place)
        channels_last = uses_channels_last(self.network, place, self.channels_last)
        if next(self.network.parameters()).device == place and is_laid_out(self.network, channels_last):
            return self.network.eval().in_precision(precision)
        return lay_out(deepcopy(self.network).to(place), channels_last).eval().in_precision(precision)

    def with_weights(self, tensors: Mapping[str, Tensor], **changes: Any) -> Classifier:
        """A copy with other weights, in evaluation mode, and with the given fields changed; ``text`` is dropped.

        Unless it is given, ``logit_scale`` is that of the new head, or the old one where the head stays the same.
        """
        network = deepcopy(self.network)
        network.load_state_dict(dict(tensors))
        new, old = network.head.weight.detach(), self.network.head.weight.detach()
        same_scale = not network.normalised or torch.equal(new, old)
        scale = self.logit_scale if same_scale else head_scale(new, otherwise=self.logit_scale)
        return replace(self, network=network.eval(), **{"text": None, "logit_scale": scale, **changes})

    def in_order_of(self, classes: ClassSpace) -> Classifier:
        """The classifier with its classes in the order of another space; raises an InputError if the classes differ."""
        if classes.ids == self.classes.ids:
            return self
        rows = _rows_of(self.classes, classes)
        tensors = self.state_dict()
        head = {name: entry[rows] for name, entry in tensors.items() if name in ("head.weight", "head.bias")}
        return self.with_weights(tensors | head, classes=classes, text=self.text, logit_scale=self.logit_scale)


def starting_classifier(
    model: Pretrained, network: Network, classes: ClassSpace, head: str, logit_scale: float, prompts: Prompts = ()
) -> Classifier:
    """The classifier of a pretrained model's encoder and a head, with every weight trainable.

    ``head``, ``logit_scale`` and ``prompts`` are as in ``Classifier``.
    """
    network.requires_grad_(True)
    return Classifier(
        network=network.eval(),
        classes=classes,
        preprocessing=model.preprocessing,
        architecture=dict(model.architecture) | ({} if network.normalised else {"normalised": False}),
        source=model.name,
        prompts=prompts,
        head=head,
        logit_scale=logit_scale,
    )


def require_classifier(classifier: object, what: str = "classifier") -> None:
    """Raises an InputError for a path or a name in place of a classifier."""
    refuse_path(what, classifier, "a classifier, e.g. load_classifier('RUN/ensemble')")


def _rows_of(classes: ClassSpace, wanted: ClassSpace) -> list[int]:
    if only := sorted(set(classes.keys) ^ set(wanted.keys)):
        raise InputError(
            f"the two classifiers have different classes; these are in one only: {listed(only)}. "
            "Compare classifiers of the same classes."
        )
    return [int(row) for row in classes.labels_of(wanted.ids, "the other classifier")]


def head_scale(weight: Tensor, *, otherwise: float = 1.0) -> float:
    """The mean length of the (K, D) rows of a head, which is the scale of its logits on features of length 1.

    The result is ``otherwise`` where the rows are not finite, since no file can hold that.

    >>> head_scale(torch.tensor([[3.0, 4.0], [0.0, 7.0]]))
    6.0
    """
    length = float(weight.double().norm(dim=1).mean())
    return length if math.isfinite(length) else otherwise


def rebuild(fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Classifier:
    """Builds a classifier from its stored fields and tensors; raises an IncompatibleWeightsError if they do not fit."""
    if "head.weight" not in tensors:
        raise IncompatibleWeightsError("the weights contain no 'head.weight'. They must be those of a classifier.")
    encoder = build_encoder(fields["architecture"])
    head = nn.Linear(tensors["head.weight"].shape[1], len(fields["classes"]))
    network = Network(encoder, head, fields["architecture"].get("normalised", True))
    try:
        network.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise IncompatibleWeightsError(
            f"the weights do not fit the architecture: {error}. Restore both files of the classifier directory."
        ) from error
    return Classifier(network=network.eval(), **fields)


def require_same_task(first: Task, second: Task) -> None:
    """Raises an IncompatibleWeightsError unless two classifiers share class space, architecture and preprocessing."""
    require_classifier(first, "first")
    require_classifier(second, "second")
    if first.classes.keys != second.classes.keys:
        only = sorted(set(first.classes.keys) ^ set(second.classes.keys))
        difference = f"these are in one only: {listed(only)}" if only else "they are in a different order"
        raise IncompatibleWeightsError(
            f"the two classifiers have different classes; {difference}. "
            "Fine-tune from the classifier that you ensemble with."
        )
    keys = ["library", "embed_dim", "vision_cfg", "quick_gelu", "normalised"]
    if first.architecture.get("library") in ("timm", "torchvision"):
        keys += ["name", "tag"]  # open_clip's name adds nothing to its config
    if differing := [key for key in keys if first.architecture.get(key) != second.architecture.get(key)]:
        raise IncompatibleWeightsError(
            f"the two classifiers differ in architecture ({', '.join(differing)}). "
            "Fine-tune from the classifier that you ensemble with."
        )
    if first.preprocessing != second.preprocessing:
        raise IncompatibleWeightsError(
            f"the two classifiers take different images: {first.preprocessing} and {second.preprocessing}. "
            "Fine-tune with the start's preprocessing."
        )
