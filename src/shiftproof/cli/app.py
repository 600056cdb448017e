"""The command line: every command parses its arguments, calls one function and prints the result.

The exit code is 0 for success, 2 for a mistake of the user, 1 for a defect of the program, and 130 or 143 after Ctrl-C
or SIGTERM.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated

import typer

from shiftproof.cli.checkups import doctor
from shiftproof.cli.data import export_suite
from shiftproof.cli.diagnose import diagnose
from shiftproof.cli.exports import export
from shiftproof.cli.group import Command, CommandGroup, with_options
from shiftproof.cli.predictions import predict
from shiftproof.cli.retrieval import retrieve
from shiftproof.cli.stages import evaluate, finetune, pretrain, zeroshot
from shiftproof.cli.start import demo, run
from shiftproof.cli.studies import report, study
from shiftproof.cli.sweeps import sweep
from shiftproof.cli.weights import merge

# Heavy modules are imported inside the commands and help is plain text, so that --help is fast.
app = typer.Typer(
    name="shiftproof",
    cls=CommandGroup,
    help="Robust fine-tuning of zero-shot image models: fine-tune, ensemble in weight space, measure under shift.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_UNDERSTAND = "Understand"
_SUBJECTS = {
    "Start here": (demo, run, doctor),
    "Single stages": (pretrain, zeroshot, finetune, sweep, evaluate, predict, retrieve),
    "Weights": (merge, export),
    _UNDERSTAND: (report, study),
    "Data": (export_suite,),
}
for _subject, _commands in _SUBJECTS.items():
    for _command in _commands:
        app.command(rich_help_panel=_subject, cls=Command)(with_options(_command))
app.add_typer(diagnose, rich_help_panel=_UNDERSTAND)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("shiftproof"))
        raise typer.Exit


def main() -> None:
    """Runs the command line. The secondary processes of ``torchrun`` print nothing but errors."""
    from shiftproof.progress import is_secondary_process

    # OpenMP reads this when torch is loaded, which happens later, inside the commands. Threads that spin while they
    # wait for each other slow down whatever else runs, and themselves most of all (docs/decisions.md#speed).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with _errors_only() if is_secondary_process() else contextlib.nullcontext():
            app(prog_name="shiftproof")
    except BrokenPipeError:
        sys.exit(1)


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


if __name__ == "__main__":
    main()
