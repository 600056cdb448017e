"""What a failing command prints: options in place of the arguments that the library names, and the exit code."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import typer

from shiftproof.cli import app as cli
from shiftproof.cli.failures import name_options, options_of

ROOT = typer.main.get_command(cli.app)


def command(*names: str) -> object:
    """A command by what one types."""
    inner = ROOT
    for name in names:
        inner = inner.commands[name]  # type: ignore[attr-defined]
    return inner


def failure(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The message of a command that ends with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["shiftproof", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("Choose another `out`.", "Choose another --out."),
        ("Add `resume=True`.", "Add --resume."),
        ("Add `seed=3`.", "Add --seed 3."),
        ("Give `out='report.html'`.", "Give --out report.html."),
        ("`overrides` 'lr' must look like finetune.lr=1e-5.", "--set 'lr' must look like finetune.lr=1e-5."),
        ("`start` and `nobody` stay as they are.", "`start` and `nobody` stay as they are."),
    ],
)
def test_arguments_become_the_options_of_the_command(message: str, shown: str) -> None:
    assert name_options(message, options_of(command("finetune"))) == shown


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "run.yaml", "--set", "lr"], "--set 'lr' must look like finetune.lr=1e-5."),
        (["demo", "--out", "full", "--resume", "--overwrite"], "--resume continues the run that --overwrite deletes."),
        (["export-suite", "emoji", "--out", "full"], "Choose another --out, or delete it."),
        (["report", "a", "b"], "Set the file to write, as in --out report.html."),
        (["evaluate", "absent"], "Name some, e.g. --suite emoji or --test folder:PATH."),
        (["diagnose", "backgrounds"], "Name classifiers, or models with --model."),
        (["diagnose", "strong-edge", "--data", "folder:x"], "--data and --shift need a model to diagnose."),
        (["diagnose", "cka", "tiny", "tiny", "--data", "d", "--unlabelled", "u"], "--data and --unlabelled both name"),
    ],
)
def test_a_message_of_the_library_names_options(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    shown: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("do not lose me", encoding="utf-8")
    Path("run.yaml").write_text("model: tiny\nsuite: emoji\n", encoding="utf-8")
    printed = failure(capsys, monkeypatch, *arguments)
    assert shown in printed
    assert "`" not in printed
    assert printed.startswith("shiftproof: ")
    assert "Traceback" not in printed
