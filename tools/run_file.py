"""Writes docs/run-file.md, the reference of all keys of run files and study files, from the settings themselves.

    python tools/run_file.py            regenerate the page
    python tools/run_file.py --check    fail if the page differs from the settings

Types and defaults come from the settings; ``MEANINGS`` says what each key means. A key without a meaning is an error, and
so is a meaning without a key.
"""

# ruff: noqa: E501  (a meaning is a cell of a table and stands on one line)

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from shiftproof.finetuning.settings import OPTIMIZERS, RECIPES, FinetuneSettings
from shiftproof.models.precision import FASTEST, PRECISIONS
from shiftproof.runs.file import (
    MODEL_SETTINGS,
    EvaluationFile,
    PretrainFile,
    ReferenceFile,
    RunFile,
    ShiftFile,
    SuiteFile,
)
from shiftproof.studies.file import Between, SampleFile, StudyFile

PAGE = Path(__file__).parents[1] / "docs" / "run-file.md"
# The sections of a run file, and of a study file, in the order of the page.
RUN_SECTIONS: Mapping[str, Any] = {
    "": RunFile,
    "suite": SuiteFile,
    "suite.reference": ReferenceFile,
    "suite.shifts.NAME": ShiftFile,
    "finetune": FinetuneSettings,
    "evaluation": EvaluationFile,
    "pretrain": PretrainFile,
}
STUDY_SECTIONS: Mapping[str, Any] = {"": StudyFile, "sample": SampleFile, "sample.keys.KEY": Between}
CHOICES = {
    "finetune.recipe": RECIPES,
    "finetune.optimizer": OPTIMIZERS,
    "finetune.precision": (*PRECISIONS, FASTEST),
    "pretrain.precision": (*PRECISIONS, FASTEST),
}
LOOP_MEANINGS = {
    "precision": "the precision of the forward pass; weights and the optimiser's state stay in float32, `float16` needs a GPU, and "
    "`fastest` chooses by the device",
    "accumulate": "splits every batch into this many parts, processed one after the other, to save memory",
    "gradient_checkpointing": "recomputes activations in the backward pass, to save memory",
    "channels_last": "keeps images with the channels last, which may be faster",
    "compile": "compiles the network, which may be faster",
    "checkpoint_every": "writes a checkpoint every so many steps",
    "checkpoints_kept": "keeps this many checkpoints",
}
MEANINGS: Mapping[str, str] = {
    "model": "the start: `tiny`, `open_clip:ARCHITECTURE/TAG`, `hf-hub:ORG/NAME`, `local-dir:PATH`, `hf:ORG/NAME`, "
    "`hf:PATH`, `timm:NAME.TAG`, `torchvision:NAME.WEIGHTS`, `lite0`, or a classifier directory. "
    "A run file must name it",
    "head": "the head of a named model. `zero-shot` is the only one, and the default, of a model with a text tower. Without one, "
    "`probe` (the default) is a linear probe, trained on the reference, and `own` the pretrained head, whose classes are matched by "
    "WordNet id (`--head`)",
    "weights": "a file with a state dict that replaces the weights of the named model, or `FILE:KEY` (`--weights`); see "
    "[starts](starts.md)",
    "random_weights": "allows a model whose name has no tag, and which thus has random weights (`--random-weights`)",
    "suite": "`emoji`, `emoji-development`, [`solar-cells`](data-sets.md#solar-cells) or a [public data set](data-sets.md) such as "
    "`imagenet:PATH`, or a section about your own "
    "data",
    "classes": "a file of [class names](zero-shot.md#names-of-classes) in place of the names of the data (`--classes`)",
    "prompts": "the prompts of the zero-shot head: `photo`, `short`, `openai`, a template with `{}`, a list of templates, or a "
    "[file](zero-shot.md#prompts) of templates or of prompts by class",
    "head_cache": "stores zero-shot heads of thousands of prompts in the cache directory",
    "image_cache": "a directory in which resized pictures are kept, so that later jobs need not decode them again "
    "(`--image-cache`); see [inputs](inputs.md#reading-pictures-faster)",
    "on_bad_image": "`stop` at a picture that cannot be decoded, or `skip` all of these: every picture is decoded once beforehand, "
    "those that cannot be are named in a warning, left out, and counted in the results (`--on-bad-image`)",
    "evaluation.jpeg_draft": "decodes JPEGs of at least twice the size that the model needs at a fraction of their size, which changes their "
    "pixels a little; see [inputs](inputs.md#reading-pictures-faster)",
    "finetune": "how to fine-tune; see below",
    "evaluation": "how models are run when they are measured; see below",
    "alphas": "how many alphas from 0 to 1 are measured (at least 2), or a list of alphas",
    "alpha_rule": "how the alpha of the ensemble is chosen; no rule reads a shift",
    "alpha_tolerance": "for the rule `tolerance`: by how much the accuracy may stay below the best one, as a fraction from 0 to 1",
    "batch_norm": "whether batch-norm statistics of the ensembles between alpha 0 and 1 are averaged, like weights, or re-estimated on the "
    "training images; see [batch norm](starts.md#batch-norm)",
    "seed": "seeds all random numbers; 0 or more",
    "device": "`auto`, `cpu`, `cuda` or another torch device; `auto` prefers a GPU",
    "limit": "the largest number of images of any held-out set, the same ones in every run",
    "report_to": "trackers: `tensorboard`, `wandb`, both separated by a comma, or `none`",
    "pretrain": "data and settings of `shiftproof pretrain`; see below",
    "suite.name": "a name for your data",
    "suite.reference": "what is fine-tuned on, and its held-out sets; see below",
    "suite.shifts": "the sets under distribution shift, by a name each; see below",
    "suite.reference.name": "a name for the reference",
    "suite.reference.train": "the data name of the training images, such as `folder:photos/train`, `csv:train.csv`, "
    "`wds:shards` or `hf:org/name`",
    "suite.reference.validation": "the data name of the validation images; without it, a fifth of the training images is held out, "
    "drawn with the seed, in whole groups where the images have groups",
    "suite.reference.test": "the data name of the test images",
    "suite.shifts.NAME.data": "the data name of the images, such as `folder:sketches` or `corrupted:noise:3:folder:photos/test`",
    "suite.shifts.NAME.kind": "whether the shift is natural or synthetic",
    "suite.shifts.NAME.partial": "accepts without a warning that the shift lacks classes of the reference",
    "finetune.recipe": "what is trained; see [fine-tuning](fine-tuning.md)",
    "finetune.epochs": "how often every training image is seen; at least 1",
    "finetune.lr": "the peak of the learning rate",
    "finetune.batch_size": "images per step; at least 1",
    "finetune.optimizer": "the optimiser",
    "finetune.momentum": "the momentum of `sgd`, from 0 to 1",
    "finetune.weight_decay": "the weight decay of matrices; biases and norms have none",
    "finetune.warmup_steps": "steps of the linear rise of the rate, at most a tenth of all",
    "finetune.clip_norm": "the largest global norm of the gradients",
    "finetune.label_smoothing": "the share of a label that is spread over all classes, from 0 to 1",
    "finetune.crop_scale": "the range of the share of the image's area that a random crop covers, above 0 and up to 1",
    "finetune.augment": "changes of the crops, applied in their order: `none`, or a list of `flip`, `vertical-flip`, `randaugment`, "
    "`color-jitter` and `random-erasing`, or of methods with settings; see [fine-tuning](fine-tuning.md)",
    "finetune.mixing": "`none`, `smoothmix-circle`, `smoothmix-square`, `cutmix`, `cutout`, `mixup`, names with weights, or a method "
    "with its settings; see [mixing](mixing.md)",
    "finetune.mixing_probability": "the probability that a sample is mixed, from 0 to 1; without it, that of the mixing",
    "finetune.mixing_off_epochs": "how many epochs at the end do not mix, from 0 to `epochs`",
    "finetune.ema_decay": "the decay of the moving average of the weights that is returned, from 0 (no average) to below 1",
    "finetune.l2_to_start": "the strength of the pull towards the start's weights",
    "finetune.distillation": "the share of the start's predictions in the loss, from 0 to 1",
    "finetune.distillation_temperature": "the temperature of these predictions",
    "finetune.layer_decay": "the factor of the learning rate from each layer to the next lower one, above 0 and up to 1",
    "finetune.locked_layers": "how many of the lowest layers are frozen",
    "finetune.lora_rank": "the rank of the adapters of the recipe `lora`; at least 1",
    "finetune.lora_scale": "the scale of the adapters of the recipe `lora`",
    "finetune.early_stopping": "stops after this many epochs without a better one, and returns the best; 0 trains all epochs",
    "finetune.shots": "training images per class, drawn with the seed; without it, all of them",
    "evaluation.precision": "the precision of the encoder in all measurements (`--precision`); weights, features and logits are float32, "
    "`float16` needs a GPU, and `fastest` chooses by the device",
    "pretrain.data": "the captioned images: `csv:PATH`, `folder:PATH`, `wds:PATH`, `hf:NAME`, `hf:PATH` or `emoji-captions`",
    "pretrain.steps": "the number of steps; at least 1",
    "pretrain.batch_size": "pairs per step; at least 2",
    "pretrain.lr": "the peak of the learning rate",
    "pretrain.weight_decay": "the weight decay of matrices",
    "pretrain.warmup_steps": "steps of the linear rise of the rate",
    "pretrain.clip_norm": "the largest global norm of the gradients",
    "pretrain.photometric": "changes the colour and the sharpness of training images at random",
    **{f"{section}.{key}": meaning for section in ("finetune", "pretrain") for key, meaning in LOOP_MEANINGS.items()},
    "pretrain.accumulate": "must be 1, since a contrastive batch stays whole",
}
STUDY_MEANINGS: Mapping[str, str] = {
    "run": "keys of a run file, which apply to all runs",
    "grid": "lists of values by dotted key, such as `finetune.lr: [1e-4, 1e-3]`; every combination is one configuration",
    "configurations": "further configurations by name, each with its keys",
    "sample": "further configurations, drawn at random; see below",
    "seeds": "every configuration is run with each of these seeds",
    "rule": "the rule that chooses alpha on the reference's validation split",
    "soups": "soups of all runs to measure as well",
    "cpus_per_run": "how many CPUs each run gets",
    "gpus_per_run": "how many GPUs each run gets; without it, one if there is any",
    "sample.count": "how many configurations are drawn; at least 1",
    "sample.seed": "seeds the draws",
    "sample.keys": "by dotted key, a list of values to choose from, or a range",
    "sample.keys.KEY.low": "the least value of a range",
    "sample.keys.KEY.high": "the largest value of a range",
    "sample.keys.KEY.log": "draws on a logarithmic scale",
}


def fields_of(section: Any) -> Iterator[tuple[str, Any, Any]]:
    """The name, the type and the default of every key of a section; the default is ``...`` if it has none."""
    hints = get_type_hints(section)
    if dataclasses.is_dataclass(section):
        for field in sorted(dataclasses.fields(section), key=lambda entry: entry.name in LOOP_MEANINGS):
            default = ... if field.default is dataclasses.MISSING else field.default
            yield field.name, hints[field.name], default
    else:
        for name, field in section.model_fields.items():
            yield name, hints[name], ... if field.is_required() else field.get_default(call_default_factory=True)


def type_name(kind: Any) -> str:
    """A type as a reader of YAML would name it."""
    plain = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any", types.NoneType: ""}
    if kind in plain:
        return plain[kind]
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(f"`{part}`" for part in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(filter(None, map(type_name, parts)))
    if origin is list:
        several = type_name(parts[0])
        return f"list of {several}s" if several in ("text", "integer", "number") else f"list of {several}"
    if origin is tuple:
        return "two numbers"
    return "section"


def default_name(default: Any) -> str:
    """A default as it would stand in a YAML file."""
    if default is ...:
        return "required"
    if default is None or isinstance(default, dict | FinetuneSettings | EvaluationFile):
        return "—"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{list(default) if isinstance(default, tuple) else default}`"


def table(section: str, owner: Any, meanings: Mapping[str, str]) -> list[str]:
    """The keys of one section, one row each."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, kind, default in fields_of(owner):
        key = f"{section}.{name}" if section else name
        choices = " or ".join(f"`{choice}`" for choice in CHOICES.get(key, ()))
        shown = "required" if key == "model" else default_name(default)
        rows.append(f"| `{key}` | {choices or type_name(kind)} | {shown} | {meanings[key]} |")
    return rows


def keys_of(sections: Mapping[str, Any]) -> set[str]:
    """All keys of a file, by their dotted names."""
    return {f"{section}.{name}".lstrip(".") for section, owner in sections.items() for name, *_ in fields_of(owner)}


def page() -> str:
    """The page; raises a KeyError for a key without a meaning, and for a meaning without a key."""
    for sections, meanings in ((RUN_SECTIONS, MEANINGS), (STUDY_SECTIONS, STUDY_MEANINGS)):
        if differing := keys_of(sections) ^ meanings.keys():
            raise KeyError(f"keys without a meaning, or meanings without a key: {sorted(differing)}")
    tiny = ", ".join(f"`{key}: {value}`" for key, value in MODEL_SETTINGS["tiny"].items())
    lines = [
        "# Keys of run files and study files",
        "",
        "<!-- python tools/run_file.py writes this page from the settings -->",
        "",
        "Every key can also be given on the command line as `--set KEY=VALUE`, for example `--set finetune.lr=1e-5`, and from Python in",
        "the mapping that `RunFile.resolve` or `StudyFile.resolve` takes. A run directory's `run.yaml` holds all keys with the values that",
        "the run used.",
        "",
        "## Run files",
        "",
        *table("", RunFile, MEANINGS),
    ]
    for section, owner in list(RUN_SECTIONS.items())[1:]:
        lines += ["", f"### `{section}`", ""]
        if section == "finetune":
            lines += [
                "The defaults are those of the paper. For the model `tiny`, keys that the file omits have the values that were tuned on the",
                f"development suite: {tiny}.",
                "",
            ]
        lines += table(section, owner, MEANINGS)
    lines += ["", "## Study files", "", *table("", StudyFile, STUDY_MEANINGS)]
    for section, owner in list(STUDY_SECTIONS.items())[1:]:
        lines += ["", f"### `{section}`", "", *table(section, owner, STUDY_MEANINGS)]
    return "\n".join(lines) + "\n"


def main() -> None:
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} differs from the settings. Run python tools/run_file.py.")


if __name__ == "__main__":
    main()
