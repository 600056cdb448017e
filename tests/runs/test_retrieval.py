"""Retrieval: the pictures that fit a text and the texts that fit a picture, as a twin finds them all at once."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Call, assert_mistake

import shiftproof as sp
from shiftproof.data.loading import normalise, resize, to_unit_range
from shiftproof.evaluation.retrieval import BestMatches
from shiftproof.runs import retrieve
from shiftproof.runs.retrieve import retrieve_images, retrieve_texts

TEXTS = ["a photo of a lemon", "a pear", "a red apple", "a sketch", "nothing"]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=12), st.integers(1, 5))
def test_the_best_of_batches_are_those_of_all(columns: list[list[int]], top: int) -> None:
    similarity, best = torch.tensor(columns, dtype=torch.float64).T, BestMatches(2, top)
    for start in range(0, len(columns), 3):
        best.add(similarity[:, start : start + 3], [str(i) for i in range(start, min(start + 3, len(columns)))])
    for row, scores in zip(best.rows, similarity.tolist(), strict=True):
        assert [int(item) for _, item in row] == sorted(range(len(scores)), key=lambda i: -scores[i])[:top]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieve, "BATCH_SIZE", 2)


def similarities(clip: sp.models.Clip, files: list[Path]) -> torch.Tensor:
    pixels = [resize(sp.data.decoding.decode(file), clip.preprocessing) for file in files]
    with torch.inference_mode():
        images = clip.model.encode_image(normalise(to_unit_range(pixels), clip.preprocessing), normalize=True)
        texts = clip.model.encode_text(clip.tokenizer(TEXTS), normalize=True)
    return texts @ images.T


def test_pictures_of_a_text_are_those_of_the_twin(tiny: sp.models.Clip, folders: Path) -> None:
    files = sorted((folders / "test").rglob("*.png"))
    expected = similarities(tiny, files)
    result = retrieve_images("tiny", TEXTS[:2], f"folder:{folders}/test", top=3, device="cpu")
    assert result.searched == 9
    for q in (0, 1):
        matches = [match for match in result.matches if match.query == TEXTS[q]]
        best = expected[q].argsort(descending=True, stable=True)[:3].tolist()
        assert [match.item for match in matches] == [files[i].relative_to(folders / "test").as_posix() for i in best]
        assert [match.similarity for match in matches] == pytest.approx(expected[q, best].tolist(), abs=1e-5)
        assert [match.rank for match in matches] == [1, 2, 3]


def test_texts_of_a_picture_are_those_of_the_twin(tiny: sp.models.Clip, folders: Path, tmp_path: Path) -> None:
    files = [folders / "test/lemon/lemon-0.png", folders / "test/pear/pear-0.png", folders / "sketch/pear/pear-1.png"]
    (tmp_path / "texts.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    expected = similarities(tiny, files)
    result = retrieve_texts("tiny", files, tmp_path / "texts.txt", top=2, device="cpu")
    assert result.searched == 5
    for i, file in enumerate(files):
        best = expected[:, i].argsort(descending=True, stable=True)[:2].tolist()
        assert [m.item for m in result.matches if m.query == str(file)] == [TEXTS[k] for k in best]


def test_the_command_prints_and_writes_the_results(folders: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes((folders / "test/lemon/lemon-0.png").read_bytes())
    (tmp_path / "photos/b.png").write_bytes(b"broken")
    ended = call("retrieve", "tiny", "--text", "a lemon", "--images", "photos", "--csv", "out.csv")
    assert ended.code == 0, ended.err
    assert "1 picture could not be decoded: the image photos/b.png cannot" in ended.out
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["query"], row["rank"], row["item"]) for row in rows] == [("a lemon", "1", "a.png")]
    assert_mistake(call("retrieve", "tiny", "--text", "a lemon"), "give --text with --images")
    (tmp_path / "empty.txt").write_text("\n")
    ended = call("retrieve", "tiny", "--image", "photos/a.png", "--texts", "empty.txt")
    assert_mistake(ended, "empty.txt contains no text")
    ended = call("retrieve", "lite0", "--text", "a lemon", "--images", "photos")
    assert_mistake(ended, "'lite0' has no text tower, so it cannot compare pictures with texts")
