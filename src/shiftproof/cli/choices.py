"""Options that take one of a few words, or a list of them: the help, the shell completion and the check of each.

The words are repeated here, since the modules that define them load torch and ``--help`` must be fast; a test compares
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from typer import Option

from shiftproof.errors import require_choice

DEMO_SUITES = ("emoji", "solar-cells")
MIXINGS = ("none", "smoothmix-circle", "smoothmix-square", "cutmix", "cutout", "mixup")
PRECISIONS = ("float32", "bfloat16", "float16", "fastest")
HEADS = ("zero-shot", "probe", "own")
ON_BAD_IMAGE = ("stop", "skip")
TRACKERS = ("tensorboard", "wandb", "none")
RULES = ("fixed", "reference", "tolerance")
SPACES = ("weights", "outputs")
BATCH_NORM = ("averaged", "re-estimated")
KINDS = ("run", "model", "data")
MERGE_METHODS = ("linear", "uniform", "greedy", "model-stock")
INTEGERS = ("copy", "equal")
MISSING = ("error", "keep")
CORRUPTIONS = ("noise", "blur", "contrast", "pixelation", "jpeg")
SEVERITIES = ("1", "2", "3", "4", "5")
EXPORT_FORMATS = ("open_clip", "transformers", "timm", "onnx", "torchscript")


def choice(flag: str, choices: Sequence[str], help: str, *, several: bool = False) -> Any:
    """An option that takes one of the ``choices``, or with ``several``, a list of them separated by commas.

    Its help shows the choices in place of a type, the shell completes them, and another word is an InputError.
    """

    def check(value: str | None) -> str | None:
        for part in (value or "").split(",") if several else [value]:
            if part is not None and (part := part.strip()):
                require_choice(flag, part, choices)
        return value

    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    metavar = f"{'|'.join(choices)}{',...' if several else ''}"
    return Option(flag, metavar=metavar, help=help, callback=check, autocompletion=complete)
