"""Pictures that cannot be decoded stop a job by default; ``on_bad_image: skip`` leaves them out and counts them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.commands import Call, assert_mistake, quick_training_flags
from support.shards import labelled_pictures, write_parquet, write_shards

import shiftproof as sp
from shiftproof.data.readable import without_undecodable

CLASSES = ("lemon", "pear", "red_apple")
BROKEN = b"\x89PNG\r\n\x1a\nno picture"


@pytest.fixture
def damaged(folders: Path, tmp_path: Path) -> Path:
    """The fruit with one broken training picture, two broken test pictures of one class, and a broken sketch."""
    root = tmp_path / "fruit"
    shutil.copytree(folders, root)
    for name in ("train/pear/pear-0", "test/lemon/lemon-0", "test/lemon/lemon-2", "sketch/red_apple/red_apple-1"):
        (root / f"{name}.png").write_bytes(BROKEN)
    return root


def test_the_others_remain_in_their_order_with_their_labels(damaged: Path) -> None:
    whole = sp.load_data(f"folder:{damaged}/test")
    with pytest.warns(
        sp.errors.ResultWarning, match=r"skipped 2 of 9 images in .*: .*lemon-0\.png.*lemon-2.* The first: "
    ):
        images = without_undecodable(whole)
    broken = [i for i, name in enumerate(whole.ids) if "lemon-0" in name or "lemon-2" in name]
    rest = [i for i in range(9) if i not in broken]
    assert images.ids == tuple(whole.ids[i] for i in rest)
    assert images.labels.tolist() == [whole.labels[i] for i in rest]
    assert images.skipped == 2
    assert [images.read(i).shape for i in range(7)] == [(32, 40, 3)] * 7


def test_a_set_without_broken_pictures_stays_as_it_is(folders: Path) -> None:
    images = sp.load_data(f"folder:{folders}/test")
    assert without_undecodable(images) is images


@pytest.mark.parametrize("layout", ["csv", "wds", "hf"])
def test_every_layout_is_checked(damaged: Path, tmp_path: Path, layout: str) -> None:
    pictures = labelled_pictures(damaged / "test")
    if layout == "csv":
        rows = "".join(f"{file},{name}\n" for name, file in pictures)
        (tmp_path / "test.csv").write_text("filepath,label\n" + rows, encoding="utf-8")
        data = f"csv:{tmp_path}/test.csv"
    elif layout == "wds":
        data = f"wds:{write_shards(tmp_path / 'shards', 'test', pictures, CLASSES)}"
    else:
        datasets = pytest.importorskip("datasets")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
            labels = [CLASSES.index(name) for name, _ in pictures]
            files = [file for _, file in pictures]
            data = f"hf:{write_parquet(tmp_path / 'test.parquet', {'label': labels}, files, names={'label': CLASSES})}"
    with pytest.warns(sp.errors.ResultWarning, match="skipped 2 of 9 images in .*, which cannot be decoded"):
        assert without_undecodable(sp.load_data(data)).skipped == 2


def test_a_missing_picture_is_no_broken_one(damaged: Path) -> None:
    images = sp.load_data(f"folder:{damaged}/test")
    (damaged / "test/pear/pear-1.png").unlink()
    with pytest.raises(sp.InputError, match=r"pear-1\.png .* does not exist"):
        without_undecodable(images)


def test_a_set_of_broken_pictures_is_refused(damaged: Path) -> None:
    images = sp.load_data(f"folder:{damaged}/test")
    for file in (damaged / "test").rglob("*.png"):
        file.write_bytes(BROKEN)
    with pytest.raises(sp.InputError, match=r"none of the 9 images in .* can be decoded\. The first: "):
        without_undecodable(images)


@pytest.mark.slow
@pytest.mark.usefixtures("blank_figures")
@pytest.mark.filterwarnings("ignore::shiftproof.errors.ResultWarning")
def test_a_run_counts_them_in_its_results_and_on_its_page(damaged: Path, call: Call) -> None:
    splits = {split: f"folder:{damaged}/{split}" for split in ("train", "validation", "test")}
    suite = {"reference": splits, "shifts": {"sketch": {"data": f"folder:{damaged}/sketch"}}}
    settings = {"model": "tiny", "suite": suite, "alphas": 2}
    Path("run.yaml").write_text(json.dumps(settings), encoding="utf-8")
    flags = quick_training_flags(epochs=1)
    assert_mistake(call("run", "run.yaml", *flags, "--out", "stopped"), ".png cannot be decoded")
    ended = call("run", "run.yaml", *flags, "--on-bad-image", "skip", "--out", "out")
    assert ended.code == 0, ended.err
    summary = json.loads(Path("out/summary.json").read_text(encoding="utf-8"))
    counts = {Path(name.removeprefix("folder:")).name: count for name, count in summary["skipped"].items()}
    assert counts == {"train": 1, "test": 2, "sketch": 1}
    for entries in summary["models"].values():
        assert [(entry["n"], entry["skipped"]) for entry in entries.values()] == [(7, 2), (8, 1)]
    assert "2 of " in Path("out/report.html").read_text(encoding="utf-8").split("Undecodable images")[1][:300]
    evaluate = ["evaluate", "out/ensemble", "--test", splits["test"]]
    assert_mistake(call(*evaluate, "--on-bad-image", "ignore"), "'ignore'")
    assert_mistake(call(*evaluate), ".png cannot be decoded")
    scored = call(*evaluate, "--on-bad-image", "skip", "--out", "scored")
    assert scored.code == 0, scored.err
    (line,) = Path("scored/results.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["n"], json.loads(line)["skipped"]) == (7, 2)
