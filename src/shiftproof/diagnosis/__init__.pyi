"""Measures of why an ensemble works: agreement, CKA, connectivity, activation maps, strong edges, backgrounds."""

from .agreement import (
    Comparison,
    compare_logits,
    diversity_contrast,
    error_consistency,
    kappa_complement,
    kl_divergence,
    margins,
    measure_agreement,
    prediction_diversity,
)
from .backgrounds import background_sets, measure_backgrounds
from .baselines import BaselineSettings, finetune_half, halves, train_baseline, train_from_scratch
from .cam import Evidence, class_activation_map, class_evidence
from .cka import CkaSums, CkaTable, linear_cka, measure_cka
from .connectivity import connectivity_of, error_barrier, measure_connectivity, measure_loss_connectivity
from .evidence import SetEvidence
from .layers import layer_names, measure_layers
from .movement import measure_movement
from .overrides import gain_beyond_both, measure_overrides, override_rates, override_rates_by_right
from .plane import measure_plane
from .strong_edge import WindowMeasurements, measure_windows, strong_edge_study
from .windows import Window, WindowSettings

__all__ = [
    "BaselineSettings",
    "CkaSums",
    "CkaTable",
    "Comparison",
    "Evidence",
    "SetEvidence",
    "Window",
    "WindowMeasurements",
    "WindowSettings",
    "background_sets",
    "class_activation_map",
    "class_evidence",
    "compare_logits",
    "connectivity_of",
    "diversity_contrast",
    "error_barrier",
    "error_consistency",
    "finetune_half",
    "gain_beyond_both",
    "halves",
    "kappa_complement",
    "kl_divergence",
    "layer_names",
    "linear_cka",
    "margins",
    "measure_agreement",
    "measure_backgrounds",
    "measure_cka",
    "measure_connectivity",
    "measure_layers",
    "measure_loss_connectivity",
    "measure_movement",
    "measure_overrides",
    "measure_plane",
    "measure_windows",
    "override_rates",
    "override_rates_by_right",
    "prediction_diversity",
    "strong_edge_study",
    "train_baseline",
    "train_from_scratch",
]
