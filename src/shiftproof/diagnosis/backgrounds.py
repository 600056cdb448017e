"""Objects that are pasted onto other backgrounds, to measure how much a model relies on the background.

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
from shiftproof.evaluation.intervals import LEVEL, bootstrap_interval
from shiftproof.evaluation.metrics import measure_group, scores
from shiftproof.models.classifier import Classifier
from shiftproof.records.backgrounds import BackgroundRecord, BackgroundStudy
from shiftproof.seeding import child_generator

BACKGROUND_VARIANTS = ("original", "only-foreground", "only-background", "mixed-same", "mixed-random")
NO_PARTNER = -1


@dataclass(frozen=True)
class Partners:
    """The images whose backgrounds N objects get, as (N,) positions in the set.

    ``same`` is another image of the object's class, or ``NO_PARTNER`` where there is none; ``other`` is an image of
    another class.
    """

    same: NDArray[np.int64]
    other: NDArray[np.int64]


def draw_partners(labels: NDArray[np.integer], *, seed: int = 0) -> Partners:
    """Draws the partners of (N,) labels.

    The class of ``other`` is drawn uniformly from the other classes that occur, and then the image from that class.
    Raises an InputError where only one class occurs or no class has two images.

    >>> draw_partners(np.array([0, 0, 1])).same.tolist()
    [1, 0, -1]
    """
    members = {int(label): np.flatnonzero(labels == label).tolist() for label in np.unique(labels)}
    if len(members) < 2:
        raise InputError(f"the images are of {len(members)} class(es); mixed-random needs at least 2.")
    if all(len(positions) < 2 for positions in members.values()):
        raise InputError("every class has only one image; mixed-same needs a class with at least two. Add images.")
    present = list(members)
    generator = child_generator(seed, "backgrounds")
    picks = torch.rand(len(labels), 3, generator=generator, dtype=torch.float64).tolist()
    same, other = [], []
    for i, (label, (pick, pick_class, pick_other)) in enumerate(zip(labels.tolist(), picks, strict=True)):
        of_class = members[label]
        same.append(_another(of_class, i, pick) if len(of_class) > 1 else NO_PARTNER)
        of_other_class = members[_another(present, label, pick_class)]
        other.append(of_other_class[int(pick_other * len(of_other_class))])
    return Partners(np.array(same), np.array(other))


def tiled_background(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Fills the object's box in (H, W, 3) pixels with copies of the largest strip of image beside it.

    This is Only-BG-T of Xiao et al. (2020, sec. 2). The box encloses every pixel with any coverage in the (H, W) mask
    and is filled as a whole so that the object's shape does not show; filling only the shape would leave its outline in
    any texture. Tiles preserve the background's texture, which smooth filling would not, and copying bytes makes the
    result exact. Where the box leaves no strip, it is filled with the mean colour outside the object, or with black
    where nothing is outside. Raises an InputError where the mask is empty or has another size.

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
    """Places an object on another background.

    The result has the (H, W, 3) pixels where the (H, W) mask is 255, the background where it is 0, and a blend at soft
    edges. There the new background replaces the old one in the proportion that the mask leaves to it. The old
    background is taken from the nearest pixel without coverage, so that thin lines neither fade nor have a halo; where
    the mask covers every pixel at least a little, old and new are mixed. A background of another size is resized to
    (H, W) regardless of its aspect ratio. Raises an InputError where the sizes of pixels and mask differ.

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
    rounded = wide + (2 * change + 255) // 510  # halves are rounded up
    placed: NDArray[np.uint8] = rounded.clip(0, 255).astype(np.uint8)
    return placed


def background_sets(images: ImageSet, *, seed: int = 0) -> dict[str, ImageSet]:
    """Returns the set in five variants, by name, with the objects' labels (Xiao et al. 2020, sec. 2).

    They are "original"; "only-foreground", the object on black; "only-background" (see ``tiled_background``);
    "mixed-same", the object on the tiled background of another image of its class; and "mixed-random", the object on
    that of an image of a random other class. Images are composed when they are read. Samples that are the only ones of
    their class are left out of mixed-same, with a warning. If pixels were changed after the masks were made (by a blur,
    for example), the object may show beyond its mask. Raises an InputError where the set has no masks, only one class,
    or no class with two images.

    >>> from shiftproof.data.suites import load_data
    >>> list(background_sets(load_data("emoji")))
    ['original', 'only-foreground', 'only-background', 'mixed-same', 'mixed-random']
    """
    masks = require_masks(images)
    partners = draw_partners(images.labels, seed=seed)
    paired = np.flatnonzero(partners.same != NO_PARTNER).tolist()
    if len(paired) < len(images):
        warnings.warn(
            f"{len(images) - len(paired)} of {len(images)} samples of {images.name} are the only one of their class; "
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
        "mixed-same": _mixed(images, paired, partners.same, "mixed-same"),
        "mixed-random": _mixed(images, range(len(images)), partners.other, "mixed-random"),
    }


def measure_backgrounds(
    classifiers: Mapping[str, Classifier], images: ImageSet, *, seed: int = 0, device: str | torch.device = "auto"
) -> BackgroundStudy:
    """Measures the accuracy of every classifier on every variant of a set, and its background gap.

    The gap is the accuracy on mixed-same minus that on mixed-random, in [-1, 1] (Xiao et al. 2020, "BG-Gap"). All
    classifiers see the same compositions. The 95 % interval of the gap is paired (both variants of a sample stay
    together) and resamples whole classes. Raises the InputErrors of ``background_sets``, and one without classifiers,
    with fewer than two classes of at least two images, and where a classifier's class space is not that of the set.

    >>> import shiftproof as sp
    >>> flowers = sp.load_data("emoji").subset(range(80, 96))
    >>> flowers = flowers.relabelled(sp.ClassSpace.from_ids(["tulip", "cherry_blossom"]))
    >>> zero = sp.zero_shot_classifier(sp.load_clip("tiny"), flowers.classes)
    >>> study = measure_backgrounds({"zero_shot": zero}, flowers)
    >>> study.chance, study.models["zero_shot"].gap  # on white, all backgrounds are the same
    (0.5, 0.0)
    """
    if not classifiers:
        raise InputError("`classifiers` is empty; give at least one.")
    variants = background_sets(images, seed=seed)
    if len(set(variants["mixed-same"].labels.tolist())) < 2:
        raise InputError(
            f"only one class of {images.name} has two images; the background gap needs two such classes. Add images."
        )
    positions = {sample: i for i, sample in enumerate(images.ids)}
    paired = [positions[sample] for sample in variants["mixed-same"].ids]
    correct = {variant: _correct(classifiers, data, device) for variant, data in variants.items()}
    models = {
        model: _record(
            {variant: correct[variant][model] for variant in BACKGROUND_VARIANTS}, variants, paired, images.labels
        )
        for model in classifiers
    }
    return BackgroundStudy(images.name, 1 / len(images.classes), seed, LEVEL, models)


def _another(members: Sequence[int], excluded: int, pick: float) -> int:
    """Returns the member on which ``pick`` in [0, 1) falls, of the rising members without ``excluded``."""
    place = int(pick * (len(members) - 1))
    return members[place] if members[place] < excluded else members[place + 1]


def _box(mask: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Returns top, bottom, left and right of the covered pixels; bottom and right are the first outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        raise InputError("the mask shows no object; it must be 255 on one. Fix the mask or remove the image.")
    return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


def _behind(pixels: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Returns (H, W, 3) colours: those of the nearest pixel without coverage, which may be the pixel itself."""
    if mask.all():
        return pixels
    rows, columns = distance_transform_edt(mask, return_distances=False, return_indices=True)
    behind: NDArray[np.int32] = pixels[rows, columns]
    return behind


def _mean_outside(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the (1, 1, 3) mean of the pixels without coverage, rounded."""
    outside = pixels[mask == 0]
    mean: NDArray[np.int64] = (outside.sum(0, dtype=np.int64) + len(outside) // 2) // max(len(outside), 1)
    return mean.astype(np.uint8).reshape(1, 1, 3)


def _mixed(images: ImageSet, positions: Sequence[int], partners: NDArray[np.int64], name: str) -> ImageSet:
    masks = require_masks(images)

    def change(i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        partner = int(partners[positions[i]])
        return place_object(pixels, masks(positions[i]), _background(images, partner, images.read(partner)))

    return images.subset(positions).mapped(change, name)


def _background(images: ImageSet, i: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    try:
        return tiled_background(pixels, require_masks(images)(i))
    except InputError as error:
        raise InputError(f"{images.ids[i]} of {images.name}: {error}") from error


def _require_same_size(pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> None:
    if pixels.shape[:2] != mask.shape:
        raise InputError(
            f"pixels and mask have the shapes {pixels.shape} and {mask.shape}; they must be (H, W, 3) and (H, W)."
        )


def _correct(
    classifiers: Mapping[str, Classifier], images: ImageSet, device: str | torch.device
) -> dict[str, NDArray[np.bool_]]:
    """Returns (N,) booleans for each classifier; images are composed once for all with the same preprocessing."""
    composed: dict[Preprocessing, ImageSet] = {}
    correct = {}
    for model, classifier in classifiers.items():
        preprocessing = classifier.preprocessing
        if preprocessing not in composed:
            composed[preprocessing] = decoded_once(images, preprocessing) if len(classifiers) > 1 else images
        predictions = predict(classifier, composed[preprocessing], device=device, stage="backgrounds")
        correct[model] = scores(predictions.logits, predictions.labels).prediction == predictions.labels
    return correct


def _record(
    correct: Mapping[str, NDArray[np.bool_]],
    sets: Mapping[str, ImageSet],
    paired: Sequence[int],
    labels: NDArray[np.int64],
) -> BackgroundRecord:
    gap = correct["mixed-same"].astype(np.float64) - correct["mixed-random"][paired]
    variants = {variant: measure_group(right, sets[variant].clusters.names) for variant, right in correct.items()}
    return BackgroundRecord(variants, float(gap.mean()), bootstrap_interval(gap, labels[paired]), len(gap))
