"""The command that writes data: ``export-suite``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from shiftproof.cli.options import Seed


def export_suite(
    suite: Annotated[str, Argument(help="An embedded suite: emoji, emoji-development or solar-cells.")],
    out: Annotated[Path, Option("--out", help="Write to this folder, which must be empty or not exist.")],
    seed: Seed = 0,
) -> None:
    """Write an embedded suite as folders of images.

    The folders are reference/{train,validation,test}/CLASS and shifts/NAME/CLASS.

    Example: shiftproof export-suite emoji --out emoji-folders
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_export

    with live_progress():
        count = run_export(suite, out, seed=seed or 0)
    print(f"{count:,} images under {out}")
