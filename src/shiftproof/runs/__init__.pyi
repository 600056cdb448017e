"""A run from its YAML file to its report, its single stages, and the diagnosis of a finished run."""

from .comparisons import PairFile
from .diagnose import diagnose_run
from .doctor import run_checkup
from .file import RunFile
from .interventions import DiagnosisFile, run_backgrounds, run_strong_edge
from .pipeline import run_pipeline
from .stages import predict_images, run_evaluate, run_export, run_finetune, run_pretrain, run_zero_shot
from .sweeps import run_sweep

__all__ = [
    "DiagnosisFile",
    "PairFile",
    "RunFile",
    "diagnose_run",
    "predict_images",
    "run_backgrounds",
    "run_checkup",
    "run_evaluate",
    "run_export",
    "run_finetune",
    "run_pipeline",
    "run_pretrain",
    "run_strong_edge",
    "run_sweep",
    "run_zero_shot",
]
