"""Copies what is committed of a run: its results, and the figures that cannot be drawn from them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pages.figures import save
from pages.sources import Sources
from shiftproof.storage import read_json, write_json


def take(folder: Path, sources: Sources) -> None:
    """Copies the committed part of a run: a demo, a study, or a strong-edge study without its single windows."""
    sources.results.mkdir(parents=True, exist_ok=True)
    if (folder / "summary.json").is_file():
        seed = read_json(folder / "summary.json")["seed"]
        shutil.copyfile(folder / "summary.json", sources.results / f"demo-seed-{seed}.json")
        _take_diagnosis(folder, sources.results / f"diagnosis-seed-{seed}.json")
    elif (folder / "study.json").is_file():
        shutil.copyfile(folder / "study.json", sources.results / f"study-{folder.name}.json")
    else:
        _take_strong_edge(folder, sources)


def _take_diagnosis(folder: Path, destination: Path) -> None:
    """Copies the diagnosis of a demo, without what the pages do not show."""
    diagnosis = read_json(folder / "diagnosis.json")
    diagnosis |= {"confidence": [], "by_class": [], "movement": [], "strong_edge": None}
    write_json(destination, diagnosis)


def _take_strong_edge(folder: Path, sources: Sources) -> None:
    study = read_json(folder / "strong_edge.json")
    study["models"] = {model: {"clean": windows["clean"]} for model, windows in study["models"].items()}
    results = sources.results / f"strong-edge-seed-{study['seed']}.json"
    write_json(results, study)
    if study["seed"] == 0:
        for figure in (folder / "figures").glob("*.png"):
            save(figure.read_bytes(), sources.images / figure.name, results)
