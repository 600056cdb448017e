"""``shiftproof merge``: weight arithmetic on checkpoint files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from shiftproof.cli.choices import INTEGERS, MERGE_METHODS, MISSING, choice
from shiftproof.cli.parsing import parse_number, parse_pair, parse_size

if TYPE_CHECKING:
    from shiftproof.merging.methods import MergeSettings
    from shiftproof.records.merges import MergeRecord


Inputs = Annotated[
    list[str],
    Argument(metavar="A B", help="Checkpoint files (or FILE:KEY), model or classifier directories, or LoRA adapters."),
]


@dataclass(frozen=True)
class MergeOptions:
    """How checkpoints are merged."""

    alphas: Annotated[
        str,
        Option(
            "--alpha",
            "--alphas",
            metavar="ALPHA,...",
            help="Weight B by alpha and A by 1 - alpha, with alpha from 0 (only A) to 1 (only B). A list such as "
            "0.3,0.5 writes one merge for each alpha. For --method linear.",
        ),
    ] = "0.5"
    layers: Annotated[
        list[str] | None,
        Option(
            "--layer",
            metavar="PATTERN=ALPHA",
            help="Use another alpha for the entries whose names match this pattern, e.g. head.*=1.0. Can be repeated.",
        ),
    ] = None
    depth: Annotated[
        str | None,
        Option(
            "--depth",
            metavar="FIRST:LAST",
            help="Let alpha change linearly from the first layer to the last, e.g. 0.2:0.8 [default: it is the same in "
            "all layers].",
        ),
    ] = None
    method: Annotated[
        str,
        choice(
            "--method",
            MERGE_METHODS,
            "Merge two inputs by alpha (linear), average all (uniform), add those that raise the accuracy on "
            "validation images (greedy), or weight fine-tuned models by Model Stock (model-stock).",
        ),
    ] = "linear"
    integers: Annotated[
        str,
        choice(
            "--integers",
            INTEGERS,
            "Copy entries of integers, such as counters, from the nearer input (copy), or require that they be equal "
            "(equal).",
        ),
    ] = "copy"
    missing: Annotated[
        str,
        choice("--missing", MISSING, "Refuse entries that one input lacks (error), or keep those of the other (keep)."),
    ] = "error"
    shard_size: Annotated[
        str | None,
        Option(
            "--shard-size",
            metavar="SIZE",
            help="Write files of at most this size, e.g. 2GB or 500MB [default: a single file].",
        ),
    ] = None

    def settings(self) -> MergeSettings:
        """The settings of the merge; raises an InputError for a text of the wrong form."""
        from shiftproof.merging.methods import MergeSettings
        from shiftproof.runs.file import parse_alphas

        return MergeSettings(
            method=self.method,
            alphas=tuple(parse_alphas(self.alphas)),
            layers=dict(_layer_alpha(text) for text in self.layers or []),
            depth=None if self.depth is None else _depth_alphas(self.depth),
            integers=self.integers,
            missing=self.missing,
            shard_size=parse_size("--shard-size", self.shard_size),
        )


def merge(
    inputs: Inputs,
    out: Annotated[Path, Option("--out", metavar="PATH", help="Write to this .safetensors file or directory.")],
    options: MergeOptions,
    suite: Annotated[
        str | None,
        Option(
            "--suite",
            metavar="NAME",
            help="Choose a greedy soup on the validation images of this suite, e.g. emoji or imagenet:PATH [default: "
            "none; see --validation].",
        ),
    ] = None,
    validation: Annotated[
        str | None,
        Option(
            "--validation",
            metavar="DATA",
            help="Choose a greedy soup on these validation images, e.g. folder:PATH [default: those of --suite].",
        ),
    ] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="Show what would be written, and write nothing.")] = False,
    overwrite: Annotated[
        bool,
        Option("--overwrite", help="Replace the file or directory --out if it exists [default: that is an error]."),
    ] = False,
) -> None:
    """Merge checkpoint files of any size: WiSE-FT, soups, Model Stock and LoRA adapters.

    A greedy soup is chosen on the validation images of --suite or --validation. FILE:KEY reads the state dict under a
    key of the file, such as tuned.pt:model_ema.

    Example: shiftproof merge zeroshot/ finetuned/ --alpha 0.5 --out merged/
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.merging.files import merge_files

    settings = options.settings()
    score = _validation_accuracy(inputs[0], suite, validation) if options.method == "greedy" else None
    with live_progress():
        records = merge_files(*inputs, out=out, settings=settings, score=score, dry_run=dry_run, overwrite=overwrite)
    for record in records:
        _print_merge(record, dry_run=dry_run)


def _layer_alpha(text: str) -> tuple[str, float]:
    name, alpha = parse_pair("--layer", text, "=", "head.*=1.0")
    return name, parse_number("--layer", alpha)


def _depth_alphas(text: str) -> tuple[float, float]:
    first, last = parse_pair("--depth", text, ":", "0.2:0.8")
    return parse_number("--depth", first), parse_number("--depth", last)


def _print_merge(record: MergeRecord, *, dry_run: bool) -> None:
    state = "would be written" if dry_run else "written"
    alpha = f" at alpha {record.alpha:g}" if record.alpha is not None else ""
    print(f"{record.method}{alpha}: {record.out} {state}, {record.bytes / 1e9:.3f} GB in {len(record.files)} file(s)")
    for entry in record.inputs:
        print(f"  {entry.role.replace('_', '-')}: {entry.path} ({entry.kind})")
    counts = [
        ("combined", record.interpolated),
        ("copied", record.copied),
        ("retained though missing from an input", record.missing),
    ]
    print("  entries: " + ", ".join(f"{len(names)} {what}" for what, names in counts if names))
    if record.tied:
        print(f"  tied: {', '.join(f'{name} = {of}' for name, of in record.tied.items())}")
    if record.untied:
        names = ", ".join(f"{name} = {of}" for name, of in record.untied.items())
        print(f"  no longer tied, so load into a model that does not tie them: {names}")
    if record.batch_norm:
        print(f"  {len(record.batch_norm)} batch-norm statistics were averaged; re-estimate them on training images")
    for trial in record.scores:
        verdict = "taken" if trial["taken"] else "left out"
        print(
            f"  {record.inputs[trial['candidate']].path}: {100 * trial['alone']:.1f} alone, "
            f"{'no number' if trial['soup'] is None else format(100 * trial['soup'], '.1f')} in the soup, {verdict}"
        )
    if record.alphas:
        for name, alpha_of in sorted(record.alphas.items()):
            print(f"  alpha {alpha_of:.3f}  {name}")
    if record.copied_files:
        print(f"  other files copied: {', '.join(record.copied_files)}")


def _validation_accuracy(first: str, suite: str | None, validation: str | None) -> Callable[[Path], float]:
    """A function that returns the accuracy of a classifier directory on the reference's validation images."""
    from shiftproof.data.suites import load_data, load_suite
    from shiftproof.errors import InputError
    from shiftproof.evaluation.inference import predict
    from shiftproof.evaluation.metrics import accuracy
    from shiftproof.models.directories import load_classifier, read_card
    from shiftproof.runs.inputs import require_unseen_validation

    if bool(suite) == bool(validation):
        raise InputError(
            "a greedy soup is chosen on validation images. Give --validation folder:PATH, or --suite emoji."
        )
    classes = read_card(first).classes
    if suite:
        images = load_suite(suite).relabelled(classes).reference.validation
    else:
        images = load_data(str(validation), classes, split="validation")

    def score(directory: Path) -> float:
        classifier = load_classifier(directory)
        if suite:
            require_unseen_validation(suite, 0, classifier)
        predictions = predict(classifier, images, stage=f"score {directory.name}")
        return accuracy(predictions.logits, predictions.labels)

    return score
