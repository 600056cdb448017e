"""Fixtures that all tests share: offline hubs, a seeded torch, the shipped model, a small data set and the commands."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once

import io
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from support.commands import Call, CommandResult, Steps

import shiftproof as sp
from shiftproof.cli import app as cli

# Scripts that tests start in processes of their own find tests/support too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])

# A shell that starts the tests in the background ignores Ctrl-C for them, and so for the processes that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shiftproof", deadline=None, max_examples=40)
settings.load_profile("shiftproof")

COLOURS = {"lemon": (240, 210, 40), "red_apple": (200, 30, 40), "pear": (120, 190, 60)}
IMAGES_PER_CLASS = {"train": 6, "validation": 3, "test": 3, "sketch": 3}


@pytest.hookimpl(trylast=True)  # after pytest-randomly, which shuffles the files
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files that take longest first, so that no worker is alone with one of them in the end."""
    ranks: dict[Path, int] = {}
    for item in items:
        marks = {mark.name for mark in item.iter_markers()}
        rank = 0 if marks & {"ray", "multiprocess"} else 1 if marks & {"long", "slow"} else 2
        ranks[item.path] = min(rank, ranks.get(item.path, rank))
    items.sort(key=lambda item: ranks[item.path])


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """pytest-randomly seeds random and numpy; torch is seeded here."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny() -> sp.models.Clip:
    """The shipped model; treat it as immutable."""
    return sp.load_clip("tiny")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train, validation, test and sketch, each ``class/image.png`` of 40 x 32 px; read only."""
    root = tmp_path_factory.mktemp("fruit")
    draw_from = random.Random("fruit")
    for split, count in IMAGES_PER_CLASS.items():
        for name, colour in COLOURS.items():
            for number in range(count):
                path = root / split / name / f"{name}-{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                _drawing(name, None if split == "sketch" else colour, draw_from).save(path)
    return root


def _drawing(name: str, colour: tuple[int, int, int] | None, draw_from: random.Random) -> Image.Image:
    """An outline of the fruit's own shape, filled unless it is a sketch."""
    image = Image.new("RGB", (40, 32), "white")
    x, y, half = draw_from.randint(14, 26), draw_from.randint(13, 19), draw_from.randint(8, 12)
    pen = ImageDraw.Draw(image)
    if name == "lemon":
        pen.ellipse((x - half, y - half // 2, x + half, y + half // 2), fill=colour, outline="black")
    elif name == "red_apple":
        pen.ellipse((x - half, y - half, x + half, y + half), fill=colour, outline="black")
    else:
        pen.polygon([(x, y - half), (x + half // 2, y + half), (x - half // 2, y + half)], colour, "black")
    return image


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports get figures of one pixel, since drawing them is half of what a small run takes."""
    content = io.BytesIO()
    Image.new("RGB", (1, 1)).save(content, "PNG")
    for module in ("figures", "page"):
        monkeypatch.setattr(f"shiftproof.report.{module}.figure_bytes", lambda figure, kind="png": content.getvalue())


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Runs a command in an empty directory in this process, which saves the seconds that imports take."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path) -> CommandResult:
        monkeypatch.setattr(sys, "argv", ["shiftproof", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        printed = capsys.readouterr()
        return CommandResult(code, printed.out, printed.err)

    return run


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """The steps that a training takes, which a test may stop."""
    from shiftproof.training.engine import Trainer

    noted, take = Steps(), Trainer.take

    def watched(trainer: Trainer, step: int, losses: Any) -> float:
        if step == noted.stop:
            raise RuntimeError("the plug was pulled")
        noted.taken.append(step)
        return take(trainer, step, losses)

    monkeypatch.setattr(Trainer, "take", watched)
    return noted
