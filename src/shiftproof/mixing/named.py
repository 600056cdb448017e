"""Mixings by name, as run files ask for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from shiftproof.errors import InputError, require_choice
from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix

MIXINGS: Mapping[str, Mixing] = {
    "smoothmix-circle": SmoothMix(kind="circle"),
    "smoothmix-square": SmoothMix(kind="square"),
    "cutmix": CutMix(),
    "cutout": Cutout(),
    "mixup": MixUp(),
}
_METHODS: Mapping[str, type[Mixing]] = {
    "smoothmix": SmoothMix,
    "cutmix": CutMix,
    "cutout": Cutout,
    "mixup": MixUp,
    "choice": MixChoice,
}


def mixing_from(asked: str | Mapping[str, Any] | Mixing, what: str = "mixing") -> Mixing | None:
    """The mixing that a run file asks for; None for "none".

    A name (``smoothmix-circle``), names with weights (``{smoothmix-circle: 2, cutmix: 1}``: a choice among them), or a
    method with its settings (``{method: smoothmix, kind: square, edge: 0.3}``).

    >>> mixing_from({"method": "cutmix", "probability": 0.5}).probability
    0.5
    """
    if isinstance(asked, Mixing):
        return asked
    if isinstance(asked, str):
        return None if require_choice(what, asked, ("none", *MIXINGS)) == "none" else MIXINGS[asked]
    if not isinstance(asked, Mapping) or not asked:
        raise InputError(f"mixing is {asked!r}; it must be a name, names with weights, or a method with its settings.")
    if "method" not in asked:
        members = tuple(mixing_from(require_choice(what, str(name), MIXINGS)) for name in asked)
        return MixChoice(mixings=[m for m in members if m], weights=[_number(w, "weight") for w in asked.values()])
    method = _METHODS[require_choice("mixing method", str(asked["method"]), _METHODS)]
    settings = {key: value for key, value in asked.items() if key != "method"}
    for key in settings:
        require_choice(f"setting of {asked['method']}", key, [entry.name for entry in fields(method)])
    try:
        if "mixings" in settings:
            settings["mixings"] = [_member(entry) for entry in settings["mixings"]]
        return method(**settings)
    except TypeError as error:
        raise InputError(f"mixing {dict(asked)!r} has a value of the wrong type ({error}).") from error


def mixing_settings(mixing: Mixing) -> dict[str, Any]:
    """The inverse of ``mixing_from``: plain values, for run files and records; settings at their default are left out.

    >>> mixing_settings(SmoothMix(edge=0.5))
    {'method': 'smoothmix', 'edge': 0.5}
    """
    method = next(name for name, kind in _METHODS.items() if kind is type(mixing))
    found: dict[str, Any] = {"method": method}
    for entry in fields(mixing):
        value = getattr(mixing, entry.name)
        if value != entry.default:
            found[entry.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mixing):
        return mixing_settings(value)
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _member(asked: Any) -> Mixing:
    if (mixing := mixing_from(asked)) is None:
        raise InputError("a choice has no member 'none'. Lower its probability instead.")
    return mixing


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the mixing's {what} {value!r} is no number.") from error
