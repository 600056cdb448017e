"""Soft targets for mixed images, and the cross-entropy with them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shiftproof.errors import InputError, require_between
from shiftproof.mixing.plans import MixPlan


def mix_targets(
    labels: Tensor, plan: MixPlan, num_classes: int | None = None, *, label_smoothing: float = 0.0
) -> Tensor:
    """(B, K) float32 targets of a mixed batch, w * anchor + (1 - w) * partner, smoothed; every row sums to 1.

    ``labels`` are (B,) class positions, for which ``num_classes`` must be given, or (B, K) one-hot or soft targets.
    ``label_smoothing``, a number e between 0 and 1, turns a target t into (1 - e) * t + e / K (Szegedy et al., arXiv
    1512.00567). Raises an InputError for labels of a wrong shape, number or range.

    >>> from shiftproof.mixing.methods import SmoothMix
    >>> plan = SmoothMix(probability=0.0).plan(2, (4, 4), torch.Generator())
    >>> mix_targets(torch.tensor([1, 0]), plan, 2, label_smoothing=0.5)
    tensor([[0.2500, 0.7500],
            [0.7500, 0.2500]])
    """
    require_between("label_smoothing", label_smoothing, 0, 1)
    if labels.ndim and len(labels) != len(plan):
        raise InputError(f"there are {len(labels)} labels for a plan of {len(plan)} images; the numbers must be equal.")
    weights = plan.weights.to(labels.device)[:, None] * (1 - label_smoothing)
    partners = plan.partners.to(labels.device)
    if _are_positions(labels):
        classes = _checked_positions(labels, num_classes)
        mixed = torch.full((len(labels), num_classes or 0), label_smoothing / (num_classes or 1), device=labels.device)
        mixed.scatter_add_(1, classes[:, None], weights)
        return mixed.scatter_add_(1, classes[partners][:, None], 1 - label_smoothing - weights)
    targets = one_hot(labels, num_classes)
    smoothing = label_smoothing / targets.shape[1]
    return weights * targets + (1 - label_smoothing - weights) * targets[partners] + smoothing


def one_hot(labels: Tensor, num_classes: int | None = None) -> Tensor:
    """(B, K) float32 targets from (B,) class positions or (B, K) targets.

    Raises an InputError for positions outside 0..``num_classes`` - 1 and for rows that are negative or do not sum to 1.
    """
    if _are_positions(labels):
        return functional.one_hot(_checked_positions(labels, num_classes), num_classes or 0).float()
    if labels.ndim != 2:
        raise InputError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; they must be (B,) integers or (B, K) targets."
        )
    if num_classes is not None and labels.shape[1] != num_classes:
        raise InputError(f"targets have {labels.shape[1]} columns, num_classes is {num_classes}; they must be equal.")
    targets = labels.float()
    if not bool((targets >= 0).all()) or not bool(((targets.sum(1) - 1).abs() < 1e-3).all()):
        raise InputError("every row of (B, K) targets must be at least 0 and sum to 1. Check the labels.")
    return targets


def soft_cross_entropy(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """The cross-entropy of (B, K) logits with (B, K) targets, -sum_k t_k log softmax(z)_k, in float32.

    ``reduction`` is "mean" over the batch, "sum", or "none", which gives (B,) values. Raises an InputError if the
    shapes differ.

    >>> soft_cross_entropy(torch.zeros(1, 4), torch.tensor([[0.7, 0.3, 0.0, 0.0]]))
    tensor(1.3863)
    """
    if logits.ndim != 2 or logits.shape != targets.shape:
        raise InputError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} must have the same shape (B, K). "
            "Make targets from class positions with mix_targets or one_hot."
        )
    return functional.cross_entropy(logits.float(), targets.float(), reduction=reduction)


def contrastive_targets(plan: MixPlan, classes: Tensor | None = None) -> Tensor:
    """The (B, B) float32 shares of caption j in mixed image i; every row sums to 1.

    Mixed image i consists of w_i of image i and 1 - w_i of its partner, so row i is w_i P_i + (1 - w_i) P_partner. P is
    the identity or, with (B,) ``classes``, divides a row equally among all captions of that class, since they are not
    negatives of each other. ``contrastive_loss`` accepts the result as ``targets``. Raises an InputError for
    ``classes`` of another shape.

    >>> from shiftproof.mixing.methods import MixUp
    >>> plan = MixUp().plan(2, (4, 4), torch.Generator().manual_seed(0))
    >>> contrastive_targets(plan).sum(1)
    tensor([1., 1.])
    """
    if classes is None:
        classes = torch.arange(len(plan))
    elif classes.shape != (len(plan),):
        raise InputError(f"classes have the shape {tuple(classes.shape)}; they must be ({len(plan)},).")
    return caption_shares(plan.weights, plan.partners, classes)


def caption_shares(weights: Tensor, partners: Tensor, classes: Tensor) -> Tensor:
    """The targets of ``contrastive_targets`` from the three things that they depend on, each of shape (B,).

    ``weights`` are the shares of the images' own labels, ``partners`` the positions that the remainders come from, and
    ``classes`` the classes of the captions. Processes that share a batch gather these rather than their plans.

    >>> caption_shares(torch.tensor([0.75, 1.0]), torch.tensor([1, 0]), torch.tensor([3, 5])).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    positives = (classes[:, None] == classes[None]).float().cpu()
    positives /= positives.sum(1, keepdim=True)
    own_shares = weights[:, None].cpu()
    return own_shares * positives + (1 - own_shares) * positives[partners.cpu()]


def _are_positions(labels: Tensor) -> bool:
    return labels.ndim == 1 and not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)


def _checked_positions(labels: Tensor, num_classes: int | None) -> Tensor:
    if num_classes is None:
        raise InputError("labels are class positions, so num_classes must be given, e.g. SmoothMix(num_classes=1000).")
    if len(labels) and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        raise InputError(
            f"labels range from {int(labels.min())} to {int(labels.max())}; they must be in 0..{num_classes - 1}. "
            "Check num_classes."
        )
    return labels.long()
