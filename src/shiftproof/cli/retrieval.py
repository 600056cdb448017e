"""The command that searches with a model of two towers: ``retrieve``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from shiftproof.cli.options import RandomWeights, ResolvedDevice
from shiftproof.errors import InputError, counted

if TYPE_CHECKING:
    from shiftproof.runs.retrieve import Matches


def retrieve(
    model: Annotated[
        str, Argument(metavar="MODEL", help="A model's name: tiny, open_clip:ARCH/TAG, hf:ORG/NAME or local-dir:PATH.")
    ],
    text: Annotated[
        list[str] | None,
        Option("--text", metavar="TEXT", help="Search for pictures that fit this text. Can be repeated."),
    ] = None,
    images: Annotated[
        Path | None,
        Option("--images", metavar="DIR", help="Search all pictures under this folder [default: none; see --texts]."),
    ] = None,
    image: Annotated[
        list[Path] | None,
        Option("--image", metavar="FILE", help="Search for texts that fit this picture. Can be repeated."),
    ] = None,
    texts: Annotated[
        Path | None,
        Option("--texts", metavar="FILE", help="Search the lines of this text file [default: none; see --images]."),
    ] = None,
    top: Annotated[int, Option("--top", metavar="N", min=1, help="Show this many results.")] = 10,
    out: Annotated[
        Path | None,
        Option("--csv", metavar="FILE", help="Write the results to this CSV file [default: nothing is written]."),
    ] = None,
    random_weights: RandomWeights = False,
    device: ResolvedDevice = "auto",
) -> None:
    """Find the pictures in a folder that fit a text, or the texts in a file that fit a picture.

    The pictures and texts are read in batches, so there may be any number of them. The similarity is a cosine.

    Example: shiftproof retrieve tiny --text "a photo of a lemon" --images photos

    The other way: shiftproof retrieve tiny --image lemon.png --texts captions.txt --csv found.csv
    """
    from shiftproof.cli.console import live_progress
    from shiftproof.runs.retrieve import retrieve_images, retrieve_texts, save_matches

    if bool(text and images) == bool(image and texts) or bool(text) != bool(images) or bool(image) != bool(texts):
        raise InputError("give --text with --images, to search a folder, or --image with --texts, to search a file.")
    with live_progress():
        if text and images:
            matches = retrieve_images(
                model, text, f"folder:{images}", top=top, random_weights=random_weights, device=device
            )
        else:
            matches = retrieve_texts(
                model, image or (), texts or Path(), top=top, random_weights=random_weights, device=device
            )
    _print_matches(matches)
    if out is not None:
        print(f"table: {save_matches(matches, out)}")


def _print_matches(matches: Matches) -> None:
    query = None
    for match in matches.matches:
        if match.query != query:
            query = match.query
            print(query)
        print(f"  {match.similarity:6.3f}  {match.item}")
    if matches.broken:
        count = counted(len(matches.broken), "picture")
        print(f"{count} could not be decoded: {matches.broken[0]}")
