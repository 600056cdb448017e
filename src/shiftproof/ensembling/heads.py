"""The head of combined classifiers whose text towers were fine-tuned: it is rebuilt from the combined text towers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from shiftproof.errors import InputError, listed
from shiftproof.models.classifier import Classifier
from shiftproof.models.clip import load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.text_towers import rebuilt_head, source_clip, text_weights, with_text
from shiftproof.weights.arithmetic import interpolate_weights

# One text tower from those of several classifiers, in the order of the classifiers.
Combination: TypeAlias = Callable[[Sequence[Mapping[str, Tensor]]], dict[str, Tensor]]
_WRITTEN_BY_TEXT = ("zero-shot", "rebuilt")


@dataclass(frozen=True)
class RebuiltHead:
    """A head as state-dict entries, the logit scale that is folded into it, and the text tower that wrote it."""

    entries: Mapping[str, Tensor]
    logit_scale: float
    text: Mapping[str, Tensor]


class TextTowers:
    """The text towers of several classifiers, from which the head of their combination is rebuilt.

    A fine-tuned text tower writes a different head than the zero-shot one (FLYP, Goyal et al. 2023, arXiv 2212.00638).
    The average of two such heads is not the head that the averaged text tower writes, so the towers are combined, and
    the combined tower writes the head.

    Raises an InputError if a text tower is missing, if one of the heads is of another kind (trained, for example), or
    if the heads were written for different prompts or class names.
    """

    def __init__(self, classifiers: Sequence[Classifier], *, device: str | torch.device) -> None:
        _require_heads_by_text(classifiers)
        self._classifiers, self._device = tuple(classifiers), resolve_device(device)
        seed = next((int(c.training["seed"]) for c in classifiers if "seed" in c.training), 0)
        sources = [source_clip(c, seed=seed) if c.text is None else None for c in classifiers]
        first = next((clip for clip in sources if clip is not None), None)
        self._clip = first or load_clip(classifiers[0].source, seed=seed)
        self._texts = [
            text_weights(clip) if clip is not None else dict(classifier.text or {})
            for classifier, clip in zip(classifiers, sources, strict=True)
        ]

    @classmethod
    def of(cls, classifiers: Sequence[Classifier], *, device: str | torch.device) -> TextTowers | None:
        """Returns the text towers, or None if no head was rebuilt, in which case heads are combined as weights are."""
        return cls(classifiers, device=device) if any(c.head == "rebuilt" for c in classifiers) else None

    @property
    def texts(self) -> tuple[Mapping[str, Tensor], ...]:
        """The weights of the text towers, in the order of the classifiers."""
        return tuple(self._texts)

    def between(self, alpha: float) -> RebuiltHead:
        """Returns the head at an alpha between two classifiers; at 0 and 1 it is that of one of them, bit for bit."""
        same_as = int(alpha) if alpha in (0, 1) else None
        return self.rebuild(lambda texts: interpolate_weights(texts[0], texts[1], alpha), same_as)

    @torch.inference_mode(False)  # so that the bits do not depend on the caller's mode
    def rebuild(self, combination: Combination, same_as: int | None = None) -> RebuiltHead:
        """Returns the head that the combined text tower writes; it is that of the classifier ``same_as``, if given."""
        text = combination(self._texts)
        if same_as is not None:
            end = self._classifiers[same_as]
            return RebuiltHead(
                {f"head.{n}": t for n, t in end.network.head.state_dict().items()}, end.logit_scale, text
            )
        clip = with_text(self._clip, text)
        clip.model.to(self._device)
        return RebuiltHead(*rebuilt_head(clip, self._classifiers[0]), text)


def with_combined_weights(
    first: Classifier, weights: Mapping[str, Tensor], rebuilt: RebuiltHead | None, **fields: Any
) -> Classifier:
    """Returns the first of several classifiers with their combined weights, and with the rebuilt head, if any."""
    if rebuilt is not None:
        weights = {**weights, **rebuilt.entries}
        fields |= {"head": "rebuilt", "logit_scale": rebuilt.logit_scale, "text": rebuilt.text}
    return first.with_weights(weights, **fields)


def _require_heads_by_text(classifiers: Sequence[Classifier]) -> None:
    if lacking := [c.source for c in classifiers if c.head == "rebuilt" and c.text is None]:
        raise InputError(
            f"a fine-tuned text tower wrote the head of a classifier of {listed(lacking)}, and that text tower is "
            "missing (`text` is None). Averaging the heads would give another model: load the classifier from a "
            "directory that contains text_tower.safetensors."
        )
    if others := sorted({c.head for c in classifiers} - set(_WRITTEN_BY_TEXT)):
        raise InputError(
            f"some of the classifiers have a head that a fine-tuned text tower wrote, and others have a head that is "
            f"{' or '.join(others)}. No text tower writes a head between these: combine classifiers of the same "
            "recipe, or average their outputs."
        )
    first = classifiers[0]
    if any((c.prompts, c.classes.names) != (first.prompts, first.classes.names) for c in classifiers):
        raise InputError(
            "the heads of the classifiers were written for different prompts or class names. Combine classifiers that "
            "were fine-tuned with the same ones."
        )
