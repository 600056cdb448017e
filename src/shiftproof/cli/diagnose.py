"""The ``diagnose`` commands, which explain what a model does and how two models differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from shiftproof.cli.diagnosis_options import (
    BackgroundOptions,
    First,
    ImageOptions,
    InterventionOptions,
    MapOptions,
    Second,
    Third,
    UnlabelledOptions,
    Written,
)
from shiftproof.cli.group import Command, CommandGroup, with_options
from shiftproof.cli.options import Overwrite, RandomWeights, ResolvedDevice
from shiftproof.runs.parts import PARTS


def whole_run(
    run: Annotated[Path, Argument(metavar="RUN", help="The directory of a finished run.")],
    parts: Annotated[
        str,
        Option(
            "--parts",
            metavar="PART,...|none",
            help="Add these parts, which run or train models, or none. "
            + " ".join(f"{part.name}: {part.summary}." for part in PARTS),
        ),
    ] = "layers",
    baselines: Annotated[
        Path | None,
        Option(
            "--baselines",
            metavar="FILE",
            help="Read the accuracies of models trained on the reference only from this CSV file, which has the "
            "columns model and one for every set [default: none are "
            "read].",
        ),
    ] = None,
    others: Annotated[
        list[Path] | None,
        Option(
            "--with",
            metavar="CLASSIFIER",
            help="Also compare the models of the run with the fine-tuned classifier in this directory. Can be "
            "repeated.",
        ),
    ] = None,
    device: ResolvedDevice = "auto",
) -> None:
    """Diagnose a finished run: regenerate its diagnosis.json, figures and report.

    Agreement, overrides, CKA, connectivity, calibration, robustness and movement are computed from what the run saved,
    in half a minute on the demo. The parts layers and strong-edge run the models on some images. The others train
    networks and save them in RUN/diagnosis. The result of a part stays valid until the models change.

    Example: shiftproof diagnose run runs/demo
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.comparisons import names_of
    from shiftproof.report.diagnoses import diagnosis_tables
    from shiftproof.report.page import read_run
    from shiftproof.runs.diagnose import diagnose_run

    names = () if parts == "none" else tuple(part.strip() for part in parts.split(","))
    with live_progress():
        record = diagnose_run(run, names, baselines=baselines, others=tuple(others or ()), device=device)
    for table in diagnosis_tables(record, names_of(read_run(run))["zero_shot"]):
        print_table(table)
    print(f"numbers: {run / 'diagnosis.json'}; report: {run / 'report.html'}")


def agreement(
    first: First, second: Second, options: UnlabelledOptions, third: Third = None, out: Written = None
) -> None:
    """Measure how much the predictions of two models differ; labels are not needed.

    With a third model, such as the ensemble of the two, it also shows which of the two the third one follows.

    Example: shiftproof diagnose agreement runs/demo/zero_shot runs/demo/fine_tuned runs/demo/ensemble --suite emoji

    In production: shiftproof diagnose agreement runs/demo/zero_shot runs/demo/fine_tuned --unlabelled photos
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.agreement import pair_tables
    from shiftproof.runs.comparisons import compare_agreement

    with live_progress():
        record = compare_agreement(options.pair(first, second, third))
    for table in pair_tables(record.pairs, record.overrides, record.clusters):
        print_table(table)
    _write_numbers(out, "agreement.json", record)


def cka(
    first: First,
    second: Second,
    options: UnlabelledOptions,
    layers: Annotated[
        str | None,
        Option(
            "--layers",
            metavar="NAME,...",
            help="Compare these modules, e.g. encoder.trunk.stem,features [default: a few, spread over the depth].",
        ),
    ] = None,
    debiased: Annotated[
        bool,
        Option(
            "--debiased",
            help="Use the unbiased estimate, which suits a small number of images [default: the biased one].",
        ),
    ] = False,
    out: Written = None,
) -> None:
    """Measure how similar the layers of two models are, by linear CKA; labels are not needed.

    --out also writes a heat map for every set.

    Example: shiftproof diagnose cka runs/demo/zero_shot runs/demo/fine_tuned --shift sketch --out runs/cka
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.figures import save_figure
    from shiftproof.report.layers import layers_figure, layers_table
    from shiftproof.runs.comparisons import compare_layers

    names = None if layers is None else tuple(name.strip() for name in layers.split(","))
    with live_progress():
        records = compare_layers(options.pair(first, second), names, debiased=debiased)
    for record in records:
        print_table(layers_table(record))
        if out is not None:
            save_figure(layers_figure(record, first, second), out / f"cka-{record.set.replace('/', '-')}.png")
    _write_numbers(out, "cka.json", records)


def connectivity(
    first: First,
    second: Second,
    options: ImageOptions,
    alphas: Annotated[
        int, Option("--alphas", metavar="N", min=3, help="Measure this many points from A (0) to B (1).")
    ] = 11,
    out: Written = None,
) -> None:
    """Measure accuracy and loss on the straight line between the weights of two models.

    The tables show whether the line has an error barrier.

    Example: shiftproof diagnose connectivity runs/a/fine_tuned runs/b/fine_tuned --shift sketch
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.connectivity import connectivity_table
    from shiftproof.runs.comparisons import compare_path

    with live_progress():
        record = compare_path(options.pair(first, second), alphas)
    print_table(connectivity_table(record.connectivity, record.losses, record.clusters))
    _write_numbers(out, "connectivity.json", record)


def movement(
    first: First,
    second: Second,
    third: Third = None,
    random_weights: RandomWeights = False,
    out: Written = None,
) -> None:
    """Measure how far each layer moved from A to B.

    With another model C that was fine-tuned from A, it also shows whether the two moved in the same direction.

    Example: shiftproof diagnose movement runs/demo/zero_shot runs/demo/fine_tuned
    """
    from shiftproof.cli.console import print_table
    from shiftproof.report.movement import movement_table
    from shiftproof.runs.comparisons import PairFile, compare_weights

    models = tuple(name for name in (first, second, third) if name)
    record = compare_weights(PairFile(models, random_weights=random_weights))
    print_table(movement_table(record, None))
    _write_numbers(out, "movement.json", record)


def cam(
    first: First,
    second: Second,
    options: MapOptions,
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the figures to this directory.")] = Path(
        "runs/cam"
    ),
) -> None:
    """Show where two models look: class activation maps of the class that each predicts, a figure for every set.

    Example: shiftproof diagnose cam runs/demo/zero_shot runs/demo/fine_tuned --shift clutter --out runs/cam
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.report.figures import save_figure
    from shiftproof.report.windows import map_figure
    from shiftproof.runs.comparisons import compare_maps

    with live_progress():
        maps = compare_maps(options.pair(first, second))
    for name, examples in maps.items():
        print(save_figure(map_figure(examples), out / f"cam-{name.replace('/', '-')}.png"))


def strong_edge(
    options: InterventionOptions,
    out: Annotated[
        Path, Option("--out", metavar="DIR", help="Write the numbers and figures to this directory.")
    ] = Path("runs/strong-edge"),
    overwrite: Overwrite = False,
) -> None:
    """Test whether models look at a window pasted into the image instead of the object.

    Without a model, networks are trained without mixing, with hard edges and with soft edges, which takes about ten
    minutes on two CPU cores.

    Example: shiftproof diagnose strong-edge --out runs/strong-edge

    Your own images: shiftproof diagnose strong-edge --model timm:resnet50.a1_in1k --head own --data folder:photos
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.windows import clean_table, strong_edge_verdict, window_kinds, window_table
    from shiftproof.runs.interventions import run_strong_edge

    request = options.request()
    with live_progress():
        study = run_strong_edge(request, out, overwrite=overwrite)
    print_table(clean_table(study))
    for place, edge in window_kinds(study):
        if edge == 0:  # the question is about hard edges; the file has the soft ones, too
            print_table(window_table(study, place, edge))
    print(strong_edge_verdict(study))
    print(f"numbers: {out / 'strong_edge.json'}; figures: {out / 'figures'}")


def backgrounds(
    options: BackgroundOptions,
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the numbers to this directory.")] = Path(
        "runs/backgrounds"
    ),
    overwrite: Overwrite = False,
) -> None:
    """Test how much models rely on the background, by exchanging the backgrounds of images.

    The images need object masks: those of the emoji, of a CSV's mask column or of --masks.

    Example: shiftproof diagnose backgrounds runs/demo/zero_shot runs/demo/fine_tuned --shift clutter
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.windows import background_table
    from shiftproof.runs.interventions import run_backgrounds

    request = options.request()
    with live_progress():
        study = run_backgrounds(request, out, overwrite=overwrite)
    print_table(background_table(study))
    print(f"numbers: {out / 'backgrounds.json'}")


diagnose = typer.Typer(
    name="diagnose",
    cls=CommandGroup,
    help="Explain a run or compare models: agreement, CKA, connectivity, movement, maps, windows, backgrounds.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_SUBJECTS: dict[str, tuple[Callable[..., None], ...]] = {
    "Two models": (agreement, cka, connectivity, movement, cam),
    "Changed images": (strong_edge, backgrounds),
}
diagnose.command("run", rich_help_panel="A finished run", cls=Command)(with_options(whole_run))
for _subject, _commands in _SUBJECTS.items():
    for _command in _commands:
        diagnose.command(rich_help_panel=_subject, cls=Command)(with_options(_command))


def _write_numbers(out: Path | None, name: str, record: Any) -> None:
    """Writes a record, or several, if a directory is given."""
    from shiftproof.records.codec import to_json
    from shiftproof.storage import write_json

    if out is not None:
        write_json(out / name, to_json(record))
        print(f"numbers: {out / name}")
