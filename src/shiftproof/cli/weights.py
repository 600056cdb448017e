"""``shiftproof merge``: weight arithmetic on checkpoint files."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shiftproof.cli.options import Overwrite, Suite, Validation

if TYPE_CHECKING:
    from shiftproof.records.merges import MergeRecord

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def merge(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="Checkpoints: files, model or classifier directories, LoRA adapters."),
    ],
    out: Annotated[Path, typer.Option("--out", help="A .safetensors file, or a directory.")],
    alpha: Annotated[str, typer.Option("--alpha", "--alphas", help="0 is A, 1 is B; a list makes several.")] = "0.5",
    layer: Annotated[
        list[str] | None, typer.Option("--layer", metavar="PATTERN=ALPHA", help="An alpha of its own, by name.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option("--depth", metavar="FIRST:LAST", help="Alpha in a straight line over the depth.")
    ] = None,
    method: Annotated[str, typer.Option("--method", help="linear, uniform, greedy or model-stock.")] = "linear",
    suite: Suite = None,
    validation: Validation = None,
    integers: Annotated[str, typer.Option("--integers", help="copy, or require them equal.")] = "copy",
    missing: Annotated[str, typer.Option("--missing", help="error, or keep what one input lacks.")] = "error",
    shard_size: Annotated[str | None, typer.Option("--shard-size", help="The most per file, e.g. 2GB.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Merge checkpoint files of any size in weight space: WiSE-FT's path, soups, Model Stock, LoRA adapters.

    Example: shiftproof merge zeroshot/ finetuned/ --alpha 0.5 --out merged/
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.merging.files import merge_files
    from shiftproof.merging.methods import MergeSettings

    settings = MergeSettings(
        method=method,
        alphas=tuple(_number("--alpha", part) for part in alpha.split(",")),
        layers=dict(_pair("--layer", text, "=") for text in layer or []),
        depth=_depth(depth),
        integers=integers,
        missing=missing,
        shard_size=_bytes(shard_size),
    )
    score = _validation_accuracy(inputs[0], suite, validation) if method == "greedy" else None
    with live_progress():
        records = merge_files(*inputs, out=out, settings=settings, score=score, dry_run=dry_run, overwrite=overwrite)
    for record in records:
        _show(record, dry_run=dry_run)


def _show(record: MergeRecord, *, dry_run: bool) -> None:
    said = "would be written" if dry_run else "written"
    alpha = f" at alpha {record.alpha:g}" if record.alpha is not None else ""
    print(f"{record.method}{alpha}: {record.out} {said}, {record.bytes / 1e9:.3f} GB in {len(record.files)} file(s)")
    for entry in record.inputs:
        print(f"  {entry.role.replace('_', '-')}: {entry.path} ({entry.kind})")
    counts = [("combined", record.interpolated), ("copied", record.copied), ("kept, missing elsewhere", record.missing)]
    print("  entries: " + ", ".join(f"{len(names)} {what}" for what, names in counts if names))
    if record.tied:
        print(f"  tied: {', '.join(f'{name} = {of}' for name, of in record.tied.items())}")
    if record.batch_norm:
        print(f"  {len(record.batch_norm)} batch-norm statistics averaged: re-estimate them on training images")
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
        print(f"  beside them: {', '.join(record.copied_files)}")


def _validation_accuracy(first: str, suite: str | None, validation: str | None) -> Callable[[Path], float]:
    """Accuracy on the reference's validation images of what a classifier directory holds."""
    from shiftproof.data.suites import load_data, load_suite
    from shiftproof.errors import InputError
    from shiftproof.evaluation.inference import predict
    from shiftproof.evaluation.metrics import accuracy
    from shiftproof.models.directories import load_classifier, read_card

    if bool(suite) == bool(validation):
        raise InputError(
            "a greedy soup is chosen on validation images. Give --validation folder:PATH, or --suite emoji."
        )
    classes = read_card(first).classes
    if suite:
        images = load_suite(suite).relabelled(classes).reference.validation
    else:
        images = load_data(str(validation), classes)

    def score(directory: Path) -> float:
        found = predict(load_classifier(directory), images, stage=f"score {directory.name}")
        return accuracy(found.logits, found.labels)

    return score


def _depth(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    first, last = _pair("--depth", text, ":")
    return _number("--depth", first), last


def _pair(option: str, text: str, between: str) -> tuple[str, float]:
    from shiftproof.errors import InputError

    name, found, number = text.rpartition(between)
    if not found or not name:
        raise InputError(f"{option} {text!r} must look like {'head.*=1.0' if between == '=' else '0.2:0.8'}.")
    return name, _number(option, number)


def _number(option: str, text: str) -> float:
    from shiftproof.errors import InputError

    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"{option}: {text!r} is no number.") from error


def _bytes(text: str | None) -> int | None:
    from shiftproof.errors import InputError

    if text is None:
        return None
    number, unit = text[:-2], text[-2:].upper()
    if unit not in _UNITS:
        raise InputError(f"--shard-size {text!r} must look like 2GB or 500MB.")
    size = _number("--shard-size", number) * _UNITS[unit]
    if not math.isfinite(size):
        raise InputError(f"--shard-size {text!r} is no size.")
    return int(size)
