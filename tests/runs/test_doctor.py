"""Every finding of doctor is provoked on small folders; a clean run file has none; the exit code tells of errors."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from support.commands import Call

import shiftproof as sp
from shiftproof.data.families.registry import FAMILIES
from shiftproof.data.families.sizes import SIZES, known_size
from shiftproof.data.loading import Preprocessing
from shiftproof.data.near_duplicates import find_lookalikes, read_thumbnails
from shiftproof.errors import ResultWarning
from shiftproof.models.expectations import has_unknown_activation, unexpected_settings
from shiftproof.models.lite0 import LITE0
from shiftproof.records.checkups import ERROR, NOTE, WARNING, Checkup
from shiftproof.runs import checks, doctor
from shiftproof.runs.doctor import kind_of, run_checkup
from shiftproof.runs.doubts import warn_of_data

SPLITS = ("train", "validation", "test", "sketch")
CLASSES = ("lemon", "pear")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def picture(seed: int) -> NDArray[np.uint8]:
    """A smooth random picture, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of the four splits, with three pictures of each class."""
    seed = 0
    for split in SPLITS:
        for name in CLASSES:
            for number in range(3):
                file = tmp_path / "data" / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(picture(seed := seed + 1)).save(file)
    return tmp_path / "data"


def run_file(root: Path, **keys: Any) -> Path:
    data = {split: f"folder:{root / split}" for split in SPLITS}
    shifts = {"sketch": {"data": data.pop("sketch")}}
    file = root.parent / "run.yaml"
    file.write_text(yaml.safe_dump({"model": "tiny", "suite": {"reference": data, "shifts": shifts}, **keys}))
    return file


def checkup(root: Path, **keys: Any) -> Checkup:
    return run_checkup(run_file(root, **keys))


def only(made: Checkup, severity: str, part: str) -> None:
    """The checkup has one finding, of a severity, that contains a text."""
    assert [(entry.severity, part in f"{entry.subject}: {entry}") for entry in made.findings] == [(severity, True)], (
        made.findings
    )


def test_a_clean_run_file_has_no_finding_and_its_sets_are_counted(root: Path, call: Call) -> None:
    made = checkup(root)
    assert made.findings == ()
    assert [(entry.name, entry.images, entry.classes, entry.smallest, entry.decoded) for entry in made.sets] == [
        (name, 6, 2, 3, 6) for name in ("train", "validation", "test", "the shift sketch")
    ]
    before = sorted(root.parent.rglob("*"))
    ended = call("doctor", run_file(root))
    assert ended.code == 0 and "Nothing is wrong" in ended.out
    assert sorted(root.parent.rglob("*")) == before


def broken(root: Path) -> None:
    (root / "test" / "pear" / "1.png").write_bytes(b"no picture")


def pointer(root: Path) -> None:
    (root / "sketch" / "pear" / "1.png").write_bytes(POINTER)


def missing_class(root: Path) -> None:
    shutil.rmtree(root / "test" / "pear")


def missing_class_of_shift(root: Path) -> None:
    shutil.rmtree(root / "sketch" / "pear")


def extra_class(root: Path) -> None:
    shutil.copytree(root / "sketch" / "pear", root / "test" / "quince")
    for file in (root / "test" / "quince").iterdir():
        Image.fromarray(picture(hash(file.name) % 999 + 100)).save(file)


def copy_in_test(root: Path) -> None:
    shutil.copy(root / "train" / "pear" / "0.png", root / "test" / "pear" / "0.png")


def copy_in_validation(root: Path) -> None:
    shutil.copy(root / "train" / "pear" / "0.png", root / "validation" / "pear" / "0.png")


def scaled_copy(root: Path) -> None:
    with Image.open(root / "train" / "pear" / "0.png") as image:
        (root / "test" / "pear" / "0.png").unlink()
        image.resize((96, 96), Image.Resampling.BICUBIC).save(root / "test" / "pear" / "0.jpg", quality=80)


def no_folder(root: Path) -> None:
    shutil.rmtree(root / "sketch")


def other_file(root: Path) -> None:
    (root / "train" / "pear" / "notes.docx").write_text("notes")


@pytest.mark.parametrize(
    ("harm", "severity", "part"),
    [
        (broken, ERROR, "test: 1 of 6 pictures cannot be decoded"),
        (pointer, ERROR, "the shift sketch: 1 file of 6 are Git LFS pointers"),
        (missing_class, ERROR, "has no image of 'pear'"),
        (missing_class_of_shift, WARNING, "mark the shift as partial"),
        (extra_class, ERROR, "quince"),
        (copy_in_test, ERROR, "1 of the 6 pictures of test are also in train"),
        (copy_in_validation, WARNING, "1 of the 6 pictures of validation are also in train"),
        (scaled_copy, WARNING, "1 of 6 pictures of test look like one of train"),
        (no_folder, ERROR, "sketch"),
        (other_file, WARNING, "notes.docx"),
    ],
)
def test_what_is_wrong_with_data_is_found_and_nothing_else(
    root: Path, harm: Callable[[Path], None], severity: str, part: str
) -> None:
    harm(root)
    only(checkup(root), severity, part)


def test_a_missing_file_of_a_list_is_found(root: Path) -> None:
    listing = root / "train.csv"
    images = sorted((root / "train").rglob("*.png"))
    listing.write_text("filepath,label\n" + "".join(f"{path},{path.parent.name}\n" for path in images))
    images[0].unlink()
    only(run_checkup(f"csv:{listing}"), ERROR, f"1 of 6 files do not exist, the first of them {images[0]}")


def test_an_unbalanced_training_set_is_noted(root: Path) -> None:
    for number in range(60):
        Image.fromarray(picture(1000 + number)).save(root / "train" / "pear" / f"more-{number}.png")
    only(checkup(root), NOTE, "The largest class has 63 images and the smallest 3.")


@pytest.mark.parametrize(
    ("prompts", "part"),
    [
        (["a {}", "a {}"], "have a prompt more than once"),
        ("a {} " + 100 * "very ", "are truncated"),
    ],
)
def test_prompts_are_checked(root: Path, prompts: Any, part: str) -> None:
    only(checkup(root, prompts=prompts), WARNING, part)


def test_names_that_say_nothing_or_the_same_are_found(root: Path) -> None:
    for split in SPLITS:
        for number, name in enumerate(CLASSES):
            (root / split / name).rename(root / split / str(number))
    only(checkup(root), WARNING, "2 of 2 class names are numbers")
    for split in SPLITS:
        (root / split / "0").rename(root / split / "Pear")
        (root / split / "1").rename(root / split / "pear")
    parts = [entry.problem for entry in checkup(root).findings]
    assert any("have the same prompts" in part for part in parts)


def test_a_model_that_does_not_exist_and_a_head_that_it_cannot_have_are_found(root: Path) -> None:
    only(checkup(root, model="open_clip:ViT-B-33"), ERROR, "unknown open_clip architecture")
    only(checkup(root, head="probe"), ERROR, "is for models without a text tower")
    only(run_checkup("timm:resnet18"), ERROR, "has random weights")


def test_a_classifier_of_other_classes_and_one_that_is_damaged_are_found(
    root: Path, tmp_path: Path, tiny: sp.models.Clip
) -> None:
    classifier = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "plum"]))
    directory = sp.save_classifier(classifier, tmp_path / "start")
    assert run_checkup(directory).findings == ()
    only(checkup(root, model=str(directory)), ERROR, "'pear'")
    weights = classifier.state_dict()
    weights["head.bias"] = torch.full_like(weights["head.bias"], float("nan"))
    harmed = sp.save_classifier(classifier.with_weights(weights), tmp_path / "harmed")
    only(run_checkup(harmed), ERROR, "not finite")
    (directory / "model.safetensors").write_bytes(POINTER)
    only(run_checkup(directory), ERROR, "is a Git LFS pointer")


def test_normalisation_and_activation_are_those_of_the_weights() -> None:
    openai = "open_clip:ViT-B-32/openai"
    assert unexpected_settings(openai, Preprocessing(), {"quick_gelu": True}) == []
    assert "QuickGELU" in unexpected_settings(openai, Preprocessing(), {"quick_gelu": False})[0]
    halves = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert len(unexpected_settings(openai, halves, {"quick_gelu": True})) == 2
    assert len(unexpected_settings("timm:resnet18.a1_in1k", halves, {})) == 2
    assert unexpected_settings(LITE0, halves, {}) == []
    bytes_of = Preprocessing(mean=(123.0, 117.0, 104.0))
    assert "not those of values from 0 to 1" in unexpected_settings("tiny", bytes_of, {})[0]
    assert has_unknown_activation("open_clip:ViT-B-32//a.pt", {"quick_gelu": False})
    assert not has_unknown_activation("open_clip:ViT-B-32-quickgelu//a.pt", {"quick_gelu": True})
    assert not has_unknown_activation("open_clip:ViT-B-32/laion2b_s34b_b79k", {"quick_gelu": False})


@pytest.mark.parametrize(
    ("name", "severity", "part"),
    [
        ("open_clip:ViT-B-32/openai", ERROR, "QuickGELU"),
        ("open_clip:ViT-B-32/tuned.pt", NOTE, "does not say whether they were trained with QuickGELU"),
    ],
)
def test_a_model_with_another_activation_than_that_of_its_weights_is_found(
    tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch, name: str, severity: str, part: str
) -> None:
    loaded = replace(tiny, name=name, architecture={**tiny.architecture, "quick_gelu": False})
    monkeypatch.setattr(doctor, "load_clip", lambda *_, **__: loaded)
    only(run_checkup(name), severity, part)


def test_a_model_with_another_normalisation_than_that_of_its_weights_is_found(
    tiny: sp.models.Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = replace(tiny.preprocessing, mean=(0.5, 0.5, 0.5))
    loaded = replace(tiny, preprocessing=halves, architecture={"quick_gelu": True})
    monkeypatch.setattr(doctor, "load_clip", lambda *_, **__: loaded)
    only(run_checkup("open_clip:ViT-B-32/openai", kind="model"), ERROR, "mean")


def test_a_list_of_classes_that_does_not_name_those_of_the_data_is_found(root: Path) -> None:
    names = root.parent / "names.json"
    names.write_text('{"lemon": "a lemon"}')
    only(checkup(root, classes=str(names)), ERROR, "'pear'")


def test_data_that_cannot_be_read_are_found_with_the_line(root: Path) -> None:
    listing = root / "test.csv"
    listing.write_text("filepath,label\ntest/lemon/0.png,lemon\ntest/pear/0.png,\n")
    only(run_checkup(f"csv:{listing}"), ERROR, f"line 3 of {listing} lacks its label")
    (root / "0.tar").write_text("no archive")
    only(run_checkup(f"wds:{root}"), ERROR, f"{root / '0.tar'} cannot be read")


def test_too_little_disk_or_memory_is_found(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = run_file(root)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    only(run_checkup(file, out=root / "none" / "yet"), ERROR, f"{root} has 0.0 GB free")
    monkeypatch.undo()
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    only(run_checkup(file), WARNING, "memory")


def test_a_public_set_that_is_incomplete_is_found(root: Path) -> None:
    (root / "test").rename(root / "val")
    for number, name in enumerate(CLASSES):
        (root / "val" / name).rename(root / "val" / f"n0144{number}764".replace("n01441764", "n01443537"))
    made = run_checkup(f"imagenet:val:{root}")
    seen = " ".join(entry.problem for entry in made.findings)
    assert "has 6 images; the published set has 50,000" in seen
    assert "has images of 2 classes; the published set has 1,000" in seen
    assert "published 50 images of the classes 'n01440764', 'n01443537'" in seen
    assert {entry.severity for entry in made.findings} == {WARNING}
    assert made.sets[0].known == 50_000


def test_published_sizes_are_of_known_families_and_parts() -> None:
    for family, sizes in SIZES.items():
        assert set(sizes) <= set(FAMILIES[family].parts)
        assert all(size.images % size.classes == 0 for size in sizes.values() if size.balanced)
    assert known_size("imagenet-r:somewhere") == SIZES["imagenet-r"]["all"]
    assert known_size("folder:somewhere") is None


def test_a_sample_is_decoded_unless_all_are_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shiftproof.runs.doctor.SAMPLE", 2)
    name = f"folder:{root / 'train'}"
    assert [entry.decoded for entry in run_checkup(name).sets] == [2]
    assert [entry.decoded for entry in run_checkup(name, all_images=True).sets] == [6]


def test_the_same_picture_is_found_by_its_content_alone(tmp_path: Path) -> None:
    """Twin: lookalikes are the pairs that were made from one picture, whatever the order."""
    for number in range(6):
        for split, seed in (("first", number), ("second", number + 3)):
            file = tmp_path / split / "pear" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(seed)).save(file, quality=70 if split == "first" else 95)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "first" / "pear" / "flat.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "second" / "pear" / "flat.png")
    sets = {name: sp.load_data(f"folder:{tmp_path / name}") for name in ("first", "second")}
    thumbnails = {name: read_thumbnails(images, range(len(images))) for name, images in sets.items()}
    (alike,) = find_lookalikes(sets, thumbnails, [("first", "second")])
    assert (alike.count, alike.compared, alike.example) == (3, 7, ("pear/3.jpg", "pear/0.jpg"))


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("a/run.yaml", "run"),
        ("folder:x", "data"),
        ("emoji", "data"),
        ("imagenet:x", "data"),
        ("tiny", "model"),
        ("hf:openai/clip-vit-base-patch32", "model"),
        ("runs/demo/ensemble", "model"),
    ],
)
def test_a_target_is_told_by_its_name(target: str, kind: str) -> None:
    assert kind_of(target) == kind


def test_a_folder_of_parquet_is_data_and_one_of_a_model_is_none(tmp_path: Path) -> None:
    assert kind_of(f"hf:{tmp_path}") == "data"
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(f"hf:{tmp_path}") == "model"
    assert kind_of(f"hf:{tmp_path}", "data") == "data"


def test_the_exit_code_is_2_for_an_error_and_0_for_a_warning(root: Path, call: Call) -> None:
    copy_in_validation(root)
    ended = call("doctor", run_file(root))
    assert ended.code == 0 and "1 warning" in ended.out
    copy_in_test(root)
    ended = call("doctor", run_file(root))
    assert ended.code == 2 and "1 error, 2 warnings" in ended.out
    assert "Remove" in ended.out


def test_a_run_warns_of_the_same_findings(root: Path) -> None:
    copy_in_test(root)
    made = checkup(root)
    names = {split: f"folder:{root / split}" for split in SPLITS}
    suite = sp.own_suite({**names}, {"sketch": {"data": names["sketch"]}})
    with pytest.warns(ResultWarning) as caught:
        warn_of_data(suite, limited=False)
    assert [str(entry.message) for entry in caught] == [str(entry) for entry in made.findings]


@pytest.mark.parametrize(
    ("message", "problem", "remedy"),
    [
        ("the file is missing. Restore it.", "the file is missing.", "Restore it."),
        ("it has no set. Name one, e.g. test: folder:PATH.", "it has no set.", "Name one, e.g. test: folder:PATH."),
        ("it has 1.5 GB. Lower `limit`, or free space.", "it has 1.5 GB.", "Lower `limit`, or free space."),
        ("only a problem", "only a problem", "Check that this is meant."),
    ],
)
def test_the_last_sentence_of_a_message_is_the_remedy(message: str, problem: str, remedy: str) -> None:
    def fail() -> None:
        raise sp.InputError(message)

    _, (finding,) = checks.noting("data", fail)
    assert (finding.problem, finding.remedy) == (problem, remedy)


def test_a_folder_of_one_class_is_no_data_to_train_on(folders: Path, tmp_path: Path) -> None:
    shutil.copytree(folders / "test/lemon", tmp_path / "data/lemon")
    checkup = run_checkup(f"folder:{tmp_path}/data")
    assert any("has only one class, 'lemon'" in finding.problem for finding in checkup.findings)
