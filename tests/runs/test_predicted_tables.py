"""Tables of predictions: streamed, continued after an interruption, and with the pictures that cannot be decoded."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.commands import Call, assert_mistake
from support.shards import CONTAINERS, labelled_pictures, write_shards

import shiftproof as sp
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.streams import picture_batches
from shiftproof.models.directories import save_classifier
from shiftproof.runs import tables
from shiftproof.runs.tables import predict_table

NAMES = ("pear", "lemon", "red_apple")


@pytest.fixture(scope="module")
def classifier(tiny: sp.models.Clip, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "zero"
    save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(NAMES)), folder)
    return folder


@pytest.fixture
def pictures(folders: Path, tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, (_, file) in enumerate(labelled_pictures(folders / "test")):
        target = root / f"{number % 2}/{number}, a.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    (root / "1/broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "BATCH_SIZE", 4)


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_has_the_best_classes_and_their_probabilities(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    written = predict_table(classifier, f"folder:{pictures}", tmp_path / "p.csv", top=2)
    assert (written.pictures, written.broken) == (10, 1)
    rows = rows_of(tmp_path / "p.csv")
    assert list(rows[0]) == ["filepath", "class_1", "probability_1", "class_2", "probability_2", "error"]
    assert [row["filepath"] for row in rows] == sorted(row["filepath"] for row in rows)
    model = sp.load_classifier(classifier)
    for row in rows:
        if "broken" in row["filepath"]:
            assert "cannot be decoded" in row["error"]
            assert row["class_1"] == row["probability_2"] == ""
            continue
        pixels = sp.data.decoding.decode(pictures / row["filepath"])
        images = sp.data.array_set("one", model.classes, ["a"], np.array([0]), lambda pixels=pixels: pixels[None])
        expected = torch.tensor(sp.predict(model, images).logits[0], dtype=torch.float64).softmax(0)
        best = expected.argsort(descending=True)[:2].tolist()
        assert [row["class_1"], row["class_2"]] == [model.classes.names[k] for k in best]
        assert float(row["probability_1"]) == pytest.approx(float(expected[best[0]]), rel=1e-4)
        assert row["error"] == ""


@pytest.mark.parametrize("cut", [1, 5, 40, 41, 150, 300])
def test_an_interrupted_table_continues_at_any_byte(classifier: Path, pictures: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "p.csv"
    predict_table(classifier, f"folder:{pictures}", out, top=1)
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    written = predict_table(classifier, f"folder:{pictures}", out, top=1, resume=True)
    assert (written.pictures, written.broken) == (10, 1)
    assert out.read_bytes() == whole


def test_a_finished_table_is_only_extended_by_new_pictures(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    predict_table(classifier, f"folder:{pictures}", out, top=1)
    before = out.read_bytes()
    predict_table(classifier, f"folder:{pictures}", out, top=1, resume=True)
    assert out.read_bytes() == before
    Image.new("RGB", (8, 8)).save(pictures / "0/first.png")
    predict_table(classifier, f"folder:{pictures}", out, top=1, resume=True)
    assert out.read_bytes().startswith(before)
    assert rows_of(out)[-1]["filepath"] == "0/first.png"


def test_a_table_of_another_request_is_not_continued(classifier: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    predict_table(classifier, f"folder:{pictures}", out, top=1)
    with pytest.raises(sp.InputError, match="exists already. Continue it with `resume=True`"):
        predict_table(classifier, f"folder:{pictures}", out, top=1)
    with pytest.raises(sp.InputError, match="was written with another columns"):
        predict_table(classifier, f"folder:{pictures}", out, top=2, resume=True)
    assert predict_table(classifier, f"folder:{pictures}", out, top=2, overwrite=True).pictures == 10


def test_shards_without_labels_can_be_predicted(classifier: Path, folders: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", "test", labelled_pictures(folders / "test"), NAMES)
    assert predict_table(classifier, f"wds:{shards}", tmp_path / "p.csv").pictures == 9
    assert rows_of(tmp_path / "p.csv")[0]["filepath"] == "0/s0000000"


def test_only_a_few_batches_are_decoded_ahead(folders: Path, tiny: sp.models.Clip) -> None:
    taken = 0

    def many() -> object:
        nonlocal taken
        picture = next(iter(FORMATS["folder"].pictures(str(folders / "test"), "test")))
        for _ in range(10_000):
            taken += 1
            yield picture

    first = next(picture_batches(many(), tiny.preprocessing, 4))  # type: ignore[arg-type]
    assert first.inputs.shape == (4, 3, 64, 64)
    assert taken <= 4 * 12


def test_the_command_writes_the_table_and_says_how_many(call: Call, classifier: Path, pictures: Path) -> None:
    ended = call("predict", classifier, "--folder", pictures, "--csv", "out.csv", "--top", "1")
    assert ended.code == 0, ended.err
    assert "10 images in out.csv; 1 of them could not be decoded (column error)" in ended.out
    again = call("predict", classifier, "--folder", pictures, "--csv", "out.csv", "--top", "1")
    assert_mistake(again, "out.csv exists already. Continue it with --resume, or start anew with --overwrite.")
    assert_mistake(call("predict", classifier, "--folder", pictures), "name images to predict, or a folder with")


def test_the_command_takes_data_names(
    call: Call, classifier: Path, folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = [file for _, file in labelled_pictures(folders / "test")]
    (tmp_path / "list.csv").write_text("".join(f"{line}\n" for line in ["filepath", *files]))
    names = [container.write(tmp_path / container.suffix[1:], files) for container in CONTAINERS]
    answers = []
    for number, name in enumerate([*names, f"csv:{tmp_path / 'list.csv'}"]):
        ended = call("predict", classifier, "--data", name, "--csv", f"{number}.csv", "--top", "1")
        assert ended.code == 0, ended.err
        assert f"9 images in {number}.csv; 0 of them could not be decoded" in ended.out
        answers.append([(row["class_1"], row["probability_1"]) for row in rows_of(Path(f"{number}.csv"))])
    assert answers[0] == answers[1] == answers[2]
    wrong = call("predict", classifier, "--data", "zip:x", "--csv", "out.csv")
    assert_mistake(wrong, "unknown data name 'zip'")


def test_a_file_beside_the_table_that_is_no_request_is_left_alone(
    classifier: Path, folders: Path, tmp_path: Path
) -> None:
    note = tmp_path / "answers.csv.json"
    note.write_text('{"mine": 1}', encoding="utf-8")
    with pytest.raises(sp.InputError, match="is no record of an earlier job"):
        predict_table(classifier, f"folder:{folders}/test", tmp_path / "answers.csv")
    assert note.read_text(encoding="utf-8") == '{"mine": 1}'
