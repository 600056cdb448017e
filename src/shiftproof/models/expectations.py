"""What weights expect of the pictures and of the network around them: their normalisation and activation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shiftproof.data.loading import Preprocessing
from shiftproof.models.names import split_weights

_TOLERANCE = 1e-4  # libraries write the same means with four to eight digits


def unexpected_settings(name: str, preprocessing: Preprocessing, architecture: Mapping[str, Any]) -> list[str]:
    """What is at odds with the weights of a model's name, a sentence each; empty if nothing is known to be.

    Weights of OpenAI and some others need QuickGELU, and normalisation with other constants than those of training
    lowers the accuracy without an error.

    >>> unexpected_settings("open_clip:ViT-B-32/openai", Preprocessing(), {"quick_gelu": True})
    []
    """
    sentences = []
    mean, std = preprocessing.mean, preprocessing.std
    if not all(0 <= value <= 1 for value in mean) or not all(0 < value <= 1 for value in std):
        sentences.append(f"The mean {mean} and deviation {std} of the pixels are not those of values from 0 to 1.")
    expected = _library_settings(name)
    for what, value in (("mean", mean), ("std", std)):
        if what in expected and not _close(value, wanted := tuple(expected[what])):
            sentences.append(f"Pictures are normalised with the {what} {value}; the weights of {name} expect {wanted}.")
    if "quick_gelu" in expected and expected["quick_gelu"] != bool(architecture.get("quick_gelu")):
        needed = "QuickGELU" if expected["quick_gelu"] else "GELU"
        sentences.append(f"The activation is not {needed}, with which the weights of {name} were trained.")
    return sentences


def has_unknown_activation(name: str, architecture: Mapping[str, Any]) -> bool:
    """Whether a name has a file in place of a tag, whose weights may need QuickGELU, which the architecture lacks.

    >>> has_unknown_activation("open_clip:ViT-B-32/tuned.pt", {"quick_gelu": False})
    True
    """
    model, file = split_weights(name)
    tag = model.partition("/")[2]
    if not model.startswith("open_clip:") or architecture.get("quick_gelu") or file is not None:
        return False  # loading a file into a model has its own warning
    return bool(tag) and not _library_settings(model)


def _library_settings(name: str) -> dict[str, Any]:
    """What open_clip or timm says about the weights of a name; empty for names whose weights they do not list."""
    model, file = split_weights(name)
    if file is not None:
        return {}
    scheme, _, rest = model.partition(":")
    if scheme == "open_clip" and "/" in rest:
        import open_clip

        architecture, _, tag = rest.partition("/")
        if not (listed := open_clip.get_pretrained_cfg(architecture, tag)):
            return {}
        named = (open_clip.get_model_config(architecture) or {}).get("quick_gelu", False)
        known = {key: listed[key] for key in ("mean", "std") if key in listed}
        return {**known, "quick_gelu": bool(listed.get("quick_gelu") or named)}
    if scheme == "timm" and "." in rest:
        import timm

        config = timm.models.get_pretrained_cfg(rest)
        return {} if config is None else {"mean": config.mean, "std": config.std}
    return {}


def _close(first: Sequence[float], second: Sequence[float]) -> bool:
    return len(first) == len(second) and all(abs(a - b) < _TOLERANCE for a, b in zip(first, second, strict=True))
