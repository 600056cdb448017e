"""Numbers that the paper on WiSE-FT publishes, to compare one's own with."""

from __future__ import annotations

from collections.abc import Callable

from pages.markdown import markdown
from pages.sources import Sources

_SHOWN = {"0.00": "zero-shot", "1.00": "fine-tuned", "0.50": "WiSE-FT, alpha 0.5"}
_LARGE = "CLIP ViT-L/14@336"


def imagenet_numbers(sources: Sources) -> str:
    """The paper's accuracies on ImageNet and its shifts, of the models that were fine-tuned end to end."""
    rows = [row for row in sources.paper_sweeps() if row["tuning"] == "end-to-end" and row["alpha"] in _SHOWN]
    columns = [name for name in rows[0] if name not in ("model", "tuning", "alpha", "avg_shifts", "avg_ref_shifts")]
    table = [
        (model, name, *(row[column] for column in columns), row["avg_shifts"])
        for model in dict.fromkeys(row["model"] for row in rows)
        for alpha, name in _SHOWN.items()
        for row in rows
        if (row["model"], row["alpha"]) == (model, alpha)
    ]
    header = ("CLIP", "model", *columns, "mean of the shifts")
    return (
        "**The paper's numbers**, in per cent (WiSE-FT, arXiv 2109.01903, tables 4 and 5; the mean is over the five "
        f"shifts; ImageNetV2 is matched-frequency):\n\n{markdown(header, table)}"
    )


def other_numbers(page: str) -> Callable[[Sources], str]:
    """The paper's numbers on the sets of a page."""

    def table(sources: Sources) -> str:
        rows = [
            (row["set"], row["measure"], row["fine_tuned"], row["wise_ft_0.5"])
            for row in sources.paper_sets()
            if row["page"] == page
        ]
        header = ("set", "measure", "fine-tuned", "WiSE-FT, alpha 0.5")
        return (
            f"**The paper's numbers**, in per cent (WiSE-FT, arXiv 2109.01903, {_LARGE}):\n\n{markdown(header, rows)}"
        )

    return table
