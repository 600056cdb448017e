"""The ``diagnose`` commands: parse, call one function, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftproof.cli.failures import CommandGroup
from shiftproof.cli.options import Overwrite
from shiftproof.runs.parts import PARTS

if TYPE_CHECKING:
    from shiftproof.runs.comparisons import PairFile
    from shiftproof.runs.interventions import DiagnosisFile

diagnose = typer.Typer(
    name="diagnose",
    cls=CommandGroup,
    help="Why a model does what it does: agreement, CKA, connectivity, movement, maps, windows, backgrounds.",
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
    models: Models = None,
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
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.windows import clean_table, strong_edge_verdict, window_kinds, window_table
    from shiftproof.runs.interventions import run_strong_edge

    asked = _asked(classifiers, models, head, prompts, suite, shift, data, masks, images, seed, device)
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
    models: Models = None,
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
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.windows import background_table
    from shiftproof.runs.interventions import run_backgrounds

    asked = _asked(classifiers, models, head, prompts, suite, shift, data, masks, images, seed, device)
    with live_progress():
        study = run_backgrounds(asked, out, overwrite=overwrite)
    print_table(background_table(study))
    print(f"numbers: {out / 'backgrounds.json'}")


First = Annotated[str, typer.Argument(metavar="A", help="A classifier directory, or a model's name.")]
Second = Annotated[str, typer.Argument(metavar="B", help="Another one.")]
Third = Annotated[
    str | None, typer.Argument(metavar="[C]", help="A third: the ensemble of the two, or another fine-tuning.")
]
Unlabelled = Annotated[
    Path | None, typer.Option("--unlabelled", help="A folder of images whose classes nobody knows, instead.")
]
Some = Annotated[int | None, typer.Option("--images", min=2, help="At most so many of every set, over the classes.")]
Written = Annotated[Path | None, typer.Option("--out", help="A directory for the numbers, if they are to be kept.")]


@diagnose.command("run")
def whole_run(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The directory of a finished run.")],
    parts: Annotated[
        str,
        typer.Option(
            "--parts",
            metavar="PART,...",
            help="Parts that run or train models, beside the quick ones, or none. "
            + " ".join(f"{part.name}: {part.summary}." for part in PARTS),
        ),
    ] = "layers",
    baselines: Annotated[
        Path | None, typer.Option("--baselines", help="A CSV of models trained on the reference only: model,SET,...")
    ] = None,
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="Another fine-tuned classifier to compare. May be repeated.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Diagnose a finished run: write its diagnosis.json, figures and report anew.

    Agreement, overrides, CKA, connectivity, calibration, robustness and movement come from what the run kept, in half a
    minute on the demo; layer-wise CKA and the strong-edge study run the models on some images. The fine-tunings of two
    halves of the reference (for the plane, too), networks from random weights and the baseline's are trained, and kept
    in RUN/diagnosis. What a part found stays until the models change.

    Example: shiftproof diagnose run runs/demo
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.diagnoses import diagnosis_tables
    from shiftproof.runs.diagnose import diagnose_run

    asked = () if parts == "none" else tuple(part.strip() for part in parts.split(","))
    with live_progress():
        found = diagnose_run(run, asked, baselines=baselines, others=tuple(others or ()), device=device)
    for table in diagnosis_tables(found):
        print_table(table)
    print(f"numbers: {run / 'diagnosis.json'}; report: {run / 'report.html'}")


@diagnose.command("agreement")
def agreement(
    first: First,
    second: Second,
    third: Third = None,
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    images: Some = None,
    prompts: Prompts = "photo",
    seed: Seed = 0,
    device: Device = "auto",
    out: Written = None,
) -> None:
    """How much two models' predictions differ and, with a third, whom that ensemble follows. Labels are not needed.

    Example: shiftproof diagnose agreement runs/demo/zero_shot runs/demo/fine_tuned runs/demo/ensemble --suite emoji

    In production: shiftproof diagnose agreement runs/demo/zero_shot runs/demo/fine_tuned --unlabelled photos
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.agreement import pair_tables
    from shiftproof.runs.comparisons import compare_agreement

    asked = _pair((first, second, third), suite, shift, data, unlabelled, images, prompts, seed, device)
    with live_progress():
        found = compare_agreement(asked)
    for table in pair_tables(found.pairs, found.overrides, found.clusters):
        print_table(table)
    _keep(out, "agreement.json", found)


@diagnose.command("cka")
def cka(
    first: First,
    second: Second,
    layers: Annotated[
        str | None, typer.Option("--layers", help="Module names, e.g. encoder.trunk.stem,features; else a few.")
    ] = None,
    debiased: Annotated[bool, typer.Option("--debiased", help="Of unbiased estimates, for few images.")] = False,
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    images: Some = None,
    prompts: Prompts = "photo",
    seed: Seed = 0,
    device: Device = "auto",
    out: Written = None,
) -> None:
    """How alike two models' layers are: linear CKA, layer by layer, and a heat map for every set; no labels needed.

    Example: shiftproof diagnose cka runs/demo/zero_shot runs/demo/fine_tuned --shift sketch --out runs/cka
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.figures import save_figure
    from shiftproof.report.layers import layers_figure, layers_table
    from shiftproof.runs.comparisons import compare_layers

    asked = _pair((first, second), suite, shift, data, unlabelled, images, prompts, seed, device)
    names = None if layers is None else tuple(name.strip() for name in layers.split(","))
    with live_progress():
        found = compare_layers(asked, names, debiased=debiased)
    for record in found:
        print_table(layers_table(record))
        if out is not None:
            save_figure(layers_figure(record, first, second), out / f"cka-{record.set.replace('/', '-')}.png")
    _keep(out, "cka.json", found)


@diagnose.command("connectivity")
def connectivity(
    first: First,
    second: Second,
    alphas: Annotated[int, typer.Option("--alphas", min=3, help="How many points from A (0) to B (1).")] = 11,
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    images: Some = None,
    prompts: Prompts = "photo",
    seed: Seed = 0,
    device: Device = "auto",
    out: Written = None,
) -> None:
    """Whether the straight line between two models' weights has a barrier: accuracy and loss against the line.

    Example: shiftproof diagnose connectivity runs/a/fine_tuned runs/b/fine_tuned --shift sketch
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.connectivity import connectivity_table
    from shiftproof.runs.comparisons import compare_path

    asked = _pair((first, second), suite, shift, data, None, images, prompts, seed, device)
    with live_progress():
        found = compare_path(asked, alphas)
    print_table(connectivity_table(found.connectivity, found.losses, found.clusters))
    _keep(out, "connectivity.json", found)


@diagnose.command("movement")
def movement(
    first: First,
    second: Second,
    third: Third = None,
    out: Written = None,
) -> None:
    """Which layers moved from A to B and, with another fine-tuning C of A, whether the two moved alike.

    Example: shiftproof diagnose movement runs/demo/zero_shot runs/demo/fine_tuned
    """
    from shiftproof.cli.console import print_table
    from shiftproof.report.movement import movement_table
    from shiftproof.runs.comparisons import PairFile, compare_weights

    found = compare_weights(PairFile(tuple(name for name in (first, second, third) if name)))
    print_table(movement_table(found, None))
    _keep(out, "movement.json", found)


@diagnose.command("cam")
def cam(
    first: First,
    second: Second,
    suite: Suite = "emoji",
    shift: Shift = None,
    data: Data = None,
    unlabelled: Unlabelled = None,
    images: Annotated[int, typer.Option("--images", min=2, help="How many images, spread over the classes.")] = 8,
    prompts: Prompts = "photo",
    seed: Seed = 0,
    device: Device = "auto",
    out: Annotated[Path, typer.Option("--out", help="Where the figures go.")] = Path("runs/cam"),
) -> None:
    """Where two models look: class activation maps of the class that each names, side by side, a figure for every set.

    Example: shiftproof diagnose cam runs/demo/zero_shot runs/demo/fine_tuned --shift clutter --out runs/cam
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.report.figures import save_figure
    from shiftproof.report.windows import map_figure
    from shiftproof.runs.comparisons import compare_maps

    asked = _pair((first, second), suite, shift, data, unlabelled, images, prompts, seed, device)
    with live_progress():
        found = compare_maps(asked)
    for name, examples in found.items():
        print(save_figure(map_figure(examples), out / f"cam-{name.replace('/', '-')}.png"))


def _pair(
    models: tuple[str | None, ...],
    suite: str,
    shift: str | None,
    data: str | None,
    unlabelled: Path | None,
    images: int | None,
    prompts: str,
    seed: int,
    device: str,
) -> PairFile:
    from shiftproof.runs.comparisons import PairFile

    named = tuple(name for name in models if name)
    return PairFile(named, suite, shift, data, unlabelled, images, prompts, seed, device)


def _keep(out: Path | None, name: str, found: Any) -> None:
    """Writes a record, or several, where a directory was given."""
    from shiftproof.records.codec import to_json
    from shiftproof.storage import write_json

    if out is not None:
        write_json(out / name, to_json(found))
        print(f"numbers: {out / name}")


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
    from shiftproof.runs.interventions import DiagnosisFile

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
