"""Retrieval of captions by images, and of images by captions, after pretraining."""

from __future__ import annotations

import torch
from torch.nn import functional

from shiftproof.data.captions import CaptionedSet
from shiftproof.data.loading import normalise
from shiftproof.errors import refuse_path
from shiftproof.evaluation.retrieval import recall_at
from shiftproof.models.clip import Clip, require_clip
from shiftproof.seeding import child_generator


@torch.inference_mode()
def held_out_recall(clip: Clip, data: CaptionedSet, *, seed: int, limit: int = 5000) -> dict[str, dict[str, float]]:
    """Recall@1, @5 and @10, each in [0, 1], in both directions on at most ``limit`` pairs of held-out views.

    The views of emoji are ones that training never draws; those of files are their centre crops. The result maps
    ``image_to_text`` and ``text_to_image`` to ``recall@K``. ``seed`` draws the pairs and the views.
    """
    require_clip(clip)
    refuse_path("data", data, "captioned images, e.g. load_captioned_set('csv:PATH')")
    generator = child_generator(seed, "held-out")
    order = torch.randperm(len(data), generator=generator)[:limit].tolist()
    image_features, text_features = [], []
    device = next(clip.model.parameters()).device
    for start in range(0, len(order), 256):
        images, captions = data.batch(order[start : start + 256], clip.preprocessing, generator, train=False)
        inputs = normalise(images, clip.preprocessing).to(device)
        image_features.append(clip.model.encode_image(inputs, normalize=True))  # type: ignore[operator]
        text_features.append(functional.normalize(clip.encode_text(captions), dim=-1))
    to_text = recall_at(torch.cat(image_features), torch.cat(text_features))
    to_image = recall_at(torch.cat(text_features), torch.cat(image_features))
    return {
        "image_to_text": {f"recall@{k}": value for k, value in to_text.items()},
        "text_to_image": {f"recall@{k}": value for k, value in to_image.items()},
    }
