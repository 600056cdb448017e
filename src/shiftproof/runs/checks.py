"""Checks of sets, models and the machine, each of which returns its findings; ``doctor`` makes all, ``run`` some."""

from __future__ import annotations

import contextlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from shiftproof.data.duplicates import find_shared_files
from shiftproof.data.families.sizes import known_size
from shiftproof.data.labels import ClassSpace
from shiftproof.data.near_duplicates import Thumbnails, find_lookalikes
from shiftproof.data.readable import missing_files
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import VALIDATION, ShiftSuite
from shiftproof.errors import InputError, counted, listed
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.records.checkups import ERROR, NOTE, WARNING, Finding
from shiftproof.storage import is_pointer

Result = TypeVar("Result")
TRAIN, TEST = "train", "test"
_POINTER_BYTES = 1024  # a pointer of Git LFS is shorter
_SHARED = 0.01  # a share of a test set that is also in the training set from which its accuracy is not to be trusted
_UNBALANCED = 20  # times the images of the smallest class that the largest one has
_PACKAGE = Path(__file__).parents[1]
_SENTENCES = re.compile(r"(?<!e\.g)(?<!i\.e)(?<=[.?!]) (?=[A-Z`'\"])")  # between two sentences
_STATES = 4  # a trained weight comes with its gradient and the two moments of AdamW


def noting(subject: str, action: Callable[[], Result]) -> tuple[Result | None, list[Finding]]:
    """Does something, and returns its result, None if it failed, with its error and its warnings as findings."""
    result, findings = None, []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = action()
        except (InputError, OSError) as error:
            findings.append(_of_message(ERROR, subject, str(error)))
    ours = [str(entry.message) for entry in caught if issubclass(entry.category, UserWarning) and _is_ours(entry)]
    return result, findings + [_of_message(WARNING, subject, message) for message in dict.fromkeys(ours)]


def _is_ours(entry: warnings.WarningMessage) -> bool:
    return Path(entry.filename).is_relative_to(_PACKAGE)


def _of_message(severity: str, subject: str, message: str) -> Finding:
    """A finding from a message whose last sentence says what to do, unless it has only one."""
    *sentences, remedy = _SENTENCES.split(message)
    if not sentences:
        return Finding(severity, subject, message, "Check that this is meant.")
    return Finding(severity, subject, message.removesuffix(remedy).rstrip(), remedy)


def check_count(name: str, data: str, images: int) -> list[Finding]:
    """Whether a set has as many images as its public data set is known to have."""
    size = known_size(data)
    if size is None or size.images == images:
        return []
    return [
        Finding(
            WARNING,
            name,
            f"{data} has {counted(images, 'image')}; the published set has {size.images:,}.",
            "Download or unpack it again, unless you have selected some images.",
        )
    ]


def check_counts(suite: ShiftSuite) -> list[Finding]:
    """Whether the sets of a suite have as many images as their public data sets are known to have."""
    held_out = suite.reference.held_out
    totals = {name: (images.name, len(images)) for name, images in sets_of(suite).items()}
    if held_out is not None:
        totals[TRAIN] = (suite.reference.train.name, held_out.total)
        del totals[VALIDATION]
    return [finding for name, (data, total) in totals.items() for finding in check_count(name, data, total)]


def check_classes_of_family(name: str, images: ImageSet) -> list[Finding]:
    """Whether a set has the classes that its public data set has, and equally many images of each where it has."""
    size, counts = known_size(images.name), np.bincount(images.labels, minlength=len(images.classes))
    if size is None:
        return []
    findings = []
    if (present := int((counts > 0).sum())) != size.classes:
        problem = f"{images.name} has images of {present:,} classes; the published set has {size.classes:,}."
        findings.append(Finding(WARNING, name, problem, "Restore the folders of the classes that it lacks."))
    each = size.images // size.classes
    if size.balanced and (odd := [images.classes.ids[i] for i in np.flatnonzero((counts > 0) & (counts != each))]):
        problem = f"{images.name} has not the published {each:,} images of the classes {listed(odd, 5)}."
        findings.append(Finding(WARNING, name, problem, "Download or unpack them again."))
    return findings


def check_classes(name: str, images: ImageSet, classes: ClassSpace, *, partial: bool) -> list[Finding]:
    """Whether a set has exactly the classes of the training images; only a ``partial`` one may lack some."""
    matched, findings = noting(name, lambda: images.relabelled(classes))
    if matched is None or partial:
        return findings
    present = set(matched.labels.tolist())
    if missing := [label for i, label in enumerate(classes.ids) if i not in present]:
        shift = name not in (TRAIN, VALIDATION, TEST)
        problem = f"{images.name} has no image of {listed(missing, 5)}, which the training images have."
        remedy = "Add images of them, or mark the shift as partial." if shift else "Add images of them."
        findings.append(Finding(WARNING if shift else ERROR, name, problem, remedy))
    return findings


def check_balance(name: str, images: ImageSet) -> list[Finding]:
    """Whether the largest class of the training images dwarfs the smallest."""
    counts = np.bincount(images.labels, minlength=len(images.classes))
    counts = counts[counts > 0]
    if len(counts) == 0 or counts.max() <= _UNBALANCED * counts.min():
        return []
    problem = f"The largest class has {counts.max():,} images and the smallest {counts.min():,}."
    return [Finding(NOTE, name, problem, "Look at the accuracy of each class, not only at their mean over images.")]


def check_files(name: str, images: ImageSet) -> list[Finding]:
    """Whether all files of a set exist, and whether any is the pointer of a file that Git LFS has not downloaded."""
    paths = [source for source in images.files or () if isinstance(source, Path)]
    findings = []
    if missing := missing_files(paths):
        problem = f"{len(missing):,} of {counted(len(paths), 'file')} do not exist, the first of them {missing[0]}."
        findings.append(Finding(ERROR, name, problem, "Restore them, or remove their entries from the data."))
    if pointers := [path for path in paths if _is_pointer(path)]:
        problem = f"{counted(len(pointers), 'file')} of {len(paths):,} are Git LFS pointers, such as {pointers[0]}."
        findings.append(Finding(ERROR, name, problem, "Run `git lfs pull` in their repository."))
    return findings


def _is_pointer(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size < _POINTER_BYTES and is_pointer(path)
    return False


def check_decoded(name: str, thumbnails: Thumbnails) -> list[Finding]:
    """Whether the pictures that were decoded could be."""
    failures = thumbnails.failures
    if not failures:
        return []
    total = len(failures) + len(thumbnails.positions)
    problem = f"{len(failures):,} of {counted(total, 'picture')} cannot be decoded, e.g.: {failures[0]}"
    return [Finding(ERROR, name, problem, "Fix or remove them.")]


def sets_of(suite: ShiftSuite) -> dict[str, ImageSet]:
    """The sets of a suite by the names that findings call them."""
    reference = suite.reference
    sets = {TRAIN: reference.train, VALIDATION: reference.validation, TEST: reference.test}
    return sets | {shift_name(shift.name): shift.data for shift in suite.shifts}


def shift_name(name: str) -> str:
    """What findings call a shift, which may have the name of a split."""
    return f"the shift {name}"


def pairs_of(sets: Mapping[str, ImageSet]) -> list[tuple[str, str]]:
    """The pairs of sets that must not share pictures: those that a model is trained or chosen on, with all others."""
    fitted = [name for name in (TRAIN, VALIDATION) if name in sets]
    others = [name for name in sets if name not in fitted]
    inner = [(TRAIN, VALIDATION)] if len(fitted) == 2 else []
    return inner + [(first, second) for second in others for first in fitted]


def check_shared_files(sets: Mapping[str, ImageSet]) -> list[Finding]:
    """Whether pictures of the training or the validation split are also in a set that models are tested on."""
    findings = []
    for shared in find_shared_files(sets, pairs_of(sets)):
        first, second = shared.example
        leaks = shared.first == TRAIN and shared.second != VALIDATION and shared.count >= _SHARED * shared.total
        findings.append(
            Finding(
                ERROR if leaks else WARNING,
                shared.second,
                f"{shared.count:,} of the {shared.total:,} pictures of {shared.second} are also in {shared.first} "
                f"({second} is {first}).",
                "Accuracy on them is not that on new pictures. Remove them from one of the two.",
            )
        )
    return findings


def check_lookalikes(sets: Mapping[str, ImageSet], thumbnails: Mapping[str, Thumbnails]) -> list[Finding]:
    """Whether pictures that were decoded look like one of the training or the validation split."""
    return [
        Finding(
            WARNING,
            alike.second,
            f"{alike.count:,} of {counted(alike.compared, 'picture')} of {alike.second} look like one of {alike.first} "
            f"({alike.example[1]} like {alike.example[0]}).",
            "If they are copies or frames of one video, remove them from one of the two.",
        )
        for alike in find_lookalikes(sets, thumbnails, pairs_of(sets))
    ]


def check_space(
    out: Path, weights: int, classes: int, sets: Mapping[str, ImageSet], settings: FinetuneSettings
) -> list[Finding]:
    """Whether disk and memory suffice for a run with ``weights`` bytes of a model on some sets, by a rough estimate.

    On disk there are three classifiers, the checkpoints with the states of the optimiser, and the logits of every set;
    in memory the weights, gradients and states of a training run. Activations are not counted.
    """
    rows = sum(len(images) for name, images in sets.items() if name != TRAIN)
    disk = 3 * weights + settings.checkpoints_kept * _STATES * weights + rows * 3 * 4 * classes
    return [
        Finding(ERROR if place == "disk" else WARNING, place, problem, remedy)
        for place, problem, remedy in (*_short_of_disk(out, disk), *_short_of_memory((1 + _STATES) * weights))
    ]


def _short_of_disk(out: Path, needed: int) -> Iterator[tuple[str, str, str]]:
    folder = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    if (free := shutil.disk_usage(folder).free) < needed:
        problem = f"The run writes about {needed / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB free."
        yield "disk", problem, "Free some space, choose another `out`, or lower finetune.checkpoints_kept."


def _short_of_memory(needed: int) -> Iterator[tuple[str, str, str]]:
    import psutil

    if (free := psutil.virtual_memory().available) < needed:
        problem = f"Training needs more than {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are available."
        yield "memory", problem, "End other programs, choose a smaller model, or use a larger machine."


def spread_positions(count: int, sample: int | None) -> Sequence[int]:
    """Positions that are spread over a set of ``count`` images: ``sample`` of them, or all if it is None.

    >>> spread_positions(10, 4)
    [0, 3, 6, 9]
    """
    if sample is None or count <= sample:
        return range(count)
    return [int(position) for position in np.linspace(0, count - 1, sample).round()]
