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
    from shiftproof.data.sets import ImageSet, load_set
    from shiftproof.data.suites import (
        Reference,
        Shift,
        ShiftSuite,
        export_suite,
        load_data,
        load_suite,
        own_suite,
    )
    from shiftproof.ensembling.ensembles import wise_ft
    from shiftproof.ensembling.path import choose_alpha, sweep_alpha
    from shiftproof.errors import IncompatibleWeightsError, InputError, ShiftproofError
    from shiftproof.evaluation.calibration import calibration_error
    from shiftproof.evaluation.intervals import accuracy_interval
    from shiftproof.evaluation.metrics import accuracy
    from shiftproof.evaluation.predictions import Predictions, predict
    from shiftproof.finetuning.loop import finetune
    from shiftproof.finetuning.settings import FinetuneSettings
    from shiftproof.models.classifier import Classifier, fingerprint, zero_shot_classifier
    from shiftproof.models.clip import Clip, load_clip
    from shiftproof.models.directories import load_classifier, save_classifier
    from shiftproof.pipeline import run_pipeline
    from shiftproof.pretraining import PretrainSettings, contrastive_loss, pretrain
    from shiftproof.records import AccuracyRecord, PathRecord, RunRecord
    from shiftproof.report.page import render_report
    from shiftproof.runfile import RunFile
    from shiftproof.seeding import child_generator
    from shiftproof.weights import interpolate_weights

_MODULES = {
    "data.corruptions": ("corrupt",),
    "data.labels": ("ClassSpace",),
    "data.sets": ("ImageSet", "load_set"),
    "data.suites": (
        "Reference",
        "Shift",
        "ShiftSuite",
        "export_suite",
        "load_data",
        "load_suite",
        "own_suite",
    ),
    "ensembling.ensembles": ("wise_ft",),
    "ensembling.path": ("choose_alpha", "sweep_alpha"),
    "errors": ("IncompatibleWeightsError", "InputError", "ShiftproofError"),
    "evaluation.calibration": ("calibration_error",),
    "evaluation.intervals": ("accuracy_interval",),
    "evaluation.metrics": ("accuracy",),
    "evaluation.predictions": ("Predictions", "predict"),
    "finetuning.loop": ("finetune",),
    "finetuning.settings": ("FinetuneSettings",),
    "models.classifier": ("Classifier", "fingerprint", "zero_shot_classifier"),
    "models.clip": ("Clip", "load_clip"),
    "models.directories": ("load_classifier", "save_classifier"),
    "pipeline": ("run_pipeline",),
    "pretraining": ("PretrainSettings", "contrastive_loss", "pretrain"),
    "records": ("AccuracyRecord", "PathRecord", "RunRecord"),
    "report.page": ("render_report",),
    "runfile": ("RunFile",),
    "seeding": ("child_generator",),
    "weights": ("interpolate_weights",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}
__all__ = [
    "AccuracyRecord",
    "ClassSpace",
    "Classifier",
    "Clip",
    "FinetuneSettings",
    "ImageSet",
    "IncompatibleWeightsError",
    "InputError",
    "PathRecord",
    "Predictions",
    "PretrainSettings",
    "Reference",
    "RunFile",
    "RunRecord",
    "Shift",
    "ShiftSuite",
    "ShiftproofError",
    "accuracy",
    "accuracy_interval",
    "calibration_error",
    "child_generator",
    "choose_alpha",
    "contrastive_loss",
    "corrupt",
    "export_suite",
    "finetune",
    "fingerprint",
    "interpolate_weights",
    "load_classifier",
    "load_clip",
    "load_data",
    "load_set",
    "load_suite",
    "own_suite",
    "predict",
    "pretrain",
    "render_report",
    "run_pipeline",
    "save_classifier",
    "sweep_alpha",
    "wise_ft",
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
