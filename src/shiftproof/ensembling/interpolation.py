"""The logits of a batch of images at every alpha between two classifiers, interpolated in place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import Tensor

from shiftproof.data.batches import decoded_once
from shiftproof.data.sets import ImageSet
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.ensembles import mixed_logits, wise_ft
from shiftproof.ensembling.heads import TextTowers
from shiftproof.errors import InputError
from shiftproof.evaluation.sharing import Processes
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.memory import lay_out, uses_channels_last
from shiftproof.models.precision import resolved_precision
from shiftproof.weights.arithmetic import combine, is_running_statistic, path_coefficients, require_compatible

SPACES = ("weights", "outputs")
# The logits of a batch at each of several alphas, in their order.
Along: TypeAlias = Callable[[Tensor, Sequence[float]], Iterator[Tensor]]
# The entries at an alpha that are not interpolated: a head that is rebuilt, statistics that are re-estimated.
_Replaced: TypeAlias = Callable[[float], Mapping[str, Tensor]]


def ensemble_on_path(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    alpha: float,
    *,
    device: str | torch.device = "auto",
    batch_norm_images: ImageSet | None = None,
) -> Classifier:
    """Returns the classifier that ``sweep_alpha`` measures at an alpha, in the space of weights."""
    ensemble = wise_ft(zero_shot, fine_tuned, alpha)
    if batch_norm_images is None or alpha in (0, 1):
        return ensemble
    return reestimate_batch_norm(ensemble, batch_norm_images, device=device)


def require_reestimable(classifier: Classifier, space: str) -> None:
    """Raises an InputError where a path has no averaged network whose batch norm could be re-estimated."""
    require_batch_norm(classifier)
    if space == "outputs":
        raise InputError(
            "batch norm is re-estimated for averaged weights, and in the space 'outputs' no weights are averaged. "
            "Interpolate the weights, or leave the statistics as they are."
        )


def reestimated_statistics(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    alphas: Sequence[float],
    images: ImageSet | None,
    device: str,
    processes: Processes,
) -> dict[float, dict[str, Tensor]]:
    """Returns the running statistics of every alpha between the ends, re-estimated on the images, if there are any.

    The processes share the alphas.
    """
    if images is None:
        return {}
    decoded = decoded_once(images, zero_shot.preprocessing)

    def reestimated(alpha: float) -> dict[str, Tensor]:
        ensemble = ensemble_on_path(zero_shot, fine_tuned, alpha, device=device, batch_norm_images=decoded)
        return {name: entry for name, entry in ensemble.state_dict().items() if is_running_statistic(name)}

    between = [alpha for alpha in alphas if 0 < alpha < 1]
    return dict(zip(between, processes.each(between, reestimated), strict=True))


def logits_along(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    space: str,
    device: str,
    precision: str,
    statistics: Mapping[float, Mapping[str, Tensor]],
) -> Along:
    """Returns the function from a batch to the logits of every alpha, with both ends on the device."""
    models = zero_shot, fine_tuned
    require_compatible(*(model.network.state_dict() for model in models))
    towers = TextTowers.of(models, device=device) if space == "weights" else None
    one_encoder = _one_encoder(zero_shot.network, fine_tuned.network)
    if space == "weights" and (towers or statistics or not one_encoder):
        replaced = functools.cache(functools.partial(_replaced, towers, statistics))
        return _interpolating(models, replaced, device, precision)
    first, second = (model.network_on(device=device, precision=precision) for model in models)
    if one_encoder:
        return _mixing(lambda images: _two_heads(first, second, images))
    return _mixing(lambda images: (first(images), second(images)))


def _replaced(
    towers: TextTowers | None, statistics: Mapping[float, Mapping[str, Tensor]], alpha: float
) -> dict[str, Tensor]:
    """Returns the entries at an alpha that are not interpolated."""
    return {**(towers.between(alpha).entries if towers else {}), **statistics.get(alpha, {})}


def _interpolating(models: tuple[Classifier, Classifier], replaced: _Replaced, device: str, precision: str) -> Along:
    """Moves the weights of one network along the path, batch by batch: three copies of the weights in all."""
    start = models[0]
    channels_last = uses_channels_last(start.network, device, start.channels_last)
    working = lay_out(deepcopy(start.network).to(device), channels_last).eval()
    working = working.in_precision(resolved_precision(precision, device))
    ends = [{name: entry.to(device) for name, entry in model.network.state_dict().items()} for model in models]
    tensors = working.state_dict()

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        for alpha in alphas:
            for name, shares in path_coefficients(tensors, alpha).items():
                combine([end[name] for end in ends], shares, out=tensors[name])
            for name, entry in replaced(alpha).items():
                tensors[name].copy_(entry)
            yield working(images)

    return logits


def _mixing(ends: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Along:
    """Interpolates the logits of the two ends."""

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        zero_shot, fine_tuned = ends(images)
        for alpha in alphas:
            yield mixed_logits(zero_shot, fine_tuned, alpha)

    return logits


def _two_heads(first: Network, second: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    features = first.features(images)
    return first.head(features), second.head(features)


def _one_encoder(first: Network, second: Network) -> bool:
    """Returns whether two networks differ in the head alone."""
    others = second.encoder.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.encoder.state_dict().items())
