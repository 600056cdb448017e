"""Files of class names, and folders that are called by WordNet ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import shiftproof as sp
from shiftproof.data.class_lists import load_class_space, read_class_list
from shiftproof.data.wordnet import in_words

KNOWN = sp.ClassSpace.from_ids(["granny_smith", "n01440764", "Pear"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "granny_smith\tgreen apple\n\nn01440764 tench, Tinca tinca\nPear\tpear\n"),
        ("names.csv", 'id,name\ngranny_smith,green apple\nn01440764,"tench, Tinca tinca"\nPear,pear\n'),
        ("names.csv", 'name,label\ngreen apple,granny_smith\n"tench, Tinca tinca",n01440764\npear,Pear\n'),
        ("names.json", json.dumps({"granny_smith": "green apple", "n01440764": "tench, Tinca tinca", "Pear": "pear"})),
        (
            "names.json",
            json.dumps(
                {"0": ["granny_smith", "green apple"], "1": ["n01440764", "tench, Tinca tinca"], "2": ["Pear", "pear"]}
            ),
        ),
    ],
)
def test_every_form_gives_the_same_classes(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    classes = load_class_space(tmp_path / name, KNOWN)
    assert classes.ids == ("granny_smith", "n01440764", "Pear")
    assert classes.names == ("green apple", "tench, Tinca tinca", "pear")


def test_names_without_ids_belong_to_the_known_class_of_that_id_or_name(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("PEAR\nTench\nGranny Smith\nC/V joint\n", encoding="utf-8")
    classes = load_class_space(file, KNOWN)
    assert classes.ids == ("Pear", "n01440764", "granny_smith", "C-V joint")
    assert classes.names == ("PEAR", "Tench", "Granny Smith", "C/V joint")
    assert load_class_space(file).ids == ("PEAR", "Tench", "Granny Smith", "C-V joint")


def test_the_order_of_lines_is_that_of_the_classes_and_never_matched_by_it(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    file.write_text("lemon\nplum\nfig\n", encoding="utf-8")
    with pytest.raises(
        sp.InputError, match="lacks classes of the data: 'Pear', 'granny_smith', 'n01440764'.*its id, a tab"
    ):
        load_class_space(file, KNOWN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "\n \n", "names no class"),
        ("names.txt", "a\nb\na\n", "has the class 'a' twice, line 1 and line 3"),
        ("names.txt", "a\t \n", "line 1 of .* has no name"),
        ("names.json", '["a", ""]', "entry 2 of .* has no name"),
        ("names.json", '["a", 3]', "entry 2 of .* is 3; it must be a class name"),
        ("names.json", '"a"', "names no class"),
        ("names.csv", "title\na\n", "it needs 'name'"),
        ("names.csv", "id,name\na,b\na,c\n", "has the class 'a' twice, line 2 and line 3"),
    ],
)
def test_mistakes_name_the_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(sp.InputError, match=message):
        read_class_list(tmp_path / name)


def test_a_missing_file_and_a_picture_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match="does not exist"):
        read_class_list(tmp_path / "none.txt")
    (tmp_path / "names.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(sp.InputError, match="UTF-8"):
        read_class_list(tmp_path / "names.png")


def test_folders_called_by_wordnet_ids_have_names_in_words(tmp_path: Path) -> None:
    for name in ("n01440764", "n02012849", "n03126707", "n00007846", "n99999999", "pear"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "one.png")
    classes = sp.data.load_set(f"folder:{tmp_path}").classes
    names = dict(zip(classes.ids, classes.names, strict=True))
    assert names["n01440764"] == "tench"
    assert names["n00007846"] == "person"  # a class of ImageNet-22k
    assert names["n02012849"] != names["n03126707"]  # both are cranes
    assert names["n99999999"] == "n99999999"
    assert names["pear"] == "pear"


def test_only_whole_wordnet_ids_are_recognised() -> None:
    assert in_words("n0144076") is None
    assert in_words("n014407641") is None
    assert in_words("N01440764") is None
