"""Whatever a run and its diagnosis measure, they measure in the precision of the run file."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.commands import Call, data_flags

import shiftproof as sp
from shiftproof.ensembling import interpolation
from shiftproof.models.precision import resolved_precision
from shiftproof.runs import networks, pipeline, stages
from shiftproof.runs.finished import FinishedRun
from shiftproof.runs.parts import PARTS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blank_figures")]


def moved(start: sp.Classifier, seed: int) -> sp.Classifier:
    """A network near its start, which stands for one that was trained."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in start.state_dict().items()
    }
    return start.with_weights(weights, head="trained")


@pytest.fixture
def precisions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The precisions of all networks that were run, without any training."""
    seen: list[str] = []
    network_on = sp.Classifier.network_on

    def noted(self: sp.Classifier, **on: Any) -> Any:
        seen.append(on.get("precision", "float32"))
        return network_on(self, **on)

    def resolved(precision: str, device: str | torch.device) -> str:
        seen.append(precision)
        return resolved_precision(precision, device)

    def tuned(start: sp.Classifier, *_: Any, **__: Any) -> sp.Classifier:
        return moved(start, 0)

    monkeypatch.setattr(sp.Classifier, "network_on", noted)
    monkeypatch.setattr(interpolation, "resolved_precision", resolved)
    monkeypatch.setattr(pipeline, "finetune", tuned)
    monkeypatch.setattr(stages, "finetune", tuned)
    monkeypatch.setattr(
        networks, "_trained", lambda run, name, training: moved(run.models["zero_shot"], zlib.crc32(name.encode()))
    )
    return seen


def run_file_of(folders: Path, precision: str) -> sp.RunFile:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": reference, "shifts": {"sketch": {"data": f"folder:{folders}/sketch"}}}
    return sp.RunFile.resolve({"suite": suite, "alphas": 3, "device": "cpu", "evaluation": {"precision": precision}})


def test_a_run_and_every_part_of_its_diagnosis_have_one_precision(
    folders: Path, tmp_path: Path, precisions: list[str]
) -> None:
    run = tmp_path / "run"
    sp.run_pipeline(run_file_of(folders, "bfloat16"), run)
    assert set(precisions) == {"bfloat16"}
    for part in PARTS:
        precisions.clear()
        other = sp.save_classifier(moved(sp.load_classifier(run / "zero_shot"), 9), tmp_path / "other")
        (run / "predictions" / "ensemble" / "sketch.npz").unlink()
        sp.diagnose_run(run, (part.name,), others=[other], device="cpu")
        assert set(precisions) == {"bfloat16"}, part.name
        shutil.rmtree(other)


def test_a_training_warns_of_its_start_in_the_precision_of_the_run(
    folders: Path, call: Call, precisions: list[str]
) -> None:
    asked = ["--set", "evaluation.precision=bfloat16", "--device", "cpu", "--out", "tuned"]
    assert call("finetune", "tiny", *data_flags(folders), *asked).code == 0
    assert set(precisions) == {"bfloat16"}


def test_a_run_in_float16_is_diagnosed_on_a_gpu_only(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precisions: list[str]
) -> None:
    run = tmp_path / "run"
    sp.run_pipeline(run_file_of(folders, "float32"), run)
    assert sp.diagnose_run(run, (), device="cpu").layers == ()
    monkeypatch.setattr(FinishedRun, "precision", "float16")
    assert sp.diagnose_run(run, (), device="cpu").layers == ()  # no model is run
    with pytest.raises(
        sp.InputError, match=r"run\.yaml measures in float16, which needs a GPU.*Diagnose the run on a GPU"
    ):
        sp.diagnose_run(run, ("layers",), device="cpu")
