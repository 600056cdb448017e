"""The zero-shot head: class names in prompts, embedded by the text tower of a model."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.data.labels import ClassSpace
from shiftproof.data.spelling import difference
from shiftproof.errors import listed, refuse_path
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.clip import Clip, require_clip
from shiftproof.models.prompts import prompt_templates
from shiftproof.models.transformers import Tokenizer

_WARNED_PAIRS = 3  # classes with equal rows that are named in full
_ROWS_AT_ONCE = 1024
_ROUNDING = 1e-6  # by which the cosine of equal rows may differ from 1


def zero_shot_classifier(clip: Clip, classes: ClassSpace, prompts: str | Sequence[str] = "photo") -> Classifier:
    """Builds the zero-shot classifier of a model for a class space, whose head comes from the text tower.

    Each template of a class is embedded, normalised, averaged and normalised again, then multiplied by
    exp(logit_scale), which gives a row of the (K, D) head. The bias is SigLIP's logit bias for every class, and zero
    for other models; it can be trained (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903, sec. 2). ``prompts`` is
    "photo", "short", "openai", or templates. Warns of prompts that the text tower truncates and of classes with equal
    rows. Raises an InputError for an invalid template.

    >>> from shiftproof.models.clip import load_clip
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "red_apple"]))
    >>> tuple(zero.network.head.weight.shape)
    (2, 128)
    """
    require_clip(clip)
    refuse_path("classes", classes, "a class space, e.g. ClassSpace.from_ids(['lemon', 'pear'])")
    templates = prompt_templates(prompts)
    _warn_of_cut_prompts(clip, classes, templates)
    with torch.inference_mode():
        scale, bias = logit_scale_and_bias(clip)
        rows = scale * zero_shot_embeddings(clip, classes.names, templates)
    _warn_of_equal_rows(rows / scale, classes)
    head = nn.Linear(rows.shape[1], len(classes))
    with torch.no_grad():
        head.weight.copy_(rows)
        head.bias.fill_(bias)
    network = Network(deepcopy(clip.model.visual), head)  # type: ignore[arg-type]
    network.requires_grad_(True)
    return Classifier(
        network=network.eval(),
        classes=classes,
        preprocessing=clip.preprocessing,
        architecture=clip.architecture,
        source=clip.name,
        prompts=templates,
        head="zero-shot",
        logit_scale=scale,
    )


def logit_scale_and_bias(clip: Clip) -> tuple[float, float]:
    """The scale of a model's logits, not its logarithm, and SigLIP's logit bias, which is 0 for other models.

    The probability that SigLIP gives to a class on its own is the sigmoid of the logit. Given that exactly one of the
    classes is in the image, the probability of each is the softmax over the logits, as for other models: the bias
    cancels in it.
    """
    bias: Tensor | None = getattr(clip.model, "logit_bias", None)
    return clip.model.logit_scale.exp().item(), 0.0 if bias is None else bias.item()  # type: ignore[operator]


def zero_shot_embeddings(clip: Clip, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """(K, D) class embeddings of length 1: templates embedded, normalised, averaged, normalised."""
    rows = []
    for name in names:
        embedded = clip.encode_text([template.format(name) for template in templates])
        rows.append(functional.normalize(functional.normalize(embedded, dim=-1).mean(0), dim=-1))
    return torch.stack(rows)


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


def _warn_of_cut_prompts(clip: Clip, classes: ClassSpace, templates: Sequence[str]) -> None:
    lengths = _token_counts(clip, templates)
    longest = templates[max(range(len(templates)), key=lengths.__getitem__)]
    prompts = [longest.format(name) for name in classes.names]
    if cut := [
        name
        for name, count in zip(classes.names, _token_counts(clip, prompts), strict=True)
        if count > clip.context_length
    ]:
        warnings.warn(
            f"the text tower reads {clip.context_length} tokens, with those that begin and end a text; longer prompts "
            f"are truncated, e.g. those of {listed(cut, 3)}. Shorten the class names or the templates.",
            stacklevel=3,
        )


def _token_counts(clip: Clip, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, with those that begin and end it, before it is truncated."""
    tokenizer: Any = clip.tokenizer
    if isinstance(tokenizer, Tokenizer):
        return tokenizer.lengths(texts)
    if hasattr(tokenizer, "encode"):  # open_clip's own tokenizer, which adds the two others itself
        return [len(tokenizer.encode(text)) + 2 for text in texts]
    if hasattr(tokenizer, "tokenizer"):  # one of transformers that open_clip calls
        cleaned = [tokenizer.clean_fn(text) for text in texts]
        return [len(tokens) for tokens in tokenizer.tokenizer(cleaned, verbose=False)["input_ids"]]
    return [0] * len(texts)
