"""The alpha path from zero-shot to fine-tuned: the accuracy of every alpha on every set. `rules` chooses among them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof import progress
from shiftproof.data.batches import decoded_once, evaluation_batches, warn_of_conversions
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import VALIDATION, ShiftSuite, require_suite
from shiftproof.ensembling.interpolation import (
    SPACES,
    Along,
    logits_along,
    reestimated_statistics,
    require_reestimable,
)
from shiftproof.errors import InputError, require_between, require_choice
from shiftproof.evaluation.inference import BATCH_SIZE, require_its_classes
from shiftproof.evaluation.metrics import Scores, scores
from shiftproof.evaluation.predictions import Add
from shiftproof.evaluation.proportions import Proportion, measure_proportion
from shiftproof.evaluation.sharing import Processes
from shiftproof.models.classifier import Classifier, require_same_task
from shiftproof.models.devices import resolve_device
from shiftproof.records.paths import PathPoint, PathRecord

# What takes the logits of an alpha on a set, if anything does; it is closed after the last batch.
Keep: TypeAlias = Callable[[float, str], contextlib.AbstractContextManager[Add] | None]
# What takes the compact predictions of an alpha on a set when its last batch is done.
Collect: TypeAlias = Callable[[float, str, Scores], object]
# Which of a set's (N,) images an alpha classified correctly in an earlier sweep; None where that is not known.
Known: TypeAlias = Callable[[float, str], NDArray[np.bool_] | None]
# What each of several alphas gives on a batch: the compact predictions and, where they are kept, the logits.
_Measured: TypeAlias = list[tuple[Scores, NDArray[np.float32] | None]]


def alpha_grid(alphas: int | Sequence[float]) -> tuple[float, ...]:
    """Returns so many evenly spaced alphas from 0 to 1, or the given ones in rising order, each once.

    Raises an InputError for fewer than two alphas, for none, and for an alpha outside of 0 to 1.

    >>> alpha_grid(3)
    (0.0, 0.5, 1.0)
    """
    if isinstance(alphas, int):
        if alphas < 2:
            raise InputError(f"`alphas` is {alphas}; a path needs at least two, one for each end.")
        return tuple(round(i / (alphas - 1), 10) for i in range(alphas))
    grid = tuple(sorted({require_between("alpha", float(alpha), 0, 1) for alpha in alphas}))
    if not grid:
        raise InputError("`alphas` is empty; name at least one alpha.")
    return grid


def path_sets(suite: ShiftSuite) -> dict[str, ImageSet]:
    """Returns the sets that a path is measured on, by name: the reference's validation split and every test set."""
    return {VALIDATION: suite.reference.validation, **suite.test_sets}


def sweep_alpha(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    suite: ShiftSuite,
    alphas: int | Sequence[float] = 11,
    *,
    space: str = "weights",
    device: str | torch.device = "auto",
    precision: str = "float32",
    keep: Keep | None = None,
    collect: Collect | None = None,
    known: Known | None = None,
    batch_norm_images: ImageSet | None = None,
    together: bool = False,
) -> PathRecord:
    """Measures the accuracy along the alpha path: on the reference's validation and test splits and on every shift.

    This is the curve of WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, Eq. 1), in fractions. ``alphas`` is a number
    of evenly spaced alphas, or the alphas themselves. Every image is decoded once and shown to all alphas, whose
    weights are interpolated in place into one working copy of the network; on the CPU, the logits are those of
    ``wise_ft`` at each alpha, bit for bit. ``space="outputs"`` interpolates the logits of the two ends instead
    (``output_ensemble``). Where only the head differs, the two spaces are one function, and the encoder runs once for
    all alphas.

    The running statistics of batch norm are interpolated like all other entries, unless ``batch_norm_images`` are given
    (the reference's training images): then they are re-estimated on these at every alpha between 0 and 1, as
    ``reestimate_batch_norm`` does, while the two ends keep their own. Each of these alphas costs another pass over the
    images.

    ``keep(alpha, set)`` returns a context manager whose value takes the (B, K) float32 logits of that pair batch by
    batch, validation included, or None; if the sweep is interrupted, the manager's exit receives the exception.
    ``collect(alpha, set, scores)`` takes the compact predictions of a pair when its set is done. Where
    ``known(alpha, set)`` returns which (N,) images are correct instead of None, the pair is not run again. ``device``
    is any torch device; "auto" means the GPU if there is one, and the CPU otherwise. ``precision`` is that of the
    encoder, as in ``predict``; the weights are interpolated in float32. With ``together``, every process of the job
    calls this function: each runs its share of the batches, and all of them get the record of all images. Only the
    main one calls ``keep``, ``collect`` and ``known``.

    Raises an IncompatibleWeightsError if the two classifiers differ in classes, preprocessing or architecture, and an
    InputError for an alpha outside of 0 to 1, for an unknown space, for a suite of other classes, for a device or a
    precision that cannot be used, and for ``batch_norm_images`` where the networks have no batch norm or where outputs
    are interpolated.

    >>> from shiftproof import load_clip, load_suite, zero_shot_classifier
    >>> suite = load_suite("emoji")
    >>> zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    >>> sweep_alpha(zero, zero, suite, 3, known=lambda alpha, name: np.ones(len(path_sets(suite)[name]), bool)).alphas
    (0.0, 0.5, 1.0)
    """
    require_suite(suite)
    grid, sets = alpha_grid(alphas), path_sets(suite)
    run: dict[str, Any] = {"space": space, "device": device, "precision": precision, "together": together}
    pairs: dict[str, Any] = {"keep": keep, "collect": collect, "known": known}
    shares = sweep_sets(zero_shot, fine_tuned, sets, grid, batch_norm_images=batch_norm_images, **run, **pairs)
    points = [_point(alpha, {name: shares[name][alpha] for name in sets}) for alpha in grid]
    return PathRecord(suite.reference.name, tuple(shift.name for shift in suite.shifts), tuple(points))


def sweep_sets(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: Sequence[float],
    *,
    space: str = "weights",
    device: str | torch.device = "auto",
    precision: str = "float32",
    keep: Keep | None = None,
    collect: Collect | None = None,
    known: Known | None = None,
    batch_norm_images: ImageSet | None = None,
    together: bool = False,
) -> dict[str, dict[float, Proportion]]:
    """Does what ``sweep_alpha`` does on any sets; returns the accuracy of every alpha, by set."""
    require_same_task(zero_shot, fine_tuned)
    require_choice("space", space, SPACES)
    if batch_norm_images is not None:
        require_reestimable(zero_shot, space)
    grid, place, processes = alpha_grid(alphas), resolve_device(device), Processes(together)
    for images in sets.values():
        require_its_classes(zero_shot, images)
    shares = {
        name: {
            alpha: measure_proportion(right, images.clusters.names)
            for alpha in grid
            if known and processes.leads and (right := known(alpha, name)) is not None
        }
        for name, images in sets.items()
    }
    missing = processes.broadcast({name: [alpha for alpha in grid if alpha not in shares[name]] for name in sets})
    unmeasured, ends = sorted({alpha for few in missing.values() for alpha in few}), (zero_shot, fine_tuned)
    statistics = reestimated_statistics(*ends, unmeasured, batch_norm_images, place, processes)
    along = logits_along(*ends, space, place, precision, statistics)
    total = len(grid) * sum(map(len, sets.values()))
    done = total - sum(len(images) * len(missing[name]) for name, images in sets.items())

    def seen(images: int) -> None:
        nonlocal done
        done += images
        progress.report("sweep", done, total)

    for name in filter(missing.get, sets):
        images = sets[name]
        with contextlib.ExitStack() as opened:
            # What is opened last is closed first, so that files appear in the order of alpha.
            managers = {a: keep(a, name) for a in reversed(missing[name])} if keep and processes.leads else {}
            adds = {a: opened.enter_context(manager) for a, manager in managers.items() if manager is not None}
            kept = processes.broadcast(frozenset(adds))
            measure = functools.partial(_measured, along, zero_shot.preprocessing, place, missing[name], kept)
            measured = _sweep_set(measure, images, missing[name], adds, processes, seen)
        for alpha, found in measured.items():
            shares[name][alpha] = measure_proportion(found.prediction == images.labels, images.clusters.names)
            if collect:
                collect(alpha, name, found)
    return processes.broadcast(shares)


def sweep_scores(
    first: Classifier,
    second: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: int | Sequence[float] = 11,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
) -> dict[float, dict[str, Scores]]:
    """Returns the compact predictions of every alpha between two classifiers on labelled sets, by alpha and set."""
    by_alpha: dict[float, dict[str, Scores]] = {alpha: {} for alpha in alpha_grid(alphas)}

    def collect(alpha: float, name: str, found: Scores) -> None:
        by_alpha[alpha][name] = found

    sweep_sets(first, second, sets, alpha_grid(alphas), device=device, precision=precision, collect=collect)
    return by_alpha


def _batches(images: ImageSet, preprocessing: Preprocessing, device: str) -> Iterator[Tensor]:
    """Yields the batches that ``predict`` makes, on the device."""
    if torch.device(device).type != "cpu":
        for batch in evaluation_batches(images, preprocessing, BATCH_SIZE):
            yield batch.to(device)
        return
    for start in range(0, len(images), BATCH_SIZE):
        # Decode between the passes of the model, not ahead of them: every core computes a part of each layer, so a
        # thread that decodes at the same time would delay all of them.
        few = images.subset(range(start, min(start + BATCH_SIZE, len(images))))
        few = replace(few, conversions=())  # one warning for the whole set follows
        yield from evaluation_batches(decoded_once(few, preprocessing), preprocessing, BATCH_SIZE)
    warn_of_conversions(images)


def _measured(
    along: Along,
    preprocessing: Preprocessing,
    device: str,
    alphas: Sequence[float],
    kept: frozenset[float],
    images: ImageSet,
) -> Iterator[_Measured]:
    """Yields what the alphas give on each batch of the images."""
    start, projection = 0, images.projection
    for batch in _batches(images, preprocessing, device):
        labels = images.labels[start : start + len(batch)]
        start += len(batch)
        measured: _Measured = []
        with torch.inference_mode():  # not around the yield, where it would stay active in the caller
            for alpha, logits in zip(alphas, along(batch, alphas), strict=True):
                values = logits.float().cpu().numpy()
                scored = values if projection is None else projection.apply(values)
                measured.append((scores(scored, labels), values if alpha in kept else None))
        yield measured


def _sweep_set(
    measure: Callable[[ImageSet], Iterator[_Measured]],
    images: ImageSet,
    alphas: Sequence[float],
    adds: Mapping[float, Add],
    processes: Processes,
    seen: Callable[[int], None],
) -> dict[float, Scores]:
    """Runs over a set once; the leading process gets the compact predictions of each alpha.

    ``adds`` receive the logits of the models.
    """
    parts: dict[float, list[Scores]] = {alpha: [] for alpha in alphas}
    for positions, measured in processes.in_batches(images, BATCH_SIZE, measure):
        for alpha, (part, logits) in zip(alphas, measured, strict=True):
            parts[alpha].append(part)
            if logits is not None:
                adds[alpha](logits)
        seen(len(alphas) * len(positions))
    return {alpha: Scores.concatenated(part) for alpha, part in parts.items() if part}


def _point(alpha: float, shares: dict[str, Proportion]) -> PathPoint:
    validation = shares.pop(VALIDATION)
    return PathPoint(
        alpha=alpha,
        validation=validation.value,
        accuracy={name: share.value for name, share in shares.items()},
        interval={name: share.interval for name, share in shares.items()},
        validation_interval=validation.interval,
        interval_method={name: share.method for name, share in shares.items()},
    )
