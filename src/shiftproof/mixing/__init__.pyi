"""SmoothMix, CutMix, MixUp and Cutout for batches of images, with the soft targets that they need."""

from .masks import hard_mask, soft_mask
from .methods import CutMix, Cutout, MixChoice, Mixing, MixUp, SmoothMix
from .named import mixing_from, mixing_settings
from .plans import MixPlan, anchor_weights, mix_images
from .targets import contrastive_targets, mix_targets, one_hot, soft_cross_entropy

__all__ = [
    "CutMix",
    "Cutout",
    "MixChoice",
    "MixPlan",
    "MixUp",
    "Mixing",
    "SmoothMix",
    "anchor_weights",
    "contrastive_targets",
    "hard_mask",
    "mix_images",
    "mix_targets",
    "mixing_from",
    "mixing_settings",
    "one_hot",
    "soft_cross_entropy",
    "soft_mask",
]
