"""The ``diagnose`` commands: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shiftproof.options import Overwrite

if TYPE_CHECKING:
    from shiftproof.diagnosing import DiagnosisFile

diagnose = typer.Typer(
    name="diagnose",
    help="Why a model does what it does: maps, windows, backgrounds.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Classifiers = Annotated[
    list[Path] | None, typer.Argument(metavar="CLASSIFIER...", help="Classifier directories.", show_default=False)
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", help="A model: tiny, timm:NAME.TAG, open_clip:ARCH/TAG, ... May be repeated."),
]
Head = Annotated[
    str, typer.Option("--head", help="Of --model: zero-shot, from its text tower, or own, the one it came with.")
]
Prompts = Annotated[str, typer.Option("--prompts", help="Of a zero-shot head: photo, short, openai, or a template.")]
Suite = Annotated[str, typer.Option("--suite", help="An embedded suite, whose reference test images are used.")]
Shift = Annotated[str | None, typer.Option("--shift", help="One of the suite's shifts instead, e.g. clutter.")]
Data = Annotated[str | None, typer.Option("--data", help="Images of one's own instead, e.g. folder:PATH or csv:PATH.")]
Masks = Annotated[
    Path | None, typer.Option("--masks", help="Object masks: a folder with CLASS/NAME.png, white on black.")
]
Images = Annotated[int, typer.Option("--images", min=2, help="How many images, spread over the classes.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Of images, windows, partners and trainings.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]


@diagnose.command("strong-edge")
def strong_edge(
    classifiers: Classifiers = None,
    model: Models = None,
    head: Head = "zero-shot",
    prompts: Prompts = "photo",
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    masks: Masks = None,
    images: Images = 402,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where numbers and figures go.")] = Path("runs/strong-edge"),
    overwrite: Overwrite = False,
) -> None:
    """Do models look at a pasted window instead of the object?

    Without a model, networks are trained plainly, with hard and with soft edges (about ten minutes on two CPU cores).

    Example: shiftproof diagnose strong-edge --out runs/strong-edge

    On one's own: shiftproof diagnose strong-edge --model timm:resnet50.a1_in1k --head own --data folder:photos
    """
    from shiftproof.console import live_progress, print_table
    from shiftproof.diagnosing import run_strong_edge
    from shiftproof.report.windows import clean_table, strong_edge_verdict, window_kinds, window_table

    asked = _asked(classifiers, model, head, prompts, suite, shift, data, masks, images, seed, device)
    with live_progress():
        study = run_strong_edge(asked, out, overwrite=overwrite)
    print_table(clean_table(study))
    for place, edge in window_kinds(study):
        if edge == 0:  # the question is about hard edges; the file holds the soft ones, too
            print_table(window_table(study, place, edge))
    print(strong_edge_verdict(study))
    print(f"numbers: {out / 'strong_edge.json'}; figures: {out / 'figures'}")


@diagnose.command("backgrounds")
def backgrounds(
    classifiers: Classifiers = None,
    model: Models = None,
    head: Head = "zero-shot",
    prompts: Prompts = "photo",
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    masks: Masks = None,
    images: Images = 2136,
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where the numbers go.")] = Path("runs/backgrounds"),
    overwrite: Overwrite = False,
) -> None:
    """How much do models lean on the background? Objects and backgrounds are put together anew.

    The images need object masks: --masks, a CSV's mask column, or the emoji.

    Example: shiftproof diagnose backgrounds runs/demo/zero_shot runs/demo/fine_tuned --shift clutter
    """
    from shiftproof.console import live_progress, print_table
    from shiftproof.diagnosing import run_backgrounds
    from shiftproof.report.windows import background_table

    asked = _asked(classifiers, model, head, prompts, suite, shift, data, masks, images, seed, device)
    with live_progress():
        study = run_backgrounds(asked, out, overwrite=overwrite)
    print_table(background_table(study))
    print(f"numbers: {out / 'backgrounds.json'}")


def _asked(
    classifiers: list[Path] | None,
    models: list[str] | None,
    head: str,
    prompts: str,
    suite: str,
    shift: str | None,
    data: str | None,
    masks: Path | None,
    images: int,
    seed: int,
    device: str,
) -> DiagnosisFile:
    from shiftproof.diagnosing import DiagnosisFile

    return DiagnosisFile(
        classifiers=tuple(classifiers or ()),
        models=tuple(models or ()),
        head=head,
        prompts=prompts,
        suite=suite,
        shift=shift,
        data=data,
        masks=masks,
        images=images,
        seed=seed,
        device=device,
    )
