"""Which files are pictures: one rule for folders, unlabelled folders, captions, masks, CSV files and predict."""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from support.commands import Call, assert_mistake
from support.inputs import FILES, FileCase

import shiftproof as sp
from shiftproof.data.pictures import SkippedFiles, find_pictures, picture_suffixes
from shiftproof.models.directories import save_classifier

CLASSES = sp.ClassSpace.from_ids(["lemon", "pear"])


def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), "yellow").save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, content: bytes | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if content is None else content)
    return path


def names_of(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(warning.message) for warning in caught]


@pytest.fixture
def people_s_folder(tmp_path: Path) -> Path:
    for case in FILES:
        write(tmp_path / "photos" / case.name, case.content)
    write(tmp_path / "photos" / "pear/1.png")
    return tmp_path / "photos"


def test_a_folder_of_classes_holds_what_the_page_says(people_s_folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = sp.data.load_set(f"folder:{people_s_folder}")
    expected = {case.name for case in FILES if case.reason is None} | {"pear/1.png"}
    assert set(images.ids) == expected
    assert images.classes.ids == ("lemon", "pear")
    (message,) = names_of(caught)
    skipped = [case for case in FILES if case.reason]
    assert message.startswith(f"folder:{people_s_folder}: {len(skipped)} files were skipped: ")
    for reason in {str(case.reason) for case in skipped}:
        of_reason = [case for case in skipped if case.reason == reason]
        assert re.search(rf"\b{len(of_reason)} {re.escape(reason)}[^(]*\(", message), reason


@pytest.mark.parametrize("case", FILES, ids=lambda case: case.name)
def test_every_format_has_the_same_rule(case: FileCase, tmp_path: Path) -> None:
    path = write(tmp_path / "photos" / case.name, case.content)
    readable = case.reason is None or case.reason == "beside the class folders"
    skipped = SkippedFiles()
    assert find_pictures(tmp_path / "photos", skipped) == ([path] if readable else [])
    assert bool(skipped) != readable
    path.with_suffix(".txt").write_text("a caption")
    readers: list[Callable[[], object]] = [
        lambda: sp.data.unlabelled_set(tmp_path / "photos", CLASSES),
        lambda: sp.data.load_captioned_set(f"folder:{tmp_path / 'photos'}"),
    ]
    for read in readers:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if readable:
                assert len(read()) == 1  # type: ignore[arg-type]
            else:
                with pytest.raises(sp.InputError, match="contains no image"):
                    read()


def test_the_suffixes_are_those_that_pillow_decodes() -> None:
    suffixes = picture_suffixes()
    assert {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".jpe",
        ".png",
        ".tif",
        ".tiff",
        ".webp",
        ".bmp",
        ".gif",
        ".ppm",
        ".jp2",
    } <= suffixes
    assert not {".h5", ".eps", ".pdf", ".mpg", ".txt", ""} & suffixes


def test_a_plugin_that_registers_itself_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ".heic" not in picture_suffixes()
    monkeypatch.setitem(Image.OPEN, "HEIF", (object, None))
    monkeypatch.setitem(Image.EXTENSION, ".heic", "HEIF")
    assert ".heic" in picture_suffixes()


def test_linked_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere/1.png")
    write(tmp_path / "photos/lemon/2.png")
    (tmp_path / "photos/lemon/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos/pear").symlink_to(tmp_path / "elsewhere")
    images = sp.data.load_set(f"folder:{tmp_path / 'photos'}")
    assert images.ids == ("lemon/2.png", "lemon/more/1.png", "pear/1.png")


@pytest.mark.parametrize("target", ["photos", "photos/lemon", "photos/lemon/sub", "."])
def test_a_loop_of_links_is_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path / "photos/lemon/sub/1.png")
    (tmp_path / "photos/lemon/sub/loop").symlink_to(tmp_path / target)
    with pytest.raises(sp.InputError, match=r"the link .*loop leads back to .*Remove the link"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")


def test_two_folders_that_link_to_each_other_are_refused(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        write(tmp_path / f"photos/{name}/1.png")
        (tmp_path / f"photos/{name}/link").symlink_to(tmp_path / f"photos/{other}")
    with pytest.raises(sp.InputError, match="leads back to"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "photos/lemon/1.png")
    (tmp_path / "photos/lemon/2.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(sp.InputError, match=r"2\.png is a link to .*gone\.png, which does not exist"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")
    os.unlink(tmp_path / "photos/lemon/2.png")
    (tmp_path / "photos/lemon/3.png").symlink_to("3.png")
    with pytest.raises(sp.InputError, match=r"3\.png is a link to 3\.png, which does not exist"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")


def test_a_class_that_links_to_nothing_is_named(tmp_path: Path) -> None:
    write(tmp_path / "photos/lemon/1.png")
    (tmp_path / "photos/pear").symlink_to(tmp_path / "unmounted")
    with pytest.raises(sp.InputError, match=r"photos/pear is a link to .*unmounted, which does not exist"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")


def test_a_class_folder_without_pictures_says_what_is_in_it(tmp_path: Path) -> None:
    write(tmp_path / "photos/lemon/1.heic")
    write(tmp_path / "photos/lemon/2.heic")
    write(tmp_path / "photos/pear/1.png")
    with pytest.raises(sp.InputError, match=r"class folder .*lemon contains no image \(2 files were skipped: .*\.heic"):
        sp.data.load_set(f"folder:{tmp_path / 'photos'}")


def test_rows_of_a_csv_that_name_leftovers_are_skipped(tmp_path: Path) -> None:
    write(tmp_path / "lemon/1.png")
    write(tmp_path / "oddly.named")
    rows = ["lemon/1.png,lemon", "lemon/._1.png,lemon", "__MACOSX/lemon/1.png,lemon", "oddly.named,pear"]
    (tmp_path / "mine.csv").write_text("\n".join(["filepath,label", *rows]))
    with pytest.warns(UserWarning, match=r"csv:.*mine\.csv: 2 files were skipped: 2 left by an operating system or"):
        images = sp.data.load_set(f"csv:{tmp_path / 'mine.csv'}")
    assert images.ids == ("lemon/1.png", "oddly.named")
    assert images.read(1).shape == (3, 4, 3)


@pytest.mark.filterwarnings("always")
def test_predict_takes_folders_and_skips_leftovers(tmp_path: Path, call: Call, tiny: sp.models.Clip) -> None:
    save_classifier(sp.zero_shot_classifier(tiny, CLASSES), tmp_path / "zero")
    for name in ("photos/b/1.png", "photos/2.png", "photos/.hidden/3.png", "4.png", "Thumbs.db"):
        write(tmp_path / name)
    ended = call("predict", "zero", "photos", "4.png", "Thumbs.db", "--top", "1")
    assert ended.code == 0
    assert [line for line in ended.out.splitlines() if not line.startswith(" ")] == [
        "photos/2.png",
        "photos/b/1.png",
        "4.png",
    ]
    assert ended.err == (
        "warning: images: 2 files were skipped: 1 hidden ('.hidden'), "
        "1 left by an operating system or a tool ('Thumbs.db').\n"
    )
    (tmp_path / "empty").mkdir()
    assert_mistake(call("predict", "zero", "empty"), "the folder empty contains no image")
    assert_mistake(call("predict", "zero", "Thumbs.db"), "contains no image")
