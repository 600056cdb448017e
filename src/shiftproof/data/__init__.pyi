"""Image sets, suites of a reference and its shifts, corruptions, and batches of images."""

from .batches import evaluation_batches, training_batches
from .captions import CaptionedSet, load_captioned_set
from .corruptions import corrupt
from .export import export_suite
from .labels import ClassSpace
from .loading import Preprocessing
from .reading import ReadSettings
from .sets import ImageSet, array_set, load_set, unlabelled_set, with_masks
from .suites import Reference, Shift, ShiftSuite, corrupted, load_data, load_suite, own_suite
from .transforms import ImageTransform

__all__ = [
    "CaptionedSet",
    "ClassSpace",
    "ImageSet",
    "ImageTransform",
    "Preprocessing",
    "ReadSettings",
    "Reference",
    "Shift",
    "ShiftSuite",
    "array_set",
    "corrupt",
    "corrupted",
    "evaluation_batches",
    "export_suite",
    "load_captioned_set",
    "load_data",
    "load_set",
    "load_suite",
    "own_suite",
    "training_batches",
    "unlabelled_set",
    "with_masks",
]
