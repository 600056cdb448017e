"""Pure arithmetic on state dicts, which map names to tensors; the inputs are never changed.

Every method comes down to one coefficient per input and entry, so that streamed files (``merging.files``) and
dictionaries in memory go through the same few lines.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from shiftproof.errors import IncompatibleWeightsError, InputError, listed, require_at_least, require_between

# One alpha for all entries, or an alpha for every name.
Alpha: TypeAlias = float | Mapping[str, float]
INTEGERS = ("copy", "equal")


class Entry(Protocol):
    """What must agree between inputs; tensors have it, and so do the headers of files."""

    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def shape(self) -> Sequence[int]: ...


def interpolate_weights(
    theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor], alpha: Alpha
) -> dict[str, Tensor]:
    """Returns (1 - alpha) theta_0 + alpha theta_1, entry by entry, which is the weight-space ensemble.

    This is Eq. 1 of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903). ``alpha`` is a number from 0 to 1, or maps the
    name of every entry to one (``weights.schedules`` makes such maps). Floating-point entries are interpolated in
    float32 (float64 in float64) and rounded once to their dtype. Integers and booleans, such as counters and position
    ids, are copied from the nearer end and never averaged. An alpha of 0 or 1 returns that end bit for bit, even if the
    other contains inf or NaN. Entries that share memory in both inputs (tied weights) share it in the result.
    ``logit_scale`` is stored as a logarithm, so it is interpolated in log space.

    Raises an IncompatibleWeightsError that lists the entries whose name, shape or dtype differ, and an InputError if
    alpha is not between 0 and 1.

    >>> theta = interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, alpha=0.25)
    >>> theta["w"].tolist()
    [0.25, 0.25]
    """
    require_compatible(theta_0, theta_1)
    return combine_weights((theta_0, theta_1), path_coefficients(theta_0, alpha))


def average_weights(thetas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the mean of one or more state dicts, entry by entry, which is the uniform soup.

    See "Model soups" (Wortsman et al. 2022, arXiv 2203.05482, sec. 2). Dtypes, ties and errors are as in
    ``interpolate_weights``; integers are copied from the last state dict.

    >>> average_weights([{"w": torch.tensor([0.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([5.0])}])
    {'w': tensor([2.])}
    """
    require_at_least("the number of state dicts", len(thetas), 1)
    require_compatible(*thetas)
    return combine_weights(thetas, soup_coefficients(thetas[0], len(thetas)))


def model_stock(theta_0: Mapping[str, Tensor], thetas: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns t * mean(thetas) + (1 - t) * theta_0, with a ratio t for each entry, as Model Stock computes it.

    ``thetas`` are two or more models that were fine-tuned from ``theta_0``. The ratio follows from the angles between
    their task vectors (``stock_ratio``; Jang et al. 2024, arXiv 2403.19522). Dtypes, ties and errors are as in
    ``interpolate_weights``.

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
    """Returns the Euclidean distance between two state dicts over their floating-point entries, each counted once.

    Raises an IncompatibleWeightsError that lists the entries whose name, shape or dtype differ.

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
    """Returns (1 - alpha, alpha) for every name; raises an InputError if an alpha is missing or not in 0 to 1."""
    names = list(names)
    if not isinstance(alpha, Mapping):
        require_between("alpha", alpha, 0, 1)
        return dict.fromkeys(names, (1 - alpha, alpha))
    if missing := [name for name in names if name not in alpha]:
        raise InputError(f"these entries have no alpha: {listed(missing)}. Pass one for every name.")
    for name in names:
        require_between(f"alpha of {name!r}", alpha[name], 0, 1)
    return {name: (1 - alpha[name], alpha[name]) for name in names}


def soup_coefficients(names: Iterable[str], count: int) -> dict[str, tuple[float, ...]]:
    """Returns 1 / count for every input and name."""
    return dict.fromkeys(names, (1 / count,) * count)


def stock_coefficients(names: Iterable[str], ratios: Mapping[str, float], count: int) -> dict[str, tuple[float, ...]]:
    """Returns (1 - t, t / count, ...) for theta_0 and ``count`` fine-tuned inputs; without a ratio, t is 0."""
    return {name: (1 - (t := ratios.get(name, 0.0)), *((t / count,) * count)) for name in names}


def is_running_statistic(name: str) -> bool:
    """Returns whether an entry of a state dict is a running statistic of batch norm, which is not a trained weight.

    >>> is_running_statistic("trunk.bn1.running_mean"), is_running_statistic("trunk.bn1.weight")
    (True, False)
    """
    return name.endswith(("running_mean", "running_var"))


def task_products(tensors: Sequence[Tensor]) -> Tensor:
    """Returns the (N, N) float64 inner products of N task vectors; the first of the N + 1 tensors is theta_0.

    The products of an entry are the sums of those of its slices.
    """
    start = tensors[0].detach().flatten().double()
    vectors = torch.stack([tensor.detach().flatten().double() - start for tensor in tensors[1:]])
    return vectors @ vectors.T


def stock_ratio(products: Tensor) -> float:
    """Returns Model Stock's t = N cos / (1 + (N - 1) cos), in [0, 1], from (N, N) ``products`` of task vectors.

    ``cos`` is the mean cosine between two of them (Jang et al. 2024, arXiv 2403.19522). The ratio is 0 if a model did
    not change the entry, or if the mean cosine is not positive.

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
    """Combines every entry with its coefficients; entries that are tied in all inputs stay tied.

    Warns of entries that are tied in some input and whose results differ.
    """
    # The inputs are stored beside each result: if a lazy mapping freed them, reused memory would look like a tie.
    made: dict[tuple[object, ...], tuple[list[Tensor], Tensor]] = {}
    result = {}
    first_names: list[dict[tuple[object, ...], str]] = [{} for _ in thetas]
    ties: dict[tuple[str, str], None] = {}
    for name in thetas[0]:
        tensors = [theta[name] for theta in thetas]
        memories = [_memory(tensor) for tensor in tensors]
        earlier = [names.setdefault(of, name) for names, of in zip(first_names, memories, strict=True)]
        ties |= dict.fromkeys((name, first) for first in earlier if first != name)
        memory = (tuple(coefficients[name]), *(part for of in memories for part in of))
        if memory not in made:
            made[memory] = (tensors, combine(tensors, coefficients[name]))
        result[name] = made[memory][1]
    _warn_of_lost_ties(result, ties)
    return result


def _warn_of_lost_ties(result: Mapping[str, Tensor], ties: Iterable[tuple[str, str]]) -> None:
    if lost := [f"{name} = {first}" for name, first in ties if not _equal(result[name], result[first])]:
        warnings.warn(
            f"these entries are tied in an input and differ in the result: {listed(lost)}. "
            "Load it into a model that does not tie them, or give all inputs the same ties and alphas.",
            stacklevel=3,
        )


def _equal(first: Tensor, second: Tensor) -> bool:
    return first is second or (first.shape == second.shape and torch.equal(first, second))


def combine(tensors: Sequence[Tensor], coefficients: Sequence[float], out: Tensor | None = None) -> Tensor:
    """Returns the sum of coefficient times tensor over the inputs, in ``out`` or a new tensor.

    The coefficients sum to 1. The sum is computed in float32 (float64 in float64) and rounded once. Inputs with the
    coefficient 0 are not read, and an input with the coefficient 1 is copied bit for bit. Integers and booleans are
    copied from the input with the largest coefficient, the last of several.
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
        # Differences from the first input are added up, not the inputs, so that equal inputs stay equal to the bit.
        moved.add_(tensors[i].detach().to(wide) - base, alpha=coefficients[i])
    return _infinities_kept(out.copy_(moved.add_(base)), [tensors[i].detach() for i in live])


def is_combined(entry: Tensor, coefficients: Sequence[float]) -> bool:
    """Returns whether an entry is computed from several inputs rather than copied from one."""
    return (entry.is_floating_point() or entry.is_complex()) and sum(map(bool, coefficients)) > 1


def require_compatible(*inputs: Mapping[str, Entry]) -> None:
    """Raises an IncompatibleWeightsError unless all inputs agree in names, shapes and dtypes with the first."""
    problems = []
    for number, other in enumerate(inputs[1:], 2):
        if problem := _differences(inputs[0], other, "the second" if len(inputs) == 2 else f"input {number}"):
            problems.append(problem)
    if problems:
        raise IncompatibleWeightsError(
            f"the state dicts do not fit together: {'; '.join(problems)}. "
            "All must come from one architecture: strip wrapper prefixes such as 'module.', convert to one dtype, "
            "and if the heads have different classes, interpolate only the encoders."
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
    """Returns the dtype and shape of an entry, as a message names them."""
    return f"{str(entry.dtype).removeprefix('torch.')} {list(entry.shape)}"


def _lerp(x: Tensor, y: Tensor, alpha: float, out: Tensor) -> Tensor:
    # With torch.lerp, unlike (1 - a) x + a y, equal ends stay equal to the last bit. On half-precision entries it
    # computes in float32 and rounds once, which a test checks, and so saves two passes over new memory.
    if x.dtype.itemsize == 1 or x.dtype != y.dtype:  # float8 has no arithmetic; adapted weights are in float32
        return _infinities_kept(out.copy_(torch.lerp(x.float(), y.float(), alpha)), [x, y])
    return _infinities_kept(torch.lerp(x, y, alpha, out=out), [x, y])


def _infinities_kept(mixed: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """Restores the infinities that all inputs share, as masks do, in the combined entry ``mixed``."""
    # The difference between equal infinities is NaN. One cheap pass detects whether there is any.
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
    """Returns what identifies the memory of a tensor; an empty tensor has none that it could share."""
    if tensor.numel() == 0:
        return (id(tensor),)
    return (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
