"""The pages' figures: drawn from the committed results, or copied from a run beside its results.

Every figure holds the hash of the results that it shows, so that a figure of other results is noticed.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pages.sources import Sources
from shiftproof.records.codec import from_json
from shiftproof.records.diagnosis import DiagnosisRecord
from shiftproof.records.summaries import run_from_summary, study_from_json
from shiftproof.report.diagnoses import diagnosis_figures
from shiftproof.report.figures import figure_bytes, path_figure
from shiftproof.report.studies import study_figure
from shiftproof.storage import read_json

HASH = "sha256 of the results"
_DIAGNOSES = ("overrides", "connectivity", "layers-sketch", "plane-sketch")


def _diagnosis(name: str) -> Callable[[Path], Figure | None]:
    return lambda path: diagnosis_figures(from_json(DiagnosisRecord, read_json(path))).get(f"{name}.png")


def _study(path: Path) -> Figure:
    return study_figure(study_from_json(read_json(path)))


# For each figure, the results that it shows and what draws it.
DRAWN: dict[str, tuple[str, Callable[[Path], Figure | None]]] = {
    "path": ("demo-seed-0", lambda path: path_figure(run_from_summary(read_json(path)))),
    **{f"diagnosis-{name}": ("diagnosis-seed-0", _diagnosis(name)) for name in _DIAGNOSES},
    **{name: (f"study-{name}", _study) for name in ("hyperparameters", "recipes")},
}
# For each figure that shows images, the results of the run from which it is copied.
COPIED = {f"strong-edge-{start}": "strong-edge-seed-0" for start in ("scratch", "tuned")}


def stale_figures(sources: Sources) -> Iterator[str]:
    """The names of the figures that show other results than the committed ones."""
    for name, results in ({name: results for name, (results, _) in DRAWN.items()} | COPIED).items():
        if _hash_in(sources.images / f"{name}.png") != hash_of(sources.results / f"{results}.json"):
            yield name


def draw(sources: Sources) -> None:
    """Draws the figures whose results have changed."""
    for name in DRAWN.keys() & set(stale_figures(sources)):
        results, drawing = DRAWN[name]
        path = sources.results / f"{results}.json"
        figure = drawing(path)
        if figure is not None:
            save(figure_bytes(figure), sources.images / f"{name}.png", path)


def save(content: bytes, path: Path, results: Path) -> None:
    """Writes a figure with the hash of the results that it shows."""
    info = PngInfo()
    info.add_text(HASH, hash_of(results))
    with Image.open(io.BytesIO(content)) as image:
        image.save(path, pnginfo=info, dpi=image.info.get("dpi"))


def hash_of(results: Path) -> str:
    """The hash of a file of results."""
    return hashlib.sha256(results.read_bytes()).hexdigest()


def _hash_in(figure: Path) -> str | None:
    if not figure.is_file():
        return None
    with Image.open(figure) as image:
        return image.info.get(HASH)
