"""The command line's arguments and options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A model: tiny, open_clip:ARCH/TAG, hf-hub:ORG/NAME, local-dir:PATH.")]
Suite = Annotated[str | None, typer.Option("--suite", help="An embedded suite: emoji, emoji-development.")]
Train = Annotated[str | None, typer.Option("--reference", help="Training data of one's own, e.g. folder:PATH.")]
Validation = Annotated[
    str | None, typer.Option("--validation", help="Validation data; else a fifth of --reference is held out.")
]
Test = Annotated[str | None, typer.Option("--test", help="The reference's test data.")]
Shifts = Annotated[list[str] | None, typer.Option("--shift", help="A natural shift, NAME=DATA. May be repeated.")]
Corrupt = Annotated[
    list[str] | None,
    typer.Option("--corrupt", help="A synthetic shift of the test data, NAME:SEVERITY. May be repeated."),
]
Prompts = Annotated[str, typer.Option("--prompts", help="photo, short, openai, or a template with {}.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="The run's seed.")]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu or cuda.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Overrides a run-file key, e.g. finetune.lr=1e-5. May be repeated."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out; finished stages are skipped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left in --out first.")]
Shots = Annotated[
    int | None, typer.Option("--shots", min=1, help="Train on so many images of every class, drawn by the seed.")
]
ReportTo = Annotated[
    str | None, typer.Option("--report-to", help="Trackers: tensorboard, wandb, both (tensorboard,wandb) or none.")
]
Mixing = Annotated[
    str | None,
    typer.Option(
        "--mixing",
        help="Mix while fine-tuning: smoothmix-circle, smoothmix-square, cutmix, cutout, mixup or none.",
    ),
]
