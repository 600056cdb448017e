"""The arguments and options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from typer import Argument, Option

from shiftproof.cli.choices import HEADS, ON_BAD_IMAGE, PRECISIONS, TRACKERS, choice
from shiftproof.cli.parsing import parse_shifts, require_new
from shiftproof.errors import InputError

if TYPE_CHECKING:
    from shiftproof.runs.file import RunFile

Suite = Annotated[
    str | None,
    Option(
        "--suite",
        metavar="NAME",
        help="Use the data of this suite: emoji, emoji-development, solar-cells, or a public data set such as "
        "imagenet:PATH [default: none; your own data are given by the other options].",
    ),
]
Prompts = Annotated[
    str,
    Option(
        "--prompts",
        metavar="photo|short|openai|TEMPLATE|FILE",
        help="Make the zero-shot head from these prompts: a set by name, a template with {} in place of the class, or "
        "a .txt or .json file of templates.",
    ),
]
Classes = Annotated[
    str | None,
    Option(
        "--classes",
        metavar="FILE",
        help="Read the names of the classes, which stand in the prompts, from this .txt, .json or .csv file. With a "
        "classifier directory, its encoder gets a zero-shot head for these classes [default: names are made from those "
        "of the class folders or labels].",
    ),
]
Seed = Annotated[
    int | None,
    Option("--seed", metavar="N", min=0, help="Seed all random numbers [default: the run file's seed, or 0]."),
]
Device = Annotated[
    str | None,
    Option(
        "--device",
        metavar="auto|cpu|cuda",
        help="Compute on this device; auto takes the GPU if there is one [default: the run file's, or auto].",
    ),
]
ResolvedDevice = Annotated[
    str,
    Option("--device", metavar="auto|cpu|cuda", help="Compute on this device; auto takes the GPU if there is one."),
]
Precision = Annotated[
    str,
    choice("--precision", PRECISIONS, "Run the encoder in this precision; fastest is the fastest one on the device."),
]
Resume = Annotated[
    bool, Option("--resume", help="Continue the interrupted job in --out. What it has finished is not repeated.")
]
Overwrite = Annotated[
    bool,
    Option("--overwrite", help="Delete the results of an earlier job in --out first [default: they are an error]."),
]
RandomWeights = Annotated[
    bool, Option("--random-weights", help="Allow a model whose name has no tag, and which thus has random weights.")
]
ClipBenchmark = Annotated[
    Path | None,
    Option(
        "--clip-benchmark",
        metavar="DIR",
        help="Also write every result to this folder as a JSON file of CLIP_benchmark [default: none is written].",
    ),
]
Head = Annotated[
    str | None,
    choice(
        "--head",
        HEADS,
        "Classify with a head made from prompts (zero-shot), with a linear probe trained on the reference (probe), or "
        "with the head that the network came with (own) [default: zero-shot, or probe for a model without a text "
        "tower].",
    ),
]
Weights = Annotated[
    str | None,
    Option(
        "--weights",
        metavar="FILE",
        help="Load this state dict into the named model, e.g. one of open_clip's training, wise-ft, model-soups or "
        "FLYP [default: the weights that the name stands for].",
    ),
]
ImageCache = Annotated[
    str | None,
    Option(
        "--image-cache",
        metavar="DIR",
        help="Keep resized pictures in this directory, so that later jobs need not decode them again [default: none "
        "are kept].",
    ),
]
_ON_BAD_IMAGE = "Stop at a picture that cannot be decoded, or skip and count it"
OnBadImage = Annotated[str, choice("--on-bad-image", ON_BAD_IMAGE, f"{_ON_BAD_IMAGE}.")]
RunPath = Annotated[
    Path, Argument(metavar="RUN.yaml", help="The run file, which names the model, the data and the settings.")
]


@dataclass(frozen=True)
class ScoringOptions:
    """The sets that a classifier is scored on."""

    suite: Suite = None
    test: Annotated[
        str | None,
        Option(
            "--test",
            metavar="DATA",
            help="Score on this test data of the reference, such as folder:PATH [default: that of --suite].",
        ),
    ] = None
    shift: Annotated[
        list[str] | None,
        Option(
            "--shift",
            metavar="NAME=DATA",
            help="Score on data under a natural shift, e.g. sketch=folder:PATH. Can be repeated.",
        ),
    ] = None
    corrupt: Annotated[
        list[str] | None,
        Option(
            "--corrupt",
            metavar="NAME:SEVERITY",
            help="Score on the data of --test under noise, blur, contrast, pixelation or jpeg of a severity from 1 to "
            "5, e.g. noise:3. Can be repeated.",
        ),
    ] = None

    def shifts(self) -> dict[str, dict[str, str]]:
        """The natural and synthetic shifts by name, in the form of a run file."""
        return parse_shifts(self.shift or (), self.corrupt or (), self.test)

    def named_sets(self) -> dict[str, str]:
        """The data names of the sets that are given in addition to the suite, by the names of the sets."""
        sets = {name: entry["data"] for name, entry in self.shifts().items()}
        if self.test:
            sets = {require_new("test", sets): self.test, **sets}
        if not self.suite and not sets:
            raise InputError("there is no data to evaluate on. Name some, e.g. --suite emoji or --test folder:PATH.")
        return sets


@dataclass(frozen=True)
class SuiteOptions(ScoringOptions):
    """The data of a run: an embedded suite, or a reference with its shifts."""

    reference: Annotated[
        str | None,
        Option(
            "--reference",
            metavar="DATA",
            help="Train on your own data, such as folder:PATH or csv:PATH [default: those of --suite].",
        ),
    ] = None
    validation: Annotated[
        str | None,
        Option(
            "--validation",
            metavar="DATA",
            help="Validate on this data [default: a fifth of the images of --reference, which is held out].",
        ),
    ] = None

    def is_given(self) -> bool:
        """Whether any data are named."""
        return any(value for value in vars(self).values())

    def section(self) -> str | dict[str, Any]:
        """The section ``suite`` of a run file."""
        given = self.reference or self.validation or self.test or self.shift or self.corrupt
        if self.suite and given:
            raise InputError("--suite names all data. Omit it to give --reference, --test, --shift or --corrupt.")
        if self.suite:
            return self.suite
        if not self.reference or not self.test:
            raise InputError(
                "there is no data. Give --suite emoji, or your own data: --reference folder:PATH --test folder:PATH."
            )
        reference = {"train": self.reference, "validation": self.validation, "test": self.test}
        return {"reference": reference, "shifts": self.shifts()}


def _set_option(example: str) -> Any:
    return Option(
        "--set",
        metavar="KEY=VALUE",
        help=f"Give a run-file key that the command uses this value, e.g. {example}; docs/run-file.md describes all "
        "keys. Can be repeated.",
    )


@dataclass(frozen=True)
class SettingOptions:
    """Keys of a run file: some have an option, and ``--set`` sets any of them."""

    seed: Seed = None
    device: Device = None
    overrides: Annotated[list[str] | None, _set_option("limit=100")] = None

    def with_key(self, override: str, *, given: bool = True) -> Self:
        """These settings with another key, such as seed=1, if it is given; those of ``--set`` come after it."""
        return replace(self, overrides=[override, *(self.overrides or ())]) if given else self

    def values(self) -> dict[str, Any]:
        """The values of the options that were given, by the dotted names of the run-file keys."""
        keys = {name: name for name in ("seed", "device", "image_cache", "on_bad_image", "report_to")}
        keys["shots"] = "finetune.shots"
        given = vars(self)
        return {key: given[name] for name, key in keys.items() if given.get(name) is not None}

    def read(self, command: str, path: Path) -> RunFile:
        """Reads a run file for a command and applies these settings; refuses a key that the command has no use for."""
        from shiftproof.runs.file import RunFile
        from shiftproof.runs.keys import require_used

        run_file = RunFile.read(path, self.overrides or (), self.values())
        require_used(command, self.overrides or ())
        return run_file

    def resolve(self, command: str, **keys: Any) -> RunFile:
        """Makes a run file for a command from some keys; otherwise, it does the same as ``read``."""
        from shiftproof.runs.file import RunFile
        from shiftproof.runs.keys import require_used

        run_file = RunFile.resolve(keys, self.overrides or (), self.values())
        require_used(command, self.overrides or ())
        return run_file


@dataclass(frozen=True)
class TrainingOptions(SettingOptions):
    """Settings of a command that trains; the example of ``--set`` is one of pretraining."""

    overrides: Annotated[list[str] | None, _set_option("pretrain.steps=3000")] = None
    report_to: Annotated[
        str | None,
        choice(
            "--report-to",
            TRACKERS,
            "Also send the training log to this tracker, or to both [default: the run file's, or none].",
            several=True,
        ),
    ] = None


@dataclass(frozen=True)
class FinetuningOptions(TrainingOptions):
    """Settings of a command that fine-tunes."""

    overrides: Annotated[list[str] | None, _set_option("finetune.lr=1e-5")] = None
    shots: Annotated[
        int | None,
        Option(
            "--shots",
            metavar="N",
            min=1,
            help="Train on this many images of every class, drawn with the seed [default: all images].",
        ),
    ] = None
    image_cache: ImageCache = None
    on_bad_image: Annotated[
        str | None, choice("--on-bad-image", ON_BAD_IMAGE, f"{_ON_BAD_IMAGE} [default: the run file's, or stop].")
    ] = None
