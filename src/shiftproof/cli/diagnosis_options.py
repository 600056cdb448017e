"""The arguments and options of the ``diagnose`` commands: the models to examine, and the images to examine them on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from shiftproof.cli.options import Head, RandomWeights, ResolvedDevice

if TYPE_CHECKING:
    from shiftproof.runs.comparisons import PairFile
    from shiftproof.runs.interventions import DiagnosisFile

First = Annotated[str, Argument(metavar="A", help="A classifier directory or a model's name.")]
Second = Annotated[str, Argument(metavar="B", help="The classifier or model to compare with A.")]
Third = Annotated[
    str | None, Argument(metavar="C", help="A third one: the ensemble of the two, or another fine-tuned model.")
]
Written = Annotated[
    Path | None,
    Option("--out", metavar="DIR", help="Write the numbers to this directory [default: nothing is written]."),
]


@dataclass(frozen=True)
class ImageOptions:
    """The labelled images of a diagnosis, and the settings with which models are applied to them."""

    suite: Annotated[
        str,
        Option(
            "--suite",
            metavar="NAME",
            help="Use the test images of this suite: emoji, emoji-development, solar-cells, or a public data set such "
            "as imagenet:PATH.",
        ),
    ] = "emoji"
    shift: Annotated[
        str | None,
        Option(
            "--shift",
            metavar="NAME",
            help="Use only this shift of the suite, e.g. clutter [default: the reference and all shifts].",
        ),
    ] = None
    data: Annotated[
        str | None,
        Option(
            "--data",
            metavar="DATA",
            help="Use your own images instead, such as folder:PATH or hf:NAME [default: those of --suite].",
        ),
    ] = None
    images: Annotated[
        int | None,
        Option(
            "--images",
            metavar="N",
            min=2,
            help="Use at most this many images of every set, spread over the classes [default: all].",
        ),
    ] = None
    prompts: Annotated[
        str,
        Option(
            "--prompts",
            metavar="photo|short|openai|TEMPLATE",
            help="Make the zero-shot head of a named model from these prompts: a set by name, or a template with {} in "
            "place of the class.",
        ),
    ] = "photo"
    head: Head = None
    seed: Annotated[
        int, Option("--seed", metavar="N", min=0, help="Seed the choice of images and all other random numbers.")
    ] = 0
    device: ResolvedDevice = "auto"
    random_weights: RandomWeights = False

    def pair(self, *models: str | None) -> PairFile:
        """The request to compare two models, or three if the last one is given, on these images."""
        from shiftproof.runs.comparisons import PairFile

        return PairFile(tuple(model for model in models if model), **vars(self))


@dataclass(frozen=True)
class UnlabelledOptions(ImageOptions):
    """The images of a diagnosis that needs no labels."""

    unlabelled: Annotated[
        Path | None,
        Option(
            "--unlabelled",
            metavar="DIR",
            help="Use all images under this folder instead, which need no labels [default: those of --suite].",
        ),
    ] = None


@dataclass(frozen=True)
class MapOptions(UnlabelledOptions):
    """The images of class activation maps."""

    images: Annotated[
        int | None,
        Option("--images", metavar="N", min=2, help="Show this many images of every set, spread over the classes."),
    ] = 8


@dataclass(frozen=True)
class InterventionOptions(ImageOptions):
    """The models and images of a diagnosis that changes images."""

    shift: Annotated[
        str | None,
        Option("--shift", metavar="NAME", help="Use this shift of the suite, e.g. clutter [default: the reference]."),
    ] = None
    images: Annotated[
        int | None, Option("--images", metavar="N", min=2, help="Use this many images, spread over the classes.")
    ] = 402
    classifiers: Annotated[
        list[Path] | None, Argument(metavar="CLASSIFIER", help="Classifier directories to examine.", show_default=False)
    ] = None
    models: Annotated[
        list[str] | None,
        Option(
            "--model",
            metavar="MODEL",
            help="Also examine this model, by its name, e.g. tiny, timm:NAME.TAG or lite0. Can be repeated.",
        ),
    ] = None
    masks: Annotated[
        Path | None,
        Option(
            "--masks",
            metavar="DIR",
            help="Read object masks from CLASS/NAME.png in this folder, white on black [default: those that come with "
            "the data].",
        ),
    ] = None

    def request(self) -> DiagnosisFile:
        """The request to diagnose these models on these images."""
        from shiftproof.runs.interventions import DiagnosisFile

        models = {"classifiers": tuple(self.classifiers or ()), "models": tuple(self.models or ())}
        return DiagnosisFile(**vars(self) | models)


@dataclass(frozen=True)
class BackgroundOptions(InterventionOptions):
    """The models and images of the diagnosis that exchanges backgrounds."""

    images: Annotated[
        int | None, Option("--images", metavar="N", min=2, help="Use this many images, spread over the classes.")
    ] = 2136
