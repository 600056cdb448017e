"""The command line: parse, call one function, print, exit code (0 done, 2 the user's mistake, 1 ours)."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shiftproof.cli.failures import CommandGroup
from shiftproof.cli.options import (
    Corrupt,
    Device,
    Mixing,
    Model,
    Overwrite,
    Prompts,
    ReportTo,
    Resume,
    Seed,
    Set,
    Shifts,
    Shots,
    Suite,
    Test,
    Train,
    Validation,
)
from shiftproof.cli.studies import study
from shiftproof.cli.understand import diagnose
from shiftproof.cli.weights import merge

if TYPE_CHECKING:
    from shiftproof.records.runs import RunRecord
    from shiftproof.runs.file import RunFile

# Everything heavy is imported inside the commands, so that --help answers at once.
app = typer.Typer(
    name="shiftproof",
    cls=CommandGroup,
    help="Robust fine-tuning of zero-shot image models: fine-tune, ensemble in weight space, measure under shift.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(diagnose)
app.command()(merge)
app.command()(study)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("shiftproof"))
        raise typer.Exit


@app.command()
def demo(
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; else runs/demo-SEED.")] = None,
    mixing: Mixing = None,
    shots: Shots = None,
    device: Device = None,
    report_to: ReportTo = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole method on the emoji suite in a few minutes.

    Example: shiftproof demo --seed 0 --out runs/demo --mixing smoothmix-circle
    """
    from shiftproof.runs.file import DEMO_FILE, RunFile

    mixed = [f"finetune.mixing={mixing}"] if mixing else []
    asked = RunFile.read(DEMO_FILE, [*mixed, *_overrides(overrides, seed, device, report_to, shots)])
    _run(asked, out or Path(f"runs/demo-{asked.seed}"), resume, overwrite)


@app.command()
def run(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.")],
    out: Annotated[Path | None, typer.Option("--out", help="The run directory; else runs/NAME.")] = None,
    seed: Seed = None,
    shots: Shots = None,
    device: Device = None,
    report_to: ReportTo = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """The whole method as a run file asks for it: zero-shot, fine-tune, sweep alpha, ensemble, measure, report.

    Example: shiftproof run run.yaml --out runs/mine --set finetune.lr=1e-5
    """
    from shiftproof.runs.file import RunFile

    asked = RunFile.read(run_file, _overrides(overrides, seed, device, report_to, shots))
    _run(asked, out or Path("runs") / run_file.stem, resume, overwrite)


@app.command()
def pretrain(
    run_file: Annotated[Path, typer.Argument(metavar="RUN.yaml", help="A run file with a pretrain section.")],
    out: Annotated[Path, typer.Option("--out", help="Where model and card go.")] = Path("runs/pretrain"),
    seed: Seed = None,
    device: Device = None,
    report_to: ReportTo = None,
    overrides: Set = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Contrastive image-text pretraining on images with captions; --resume goes on from the last checkpoint.

    Example: shiftproof pretrain run.yaml --out runs/pretrain --set pretrain.steps=3000
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.file import RunFile
    from shiftproof.runs.stages import run_pretrain

    asked = RunFile.read(run_file, _overrides(overrides, seed, device, report_to))
    with live_progress():
        record = run_pretrain(asked, out, resume=resume, overwrite=overwrite)
    print(f"loss {record.final_loss:.3f} after {record.pairs_seen:,} pairs; recall on {record.recall_on}:")
    for direction, recall in record.recall.items():
        print(f"  {direction}: " + "  ".join(f"{name} {value:.3f}" for name, value in recall.items()))
    print(f"the model is {out / 'model'}; load it as local-dir:{out / 'model'}")


@app.command()
def zeroshot(
    model: Model,
    suite: Suite = None,
    reference: Train = None,
    validation: Validation = None,
    test: Test = None,
    shift: Shifts = None,
    corrupt: Corrupt = None,
    prompts: Prompts = "photo",
    seed: Seed = None,
    device: Device = None,
    overrides: Set = None,
    out: Annotated[Path, typer.Option("--out", help="Where the classifier goes.")] = Path("runs/zeroshot"),
    overwrite: Overwrite = False,
) -> None:
    """Build a model's zero-shot classifier for a suite and score it on every test set.

    Example: shiftproof zeroshot tiny --suite emoji --out runs/zeroshot
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.accuracy import records_table
    from shiftproof.runs.stages import run_zero_shot

    data = _suite(suite, reference, validation, test, shift, corrupt)
    asked = _resolve(model, data, prompts, overrides, seed, device)
    with live_progress():
        records = run_zero_shot(asked, out, overwrite=overwrite)
    print_table(records_table(records))
    print(f"the classifier is {out}")


@app.command()
def finetune(
    start: Annotated[str, typer.Argument(metavar="MODEL|CLASSIFIER", help="A model's name or a classifier directory.")],
    suite: Suite = None,
    reference: Train = None,
    validation: Validation = None,
    test: Test = None,
    shift: Shifts = None,
    corrupt: Corrupt = None,
    prompts: Prompts = "photo",
    shots: Shots = None,
    seed: Seed = None,
    device: Device = None,
    report_to: ReportTo = None,
    overrides: Set = None,
    out: Annotated[Path, typer.Option("--out", help="Where the classifier goes.")] = Path("runs/finetune"),
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a zero-shot model, or a classifier directory, on the reference and score it on every test set.

    --resume goes on from the last checkpoint. Under torchrun, all processes share the work.

    Example: shiftproof finetune tiny --suite emoji --out runs/tuned --set finetune.epochs=5
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.accuracy import records_table
    from shiftproof.runs.stages import run_finetune

    data = _suite(suite, reference, validation, test, shift, corrupt)
    asked = _resolve(start, data, prompts, _overrides(overrides, None, None, report_to, shots), seed, device)
    with live_progress():
        records = run_finetune(asked, out, resume=resume, overwrite=overwrite)
    print_table(records_table(records))
    print(f"the classifier is {out}")


@app.command()
def sweep(
    zero_shot: Annotated[Path, typer.Argument(help="The zero-shot classifier's directory.")],
    fine_tuned: Annotated[Path, typer.Argument(help="The fine-tuned classifier's directory.")],
    suite: Suite = None,
    reference: Train = None,
    validation: Validation = None,
    test: Test = None,
    shift: Shifts = None,
    corrupt: Corrupt = None,
    alphas: Annotated[str, typer.Option("--alphas", "--alpha", help="How many, or a list such as 0.3,0.5.")] = "11",
    rule: Annotated[str, typer.Option("--rule", help="fixed, reference or tolerance.")] = "fixed",
    space: Annotated[
        str, typer.Option("--space", help="Interpolate weights, or outputs (two models run).")
    ] = "weights",
    batch_norm: Annotated[
        bool,
        typer.Option("--reestimate-batch-norm", help="Measure batch-norm statistics anew too; score both."),
    ] = False,
    seed: Seed = None,
    device: Device = None,
    overrides: Set = None,
    out: Annotated[Path, typer.Option("--out", help="Where path.json and ensemble/ go.")] = Path("runs/sweep"),
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Interpolate two classifiers' weights at every alpha and measure each; save the ensemble at the chosen alpha.

    --resume goes on with an interrupted sweep, or measures further alphas.

    Example: shiftproof sweep runs/zeroshot runs/tuned --suite emoji --out runs/sweep
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.report.accuracy import records_table
    from shiftproof.report.paths import rules_table, sweep_table
    from shiftproof.runs.stages import run_sweep

    data = _suite(suite, reference, validation, test, shift, corrupt)
    asked = _resolve(
        "tiny",
        data,
        "photo",
        [f"alphas={_alphas(alphas)}", f"alpha_rule={rule}", *(overrides or [])],
        seed,
        device,
    )
    with live_progress():
        found = run_sweep(
            asked, zero_shot, fine_tuned, out, space=space, batch_norm=batch_norm, resume=resume, overwrite=overwrite
        )
    print_table(sweep_table(found.path))
    if found.rules:
        print_table(rules_table(found.rules))
    else:
        print("alpha 0.5 is not on the path, so the rules are not compared to it; add it to --alphas")
    for model in dict.fromkeys(record.model for record in found.batch_norm):
        some = [record for record in found.batch_norm if record.model == model]
        print_table(records_table(some, f"The ensemble's accuracy, batch-norm {model}"))
    where = f"the ensemble is {out / 'ensemble'}" if space == "weights" else "in this space it is two models, not saved"
    print(f"alpha {found.alpha:g} by the rule {asked.alpha_rule!r}; {where}")


@app.command()
def evaluate(
    classifier: Annotated[Path, typer.Argument(help="A classifier directory.")],
    suite: Suite = None,
    test: Test = None,
    shift: Shifts = None,
    corrupt: Corrupt = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Where results.jsonl goes, if anywhere.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Score a classifier directory on a suite or on one's own data; labels are matched by class name.

    Example: shiftproof evaluate runs/tuned --test folder:photos --shift sketch=folder:sketches
    """
    from shiftproof.cli.console import live_progress, print_table
    from shiftproof.errors import InputError
    from shiftproof.report.accuracy import records_table
    from shiftproof.runs.stages import run_evaluate

    sets = {name: entry["data"] for name, entry in _shifts(shift, corrupt, test).items()}
    if test:
        sets = {_free("test", sets): test, **sets}
    if not suite and not sets:
        raise InputError("no data to evaluate on. Name some, e.g. --suite emoji or --test folder:PATH.")
    with live_progress():
        records = run_evaluate(classifier, sets, suite, device, out, overwrite=overwrite)
    print_table(records_table(records))


@app.command()
def predict(
    classifier: Annotated[Path, typer.Argument(help="A classifier directory.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="Image files.")],
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes to name.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    device: Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Name the most probable classes of images, with their probabilities.

    Example: shiftproof predict runs/demo/ensemble lemon.png --json
    """
    from shiftproof.runs.stages import predict_images

    answers = predict_images(classifier, images, top=top, device=device)
    if as_json:
        shown = [{"image": a.image, "top": [{"class": name, "probability": p} for name, p in a.top]} for a in answers]
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return
    for answer in answers:
        print(answer.image)
        for name, probability in answer.top:
            print(f"  {100 * probability:5.1f} %  {name}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option("--out", help="The page; needed for several runs.")] = None,
) -> None:
    """Write the page of a run anew, or one page for several seeds of a run.

    Example: shiftproof report runs/demo-0 runs/demo-1 runs/demo-2 --out runs/seeds.html
    """
    from shiftproof.report.page import render_report

    print(render_report(runs, out))


@app.command("export-suite")
def export_suite(
    suite: Annotated[str, typer.Argument(help="An embedded suite: emoji, emoji-development.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    seed: Seed = 0,
) -> None:
    """Write a suite as image folders: reference/{train,validation,test}/CLASS and shifts/NAME/CLASS.

    Example: shiftproof export-suite emoji --out emoji-folders
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_export

    with live_progress():
        count = run_export(suite, out, seed or 0)
    print(f"{count:,} images under {out}")


def main() -> None:
    """Runs the command line. In the secondary processes of ``torchrun`` nothing is printed but errors."""
    from shiftproof.progress import is_secondary_process

    try:
        with contextlib.redirect_stdout(io.StringIO()) if is_secondary_process() else contextlib.nullcontext():
            app()
    except BrokenPipeError:
        sys.exit(1)


def _run(asked: RunFile, out: Path, resume: bool, overwrite: bool) -> None:
    from shiftproof.cli.console import live_progress
    from shiftproof.progress import is_secondary_process
    from shiftproof.runs.pipeline import follow_pipeline, run_pipeline

    if is_secondary_process():
        return follow_pipeline(asked, out)
    with live_progress():
        record = run_pipeline(asked, out, resume=resume, overwrite=overwrite)
    _show(record, out)


def _show(record: RunRecord, out: Path) -> None:
    from shiftproof.cli.console import print_table
    from shiftproof.report.accuracy import accuracy_table, group_table
    from shiftproof.report.comparisons import verdict
    from shiftproof.report.page import read_diagnosis
    from shiftproof.report.tables import transposed

    print_table(transposed(accuracy_table(record, read_diagnosis(out))))
    if groups := group_table(record):
        print_table(groups)
    print(verdict(record))
    print(f"report: {out / 'report.html'}")


def _overrides(
    settings: list[str] | None,
    seed: int | None,
    device: str | None,
    report_to: str | None = None,
    shots: int | None = None,
) -> list[str]:
    given = list(settings or [])
    given += [f"seed={seed}"] if seed is not None else []
    given += [f"device={device}"] if device is not None else []
    given += [f"report_to={report_to}"] if report_to is not None else []
    given += [f"finetune.shots={shots}"] if shots is not None else []
    return given


def _resolve(
    model: str,
    data: str | dict[str, Any],
    prompts: str,
    overrides: list[str] | None,
    seed: int | None,
    device: str | None,
) -> RunFile:
    from shiftproof.runs.file import RunFile

    return RunFile.resolve({"model": model, "suite": data, "prompts": prompts}, _overrides(overrides, seed, device))


def _suite(
    suite: str | None,
    reference: str | None,
    validation: str | None,
    test: str | None,
    shift: list[str] | None,
    corrupt: list[str] | None,
) -> str | dict[str, Any]:
    from shiftproof.errors import InputError

    if suite:
        if reference or validation or test or shift or corrupt:
            raise InputError("--suite names all data; leave it out to give --reference, --test, --shift or --corrupt.")
        return suite
    if not reference or not test:
        raise InputError("no data. Give --suite emoji, or one's own: --reference folder:PATH --test folder:PATH.")
    return {
        "reference": {"train": reference, "validation": validation, "test": test},
        "shifts": _shifts(shift, corrupt, test),
    }


def _shifts(shift: list[str] | None, corrupt: list[str] | None, test: str | None) -> dict[str, dict[str, str]]:
    from shiftproof.errors import InputError

    found: dict[str, dict[str, str]] = {}
    for text in shift or []:
        name, equals, data = text.partition("=")
        if not equals or not name or not data:
            raise InputError(f"--shift {text!r} must look like sketch=folder:PATH.")
        found[_free(name, found)] = {"data": data, "kind": "natural"}
    for text in corrupt or []:
        name, colon, severity = text.partition(":")
        if not colon:
            raise InputError(f"--corrupt {text!r} must look like noise:3.")
        if not test:
            raise InputError("--corrupt changes the images of --test; give that too.")
        found[_free(f"{name}-{severity}", found)] = {"data": f"corrupted:{name}:{severity}:{test}", "kind": "synthetic"}
    return found


def _free(name: str, taken: Collection[str]) -> str:
    from shiftproof.errors import InputError

    if name in taken:
        raise InputError(f"two sets are named {name!r}. Give every set a name of its own.")
    return name


def _alphas(text: str) -> str:
    return f"[{text}]" if "," in text or "." in text else text


if __name__ == "__main__":
    main()
