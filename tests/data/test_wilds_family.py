"""iWildCam, FMoW and Camelyon17, read from tables as WILDS has them."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.miniatures import numbering, reader, share_right, write_picture

import shiftproof as sp
from shiftproof.data import load_data


def write_table(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")


def test_iwildcam_is_split_by_its_table_and_clustered_by_camera(tmp_path: Path) -> None:
    folder = tmp_path / "iwildcam_v2.0"
    header = ",split,location_remapped,location,sequence_remapped,seq_id,y,category_id,datetime,filename"
    cells = [("train", 1, 0), ("id_val", 1, 2), ("id_test", 1, 1), ("val", 5, 0), ("test", 6, 3), ("test", 6, 0)]
    rows = [
        f"{i},{split},{camera},{camera},{i},s{i},{y},{y},2013-06-05 05:44:19.000,f{i}.jpg"
        for i, (split, camera, y) in enumerate(cells)
    ]
    write_table(folder / "metadata.csv", header, rows)
    names = ["0,empty", "1,tayassu pecari", "2,mazama temama", "3,mazama temama"]
    write_table(folder / "categories.csv", "y,name", names)
    for i, (_, _, y) in enumerate(cells):
        write_picture(folder / "train" / f"f{i}.jpg", y)
    images = load_data(f"iwildcam:test:{tmp_path}")
    assert (images.ids, images.labels.tolist(), images.sources) == (("f4.jpg", "f5.jpg"), [3, 0], ("6", "6"))
    assert images.classes.ids == ("empty", "tayassu pecari", "mazama temama-2", "mazama temama-3")
    assert share_right(reader(images.classes), images) == 1.0
    assert share_right(numbering(images, [0, 2, 3, 1]), images) < 1.0  # the order of the alphabet
    assert images.protocol is not None
    assert images.clusters.kind == "location"
    assert images.protocol.metrics == ("macro F1",)
    suite = sp.load_suite(f"iwildcam:{tmp_path}")
    assert [len(images) for images in (suite.reference.train, suite.reference.validation)] == [1, 1]
    assert suite.reference.test.ids == ("f2.jpg",)
    assert suite.shifts[0].data.ids == images.ids


def test_the_images_of_fmow_are_numbered_over_all_rows(tmp_path: Path) -> None:
    folder = tmp_path / "fmow_v1.1"
    write_table(
        folder / "country_code_mapping.csv",
        "name,alpha-2,alpha-3,region",
        ["France,FR,FRA,Europe", "Peru,PE,PER,Americas"],
    )
    rows = [
        ("seq", "zoo", "FRA", "2012-01-01T00:00:00Z"),
        ("train", "zoo", "FRA", "2012-12-31T23:59:59Z"),
        ("train", "airport", "PER", "2013-01-01T00:00:00Z"),  # too late to be trained on
        ("val", "airport", "PER", "2015-05-05T00:00:00Z"),
        ("test", "zoo", "ATA", "2016-01-01T00:00:00Z"),
        ("test", "airport", "PER", "2017-01-01T00:00:00Z"),
        ("test", "airport", "PER", "2011-01-01T00:00:00Z"),
        ("val", "zoo", "FRA", "2010-01-01T00:00:00Z"),
    ]
    write_table(
        folder / "rgb_metadata.csv",
        "split,img_filename,category,country_code,timestamp",
        [f"{split},{name}_1_{i}_rgb.jpg,{name},{code},{time}" for i, (split, name, code, time) in enumerate(rows)],
    )
    ids = {part: load_data(f"fmow:{part}:{tmp_path}").ids for part in ("train", "id_val", "id_test", "val", "test")}
    assert ids == {
        "train": ("rgb_img_1.png",),
        "id_val": ("rgb_img_7.png",),
        "id_test": ("rgb_img_6.png",),
        "val": ("rgb_img_3.png",),
        "test": ("rgb_img_4.png", "rgb_img_5.png"),
    }
    for i, number in ((4, 1), (5, 0)):
        write_picture(folder / "images" / f"rgb_img_{i}.png", number)
    test = load_data(f"fmow:test:{tmp_path}")
    assert share_right(reader(test.classes), test) == 1.0
    assert share_right(numbering(test, [1, 0]), test) == 0.0  # the order in which the table names them
    assert test.groups == ("Other", "Americas")
    assert test.sources == ("test/zoo_1", "test/airport_1")
    assert test.clusters.kind == "scene"


def test_camelyon_is_split_by_hospital(tmp_path: Path) -> None:
    folder = tmp_path / "camelyon17_v1.0"
    rows = [("004", 0, 0, 0), ("017", 3, 1, 1), ("020", 1, 0, 0), ("042", 2, 1, 0)]
    write_table(
        folder / "metadata.csv",
        ",patient,node,x_coord,y_coord,tumor,slide,center,split",
        [f"{i},{who},4,33,21,{tumor},{i},{center},{split}" for i, (who, center, tumor, split) in enumerate(rows)],
    )
    name = "patient_042_node_4/patch_patient_042_node_4_x_33_y_21.png"
    write_picture(folder / "patches" / name, 1)
    images = load_data(f"camelyon17:{folder}", split="shift")
    assert (images.ids, images.labels.tolist(), images.sources) == ((name,), [1], ("3",))
    assert images.clusters.kind == "slide"
    assert images.read(0).shape == (16, 16, 3)
    assert share_right(reader(images.classes), images) == 1.0
    assert share_right(numbering(images, [1, 0]), images) == 0.0
    parts = {part: len(load_data(f"camelyon17:{part}:{tmp_path}")) for part in ("train", "id_val", "val", "test")}
    assert parts == {"train": 1, "id_val": 1, "val": 1, "test": 1}


def test_a_table_that_cannot_be_read_is_named_with_the_line(tmp_path: Path) -> None:
    folder = tmp_path / "camelyon17_v1.0"
    with pytest.raises(sp.InputError, match="has no camelyon17_v1.0/metadata.csv"):
        load_data(f"camelyon17:{tmp_path}")
    write_table(folder / "metadata.csv", "patient,node", ["004,1"])
    with pytest.raises(sp.InputError, match=r"metadata.csv has the columns .* it needs"):
        load_data(f"camelyon17:{tmp_path}")
    header = "patient,node,x_coord,y_coord,tumor,slide,center,split"
    write_table(folder / "metadata.csv", header, ["004,1,2,3,often,0,2,0"])
    with pytest.raises(sp.InputError, match=r"line 2 of .*metadata.csv has the tumor 'often'"):
        load_data(f"camelyon17:test:{tmp_path}")
    write_table(folder / "metadata.csv", header, ["004,1,2,3,2,0,2,0"])
    with pytest.raises(sp.InputError, match="has the label 2; there are 2 classes"):
        load_data(f"camelyon17:test:{tmp_path}")
