"""The command that checks inputs before anything is computed: ``doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from shiftproof.cli.choices import KINDS, choice
from shiftproof.cli.options import SettingOptions


def doctor(
    target: Annotated[str, Argument(metavar="TARGET", help="A run file, the name of a model, or a data name.")],
    settings: SettingOptions,
    kind: Annotated[
        str | None,
        choice(
            "--kind",
            KINDS,
            "Take TARGET for a run file (run), the name of a model (model) or a data name (data), where its name could "
            "stand for another of them [default: judged by its name].",
        ),
    ] = None,
    all_images: Annotated[
        bool, Option("--all-images", help="Decode and compare all images [default: at most 2,000 of each set].")
    ] = False,
    out: Annotated[
        Path | None,
        Option(
            "--out", metavar="DIR", help="Check the free space of this run directory [default: the working directory]."
        ),
    ] = None,
) -> None:
    """Check a run file, a model or data, and say what to do about whatever is wrong.

    Nothing is written. The exit code is 2 if there are errors, and 0 if there are only warnings and notes.

    Example: shiftproof doctor run.yaml --all-images
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.cli.failures import USER_ERROR
    from shiftproof.report.checkups import conclusion, findings_table, sets_table
    from shiftproof.runs.doctor import run_checkup

    with live_progress():
        checkup = run_checkup(
            target,
            kind=kind,
            overrides=settings.overrides or (),
            values=settings.values(),
            all_images=all_images,
            out=out,
        )
    if checkup.sets:
        print_table(sets_table(checkup))
    if checkup.findings:
        print_table(findings_table(checkup), prose=True)
    print(conclusion(checkup))
    if checkup.errors:
        raise typer.Exit(USER_ERROR)
