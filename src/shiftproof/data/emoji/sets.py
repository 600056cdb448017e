"""The image sets of the emoji suites: views of the concepts of one suite in one rendition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from shiftproof.data.emoji.drawings import RENDITIONS, Concept, concepts, sprites
from shiftproof.data.emoji.views import ViewGeometry, compose, draw_backgrounds, draw_placements
from shiftproof.data.labels import ClassSpace
from shiftproof.data.sets import ImageSet, array_set, once
from shiftproof.seeding import child_generator

EMOJI_SUITES = ("emoji", "emoji-development", *(f"emoji-development-{fold}" for fold in range(1, 5)))
EMOJI_SIZE = 64
# In the reference, objects are small and anywhere in the picture; in the other renditions they are large, as drawings
# are on their page. The small ones prevent accuracy on the reference from saturating, so that fine-tuning can raise it.
EMOJI_GEOMETRY = ViewGeometry(scale=(0.26, 0.62))
EMOJI_DRAWN_GEOMETRY = ViewGeometry(scale=(0.45, 0.95))


def belongs(concept: Concept, suite: str) -> bool:
    """Whether an emoji suite consists of views of this concept, among others."""
    if suite == "emoji":
        return concept.suite == "task"
    fold = suite.removeprefix("emoji-development").removeprefix("-")
    return concept.suite == "development" and (not fold or concept.fold == int(fold))


def emoji_set(
    split: str,
    suite: str,
    classes: ClassSpace,
    positions: Sequence[int],
    views: int,
    rendition: str,
    background: str,
    seed: int,
) -> ImageSet:
    """The split of one suite: ``views`` of the concept at each of the ``positions``, drawn together when first read."""

    def render() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        generator = child_generator(seed, "emoji", suite, split)
        geometry = EMOJI_GEOMETRY if rendition == "colour" else EMOJI_DRAWN_GEOMETRY
        pixels, covers = [], []
        shown = np.repeat(np.arange(len(positions)), views)
        for start in range(0, len(shown), 256):
            batch = shown[start : start + 256]
            batch_sprites = sprites()[[positions[i] for i in batch], RENDITIONS.index(rendition)]
            drawings = torch.tensor(batch_sprites).permute(0, 3, 1, 2).float() / 255
            placements = draw_placements(len(batch), geometry, generator)
            backgrounds = draw_backgrounds(background, len(batch), EMOJI_SIZE, generator)
            images, masks = compose(drawings, placements, backgrounds)
            pixels.append((images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy())
            covers.append((masks * 255).round().to(torch.uint8).numpy())
        return np.concatenate(pixels), np.concatenate(covers)

    rendered = once(render)
    labels = np.repeat(np.arange(len(positions), dtype=np.int64), views)
    ids = [f"{classes.ids[label]}-{split}-{i % views}" for i, label in enumerate(labels)]
    groups = None
    if rendition != "colour":
        seen = ["withheld" if concepts()[i].withheld else "seen" for i in positions]
        groups = [seen[label] for label in labels]
    views_set = array_set(split, classes, ids, labels, lambda: rendered()[0], groups, lambda: rendered()[1])
    drawings = tuple(classes.ids[label] for label in labels)  # a concept is one drawing
    return replace(views_set, sources=drawings, source_kind="drawing")
