"""The commands that evaluate many runs: ``report`` and ``study``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from shiftproof.cli.options import ClipBenchmark, Overwrite, RandomWeights, Resume
from shiftproof.errors import counted


def report(
    runs: Annotated[list[Path], Argument(metavar="RUN", help="Run directories.")],
    out: Annotated[
        Path | None,
        Option(
            "--out",
            metavar="FILE",
            help="Write the report to this file [default: report.html of the run, if there is one run].",
        ),
    ] = None,
    clip_benchmark: ClipBenchmark = None,
) -> None:
    """Regenerate the report of a run, or write one report for several seeds of a run.

    Example: shiftproof report runs/demo-0 runs/demo-1 runs/demo-2 --out runs/seeds.html
    """
    from shiftproof.report.page import render_report

    print(render_report(runs, out))
    if clip_benchmark is not None:
        from shiftproof.runs.benchmarks import benchmark_run

        for run in runs:
            files = benchmark_run(run, clip_benchmark / run.resolve().name if len(runs) > 1 else clip_benchmark)
            print(f"{counted(len(files), 'result')} of CLIP_benchmark's form in {files[0].parent}")


def study(
    study_file: Annotated[Path, Argument(metavar="GRID.yaml", help="The study file.")],
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="Write to this directory [default: runs/ and the study file's name]."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        Option(
            "--set",
            metavar="KEY=VALUE",
            help="Give a study-file key this value, e.g. run.finetune.lr=1e-5 or seeds=[0,1]; docs/run-file.md "
            "describes all keys. Can be repeated.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        Option(
            "--address",
            metavar="ADDRESS",
            help="Use the Ray cluster at this address, e.g. auto or ray://HOST:10001 [default: one is started on this "
            "machine].",
        ),
    ] = None,
    random_weights: RandomWeights = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune with many settings side by side, and compare their alpha paths.

    The study answers whether the settings matter less once weights are averaged. Every configuration of a grid, of a
    random sample or of a list by name is run with every seed.

    Example: shiftproof study grid.yaml --out runs/grid --set run.finetune.epochs=5 --set seeds=[0,1]
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.errors import InputError, ShiftproofError
    from shiftproof.report.studies import spread_table, study_table, study_verdict
    from shiftproof.runs.directory import StudyDirectory
    from shiftproof.studies.file import StudyFile
    from shiftproof.studies.study import failure_summary, run_study

    out = out or Path("runs") / study_file.stem
    overrides = [*(["run.random_weights=true"] if random_weights else []), *(overrides or ())]
    request = StudyFile.read(study_file, overrides)
    if not request.names_model:
        raise InputError(
            f"the study file {study_file} names no model. Add one under `run`, e.g. model: open_clip:ViT-B-32/openai, "
            "or model: tiny for the small model that comes with shiftproof."
        )
    with live_progress():
        record = run_study(request, out, resume=resume, overwrite=overwrite, address=address)
    print_table(study_table(record))
    if spreads := spread_table(record):
        print_table(spreads)
    print(study_verdict(record))
    directory = StudyDirectory(out)
    print(f"numbers: {directory.study}; figure: {directory.figure}")
    if record.failures:
        raise ShiftproofError(failure_summary(record.failures, out))
