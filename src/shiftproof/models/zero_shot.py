"""The zero-shot head: class names in prompts, embedded by the text tower of a model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from shiftproof.data.labels import ClassSpace
from shiftproof.data.spelling import difference
from shiftproof.errors import InputError, listed, refuse_path
from shiftproof.models.classifier import Classifier, Network, starting_classifier
from shiftproof.models.clip import Clip, require_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.encoders import linear_head
from shiftproof.models.head_cache import cached_class_embeddings
from shiftproof.models.prompts import prompts_for, read_prompts, texts_of
from shiftproof.models.text_encoding import class_embeddings, token_counts

_WARNED_PAIRS = 3  # classes with equal rows that are named in full
_ROWS_AT_ONCE = 1024
_ROUNDING = 1e-6  # by which the cosine of equal rows may differ from 1


def zero_shot_classifier(
    clip: Clip,
    classes: ClassSpace,
    prompts: str | Sequence[str] | Mapping[str, Sequence[str]] = "photo",
    *,
    device: str | torch.device = "auto",
    cache: bool = True,
) -> Classifier:
    """Builds the zero-shot classifier of a model for a class space, whose head comes from the text tower.

    Each prompt of a class is embedded, normalised, averaged and normalised again, then multiplied by exp(logit_scale),
    which gives a row of the (K, D) head. The bias is SigLIP's logit bias for every class, and zero for other models; it
    can be trained (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, sec. 2).

    ``prompts`` is "photo", "short", "openai", templates, a mapping of class ids or names to prompts, or the name of a
    file with either (``read_prompts``). The head is computed on ``device``, and the classifier is on the CPU. With
    ``cache``, the embeddings of a head of thousands of prompts are stored in the cache directory. Warns of prompts that
    are empty, repeated or truncated by the text tower, and of classes with equal rows. Raises an InputError for an
    invalid template, and for a class without prompts.

    >>> from shiftproof.models.clip import load_clip
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "red_apple"]))
    >>> tuple(zero.network.head.weight.shape)
    (2, 128)
    """
    require_clip(clip)
    refuse_path("classes", classes, "a class space, e.g. ClassSpace.from_ids(['lemon', 'pear'])")
    if not len(classes):
        raise InputError("`classes` is empty. Name at least one class.")
    chosen = prompts_for(read_prompts(prompts), classes)
    texts = texts_of(chosen, classes)
    warn_of_prompts(clip, texts, classes)
    scale, bias = logit_scale_and_bias(clip)
    with torch.inference_mode():
        embed = cached_class_embeddings if cache else class_embeddings
        embeddings = embed(_on_device(clip, device), texts)
    _warn_of_equal_rows(embeddings, classes)
    tower: Any = deepcopy(clip.model.visual)
    network = Network(tower.cpu(), linear_head(scale * embeddings, bias))
    return starting_classifier(clip, network, classes, "zero-shot", scale, chosen)


def logit_scale_and_bias(clip: Clip) -> tuple[float, float]:
    """The scale of a model's logits, not its logarithm, and SigLIP's logit bias, which is 0 for other models.

    The probability that SigLIP gives to a class on its own is the sigmoid of the logit. Given that exactly one of the
    classes is in the image, the probability of each is the softmax over the logits, as for other models: the bias
    cancels in it.
    """
    bias: Tensor | None = getattr(clip.model, "logit_bias", None)
    return clip.model.logit_scale.exp().item(), 0.0 if bias is None else bias.item()  # type: ignore[operator]


def _on_device(clip: Clip, device: str | torch.device) -> Clip:
    """The model on a device: itself if it is there already, and a copy otherwise."""
    place = torch.device(resolve_device(device))
    here = next(clip.model.parameters()).device
    same = here.type == place.type and (place.index is None or here.index == place.index)
    return clip if same else replace(clip, model=deepcopy(clip.model).to(place))


def warn_of_prompts(clip: Clip, texts: Sequence[Sequence[str]], classes: ClassSpace) -> None:
    """Warns of prompts of the classes that are empty, repeated, or truncated by the text tower."""
    _warn_of_odd_prompts(texts, classes)
    _warn_of_cut_prompts(clip, texts, classes)


def _warn_of_odd_prompts(texts: Sequence[Sequence[str]], classes: ClassSpace) -> None:
    """Warns of prompts that are empty, of those that a class has twice, and of names that are empty."""
    empty = [
        class_id
        for class_id, name, of_class in zip(classes.ids, classes.names, texts, strict=True)
        if not name.strip() or not all(text.strip() for text in of_class)
    ]
    if empty:
        warnings.warn(
            f"these classes have an empty name or prompt: {listed(empty)}. Fill it in or remove it.", stacklevel=4
        )
    counts = [(class_id, Counter(of_class)) for class_id, of_class in zip(classes.ids, texts, strict=True)]
    if repeated := [(class_id, count) for class_id, count in counts if max(count.values()) > 1]:
        (text, _), *_ = repeated[0][1].most_common(1)
        warnings.warn(
            f"{len(repeated)} of {len(classes)} classes have a prompt more than once, which then counts more, e.g. "
            f"{repeated[0][0]!r} has {text!r}. Remove the repetitions.",
            stacklevel=4,
        )


def _warn_of_cut_prompts(clip: Clip, texts: Sequence[Sequence[str]], classes: ClassSpace) -> None:
    # A class's longest prompt in characters has as many tokens as any, or nearly so, and counting is slow.
    longest = [max(of_class, key=len) for of_class in texts]
    counts = token_counts(clip, longest)
    if cut := [name for name, count in zip(classes.names, counts, strict=True) if count > clip.context_length]:
        warnings.warn(
            f"the text tower reads {clip.context_length} tokens, with those that begin and end a text; longer prompts "
            f"are truncated, e.g. those of {listed(cut, 3)}. Shorten the class names or the prompts.",
            stacklevel=4,
        )


def _warn_of_equal_rows(embeddings: Tensor, classes: ClassSpace) -> None:
    """Warns of classes whose (K, D) embeddings of length 1 are equal: the text tower reads both names alike."""
    pairs = _equal_rows(embeddings)
    for first, second in pairs[:_WARNED_PAIRS]:
        names = classes.names[first], classes.names[second]
        how = f"have the same name {names[0]!r}" if names[0] == names[1] else f"differ only in {difference(*names)}"
        warnings.warn(
            f"the zero-shot rows of the classes {classes.ids[first]!r} and {classes.ids[second]!r} are equal (they "
            f"{how}), so the later class is hardly ever predicted. Merge them, or give them different names.",
            stacklevel=3,
        )
    if more := pairs[_WARNED_PAIRS:]:
        names_of_more = (f"{classes.ids[first]} / {classes.ids[second]}" for first, second in more)
        warnings.warn(f"these classes have equal zero-shot rows, too: {listed(names_of_more, 20)}.", stacklevel=3)


def _equal_rows(embeddings: Tensor) -> list[tuple[int, int]]:
    """Each row that equals an earlier one up to rounding, as (the earlier one's number, its own)."""
    pairs = []
    for start in range(0, len(embeddings), _ROWS_AT_ONCE):
        later = embeddings[start : start + _ROWS_AT_ONCE]
        equal = later @ embeddings.T > 1 - _ROUNDING
        first = equal.int().argmax(1).tolist()  # the row itself at the latest
        pairs += [(earlier, start + i) for i, earlier in enumerate(first) if earlier < start + i and equal[i, earlier]]
    return pairs
