"""The ``study`` command: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shiftproof.cli.options import Overwrite, Resume, Set


def study(
    study_file: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="The study file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The study's directory; else runs/NAME.")] = None,
    overrides: Set = None,
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster's address; else one is started on this machine.")
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Many fine-tunings, side by side: do the settings matter less once weights are ensembled?

    Every configuration of a grid, of a random sample or by name is run with every seed, each with its alpha path.

    Example: shiftproof study grid.yaml --out runs/grid --set run.finetune.epochs=5 --set seeds=[0,1]
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.errors import ShiftproofError
    from shiftproof.report.studies import spread_table, study_table, study_verdict
    from shiftproof.studies.file import StudyFile
    from shiftproof.studies.study import failure_summary, run_study

    out = out or Path("runs") / study_file.stem
    with live_progress():
        found = run_study(
            StudyFile.read(study_file, overrides or ()), out, resume=resume, overwrite=overwrite, address=address
        )
    print_table(study_table(found))
    if spreads := spread_table(found):
        print_table(spreads)
    print(study_verdict(found))
    print(f"numbers: {out / 'study.json'}; figure: {out / 'figures' / 'study.png'}")
    if found.failures:
        raise ShiftproofError(failure_summary(found.failures, out))
