"""Measured numbers on the page about decisions."""

from __future__ import annotations

from pages.markdown import span
from pages.sources import Sources


def demo_rate(sources: Sources) -> str:
    """Why the demo has its learning rate."""
    entries = sources.benchmark("tune_demo")

    def of(rate: str, what: str, kind: str = "points") -> list[float]:
        return [entry[kind][what] for entry in entries if entry["candidate"].endswith(f"lr {rate}")]

    lost = {rate: of(rate, "ensemble under fine-tuned, reference") for rate in ("1e-3", "2e-3")}
    shifts = {rate: of(rate, "mean", "ensemble") for rate in lost}
    price = [low - high for low, high in zip(shifts["1e-3"], shifts["2e-3"], strict=True)]
    return (
        f"- For the demo we chose lr 2e-3. On {len(price)} development folds its ensemble is {span(lost['2e-3'])} "
        f"points below the fine-tuned model on the reference, against {span(lost['1e-3'])} at lr 1e-3, at the price of "
        f"{span(price)} points of the ensemble's accuracy on the shifts (`benchmarks/results/tune_demo.json`, "
        "`python benchmarks/tune_demo.py --folds 1,2`)."
    )


def baselines(sources: Sources) -> str:
    """How good the networks from random weights are."""
    run = sources.diagnoses()[0]
    reference = [100 * accuracy for accuracy in run.baselines[run.reference]]
    shifted = max(100 * accuracy for name, row in run.baselines.items() if name != run.reference for accuracy in row)
    return (
        "- Networks from random weights (`scratch`, `baselines`) see eight draws of the training views, since five "
        f"views of 267 classes taught them next to nothing. The best baseline reaches {max(reference):.1f} % on the "
        f"reference and the worst {min(reference):.1f} %, and under the shifts none exceeds {shifted:.1f} %. The line "
        "through them rises little, so effective robustness is most of the accuracy itself."
    )
