"""A linear probe: logistic regression on cached features by L-BFGS, its penalty chosen on the validation split.

It gives a head to a network that has none for the task, and in the recipes it trains the head of a start.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches, training_batches
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.errors import InputError, require_between
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.encoders import Encoder
from shiftproof.models.heads import unlearned_classifier

# From one that hardly lets the head move to one where the training images alone determine it.
PENALTIES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_VIEWS = 2  # random crops of every training image whose features are cached
_BATCH = 256
_ITERATIONS = 1000


@dataclass(frozen=True)
class Head:
    """A linear head: (K, D) weight and (K,) bias, float32."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class ProbeCrops:
    """The random crops whose features are cached: the range of their area, their augmentations, and their seed."""

    scale: tuple[float, float] = (0.9, 1.0)
    augment: tuple[Any, ...] = ()
    seed: int = 0


# A start depends neither on the settings of a fine-tuning nor on the run's seed.
_START_CROPS = ProbeCrops()


@dataclass(frozen=True)
class _Features:
    """The (N, D) features of random crops and their (N,) labels, and those of the validation split."""

    train: Tensor
    labels: Tensor
    validation: Tensor
    validation_labels: NDArray[np.int64]


class ProbeTrial(NamedTuple):
    """One penalty, and the validation accuracy of its head, in [0, 1]."""

    penalty: float
    validation: float


def logistic_head(features: Tensor, labels: Tensor, start: Head, penalty: float, begin: Head | None = None) -> Head:
    """The head that minimises mean cross-entropy + penalty / 2 ||W - W_0||^2 + penalty / 2 ||b - b_0||^2.

    ``features`` are (N, D), ``labels`` (N,) class positions, and ``start`` is the head (W_0, b_0). The penalty pulls to
    ``start`` and not to 0, since the alpha path begins there. The problem is convex: ``begin``, the initial head of the
    search, affects its duration and not its result. Raises an InputError where ``penalty`` is not above 0.

    >>> features, labels = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
    >>> head = logistic_head(features, labels, Head(torch.zeros(2, 1), torch.zeros(2)), 0.1)
    >>> bool(head.weight[0] > head.weight[1])
    True
    """
    require_between("penalty", penalty, 1e-30, 1e30)
    origin = torch.cat([start.weight, start.bias[:, None]], 1).double()
    inputs = torch.cat([features, torch.ones(len(features), 1)], 1).double()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        theta = torch.from_numpy(flat.copy()).view_as(origin).requires_grad_()
        loss = functional.cross_entropy(inputs @ theta.T, labels) + penalty / 2 * (theta - origin).square().sum()
        (gradient,) = torch.autograd.grad(loss, theta)
        return loss.item(), gradient.flatten().numpy()

    first = origin if begin is None else torch.cat([begin.weight, begin.bias[:, None]], 1).double()
    # The gradient must be small compared with the penalty's, which is tiny where the penalty is.
    options = {"maxiter": _ITERATIONS, "maxfun": 2 * _ITERATIONS, "ftol": 1e-15, "gtol": min(1e-3 * penalty, 1e-5)}
    solution = minimize(objective, first.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    theta = torch.from_numpy(solution.x).view_as(origin).float()
    return Head(theta[:, :-1].clone(), theta[:, -1].clone())


def probed(
    start: Classifier,
    train: ImageSet,
    validation: ImageSet,
    crops: ProbeCrops,
    *,
    device: str | torch.device = "auto",
) -> tuple[Classifier, tuple[ProbeTrial, ...]]:
    """The start with a head from logistic regression, and the trials of the penalty, from the largest.

    Features are those of random crops, as in training. The penalty is the one whose head is best on the validation
    split, or the larger of equals. Raises an InputError where the start's features are not finite.
    """
    sets = _cached_features(start, train, validation, crops, device)
    origin = Head(start.network.head.weight.detach().cpu(), start.network.head.bias.detach().cpu())
    best, trials = _best_head(sets, origin)
    return _with_head(start, best), trials


def probe_classifier(
    encoder: Encoder, train: ImageSet, validation: ImageSet, *, device: str | torch.device = "auto"
) -> Classifier:
    """The network with a linear head for the classes of ``train``, by logistic regression on its features.

    This is the start, theta_0, of a network without a text tower. The penalty is chosen on ``validation``, with
    features that are centred and scaled to a mean square length of 1, so that it does not depend on the network's
    scale; the head that results takes the features as they are. The crops of ``train`` are the same in every call: the
    same images give the same start. The trials of the penalty are in ``training["probe"]``.

    Raises an InputError where the features are no vectors or not finite.

    >>> from shiftproof import load_encoder, load_suite
    >>> reference = load_suite("emoji").reference
    >>> some = reference.train.subset(range(20))
    >>> probe_classifier(load_encoder("timm:test_resnet"), some, some, device="cpu").head
    'probe'
    """
    require_set(train)
    require_set(validation)
    blank = unlearned_classifier(encoder, train.classes)
    sets = _cached_features(blank, train, validation, _START_CROPS, device)
    centre = sets.train.double().mean(0)
    scale = float((sets.train.double() - centre).square().sum(1).mean().sqrt()) or 1.0  # 0 where all are alike
    train_features, held_out = (_scaled(part, centre, scale) for part in (sets.train, sets.validation))
    origin = Head(blank.network.head.weight.detach(), blank.network.head.bias.detach())
    best, trials = _best_head(replace(sets, train=train_features, validation=held_out), origin)
    weight = best.weight.double() / scale
    head = Head(weight.float(), (best.bias.double() - weight @ centre).float())
    record = {"probe": [trial._asdict() for trial in trials]}
    return replace(_with_head(blank, head), head="probe", training=record)


def _scaled(features: Tensor, centre: Tensor, scale: float) -> Tensor:
    return ((features.double() - centre) / scale).float()


def _with_head(start: Classifier, head: Head) -> Classifier:
    weights = start.state_dict() | {"head.weight": head.weight, "head.bias": head.bias}
    return replace(start.with_weights(weights), head="trained")


def _best_head(sets: _Features, origin: Head) -> tuple[Head, tuple[ProbeTrial, ...]]:
    """The head of the penalty that is best on the validation features, or of the larger of equals, and all trials."""
    best, head, trials = origin, origin, list[ProbeTrial]()
    for number, penalty in enumerate(PENALTIES):
        head = logistic_head(sets.train, sets.labels, origin, penalty, begin=head)
        right = (sets.validation @ head.weight.T + head.bias).argmax(1).numpy() == sets.validation_labels
        trials.append(ProbeTrial(penalty, float(right.mean())))
        if trials[-1].validation > max((trial.validation for trial in trials[:-1]), default=-1.0):
            best = head
        progress.report("probe", number + 1, len(PENALTIES), validation=trials[-1].validation)
    return best, tuple(trials)


def _cached_features(
    start: Classifier,
    train: ImageSet,
    validation: ImageSet,
    crops: ProbeCrops,
    device: str | torch.device,
) -> _Features:
    device = resolve_device(device)
    cached, labels = _training_features(start, train, crops, device)
    held_out = _features(start, evaluation_batches(validation, start.preprocessing, _BATCH), device)
    if not torch.isfinite(cached).all():
        raise InputError("the start's features are not finite. Choose another model.")
    return _Features(cached, labels, held_out, validation.labels)


def _training_features(start: Classifier, train: ImageSet, crops: ProbeCrops, device: str) -> tuple[Tensor, Tensor]:
    places = list(range(len(train))) * _VIEWS
    batches = [places[at : at + _BATCH] for at in range(0, len(places), _BATCH)]
    pixels = training_batches(train, start.preprocessing, batches, crops.scale, seed=crops.seed, augment=crops.augment)
    return _features(start, pixels, device), torch.as_tensor(train.labels[places])


@torch.no_grad()
def _features(start: Classifier, batches: object, device: str) -> Tensor:
    network = start.network_on(device=device)
    return torch.cat([network.features(batch.to(device)).float().cpu() for batch in batches])  # type: ignore[attr-defined]
