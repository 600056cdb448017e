"""Pure arithmetic on state dicts: names to tensors in, names to tensors out; the inputs stay as they were."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shiftproof.errors import IncompatibleWeightsError, listed, require_between


def interpolate_weights(
    theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    """(1 - alpha) theta_0 + alpha theta_1, entry by entry: the weight-space ensemble (WiSE-FT, Eq. 1).

    Floating-point entries are interpolated in float32 (float64 for float64) and rounded once to their own
    dtype; integers and booleans (counters, position ids) are copied from the nearer end, never averaged.
    alpha 0 and 1 return that end bit for bit, also where the other holds inf or NaN. Entries that share
    memory in both inputs (tied weights) share it in the result.

    Raises an IncompatibleWeightsError that names the entries whose name, shape or dtype differ, and an
    InputError unless 0 <= alpha <= 1.

    >>> theta = interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, alpha=0.25)
    >>> theta["w"].tolist()
    [0.25, 0.25]
    """
    require_between("alpha", alpha, 0, 1)
    require_compatible(theta_0, theta_1)
    # The ends are kept with what was made of them: memory that a lazy mapping frees would be taken for a tie.
    made: dict[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] = {}
    result = {}
    for name, start in theta_0.items():
        end = theta_1[name]
        memory = (*_memory(start), *_memory(end))
        if memory not in made:
            made[memory] = (start, end, _interpolate(start, end, alpha))
        result[name] = made[memory][2]
    return result


def require_compatible(theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor]) -> None:
    """Raises an IncompatibleWeightsError unless names, shapes and dtypes of two state dicts agree."""
    only_0, only_1 = sorted(theta_0.keys() - theta_1.keys()), sorted(theta_1.keys() - theta_0.keys())
    problems = []
    if only_0:
        problems.append(f"only the first has {listed(only_0)}")
    if only_1:
        problems.append(f"only the second has {listed(only_1)}")
    both = [name for name in theta_0 if name in theta_1]
    differing = [
        f"{name} ({_kind(theta_0[name])} and {_kind(theta_1[name])})"
        for name in both
        if _kind(theta_0[name]) != _kind(theta_1[name])
    ]
    if differing:
        problems.append(f"shape or dtype differ in {listed(differing)}")
    if problems:
        raise IncompatibleWeightsError(
            f"the two state dicts do not fit together: {'; '.join(problems)}. "
            "Both must come from one architecture: strip wrapper prefixes such as 'module.', convert to one dtype, "
            "and where the heads have other classes, interpolate the encoders only."
        )


def _interpolate(start: Tensor, end: Tensor, alpha: float) -> Tensor:
    if alpha in (0, 1) or not (start.is_floating_point() or start.is_complex()):
        return (start if alpha < 0.5 else end).detach().clone()
    if start.is_complex():
        return torch.lerp(start.detach(), end.detach(), alpha)
    wide = torch.float64 if start.dtype == torch.float64 else torch.float32
    # lerp and not (1 - a) x + a y: equal ends stay equal to the last bit.
    x, y = start.detach().to(wide), end.detach().to(wide)
    mixed = torch.lerp(x, y, alpha)
    if not mixed.sum().isfinite():  # one cheap pass tells whether infinities need care: equal ones (masks) stay
        mixed = torch.where(x.isinf() & (x == y), x, mixed)
    return mixed.to(start.dtype)


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor have in common; an empty tensor has no memory to share."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
