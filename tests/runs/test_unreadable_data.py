"""Missing and broken images are named before anything is trained; after a failure, a message says how to continue."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from support.commands import Call, quick_training_flags
from support.studies import fruit_study

import shiftproof as sp
from shiftproof.data.readable import missing_files
from shiftproof.errors import DivergenceError
from shiftproof.runs import stages, sweeps
from shiftproof.runs.directory import OutputDirectory, explaining_resume
from shiftproof.studies.file import StudyFile

pytestmark = pytest.mark.usefixtures("blank_figures")

SPLITS = ("train", "validation", "test", "sketch")


@pytest.fixture
def data(folders: Path, tmp_path: Path) -> dict[str, Any]:
    """Copies of the fruit as CSV files, as the ``suite`` section of a run file."""
    root = tmp_path / "data"
    shutil.copytree(folders, root)
    for split in SPLITS:
        with (root / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["filepath", "label"])
            images = sorted((root / split).rglob("*.png"))
            rows.writerows([image.relative_to(root), image.parent.name] for image in images)
    named = {split: f"csv:{root}/{split}.csv" for split in SPLITS}
    return {"reference": {s: named[s] for s in SPLITS[:3]}, "shifts": {"sketch": {"data": named["sketch"]}}}


def delete(image: Path) -> None:
    image.unlink()


def damage(image: Path) -> None:
    image.write_bytes(image.read_bytes()[:40])


def link_to_nothing(image: Path) -> None:
    image.unlink()
    image.symlink_to("gone.png")


JOBS: dict[str, Callable[[sp.RunFile, Path], object]] = {
    "run": sp.run_pipeline,
    "finetune": stages.run_finetune,
    "sweep": lambda run_file, out: sweeps.run_sweep(run_file, out.parent / "zero", out.parent / "zero", out),
}


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("break_image", [delete, damage, link_to_nothing])
@pytest.mark.parametrize("split", ["sketch", "validation", "train"])
def test_an_image_that_cannot_be_read_is_named_before_anything_begins(
    data: dict[str, Any], tmp_path: Path, job: str, break_image: Callable[[Path], None], split: str
) -> None:
    if (job, split) == ("sweep", "train"):
        pytest.skip("a sweep reads no training images")
    image = sorted((tmp_path / "data" / split).rglob("*.png"))[0]
    run_file = sp.RunFile.resolve({"suite": data, "device": "cpu", "finetune": {"recipe": "head-only"}})
    if job == "sweep":
        stages.run_zero_shot(run_file, tmp_path / "zero")
    break_image(image)
    with pytest.raises(sp.InputError, match=f"the image {image} .*(does not exist|cannot be decoded)"):
        JOBS[job](run_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_study_names_an_image_that_is_missing_before_anything_begins(data: dict[str, Any], tmp_path: Path) -> None:
    images = sorted((tmp_path / "data/sketch").rglob("*.png"))
    for image in images[-2:]:
        image.unlink()
    study = StudyFile.resolve(fruit_study(tmp_path, run={"suite": data, "limit": None}))
    messages = rf"the image {images[-2]} of sketch does not exist \(2 files of {len(images)} are missing\)"
    with pytest.raises(sp.InputError, match=messages):
        sp.run_study(study, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pretraining_names_a_missing_image_before_anything_begins(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("filepath,caption\ngone.png,a lemon\nlost.png,a pear\n", encoding="utf-8")
    pretrain = {"data": f"csv:{tmp_path}/pairs.csv", "steps": 1, "batch_size": 2}
    run_file = sp.RunFile.resolve({"model": "tiny", "pretrain": pretrain, "device": "cpu"})
    with pytest.raises(sp.InputError, match=rf"the image {tmp_path}/gone\.png .* \(2 files of 2 are missing\)"):
        stages.run_pretrain(run_file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@given(present=st.lists(st.booleans(), min_size=1, max_size=12))
def test_missing_files_are_those_that_are_not_there(
    present: list[bool], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("files")
    paths = [root / f"folder {i % 3}" / f"{i}.png" for i in range(len(present))]
    for path, is_there in zip(paths, present, strict=True):
        if is_there:
            path.parent.mkdir(exist_ok=True)
            path.touch()
    assert missing_files(paths) == [path for path in paths if not path.is_file()]


def test_folders_and_broken_links_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "broken.png").symlink_to("gone.png")
    (tmp_path / "real.png").touch()
    (tmp_path / "link.png").symlink_to("real.png")
    names = ("folder.png", "broken.png", "real.png", "link.png")
    missing = missing_files([tmp_path / name for name in names])
    assert [path.name for path in missing] == ["folder.png", "broken.png"]


def test_files_follow_their_samples(folders: Path) -> None:
    images = sp.load_data(f"folder:{folders}/train")
    assert images.files is not None
    few = images.subset([4, 1])
    assert few.files == (images.files[4], images.files[1])
    assert [path.relative_to(folders / "train").as_posix() for path in few.files] == list(few.ids)
    noisy = sp.load_data(f"corrupted:noise:3:folder:{folders}/train")
    assert noisy.files == images.files


# After a failure.


@pytest.mark.slow
def test_a_run_that_fails_after_its_training_says_how_to_continue(
    data: dict[str, Any], tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last image of a shift breaks, which the check of one sample does not notice."""
    image = sorted((tmp_path / "data/sketch").rglob("*.png"))[-1]
    whole = image.read_bytes()
    damage(image)
    Path("fruit.yaml").write_text(yaml.safe_dump({"model": "tiny", "suite": data, "alphas": 2}), encoding="utf-8")
    command = ["run", "fruit.yaml", *quick_training_flags(recipe="head-only"), "--out", "out"]
    failed = call(*command)
    assert failed.code == 2 and "Traceback" not in failed.err
    (message,) = [line for line in failed.err.splitlines() if line.startswith("shiftproof: ")]
    assert f"the image {image} cannot be decoded" in message
    assert message.endswith("What is finished remains in out: remove the cause and continue with --resume.")
    image.write_bytes(whole)
    weights = Path("out/fine_tuned/model.safetensors").stat().st_mtime_ns
    assert call(*command, "--resume").code == 0
    assert Path("out/fine_tuned/model.safetensors").stat().st_mtime_ns == weights


def note_of(error: Exception, folder: Path) -> str:
    with pytest.raises(type(error)) as raised, explaining_resume(OutputDirectory(folder)):
        raise error
    return " ".join(getattr(raised.value, "__notes__", ()))


def test_only_what_can_be_continued_is_said_to_be(tmp_path: Path) -> None:
    broken = sp.InputError("the image a.png cannot be decoded.")
    assert note_of(broken, tmp_path) == ""
    (tmp_path / "checkpoints/step-00000003").mkdir(parents=True)
    assert "continue with `resume=True`" in note_of(broken, tmp_path)
    assert "continue with `resume=True`" in note_of(OSError("no space left"), tmp_path)
    assert note_of(DivergenceError("the loss is nan"), tmp_path) == ""
    assert note_of(sp.InputError("out of memory. Continue with `resume=True`."), tmp_path) == ""
