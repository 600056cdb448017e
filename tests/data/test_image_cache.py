"""The cache of resized pictures: the same bits as without it, whatever happened to its files or to the pictures'."""

from __future__ import annotations

import errno
import os
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.classifiers import convolution_classifier
from support.commands import Call
from support.shards import labelled_pictures, write_shards

import shiftproof as sp
from shiftproof.data import decoding, image_cache, reading
from shiftproof.data.batches import decoded_once, evaluation_batches, training_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.data.reading import ReadSettings
from shiftproof.models.directories import save_classifier
from shiftproof.runs.inputs import load_run_suite

SMALL = Preprocessing(size=12)
PREPROCESSINGS = st.builds(
    Preprocessing,
    size=st.sampled_from([8, 12]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
    resize_mode=st.sampled_from(["shortest", "squash", "longest"]),
    fill=st.sampled_from([0, 255]),
    crop_share=st.sampled_from([0.8, 1.0]),
    mean=st.sampled_from([(0.0, 0.0, 0.0), (0.5, 0.4, 0.3)]),
)


def inputs(images: sp.ImageSet, preprocessing: Preprocessing = SMALL) -> torch.Tensor:
    return torch.cat(list(evaluation_batches(images, preprocessing, 4)))


@pytest.fixture
def photos(folders: Path, tmp_path: Path) -> Path:
    """A folder of pictures that may be changed."""
    return shutil.copytree(folders / "test", tmp_path / "photos")


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def load(photos: Path, cache: Path | None = None, **settings: Any) -> sp.ImageSet:
    """The set as a new process loads it."""
    return sp.load_data(f"folder:{photos}").read_with(ReadSettings(cache=cache, **settings))


def stored(cache: Path) -> Path:
    (file,) = cache.glob("*.npy")
    return file


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures that are decoded from here on."""
    names: list[str] = []

    def watched(source: Any, preprocessing: Preprocessing, **options: Any) -> decoding.Picture:
        names.append(Path(source).name)
        return decoding.read_resized_picture(source, preprocessing, **options)

    monkeypatch.setattr(reading, "read_resized_picture", watched)
    return names


@given(preprocessing=PREPROCESSINGS)
def test_inputs_are_the_same_bits_with_an_empty_cache_a_full_one_and_none(
    preprocessing: Preprocessing, folders: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = tmp_path_factory.getbasetemp() / "one cache for all preprocessings"
    plain = inputs(load(folders / "test"), preprocessing)
    for _ in range(2):
        assert torch.equal(inputs(load(folders / "test", cache), preprocessing), plain)


def test_predictions_are_the_same_bits(photos: Path, cache: Path) -> None:
    plain = load(photos)
    classifier = convolution_classifier(plain.classes)
    for images in (load(photos, cache), load(photos, cache)):
        assert np.array_equal(sp.predict(classifier, images).logits, sp.predict(classifier, plain).logits)


def test_each_picture_is_decoded_once(photos: Path, cache: Path, decodings: list[str]) -> None:
    for images in (load(photos, cache), load(photos, cache), load(photos, cache).subset([7, 2])):
        inputs(images)
    decoded_once(load(photos, cache), SMALL)
    assert sorted(decodings) == sorted(file.name for file in photos.rglob("*.png"))


def test_a_subset_fills_the_cache_of_its_whole_set(photos: Path, cache: Path, decodings: list[str]) -> None:
    inputs(load(photos, cache).subset([3, 8]))
    inputs(load(photos, cache))
    assert len(decodings) == 9
    stored(cache)


def test_the_mean_is_not_part_of_what_is_stored(photos: Path, cache: Path, decodings: list[str]) -> None:
    inputs(load(photos, cache))
    inputs(load(photos, cache), replace(SMALL, mean=(0.0, 0.0, 0.0)))
    assert len(decodings) == 9


def test_without_a_cache_nothing_is_written(photos: Path, tmp_path: Path) -> None:
    inputs(load(photos))
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize("same_size", [True, False])
def test_a_changed_file_is_noticed(photos: Path, cache: Path, same_size: bool, decodings: list[str]) -> None:
    images = load(photos, cache)
    inputs(images)
    file = photos / "pear" / "pear-1.png"
    before, earlier = file.read_bytes(), file.stat()
    Image.new("RGB", (40, 32), (1, 2, 3)).save(file)
    if same_size:
        file.write_bytes(file.read_bytes().ljust(len(before), b"\0"))
        os.utime(file, ns=(earlier.st_atime_ns, earlier.st_mtime_ns + 1))
    decodings.clear()
    for again in (images, load(photos, cache)):  # this process and the next
        assert torch.equal(inputs(again), inputs(load(photos)))
    assert decodings.count("pear-1.png") == 3  # twice without the cache
    assert decodings.count("pear-2.png") == 2


def test_a_file_that_is_gone_is_as_missing_as_without_the_cache(photos: Path, cache: Path) -> None:
    images = load(photos, cache)
    inputs(images)
    (photos / "pear" / "pear-1.png").unlink()
    with pytest.raises(sp.InputError, match=r"pear-1\.png does not exist"):
        inputs(images)


def test_another_picture_in_the_set_is_another_cache(photos: Path, cache: Path) -> None:
    inputs(load(photos, cache))
    shutil.copyfile(photos / "pear" / "pear-0.png", photos / "lemon" / "a.png")
    assert torch.equal(inputs(load(photos, cache)), inputs(load(photos)))


def test_a_picture_in_a_tar_shard_is_noticed_too(folders: Path, tmp_path: Path, cache: Path) -> None:
    pictures, names = labelled_pictures(folders / "test"), ("pear", "lemon", "red_apple")

    def shards() -> sp.ImageSet:
        return sp.load_data(f"wds:{tmp_path / 'fruit'}").read_with(ReadSettings(cache=cache))

    write_shards(tmp_path / "fruit", "test", pictures, names)
    inputs(shards())
    shutil.rmtree(tmp_path / "fruit")
    write_shards(tmp_path / "fruit", "test", [(label, pictures[0][1]) for label, _ in pictures], names)
    assert torch.equal(inputs(shards()), inputs(shards().read_with(ReadSettings())))


DAMAGES = {
    "a changed byte": lambda content: content[:-500] + bytes([content[-500] ^ 1]) + content[-499:],
    "rows that were never written": lambda content: content[:200] + bytes(len(content) - 200),
    "a row that was written in part": lambda content: content[:-300] + bytes(300),
    "cut off": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "no numpy file": lambda content: b"hello" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_repaired(photos: Path, cache: Path, damage: str, decodings: list[str]) -> None:
    inputs(load(photos, cache))
    file = stored(cache)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    assert torch.equal(inputs(load(photos, cache)), inputs(load(photos)))
    assert file.read_bytes() == whole
    decodings.clear()
    inputs(load(photos, cache))
    assert decodings == []


def test_an_array_of_another_shape_is_replaced(photos: Path, cache: Path) -> None:
    inputs(load(photos, cache))
    np.save(stored(cache), np.zeros((2, 3), dtype=np.uint8))
    assert torch.equal(inputs(load(photos, cache)), inputs(load(photos)))


def test_two_writers_fill_one_file(photos: Path, cache: Path) -> None:
    plain = inputs(load(photos))
    with ThreadPoolExecutor(4) as pool:  # each loads the set for itself, as a process does
        found = list(pool.map(lambda _: inputs(load(photos, cache)), range(8)))
    assert all(torch.equal(tensor, plain) for tensor in found)
    assert torch.equal(inputs(load(photos, cache)), plain)
    stored(cache)


def test_a_full_disk_is_said_once_and_stops_nothing(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = load(photos, cache)
    inputs(images.subset([0]))
    opened = Path.open

    def full(path: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if mode == "r+b":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.warns(UserWarning, match=r"image cache .*cannot be written \(.*No space left") as caught:
        found = inputs(images)
    assert len(caught) == 1
    assert torch.equal(found, inputs(load(photos)))


def test_commands_give_the_same_results_through_the_cache(
    photos: Path, tmp_path: Path, call: Call, tiny: sp.models.Clip, decodings: list[str]
) -> None:
    classes = sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"])
    save_classifier(sp.zero_shot_classifier(tiny, classes), tmp_path / "zero")
    results = []
    for options in ([], ["--image-cache", "cache"], ["--image-cache", "cache"]):
        ended = call("evaluate", "zero", "--test", f"folder:{photos}", "--out", "scored", "--overwrite", *options)
        assert ended.code == 0
        results.append((tmp_path / "scored" / "results.jsonl").read_bytes())
    assert results[0] == results[1] == results[2]
    assert len(decodings) == 18  # without the cache, and to fill it
    stored(tmp_path / "cache")


def test_a_run_file_names_the_cache_and_its_suite_is_read_through_it(folders: Path, cache: Path) -> None:
    data = {split: f"folder:{folders / split}" for split in ("train", "validation", "test")}
    run_file = sp.RunFile.resolve({"suite": {"reference": data}, "image_cache": str(cache), "limit": 5})
    suite = load_run_suite(run_file)
    assert torch.equal(
        inputs(suite.reference.test),
        inputs(load_run_suite(sp.RunFile.resolve({"suite": {"reference": data}, "limit": 5})).reference.test),
    )
    stored(cache)


def test_a_place_that_is_no_directory_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sp.InputError, match=r"image cache .*file cannot be used .*`image_cache`"):
        inputs(load(photos, tmp_path / "file"))


def test_conversions_are_counted_when_they_come_from_the_cache(photos: Path, cache: Path) -> None:
    Image.fromarray(np.full((20, 20), 5000, dtype=np.uint16)).save(photos / "pear" / "deep.png")
    for _ in range(2):
        images = load(photos, cache)
        with pytest.warns(UserWarning, match="1 of 10 pictures read had to be converted: 1 reduced from 16 to 8 bits"):
            inputs(images)
        assert images.conversions[0].counts() == {decoding.SIXTEEN_BITS: 1}


def test_every_kind_of_conversion_has_a_bit() -> None:
    named = {value for name, value in vars(decoding).items() if name.isupper() and isinstance(value, str)}
    assert set(decoding.KINDS) == named
    assert len(decoding.KINDS) <= 8


def test_crops_are_cut_from_the_whole_picture(photos: Path, cache: Path) -> None:
    cached = load(photos, cache, jpeg_draft=True)
    inputs(cached)

    def crops(images: sp.ImageSet) -> torch.Tensor:
        return next(training_batches(images, SMALL, [range(9)], (0.1, 1.0), seed=0))

    assert torch.equal(crops(cached), crops(load(photos)))


def test_pictures_that_are_changed_do_not_come_from_the_cache(photos: Path, cache: Path) -> None:
    cached, plain = load(photos, cache), load(photos)
    inputs(cached)
    for change in (
        lambda images: sp.data.corrupted(images, "noise", 5).data,
        lambda images: images.mapped(lambda i, pixels: 255 - pixels, "negative"),
        lambda images: replace(images, read=lambda i: np.zeros((20, 20, 3), dtype=np.uint8)),
    ):
        assert torch.equal(inputs(change(cached)), inputs(change(plain)))
        assert not torch.equal(inputs(change(cached)), inputs(plain))


def test_a_suite_reads_all_its_sets_through_the_cache(folders: Path, cache: Path, decodings: list[str]) -> None:
    def read() -> None:
        data = {split: f"folder:{folders / split}" for split in ("train", "test")}
        suite = sp.own_suite(data, {"sketch": {"data": f"folder:{folders / 'sketch'}"}})
        for images in (suite.reference.validation, *suite.read_with(ReadSettings(cache=cache)).test_sets.values()):
            inputs(images.read_with(ReadSettings(cache=cache)))

    read()
    first = len(decodings)
    read()
    assert len(decodings) == first > 0


# JPEG draft mode.


def save_jpeg(path: Path, size: tuple[int, int]) -> None:
    steps = np.add.outer(np.linspace(0, 200, size[1]), np.linspace(0, 55, size[0]))
    Image.fromarray(np.dstack([steps, steps[::-1], steps]).astype(np.uint8)).save(path, quality=95)


@pytest.mark.parametrize(
    ("size", "scale"), [((40, 23), 1), ((48, 24), 2), ((60, 47), 2), ((48, 90), 4), ((200, 100), 8), ((900, 800), 8)]
)
def test_a_draft_is_a_power_of_two_smaller_and_no_smaller_than_needed(
    size: tuple[int, int], scale: int, tmp_path: Path
) -> None:
    path = tmp_path / "picture.jpg"
    save_jpeg(path, size)
    picture = decoding.read_resized_picture(path, SMALL, jpeg_draft=True)
    whole = decoding.read_resized_picture(path, SMALL)
    assert picture.conversions == ((decoding.DRAFTED,) if scale > 1 else ())
    with Image.open(path) as image:
        image.draft("RGB", (size[0] // scale, size[1] // scale))
        assert image.size == tuple(-(-side // scale) for side in size)
        assert np.array_equal(picture.pixels, sp.data.loading.resize(np.asarray(image), SMALL))
    assert np.abs(picture.pixels.astype(int) - whole.pixels).max() <= (12 if scale > 1 else 0)


def test_drafts_are_asked_for_and_counted(photos: Path, cache: Path) -> None:
    save_jpeg(photos / "pear" / "large.jpg", (300, 200))
    plain = inputs(load(photos))
    for where in (None, cache, cache):
        with pytest.warns(UserWarning, match="1 of 10 pictures read had to be converted: 1 decoded at a fraction"):
            drafted = inputs(load(photos, where, jpeg_draft=True))
        assert not torch.equal(drafted, plain)
        assert (drafted != plain).flatten(1).any(1).sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(inputs(load(photos, cache)), plain)  # drafts have a cache of their own


def test_pixels_of_another_version_of_the_rules_are_not_read(
    photos: Path, cache: Path, decodings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs(load(photos, cache))
    monkeypatch.setattr(image_cache, "_VERSION", 0)
    inputs(load(photos, cache))
    assert len(decodings) == 18
