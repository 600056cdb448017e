"""The command that measures every ensemble between two classifiers: ``sweep``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from shiftproof.cli.choices import BATCH_NORM, RULES, SPACES, choice
from shiftproof.cli.options import (
    ImageCache,
    OnBadImage,
    Overwrite,
    Precision,
    Resume,
    SettingOptions,
    SuiteOptions,
)

if TYPE_CHECKING:
    from shiftproof.runs.file import RunFile
    from shiftproof.runs.sweeps import Sweep


@dataclass(frozen=True)
class PathOptions:
    """The alphas of a sweep, the choice among them, and how two models are combined."""

    alphas: Annotated[
        str,
        Option(
            "--alphas",
            "--alpha",
            metavar="N|ALPHA,...",
            help="Measure this many alphas, evenly from 0 to 1, or those of a list such as 0.3,0.5.",
        ),
    ] = "11"
    rule: Annotated[
        str,
        choice(
            "--rule",
            RULES,
            "Choose 0.5 (fixed), the alpha that is best on the validation images (reference), or the smallest one that "
            "is nearly as good there (tolerance).",
        ),
    ] = "fixed"
    space: Annotated[
        str,
        choice(
            "--space",
            SPACES,
            "Average the weights of the two models, which gives one model at every alpha, or their outputs, for which "
            "both models run on every image.",
        ),
    ] = "weights"
    batch_norm: Annotated[
        str,
        choice(
            "--batch-norm",
            BATCH_NORM,
            "Average the batch-norm statistics of the two models like their weights, or measure them again on the "
            "training images at every alpha. For networks with batch norm.",
        ),
    ] = "averaged"
    compare_batch_norm: Annotated[
        bool,
        Option(
            "--reestimate-batch-norm",
            help="Also score the chosen ensemble with averaged and with re-estimated batch-norm statistics, to compare "
            "the two.",
        ),
    ] = False

    def keys(self) -> dict[str, Any]:
        """The run-file keys that these options set."""
        return {"alphas": self.alphas, "alpha_rule": self.rule, "batch_norm": self.batch_norm}


def sweep(
    zero_shot: Annotated[
        Path, Argument(metavar="START", help="The directory of the zero-shot classifier or other start, at alpha 0.")
    ],
    fine_tuned: Annotated[
        Path, Argument(metavar="FINE_TUNED", help="The directory of the fine-tuned classifier, at alpha 1.")
    ],
    data: SuiteOptions,
    settings: SettingOptions,
    path: PathOptions,
    precision: Precision = "float32",
    out: Annotated[
        Path, Option("--out", metavar="DIR", help="Write path.json and ensemble/ to this directory.")
    ] = Path("runs/sweep"),
    image_cache: ImageCache = None,
    on_bad_image: OnBadImage = "stop",
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Interpolate two classifiers at every alpha, measure each ensemble and save the one at the chosen alpha.

    --resume resumes an interrupted sweep, or adds alphas to a finished one. Processes started by torchrun share the
    work.

    Example: shiftproof sweep runs/zeroshot runs/tuned --suite emoji --out runs/sweep
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.sweeps import run_sweep

    keys: dict[str, Any] = {"suite": data.section(), **path.keys()}
    keys |= {"evaluation": {"precision": precision}, "image_cache": image_cache, "on_bad_image": on_bad_image}
    run_file = settings.resolve("sweep", model="tiny", **keys)
    with live_progress():
        measured = run_sweep(
            run_file,
            zero_shot,
            fine_tuned,
            out,
            space=path.space,
            compare_batch_norm=path.compare_batch_norm,
            resume=resume,
            overwrite=overwrite,
        )
    _print_sweep(measured)
    _print_choice(measured, run_file, f"the ensemble is {out / 'ensemble'}" if path.space == "weights" else None)


def _print_choice(measured: Sweep, run_file: RunFile, place: str | None) -> None:
    result = place or "an output ensemble is not saved"
    if run_file.batch_norm == "re-estimated":
        result += ", with batch-norm statistics re-estimated on the training images"
    print(f"alpha {measured.alpha:g} by the rule {run_file.alpha_rule!r}; {result}")


def _print_sweep(measured: Sweep) -> None:
    from shiftproof.cli.console import print_table
    from shiftproof.report.accuracy import records_table
    from shiftproof.report.paths import rules_table, sweep_table

    print_table(sweep_table(measured.path))
    if measured.rules:
        print_table(rules_table(measured.rules))
    else:
        print("alpha 0.5 is not on the path, so the rules are not compared with it; add it to --alphas")
    for model in dict.fromkeys(record.model for record in measured.batch_norm):
        records = [record for record in measured.batch_norm if record.model == model]
        print_table(records_table(records, f"The ensemble's accuracy, batch-norm {model}"))
