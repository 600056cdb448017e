"""The examples of the guides run, and their commands exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import shiftproof as sp
from shiftproof.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The arguments of every shiftproof command in the shell blocks of a page, without comments."""
    lines = "\n".join(blocks(page, "sh")).splitlines()
    tokens = [shlex.split(line, comments=True) for line in lines if "shiftproof " in line and "pip install" not in line]
    return [words[words.index("shiftproof") + 1 :] for words in tokens if "shiftproof" in words]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_their_options_exist(page: Path) -> None:
    for words in commands(page):
        command: Any = typer.main.get_command(app)
        rest = list(words)
        while hasattr(command, "commands"):
            command = command.commands[rest.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        used = {word.split("=")[0] for word in rest if word.startswith("--")}
        assert used <= known, words


def test_the_example_of_merging_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import load_file, save_file

    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.zeros(2)}, "zeroshot.safetensors")
    save_file({"w": torch.ones(2)}, "finetuned.safetensors")
    (source,) = blocks(ROOT / "docs" / "merging.md", "python")
    exec(source, {})
    assert load_file("merged.safetensors")["w"].tolist() == [0.5, 0.5]


def test_the_example_of_diagnosis_runs() -> None:
    (source,) = blocks(ROOT / "docs" / "diagnosis.md", "python")
    exec(source, {})


def test_the_settings_of_the_fine_tuning_example_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[sp.FinetuneSettings] = []
    monkeypatch.setattr(sp, "finetune", lambda start, suite, settings: calls.append(settings))
    (source,) = blocks(ROOT / "docs" / "fine-tuning.md", "python")
    exec(source, {})
    assert calls[0].recipe == "lp-ft"
