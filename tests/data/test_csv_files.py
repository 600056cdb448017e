"""CSV files as people have them: what is read, what is refused, and that the message names the file and the line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.inputs import CSVS, CsvCase

import shiftproof as sp
from shiftproof.evaluation.robustness import read_baselines
from shiftproof.storage import read_rows


def write(folder: Path, rows: str, header: str = "filepath,label") -> Path:
    path = folder / "mine.csv"
    path.write_bytes(f"{header}\n{rows}".encode(errors="surrogateescape"))
    return path


@pytest.mark.parametrize("case", CSVS, ids=lambda case: case.what)
def test_every_row_is_read_or_refused_as_the_page_says(case: CsvCase, tmp_path: Path) -> None:
    path = write(tmp_path, case.rows, case.header)
    if case.message is None:
        assert len(sp.data.load_set(f"csv:{path}")) == sum(bool(row) for row in case.rows.split("\n"))
        return
    with pytest.raises(sp.InputError, match=case.message) as caught:
        sp.data.load_set(f"csv:{path}")
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("rows", ['a.png,"pear\n', '"a.png,pear\n', 'a.png,pe"ar"\nb.png,"pear'])
def test_a_stray_mark_is_named_in_captions_and_baselines_too(tmp_path: Path, rows: str) -> None:
    long = rows + "b.png,pear\n" * 20_000
    path = write(tmp_path, long, "filepath,caption")
    with pytest.raises(sp.InputError, match=r"line \d+ of .*mine\.csv"):
        sp.data.load_captioned_set(f"csv:{path}")
    path = write(tmp_path, long, "model,colour")
    with pytest.raises(sp.InputError, match=r"line \d+ of .*mine\.csv"):
        read_baselines(path, ["colour"])


def test_the_line_of_a_row_is_its_first_line(tmp_path: Path) -> None:
    path = write(tmp_path, 'a.png,"first\nsecond"\n\nb.png,third\n', "filepath,caption")
    rows = read_rows(path, ("filepath", "caption"), multiline=("caption",))
    assert [(row.line, row.fields["caption"]) for row in rows] == [(2, "first\nsecond"), (5, "third")]


def test_a_caption_may_run_over_several_lines(tmp_path: Path) -> None:
    path = write(tmp_path, 'a.png,"a pear\non a table"\n./a.png,a pear\nx/../a.png,fruit\n', "filepath,caption")
    pairs = sp.data.load_captioned_set(f"csv:{path}")
    assert len(pairs) == 1


@pytest.mark.parametrize("other", ["./1.png", "a/../1.png", "{}/1.png", "~/1.png"])
def test_a_file_is_the_same_however_it_is_written(tmp_path: Path, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path, f"1.png,lemon\n{other.format(tmp_path)},lemon\n")
    with pytest.raises(sp.InputError, match="names a file twice: '1.png' on line 2 and .* on line 3"):
        sp.data.load_set(f"csv:{path}")


def test_the_home_directory_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lists").mkdir()
    (tmp_path / "photos/lemon").mkdir(parents=True)
    for name in ("photos/lemon/1.png", "mask.png"):
        Image.new("RGB", (4, 3), "white").save(tmp_path / name)
    write(tmp_path / "lists", "~/photos/lemon/1.png,lemon,~/mask.png", "filepath,label,mask")
    images = sp.data.load_set("csv:~/lists/mine.csv")
    assert images.read(0).shape == (3, 4, 3)
    assert images.mask is not None
    assert images.mask(0).min() == 255
    assert len(sp.data.load_set("folder:~/photos")) == 1
    write(tmp_path / "lists", "~/photos/lemon/1.png,a lemon", "filepath,caption")
    assert len(sp.data.load_captioned_set("csv:~/lists/mine.csv")) == 1
