"""shiftproof: robust fine-tuning of zero-shot image models."""

from . import (
    data,
    diagnosis,
    ensembling,
    errors,
    evaluation,
    finetuning,
    merging,
    mixing,
    models,
    pretraining,
    progress,
    records,
    report,
    runs,
    seeding,
    storage,
    studies,
    training,
    weights,
)
from .data.labels import ClassSpace
from .data.sets import ImageSet
from .data.suites import ShiftSuite, load_data, load_suite, own_suite
from .ensembling.ensembles import output_ensemble, wise_ft
from .ensembling.path import sweep_alpha
from .ensembling.rules import choose_alpha
from .ensembling.soups import greedy_soup, model_stock_soup, uniform_soup
from .errors import (
    DivergenceError,
    IncompatibleWeightsError,
    InputError,
    ShiftproofError,
    TrainingError,
    TrainingInterruptedError,
)
from .evaluation.inference import predict
from .finetuning.loop import finetune
from .finetuning.settings import FinetuneSettings
from .merging.files import merge_files
from .merging.methods import MergeSettings
from .mixing.methods import CutMix, Cutout, MixChoice, MixUp, SmoothMix
from .mixing.targets import soft_cross_entropy
from .models.classifier import Classifier
from .models.clip import load_clip
from .models.directories import load_classifier, save_classifier
from .models.encoders import load_encoder
from .models.heads import own_head_classifier
from .models.zero_shot import zero_shot_classifier
from .pretraining.loop import pretrain
from .pretraining.settings import PretrainSettings
from .report.page import render_report
from .runs.diagnose import diagnose_run
from .runs.file import RunFile
from .runs.pipeline import run_pipeline
from .studies.file import StudyFile
from .studies.study import run_study
from .weights.arithmetic import average_weights, interpolate_weights

__all__ = [
    "ClassSpace",
    "Classifier",
    "CutMix",
    "Cutout",
    "DivergenceError",
    "FinetuneSettings",
    "ImageSet",
    "IncompatibleWeightsError",
    "InputError",
    "MergeSettings",
    "MixChoice",
    "MixUp",
    "PretrainSettings",
    "RunFile",
    "ShiftSuite",
    "ShiftproofError",
    "SmoothMix",
    "StudyFile",
    "TrainingError",
    "TrainingInterruptedError",
    "average_weights",
    "choose_alpha",
    "data",
    "diagnose_run",
    "diagnosis",
    "ensembling",
    "errors",
    "evaluation",
    "finetune",
    "finetuning",
    "greedy_soup",
    "interpolate_weights",
    "load_classifier",
    "load_clip",
    "load_data",
    "load_encoder",
    "load_suite",
    "merge_files",
    "merging",
    "mixing",
    "model_stock_soup",
    "models",
    "output_ensemble",
    "own_head_classifier",
    "own_suite",
    "predict",
    "pretrain",
    "pretraining",
    "progress",
    "records",
    "render_report",
    "report",
    "run_pipeline",
    "run_study",
    "runs",
    "save_classifier",
    "seeding",
    "soft_cross_entropy",
    "storage",
    "studies",
    "sweep_alpha",
    "training",
    "uniform_soup",
    "weights",
    "wise_ft",
    "zero_shot_classifier",
]
