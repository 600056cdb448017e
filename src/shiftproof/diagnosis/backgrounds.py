"""Objects and backgrounds taken apart and put together anew: how much does a model lean on the background?

The variants are those of ImageNet-9's backgrounds challenge (Xiao et al. 2020, "Noise or Signal", arXiv 2006.09994).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from shiftproof.data.batches import decoded_once
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import ImageSet, require_masks
from shiftproof.errors import InputError
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.intervals import LEVEL, accuracy_interval, bootstrap_interval
from shiftproof.evaluation.metrics import scores
from shiftproof.models.classifier import Classifier
from shiftproof.records.accuracy import GroupRecord
from shiftproof.records.backgrounds import BackgroundRecord, BackgroundStudy
from shiftproof.seeding import child_generator

VARIANTS = ("original", "only-foreground", "only-background", "mixed-same", "mixed-random")
NO_PARTNER = -1


@dataclass(frozen=True)
class Partners:
    """Whose background each of N objects gets: (N,) positions in the set.

    ``same`` is another image of the object's class, ``NO_PARTNER`` where there is none; ``other`` is an image of
    another class.
    """

    same: NDArray[np.int64]
    other: NDArray[np.int64]


def draw_partners(labels: NDArray[np.integer], *, seed: int = 0) -> Partners:
    """Draws the partners of (N,) labels: the class with equal chances for all others that occur, then the image.

    Raises an InputError where one class alone occurs or no class has two images.

    >>> draw_partners(np.array([0, 0, 1])).same.tolist()
    [1, 0, -1]
    """
    members = {int(label): np.flatnonzero(labels == label).tolist() for label in np.unique(labels)}
    if len(members) < 2:
        raise InputError(f"the images are of {len(members)} class(es); mixed-random needs a second one.")
    if all(len(own) < 2 for own in members.values()):
        raise InputError("every class has one image only; mixed-same needs two of a class at least. Add images.")
    present = list(members)
    generator = child_generator(seed, "backgrounds")
    picks = torch.rand(len(labels), 3, generator=generator, dtype=torch.float64).tolist()
    same, other = [], []
    for i, (label, (pick, pick_class, pick_other)) in enumerate(zip(labels.tolist(), picks, strict=True)):
        own = members[label]
        same.append(_another(own, i, pick) if len(own) > 1 else NO_PARTNER)
        theirs = members[_another(present, label, pick_class)]
        other.append(theirs[int(pick_other * len(theirs))])
    return Partners(np.array(same), np.array(other))


def tiled_background(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) pixels without their object: its box is filled with the largest strip of image beside it, repeated.

    The paper's Only-BG-T. The whole box goes, every pixel with any coverage in the (H, W) mask, so that the object's
    shape does not show; a fill of the shape alone would leave its outline in any texture. Tiles keep the
    background's texture, which smooth filling would not, and copy bytes, so that the result is exact. Where the box
    leaves no strip, it is filled with the mean colour outside the object, black where nothing is. Raises an InputError
    where the mask is empty.

    >>> pixels = np.array([[[10], [20], [99]]], np.uint8).repeat(3, axis=2)
    >>> tiled_background(pixels, np.array([[0, 0, 255]], np.uint8))[0, :, 0].tolist()
    [10, 20, 10]
    """
    _require_same_size(pixels, mask)
    top, bottom, left, right = _box(mask)
    # The paper's script prefers strips in this order where they are equally large.
    strip = max((pixels[bottom:], pixels[:top], pixels[:, right:], pixels[:, :left]), key=np.size)
    if not strip.size:
        strip = _mean_outside(pixels, mask)
    height, width = pixels.shape[:2]
    repeats = (-(-height // strip.shape[0]), -(-width // strip.shape[1]), 1)
    filled = pixels.copy()
    filled[top:bottom, left:right] = np.tile(strip, repeats)[top:bottom, left:right]
    return filled


def place_object(
    pixels: NDArray[np.uint8], mask: NDArray[np.uint8], background: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """(H, W, 3) pixels where the (H, W) mask is 255, the background where it is 0, and between at a soft edge.

    There the new background takes the place of the old, in the share that the mask leaves to it. The old one is
    taken to be that of the nearest pixel without coverage, so that thin lines neither fade nor keep a halo; where
    the mask covers every pixel a little, old and new are mixed. A background of another size is resized to (H, W),
    whatever its aspect.

    >>> grey = np.full((1, 2, 3), 80, np.uint8)
    >>> place_object(grey, np.array([[255, 0]], np.uint8), np.zeros((4, 4, 3), np.uint8))[0, :, 0].tolist()
    [80, 0]
    """
    _require_same_size(pixels, mask)
    height, width = mask.shape
    if background.shape[:2] != mask.shape:
        background = np.asarray(Image.fromarray(background).resize((width, height), Image.Resampling.BICUBIC))
    wide, share = pixels.astype(np.int32), 255 - mask[:, :, None].astype(np.int32)
    change = share * (background - _behind(wide, mask))
    placed: NDArray[np.uint8] = (wide + (2 * change + 255) // 510).clip(0, 255).astype(np.uint8)  # halves go up
    return placed


def background_sets(images: ImageSet, *, seed: int = 0) -> dict[str, ImageSet]:
    """The set in five variants, by name, with the objects' labels; composed when they are read.

    ``original``; ``only-foreground`` (the object on black); ``only-background`` (``tiled_background``);
    ``mixed-same`` and ``mixed-random``: the object on the tiled background of another image of its class, and of an
    image of a random other class. Samples that are the only one of their class are left out of mixed-same, with
    a warning. Pixels that are changed after the masks were made (by a blur, say) may show the object beyond its mask.
    An InputError says what to do where the set has no masks, one class, or no class with two images.

    >>> from shiftproof.data.suites import load_data
    >>> list(background_sets(load_data("emoji")))
    ['original', 'only-foreground', 'only-background', 'mixed-same', 'mixed-random']
    """
    masks = require_masks(images)
    partners = draw_partners(images.labels, seed=seed)
    kept = np.flatnonzero(partners.same != NO_PARTNER).tolist()
    if len(kept) < len(images):
        warnings.warn(
            f"{len(images) - len(kept)} of {len(images)} samples of {images.name} are the only one of their class; "
            "mixed-same leaves them out.",
            stacklevel=2,
        )

    def black(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return place_object(pixels, masks(i), np.zeros_like(pixels))

    def empty(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return _background(images, i, pixels)

    return {
        "original": replace(images, name="original"),
        "only-foreground": images.mapped(black, "only-foreground"),
        "only-background": replace(images.mapped(empty, "only-background"), mask=None),
        "mixed-same": _mixed(images, kept, partners.same, "mixed-same"),
        "mixed-random": _mixed(images, range(len(images)), partners.other, "mixed-random"),
    }


def measure_backgrounds(
    classifiers: Mapping[str, Classifier], images: ImageSet, *, seed: int = 0, device: str | torch.device = "auto"
) -> BackgroundStudy:
    """The accuracy of every classifier on every variant of a set, and its background gap.

    All classifiers see the same compositions. The gap's interval is paired (both variants of a sample stay together)
    and resamples whole classes; it needs two classes of two images at least. Raises the InputErrors of
    ``background_sets``, and one where a classifier's class space is not the set's.

    >>> import shiftproof as sp
    >>> flowers = sp.load_data("emoji").subset(range(80, 96))
    >>> flowers = flowers.relabelled(sp.ClassSpace.from_ids(["tulip", "cherry_blossom"]))
    >>> zero = sp.zero_shot_classifier(sp.load_clip("tiny"), flowers.classes)
    >>> study = measure_backgrounds({"zero_shot": zero}, flowers)
    >>> study.chance, study.models["zero_shot"].gap  # on white, objects meet one background only
    (0.5, 0.0)
    """
    if not classifiers:
        raise InputError("classifiers is empty; name one at least.")
    variants = background_sets(images, seed=seed)
    if len(set(variants["mixed-same"].labels.tolist())) < 2:
        raise InputError(
            f"one class of {images.name} alone has two images; the background gap needs two such classes. Add images."
        )
    place = {sample: i for i, sample in enumerate(images.ids)}
    paired = [place[sample] for sample in variants["mixed-same"].ids]
    correct = {variant: _correct(classifiers, data, device) for variant, data in variants.items()}
    models = {
        model: _record({variant: correct[variant][model] for variant in VARIANTS}, paired, images.labels)
        for model in classifiers
    }
    return BackgroundStudy(images.name, 1 / len(images.classes), seed, LEVEL, models)


def _another(members: Sequence[int], own: int, pick: float) -> int:
    """The member that ``pick`` in [0, 1) falls on, of the rising members without ``own``."""
    place = int(pick * (len(members) - 1))
    return members[place] if members[place] < own else members[place + 1]


def _box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of every pixel with any coverage; bottom and right are the first outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise InputError("the mask shows no object; it must be 255 on one. Mend the mask, or take the image out.")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _behind(pixels: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """(H, W, 3) colours of the nearest pixel without coverage; a clear pixel's own."""
    if mask.all():
        return pixels
    rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
    behind: NDArray[np.int32] = pixels[rows, columns]
    return behind


def _mean_outside(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(1, 1, 3) mean of the pixels without coverage, rounded."""
    outside = pixels[mask == 0]
    mean: NDArray[np.int64] = (outside.sum(0, dtype=np.int64) + len(outside) // 2) // max(len(outside), 1)
    return mean.astype(np.uint8).reshape(1, 1, 3)


def _mixed(images: ImageSet, kept: Sequence[int], partners: NDArray[np.int64], name: str) -> ImageSet:
    masks = require_masks(images)

    def change(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        partner = int(partners[kept[i]])
        return place_object(pixels, masks(kept[i]), _background(images, partner, images.read(partner)))

    return images.subset(kept).mapped(change, name)


def _background(images: ImageSet, i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        return tiled_background(pixels, require_masks(images)(i))
    except InputError as error:
        raise InputError(f"{images.ids[i]} of {images.name}: {error}") from error


def _require_same_size(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    if pixels.shape[:2] != mask.shape:
        raise InputError(f"pixels and mask have the shapes {pixels.shape} and {mask.shape}; need (H, W, 3) and (H, W).")


def _correct(
    classifiers: Mapping[str, Classifier], images: ImageSet, device: str | torch.device
) -> dict[str, NDArray[np.bool_]]:
    """Whether each classifier is right, sample by sample; images are composed once for all that want them alike."""
    composed: dict[Preprocessing, ImageSet] = {}
    correct = {}
    for model, classifier in classifiers.items():
        wanted = classifier.preprocessing
        if wanted not in composed:
            composed[wanted] = decoded_once(images, wanted) if len(classifiers) > 1 else images
        said = predict(classifier, composed[wanted], device=device, stage="backgrounds")
        correct[model] = scores(said.logits, said.labels).prediction == said.labels
    return correct


def _record(
    correct: Mapping[str, NDArray[np.bool_]], paired: Sequence[int], labels: NDArray[np.int64]
) -> BackgroundRecord:
    gap = correct["mixed-same"].astype(np.float64) - correct["mixed-random"][paired]
    variants = {
        variant: GroupRecord(float(right.mean()), accuracy_interval(int(right.sum()), len(right)), len(right))
        for variant, right in correct.items()
    }
    return BackgroundRecord(variants, float(gap.mean()), bootstrap_interval(gap, labels[paired]), len(gap))
