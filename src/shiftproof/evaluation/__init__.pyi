"""Predictions of a classifier, and metrics, intervals, calibration and effective robustness from them."""

from .calibration import (
    brier_score,
    brier_scores,
    calibration_error,
    calibration_interval,
    fit_temperature,
    negative_log_likelihood,
    selective_accuracy,
)
from .inference import predict, predict_batches
from .intervals import (
    accuracy_interval,
    alike_interval,
    bootstrap_interval,
    bootstrap_spreads,
    can_resample,
    contrast_interval,
    resampled_means,
    statistic_interval,
)
from .metrics import Scores, accuracy, evaluate, log_probabilities, macro_f1, scores, top_margins
from .predictions import (
    Predictions,
    StoredPredictions,
    align_predictions,
    load_predictions,
    open_predictions,
    save_predictions,
)
from .proportions import Proportion, measure_proportion, worst_group_interval
from .retrieval import recall_at
from .robustness import (
    Baseline,
    effective_interval,
    effective_robustness,
    fit_baseline,
    on_scale,
    read_baselines,
    relative_robustness,
    robustness_gap,
)
from .significance import holm_correction, mcnemar_test

__all__ = [
    "Baseline",
    "Predictions",
    "Proportion",
    "Scores",
    "StoredPredictions",
    "accuracy",
    "accuracy_interval",
    "align_predictions",
    "alike_interval",
    "bootstrap_interval",
    "bootstrap_spreads",
    "brier_score",
    "brier_scores",
    "calibration_error",
    "calibration_interval",
    "can_resample",
    "contrast_interval",
    "effective_interval",
    "effective_robustness",
    "evaluate",
    "fit_baseline",
    "fit_temperature",
    "holm_correction",
    "load_predictions",
    "log_probabilities",
    "macro_f1",
    "mcnemar_test",
    "measure_proportion",
    "negative_log_likelihood",
    "on_scale",
    "open_predictions",
    "predict",
    "predict_batches",
    "read_baselines",
    "recall_at",
    "relative_robustness",
    "resampled_means",
    "robustness_gap",
    "save_predictions",
    "scores",
    "selective_accuracy",
    "statistic_interval",
    "top_margins",
    "worst_group_interval",
]
