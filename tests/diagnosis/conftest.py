"""Fixtures for diagnoses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import Call
from support.windows import FEW, picture_suite, planted

import shiftproof as sp
from shiftproof.diagnosis.strong_edge import (
    CLEAN,
    strong_edge_study,
)
from shiftproof.models.encoders import own_class_space
from shiftproof.records.windows import StrongEdgeStudy
from shiftproof.runs import interventions as diagnosing


@pytest.fixture(scope="module")
def study() -> StrongEdgeStudy:
    """Three models, one without a width, one whose scores rise under windows; treat it as immutable."""
    hard, soft, plain = planted(0.1, seed=1), planted(seed=2), planted(seed=3)
    for name, values in plain.values.items():
        values["width"][:] = np.nan
        if name != CLEAN:
            values["score_drop"] *= -1
            values["accuracy_drop"] *= 1e-4 * np.array([1, -1] * 4)  # rounds to nothing, whichever sign
    measured = {"hard": hard, "soft": soft, "plain": replace(plain, map_kind="grad-cam")}
    return strong_edge_study(measured, [("hard", "soft"), ("hard", "plain")], set_name="fruit")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A study of every second of four classes in two draws of views, one step a training; what is trained is listed."""
    trained: list[str] = []
    quick = sp.FinetuneSettings(epochs=1, lr=1e-3, batch_size=8)
    monkeypatch.setattr(diagnosing, "load_suite", picture_suite)
    for name, value in {"STUDY_CLASSES": 2, "STUDY_DRAWS": 2, "SCRATCH_SETTINGS": quick, "_EXAMPLES": 1}.items():
        monkeypatch.setattr(diagnosing, name, value)
    monkeypatch.setattr(diagnosing, "TUNED_SETTINGS", replace(quick, lr=2e-3))
    for begun, function in (("scratch", "train_from_scratch"), ("tuned", "finetune")):
        train = getattr(diagnosing, function)

        def recorded(start: sp.Classifier, *rest: Any, train: Any = train, begun: str = begun, **more: Any) -> Any:
            trained.append(f"{begun}-{rest[1].mixing}")
            return train(start, *rest, **more)

        monkeypatch.setattr(diagnosing, function, recorded)
    return trained


@pytest.fixture
def call(call: Call, monkeypatch: pytest.MonkeyPatch) -> Call:
    """A command in this process, in an empty directory, with one window and one example."""
    monkeypatch.setattr(diagnosing, "WindowSettings", lambda: replace(FEW, edges=(0.0,)))
    monkeypatch.setattr(diagnosing, "_EXAMPLES", 1)
    return call


@pytest.fixture(scope="module")
def wnids(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fruit's test images in folders named as ImageNet names its classes, and masks beside; read only."""
    root = tmp_path_factory.mktemp("wnids")
    for fruit, class_id in zip(("lemon", "pear", "red_apple"), own_class_space(1000).ids[950:700:-100], strict=True):
        for path in sorted((folders / "test" / fruit).iterdir()):
            for part in ("images", "masks"):
                (root / part / class_id).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                pixels = np.asarray(image)
            Image.fromarray(pixels).save(root / "images" / class_id / path.name)
            cover = np.where(pixels.min(-1) < 200, 255, 0).astype(np.uint8)
            Image.fromarray(cover).save(root / "masks" / class_id / path.name)
    return root
