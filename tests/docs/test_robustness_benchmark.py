"""The benchmark of robustness takes the views of one drawing together."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from shiftproof.evaluation.intervals import accuracy_interval


@pytest.fixture
def robustness() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "robustness.py"
    spec = importlib.util.spec_from_file_location("robustness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_eight_views_of_a_drawing_say_no_more_than_one(robustness: ModuleType) -> None:
    labels = np.repeat(np.arange(50), 8)
    outcomes = {}
    for name in ("reference", "sketch", "noise-1"):
        outcomes |= {f"alpha 0.5|{name}|correct": labels < 40, f"alpha 0.5|{name}|confidence": np.full(400, 0.8)}
        outcomes[f"labels|{name}"] = labels
    found = robustness.summary(outcomes, "alpha 0.5")["sets"]["reference"]
    assert found["interval_method"] == "korn-graubard"
    assert found["interval"] == pytest.approx(accuracy_interval(40, 50), abs=0.01)
