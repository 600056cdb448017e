"""Ensembles of two models: one network with interpolated weights, or two networks with interpolated logits."""

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
from shiftproof.models.clip import Clip, require_clip
from shiftproof.models.identity import has_fingerprint, parent_entry, recorded_starts
from shiftproof.weights.arithmetic import Alpha, combine, interpolate_weights

_PROBE = "a photo of a lemon, and 2 sketches."


def wise_ft(zero_shot: Classifier, fine_tuned: Classifier, alpha: Alpha = 0.5) -> Classifier:
    """Returns the classifier with the weights (1 - alpha) theta_0 + alpha theta_1, encoder and head.

    This is the weight-space ensemble of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, Eq. 1). ``alpha`` lies between
    0, which returns ``zero_shot``, and 1, which returns ``fine_tuned``; 0.5 needs no tuning. ``alpha`` may also map the
    name of every entry to its alpha (``weights.schedules``); the ``alpha`` of the result is then None. If a fine-tuned
    text tower wrote one of the heads, the text towers are interpolated too, with the alpha of ``head.weight``, and the
    interpolated text tower writes the head.

    Raises an IncompatibleWeightsError if the two differ in classes, preprocessing or architecture, and an InputError
    for an alpha outside of 0 to 1, if the text tower behind such a head is missing, or if the other head was not
    written by a text tower. Warns if ``fine_tuned`` is known to come from another source than ``zero_shot``.

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
        alpha=None if isinstance(alpha, Mapping) else alpha,
        parents=parents,
        training={},
    )


def output_ensemble(zero_shot: Classifier, fine_tuned: Classifier, alpha: float = 0.5) -> OutputEnsemble:
    """Returns the output-space baseline for ``wise_ft``: both models run, and their logits are interpolated.

    The logits are (1 - alpha) of ``zero_shot`` and alpha of ``fine_tuned``, with alpha between 0 and 1 (Wortsman et al.
    2022, arXiv 2109.01903, sec. 5 and appendix), at the cost of two forward passes. If only the head was fine-tuned,
    this ensemble and ``wise_ft`` are the same function. Raises an IncompatibleWeightsError if the two differ in
    classes, preprocessing or architecture, and an InputError for an alpha outside of 0 to 1.

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
    """Two classifiers whose logits are interpolated with ``alpha``; ``predict`` accepts it like a classifier."""

    zero_shot: Classifier
    fine_tuned: Classifier
    alpha: float

    @property
    def classes(self) -> ClassSpace:
        """The class space that both share."""
        return self.zero_shot.classes

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that both share."""
        return self.zero_shot.preprocessing

    def network_on(
        self, *, device: str | torch.device = "auto", precision: str = "float32"
    ) -> Callable[[Tensor], Tensor]:
        """Returns a function from (B, 3, size, size) inputs on the device to (B, K) interpolated float32 logits.

        Both encoders run in ``precision``; its values and errors are those of ``Classifier.network_on``.
        """
        ends = self.zero_shot, self.fine_tuned
        first, second = (end.network_on(device=device, precision=precision) for end in ends)
        return lambda images: mixed_logits(first(images), second(images), self.alpha)


def mixed_logits(first: Tensor, second: Tensor, alpha: float) -> Tensor:
    """Returns (1 - alpha) first + alpha second in float32; at alpha 0 and 1 exactly ``first`` or ``second``.

    >>> mixed_logits(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), 0.25).tolist()
    [0.25, 1.0]
    """
    return combine((first.float(), second.float()), (1 - alpha, alpha))


def interpolate_clip(clip_0: Clip, clip_1: Clip, alpha: Alpha = 0.5) -> Clip:
    """Interpolates both towers of two models, for models whose text tower was fine-tuned too (by FLYP, for example).

    The weights are those of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, Eq. 1), with ``alpha`` as in ``wise_ft``.
    Build the head from the result, by ``zero_shot_classifier(interpolate_clip(a, b), classes)``: it differs from the
    interpolation of the two heads. The logit scale is stored as a logarithm, so it is interpolated in log space. Raises
    an IncompatibleWeightsError if the models differ in architecture, preprocessing, tokenizer or the shapes of their
    weights, and an InputError for an alpha outside of 0 to 1.

    >>> from shiftproof import load_clip
    >>> interpolate_clip(load_clip("tiny"), load_clip("tiny")).name
    'tiny + tiny'
    """
    require_clip(clip_0, "clip_0")
    require_clip(clip_1, "clip_1")
    _require_same_towers(clip_0, clip_1)
    model = deepcopy(clip_0.model)
    model.load_state_dict(interpolate_weights(clip_0.model.state_dict(), clip_1.model.state_dict(), alpha))
    return replace(clip_0, name=f"{clip_0.name} + {clip_1.name}", model=model.eval())


def _warn_of_another_start(zero_shot: Classifier, fine_tuned: Classifier) -> None:
    # A different fingerprint alone is no mistake: there may be a linear probe of the same source between the two.
    for start in recorded_starts(fine_tuned):
        if start["source"] != zero_shot.source and not has_fingerprint(zero_shot, start["fingerprint"]):
            warnings.warn(
                f"the fine-tuned classifier was trained from {start['source']}, and the zero-shot classifier is "
                f"{zero_shot.source}. Weights can be interpolated only between a model and one that was fine-tuned "
                "from it: pass the classifier from which fine-tuning started.",
                stacklevel=3,
            )


def _require_same_towers(first: Clip, second: Clip) -> None:
    parts = {
        "architecture": ({**first.architecture, "name": ""}, {**second.architecture, "name": ""}),
        "preprocessing": (first.preprocessing, second.preprocessing),
        "context length": (first.context_length, second.context_length),
    }
    differing = [f"{what} ({one} and {other})" for what, (one, other) in parts.items() if one != other]
    # Tokenizers cannot be compared, but the tokens that they produce can.
    if not torch.equal(first.tokenizer([_PROBE]), second.tokenizer([_PROBE])):
        differing.append("tokenizer")
    if differing:
        raise IncompatibleWeightsError(
            f"the two models differ in {'; '.join(differing)}. Interpolate a model and one that was fine-tuned from it."
        )
