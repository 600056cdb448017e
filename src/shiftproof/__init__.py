"""shiftproof: robust fine-tuning of zero-shot image models.

Fine-tune, ensemble with the zero-shot model in weight space (WiSE-FT), measure under distribution shift,
and report. The names below load on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shiftproof.data.corruptions import corrupt
    from shiftproof.data.labels import ClassSpace
    from shiftproof.data.sets import ImageSet, load_set, unlabelled_set, with_masks
    from shiftproof.data.suites import (
        Reference,
        Shift,
        ShiftSuite,
        export_suite,
        load_data,
        load_suite,
        own_suite,
    )
    from shiftproof.diagnosis.agreement import (
        diversity_contrast,
        error_consistency,
        gain_beyond_both,
        kappa_complement,
        kl_divergence,
        margins,
        measure_agreement,
        measure_overrides,
        override_rates,
        override_rates_by_right,
        prediction_diversity,
    )
    from shiftproof.diagnosis.backgrounds import background_sets, measure_backgrounds
    from shiftproof.diagnosis.baselines import (
        BaselineSettings,
        finetune_half,
        halves,
        train_baseline,
        train_from_scratch,
    )
    from shiftproof.diagnosis.cam import class_activation_map, class_evidence
    from shiftproof.diagnosis.cka import CkaSums, linear_cka, measure_cka
    from shiftproof.diagnosis.connectivity import (
        connectivity_of,
        error_barrier,
        measure_connectivity,
        measure_loss_connectivity,
    )
    from shiftproof.diagnosis.evidence import SetEvidence
    from shiftproof.diagnosis.layers import layer_names, measure_layers
    from shiftproof.diagnosis.movement import measure_movement
    from shiftproof.diagnosis.plane import measure_plane
    from shiftproof.diagnosis.strong_edge import measure_windows, strong_edge_study
    from shiftproof.diagnosis.windows import WindowSettings
    from shiftproof.ensembling.batch_norm import has_batch_norm, reestimate_batch_norm
    from shiftproof.ensembling.ensembles import OutputEnsemble, interpolate_clip, output_ensemble, wise_ft
    from shiftproof.ensembling.path import choose_alpha, compare_alphas, sweep_alpha
    from shiftproof.ensembling.soups import SoupRecord, greedy_soup, model_stock_soup, uniform_soup
    from shiftproof.errors import (
        IncompatibleWeightsError,
        InputError,
        ShiftproofError,
        TrainingError,
        TrainingInterruptedError,
    )
    from shiftproof.evaluation.calibration import (
        brier_score,
        calibration_error,
        calibration_interval,
        fit_temperature,
        negative_log_likelihood,
        selective_accuracy,
    )
    from shiftproof.evaluation.inference import predict
    from shiftproof.evaluation.intervals import (
        accuracy_interval,
        alike_interval,
        bootstrap_interval,
        bootstrap_spreads,
        can_resample,
        contrast_interval,
        resampled_means,
        statistic_interval,
    )
    from shiftproof.evaluation.metrics import accuracy, macro_f1
    from shiftproof.evaluation.predictions import (
        KeptPredictions,
        Predictions,
        align_predictions,
        load_predictions,
        open_predictions,
        save_predictions,
    )
    from shiftproof.evaluation.robustness import (
        Baseline,
        effective_interval,
        effective_robustness,
        fit_baseline,
        on_scale,
        read_baselines,
        relative_robustness,
        robustness_gap,
    )
    from shiftproof.evaluation.significance import holm_correction, mcnemar_test
    from shiftproof.finetuning.loop import few_shot, finetune
    from shiftproof.finetuning.probe import logistic_head
    from shiftproof.finetuning.recipes import class_targets, distillation_loss
    from shiftproof.finetuning.settings import FinetuneSettings
    from shiftproof.merging.files import merge_files
    from shiftproof.merging.methods import MergeSettings
    from shiftproof.mixing.masks import hard_mask, soft_mask
    from shiftproof.mixing.methods import CutMix, Cutout, MixChoice, MixUp, SmoothMix
    from shiftproof.mixing.plans import MixPlan, anchor_weights, mix_images
    from shiftproof.mixing.targets import contrastive_targets, mix_targets, one_hot, soft_cross_entropy
    from shiftproof.models.classifier import Classifier, fingerprint, own_head_classifier, zero_shot_classifier
    from shiftproof.models.clip import Clip, load_clip
    from shiftproof.models.directories import load_classifier, save_classifier
    from shiftproof.models.encoders import Encoder, load_encoder
    from shiftproof.pretraining.loop import PretrainSettings, contrastive_loss, pretrain
    from shiftproof.records.comparisons import (
        AgreementRecord,
        CkaRecord,
        ConnectivityRecord,
        FollowedRecord,
        LayersRecord,
        LossRecord,
        Measured,
        MovementRecord,
        OverrideRecord,
        PlanePoint,
        PlaneRecord,
    )
    from shiftproof.records.diagnosis import DiagnosisRecord, DiversityRecord, plain_json
    from shiftproof.records.results import AccuracyRecord, MergeRecord, PathRecord, RuleRecord, RulesRecord, RunRecord
    from shiftproof.records.studies import StudyRecord
    from shiftproof.report.page import render_report
    from shiftproof.runs.comparisons import PairFile
    from shiftproof.runs.diagnose import diagnose_run
    from shiftproof.runs.file import RunFile
    from shiftproof.runs.pipeline import run_pipeline
    from shiftproof.seeding import child_generator
    from shiftproof.studies.file import StudyFile
    from shiftproof.studies.study import run_study
    from shiftproof.weights.arithmetic import average_weights, interpolate_weights, model_stock, weight_distance
    from shiftproof.weights.schedules import alphas_by_depth, alphas_by_pattern

_MODULES = {
    "diagnosis.plane": ("measure_plane",),
    "runs.diagnose": ("diagnose_run",),
    "diagnosis.layers": (
        "layer_names",
        "measure_layers",
    ),
    "runs.comparisons": ("PairFile",),
    "records.diagnosis": (
        "DiagnosisRecord",
        "DiversityRecord",
        "plain_json",
    ),
    "diagnosis.evidence": ("SetEvidence",),
    "mixing.masks": (
        "hard_mask",
        "soft_mask",
    ),
    "mixing.methods": (
        "Cutout",
        "CutMix",
        "MixChoice",
        "MixUp",
        "SmoothMix",
    ),
    "mixing.plans": (
        "MixPlan",
        "anchor_weights",
        "mix_images",
    ),
    "mixing.targets": (
        "contrastive_targets",
        "mix_targets",
        "one_hot",
        "soft_cross_entropy",
    ),
    "diagnosis.agreement": (
        "diversity_contrast",
        "error_consistency",
        "gain_beyond_both",
        "kappa_complement",
        "kl_divergence",
        "margins",
        "measure_agreement",
        "measure_overrides",
        "override_rates",
        "override_rates_by_right",
        "prediction_diversity",
    ),
    "diagnosis.backgrounds": (
        "background_sets",
        "measure_backgrounds",
    ),
    "diagnosis.baselines": (
        "BaselineSettings",
        "finetune_half",
        "halves",
        "train_baseline",
        "train_from_scratch",
    ),
    "diagnosis.cam": (
        "class_activation_map",
        "class_evidence",
    ),
    "diagnosis.cka": (
        "CkaSums",
        "linear_cka",
        "measure_cka",
    ),
    "diagnosis.connectivity": (
        "connectivity_of",
        "error_barrier",
        "measure_connectivity",
        "measure_loss_connectivity",
    ),
    "diagnosis.movement": ("measure_movement",),
    "records.comparisons": (
        "AgreementRecord",
        "CkaRecord",
        "ConnectivityRecord",
        "FollowedRecord",
        "LayersRecord",
        "LossRecord",
        "Measured",
        "MovementRecord",
        "OverrideRecord",
        "PlanePoint",
        "PlaneRecord",
    ),
    "diagnosis.strong_edge": (
        "measure_windows",
        "strong_edge_study",
    ),
    "diagnosis.windows": ("WindowSettings",),
    "models.encoders": (
        "Encoder",
        "load_encoder",
    ),
    "data.corruptions": ("corrupt",),
    "data.labels": ("ClassSpace",),
    "data.sets": (
        "ImageSet",
        "load_set",
        "unlabelled_set",
        "with_masks",
    ),
    "data.suites": (
        "Reference",
        "Shift",
        "ShiftSuite",
        "export_suite",
        "load_data",
        "load_suite",
        "own_suite",
    ),
    "ensembling.batch_norm": ("has_batch_norm", "reestimate_batch_norm"),
    "ensembling.ensembles": ("OutputEnsemble", "interpolate_clip", "output_ensemble", "wise_ft"),
    "merging.files": ("merge_files",),
    "merging.methods": ("MergeSettings",),
    "ensembling.path": ("choose_alpha", "compare_alphas", "sweep_alpha"),
    "weights.schedules": ("alphas_by_depth", "alphas_by_pattern"),
    "ensembling.soups": ("SoupRecord", "greedy_soup", "model_stock_soup", "uniform_soup"),
    "errors": (
        "IncompatibleWeightsError",
        "InputError",
        "ShiftproofError",
        "TrainingError",
        "TrainingInterruptedError",
    ),
    "evaluation.calibration": (
        "brier_score",
        "calibration_error",
        "calibration_interval",
        "fit_temperature",
        "negative_log_likelihood",
        "selective_accuracy",
    ),
    "evaluation.robustness": (
        "Baseline",
        "effective_interval",
        "effective_robustness",
        "fit_baseline",
        "on_scale",
        "read_baselines",
        "relative_robustness",
        "robustness_gap",
    ),
    "evaluation.intervals": (
        "accuracy_interval",
        "alike_interval",
        "bootstrap_interval",
        "bootstrap_spreads",
        "can_resample",
        "contrast_interval",
        "resampled_means",
        "statistic_interval",
    ),
    "evaluation.metrics": (
        "accuracy",
        "macro_f1",
    ),
    "evaluation.predictions": (
        "KeptPredictions",
        "Predictions",
        "align_predictions",
        "load_predictions",
        "open_predictions",
        "save_predictions",
    ),
    "evaluation.inference": ("predict",),
    "evaluation.significance": ("holm_correction", "mcnemar_test"),
    "finetuning.loop": ("few_shot", "finetune"),
    "finetuning.probe": ("logistic_head",),
    "finetuning.recipes": ("class_targets", "distillation_loss"),
    "finetuning.settings": ("FinetuneSettings",),
    "models.classifier": ("Classifier", "fingerprint", "own_head_classifier", "zero_shot_classifier"),
    "models.clip": ("Clip", "load_clip"),
    "models.directories": ("load_classifier", "save_classifier"),
    "runs.pipeline": ("run_pipeline",),
    "studies.study": ("run_study",),
    "records.studies": ("StudyRecord",),
    "studies.file": ("StudyFile",),
    "pretraining.loop": ("PretrainSettings", "contrastive_loss", "pretrain"),
    "records.results": ("AccuracyRecord", "MergeRecord", "PathRecord", "RuleRecord", "RulesRecord", "RunRecord"),
    "report.page": ("render_report",),
    "runs.file": ("RunFile",),
    "seeding": ("child_generator",),
    "weights.arithmetic": ("average_weights", "interpolate_weights", "model_stock", "weight_distance"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "AccuracyRecord",
    "AgreementRecord",
    "Baseline",
    "BaselineSettings",
    "CkaRecord",
    "CkaSums",
    "ClassSpace",
    "Classifier",
    "Clip",
    "ConnectivityRecord",
    "CutMix",
    "Cutout",
    "DiagnosisRecord",
    "DiversityRecord",
    "Encoder",
    "FinetuneSettings",
    "FollowedRecord",
    "ImageSet",
    "IncompatibleWeightsError",
    "InputError",
    "KeptPredictions",
    "LayersRecord",
    "LossRecord",
    "Measured",
    "MergeRecord",
    "MergeSettings",
    "MixChoice",
    "MixPlan",
    "MixUp",
    "MovementRecord",
    "OutputEnsemble",
    "OverrideRecord",
    "PairFile",
    "PathRecord",
    "PlanePoint",
    "PlaneRecord",
    "Predictions",
    "PretrainSettings",
    "Reference",
    "RuleRecord",
    "RulesRecord",
    "RunFile",
    "RunRecord",
    "SetEvidence",
    "Shift",
    "ShiftSuite",
    "ShiftproofError",
    "SmoothMix",
    "SoupRecord",
    "StudyFile",
    "StudyRecord",
    "TrainingError",
    "TrainingInterruptedError",
    "WindowSettings",
    "accuracy",
    "accuracy_interval",
    "align_predictions",
    "alike_interval",
    "alphas_by_depth",
    "alphas_by_pattern",
    "anchor_weights",
    "average_weights",
    "background_sets",
    "bootstrap_interval",
    "bootstrap_spreads",
    "brier_score",
    "calibration_error",
    "calibration_interval",
    "can_resample",
    "child_generator",
    "choose_alpha",
    "class_activation_map",
    "class_evidence",
    "class_targets",
    "compare_alphas",
    "connectivity_of",
    "contrast_interval",
    "contrastive_loss",
    "contrastive_targets",
    "corrupt",
    "diagnose_run",
    "distillation_loss",
    "diversity_contrast",
    "effective_interval",
    "effective_robustness",
    "error_barrier",
    "error_consistency",
    "export_suite",
    "few_shot",
    "finetune",
    "finetune_half",
    "fingerprint",
    "fit_baseline",
    "fit_temperature",
    "gain_beyond_both",
    "greedy_soup",
    "halves",
    "hard_mask",
    "has_batch_norm",
    "holm_correction",
    "interpolate_clip",
    "interpolate_weights",
    "kappa_complement",
    "kl_divergence",
    "layer_names",
    "linear_cka",
    "load_classifier",
    "load_clip",
    "load_data",
    "load_encoder",
    "load_predictions",
    "load_set",
    "load_suite",
    "logistic_head",
    "macro_f1",
    "margins",
    "mcnemar_test",
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
    "merge_files",
    "mix_images",
    "mix_targets",
    "model_stock",
    "model_stock_soup",
    "negative_log_likelihood",
    "on_scale",
    "one_hot",
    "open_predictions",
    "output_ensemble",
    "override_rates",
    "override_rates_by_right",
    "own_head_classifier",
    "own_suite",
    "plain_json",
    "predict",
    "prediction_diversity",
    "pretrain",
    "read_baselines",
    "reestimate_batch_norm",
    "relative_robustness",
    "render_report",
    "resampled_means",
    "robustness_gap",
    "run_pipeline",
    "run_study",
    "save_classifier",
    "save_predictions",
    "selective_accuracy",
    "soft_cross_entropy",
    "soft_mask",
    "statistic_interval",
    "strong_edge_study",
    "sweep_alpha",
    "train_baseline",
    "train_from_scratch",
    "uniform_soup",
    "unlabelled_set",
    "weight_distance",
    "wise_ft",
    "with_masks",
    "zero_shot_classifier",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'shiftproof' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"shiftproof.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
