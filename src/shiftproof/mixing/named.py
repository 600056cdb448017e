"""Mixings by name, as run files specify them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from shiftproof.errors import InputError, listed, require_choice
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


def mixing_from(spec: str | Mapping[str, Any] | Mixing, what: str = "mixing") -> Mixing | None:
    """The mixing that a run file specifies, or None for "none".

    It is specified by a name (``smoothmix-circle``), by names with weights (``{smoothmix-circle: 2, cutmix: 1}``, a
    choice among them) or by a method with its settings (``{method: smoothmix, kind: square, edge: 0.3}``). Raises an
    InputError for unknown names and settings and for values of the wrong type or range.

    >>> mixing_from({"method": "cutmix", "probability": 0.5}).probability
    0.5
    """
    if isinstance(spec, Mixing):
        return spec
    if isinstance(spec, str):
        return None if require_choice(what, spec, ("none", *MIXINGS)) == "none" else MIXINGS[spec]
    if not isinstance(spec, Mapping) or not spec:
        raise InputError(f"mixing is {spec!r}; it must be a name, names with weights, or a method with its settings.")
    if "method" not in spec:
        members = tuple(mixing_from(require_choice(what, str(name), MIXINGS)) for name in spec)
        return MixChoice(mixings=[m for m in members if m], weights=[_number(w, "weight") for w in spec.values()])
    method = _METHODS[require_choice("mixing method", str(spec["method"]), _METHODS)]
    settings = {key: value for key, value in spec.items() if key != "method"}
    for key in settings:
        require_choice(f"setting of {spec['method']}", key, [entry.name for entry in fields(method)])
    needed = [entry.name for entry in fields(method) if entry.default is entry.default_factory is MISSING]
    if absent := [name for name in needed if name not in settings]:
        raise InputError(f"mixing {dict(spec)!r} lacks {listed(absent)}, which {spec['method']} needs.")
    try:
        if "mixings" in settings:
            settings["mixings"] = [_member(entry) for entry in settings["mixings"]]
        return method(**settings)
    except TypeError as error:
        raise InputError(
            f"mixing {dict(spec)!r} has a value of the wrong type. Numbers are written without quotation "
            "marks, such as edge: 0.3."
        ) from error


def mixing_settings(mixing: Mixing) -> dict[str, Any]:
    """The settings from which ``mixing_from`` makes the mixing, as plain values for run files and records.

    Settings at their default are omitted. Raises an InputError for a mixing of another class than those here, since no
    run file can name it.

    >>> mixing_settings(SmoothMix(edge=0.5))
    {'method': 'smoothmix', 'edge': 0.5}
    """
    method = next((name for name, kind in _METHODS.items() if kind is type(mixing)), None)
    if method is None:
        raise InputError(
            f"the mixing {type(mixing).__name__} cannot be recorded by name. Use one of {listed(_METHODS)}, with your "
            "own settings, or mix the images in your own training loop."
        )
    settings: dict[str, Any] = {"method": method}
    for entry in fields(mixing):
        value = getattr(mixing, entry.name)
        if value != entry.default:
            settings[entry.name] = _plain(value)
    return settings


def _plain(value: Any) -> Any:
    if isinstance(value, Mixing):
        return mixing_settings(value)
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _member(spec: Any) -> Mixing:
    if (mixing := mixing_from(spec)) is None:
        raise InputError("a choice has no member 'none'. Lower its probability instead.")
    return mixing


def _number(value: Any, what: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"the mixing's {what} {value!r} is not a number.") from error
