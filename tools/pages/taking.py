"""Copies what is committed of a run: its results, and the figures that cannot be drawn from them."""

from __future__ import annotations

import shutil
from pathlib import Path

from pages.figures import COPIED, save
from pages.markdown import OutdatedError
from pages.sources import Sources
from shiftproof.storage import read_json, write_json

# What the pages show of a diagnosis and only `shiftproof diagnose run --parts` measures; planes of the first seed only.
_FIELDS = ("layers", "baselines", "other_paths", "diversity")


def take(folder: Path, sources: Sources) -> None:
    """Copies the committed part of a run: a demo, a study, or a strong-edge study without its single windows."""
    sources.results.mkdir(parents=True, exist_ok=True)
    if (folder / "summary.json").is_file() and read_json(folder / "summary.json")["suite"] == "solar-cells":
        shutil.copyfile(folder / "summary.json", sources.results / "solar-cells-seed-0.json")
    elif (folder / "summary.json").is_file():
        _take_diagnosis(folder, sources)
        take_summary(folder, sources)
    elif (folder / "study.json").is_file():
        shutil.copyfile(folder / "study.json", sources.results / f"study-{folder.name}.json")
    else:
        _take_strong_edge(folder, sources)


def take_summary(folder: Path, sources: Sources) -> None:
    """Copies the accuracies of a demo alone; the committed diagnosis stays that of an earlier run of this seed."""
    summary = folder / "summary.json"
    seed = read_json(summary)["seed"]
    shutil.copyfile(summary, sources.results / f"demo-seed-{seed}.json")
    write_json(sources.results / f"averages-seed-{seed}.json", read_json(folder / "diagnosis.json")["averages"])


def _take_diagnosis(folder: Path, sources: Sources) -> None:
    """Copies the diagnosis of a demo, without what the pages do not show."""
    diagnosis = read_json(folder / "diagnosis.json")
    shown = (*_FIELDS, "planes") if diagnosis["seed"] == 0 else _FIELDS
    missing = [field for field in shown if not diagnosis[field]]
    if missing:
        raise OutdatedError(
            f"{folder / 'diagnosis.json'} lacks {', '.join(missing)}, which the pages show; docs/diagnosis.md says how "
            "to run `shiftproof diagnose run` for them"
        )
    diagnosis |= {"confidence": [], "by_class": [], "movement": [], "strong_edge": None}
    write_json(sources.results / f"diagnosis-seed-{diagnosis['seed']}.json", diagnosis)


def _take_strong_edge(folder: Path, sources: Sources) -> None:
    study = read_json(folder / "strong_edge.json")
    study["models"] = {model: {"clean": windows["clean"]} for model, windows in study["models"].items()}
    results = sources.results / f"strong-edge-seed-{study['seed']}.json"
    write_json(results, study)
    for name in (name for name, shown in COPIED.items() if shown == results.stem):
        save((folder / "figures" / f"{name}.png").read_bytes(), sources.images / f"{name}.png", results)
