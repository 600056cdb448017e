"""Which export formats hold classifiers of which models, and the table of ``docs/exporting.md`` that says so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from support.exported import PROMPTS, small_clip
from support.transformers_models import write_model

import shiftproof as sp
from shiftproof.finetuning.probe import probe_classifier
from shiftproof.models.encoders import load_encoder
from shiftproof.models.heads import own_head_classifier

PAGE = Path(__file__).parents[2] / "docs" / "exporting.md"
WHOLE, SEPARATE, REFUSED = "whole", "head in a file", "refused"
FORMATS = ("open_clip", "transformers", "timm", "onnx", "torchscript")


@dataclass(frozen=True)
class ExportCase:
    """A kind of classifier, how to build its start for a suite, and what each of ``FORMATS`` makes of it.

    Without ``tuned``, the start itself is exported, and otherwise its ensemble with a fine-tuned model.
    """

    what: str
    start: Callable[[Path, sp.ShiftSuite], sp.Classifier]
    outcomes: tuple[str, str, str, str, str]
    tuned: bool = True


def _open_clip(folder: Path, suite: sp.ShiftSuite) -> sp.Classifier:
    return sp.zero_shot_classifier(sp.load_clip(small_clip(folder / "clip")), suite.classes, PROMPTS)


def _transformers(kind: str) -> Callable[[Path, sp.ShiftSuite], sp.Classifier]:
    def build(folder: Path, suite: sp.ShiftSuite) -> sp.Classifier:
        return sp.zero_shot_classifier(sp.load_clip(write_model(folder / kind, kind)), suite.classes, PROMPTS)

    return build


def _probe(name: str) -> Callable[[Path, sp.ShiftSuite], sp.Classifier]:
    def build(folder: Path, suite: sp.ShiftSuite) -> sp.Classifier:
        return probe_classifier(load_encoder(name), suite.reference.train, suite.reference.validation, device="cpu")

    return build


def _own_head(folder: Path, suite: sp.ShiftSuite) -> sp.Classifier:
    return own_head_classifier(load_encoder("lite0"))


CASES = (
    ExportCase("a zero-shot classifier of open_clip", _open_clip, (WHOLE, WHOLE, REFUSED, WHOLE, WHOLE), tuned=False),
    ExportCase("an ensemble of open_clip", _open_clip, (SEPARATE, SEPARATE, REFUSED, WHOLE, WHOLE)),
    ExportCase("an ensemble of transformers' CLIP", _transformers("clip"), (REFUSED, SEPARATE, REFUSED, WHOLE, WHOLE)),
    ExportCase(
        "an ensemble of transformers' SigLIP", _transformers("siglip"), (REFUSED, SEPARATE, REFUSED, WHOLE, WHOLE)
    ),
    ExportCase(
        "a zero-shot classifier of transformers' SigLIP 2",
        _transformers("siglip2"),
        (REFUSED, WHOLE, REFUSED, WHOLE, WHOLE),
        tuned=False,
    ),
    ExportCase("an ensemble of timm, from a probe", _probe("timm:test_vit"), (REFUSED, WHOLE, WHOLE, WHOLE, WHOLE)),
    ExportCase("`lite0` with its own head", _own_head, (REFUSED, WHOLE, WHOLE, WHOLE, WHOLE), tuned=False),
    ExportCase(
        "a probe of torchvision",
        _probe("torchvision:mobilenet_v3_small"),
        (REFUSED, REFUSED, REFUSED, WHOLE, WHOLE),
        tuned=False,
    ),
)


def export_table() -> str:
    """The table of all cases."""
    rows = [f"| {case.what} | {' | '.join(case.outcomes)} |" for case in CASES]
    return "\n".join([f"| classifier | {' | '.join(FORMATS)} |", "|---|---|---|---|---|---|", *rows])


def page_with_table(content: str) -> str:
    """The content of the page with the present table."""
    block = f"<!-- exports: python tools/inputs.py -->\n{export_table()}\n<!-- end of exports -->"
    return re.sub(r"<!-- exports: .*?<!-- end of exports -->", lambda _: block, content, flags=re.DOTALL)
