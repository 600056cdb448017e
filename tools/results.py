"""Writes the README's tables from the committed summaries of the demo's three seeds (docs/results/).

shiftproof demo --seed 0 --out runs/demo-0        (and 1, 2)
python tools/results.py --take runs/demo-0 runs/demo-1 runs/demo-2
python tools/results.py --check                   fail if the README differs from docs/results
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from shiftproof.records import MODELS, RunRecord
from shiftproof.storage import read_json

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
START, END = "<!-- results: python tools/results.py -->", "<!-- end of results -->"
NAMES = {"zero_shot": "zero-shot", "fine_tuned": "fine-tuned", "ensemble": "WiSE-FT, alpha 0.5"}


def block(runs: Sequence[RunRecord]) -> str:
    """Both tables, in per cent: all seeds, and seen and withheld renditions apart."""
    natural = runs[0].shifts_of("natural")
    lines = [
        "| seed | model | reference | "
        + " | ".join(natural)
        + f" | mean of the {len(natural)} | mean of corruptions |",
        "|" + "---|" * (len(natural) + 5),
    ]
    for run in runs:
        synthetic = run.shifts_of("synthetic")
        for model in MODELS:
            sets = [run.models[model][name] for name in (run.reference, *natural)]
            cells = [f"{100 * r.accuracy:.1f} ({100 * r.interval[0]:.1f}–{100 * r.interval[1]:.1f})" for r in sets]
            means = [f"{100 * (run.mean_accuracy(model, some) or 0):.1f}" for some in (natural, synthetic)]
            lines.append(f"| {run.seed} | {NAMES[model]} | " + " | ".join([*cells, *means]) + " |")
    grouped = [name for name in natural if runs[0].models["ensemble"][name].groups]
    lines += ["", "Seen / withheld renditions:", ""]
    lines += ["| seed | model | " + " | ".join(grouped) + " |", "|" + "---|" * (len(grouped) + 2)]
    for run in runs:
        for model in MODELS:
            lines.append(
                f"| {run.seed} | {NAMES[model]} | " + " | ".join(_groups(run, model, s) for s in grouped) + " |"
            )
    return "\n".join(lines)


def _groups(run: RunRecord, model: str, name: str) -> str:
    groups = run.models[model][name].groups
    return " / ".join(
        f"{100 * groups[g].accuracy:.1f} ({100 * groups[g].interval[0]:.1f}–{100 * groups[g].interval[1]:.1f})"
        for g in ("seen", "withheld")
    )


def updated(readme: str) -> str:
    """The README with its block made anew from the committed summaries."""
    runs = [RunRecord.from_json(read_json(path)) for path in sorted(RESULTS.glob("demo-seed-*.json"))]
    before, rest = readme.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n{block(runs)}\n{END}{after}"


if __name__ == "__main__":
    if "--take" in sys.argv:
        RESULTS.mkdir(parents=True, exist_ok=True)
        for folder in map(Path, sys.argv[sys.argv.index("--take") + 1 :]):
            seed = read_json(folder / "summary.json")["seed"]
            shutil.copyfile(folder / "summary.json", RESULTS / f"demo-seed-{seed}.json")
    text = README.read_text(encoding="utf-8")
    if "--check" in sys.argv:
        sys.exit("README and docs/results differ; run python tools/results.py" if updated(text) != text else 0)
    README.write_text(updated(text), encoding="utf-8")
