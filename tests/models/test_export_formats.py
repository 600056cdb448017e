"""A classifier of every family goes from its start through fine-tuning and the alpha path into every format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.export_table import CASES, FORMATS, PAGE, REFUSED, SEPARATE, ExportCase, page_with_table
from support.exported import assert_usable
from support.shards import labelled_pictures, write_parquet, write_shards

import shiftproof as sp
from shiftproof.models.export.exporting import export_classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*torch.jit.*:DeprecationWarning")
SETTINGS = sp.FinetuneSettings(epochs=1, batch_size=6, lr=1e-4)


@pytest.fixture(scope="module")
def suite(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sp.ShiftSuite]:
    """The fruit, each part in another layout: tar shards, a CSV file, parquet, and a folder of sketches; read only."""
    datasets = pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("layouts")
    names = ("pear", "lemon", "red_apple")  # neither sorted nor in the order of the folders
    write_shards(root / "shards", "train", labelled_pictures(folders / "train"), names)
    rows = [f"{file},{name}\n" for name, file in labelled_pictures(folders / "validation")]
    (root / "validation.csv").write_text("filepath,label\n" + "".join(rows), encoding="utf-8")
    labels, pictures = zip(*labelled_pictures(folders / "test"), strict=True)
    columns = {"label": [names.index(label) for label in labels]}
    write_parquet(root / "test.parquet", columns, pictures, names={"label": names})
    parts = {
        "train": f"wds:{root}/shards",
        "validation": f"csv:{root}/validation.csv",
        "test": f"hf:{root}/test.parquet",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", root / "cache")
        yield sp.own_suite(parts, {"sketch": {"data": f"folder:{folders}/sketch"}})


def test_every_layout_gives_the_pictures_and_classes_of_the_folders(suite: sp.ShiftSuite, folders: Path) -> None:
    parts = {"train": suite.reference.train, "validation": suite.reference.validation, "test": suite.reference.test}
    for split, images in parts.items():
        of_folder = sp.load_data(f"folder:{folders}/{split}", suite.classes)
        assert sorted(labelled_pixels(images)) == sorted(labelled_pixels(of_folder))


def labelled_pixels(images: sp.ImageSet) -> list[tuple[str, bytes]]:
    return [(images.classes.ids[label], images.read(i).tobytes()) for i, label in enumerate(images.labels)]


@pytest.mark.long
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
