"""Ensembles of two: one model from mixed weights, of a classifier or of both towers; or two models' mixed outputs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shiftproof.data.labels import ClassSpace
from shiftproof.data.loading import Preprocessing
from shiftproof.ensembling.heads import TextTowers, with_combined_weights
from shiftproof.errors import IncompatibleWeightsError, require_between
from shiftproof.models.classifier import Classifier, require_same_task
from shiftproof.models.clip import Clip
from shiftproof.models.identity import has_fingerprint, parent_entry, recorded_starts
from shiftproof.weights.arithmetic import Alpha, combine, interpolate_weights

_PROBE = "a photo of a lemon, and 2 sketches."


def wise_ft(zero_shot: Classifier, fine_tuned: Classifier, alpha: Alpha = 0.5) -> Classifier:
    """The classifier with the weights (1 - alpha) theta_0 + alpha theta_1 (WiSE-FT, Eq. 1), encoder and head.

    alpha 0 is ``zero_shot``, 1 is ``fine_tuned``; 0.5 needs no tuning. ``alpha`` may also map every entry's name to an
    alpha of its own (``weights.schedules``); the result's ``alpha`` is then None. Where a fine-tuned text tower wrote
    a head, both towers are interpolated and the interpolated text tower writes the head; its alpha is that of
    ``head.weight``.

    Raises an IncompatibleWeightsError where the two differ in classes, preprocessing or architecture, and an
    InputError where the text tower behind such a head is missing or the other head was not written by one. Warns
    where ``fine_tuned`` is known to come from another source than ``zero_shot``.

    >>> from shiftproof import load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> wise_ft(zero, zero, 0.3).alpha
    0.3
    """
    require_same_task(zero_shot, fine_tuned)
    parents = (parent_entry("zero_shot", zero_shot), parent_entry("fine_tuned", fine_tuned))
    _warn_of_another_start(zero_shot, fine_tuned)
    weights = interpolate_weights(zero_shot.state_dict(), fine_tuned.state_dict(), alpha)
    alpha_of_head = alpha["head.weight"] if isinstance(alpha, Mapping) else alpha
    towers = TextTowers.of((zero_shot, fine_tuned), device="cpu")
    return with_combined_weights(
        zero_shot,
        weights,
        towers.between(alpha_of_head) if towers else None,
        head="interpolated",
        logit_scale=_between_scales(zero_shot.logit_scale, fine_tuned.logit_scale, alpha_of_head),
        alpha=None if isinstance(alpha, Mapping) else alpha,
        parents=parents,
        training={},
    )


def output_ensemble(zero_shot: Classifier, fine_tuned: Classifier, alpha: float = 0.5) -> OutputEnsemble:
    """The rival of ``wise_ft``: both models run, and their logits are interpolated (WiSE-FT, sec. 5 and appendix).

    It costs two forward passes. Where only the head was fine-tuned, the two are one function. Raises as ``wise_ft``
    does.

    >>> from shiftproof import load_clip, load_suite, predict, zero_shot_classifier
    >>> suite = load_suite("emoji")
    >>> zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    >>> predict(output_ensemble(zero, zero), suite.reference.test.subset([0])).logits.shape
    (1, 267)
    """
    require_same_task(zero_shot, fine_tuned)
    return OutputEnsemble(zero_shot, fine_tuned, require_between("alpha", alpha, 0, 1))


@dataclass(frozen=True)
class OutputEnsemble:
    """Two classifiers whose logits are (1 - alpha) of the one and alpha of the other; ``predict`` takes it."""

    zero_shot: Classifier
    fine_tuned: Classifier
    alpha: float

    @property
    def classes(self) -> ClassSpace:
        """The class space that both share."""
        return self.zero_shot.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """What both want their images to be."""
        return self.zero_shot.preprocessing

    def network_on(self, *, device: str | torch.device = "auto") -> Callable[[Tensor], Tensor]:
        """(B, 3, size, size) inputs to (B, K) interpolated logits, in float32."""
        first, second = (end.network_on(device=device) for end in (self.zero_shot, self.fine_tuned))
        return lambda images: mixed_logits(first(images), second(images), self.alpha)


def mixed_logits(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) first + alpha second, in float32; at 0 and 1 exactly the one or the other.

    >>> mixed_logits(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), 0.25).tolist()
    [0.25, 1.0]
    """
    return combine((first.float(), second.float()), (1 - alpha, alpha))


def interpolate_clip(clip_0: Clip, clip_1: Clip, alpha: Alpha = 0.5) -> Clip:
    """Both towers of two models interpolated, for models whose text tower was fine-tuned too (FLYP, say).

    Build the head from the result: ``zero_shot_classifier(interpolate_clip(a, b), classes)``, which is not the
    interpolation of two such heads. The logit scale is stored as a logarithm, hence interpolated in log space. Raises
    an IncompatibleWeightsError where the models differ in architecture, preprocessing, tokenizer or weights' shapes.

    >>> from shiftproof import load_clip
    >>> interpolate_clip(load_clip("tiny"), load_clip("tiny")).name
    'tiny + tiny'
    """
    _require_same_towers(clip_0, clip_1)
    model = deepcopy(clip_0.model)
    model.load_state_dict(interpolate_weights(clip_0.model.state_dict(), clip_1.model.state_dict(), alpha))
    return replace(clip_0, name=f"{clip_0.name} + {clip_1.name}", model=model.eval())


def _between_scales(first: float, second: float, alpha: float) -> float:
    # The geometric mean, as scales are trained as logarithms; equal ones stay equal to the last bit.
    return first if first == second else first ** (1 - alpha) * second**alpha


def _warn_of_another_start(zero_shot: Classifier, fine_tuned: Classifier) -> None:
    # Another fingerprint alone is no mistake: a linear probe of the same source may stand between the two.
    for start in recorded_starts(fine_tuned):
        if start["source"] != zero_shot.source and not has_fingerprint(zero_shot, start["fingerprint"]):
            warnings.warn(
                f"the fine-tuned classifier was trained from {start['source']}, and the zero-shot one is of "
                f"{zero_shot.source}. Weights mix well only where one comes from the other: "
                "give the classifier that the fine-tuning began with.",
                stacklevel=3,
            )


def _require_same_towers(first: Clip, second: Clip) -> None:
    parts = {
        "architecture": ({**first.architecture, "name": ""}, {**second.architecture, "name": ""}),
        "preprocessing": (first.preprocessing, second.preprocessing),
        "context length": (first.context_length, second.context_length),
    }
    differing = [f"{what} ({one} and {other})" for what, (one, other) in parts.items() if one != other]
    # Tokenizers do not compare; what they make of a text does.
    if not torch.equal(first.tokenizer([_PROBE]), second.tokenizer([_PROBE])):
        differing.append("tokenizer")
    if differing:
        raise IncompatibleWeightsError(
            f"the two models differ in {'; '.join(differing)}. Interpolate models of one architecture, "
            "one of them fine-tuned from the other."
        )
