"""The commands that run the whole method: ``demo`` and ``run``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from shiftproof.cli.choices import DEMO_SUITES, MIXINGS, choice
from shiftproof.cli.options import FinetuningOptions, Overwrite, RandomWeights, Resume, RunPath

if TYPE_CHECKING:
    from shiftproof.records.runs import RunRecord
    from shiftproof.runs.file import RunFile


def demo(
    settings: FinetuningOptions,
    mixing: Annotated[
        str | None,
        choice("--mixing", MIXINGS, "Mix images in this way while fine-tuning [default: that of --set, or none]."),
    ] = None,
    suite: Annotated[str, choice("--suite", DEMO_SUITES, "Run on this embedded suite.")] = "emoji",
    out: Annotated[
        Path | None,
        Option(
            "--out",
            metavar="DIR",
            help="Write to this run directory [default: runs/demo-SEED, or runs/demo-solar-cells-SEED].",
        ),
    ] = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole method on an embedded suite in a few minutes.

    Example: shiftproof demo --seed 0 --out runs/demo --mixing smoothmix-circle
    """
    from shiftproof.runs.file import DEMO_FILE, DEMO_FILES

    run_path = DEMO_FILES[suite]

    if mixing:  # this comes first, so that --set can change the settings that the mixing brings along
        settings = settings.with_key(f"finetune.mixing={mixing}")
    run_file = settings.read("demo", run_path)
    name = "demo" if run_path == DEMO_FILE else f"demo-{suite}"
    _run(run_file, out or Path(f"runs/{name}-{run_file.seed}"), resume=resume, overwrite=overwrite)


def run(
    path: RunPath,
    settings: FinetuningOptions,
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="Write to this run directory [default: runs/ and the run file's name]."),
    ] = None,
    random_weights: RandomWeights = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Run the whole method with your own model and data, as a run file describes it.

    The stages are: build the zero-shot classifier, fine-tune it, sweep alpha, average the weights, measure all models
    under distribution shift, and write a report. Processes started by torchrun share the fine-tuning and the
    evaluation.

    Example: shiftproof run run.yaml --out runs/mine --set finetune.lr=1e-5
    """
    settings = settings.with_key("random_weights=true", given=random_weights)
    _run(settings.read("run", path), out or Path("runs") / path.stem, resume=resume, overwrite=overwrite)


def _run(run_file: RunFile, out: Path, *, resume: bool, overwrite: bool) -> None:
    from shiftproof.cli.console import live_progress
    from shiftproof.progress import is_secondary_process
    from shiftproof.runs.pipeline import follow_pipeline, run_pipeline

    if is_secondary_process():
        return follow_pipeline(run_file, out)
    with live_progress():
        record = run_pipeline(run_file, out, resume=resume, overwrite=overwrite)
    _print_record(record, out)


def _print_record(record: RunRecord, out: Path) -> None:
    from shiftproof.cli.console import print_table
    from shiftproof.report.accuracy import accuracy_table, group_table, run_scoring_table
    from shiftproof.report.page import read_diagnosis
    from shiftproof.report.tables import transposed
    from shiftproof.report.verdicts import verdict

    diagnosis = read_diagnosis(out)
    print_table(transposed(accuracy_table(record, diagnosis)))
    for table in (run_scoring_table(record), group_table(record)):
        if table:
            print_table(table)
    print(verdict(record, diagnosis))
    print(f"report: {out / 'report.html'}")
