"""Directories and checkpoints with the fingerprints of earlier versions are resumed, reported and compared."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shiftproof as sp
from shiftproof.models.identity import fingerprint, first_fingerprint
from shiftproof.runs.inputs import load_run_suite
from shiftproof.runs.sweeps import run_sweep
from shiftproof.storage import read_json

pytestmark = pytest.mark.usefixtures("blank_figures")

TRAINING = {"epochs": 1, "batch_size": 9, "lr": 1e-3, "warmup_steps": 0}


def run_file(folders: Path, **changes: Any) -> sp.RunFile:
    reference = {split: f"folder:{folders}/{split}" for split in ("train", "validation", "test")}
    suite = {
        "name": "fruit",
        "reference": {"name": "photos", **reference},
        "shifts": {"sketch": {"data": f"folder:{folders}/sketch", "kind": "natural"}},
    }
    return sp.RunFile.resolve({"suite": suite, "finetune": TRAINING, "alphas": 3, "device": "cpu", **changes})


@pytest.fixture(scope="module")
def finished(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("earlier") / "run"
    sp.run_pipeline(run_file(folders), out)
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run whose files name the classifiers as an earlier version named them."""
    out = Path(shutil.copytree(finished, tmp_path / "run"))
    rename(out, classifiers_of(out))
    return out


def classifiers_of(run: Path) -> list[sp.Classifier]:
    return [sp.load_classifier(run / name) for name in ("zero_shot", "fine_tuned", "ensemble")]


def rename(folder: Path, classifiers: Sequence[sp.Classifier]) -> None:
    """Replaces fingerprints by their first form in every file under a folder."""
    replaced = 0
    for path in [*folder.rglob("*.json"), *folder.rglob("*.jsonl")]:
        text = path.read_text(encoding="utf-8")
        for classifier in classifiers:
            replaced += text.count(fingerprint(classifier))
            text = text.replace(fingerprint(classifier), first_fingerprint(classifier))
        path.write_text(text, encoding="utf-8")
    assert replaced


def start_of(checkpoints: Path) -> str:
    last = sorted(checkpoints.glob("step-*"))[-1]
    return str(read_json(last / "state.json")["origin"]["start"])


@pytest.mark.slow
def test_an_earlier_run_is_resumed_and_its_diagnosis_continued(run: Path, folders: Path) -> None:
    zero = sp.load_classifier(run / "zero_shot")
    assert start_of(run / "checkpoints") == first_fingerprint(zero)
    layers = sp.diagnose_run(run, ("layers",)).layers
    rename(run, classifiers_of(run))
    assert read_json(run / "diagnosis.json")["models"]["zero_shot"] == first_fingerprint(zero)
    assert sp.diagnose_run(run, ()).layers == layers != ()
    assert read_json(run / "diagnosis.json")["models"]["zero_shot"] == fingerprint(zero)
    weights = (run / "fine_tuned" / "model.safetensors").read_bytes()
    sp.run_pipeline(run_file(folders), run, resume=True)
    assert (run / "fine_tuned" / "model.safetensors").read_bytes() == weights


def test_an_earlier_checkpoint_is_resumed_and_one_of_another_start_is_refused(run: Path, folders: Path) -> None:
    file = run_file(folders)
    start = sp.load_classifier(run / "zero_shot")
    suite = load_run_suite(file).relabelled(start.classes)
    tuned = sp.finetune(start, suite, file.finetune, seed=file.seed, checkpoints=run / "checkpoints")
    assert fingerprint(tuned) == fingerprint(sp.load_classifier(run / "fine_tuned"))
    other = replace(start, preprocessing=replace(start.preprocessing, crop_share=0.9))
    with pytest.raises(sp.InputError, match="these differ: 'start'"):
        sp.finetune(other, suite, file.finetune, seed=file.seed, checkpoints=run / "checkpoints")


@pytest.mark.slow
def test_an_earlier_sweep_is_resumed(run: Path, folders: Path, tmp_path: Path) -> None:
    ends, out = (run / "zero_shot", run / "fine_tuned"), tmp_path / "sweep"
    first = run_sweep(run_file(folders), *ends, out)
    request = (out / "sweep.json").read_bytes()
    rename(out, classifiers_of(run))
    assert (out / "sweep.json").read_bytes() != request
    assert run_sweep(run_file(folders), *ends, out, resume=True) == first
    assert (out / "sweep.json").read_bytes() == request
    rename(out, classifiers_of(run))
    with pytest.raises(sp.InputError, match="these differ: 'zero_shot', 'fine_tuned'"):
        run_sweep(run_file(folders), *reversed(ends), out, resume=True)


def test_parents_with_the_first_form_are_the_same_start(run: Path, finished: Path) -> None:
    zero, earlier, tuned = (
        sp.load_classifier(path) for path in (run / "zero_shot", run / "fine_tuned", finished / "fine_tuned")
    )
    assert earlier.parents[0]["fingerprint"] == first_fingerprint(zero)
    assert tuned.parents[0]["fingerprint"] == fingerprint(zero)
    moved = replace(zero, source="a copy of the tiny model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sp.wise_ft(moved, earlier, 0.5)
        sp.wise_ft(moved, tuned, 0.5)
        sp.uniform_soup([earlier, tuned])
        sp.ensembling.model_stock_soup(zero, [earlier, tuned])
    stranger = replace(earlier, parents=({**earlier.parents[0], "fingerprint": "0" * 64},))
    with pytest.warns(UserWarning, match="fine-tuned from 2 different starts"):
        sp.uniform_soup([earlier, stranger, tuned])
    with pytest.warns(UserWarning, match="Weights can be interpolated only between a model"):
        sp.wise_ft(moved, stranger, 0.5)


def test_a_merge_hands_on_the_fingerprints_that_it_read(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    sp.merge_files(run / "zero_shot", run / "fine_tuned", out=out)
    card = json.loads((out / "classifier.json").read_text(encoding="utf-8"))
    assert [parent["fingerprint"] for parent in card["parents"]] == [
        first_fingerprint(classifier) for classifier in classifiers_of(run)[:2]
    ]
    assert card["fingerprint"] == fingerprint(sp.load_classifier(out))
