"""The whole diagnosis of a finished run: what it kept, and what models must be run or trained for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from shiftproof.data.sets import ImageSet, spread_over_classes
from shiftproof.data.suites import ShiftSuite
from shiftproof.diagnosis.agreement import measure_agreement
from shiftproof.diagnosis.baselines import finetune_halves
from shiftproof.diagnosis.cka import measure_cka
from shiftproof.diagnosis.layers import measure_layers
from shiftproof.diagnosis.plane import measure_plane
from shiftproof.diagnosis_records import LayersRecord, PlaneRecord
from shiftproof.ensembling.path import path_sets
from shiftproof.errors import InputError, require_choice
from shiftproof.evaluation.kept import open_predictions
from shiftproof.evaluation.predictions import predict
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import load_classifier, save_classifier
from shiftproof.pipeline import PathFiles, choose_device, suite_of
from shiftproof.quick_diagnosis import diagnose_kept, find_path, resampled_of
from shiftproof.records import MODELS
from shiftproof.report.page import read_run, render_report
from shiftproof.run_diagnosis_records import DiagnosisRecord, OtherPathRecord, PairRecord
from shiftproof.runfile import RunFile
from shiftproof.storage import locked, write_json

PARTS = ("layers", "halves", "plane", "scratch", "baselines")
HALVES = ("half 1", "half 2")
_IMAGES = 534  # of a set, where many models or layers see each image: two views of every drawing
