"""What the README says is what the code does and what the demo runs with."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import shiftproof as sp
from shiftproof.runs.file import DEMO_FILE, MODEL_SETTINGS, RunFile
from shiftproof.runs.stages import predict_images

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cut(suite: sp.ShiftSuite, classes: int) -> sp.ShiftSuite:
    """The suite's first classes only, still in the whole class space."""

    def few(images: sp.ImageSet) -> sp.ImageSet:
        return images.subset(np.flatnonzero(images.labels < classes).tolist())

    parts = suite.reference
    reference = replace(parts, train=few(parts.train), validation=few(parts.validation), test=few(parts.test))
    return replace(suite, reference=reference, shifts=tuple(replace(s, data=few(s.data)) for s in suite.shifts))


@pytest.mark.slow
def test_the_python_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    small = cut(sp.load_suite("emoji"), 2)
    monkeypatch.setattr(sp, "load_suite", lambda name: small)
    source = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert source
    exec(source[1], {})
    assert sp.load_classifier(tmp_path / "ensemble").alpha == 0.5


def test_the_mixing_examples_run() -> None:
    page = (ROOT / "docs" / "mixing.md").read_text(encoding="utf-8")
    (in_page,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, object] = {}
    exec(in_page, names)
    assert names["targets"].shape == (8, 1000)
    in_readme = re.findall(r"```python\n(.*?)```", README, re.DOTALL)[2]
    assert "SmoothMix" in in_readme
    images, labels = torch.rand(4, 3, 8, 8), torch.arange(4)
    names = {"sp": sp, "images": images, "labels": labels, "model": lambda x: torch.zeros(len(x), 1000)}
    exec(in_readme, names)
    assert torch.isclose(names["loss"], torch.tensor(1000.0).log())


def test_the_example_for_your_own_code_runs(
    tiny: sp.models.Clip,
    folders: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    classifier = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear", "red_apple"]))
    sp.save_classifier(classifier, "ensemble")
    shutil.copy(folders / "test" / "pear" / "pear-0.png", "some.jpg")
    names: dict[str, object] = {"sp": sp}
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[1], names)
    (answer,) = predict_images("ensemble", [Path("some.jpg")])
    assert capsys.readouterr().out == f"{answer.top[0][0]}\n"


def test_the_run_file_of_the_readme_is_one() -> None:
    source = re.search(r"<<'YAML'\n(.*?)\nYAML", README, re.DOTALL)
    assert source
    run_file = RunFile.resolve(yaml.safe_load(source[1]))
    assert run_file.model == "open_clip:ViT-B-32/openai"
    assert run_file.finetune.lr == 3e-5


@pytest.mark.long
@pytest.mark.usefixtures("blank_figures")
def test_the_run_file_of_the_readme_trains_the_tiny_model_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = re.search(r"<<'YAML'\n(.*?)\nYAML", README, re.DOTALL)
    assert source
    monkeypatch.chdir(tmp_path)
    colours = {"first": (240, 210, 40), "second": (200, 30, 40), "third": (120, 190, 60)}  # names that say nothing
    for folder in ("photos/train", "photos/val", "photos/test", "sketches"):
        for name, colour in colours.items():
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for number in range(40 if folder == "photos/train" else 10):
                pixels = np.full((32, 32, 3), colour, np.int64) + np.random.default_rng(number).normal(
                    0, 20, (32, 32, 3)
                )
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    (tmp_path / "run.yaml").write_text(source[1], encoding="utf-8")
    record = sp.run_pipeline(RunFile.read("run.yaml", ["model=tiny", "alphas=2"]), tmp_path / "out")
    assert record.models["fine_tuned"]["reference"].accuracy > 0.9


def test_demo_runs_the_settings_that_the_tiny_model_defaults_to() -> None:
    assert RunFile.read(DEMO_FILE) == RunFile.resolve({"model": "tiny", "suite": "emoji"})
    assert set(MODEL_SETTINGS) == {"tiny"}


def test_three_seeds_are_reported_with_the_demo_s_settings() -> None:
    summaries = sorted((ROOT / "docs" / "results").glob("demo-seed-*.json"))
    assert [path.name for path in summaries] == ["demo-seed-0.json", "demo-seed-1.json", "demo-seed-2.json"]
