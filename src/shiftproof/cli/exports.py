"""The commands that hand a classifier on to other tools: ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from shiftproof.cli.choices import EXPORT_FORMATS, choice
from shiftproof.cli.options import Overwrite


def export(
    classifier: Annotated[Path, Argument(metavar="CLASSIFIER", help="A classifier directory.")],
    to: Annotated[str, choice("--to", EXPORT_FORMATS, "Write for this library or runtime.")],
    out: Annotated[Path, Option("--out", metavar="DIR", help="Write the files and a model card to this directory.")],
    results: Annotated[
        Path | None,
        Option(
            "--results",
            metavar="FILE",
            help="State the accuracies of this results.jsonl in the model card [default: those of its run].",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        Option(
            "--push-to-hub",
            metavar="ORG/NAME",
            help="Upload the directory to this model repository of the Hugging Face hub afterwards [default: nothing "
            "is uploaded].",
        ),
    ] = None,
    private: Annotated[
        bool, Option("--private", help="Create the repository of --push-to-hub as a private one [default: public].")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a classifier for another library or runtime, and check it there.

    The library reads the files back and must compute the same logits. A format that cannot hold the classifier is
    refused, with the reason.

    Example: shiftproof export runs/demo/ensemble --to onnx --out ensemble-onnx
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.models.export.hub import push_to_hub as upload
    from shiftproof.runs.exports import run_classifier_export

    with live_progress():
        written = run_classifier_export(classifier, to, out, results=results, overwrite=overwrite)
    print(f"{written.directory} holds the classifier for {to}; logits differ by at most {written.difference:.1g}")
    for note in written.notes:
        print(f"  {note}")
    if push_to_hub:
        print(f"uploaded: {upload(written.directory, push_to_hub, private=private)}")
