"""Pure arithmetic on state dicts: names to tensors in, names to tensors out; the inputs stay as they were.

Every method comes down to one coefficient per input and entry, so that the streamed files (``ensembling.files``) and
the dictionaries in memory go through the same few lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from shiftproof.errors import IncompatibleWeightsError, InputError, listed, require_at_least, require_between

# One alpha for all entries, or one for every name.
Alpha: TypeAlias = float | Mapping[str, float]
INTEGERS = ("copy", "equal")


class Entry(Protocol):
    """What must agree between inputs: a tensor has it, and so has a file's header."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> Sequence[int]: ...


def interpolate_weights(
    theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor], alpha: Alpha
) -> dict[str, Tensor]:
    """(1 - alpha) theta_0 + alpha theta_1, entry by entry: the weight-space ensemble (WiSE-FT, Eq. 1).

    ``alpha`` is one number, or one for every entry's name (``ensembling.schedules`` makes them).
    Floating-point entries are interpolated in float32 (float64 for float64) and rounded once to their own
    dtype; integers and booleans (counters, position ids) are copied from the nearer end, never averaged.
    alpha 0 and 1 return that end bit for bit, also where the other holds inf or NaN. Entries that share
    memory in both inputs (tied weights) share it in the result. ``logit_scale`` is stored as a logarithm, so that
    temperatures are interpolated in log space.

    Raises an IncompatibleWeightsError that names the entries whose name, shape or dtype differ, and an
    InputError unless 0 <= alpha <= 1.

    >>> theta = interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, alpha=0.25)
    >>> theta["w"].tolist()
    [0.25, 0.25]
    """
    require_compatible(theta_0, theta_1)
    return combine_weights((theta_0, theta_1), path_coefficients(theta_0, alpha))


def average_weights(thetas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of state dicts, entry by entry: the uniform soup (Wortsman et al., "Model soups", 2022).

    Kinds of entries, ties and errors as in ``interpolate_weights``; integers are those of the last.

    >>> average_weights([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}])
    {'w': tensor([2.])}
    """
    require_at_least("the number of state dicts", len(thetas), 1)
    require_compatible(*thetas)
    return combine_weights(thetas, soup_coefficients(thetas[0], len(thetas)))


def model_stock(theta_0: Mapping[str, Tensor], thetas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Model Stock (Jang et al., 2024): t * mean(thetas) + (1 - t) * theta_0 with a ratio t of each entry's own.

    ``thetas`` are two or more models fine-tuned from ``theta_0``; t follows from the angle between their task
    vectors (``stock_ratio``). Kinds of entries, ties and errors as in ``interpolate_weights``.

    >>> start, one, other = torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0])
    >>> t = stock_ratio(task_products([start, one, other]))
    >>> round(t, 4), [round(x, 4) for x in model_stock({"w": start}, [{"w": one}, {"w": other}])["w"].tolist()]
    (0.8284, [0.8284, 0.4142])
    """
    require_at_least("the number of fine-tuned models", len(thetas), 2)
    require_compatible(theta_0, *thetas)
    inputs = (theta_0, *thetas)
    ratios = {
        name: stock_ratio(task_products([theta[name] for theta in inputs]))
        for name, entry in theta_0.items()
        if entry.is_floating_point()
    }
    return combine_weights(inputs, stock_coefficients(theta_0, ratios, len(thetas)))


def weight_distance(theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor]) -> float:
    """The Euclidean distance between two state dicts over their floating-point entries, each counted once.

    >>> weight_distance({"w": torch.zeros(2)}, {"w": torch.tensor([3.0, 4.0])})
    5.0
    """
    require_compatible(theta_0, theta_1)
    seen: dict[tuple[object, ...], tuple[Tensor, Tensor, float]] = {}
    for name, start in theta_0.items():
        end = theta_1[name]
        if start.is_floating_point():
            square = float((end.detach().double() - start.detach().double()).square().sum())
            seen[(*_memory(start), *_memory(end))] = (start, end, square)
    return math.sqrt(sum(square for _, _, square in seen.values()))


def path_coefficients(names: Iterable[str], alpha: Alpha) -> dict[str, tuple[float, ...]]:
    """(1 - alpha, alpha) for every name; an InputError where an alpha is missing or out of range."""
    names = list(names)
    if not isinstance(alpha, Mapping):
        require_between("alpha", alpha, 0, 1)
        return dict.fromkeys(names, (1 - alpha, alpha))
    if missing := [name for name in names if name not in alpha]:
        raise InputError(f"these entries have no alpha: {listed(missing)}. Give one for every name.")
    for name in names:
        require_between(f"alpha of {name!r}", alpha[name], 0, 1)
    return {name: (1 - alpha[name], alpha[name]) for name in names}


def soup_coefficients(names: Iterable[str], count: int) -> dict[str, tuple[float, ...]]:
    """1 / count for every input and name."""
    return dict.fromkeys(names, (1 / count,) * count)


def stock_coefficients(names: Iterable[str], ratios: Mapping[str, float], count: int) -> dict[str, tuple[float, ...]]:
    """(1 - t, t / count, ...) for theta_0 and ``count`` fine-tuned inputs; entries without a ratio are theta_0's."""
    return {name: (1 - (t := ratios.get(name, 0.0)), *((t / count,) * count)) for name in names}


def is_running_statistic(name: str) -> bool:
    """Whether an entry of a state dict is what batch norm keeps of its inputs: no weight, and not trained.

    >>> is_running_statistic("trunk.bn1.running_mean"), is_running_statistic("trunk.bn1.weight")
    (True, False)
    """
    return name.endswith(("running_mean", "running_var"))


def task_products(tensors: Sequence[Tensor]) -> Tensor:
    """(N, N) float64 inner products of the task vectors of N tensors, the first of N + 1 being theta_0.

    They add up over the slices of an entry.
    """
    start = tensors[0].detach().flatten().double()
    vectors = torch.stack([tensor.detach().flatten().double() - start for tensor in tensors[1:]])
    return vectors @ vectors.T


def stock_ratio(products: Tensor) -> float:
    """Model Stock's t = N cos / (1 + (N - 1) cos), from the mean cosine between N task vectors, within [0, 1].

    Entries that no model moved have t = 0, as have those where the vectors point apart on average.

    >>> stock_ratio(torch.eye(2)), stock_ratio(torch.ones(2, 2))
    (0.0, 1.0)
    """
    count = len(products)
    norms = products.diagonal().clamp(min=0).sqrt()
    if not (norms > 0).all():
        return 0.0
    cosines = products / norms.outer(norms)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    return min(max(count * cosine / (1 + (count - 1) * cosine), 0.0), 1.0) if cosine > 0 else 0.0


def combine_weights(
    thetas: Sequence[Mapping[str, Tensor]], coefficients: Mapping[str, Sequence[float]]
) -> dict[str, Tensor]:
    """Every entry combined with its coefficients; entries that are tied in all inputs stay tied."""
    # The inputs are kept with what was made of them: memory that a lazy mapping frees would be taken for a tie.
    made: dict[tuple[object, ...], tuple[list[Tensor], Tensor]] = {}
    result = {}
    for name in thetas[0]:
        tensors = [theta[name] for theta in thetas]
        memory = (tuple(coefficients[name]), *(part for tensor in tensors for part in _memory(tensor)))
        if memory not in made:
            made[memory] = (tensors, combine(tensors, coefficients[name]))
        result[name] = made[memory][1]
    return result


def combine(tensors: Sequence[Tensor], coefficients: Sequence[float], out: Tensor | None = None) -> Tensor:
    """The sum of coefficient times tensor over the inputs, whose coefficients sum to 1; a new tensor, or ``out``.

    In float32 (float64 for float64), rounded once. Inputs with the coefficient 0 are not looked at; one with the
    coefficient 1 is copied bit for bit, and so are integers and booleans of the input with the largest (of the last
    such one).
    """
    live = [i for i, share in enumerate(coefficients) if share]
    first = tensors[live[0]].detach()
    out = torch.empty_like(first, memory_format=torch.contiguous_format) if out is None else out
    if not is_combined(first, coefficients):
        live = [max(live, key=lambda i: (coefficients[i], i))]
        return out.copy_(tensors[live[0]].detach())
    if len(live) == 2:
        return _lerp(first, tensors[live[1]].detach(), coefficients[live[1]], out)
    wide = _wide(first.dtype)
    base = first.to(wide)
    moved = torch.zeros_like(base)
    for i in live[1:]:
        # Steps away from the first, and not a sum of parts: equal inputs stay equal to the last bit.
        moved.add_(tensors[i].detach().to(wide) - base, alpha=coefficients[i])
    return _infinities_kept(out.copy_(moved.add_(base)), [tensors[i].detach() for i in live])


def is_combined(entry: Tensor, coefficients: Sequence[float]) -> bool:
    """Whether an entry is computed from several inputs, and not copied from one."""
    return (entry.is_floating_point() or entry.is_complex()) and sum(map(bool, coefficients)) > 1


def require_compatible(*inputs: Mapping[str, Entry]) -> None:
    """Raises an IncompatibleWeightsError unless names, shapes and dtypes of all inputs agree with the first's."""
    problems = []
    for number, other in enumerate(inputs[1:], 2):
        said = _differences(inputs[0], other, "the second" if len(inputs) == 2 else f"input {number}")
        problems += [said] if said else []
    if problems:
        raise IncompatibleWeightsError(
            f"the state dicts do not fit together: {'; '.join(problems)}. "
            "All must come from one architecture: strip wrapper prefixes such as 'module.', convert to one dtype, "
            "and where the heads have other classes, interpolate the encoders only."
        )


def _differences(first: Mapping[str, Entry], other: Mapping[str, Entry], called: str) -> str:
    problems = []
    if only := sorted(first.keys() - other.keys()):
        problems.append(f"only the first has {listed(only)}")
    if only := sorted(other.keys() - first.keys()):
        problems.append(f"only {called} has {listed(only)}")
    if differing := [
        f"{name} ({described(first[name])} and {described(other[name])})"
        for name in first
        if name in other and described(first[name]) != described(other[name])
    ]:
        problems.append(f"shape or dtype differ in {listed(differing)}")
    return "; ".join(problems)


def described(entry: Entry) -> str:
    """The dtype and shape of an entry, for a message."""
    return f"{str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}"


def _lerp(x: Tensor, y: Tensor, alpha: float, out: Tensor) -> Tensor:
    # torch.lerp and not (1 - a) x + a y: equal ends stay equal to the last bit. On half-precision entries it computes
    # in float32 and rounds once by itself, which spares two passes over fresh memory (a test holds it to that).
    if x.dtype.itemsize == 1 or x.dtype != y.dtype:  # float8 knows no arithmetic; what an adapter made is wide
        return _infinities_kept(out.copy_(torch.lerp(x.float(), y.float(), alpha)), [x, y])
    return _infinities_kept(torch.lerp(x, y, alpha, out=out), [x, y])


def _infinities_kept(mixed: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """What was combined, with the infinities that all inputs share (masks) put back; changes ``mixed``."""
    # Between equal infinities there is no step, so they have become NaN, which one cheap pass finds.
    if not (mixed.float() if mixed.dtype.itemsize == 1 else mixed).sum().isnan():
        return mixed
    wide = _wide(mixed.dtype)
    first, *others = (tensor.to(wide) for tensor in inputs)
    shared = first.isinf()
    for other in others:
        shared &= first == other
    return mixed.copy_(torch.where(shared, first, mixed.to(wide)))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor have in common; an empty tensor has no memory to share."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
