"""The two towers of a zero-shot model, as contrastive training calls them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shiftproof.training.engine import MAX_LOGIT_SCALE


class TwoTowers(nn.Module):
    """A zero-shot model as it is trained: (B, 3, size, size) images and (B, L) tokens to features of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if (bias := getattr(model, "logit_bias", None)) is not None:  # SigLIP's bias cancels in this loss
            bias.requires_grad_(False)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The (B, D) features of the images and of the texts, and the logit scale itself, not its logarithm."""
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        text_features = self.model.encode_text(texts, normalize=True)  # type: ignore[operator]
        return image_features, text_features, self.model.logit_scale.exp()  # type: ignore[operator]

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keeps the logit scale within CLIP's bounds, 1 to 100; call it after every step."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)  # type: ignore[operator]
