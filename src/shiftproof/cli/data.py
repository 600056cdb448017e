"""The command that writes data: ``export-suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option


def export_suite(
    suite: Annotated[
        str,
        Argument(
            metavar="SUITE",
            help="An embedded suite: emoji, emoji-development or one of its folds (emoji-development-1 to -4), or "
            "solar-cells.",
        ),
    ],
    out: Annotated[
        Path, Option("--out", metavar="DIR", help="Write to this folder, which must be empty or not exist.")
    ],
    seed: Annotated[int, Option("--seed", metavar="N", min=0, help="Seed the views of the training images.")] = 0,
) -> None:
    """Write an embedded suite as folders of images.

    The folders are reference/{train,validation,test}/CLASS and shifts/NAME/CLASS.

    Example: shiftproof export-suite emoji --out emoji-folders
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_export

    with live_progress():
        count = run_export(suite, out, seed=seed)
    print(f"{count:,} images under {out}")
