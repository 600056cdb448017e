"""The settings of a merge of files, and the coefficients of every entry that follow from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from shiftproof.errors import InputError, require_at_least, require_between, require_choice
from shiftproof.weights.arithmetic import (
    INTEGERS,
    path_coefficients,
    soup_coefficients,
    stock_coefficients,
    stock_ratio,
    task_products,
)
from shiftproof.weights.schedules import alphas_by_depth, alphas_by_pattern

# Every method and its paper.
METHODS: Mapping[str, str] = {
    "linear": "WiSE-FT (Wortsman et al., Robust fine-tuning of zero-shot models, 2022), Eq. 1",
    "uniform": "Model soups (Wortsman et al., 2022), uniform soup",
    "greedy": "Model soups (Wortsman et al., 2022), Recipe 1",
    "model-stock": "Model Stock (Jang et al., 2024)",
}
MISSING = ("error", "keep")


@dataclass(frozen=True)
class MergeSettings:
    """How checkpoints are merged: with one output for each of ``alphas``, which only the linear method reads.

    ``method`` is linear (WiSE-FT), uniform, greedy or model-stock; ``METHODS`` names the papers. ``layers`` maps
    patterns of names to alphas that replace the others. ``depth`` holds the alphas of the first and of the last layer,
    between which alpha changes linearly, in place of ``alphas``. All alphas lie between 0 and 1. ``integers`` are
    copied from the nearer input ("copy") or must be equal ("equal"). Entries that an input lacks are an error
    ("error"), or are copied from the first input that has them ("keep"). ``shard_size`` is in bytes. Raises an
    InputError for settings out of range, or that the method does not use.
    """

    method: str = "linear"
    alphas: tuple[float, ...] = (0.5,)
    layers: Mapping[str, float] = field(default_factory=dict)
    depth: tuple[float, float] | None = None
    integers: str = "copy"
    missing: str = "error"
    shard_size: int | None = None

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        require_choice("rule for integers", self.integers, INTEGERS)
        require_choice("rule for missing entries", self.missing, MISSING)
        if not self.alphas:
            raise InputError("`alphas` is empty; give at least one alpha.")
        for alpha in self.alphas:
            require_between("alpha", alpha, 0, 1)
        if self.shard_size is not None:
            require_at_least("shard_size", self.shard_size, 1)
        if self.depth and (self.layers or len(self.alphas) > 1):
            raise InputError("`depth` sets the alpha of every entry. Leave out `layers`, and give at most one alpha.")
        if self.method != "linear" and (self.layers or self.depth):
            raise InputError(f"the method {self.method!r} does not use alpha. Leave out `layers` and `depth`.")

    def require_inputs(self, count: int) -> None:
        """Raises an InputError unless the method accepts this number of inputs."""
        allowed = {"linear": (2, 2), "uniform": (2, None), "greedy": (2, None), "model-stock": (3, None)}
        low, high = allowed[self.method]
        if count < low or (high and count > high):
            roles = {
                "linear": "the zero-shot model and the fine-tuned one",
                "model-stock": "the zero-shot model and two or more that were fine-tuned from it",
            }.get(self.method, "the models to average")
            more = "" if high else " or more"
            raise InputError(
                f"the method {self.method!r} takes {low}{more} inputs ({roles}); {count} are given. "
                f"For a soup of several models, give `method={'uniform' if self.method != 'uniform' else 'greedy'}`."
            )


@dataclass(frozen=True)
class Plan:
    """One output: the coefficients of the inputs for every entry that all of them have.

    ``alpha`` is that of the linear method, or None for other methods. If ``layered``, some entries have different
    alphas, and ``alpha`` is that of the others.
    """

    alpha: float | None
    coefficients: Mapping[str, tuple[float, ...]]
    layered: bool = False


def plans_of(
    settings: MergeSettings, inputs: Sequence[Mapping[str, Tensor]], names: Sequence[str], members: Sequence[int] = ()
) -> list[Plan]:
    """Returns the outputs that the settings describe; ``members`` are the inputs that a greedy soup has taken."""
    count = len(inputs)
    if settings.method == "uniform":
        return [Plan(None, soup_coefficients(names, count))]
    if settings.method == "greedy":
        return [Plan(None, members_coefficients(names, members, count))]
    if settings.method == "model-stock":
        floating = [name for name in names if inputs[0][name].is_floating_point()]
        ratios = {name: _ratio([tensors[name] for tensors in inputs]) for name in floating}
        return [Plan(None, stock_coefficients(names, ratios, count - 1))]
    if settings.depth:
        return [Plan(None, path_coefficients(names, alphas_by_depth(names, *settings.depth)), layered=True)]
    if settings.layers:
        by_alpha = {alpha: alphas_by_pattern(names, settings.layers, alpha) for alpha in settings.alphas}
        return [Plan(alpha, path_coefficients(names, alphas), layered=True) for alpha, alphas in by_alpha.items()]
    return [Plan(alpha, path_coefficients(names, alpha)) for alpha in dict.fromkeys(settings.alphas)]


def members_coefficients(names: Sequence[str], members: Sequence[int], count: int) -> dict[str, tuple[float, ...]]:
    """Returns the coefficients of the mean of some of ``count`` inputs."""
    return dict.fromkeys(names, tuple(1 / len(members) if i in members else 0.0 for i in range(count)))


def _ratio(tensors: Sequence[Tensor], size: int = 1 << 21) -> float:
    """Returns the ratio of Model Stock for one entry, whose inner products are summed over slices."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    products = torch.zeros(len(flat) - 1, len(flat) - 1, dtype=torch.float64)
    for start in range(0, len(flat[0]), size):
        products += task_products([part[start : start + size] for part in flat])
    return stock_ratio(products)
