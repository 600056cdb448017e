"""What help and shell completion show, and what they load: modules are counted, since seconds depend on the machine."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main
from support.commands import Call, CommandResult

from shiftproof.cli import app as cli
from shiftproof.cli import choices
from shiftproof.data.corruptions import CORRUPTIONS, SEVERITIES
from shiftproof.ensembling.interpolation import SPACES
from shiftproof.ensembling.rules import RULES
from shiftproof.merging.methods import METHODS, MISSING
from shiftproof.mixing.named import MIXINGS
from shiftproof.models.export.exporting import EXPORT_FORMATS
from shiftproof.models.precision import FASTEST, PRECISIONS
from shiftproof.runs.doctor import KINDS
from shiftproof.runs.file import DEMO_FILES, RunFile
from shiftproof.runs.starts import HEADS
from shiftproof.training.log import TRACKERS
from shiftproof.weights.arithmetic import INTEGERS

SUBJECTS = {
    "Start here": ["demo", "run", "doctor"],
    "Single stages": ["pretrain", "zeroshot", "finetune", "sweep", "evaluate", "predict", "retrieve"],
    "Weights": ["merge", "export"],
    "Understand": ["report", "study", "diagnose"],
    "Data": ["export-suite"],
}
MAIN = "from shiftproof.cli.app import main; main()"
# Each prints how many modules it has loaded, at its end.
COUNT = "import sys; print(len(sys.modules), file=sys.stderr)"
BARE_TYPER = f"""
import typer
app = typer.Typer(rich_markup_mode=None)
app.command()(lambda: None)
try:
    app(["--help"])
finally:
    {COUNT}
"""
HELP = f"""
import sys
sys.argv = ["shiftproof", "--help"]
try:
    {MAIN}
finally:
    {COUNT}
"""


def python(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs some code."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )


def modules(code: str, folder: Path) -> int:
    """The number of modules that some code has loaded when it ends."""
    return int(python(code, folder).stderr.split()[-1])


def test_help_lists_the_commands_by_subject(tmp_path: Path) -> None:
    text = python(f"import sys; sys.argv = ['shiftproof', '--help']; {MAIN}", tmp_path).stdout
    places = [text.index(f"\n{subject}:\n") for subject in SUBJECTS]
    assert places == sorted(places)
    for subject, names in SUBJECTS.items():
        section = text[text.index(f"\n{subject}:\n") :].split("\n\n")[0]
        assert re.findall(r"^  ([a-z-]+)  ", section, flags=re.MULTILINE) == names


def test_every_option_has_a_help_text_that_is_a_sentence() -> None:
    pending = [typer.main.get_command(cli.app)]
    while pending:
        command = pending.pop()
        pending += getattr(command, "commands", {}).values()
        assert command.help
        for parameter in command.params:
            text = getattr(parameter, "help", None)
            if parameter.name not in {"install_completion", "show_completion"}:
                assert text and text[0].isupper() and text.endswith((".", "]")), (command.name, parameter.name)


CHOICES: dict[str, Sequence[str]] = {
    "DEMO_SUITES": tuple(DEMO_FILES),
    "MIXINGS": ("none", *MIXINGS),
    "PRECISIONS": (*PRECISIONS, FASTEST),
    "HEADS": HEADS,
    "ON_BAD_IMAGE": get_args(RunFile.model_fields["on_bad_image"].annotation),
    "TRACKERS": (*TRACKERS, "none"),
    "RULES": RULES,
    "SPACES": SPACES,
    "BATCH_NORM": get_args(RunFile.model_fields["batch_norm"].annotation),
    "KINDS": KINDS,
    "MERGE_METHODS": tuple(METHODS),
    "INTEGERS": INTEGERS,
    "MISSING": MISSING,
    "EXPORT_FORMATS": EXPORT_FORMATS,
    "CORRUPTIONS": tuple(CORRUPTIONS),
    "SEVERITIES": tuple(map(str, SEVERITIES)),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_choices_in_the_help_are_those_of_the_library(name: str) -> None:
    assert sorted(getattr(choices, name)) == sorted(CHOICES[name])


def test_every_list_of_choices_is_compared_with_the_library() -> None:
    assert {name for name in vars(choices) if name.isupper()} == set(CHOICES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "a", "b", "--rule", "refrence"], "unknown --rule 'refrence'. Did you mean 'reference'?"),
        (["sweep", "a", "b", "--space", "x"], "unknown --space 'x'. Known: 'weights', 'outputs'."),
        (["doctor", "tiny", "--kind", "modle"], "unknown --kind 'modle'. Did you mean 'model'?"),
        (["evaluate", "a", "--precision", "flot16"], "unknown --precision 'flot16'. Did you mean 'float16'?"),
        (["run", "a.yaml", "--report-to", "wandb,tensorbord"], "'tensorbord'. Did you mean 'tensorboard'?"),
        (["export", "a", "--to", "onnxx", "--out", "x"], "unknown --to 'onnxx'. Did you mean 'onnx'?"),
    ],
)
def test_another_word_than_the_choices_is_a_mistake(call: Call, arguments: list[str], message: str) -> None:
    ended = call(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert message in ended.err


def test_examples_stand_on_one_line(tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['shiftproof', 'diagnose', 'agreement', '-h']; {MAIN}"
    lines = python(code, tmp_path).stdout.splitlines()
    example = next(line for line in lines if line.startswith("  Example: shiftproof diagnose agreement "))
    assert example.endswith("--suite emoji")


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("shiftproof ", [name for names in SUBJECTS.values() for name in names]),
        ("shiftproof ze", ["zeroshot"]),
        ("shiftproof zeroshot --re", ["--reference"]),
        ("shiftproof diagnose c", ["cka", "connectivity", "cam"]),
    ],
)
def test_the_shell_completes(tmp_path: Path, typed: str, offered: list[str]) -> None:
    variables = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split(" ")) - 1)}
    done = python(MAIN, tmp_path, _SHIFTPROOF_COMPLETE="complete_bash", **variables)
    assert sorted(done.stdout.split()) == sorted(offered)


def test_the_completion_of_a_shell_can_be_printed(tmp_path: Path) -> None:
    script = python(MAIN, tmp_path, _SHIFTPROOF_COMPLETE="source_bash").stdout
    assert "_SHIFTPROOF_COMPLETE=complete_bash" in script


def test_help_loads_little_beyond_what_a_bare_typer_application_loads(tmp_path: Path) -> None:
    assert modules(HELP, tmp_path) < modules(BARE_TYPER, tmp_path) + 60


def test_the_package_loads_little_beyond_a_bare_interpreter(tmp_path: Path) -> None:
    assert modules(f"import shiftproof; {COUNT}", tmp_path) < modules(COUNT, tmp_path) + 40


COMMANDS = {
    "doctor", "demo", "run", "pretrain", "zeroshot", "finetune", "sweep", "evaluate", "predict", "retrieve",
    "report", "export-suite",
    "merge", "export", "study", "diagnose strong-edge", "diagnose backgrounds",
    "diagnose agreement", "diagnose connectivity", "diagnose movement", "diagnose cka", "diagnose cam",
    "diagnose run",
}  # fmt: skip
# Help.


GROUP = typer.main.get_command(cli.app)


def commands() -> dict[str, Any]:
    """Every command by what one types, those of groups too."""
    result: dict[str, Any] = {}
    for name, command in GROUP.commands.items():  # type: ignore[attr-defined]
        parts = getattr(command, "commands", None)
        result |= {f"{name} {part}": inner for part, inner in parts.items()} if parts else {name: command}
    return result


def test_the_commands_are_those_promised() -> None:
    assert set(commands()) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_no_help_shows_a_type_of_python(call: Call, name: str) -> None:
    printed = call(*name.split(), "--help").out
    assert not re.search(r"<\w|x>=|\bTEXT\b(?!  )|list\[", printed)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_option_that_takes_a_value_states_its_default(name: str) -> None:
    command = commands()[name]
    context = command.make_context(name, [], resilient_parsing=True)
    for option in command.params:
        if option.param_type_name == "option" and not option.is_flag:
            text = option.get_help_record(context)[1]
            assert "default: " in text or "[required]" in text or "Can be repeated." in text, option.name


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_s_help_shows_an_example_that_parses(call: Call, name: str) -> None:
    for flag in ("--help", "-h"):
        printed = call(*name.split(), flag)
        assert (printed.code, printed.err) == (0, "")
        assert f"Example: shiftproof {name}" in printed.out
    command = commands()[name]
    example = next(line for line in command.help.splitlines() if line.startswith("Example: "))
    assert example.startswith(f"Example: shiftproof {name}")
    arguments = shlex.split(example.removeprefix(f"Example: shiftproof {name}"))
    # Parsed, not run: an unknown option or a missing argument would raise.
    command.make_context(name, arguments)


def test_the_version_is_that_of_the_package(call: Call) -> None:
    from importlib.metadata import version

    assert call("--version") == CommandResult(0, version("shiftproof") + "\n", "")


def test_the_package_is_a_command(tmp_path: Path) -> None:
    from importlib.metadata import version

    command = [sys.executable, "-m", "shiftproof", "--version"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, version("shiftproof") + "\n", "")


# A light start.


LIGHT = """
import sys
import shiftproof
assert set(shiftproof.__all__) <= set(dir(shiftproof))
heavy = {"torch", "torchvision", "open_clip", "timm", "matplotlib", "scipy", "numpy"}
print(sorted(heavy & set(sys.modules)))
from shiftproof.cli import app as cli
for arguments in ARGUMENTS:
    sys.argv = ["shiftproof", *arguments]
    try:
        cli.main()
    except SystemExit as ended:
        assert not ended.code
print(sorted(heavy & set(sys.modules)))
"""


def test_neither_the_package_nor_its_help_loads_torch(tmp_path: Path) -> None:
    settings = [["--help"], ["--version"], *([*name.split(), "--help"] for name in sorted(COMMANDS))]
    code = LIGHT.replace("ARGUMENTS", repr(settings))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert (lines[0], lines[-1]) == ("[]", "[]")
