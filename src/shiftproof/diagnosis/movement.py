"""Task vectors layer by layer: how far fine-tuning moved each layer (Ilharco et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from shiftproof.records.comparisons import MovementRecord
from shiftproof.weights.arithmetic import is_running_statistic, require_compatible, task_products


def module_of(name: str) -> str:
    """Returns the name of the module that an entry of a state dict belongs to.

    >>> module_of("encoder.blocks.0.weight")
    'encoder.blocks.0'
    """
    return name.rpartition(".")[0] or name


def measure_movement(
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    other: Mapping[str, Tensor] | None = None,
    *,
    layer_of: Callable[[str], str] = module_of,
) -> tuple[MovementRecord, ...]:
    """Measures how far every layer moved from ``theta_0`` to ``theta_1``, in the order of the state dict.

    The arguments are state dicts, and ``theta_1 - theta_0`` is the task vector (Ilharco et al. 2023, sec. 2). Each
    layer has its Euclidean distance, the distance relative to the norm of its start, and its share of the squared
    length of the whole task vector, in [0, 1], all computed in float64. If ``other``, another fine-tuned model, is
    given, the cosine of the two task vectors is measured as well. ``layer_of`` maps the name of an entry to its layer.
    Integers, booleans and the running statistics of batch norm are left out, and a tied entry counts under each of its
    names. Raises an IncompatibleWeightsError where the state dicts differ in names, shapes or dtypes.

    >>> zero, tuned = {"a.weight": torch.zeros(2)}, {"a.weight": torch.tensor([3.0, 4.0])}
    >>> measure_movement(zero, tuned)[0].distance
    5.0
    """
    require_compatible(theta_0, theta_1, *([other] if other is not None else []))
    ends = [theta_1] if other is None else [theta_1, other]
    products: dict[str, Tensor] = {}
    norms: dict[str, float] = {}
    for name, start in theta_0.items():
        if start.is_floating_point() and not is_running_statistic(name):
            layer = layer_of(name)
            of_entry = task_products([start, *(end[name] for end in ends)])
            products[layer] = products.get(layer, torch.zeros_like(of_entry)) + of_entry
            norms[layer] = norms.get(layer, 0.0) + float(start.detach().double().square().sum())
    whole = sum(float(product[0, 0]) for product in products.values())
    return tuple(
        MovementRecord(
            layer=layer,
            distance=math.sqrt(float(product[0, 0])),
            relative=math.sqrt(float(product[0, 0]) / norms[layer]) if norms[layer] else None,
            share=float(product[0, 0]) / whole if whole else 0.0,
            cosine=_cosine(product) if other is not None else None,
        )
        for layer, product in products.items()
    )


def _cosine(product: Tensor) -> float | None:
    norms = math.sqrt(float(product[0, 0])) * math.sqrt(float(product[1, 1]))
    return max(-1.0, min(1.0, float(product[0, 1]) / norms)) if norms else None
