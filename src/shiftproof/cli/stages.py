"""The commands that run one stage of the method: ``pretrain``, ``zeroshot``, ``finetune``, ``sweep`` and so on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from shiftproof.cli.options import (
    Classes,
    ClipBenchmark,
    FinetuningOptions,
    Head,
    ImageCache,
    OnBadImage,
    Overwrite,
    Precision,
    Prompts,
    RandomWeights,
    ResolvedDevice,
    Resume,
    RunPath,
    ScoringOptions,
    SettingOptions,
    SuiteOptions,
    TrainingOptions,
    Weights,
)
from shiftproof.errors import InputError

if TYPE_CHECKING:
    from shiftproof.records.accuracy import AccuracyRecord
    from shiftproof.runs.file import RunFile
    from shiftproof.runs.sweeps import Sweep


def pretrain(
    path: RunPath,
    settings: TrainingOptions,
    out: Annotated[Path, Option("--out", help="Write the model and its card to this directory.")] = Path(
        "runs/pretrain"
    ),
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Pretrain an image tower and a text tower on images with captions.

    The run file needs a section named pretrain. --resume resumes an interrupted training run from its last checkpoint.

    Example: shiftproof pretrain run.yaml --out runs/pretrain --set pretrain.steps=3000
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_pretrain

    run_file = settings.read(path)
    with live_progress():
        record = run_pretrain(run_file, out, resume=resume, overwrite=overwrite)
    print(f"loss {record.final_loss:.3f} after {record.pairs_seen:,} pairs; recall on {record.recall_on}:")
    for direction, recall in record.recall.items():
        print(f"  {direction}: " + "  ".join(f"{name} {value:.3f}" for name, value in recall.items()))
    scheme = "hf" if (out / "model" / "config.json").is_file() else "local-dir"
    print(f"the model is {out / 'model'}; load it as {scheme}:{out / 'model'}")


def zeroshot(
    model: Annotated[
        str,
        Argument(
            help="A model's name: tiny, open_clip:ARCH/TAG, hf-hub:ORG/NAME, local-dir:PATH, hf:ORG/NAME, "
            "timm:NAME.TAG, torchvision:NAME.WEIGHTS or lite0."
        ),
    ],
    data: SuiteOptions,
    settings: SettingOptions,
    prompts: Prompts = "photo",
    head: Head = None,
    weights: Weights = None,
    classes: Classes = None,
    out: Annotated[Path, Option("--out", help="Write the classifier to this directory.")] = Path("runs/zeroshot"),
    image_cache: ImageCache = None,
    on_bad_image: OnBadImage = "stop",
    random_weights: RandomWeights = False,
    overwrite: Overwrite = False,
) -> None:
    """Build the start, such as a zero-shot classifier, and score it on every test set.

    A model without a text tower, such as timm:resnet50.a1_in1k, gets a linear probe or keeps its own head (--head).

    MODEL may be the directory of a fine-tuned classifier: with --classes, its encoder gets a zero-shot head for other
    classes, and without data it is not scored.

    Example: shiftproof zeroshot tiny --suite emoji --out runs/zeroshot
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_zero_shot

    scored = data.is_given() or classes is None
    keys = {"prompts": prompts, "classes": classes, "head": head, "weights": weights, "random_weights": random_weights}
    sets = {"suite": data.section(), "image_cache": image_cache, "on_bad_image": on_bad_image} if scored else {}
    run_file = settings.resolve(model=model, **keys, **sets)
    with live_progress():
        records = run_zero_shot(run_file, out, scored=scored, overwrite=overwrite)
    if scored:
        _print_records(records)
    print(f"the classifier is {out}{'' if scored else '; it is not scored, since there is no data'}")


def finetune(
    start: Annotated[str, Argument(metavar="MODEL|CLASSIFIER", help="A model's name or a classifier directory.")],
    data: SuiteOptions,
    settings: FinetuningOptions,
    prompts: Prompts = "photo",
    head: Head = None,
    weights: Weights = None,
    classes: Classes = None,
    out: Annotated[Path, Option("--out", help="Write the classifier to this directory.")] = Path("runs/finetune"),
    random_weights: RandomWeights = False,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on the reference and score it on every test set.

    --resume resumes an interrupted training run from its last checkpoint. Processes started by torchrun share the
    work.

    Example: shiftproof finetune tiny --suite emoji --out runs/tuned --set finetune.epochs=5
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_finetune

    keys = {"prompts": prompts, "classes": classes, "head": head, "weights": weights, "random_weights": random_weights}
    run_file = settings.resolve(model=start, suite=data.section(), **keys)
    with live_progress():
        records = run_finetune(run_file, out, resume=resume, overwrite=overwrite)
    _print_records(records)
    print(f"the classifier is {out}")


def sweep(
    zero_shot: Annotated[Path, Argument(help="The directory of the zero-shot classifier, at alpha 0.")],
    fine_tuned: Annotated[Path, Argument(help="The directory of the fine-tuned classifier, at alpha 1.")],
    data: SuiteOptions,
    settings: SettingOptions,
    alphas: Annotated[
        str,
        Option("--alphas", "--alpha", help="Measure this many alphas from 0 to 1, or those of a list such as 0.3,0.5."),
    ] = "11",
    rule: Annotated[
        str, Option("--rule", help="Choose alpha by the rule fixed (0.5), reference or tolerance.")
    ] = "fixed",
    space: Annotated[
        str, Option("--space", help="Interpolate the weights, or the outputs, for which both models run.")
    ] = "weights",
    batch_norm: Annotated[
        str,
        Option(
            "--batch-norm",
            help="Give all ensembles batch-norm statistics that are averaged, or re-estimated on the training images.",
        ),
    ] = "averaged",
    compare_batch_norm: Annotated[
        bool, Option("--reestimate-batch-norm", help="Score the chosen ensemble with both kinds of these statistics.")
    ] = False,
    precision: Precision = "float32",
    out: Annotated[Path, Option("--out", help="Write path.json and ensemble/ to this directory.")] = Path("runs/sweep"),
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

    keys: dict[str, Any] = {"suite": data.section(), "alphas": alphas, "alpha_rule": rule, "batch_norm": batch_norm}
    keys |= {"evaluation": {"precision": precision}, "image_cache": image_cache, "on_bad_image": on_bad_image}
    run_file = settings.resolve(model="tiny", **keys)
    with live_progress():
        measured = run_sweep(
            run_file,
            zero_shot,
            fine_tuned,
            out,
            space=space,
            compare_batch_norm=compare_batch_norm,
            resume=resume,
            overwrite=overwrite,
        )
    _print_sweep(measured)
    _print_choice(measured, run_file, f"the ensemble is {out / 'ensemble'}" if space == "weights" else None)


def _print_choice(measured: Sweep, run_file: RunFile, place: str | None) -> None:
    result = place or "an output ensemble is not saved"
    if run_file.batch_norm == "re-estimated":
        result += ", with batch-norm statistics re-estimated on the training images"
    print(f"alpha {measured.alpha:g} by the rule {run_file.alpha_rule!r}; {result}")


def _print_records(records: Sequence[AccuracyRecord]) -> None:
    from shiftproof.cli.console import print_table
    from shiftproof.report.accuracy import records_table, scoring_table

    print_table(records_table(records))
    if scoring := scoring_table({"value": {record.set: record for record in records}}):
        print_table(scoring)


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


def evaluate(
    classifier: Annotated[
        str, Argument(help="A classifier directory, or the name of a network with its own head, such as lite0.")
    ],
    data: ScoringOptions,
    device: ResolvedDevice = "auto",
    precision: Precision = "float32",
    out: Annotated[
        Path | None, Option("--out", help="Write results.jsonl to this directory [default: nothing is written].")
    ] = None,
    clip_benchmark: ClipBenchmark = None,
    image_cache: ImageCache = None,
    on_bad_image: OnBadImage = "stop",
    overwrite: Overwrite = False,
) -> None:
    """Score a classifier on a suite or on your own data.

    The labels are matched by the names of the classes. A pretrained network, such as timm:resnet50.a1_in1k, is scored
    with the head that it was pretrained with: for one of ImageNet, the folders are named by WordNet ids. Processes
    started by torchrun share the work.

    Example: shiftproof evaluate runs/tuned --test folder:photos --shift sketch=folder:sketches
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.stages import run_evaluate

    sets = data.named_sets()
    with live_progress():
        records = run_evaluate(
            classifier,
            sets,
            suite=data.suite,
            device=device,
            precision=precision,
            out=out,
            clip_benchmark=clip_benchmark,
            image_cache=image_cache,
            on_bad_image=on_bad_image or "stop",
            overwrite=overwrite,
        )
    _print_records(records)


def predict(
    classifier: Annotated[
        str, Argument(help="A classifier directory, or the name of a network with its own head, such as lite0.")
    ],
    images: Annotated[
        list[Path] | None, Argument(metavar="IMAGE", help="Image files, or folders of images.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None, Option("--folder", help="Predict all images under this folder; their number may be millions.")
    ] = None,
    data: Annotated[
        str | None,
        Option("--data", help="Predict all images of this data name, such as wds:PATH, hf:PATH or csv:PATH."),
    ] = None,
    out: Annotated[
        Path | None, Option("--csv", help="Write the predictions of --folder or --data to this CSV file.")
    ] = None,
    top: Annotated[int, Option("--top", min=1, help="Name this many classes of every image.")] = 5,
    as_json: Annotated[bool, Option("--json", help="Print JSON, with probabilities from 0 to 1.")] = False,
    device: ResolvedDevice = "auto",
    precision: Precision = "float32",
    resume: Annotated[
        bool, Option("--resume", help="Continue the interrupted CSV file. What it has is not repeated.")
    ] = False,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace the CSV file.")] = False,
) -> None:
    """Name the most probable classes of images, with their probabilities.

    With --csv and --folder or --data, images are read and written batch by batch. One that cannot be decoded stops
    nothing: its row has the reason in the column error. Labels are not needed.

    Example: shiftproof predict runs/demo/ensemble lemon.png --json

    Many images: shiftproof predict runs/demo/ensemble --folder photos --csv predictions.csv
    """
    from shiftproof.cli.console import plain_warnings
    from shiftproof.runs.stages import predict_images

    several = f"folder:{folder}" if folder else data
    if bool(several) != bool(out) or [bool(images), bool(folder), bool(data)].count(True) != 1:
        raise InputError(
            "name images to predict, or a folder with --folder DIR or other data with --data NAME, and a file for them "
            "with --csv OUT."
        )
    if several and out:
        return _predict_data(classifier, several, out, top, device, precision, resume=resume, overwrite=overwrite)
    with plain_warnings():
        answers = predict_images(classifier, images or [], top=top, device=device, precision=precision)
    if as_json:
        rows = [{"image": a.image, "top": [{"class": name, "probability": p} for name, p in a.top]} for a in answers]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    for answer in answers:
        print(answer.image)
        for name, probability in answer.top:
            print(f"  {100 * probability:5.1f} %  {name}")


def _predict_data(
    classifier: str,
    data: str,
    out: Path,
    top: int,
    device: str,
    precision: str,
    *,
    resume: bool,
    overwrite: bool,
) -> None:
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.tables import predict_table

    with live_progress():
        written = predict_table(
            classifier,
            data,
            out,
            top=top,
            device=device,
            precision=precision,
            resume=resume,
            overwrite=overwrite,
        )
    print(f"{written.pictures:,} images in {out}; {written.broken:,} of them could not be decoded (column error)")
