"""The committed results from which the pages are generated."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shiftproof.records.codec import from_json
from shiftproof.records.diagnosis import AverageRecord, DiagnosisRecord
from shiftproof.records.runs import RunRecord
from shiftproof.records.studies import StudyRecord
from shiftproof.records.summaries import run_from_summary, study_from_json
from shiftproof.records.windows import StrongEdgeStudy
from shiftproof.storage import read_json


@dataclass(frozen=True)
class Sources:
    """The results under the root of a checkout of the repository."""

    root: Path

    @property
    def results(self) -> Path:
        """The folder of the results of runs and studies."""
        return self.root / "docs" / "results"

    @property
    def images(self) -> Path:
        """The folder of the pages' figures."""
        return self.root / "docs" / "images"

    def benchmark(self, name: str) -> Any:
        """The results of a benchmark."""
        return read_json(self.root / "benchmarks" / "results" / f"{name}.json")

    def demo(self) -> list[RunRecord]:
        """The runs of the demo, in the order of their seeds."""
        return [run_from_summary(read_json(path)) for path in sorted(self.results.glob("demo-seed-*.json"))]

    def solar_cells(self) -> RunRecord:
        """The run of the demo on solar cells."""
        return run_from_summary(read_json(self.results / "solar-cells-seed-0.json"))

    def averages(self) -> list[tuple[AverageRecord, ...]]:
        """The means over the shifts of a kind of the runs of the demo, in the order of their seeds."""
        paths = sorted(self.results.glob("averages-seed-*.json"))
        return [from_json(tuple[AverageRecord, ...], read_json(path), str(path)) for path in paths]

    def diagnoses(self) -> list[DiagnosisRecord]:
        """The diagnoses of the runs of the demo, in the order of their seeds."""
        paths = sorted(self.results.glob("diagnosis-seed-*.json"))
        return [from_json(DiagnosisRecord, read_json(path)) for path in paths]

    def strong_edges(self) -> list[StrongEdgeStudy]:
        """The strong-edge studies, in the order of their seeds."""
        paths = sorted(self.results.glob("strong-edge-seed-*.json"))
        return [from_json(StrongEdgeStudy, read_json(path)) for path in paths]

    def study(self, name: str) -> StudyRecord:
        """A study of many runs."""
        return study_from_json(read_json(self.results / f"study-{name}.json"))

    def robustness(self) -> list[dict[str, Any]]:
        """The accuracies of every augmentation, model and seed."""
        entries: list[dict[str, Any]] = read_json(self.results / "robustness.json")
        return entries

    def paper_sweeps(self) -> list[dict[str, str]]:
        """The rows of the sweeps that the paper on WiSE-FT publishes."""
        return self._rows("wiseft_alpha_sweeps.csv")

    def paper_sets(self) -> list[dict[str, str]]:
        """The paper's numbers on sets other than ImageNet and its shifts."""
        return self._rows("wiseft_other_sets.csv")

    def _rows(self, name: str) -> list[dict[str, str]]:
        with (self.results / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
