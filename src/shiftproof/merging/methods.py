"""What a merge of files does: settings, and from them the coefficients of every entry."""

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

# Every method with the paper that it comes from.
METHODS: Mapping[str, str] = {
    "linear": "WiSE-FT (Wortsman et al., Robust fine-tuning of zero-shot models, 2022), Eq. 1",
    "uniform": "Model soups (Wortsman et al., 2022), uniform soup",
    "greedy": "Model soups (Wortsman et al., 2022), Recipe 1",
    "model-stock": "Model Stock (Jang et al., 2024)",
}
MISSING = ("error", "keep")


@dataclass(frozen=True)
class MergeSettings:
    """How checkpoints are merged; one output for each of ``alphas``, which only the linear method reads.

    ``layers`` maps name patterns to alphas of their own; ``depth`` is the alpha of the first and of the last layer, a
    straight line between them, in place of ``alphas``. ``integers`` are copied from the nearer input or required
    equal. Entries that an input lacks are an error, or kept from the input that has them. ``shard_size`` is in bytes.
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
            raise InputError("alpha is empty; give one at least.")
        for alpha in self.alphas:
            require_between("alpha", alpha, 0, 1)
        if self.shard_size is not None:
            require_at_least("shard_size", self.shard_size, 1)
        if self.depth and (self.layers or len(self.alphas) > 1):
            raise InputError("depth gives every entry its alpha. Leave out layers and further alphas.")
        if self.method != "linear" and (self.layers or self.depth):
            raise InputError(f"the method {self.method!r} reads no alpha. Leave out layers and depth.")

    def require_inputs(self, count: int) -> None:
        """Raises an InputError unless the method can take so many inputs."""
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

    ``alpha`` is the linear method's, None where the method knows none; with ``layered``, entries have alphas of their
    own, and it is that of the others.
    """

    alpha: float | None
    coefficients: Mapping[str, tuple[float, ...]]
    layered: bool = False


def plans_of(
    settings: MergeSettings, inputs: Sequence[Mapping[str, Tensor]], names: Sequence[str], members: Sequence[int] = ()
) -> list[Plan]:
    """The outputs that settings ask for; ``members`` are the inputs that a greedy soup has taken."""
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
    """The mean of some of ``count`` inputs."""
    return dict.fromkeys(names, tuple(1 / len(members) if i in members else 0.0 for i in range(count)))


def _ratio(tensors: Sequence[Tensor], size: int = 1 << 21) -> float:
    """Model Stock's ratio of one entry, its inner products summed over slices."""
    flat = [tensor.reshape(-1) for tensor in tensors]
    products = torch.zeros(len(flat) - 1, len(flat) - 1, dtype=torch.float64)
    for start in range(0, len(flat[0]), size):
        products += task_products([part[start : start + size] for part in flat])
    return stock_ratio(products)
