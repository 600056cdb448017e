"""The two towers of a zero-shot model, as contrastive training calls them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shiftproof.training.engine import MAX_LOGIT_SCALE


class TwoTowers(nn.Module):
    """A zero-shot model as it is trained: (B, 3, size, size) images and (B, L) tokens to features of length 1.

    ``sigmoid`` says whether the model has a logit bias, and thus belongs to the sigmoid loss (SigLIP).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.sigmoid = getattr(model, "logit_bias", None) is not None

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """The (B, D) features of the images and of the texts, the logit scale, not its logarithm, and the logit bias.

        The bias is None unless ``sigmoid`` is set.
        """
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        text_features = self.model.encode_text(texts, normalize=True)  # type: ignore[operator]
        bias: Tensor | None = self.model.logit_bias if self.sigmoid else None  # type: ignore[assignment]
        return image_features, text_features, self.model.logit_scale.exp(), bias  # type: ignore[operator]

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keeps the logit scale within CLIP's bounds, 1 to 100; call it after every step.

        The sigmoid loss has no such bounds: the scale of the published SigLIP models is above 100.
        """
        if not self.sigmoid:
            self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)  # type: ignore[operator]
