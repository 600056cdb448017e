"""The commands that run one stage of the method: ``pretrain``, ``zeroshot``, ``finetune``, ``sweep`` and so on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from shiftproof.records.accuracy import AccuracyRecord


def pretrain(
    path: RunPath,
    settings: TrainingOptions,
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the model and its card to this directory.")] = Path(
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

    run_file = settings.read("pretrain", path)
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
            metavar="MODEL",
            help="A model's name: tiny, open_clip:ARCH/TAG, hf-hub:ORG/NAME, local-dir:PATH, hf:ORG/NAME, "
            "timm:NAME.TAG, torchvision:NAME.WEIGHTS or lite0.",
        ),
    ],
    data: SuiteOptions,
    settings: SettingOptions,
    prompts: Prompts = "photo",
    head: Head = None,
    weights: Weights = None,
    classes: Classes = None,
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the classifier to this directory.")] = Path(
        "runs/zeroshot"
    ),
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
    run_file = settings.resolve("zeroshot", model=model, **keys, **sets)
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
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the classifier to this directory.")] = Path(
        "runs/finetune"
    ),
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
    run_file = settings.resolve("finetune", model=start, suite=data.section(), **keys)
    with live_progress():
        records = run_finetune(run_file, out, resume=resume, overwrite=overwrite)
    _print_records(records)
    print(f"the classifier is {out}")


def evaluate(
    classifier: Annotated[
        str,
        Argument(
            metavar="CLASSIFIER",
            help="A classifier directory, or the name of a network with its own head, such as lite0.",
        ),
    ],
    data: ScoringOptions,
    device: ResolvedDevice = "auto",
    precision: Precision = "float32",
    out: Annotated[
        Path | None,
        Option("--out", metavar="DIR", help="Write results.jsonl to this directory [default: it is not written]."),
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
            on_bad_image=on_bad_image,
            overwrite=overwrite,
        )
    _print_records(records)


def _print_records(records: Sequence[AccuracyRecord]) -> None:
    from shiftproof.cli.console import print_table
    from shiftproof.report.accuracy import records_table, scoring_table

    print_table(records_table(records))
    if scoring := scoring_table({"value": {record.set: record for record in records}}):
        print_table(scoring)
