"""Parquet files in the layout of the Hugging Face hub: which columns and splits are read, and what is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.image_sets import pixels_of
from support.shards import labelled_pictures, write_parquet

import shiftproof as sp
from shiftproof.data.duplicates import find_shared_files
from shiftproof.data.formats.registry import FORMATS

NAMES = ("pear", "lemon", "red_apple")  # neither sorted nor in the order of the folders


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def labelled(folder: Path) -> tuple[list[int], list[Path]]:
    pictures = labelled_pictures(folder)
    return [NAMES.index(name) for name, _ in pictures], [file for _, file in pictures]


@pytest.fixture
def file(folders: Path, tmp_path: Path) -> Path:
    labels, pictures = labelled(folders / "test")
    return write_parquet(tmp_path / "fruit.parquet", {"label": labels}, pictures, names={"label": NAMES})


def test_labels_are_those_of_the_metadata_and_pixels_those_of_the_files(file: Path, folders: Path) -> None:
    images = sp.load_data(f"hf:{file}")
    labels, pictures = labelled(folders / "test")
    assert images.classes == sp.ClassSpace(NAMES, ("pear", "lemon", "red apple"))
    assert images.labels.tolist() == labels
    assert images.ids == tuple(map(str, range(9)))
    for pixels, picture in zip(pixels_of(images), pictures, strict=True):
        assert np.array_equal(pixels, sp.data.decoding.decode(picture))


def test_rows_are_read_in_any_order_and_matched_to_other_classes_by_name(file: Path, folders: Path) -> None:
    reference = sp.load_data(f"folder:{folders}/test")
    images = sp.load_data(f"hf:{file}", reference.classes)
    names = [NAMES[label] for label in labelled(folders / "test")[0]]
    assert [images.classes.ids[label] for label in images.labels] == names
    backwards = images.subset(range(8, -1, -1))
    assert np.array_equal(backwards.read(0), images.read(8))


def test_a_cache_tells_rows_apart_by_their_bytes(file: Path, folders: Path, tmp_path: Path) -> None:
    def inputs(cache: Path | None) -> torch.Tensor:
        images = sp.load_data(f"hf:{file}").read_with(sp.data.ReadSettings(cache=cache))
        return torch.cat(list(sp.data.evaluation_batches(images, sp.data.Preprocessing(size=12), 4)))

    labels, pictures = labelled(folders / "test")
    inputs(tmp_path / "resized")
    write_parquet(file, {"label": labels}, [pictures[0], *pictures[:-1]], names={"label": NAMES})
    assert torch.equal(inputs(tmp_path / "resized"), inputs(None))


def test_each_split_of_a_folder_is_found_by_its_name(folders: Path, tmp_path: Path) -> None:
    for split, folder in (("train", "train"), ("validation", "validation"), ("test", "test")):
        labels, pictures = labelled(folders / folder)
        name = tmp_path / f"fruit/data/{split}-00000-of-00001.parquet"
        write_parquet(name, {"label": labels}, pictures, names={"label": NAMES})
    data = f"hf:{tmp_path}/fruit"
    suite = sp.own_suite({"train": data, "validation": data, "test": data}, {})
    parts = (suite.reference.train, suite.reference.validation, suite.reference.test)
    assert [len(part) for part in parts] == [18, 9, 9]
    assert len(sp.load_data(f"{data},split=train")) == 18
    assert len(sp.load_data(f"{data},split=train[:4]")) == 4
    with pytest.raises(sp.InputError, match=r"has no split 'shift'; its splits are"):
        sp.load_data(f"{data},split=shift")


def test_a_split_that_is_missing_is_never_replaced_by_another_one(folders: Path, tmp_path: Path) -> None:
    labels, pictures = labelled(folders / "train")
    write_parquet(tmp_path / "fruit/train.parquet", {"label": labels}, pictures, names={"label": NAMES})
    with pytest.raises(sp.InputError, match=r"has no split 'test'; its splits are 'train'\. Name one: .*,split=train"):
        sp.load_data(f"hf:{tmp_path}/fruit")


def test_files_that_name_no_split_are_whatever_they_are_wanted_for(folders: Path, tmp_path: Path) -> None:
    labels, pictures = labelled(folders / "test")
    for number, half in enumerate((slice(0, 4), slice(4, 9))):
        name = tmp_path / f"fruit/{number:04d}.parquet"
        write_parquet(name, {"label": labels[half]}, pictures[half], names={"label": NAMES})
    assert sp.load_data(f"hf:{tmp_path}/fruit").labels.tolist() == labels


def test_columns_are_found_or_given(folders: Path, tmp_path: Path) -> None:
    labels, pictures = labelled(folders / "test")
    coarse = [int(label == 1) for label in labels]
    place = write_parquet(
        tmp_path / "f.parquet",
        {"fine": labels, "coarse": coarse, "camera": [f"c{i % 2}" for i in range(9)]},
        pictures,
        names={"fine": NAMES, "coarse": ("red or green", "yellow")},
        image="img",
    )
    with pytest.raises(
        sp.InputError, match=r"has several that may be the label \('fine', 'coarse', 'camera'\).*label="
    ):
        sp.load_data(f"hf:{place}")
    images = sp.load_data(f"hf:{place},label=coarse,group=camera,image=img")
    assert images.labels.tolist() == coarse
    assert images.groups == tuple(f"c{i % 2}" for i in range(9))
    assert sp.load_data(f"hf:{place},label=camera").classes.ids == ("c0", "c1")
    with pytest.raises(sp.InputError, match=r"unknown column .*'corse'\. Did you mean 'coarse'"):
        sp.load_data(f"hf:{place},label=corse")


def test_a_table_that_datasets_did_not_write_is_read_too(folders: Path, tmp_path: Path) -> None:
    labels, pictures = labelled(folders / "test")
    table = pa.table({"picture": [file.read_bytes() for file in pictures], "label": [NAMES[i] for i in labels]})
    pq.write_table(table, tmp_path / "plain.parquet")
    images = sp.load_data(f"hf:{tmp_path}/plain.parquet")
    assert images.classes.ids == tuple(sorted(NAMES))
    assert [images.classes.ids[label] for label in images.labels] == [NAMES[label] for label in labels]
    assert np.array_equal(images.read(3), sp.data.decoding.decode(pictures[3]))


def test_a_row_may_name_a_file_beside_the_table(folders: Path, tmp_path: Path) -> None:
    picture = tmp_path / "set/images/0.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes((folders / "test/pear/pear-0.png").read_bytes())
    cells = pa.array([{"bytes": None, "path": "images/0.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": cells, "label": ["pear"]}), tmp_path / "set/0.parquet")
    images = sp.load_data(f"hf:{tmp_path}/set")
    assert images.files == (picture,)
    assert images.read(0).shape == (32, 40, 3)


def test_a_changed_file_is_read_anew(file: Path, folders: Path) -> None:
    assert len(sp.load_data(f"hf:{file}")) == 9
    labels, pictures = labelled(folders / "train")
    write_parquet(file, {"label": labels}, pictures, names={"label": NAMES})
    assert sp.load_data(f"hf:{file}").labels.tolist() == labels


def test_pictures_without_labels_are_listed_one_by_one(folders: Path, tmp_path: Path) -> None:
    _, pictures = labelled(folders / "test")
    place = write_parquet(tmp_path / "f.parquet", {"id": list(range(9))}, pictures)
    assert [picture.sample for picture in FORMATS["hf"].pictures(str(place), "test")] == list(map(str, range(9)))


def test_pictures_that_two_sets_share_are_found(file: Path, folders: Path) -> None:
    sets = {"train": sp.load_data(f"folder:{folders}/test"), "test": sp.load_data(f"hf:{file}")}
    assert [(pair.count, pair.total) for pair in find_shared_files(sets, [("train", "test")])] == [(9, 9)]


def test_captions_may_be_one_or_several_a_row(folders: Path, tmp_path: Path) -> None:
    _, pictures = labelled(folders / "test")
    cells = [file.read_bytes() for file in pictures[:2]]
    for name, captions in (("one", ["a pear", "a lemon"]), ("many", [["a pear", "fruit"], ["a lemon"]])):
        pq.write_table(pa.table({"image": cells, "caption": captions}), tmp_path / f"{name}.parquet")
    one, many = (sp.data.load_captioned_set(f"hf:{tmp_path}/{name}.parquet") for name in ("one", "many"))
    assert (one.captions, many.captions) == (  # type: ignore[attr-defined]
        (("a pear",), ("a lemon",)),
        (("a pear", "fruit"), ("a lemon",)),
    )


def broken(folders: Path, tmp_path: Path) -> Iterator[tuple[str, Callable[[], Path], str]]:
    labels, pictures = labelled(folders / "test")

    def labelled_as(values: list[object], kind: object = None) -> Path:
        cells = [file.read_bytes() for file in pictures]
        pq.write_table(pa.table({"image": cells, "label": pa.array(values, kind)}), tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    def withheld() -> Path:
        return write_parquet(tmp_path / "b.parquet", {"label": [*labels[:-1], -1]}, pictures, names={"label": NAMES})

    def remote() -> Path:
        cells = pa.array([{"bytes": None, "path": "https://example.org/0.png"}])
        pq.write_table(pa.table({"image": cells, "label": ["pear"]}), tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    def cut() -> Path:
        place = labelled_as(labels)
        place.write_bytes(place.read_bytes()[:-300])
        return place

    def garbled() -> Path:
        place = labelled_as(labels)
        content = bytearray(place.read_bytes())
        content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)  # the metadata at the end stay readable
        place.write_bytes(content)
        return place

    def garbled_in_folder() -> Path:
        folder = tmp_path / "garbled"
        folder.mkdir()
        garbled().rename(folder / "test-1.parquet")
        labelled_as(labels).rename(folder / "test-0.parquet")
        return folder

    def other_columns() -> Path:
        folder = tmp_path / "other"
        folder.mkdir()
        labelled_as(labels).rename(folder / "test-0.parquet")
        table = pq.read_table(folder / "test-0.parquet")
        pq.write_table(table.rename_columns(["image", "class"]), folder / "test-1.parquet")
        return folder

    def other_count() -> Path:
        folder = tmp_path / "count"
        folder.mkdir()
        labelled_as(labels).rename(folder / "test-0.parquet")
        split = "{name: test, num_bytes: 1, num_examples: 7}"
        (folder / "README.md").write_text(f"---\ndataset_info: {{splits: [{split}]}}\n---\n", encoding="utf-8")
        return folder

    def no_pictures() -> Path:
        pq.write_table(pa.table({"label": labels, "size": labels}), tmp_path / "b.parquet")
        return tmp_path / "b.parquet"

    def pointer() -> Path:
        (tmp_path / "b.parquet").write_text("version https://git-lfs.github.com/spec/v1\n")
        return tmp_path / "b.parquet"

    yield (
        "an empty label",
        lambda: labelled_as([*labels[:4], None, *labels[5:]]),
        r"row 4 of .*b\.parquet has no 'label'",
    )
    yield "a withheld label", withheld, r"row 8 of .*b\.parquet has the label -1; it must be from 0 to 2\. Labels of -1"
    yield (
        "fractions as labels",
        lambda: labelled_as([0.5] * 9),
        r"no column for the label; its columns are 'image', 'label'",
    )
    yield "a picture on the web", remote, r"row 0 of .* has no picture but 'https://example\.org/0\.png'"
    yield "a file that was cut", cut, r"b\.parquet cannot be read"
    yield "a file whose middle is garbled", garbled, r"b\.parquet cannot be read"
    yield "a folder with such a file", garbled_in_folder, r"garbled cannot be read \(.*garbled/test-1\.parquet: "
    yield (
        "files of different columns",
        other_columns,
        r"other cannot be read \(.*other/test-1\.parquet: .*column names don't match",
    )
    yield "fewer rows than the card says", other_count, r"count cannot be read \(.*num_examples=7"
    yield "a file without pictures", no_pictures, r"has no column for the image; its columns are 'label', 'size'"
    yield "the pointer of Git LFS", pointer, r"b\.parquet is a Git LFS pointer"
    yield "a missing file", lambda: tmp_path / "none.parquet", r"none\.parquet does not exist"
    yield "a folder of pictures", lambda: folders / "test", r"contains no parquet file\. .*write folder:"


def test_broken_tables_stop_with_the_file_and_the_row(folders: Path, tmp_path: Path) -> None:
    for what, make, message in broken(folders, tmp_path):
        with pytest.raises(sp.InputError, match=message):
            pytest.fail(f"{what} was read: {sp.load_data(f'hf:{make()}')}")


def test_a_name_of_the_hub_that_cannot_be_reached_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(sp.InputError, match=r"hf:nobody/nothing cannot be read .*Check the name, the network"):
        sp.load_data("hf:nobody/nothing")


def test_a_picture_that_cannot_be_decoded_is_named_by_its_row(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    cells = [buffer.getvalue(), b"no picture"]
    pq.write_table(pa.table({"image": cells, "label": ["a", "b"]}), tmp_path / "f.parquet")
    images = sp.load_data(f"hf:{tmp_path}/f.parquet")
    with pytest.raises(
        sp.InputError, match=r"the image in row 1 of hf:.*f\.parquet cannot be decoded: it is no picture"
    ):
        images.read(1)
