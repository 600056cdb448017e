"""The start of the method, theta_0, from a model's name: with a zero-shot head, a linear probe, or its own head."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shiftproof.data.labels import ClassSpace
from shiftproof.data.readable import require_readable
from shiftproof.data.suites import VALIDATION, Reference
from shiftproof.errors import InputError, require_choice
from shiftproof.finetuning.probe import probe_classifier
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import load_classifier
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier, trained_head_classifier
from shiftproof.models.local_weights import head_in_file
from shiftproof.models.names import is_encoder, with_weights
from shiftproof.models.zero_shot import zero_shot_classifier
from shiftproof.storage import expanded

ZERO_SHOT, PROBE, OWN = "zero-shot", "probe", "own"
HEADS = (ZERO_SHOT, PROBE, OWN)


@dataclass(frozen=True)
class StartSettings:
    """How a start is made from a model's name.

    ``head`` is "zero-shot", "probe" or "own"; None stands for "zero-shot", or for "probe" where the model has no text
    tower. The own head of a model with a text tower is that of the file ``weights``. ``prompts`` are those of a
    zero-shot head, and ``cache`` stores large ones. ``random_weights`` allows a name without a tag, whose weights are
    drawn from ``seed``; ``weights`` is a local file whose weights replace those of the name.
    """

    head: str | None = None
    prompts: str | Sequence[str] = "photo"
    seed: int = 0
    random_weights: bool = False
    device: str = "auto"
    weights: str | Path | None = None
    cache: bool = True


def build_named_start(
    name: str, classes: ClassSpace | None, settings: StartSettings, reference: Reference | None = None
) -> Classifier:
    """Makes the start for some classes from a model's name; a linear probe is trained on ``reference``.

    Without ``classes``, a network's own head keeps all of its classes. Raises an InputError if the model cannot be
    loaded, if it cannot have such a head, or if there are no classes for it or no reference for a probe.
    """
    head, random_weights = head_of(name, settings.head, settings.weights), settings.random_weights
    if settings.weights is not None:
        name, random_weights = with_weights(name, settings.weights), True
    if head != OWN and classes is None:
        raise InputError(
            f"unlabelled images do not name the classes for a head of {name!r}. Give a classifier directory among the "
            "models."
        )
    if not is_encoder(name):
        clip = load_clip(name, seed=settings.seed, random_weights=random_weights)
        if classes is None or head == OWN:
            return trained_head_classifier(clip, str(settings.weights), classes)
        _warn_of_trained_head(settings.weights)
        return zero_shot_classifier(clip, classes, settings.prompts, device=settings.device, cache=settings.cache)
    if head == PROBE and reference is None:
        raise InputError(
            f"{name!r} has no text tower, and there are no training images for a linear probe. Keep its own head with "
            "`head='own'`, or name a classifier directory that `shiftproof zeroshot` has written with a reference."
        )
    encoder = load_encoder(name, seed=settings.seed, random_weights=random_weights)
    if head == OWN or reference is None or classes is None:
        return own_head_classifier(encoder, classes)
    train, validation = reference.train.relabelled(classes), reference.validation.relabelled(classes)
    require_readable([("train", train), (VALIDATION, validation)])
    return probe_classifier(encoder, train, validation, device=resolve_device(settings.device))


def load_scored(name: str | Path) -> Classifier:
    """Loads what can be scored as it is: a classifier directory, or a network with its own head by its name.

    Raises an InputError for anything else, and for a network with random weights.
    """
    if not is_encoder(str(name)) or (expanded(name) / "classifier.json").is_file():
        return load_classifier(name)
    return own_head_classifier(load_encoder(str(name), random_weights=False))


def _warn_of_trained_head(weights: str | Path | None) -> None:
    if weights is not None and (trained := head_in_file(str(weights))) is not None:
        warnings.warn(
            f"{weights} has a classification head of {len(trained[0]):,} classes, which a zero-shot head replaces. "
            "Keep it with `head='own'`.",
            stacklevel=3,
        )


def head_of(name: str, head: str | None, weights: str | Path | None) -> str:
    """The head that a model gets; raises an InputError where it cannot have the requested one."""
    if head is None:
        return PROBE if is_encoder(name) else ZERO_SHOT
    require_choice("head", head, HEADS)
    if is_encoder(name) and head == ZERO_SHOT:
        raise InputError(
            f"{name!r} has no text tower, so it has no zero-shot head. Choose `head='probe'`, a linear probe, or "
            "`head='own'`, the head that it was pretrained with."
        )
    if not is_encoder(name) and head != ZERO_SHOT and not (head == OWN and weights is not None):
        raise InputError(
            f"the head {head!r} is for models without a text tower; that of {name!r} gives it a zero-shot head. Leave "
            "`head` out, or train a probe with the recipe 'linear-probe'."
        )
    return head
