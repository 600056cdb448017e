"""The losses of image-text pairs: softmax (Radford et al. 2021, arXiv 2103.00020) and sigmoid (Zhai et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from shiftproof.errors import InputError, counted


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over the N x N similarities, whose diagonal holds the matching pairs (a scalar).

    This is the loss of CLIP (Radford et al. 2021, fig. 3): the mean of the cross-entropies from image to text and from
    text to image. Both features are (N, D) and of length 1; ``logit_scale`` is the factor itself, not its logarithm.
    ``targets`` (N, N), as ``contrastive_targets`` makes them, state instead how much of caption j is in image i. Rows
    are the targets from image to text, columns those from text to image. Each is divided by its sum; one that sums to
    0, such as a caption that is in no image, is left out of the mean.

    Raises an InputError where ``targets`` have another shape than the similarities, and for fewer than two pairs, whose
    loss is 0 whatever the features are.

    >>> features = torch.eye(2)
    >>> round(contrastive_loss(features, features, torch.tensor(1.0)).item(), 4)
    0.3133
    """
    if len(image_features) < 2:
        raise InputError(
            f"the batch has {counted(len(image_features), 'pair')}; a contrastive loss compares each image with the "
            "captions of others, so it needs at least 2. Use a larger batch."
        )
    logits = logit_scale * image_features @ text_features.T
    if targets is not None:
        _require_shape_of_logits(targets, logits)
        targets = targets.to(logits)
        return (_shared_cross_entropy(logits, targets) + _shared_cross_entropy(logits.T, targets.T)) / 2
    diagonal = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, diagonal) + functional.cross_entropy(logits.T, diagonal)) / 2


def sigmoid_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    targets: Tensor | None = None,
) -> Tensor:
    """The sum over all N x N pairs of the loss of "does this caption describe this image?", divided by N (a scalar).

    This is the loss of SigLIP (Zhai et al. 2023, arXiv 2303.15343, eq. 1): the sum of -log sigmoid(z (t x.y + b)), with
    z = 1 for the matching pairs on the diagonal and -1 for all others. Both features are (N, D) and of length 1;
    ``logit_scale`` is t itself, not its logarithm. ``targets`` (N, N), between 0 and 1, state instead how much of
    caption j's class is in image i: z becomes the mean over the two answers. Raises an InputError where ``targets``
    have another shape than the similarities.

    >>> features = torch.eye(2)
    >>> round(sigmoid_loss(features, features, torch.tensor(1.0), torch.tensor(0.0)).item(), 4)
    1.0064
    """
    logits = logit_scale * image_features @ text_features.T + logit_bias
    if targets is None:
        targets = torch.eye(len(logits), device=logits.device)
    _require_shape_of_logits(targets, logits)
    summed = functional.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum")
    return summed / len(logits)


def _require_shape_of_logits(targets: Tensor, logits: Tensor) -> None:
    if targets.shape != logits.shape:
        raise InputError(
            f"targets have the shape {tuple(targets.shape)}; they must be {tuple(logits.shape)}: images, captions."
        )


def _shared_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with rows of targets that need not sum to 1."""
    sums = targets.sum(1)
    counted = sums > 0
    return functional.cross_entropy(logits[counted], targets[counted] / sums[counted, None])
