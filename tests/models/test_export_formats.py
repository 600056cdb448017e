"""A classifier of every family goes from its start through fine-tuning and the alpha path into every format."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.export_table import CASES, FORMATS, PAGE, REFUSED, SEPARATE, ExportCase, page_with_table
from support.exported import assert_usable

import shiftproof as sp
from shiftproof.models.export.exporting import export_classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
SETTINGS = sp.FinetuneSettings(epochs=1, batch_size=6, lr=1e-4)


@pytest.fixture(scope="module")
def suite(folders: Path) -> sp.ShiftSuite:
    """The fruit with its sketches as a shift; read only."""
    parts = {name: f"folder:{folders}/{name}" for name in ("train", "validation", "test")}
    return sp.own_suite(parts, {"sketch": {"data": f"folder:{folders}/sketch"}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::shiftproof.errors.ResultWarning")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what.replace(" ", "-"))
def test_every_format_holds_what_the_page_says(case: ExportCase, suite: sp.ShiftSuite, tmp_path: Path) -> None:
    classifier = case.start(tmp_path, suite)
    if case.tuned:
        tuned = sp.finetune(classifier, suite, SETTINGS, seed=0, device="cpu")
        path = sp.sweep_alpha(classifier, tuned, suite, alphas=3, device="cpu")
        classifier = sp.wise_ft(classifier, tuned, sp.choose_alpha(path))
    sp.save_classifier(classifier, tmp_path / "ensemble")
    stored = sp.load_classifier(tmp_path / "ensemble")
    for to, outcome in zip(FORMATS, case.outcomes, strict=True):
        if outcome == REFUSED:
            with pytest.raises(sp.InputError, match=f"the format {to} cannot hold this classifier: "):
                export_classifier(stored, to, tmp_path / to)
            continue
        export = export_classifier(stored, to, tmp_path / to)
        assert (tmp_path / to / "head.safetensors").is_file() == (outcome == SEPARATE)
        assert_usable(stored, export, tmp_path)


def test_the_table_of_the_page_is_up_to_date() -> None:
    content = PAGE.read_text(encoding="utf-8")
    assert page_with_table(content) == content, "run python tools/inputs.py"
