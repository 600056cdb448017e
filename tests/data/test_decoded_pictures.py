"""Every kind of picture is decoded by one rule, counted, and the same in every command."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.commands import Call, quick_training_flags
from support.pictures import ALPHA, COLOURS, DECODED_HERE, GREY, PictureCase, in_rgb, turned, write_oriented
from support.shards import CONTAINERS, Container

import shiftproof as sp
from shiftproof.data import decoding
from shiftproof.data.batches import decoded_once, evaluation_batches, training_batches
from shiftproof.data.decoding import decode, decode_mask, read_picture
from shiftproof.data.loading import Preprocessing
from shiftproof.ensembling.path import sweep_sets
from shiftproof.models.directories import save_classifier

SMALL = Preprocessing(size=4)
LEVELS = st.lists(st.integers(0, 65535), min_size=1, max_size=30)


@pytest.mark.parametrize("case", DECODED_HERE, ids=lambda case: f"{case.name} {case.suffix}")
def test_every_kind_of_picture_is_read_as_the_page_says(case: PictureCase, tmp_path: Path) -> None:
    path = tmp_path / f"picture{case.suffix}"
    expected = case.write(path)
    if expected is None:
        with pytest.raises(sp.InputError, match="range the file does not state") as caught:
            read_picture(path)
        assert str(path) in str(caught.value)
        return
    picture = read_picture(path)
    assert picture.pixels.shape == expected.shape
    assert picture.pixels.dtype == np.uint8
    assert np.abs(picture.pixels.astype(int) - expected).max() <= case.tolerance
    assert set(picture.conversions) == set(case.conversions)


@pytest.mark.parametrize("container", CONTAINERS, ids=lambda container: container.suffix)
def test_every_kind_of_picture_is_read_alike_in_larger_files(
    container: Container, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    files = [tmp_path / f"{number}{case.suffix}" for number, case in enumerate(DECODED_HERE)]
    written = [case.write(file) for case, file in zip(DECODED_HERE, files, strict=True)]
    readable = [file for file, pixels in zip(files, written, strict=True) if pixels is not None]
    images = sp.load_data(container.write(tmp_path / "larger", readable))
    expected = [read_picture(file) for file in readable]
    for number, picture in enumerate(expected):
        assert np.array_equal(images.read(number), picture.pixels)
    counts = Counter(kind for picture in expected for kind in picture.conversions)
    assert [conversions.counts() for conversions in images.conversions] == [counts]
    (refused, *_) = (file for file, pixels in zip(files, written, strict=True) if pixels is None)
    images = sp.load_data(container.write(tmp_path / "refused", [refused]))
    with pytest.raises(sp.InputError, match="range the file does not state"):
        images.read(0)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(suffix: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(COLOURS).save(path, exif=exif, **lossless)
    picture = read_picture(path)
    assert np.array_equal(picture.pixels, turned(COLOURS, orientation))
    assert picture.conversions == ((decoding.UPRIGHT,) if orientation > 1 else ())


@given(levels=LEVELS)
def test_of_16_bits_the_upper_8_are_taken(levels: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    values = np.array([levels], dtype=np.uint16)
    path = tmp_path_factory.mktemp("levels") / "grey.png"
    Image.fromarray(values).save(path)
    assert np.array_equal(decode(path), in_rgb((values // 256).astype(np.uint8)))


def test_a_16_bit_tiff_in_which_white_is_zero_is_not_a_negative(tmp_path: Path) -> None:
    path = tmp_path / "scan.tif"
    Image.fromarray(65535 - GREY.astype(np.uint16) * 257).save(path, tiffinfo={262: 0})
    assert np.array_equal(decode(path), in_rgb(GREY))


def test_transparency_in_a_mask_is_background(tmp_path: Path) -> None:
    white = np.full((3, 2), 255, np.uint8)
    Image.fromarray(np.dstack([white, white, white, ALPHA])).save(tmp_path / "mask.png")
    assert np.abs(decode_mask(tmp_path / "mask.png").astype(int) - ALPHA).max() <= 1
    Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(decode_mask(tmp_path / "deep.png"), GREY)
    shown = write_oriented(tmp_path / "turned.png", 6, in_rgb(GREY))
    assert np.array_equal(decode_mask(tmp_path / "turned.png"), shown[:, :, 0])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder of two classes: a plain picture, two of 16 bits and one that lies on its side."""
    for name in ("lemon/1", "lemon/2", "pear/3", "pear/4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    Image.fromarray(COLOURS).save(tmp_path / "lemon/1.png")
    for name in ("lemon/2.png", "pear/3.png"):
        Image.fromarray(GREY.astype(np.uint16) * 257).save(tmp_path / name)
    write_oriented(tmp_path / "pear/4.png", 8)
    return tmp_path


PASSES: dict[str, Callable[[sp.ImageSet], object]] = {
    "evaluation": lambda images: list(evaluation_batches(images, SMALL, 3)),
    "decoded once": lambda images: decoded_once(images, SMALL),
    "training": lambda images: list(training_batches(images, SMALL, [range(len(images))], (0.5, 1.0), seed=0)),
}


def test_conversions_are_counted_once_for_each_set(mixed: Path) -> None:
    images = sp.data.load_set(f"folder:{mixed}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for read_all in PASSES.values():
            read_all(images)
    assert [str(warning.message) for warning in caught] == [
        f"folder:{mixed}: 3 of 4 pictures read had to be converted: 2 {decoding.SIXTEEN_BITS}, "
        f"1 {decoding.UPRIGHT}. docs/inputs.md explains the rules."
    ]


@pytest.mark.filterwarnings("always")
def test_a_sweep_on_a_cpu_warns_once_for_each_set(
    mixed: Path, tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr("shiftproof.ensembling.path.BATCH_SIZE", 1)
    images = sp.data.load_set(f"folder:{mixed}")
    evaluate = sp.zero_shot_classifier(tiny, images.classes)
    few = images.subset([1])
    sweep_sets(evaluate, evaluate, {"few": few, "all": images}, (0.0, 1.0), device="cpu")
    kinds = (decoding.SIXTEEN_BITS, decoding.UPRIGHT)
    told = [str(warning.message) for warning in recwarn if "converted" in str(warning.message)]
    assert [sum(kind in message for kind in kinds) for message in told] == [1, 2]  # the second set has another kind
    sweep_sets(evaluate, evaluate, {"all": images}, (0.0, 1.0), device="cpu")
    assert len([warning for warning in recwarn if "converted" in str(warning.message)]) == 2


@pytest.mark.parametrize("name", PASSES)
def test_every_way_to_read_a_set_counts(mixed: Path, name: str) -> None:
    images = sp.data.load_set(f"folder:{mixed}").subset([1, 2])
    with pytest.warns(UserWarning, match=f"2 of 2 pictures read had to be converted: 2 {decoding.SIXTEEN_BITS}"):
        PASSES[name](images)


def test_captions_count_too(mixed: Path) -> None:
    (mixed / "pairs.csv").write_text("filepath,caption\nlemon/1.png,one\nlemon/2.png,two\n")
    pairs = sp.data.load_captioned_set(f"csv:{mixed}/pairs.csv")
    with pytest.warns(UserWarning, match="1 of 2 pictures"):
        pairs.batch([0, 1], SMALL, torch.Generator(), train=False)


def _deep_copy(folder: Path, out: Path) -> Path:
    """The same grey pictures, once in 8 bits and once in 16."""
    for path in sorted(folder.rglob("*.png")):
        grey = np.asarray(Image.open(path).convert("L"))
        for name, values in (("8", grey), ("16", grey.astype(np.uint16) * 257)):
            file = out / name / path.relative_to(folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(file)
    return out


@pytest.mark.filterwarnings("always")
def test_16_bits_give_the_answers_of_8_bits(folders: Path, tmp_path: Path, call: Call, tiny: sp.models.Clip) -> None:
    copies = _deep_copy(folders / "test", tmp_path / "copies")
    classes = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
    save_classifier(sp.zero_shot_classifier(tiny, classes), tmp_path / "zero")
    answers = {}
    for bits in ("8", "16"):
        ended = call("predict", "zero", copies / bits, "--json")
        assert ended.code == 0
        answers[bits] = [row["top"] for row in json.loads(ended.out)]
        assert ("9 of 9 pictures" in ended.err) == (bits == "16")
    assert len(answers["8"]) == 9
    assert answers["8"] == answers["16"]


@pytest.mark.filterwarnings("always")
def test_a_warning_of_pillow_names_the_file(tmp_path: Path, call: Call, tiny: sp.models.Clip) -> None:
    save_classifier(sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"])), tmp_path / "zero")
    content = write_broken_exif(tmp_path / "broken.jpg")
    assert content
    ended = call("predict", "zero", "broken.jpg")
    assert ended.code == 0
    assert any(line.startswith("warning: broken.jpg: ") for line in ended.err.splitlines())
    assert "site-packages" not in ended.err


def write_broken_exif(path: Path) -> bytes:
    """A JPEG whose EXIF block ends before the values that it points to."""
    exif = Image.Exif()
    exif[0x010E] = "a description that is longer than four bytes"
    exif[0x0112] = 1
    cut = exif.tobytes()[:-30]
    Image.fromarray(COLOURS).save(path, exif=cut)
    return cut


@pytest.mark.slow
@pytest.mark.filterwarnings("always")
def test_a_run_on_pictures_of_16_bits_says_so_and_ends_as_one_of_8_bits(
    folders: Path, tmp_path: Path, call: Call
) -> None:
    accuracies = {}
    copies = {split: _deep_copy(folders / split, tmp_path / split) for split in ("train", "validation", "test")}
    for bits in ("8", "16"):
        data = [
            part
            for option, split in (("--reference", "train"), ("--validation", "validation"), ("--test", "test"))
            for part in (option, f"folder:{copies[split] / bits}")
        ]
        ended = call("finetune", "tiny", *data, *quick_training_flags(), "--out", f"tuned-{bits}")
        assert ended.code == 0
        accuracies[bits] = (tmp_path / f"tuned-{bits}/results.jsonl").read_text()
        assert (decoding.SIXTEEN_BITS in ended.err) == (bits == "16")
    assert accuracies["8"] == accuracies["16"]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """The suffix and the bytes of every kind of picture."""
    folder = tmp_path_factory.mktemp("contents")
    for number, case in enumerate(DECODED_HERE):
        case.write(folder / f"{number}{case.suffix}")
    return [(path.suffix, path.read_bytes()) for path in sorted(folder.iterdir())]


def refusal(path: Path) -> str | None:
    """The message that refuses a picture, or None if it is read."""
    try:
        read_picture(path)
    except sp.InputError as error:
        return str(error)
    return None


@pytest.mark.filterwarnings("ignore")
@given(data=st.data())
def test_a_damaged_picture_is_read_or_named(
    data: st.DataObject, contents: list[tuple[str, bytes]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    suffix, content = data.draw(st.sampled_from(contents))
    damaged = bytearray(content[: data.draw(st.integers(0, len(content)))])
    for position in data.draw(st.lists(st.integers(0, max(len(damaged) - 1, 0)), max_size=8)):
        damaged[position : position + 1] = bytes([data.draw(st.integers(0, 255))])
    path = tmp_path_factory.mktemp("damaged") / f"picture{suffix}"
    path.write_bytes(damaged)
    assert str(path) in (refusal(path) or str(path))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".gif", ".avif"])  # Pillow raises IndexError, struct.error and RuntimeError
def test_every_cut_of_a_file_is_refused_by_name(suffix: str, contents: list[tuple[str, bytes]], tmp_path: Path) -> None:
    (content,) = (content for kind, content in contents if kind == suffix)
    path = tmp_path / f"picture{suffix}"
    refusals = []
    for length in range(len(content)):
        path.write_bytes(content[:length])
        refusals += filter(None, [refusal(path)])
    assert len(refusals) > len(content) // 4
    assert all(str(path) in message for message in refusals)
