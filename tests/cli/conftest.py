"""Fixtures for the command line."""

from __future__ import annotations

from typing import Any

import pytest
from support.commands import Steps

from shiftproof.training.engine import Trainer


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    noted, take = Steps(), Trainer.take

    def watched(trainer: Trainer, step: int, losses: Any) -> float:
        if step == noted.stop:
            raise RuntimeError("the plug was pulled")
        noted.taken.append(step)
        return take(trainer, step, losses)

    monkeypatch.setattr(Trainer, "take", watched)
    return noted
