"""The run file: the YAML file that requests a run, checked and resolved into one frozen object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shiftproof.data.families.registry import family_section
from shiftproof.ensembling.path import alpha_grid
from shiftproof.errors import InputError, point_hint
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.devices import resolve_device
from shiftproof.models.precision import resolved_precision
from shiftproof.models.prompts import names_prompt_file, prompt_templates
from shiftproof.pretraining.settings import PretrainSettings
from shiftproof.runs.keys import refuse_study_file
from shiftproof.runs.locations import with_full_paths, with_paths
from shiftproof.runs.mistakes import explained
from shiftproof.runs.yaml_text import parse_yaml
from shiftproof.storage import expanded, packaged_path, read_json
from shiftproof.training.log import trackers_from

# Fine-tuning settings for keys that the run file omits. Those of the tiny model were tuned on the development suite;
# every other model uses the paper's.
MODEL_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"epochs": 20, "lr": 2e-3, "batch_size": 128, "warmup_steps": 20, "checkpoint_every": 50},
}
# The settings with which mixing improves this small network most, tuned on the development suite (docs/mixing.md).
MIXED_SETTINGS: Mapping[str, Mapping[str, Any]] = {"tiny": {"mixing_probability": 0.25, "label_smoothing": 0.1}}

DEMO_FILE = packaged_path("shiftproof", "assets", "demo.yaml")
DEMO_FILES: Mapping[str, Path] = {"emoji": DEMO_FILE, "solar-cells": DEMO_FILE.with_name("demo-solar-cells.yaml")}


class Frozen(BaseModel):
    """A section of a file: it cannot be changed, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ReferenceFile(Frozen):
    """The data names of your own reference; without ``validation``, a fifth of ``train`` is held out, by the seed."""

    name: str = "reference"
    train: str
    validation: str | None = None
    test: str


class ShiftFile(Frozen):
    """One shift of your own; a warning names the classes that it lacks, unless it is ``partial``."""

    data: str
    kind: Literal["natural", "synthetic"] = "natural"
    partial: bool = False


class SuiteFile(Frozen):
    """A suite of your own data."""

    name: str = "own"
    reference: ReferenceFile
    shifts: dict[str, ShiftFile] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class PretrainFile(PretrainSettings):
    """Data and settings of ``shiftproof pretrain``."""

    data: str


class EvaluationFile(Frozen):
    """How models are run when they are measured; ``precision`` is that of the encoder, as in ``predict``.

    With ``jpeg_draft``, large JPEGs are decoded at a fraction of their size (``ReadSettings``).
    """

    precision: Literal["float32", "bfloat16", "float16", "fastest"] = "float32"
    jpeg_draft: bool = False


class RunFile(Frozen):
    """All settings of a run; the same run file and seed give the same results.

    ``head`` is that of a named model; None stands for a zero-shot head, or for a linear probe where the model has no
    text tower. ``weights`` is a local file whose weights replace those of the named model; ``random_weights`` allows a
    model whose name has no tag. ``classes`` is a file of class names, ``prompts`` may be one of prompts, and
    ``head_cache`` stores large zero-shot heads, and ``image_cache`` is a directory for resized pictures.
    ``on_bad_image`` says what happens to pictures that cannot be decoded (``readable.without_undecodable``).
    ``batch_norm`` says whether the batch-norm statistics of ensembles are averaged like weights or re-estimated on the
    training images. ``limit`` is the largest number of images that any held-out set may have, the same ones in every
    run; ``report_to`` names trackers, such as tensorboard,wandb.

    >>> RunFile.resolve({"model": "tiny", "finetune": {"lr": "1e-3"}}).finetune.lr
    0.001
    """

    model: str = "tiny"
    head: Literal["zero-shot", "probe", "own"] | None = None
    weights: str | None = None
    random_weights: bool = False
    suite: str | SuiteFile = "emoji"
    classes: str | None = None
    prompts: str | list[str] = "photo"
    head_cache: bool = True
    image_cache: str | None = None
    on_bad_image: Literal["stop", "skip"] = "stop"
    finetune: FinetuneSettings = Field(default_factory=FinetuneSettings)
    evaluation: EvaluationFile = Field(default_factory=EvaluationFile)
    alphas: int | list[float] = 11
    alpha_rule: Literal["fixed", "reference", "tolerance"] = "fixed"
    alpha_tolerance: float = Field(0.01, ge=0, le=1)
    batch_norm: Literal["averaged", "re-estimated"] = "averaged"
    seed: int = Field(0, ge=0)
    device: str = "auto"
    limit: int | None = Field(None, ge=1)
    report_to: str = "none"
    pretrain: PretrainFile | None = None

    @classmethod
    def resolve(
        cls, settings: Mapping[str, Any], overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None
    ) -> RunFile:
        """Builds a checked run file from a plain mapping and ``key.path=value`` overrides.

        ``values`` are further overrides, by ``key.path``, whose values need not be parsed. They are applied last.

        Raises an InputError that names an unknown key and suggests the nearest known one, or states the broken rule.
        """
        plain = copied(settings)
        for override in overrides:
            override_key(plain, override)
        for key, value in (values or {}).items():
            place_key(plain, key, value)
        plain = with_paths(plain, None)
        if isinstance(finetune := plain.get("finetune", {}), dict):
            source = _source(str(plain.get("model", "tiny")))
            plain["finetune"] = {**MODEL_SETTINGS.get(source, {}), **_mixed_settings(source, finetune), **finetune}
        if isinstance(alphas := plain.get("alphas"), str) and {",", "."} & set(alphas):  # else a number of alphas
            plain["alphas"] = parse_alphas(alphas)
        try:
            resolved = cls.model_validate(plain)
        except ValidationError as error:
            raise InputError(explained(error, _SECTIONS, "run-file key")) from error
        alpha_grid(resolved.alphas)
        if not isinstance(resolved.prompts, str) or not names_prompt_file(resolved.prompts):
            prompt_templates(resolved.prompts)  # a file is read when the head is built
        trackers_from(resolved.report_to)
        return resolved

    @classmethod
    def read(cls, path: str | Path, overrides: Sequence[str] = (), values: Mapping[str, Any] | None = None) -> RunFile:
        """Reads and checks a run file in YAML; arguments and errors are those of ``resolve``.

        Paths in it are relative to its folder. A path that exists only relative to the working directory is read from
        there; one that exists in both places raises an InputError. Overrides are relative to the working directory.
        In addition, raises an InputError for a file that names no model.
        """
        path = expanded(path)
        settings = read_yaml(path, "run file")
        refuse_study_file(path, settings)
        # The run.yaml of a run directory also records versions, which are not settings; its paths are resolved already.
        settings.pop("later_versions", None)
        if settings.pop("versions", None) is None:
            settings = with_paths(settings, Path(path).parent)
        resolved = cls.resolve(settings, overrides, values)
        named = {*settings, *(override.partition("=")[0] for override in overrides), *(values or {})}
        if "model" not in named:
            raise InputError(
                f"the run file {path} names no model. Add one, e.g. model: open_clip:ViT-B-32/openai, or model: tiny "
                "for the small model that comes with shiftproof."
            )
        return resolved

    def resolved_on(self, *, device: str | torch.device = "auto") -> RunFile:
        """This run file with the precision of evaluation that it means on a device.

        Raises an InputError if it cannot be used there.
        """
        precision = resolved_precision(self.evaluation.precision, resolve_device(device))
        return self.model_copy(update={"evaluation": self.evaluation.model_copy(update={"precision": precision})})

    def gives_the_same_results(self, other: RunFile) -> bool:
        """Whether both give the same results; they may differ only in their use of the machine and their trackers."""
        return not self.differences(other)

    def differences(self, other: RunFile) -> list[str]:
        """Returns the names of the sections and keys that affect results and differ; paths are compared in full."""
        first, second = self._deciding(), other._deciding()
        return [name for name in type(self).model_fields if getattr(first, name) != getattr(second, name)]

    def _deciding(self) -> RunFile:
        machine = {"device": "auto", "report_to": "none", "head_cache": True, "image_cache": None}
        # A model without a tag has random weights, whether or not the run file allows it.
        fixed = {**machine, "random_weights": False, "finetune": self.finetune.deciding()}
        places = self.with_full_paths()
        return places.model_copy(update={**fixed, "pretrain": places.pretrain and places.pretrain.deciding()})

    def with_full_paths(self) -> RunFile:
        """This run file with all paths in full; those that are not are relative to the working directory."""
        return type(self).model_validate(with_full_paths(self.model_dump(mode="json")))

    def to_yaml(self) -> str:
        """Returns all settings as resolved, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False)


def _mixed_settings(source: str, finetune: Mapping[str, Any]) -> dict[str, Any]:
    mixing = finetune.get("mixing", "none")
    settings = {} if mixing == "none" else dict(MIXED_SETTINGS.get(source, {}))
    if isinstance(mixing, Mapping) and "probability" in mixing:  # it is the same setting under another name
        settings.pop("mixing_probability", None)
    if finetune.get("recipe") == "flyp":  # its loss has no label smoothing
        settings.pop("label_smoothing", None)
    return settings


def draws_validation(suite: str | SuiteFile) -> bool:
    """Whether the seed decides which training images of a suite are held out for validation."""
    if isinstance(suite, SuiteFile):
        return suite.reference.validation is None
    section = family_section(suite)
    return section is not None and section["reference"]["validation"] is None


def _source(model: str) -> str:
    """Returns the model that a classifier directory came from, or the name itself."""
    file = Path(model) / "classifier.json"
    return str(read_json(file).get("source", model)) if file.is_file() else model


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """Reads the keys and values of a YAML file.

    Raises an InputError, which refers to the file as ``what``, if it is missing, is not YAML or is not a mapping.
    """
    try:
        content = parse_yaml(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"the {what} {path} does not exist. Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a directory; a {what} in YAML is needed here, such as run.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"the {what} {path} is not valid YAML: {yaml_mistake(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"the {what} {path} must consist of keys and values, such as 'model: tiny'.")
    return content


def yaml_mistake(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """What is wrong with a YAML text, and where, in place of the parser's report of its own state."""
    if isinstance(error, UnicodeDecodeError | yaml.reader.ReaderError):
        return f"{error}. Save it as plain UTF-8 text."
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return str(error)
    mark, problem = error.problem_mark, error.problem or "it cannot be parsed"
    place = f"line {mark.line + 1}, column {mark.column + 1}"
    lines = (mark.buffer or "").splitlines()
    if mark.line < len(lines) and "\t" in lines[mark.line]:
        return f"line {mark.line + 1} has a tab. YAML is indented by spaces; replace every tab."
    begun = error.context_mark
    since = f", in what begins on line {begun.line + 1}" if begun is not None and begun.line != mark.line else ""
    return f"{problem} at {place}{since}. Check the indentation, colons, brackets and quotes there."


def copied(value: Any) -> Any:
    """Copies a mapping and its sections, so that keys can be set without modifying the caller's mapping."""
    return {key: copied(entry) for key, entry in value.items()} if isinstance(value, Mapping) else value


def override_key(plain: dict[str, Any], override: str) -> None:
    """Sets the dotted key of a text ``a.b.c=value``; the value is parsed as YAML, so that lists and numbers work.

    Raises an InputError if the text has another form.
    """
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise InputError(f"`overrides` {override!r} must look like finetune.lr=1e-5.")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError as error:
        raise InputError(f"`overrides` {override!r}: the value is not valid YAML: {yaml_mistake(error)}") from error
    place_key(plain, key, value)


def parse_alphas(text: str) -> list[float]:
    """Parses a list of alphas such as 0.3,0.5; raises an InputError that names a part which is no number from 0 to 1.

    >>> parse_alphas("0.3, 0.5")
    [0.3, 0.5]
    """
    alphas = []
    for part in text.split(","):
        try:
            alphas.append(float(part))
        except ValueError as error:
            raise InputError(f"`alphas`: {part!r} is not a number.") from error
        if not 0 <= alphas[-1] <= 1:
            comma = f" A comma separates two alphas.{point_hint(text)}" if "," in text else ""
            raise InputError(f"`alphas` is {text!r}; {part.strip()} is not between 0 and 1.{comma}")
    return alphas


def place_key(plain: dict[str, Any], key: str, value: Any) -> None:
    """Sets the value of a dotted key; raises an InputError if one of its parents is not a section."""
    *parents, last = key.split(".")
    section = plain
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(f"the key {key!r} cannot be set: {parent} is {section!r}, not a section.")
    section[last] = value


_SECTIONS: Mapping[str, Any] = {
    "": RunFile.model_fields,
    "finetune": [entry.name for entry in fields(FinetuneSettings)],
    "evaluation": EvaluationFile.model_fields,
    "pretrain": [entry.name for entry in fields(PretrainFile)],
    "suite": SuiteFile.model_fields,
    "suite.reference": ReferenceFile.model_fields,
    "suite.shifts": ShiftFile.model_fields,
}
