"""Averages of a network's weights over the steps of its training."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def debiased_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters that does not depend on their initial values.

    With e_t = decay e_(t-1) + (1 - decay) theta_t and e_0 = 0, the average is e_t / (1 - decay^t), with ``decay`` in
    [0, 1). It can therefore be one end of the alpha path: the usual average, which starts at theta_0, is the point
    alpha = 1 - decay^T between theta_0 and this average (WiSE-FT, Wortsman et al. 2022, on EMA).
    ``update_parameters(model)`` adds the weights of a step; buffers (batch-norm statistics) are those of the last step.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = debiased_ema(model, 0.5)
    >>> for weight in (3.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, weight)
    ...     average.update_parameters(model)
    >>> average.module.weight.item()
    5.0
    """

    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
        share = (1 - decay) / (1 - decay ** (int(steps) + 1))
        for mean, weight in zip(averages, weights, strict=True):
            mean.lerp_(weight, share)

    return AveragedModel(model, multi_avg_fn=update)
