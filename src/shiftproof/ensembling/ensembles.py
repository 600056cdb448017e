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
from shiftproof.errors import IncompatibleWeightsError, InputError, require_between
from shiftproof.models.classifier import Classifier, require_same_task
from shiftproof.models.clip import Clip
from shiftproof.models.identity import has_fingerprint, parent_entry, recorded_starts
from shiftproof.models.text_towers import rebuilt_head, source_clip, text_weights, with_text
from shiftproof.weights.arithmetic import Alpha, combine, interpolate_weights

_PROBE = "a photo of a lemon, and 2 sketches."


def wise_ft(zero_shot: Classifier, fine_tuned: Classifier, alpha: Alpha = 0.5) -> Classifier:
    """The classifier with the weights (1 - alpha) theta_0 + alpha theta_1 (WiSE-FT, Eq. 1), encoder and head.

    alpha 0 is ``zero_shot``, 1 is ``fine_tuned``; 0.5 needs no tuning. It may also be one alpha for every entry
    (``ensembling.schedules``), which the result's ``alpha`` tells by None. Where the fine-tuned head was rebuilt by a
    text tower, both towers are interpolated and the head is rebuilt from the result (``TextPath``). Raises an
    IncompatibleWeightsError where the two differ in classes, preprocessing or architecture; warns where ``fine_tuned``
    is known to come from another source than ``zero_shot``.

    >>> from shiftproof import load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> wise_ft(zero, zero, 0.3).alpha
    0.3
    """
    require_same_task(zero_shot, fine_tuned)
    parents = (parent_entry("zero_shot", zero_shot), parent_entry("fine_tuned", fine_tuned))
    _warn_of_another_start(zero_shot, fine_tuned)
    weights = interpolate_weights(zero_shot.state_dict(), fine_tuned.state_dict(), alpha)
    of_head = alpha["head.weight"] if isinstance(alpha, Mapping) else alpha
    head, text = "interpolated", None
    scale = _between_scales(zero_shot.logit_scale, fine_tuned.logit_scale, of_head)
    if fine_tuned.text is not None and not isinstance(alpha, Mapping):
        head_entries, scale, text = TextPath(zero_shot, fine_tuned).at(alpha)
        weights, head = weights | head_entries, "rebuilt"
    return zero_shot.with_weights(
        weights,
        head=head,
        logit_scale=scale,
        alpha=None if isinstance(alpha, Mapping) else alpha,
        parents=parents,
        training={},
        text=text,
    )


class TextPath:
    """The heads along the path between two text towers, for classifiers whose text tower was fine-tuned too.

    The towers are interpolated and write the head anew, which is not the interpolation of two heads (FLYP). Raises an
    InputError where ``zero_shot`` is not what its zero-shot model makes.
    """

    def __init__(self, zero_shot: Classifier, fine_tuned: Classifier, device: str = "cpu") -> None:
        if fine_tuned.text is None:
            raise InputError("the fine-tuned classifier has no text tower of its own. Interpolate its head instead.")
        self._ends = (zero_shot, fine_tuned)
        self._clip = source_clip(zero_shot, seed=int(fine_tuned.training.get("seed", 0)))
        self._texts = (text_weights(self._clip), dict(fine_tuned.text))
        self._device = device

    @torch.inference_mode(False)  # so that the bits do not depend on who asks
    def at(self, alpha: float) -> tuple[dict[str, Tensor], float, dict[str, Tensor]]:
        """Head, logit scale and text tower at an alpha; at 0 and 1 the heads are the ends' own."""
        text = interpolate_weights(*self._texts, alpha)
        if alpha in (0, 1):
            end = self._ends[int(alpha)]
            return {f"head.{n}": t for n, t in end.network.head.state_dict().items()}, end.logit_scale, text
        clip = with_text(self._clip, text)
        clip.model.to(self._device)
        return *rebuilt_head(clip, self._ends[0]), text


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

    def network_on(self, device: str) -> Callable[[Tensor], Tensor]:
        """(B, 3, size, size) inputs to (B, K) interpolated logits, in float32."""
        first, second = (end.network_on(device) for end in (self.zero_shot, self.fine_tuned))
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
