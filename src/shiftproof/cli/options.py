"""The arguments and options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from typer import Argument, Option

from shiftproof.cli.parsing import parse_shifts, require_new
from shiftproof.errors import InputError

if TYPE_CHECKING:
    from shiftproof.runs.file import RunFile

Suite = Annotated[
    str | None,
    Option(
        "--suite",
        help="Use an embedded suite, emoji, emoji-development or solar-cells, or that of a public data set, such as "
        "imagenet:PATH.",
    ),
]
Validation = Annotated[
    str | None,
    Option("--validation", help="Validate on this data. Without it, a fifth of the images of --reference is held out."),
]
Prompts = Annotated[
    str,
    Option(
        "--prompts",
        help="Build the zero-shot head with the prompts photo, short or openai, a template with {}, or a file.",
    ),
]
Classes = Annotated[
    str | None,
    Option("--classes", metavar="FILE", help="Name the classes in words, or other classes, by a .txt, .json or .csv."),
]
Seed = Annotated[int | None, Option("--seed", min=0, help="Seed all random numbers of the run.")]
Device = Annotated[str | None, Option("--device", help="Compute on auto, cpu or cuda; auto prefers a GPU.")]
ResolvedDevice = Annotated[str, Option("--device", help="Compute on auto, cpu or cuda; auto prefers a GPU.")]
Precision = Annotated[
    str,
    Option("--precision", help="Run the encoder in float32, bfloat16, float16, or the fastest of them on the device."),
]
Resume = Annotated[
    bool, Option("--resume", help="Resume the interrupted job in --out. What it has finished is not repeated.")
]
Overwrite = Annotated[bool, Option("--overwrite", help="Delete the results of an earlier job in --out first.")]
RandomWeights = Annotated[
    bool, Option("--random-weights", help="Allow a model whose name has no tag, and which thus has random weights.")
]
ClipBenchmark = Annotated[
    Path | None,
    Option("--clip-benchmark", help="Write every result to this folder as a JSON file of CLIP_benchmark, too."),
]
Head = Annotated[
    str | None,
    Option(
        "--head",
        help="Give a model without a text tower a linear probe trained on the reference (probe, the default), or keep "
        "its own head (own).",
    ),
]
Weights = Annotated[
    str | None,
    Option(
        "--weights",
        metavar="FILE",
        help="Load this state dict into the named model, e.g. of open_clip's training, wise-ft, model-soups or FLYP.",
    ),
]
ImageCache = Annotated[
    str | None,
    Option(
        "--image-cache",
        metavar="DIR",
        help="Keep resized pictures in this directory, so that later jobs need not decode them again.",
    ),
]
OnBadImage = Annotated[
    str | None,
    Option("--on-bad-image", help="Stop at a picture that cannot be decoded, or skip and count it (stop or skip)."),
]
RunPath = Annotated[Path, Argument(metavar="RUN.yaml", help="The run file.")]


@dataclass(frozen=True)
class ScoringOptions:
    """The sets that a classifier is scored on."""

    suite: Suite = None
    test: Annotated[str | None, Option("--test", help="Score on this test data of the reference.")] = None
    shift: Annotated[
        list[str] | None,
        Option("--shift", metavar="NAME=DATA", help="Score on data under a natural shift. Can be repeated."),
    ] = None
    corrupt: Annotated[
        list[str] | None,
        Option(
            "--corrupt",
            metavar="NAME:SEVERITY",
            help="Score on the data of --test under a synthetic corruption of severity 1 to 5. Can be repeated.",
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
        str | None, Option("--reference", help="Train on your own data, such as folder:PATH or csv:PATH.")
    ] = None
    validation: Validation = None

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


@dataclass(frozen=True)
class SettingOptions:
    """Keys of a run file: some have an option, and ``--set`` sets any of them."""

    seed: Seed = None
    device: Device = None
    overrides: Annotated[
        list[str] | None,
        Option("--set", metavar="KEY=VALUE", help="Override a run-file key, e.g. finetune.lr=1e-5. Can be repeated."),
    ] = None

    def with_key(self, override: str, *, given: bool = True) -> Self:
        """These settings with another key, such as seed=1, if it is given; those of ``--set`` come after it."""
        return replace(self, overrides=[override, *(self.overrides or ())]) if given else self

    def values(self) -> dict[str, Any]:
        """The values of the options that were given, by the dotted names of the run-file keys."""
        keys = {name: name for name in ("seed", "device", "image_cache", "on_bad_image", "report_to")}
        keys["shots"] = "finetune.shots"
        given = vars(self)
        return {key: given[name] for name, key in keys.items() if given.get(name) is not None}

    def read(self, path: Path) -> RunFile:
        """Reads a run file and applies these settings."""
        from shiftproof.runs.file import RunFile

        return RunFile.read(path, self.overrides or (), self.values())

    def resolve(self, **keys: Any) -> RunFile:
        """Makes a run file from some keys and applies these settings."""
        from shiftproof.runs.file import RunFile

        return RunFile.resolve(keys, self.overrides or (), self.values())


@dataclass(frozen=True)
class TrainingOptions(SettingOptions):
    """Settings of a command that trains."""

    report_to: Annotated[
        str | None,
        Option("--report-to", help="Report to trackers: tensorboard, wandb, both (tensorboard,wandb) or none."),
    ] = None


@dataclass(frozen=True)
class FinetuningOptions(TrainingOptions):
    """Settings of a command that fine-tunes."""

    shots: Annotated[
        int | None, Option("--shots", min=1, help="Train on this many images of every class, drawn with the seed.")
    ] = None
    image_cache: ImageCache = None
    on_bad_image: OnBadImage = None
