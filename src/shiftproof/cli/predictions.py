"""The command that names the classes of images: ``predict``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from shiftproof.cli.options import Precision, ResolvedDevice
from shiftproof.errors import InputError


@dataclass(frozen=True)
class TableOptions:
    """Any number of images, and the CSV file that their predictions are written to."""

    folder: Annotated[
        Path | None,
        Option(
            "--folder",
            metavar="DIR",
            help="Predict all images under this folder, of which there may be millions [default: none].",
        ),
    ] = None
    data: Annotated[
        str | None,
        Option(
            "--data",
            metavar="DATA",
            help="Predict all images of this data name, such as wds:PATH, hf:PATH or csv:PATH [default: none].",
        ),
    ] = None
    out: Annotated[
        Path | None,
        Option(
            "--csv",
            metavar="FILE",
            help="Write the predictions of --folder or --data to this CSV file, which they need [default: the "
            "predictions of IMAGE are printed].",
        ),
    ] = None
    resume: Annotated[
        bool, Option("--resume", help="Continue the interrupted CSV file. What it has is not repeated.")
    ] = False
    overwrite: Annotated[
        bool, Option("--overwrite", help="Replace the CSV file if it exists [default: that is an error].")
    ] = False

    def several(self) -> str | None:
        """The data name of the images; raises an InputError if two are given."""
        if self.folder and self.data:
            raise InputError(
                "name images to predict, or a folder with --folder, or other data with --data, but not more than one."
            )
        return f"folder:{self.folder}" if self.folder else self.data


def predict(
    classifier: Annotated[
        str,
        Argument(
            metavar="CLASSIFIER",
            help="A classifier directory, or the name of a network with its own head, such as lite0.",
        ),
    ],
    table: TableOptions,
    images: Annotated[
        list[Path] | None, Argument(metavar="IMAGE", help="Image files, or folders of images.", show_default=False)
    ] = None,
    top: Annotated[int, Option("--top", metavar="N", min=1, help="Name this many classes of every image.")] = 5,
    as_json: Annotated[
        bool, Option("--json", help="Print JSON, with probabilities from 0 to 1 [default: a text with per cent].")
    ] = False,
    device: ResolvedDevice = "auto",
    precision: Precision = "float32",
) -> None:
    """Name the most probable classes of images, with their probabilities.

    With --csv and --folder or --data, images are read and written batch by batch. One that cannot be decoded stops
    nothing: its row has the reason in the column error. Labels are not needed.

    Example: shiftproof predict runs/demo/ensemble lemon.png --json

    Many images: shiftproof predict runs/demo/ensemble --folder photos --csv predictions.csv
    """
    from shiftproof.cli.console import plain_warnings
    from shiftproof.runs.stages import predict_images

    several = table.several()
    if bool(several) != bool(table.out) or bool(images) == bool(several):
        raise InputError(
            "name images to predict, or a folder with --folder DIR or other data with --data NAME, and a file for them "
            "with --csv OUT."
        )
    if several and table.out:
        return _predict_data(classifier, several, table.out, top, device, precision, table)
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
    table: TableOptions,
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
            resume=table.resume,
            overwrite=table.overwrite,
        )
    print(f"{written.pictures:,} images in {out}; {written.broken:,} of them could not be decoded (column error)")
