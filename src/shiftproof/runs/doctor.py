"""A checkup of a run file, a model or data: whatever is probably wrong with them, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from shiftproof.data.class_lists import load_class_space
from shiftproof.data.emoji.sets import EMOJI_SUITES
from shiftproof.data.families.registry import FAMILIES, SHIFT, family_section, split_family_name
from shiftproof.data.families.sizes import known_size
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.labels import ClassSpace
from shiftproof.data.near_duplicates import Thumbnails, read_thumbnails
from shiftproof.data.sets import ImageSet
from shiftproof.data.solar_cells import SOLAR_CELLS
from shiftproof.data.suites import VALIDATION, ShiftSuite, load_data, load_suite
from shiftproof.errors import InputError, require_choice
from shiftproof.models.clip import Clip, load_clip
from shiftproof.models.directories import load_classifier
from shiftproof.models.encoders import load_encoder
from shiftproof.models.expectations import has_unknown_activation, unexpected_settings
from shiftproof.models.names import is_encoder, with_weights
from shiftproof.models.prompts import read_prompts, texts_of
from shiftproof.models.zero_shot import warn_of_prompts
from shiftproof.records.checkups import ERROR, NOTE, SEVERITIES, WARNING, CheckedSet, Checkup, Finding
from shiftproof.runs.checks import (
    TEST,
    TRAIN,
    check_balance,
    check_classes,
    check_classes_of_family,
    check_count,
    check_decoded,
    check_files,
    check_lookalikes,
    check_shared_files,
    check_space,
    noting,
    sets_of,
    shift_name,
    spread_positions,
)
from shiftproof.runs.file import RunFile, SuiteFile
from shiftproof.runs.starts import ZERO_SHOT, head_of
from shiftproof.storage import expanded

RUN, MODEL, DATA = "run", "model", "data"
_EMBEDDED = (*EMOJI_SUITES, SOLAR_CELLS)
KINDS = (RUN, MODEL, DATA)
SAMPLE = 2000  # images of a set that are decoded unless all are


@dataclass(frozen=True)
class _Model:
    """A loaded model, as far as it is checked; ``clip`` is its text tower, ``classes`` are those of a classifier."""

    name: str
    preprocessing: Any
    architecture: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    clip: Clip | None = None
    classes: ClassSpace | None = None


@dataclass(frozen=True)
class _Data:
    """The data names of a target by the names of its sets, what each stands for, and which sets may lack classes."""

    names: Mapping[str, str]
    splits: Mapping[str, str] = field(default_factory=dict)
    partial: frozenset[str] = frozenset()


def kind_of(target: str, kind: str | None = None) -> str:
    """Whether a target is a run file, a model or data: "run", "model" or "data", unless a ``kind`` says so.

    Raises an InputError for an unknown kind.

    >>> kind_of("run.yaml"), kind_of("folder:photos"), kind_of("open_clip:ViT-B-32/openai")
    ('run', 'data', 'model')
    """
    if kind is not None:
        return require_choice("kind", kind, KINDS)
    scheme, _, rest = target.partition(":")
    if target.endswith((".yaml", ".yml")):
        return RUN
    if scheme == "hf":  # a model of transformers, unless it is a folder or file without its configuration
        place = expanded(rest)
        return DATA if place.exists() and not (place / "config.json").is_file() else MODEL
    return DATA if scheme in (*FORMATS, *FAMILIES, "corrupted", *_EMBEDDED) else MODEL


def run_checkup(
    target: str | Path,
    *,
    kind: str | None = None,
    overrides: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
    all_images: bool = False,
    out: str | Path | None = None,
) -> Checkup:
    """Checks a run file, a model or data, and returns what is probably wrong; nothing is written or trained.

    ``target`` is the path of a run file, which ``overrides`` and ``values`` change as in ``RunFile.read``, the name of
    a model or a classifier directory, or a data name; ``kind_of`` tells them apart. At most 2,000 images of each set
    are decoded, spread over it, unless ``all_images``. ``out`` is the directory that the run would write to, whose free
    space is checked. Raises an InputError for a run file that cannot be read; what else is wrong is a finding.
    """
    sample = None if all_images else SAMPLE
    chosen, name = kind_of(str(target), kind), str(target)
    if chosen == RUN:
        return _check_run(RunFile.read(name, overrides, values), name, sample, Path(out or "."))
    if given := [*overrides, *(f"{key}={value}" for key, value in (values or {}).items())]:
        raise InputError(
            f"{given[0]!r} sets a key of a run file, and {name!r} is checked as {chosen}, which has none. Leave it "
            "out, or give a run file."
        )
    if chosen == DATA:
        data, findings = noting(name, lambda: _data_of(name))
        if data is None:
            return _checkup(name, findings)
        _, trouble, checked = _check_data(*_load(data, seed=0), data, sample)
        return _checkup(name, findings + trouble, checked)
    model, findings = noting(name, lambda: _load_model(name))
    return _checkup(name, findings + (_check_settings(model) if model else []))


def _check_run(run_file: RunFile, name: str, sample: int | None, out: Path) -> Checkup:
    suite = run_file.suite
    data = _section_data(suite.model_dump()) if isinstance(suite, SuiteFile) else _data_of(suite)
    sets, findings, checked = _check_data(*_load(data, seed=run_file.seed), data, sample)
    model, trouble = noting(run_file.model, lambda: _load_start(run_file))
    findings += trouble
    classes = sets[TRAIN].classes if TRAIN in sets else None
    if model is not None:
        findings += _check_settings(model)
        findings += _check_classes_of_start(run_file, model, classes)
        weights = sum(tensor.nbytes for tensor in model.weights.values())
        findings += check_space(out, weights, len(classes or ()), sets, run_file.finetune)
    return _checkup(name, findings, checked)


def _checkup(target: str, findings: list[Finding], sets: tuple[CheckedSet, ...] = ()) -> Checkup:
    ordered = sorted(dict.fromkeys(findings), key=lambda finding: SEVERITIES.index(finding.severity))
    return Checkup(target, tuple(ordered), sets)


def _data_of(name: str) -> _Data:
    """The sets of a data name: those of a suite, or the one that it stands for."""
    kind = name.partition(":")[0]
    if kind in FAMILIES and FAMILIES[kind].shifts is not None and not split_family_name(name)[1]:
        section = family_section(name)
        return _section_data(section) if section else _Data({name: name})
    return _Data({name: name})


def _section_data(section: Mapping[str, Any]) -> _Data:
    reference, shifts = section["reference"], section["shifts"]
    names = {split: reference[split] for split in (TRAIN, VALIDATION, TEST) if reference.get(split)}
    splits = {split: split for split in names} | {shift_name(shift): SHIFT for shift in shifts}
    partial = frozenset(shift_name(shift) for shift, entry in shifts.items() if entry.get("partial"))
    return _Data(names | {shift_name(shift): entry["data"] for shift, entry in shifts.items()}, splits, partial)


def _load(data: _Data, *, seed: int) -> tuple[dict[str, ImageSet], list[Finding]]:
    """The sets that can be loaded, each in its own class space, and the findings on the others."""
    sets: dict[str, ImageSet] = {}
    findings: list[Finding] = []
    for name, spec in data.names.items():
        if spec in _EMBEDDED and not data.splits:
            suite, trouble = noting(name, _loading_suite(spec, seed))
            findings += trouble
            sets |= {} if suite is None else sets_of(suite)
            continue
        images, trouble = noting(name, _loading(spec, data.splits.get(name, TEST), seed))
        findings += trouble
        if images is not None:
            sets[name] = images
    return sets, findings


def _loading_suite(spec: str, seed: int) -> Callable[[], ShiftSuite]:
    return lambda: load_suite(spec, seed=seed)


def _loading(spec: str, split: str, seed: int) -> Callable[[], ImageSet]:
    return lambda: load_data(spec, split=split, seed=seed)


def _check_data(
    sets: dict[str, ImageSet], findings: list[Finding], data: _Data, sample: int | None
) -> tuple[dict[str, ImageSet], list[Finding], tuple[CheckedSet, ...]]:
    findings = list(findings)
    thumbnails: dict[str, Thumbnails] = {}
    classes = sets[TRAIN].classes if TRAIN in sets else None
    for name, images in sets.items():
        findings += check_count(name, images.name, len(images)) + check_classes_of_family(name, images)
        if classes is not None:
            findings += check_classes(name, images, classes, partial=name in data.partial)
        unusable = check_files(name, images)
        findings += unusable
        if unusable:
            continue
        thumbnails[name] = read_thumbnails(images, [] if _is_drawn(images) else spread_positions(len(images), sample))
        findings += check_decoded(name, thumbnails[name])
    if TRAIN in sets:
        findings += check_balance(TRAIN, sets[TRAIN])
    for name, images in sets.items():
        if name == TRAIN or TRAIN not in sets:
            findings += _check_number_of_classes(name, images)
    findings += check_shared_files(sets)
    compared = {name: images for name, images in sets.items() if name in thumbnails}
    findings += check_lookalikes(compared, thumbnails)
    return sets, findings, tuple(_checked_set(name, images, thumbnails.get(name)) for name, images in sets.items())


def _is_drawn(images: ImageSet) -> bool:
    """Whether the images are drawn when they are read, such as those of the emoji: they are no files to be decoded."""
    return images.files is None and images.mask is not None


def _check_number_of_classes(name: str, images: ImageSet) -> list[Finding]:
    if len(images.classes) > 1:
        return []
    problem = f"{images.name} has only one class, {images.classes.ids[0]!r}; a classifier needs two."
    return [Finding(ERROR, name, problem, "A folder must look like class/image.jpg.")]


def _checked_set(name: str, images: ImageSet, thumbnails: Thumbnails | None) -> CheckedSet:
    counts = np.bincount(images.labels, minlength=len(images.classes))
    counts = counts[counts > 0]
    size = known_size(images.name)
    return CheckedSet(
        name=name,
        data=images.name,
        images=len(images),
        classes=len(counts),
        smallest=int(counts.min()),
        largest=int(counts.max()),
        decoded=0 if thumbnails is None else len(thumbnails.positions),
        known=None if size is None else size.images,
    )


def _load_start(run_file: RunFile) -> _Model:
    """The model of a run file; raises an InputError where it cannot be a start."""
    model = _load_model(run_file.model, run_file.weights, seed=run_file.seed, random_weights=run_file.random_weights)
    if model.classes is None:
        head_of(run_file.model, run_file.head, run_file.weights)
    return model


def _load_model(name: str, weights: str | None = None, *, seed: int = 0, random_weights: bool = False) -> _Model:
    if (expanded(name) / "classifier.json").is_file():
        loaded = load_classifier(name)
        return _Model(
            loaded.source, loaded.preprocessing, loaded.architecture, loaded.state_dict(), classes=loaded.classes
        )
    if weights is not None:
        name, random_weights = with_weights(name, weights), True
    if is_encoder(name):
        encoder = load_encoder(name, seed=seed, random_weights=random_weights)
        return _Model(name, encoder.preprocessing, encoder.architecture, encoder.model.state_dict())
    clip = load_clip(name, seed=seed, random_weights=random_weights)
    return _Model(name, clip.preprocessing, clip.architecture, clip.model.state_dict(), clip)


def _check_settings(model: _Model) -> list[Finding]:
    """Whether normalisation and activation are those of the weights, and whether the weights are finite."""
    findings = [
        Finding(ERROR, model.name, sentence, "Restore the model's configuration, or name the model by its library.")
        for sentence in unexpected_settings(model.name, model.preprocessing, model.architecture)
    ]
    if has_unknown_activation(model.name, model.architecture):
        problem = "The weights come from a file that does not say whether they were trained with QuickGELU."
        remedy = (
            "If they go back to OpenAI's, name the architecture with -quickgelu, e.g. open_clip:ViT-B-32-quickgelu."
        )
        findings.append(Finding(NOTE, model.name, problem, remedy))
    broken = [key for key, tensor in model.weights.items() if not bool(tensor.isfinite().all())]
    if broken:
        problem = f"The weights {broken[0]!r} and {len(broken) - 1} others contain values that are not finite."
        findings.append(Finding(ERROR, model.name, problem, "Restore or download them again."))
    return findings


def _check_classes_of_start(run_file: RunFile, model: _Model, classes: ClassSpace | None) -> list[Finding]:
    """Whether the start has the classes of the training images, and whether its prompts make sense."""
    if run_file.classes is not None:
        listed_classes, findings = noting("classes", lambda: load_class_space(str(run_file.classes), classes))
        classes = listed_classes or classes
    else:
        findings = []
    if classes is None:
        return findings
    known = model.classes
    if known is not None and run_file.classes is None:
        return findings + noting(run_file.model, lambda: known.labels_of(list(classes.ids), TRAIN))[1]
    if model.clip is None or (run_file.head or ZERO_SHOT) != ZERO_SHOT:
        return findings
    return findings + _check_prompts(run_file, model.clip, classes)


def _check_prompts(run_file: RunFile, clip: Clip, classes: ClassSpace) -> list[Finding]:
    texts, findings = noting("prompts", lambda: texts_of(read_prompts(run_file.prompts), classes))
    if texts is None:
        return findings
    findings += noting("prompts", lambda: warn_of_prompts(clip, texts, classes))[1]
    first: dict[tuple[str, ...], str] = {}
    for class_id, of_class in zip(classes.ids, texts, strict=True):
        earlier = first.setdefault(tuple(text.casefold() for text in of_class), class_id)
        if earlier != class_id:
            problem = (
                f"The classes {earlier!r} and {class_id!r} have the same prompts, so one is hardly ever predicted."
            )
            findings.append(Finding(WARNING, "prompts", problem, "Merge them, or give them different names."))
    if numbers := [name for name in classes.names if name.strip().isdigit()]:
        problem = f"{len(numbers)} of {len(classes)} class names are numbers, e.g. {numbers[0]!r}, which say nothing."
        findings.append(Finding(WARNING, "prompts", problem, "Name the classes in words with `classes`."))
    return findings
