"""Writes the tables, findings and figures of the README and the docs from the committed results.

    python tools/results.py                       regenerate tables and findings, and the figures of changed results
    python tools/results.py --take runs/demo-0 runs/demo-1 runs/demo-2   copy the results of the demo first
    python tools/results.py --take-summaries runs/demo-0 runs/demo-1     copy the accuracies of the demo alone
    python tools/results.py --take runs/solar-cells                      copy the demo on solar cells first
    python tools/results.py --take runs/strong-edge                      copy a strong-edge study and its figures first
    python tools/results.py --take runs/hyperparameters runs/recipes     copy studies first
    python tools/results.py --check               fail if a page or a figure differs from the results

The results are in docs/results and benchmarks/results. What is written stands between the marks
``<!-- NAME: python tools/results.py -->`` and ``<!-- end of NAME -->`` of a page. A sentence that the results no longer
support is an error, which names the page and the sentence: reword it in tools/pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pages import (
    alpha,
    beyond,
    decisions,
    demo,
    diagnosis,
    figures,
    mixing,
    photographs,
    published,
    solar,
    speed,
    strong_edge,
    studies,
    verdicts,
)
from pages.markdown import OutdatedError
from pages.sources import Sources
from pages.taking import take, take_summary

ROOT = Path(__file__).parents[1]
PAGES: dict[str, dict[str, Callable[[Sources], str]]] = {
    "README.md": {"summary": demo.summary_table, "photographs": photographs.photograph_summary},
    "docs/results.md": {"results": demo.demo_tables},
    "docs/data-sets.md": {"solar-cells": solar.solar_tables},
    "docs/inputs.md": {"decoding": speed.decoding_tables},
    "docs/zero-shot.md": {"head": speed.head_table},
    "docs/data-imagenet.md": {"imagenet": published.imagenet_numbers},
    "docs/data-cifar.md": {"cifar": published.other_numbers("cifar")},
    "docs/data-fine-grained.md": {"fine-grained": published.other_numbers("fine-grained")},
    "docs/data-wilds.md": {"wilds": published.other_numbers("wilds")},
    "docs/mixing.md": {
        "regime": mixing.regime_table,
        "mixing-findings": mixing.findings,
        "robustness": mixing.robustness_tables,
        "speed": mixing.speed_table,
    },
    "docs/choosing-alpha.md": {"path": alpha.path_tables, "choosing-alpha": alpha.choosing_tables},
    "docs/merging.md": {"merging": speed.merge_tables},
    "docs/fine-tuning.md": {"step": speed.step_tables, "models": speed.model_tables},
    "docs/hyper-parameters.md": {
        "hyperparameters": studies.hyperparameter_tables,
        "tuning": studies.tuning_table,
        "recipes": studies.recipe_tables,
    },
    "docs/photographs.md": {"photographs": photographs.photograph_tables},
    "docs/strong-edge.md": {
        "strong-edge-findings": strong_edge.findings,
        "strong-edge": strong_edge.strong_edge_tables,
    },
    "docs/diagnosis.md": {
        "verdicts": verdicts.claims_table,
        "claims": diagnosis.claim_sections,
        "beyond-half": beyond.beyond_half,
        "memory": speed.memory_table,
    },
    "docs/decisions.md": {
        "decoding-workers": speed.decoding_workers,
        "demo-rate": decisions.demo_rate,
        "throughput": speed.throughput,
        "baselines": decisions.baselines,
    },
}


def updated(page: str, sources: Sources) -> str:
    """The text of a page with regenerated blocks."""
    text = (sources.root / page).read_text(encoding="utf-8")
    for name, block in PAGES[page].items():
        start, end = f"<!-- {name}: python tools/results.py -->", f"<!-- end of {name} -->"
        before, rest = text.split(start)
        try:
            text = f"{before}{start}\n{block(sources)}\n{end}{rest.split(end)[1]}"
        except OutdatedError as outdated:
            raise OutdatedError(f"{page}, {name}: {outdated}") from outdated
    return text


def differing(sources: Sources) -> Iterator[str]:
    """The pages and figures that differ from the results."""
    for page in PAGES:
        if updated(page, sources) != (sources.root / page).read_text(encoding="utf-8"):
            yield page
    yield from (f"docs/images/{name}.png" for name in figures.stale_figures(sources))


def regenerate(arguments: Sequence[str], sources: Sources) -> str:
    """Copies results if asked to, and regenerates or checks the pages; returns what is wrong, or nothing."""
    for option, copy in (("--take", take), ("--take-summaries", take_summary)):
        if option in arguments:
            try:
                for folder in map(Path, arguments[arguments.index(option) + 1 :]):
                    copy(folder, sources)
            except OutdatedError as error:
                return str(error)
    if "--check" in arguments:
        stale = list(differing(sources))
        return f"{', '.join(stale)} differ from the results; run `python tools/results.py`" if stale else ""
    figures.draw(sources)
    outdated = []
    for page in PAGES:
        try:
            (sources.root / page).write_text(updated(page, sources), encoding="utf-8")
        except OutdatedError as error:
            outdated.append(str(error))
    return "\n".join(outdated)


if __name__ == "__main__":
    sys.exit(regenerate(sys.argv[1:], Sources(ROOT)) or 0)
