"""The alpha path from zero-shot to fine-tuned: the accuracy of every alpha on every set. `rules` chooses among them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof import progress
from shiftproof.data.batches import decoded_once, evaluation_batches
from shiftproof.data.loading import Preprocessing
from shiftproof.data.sets import ImageSet
from shiftproof.data.suites import VALIDATION, ShiftSuite, require_suite
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.ensembles import mixed_logits, wise_ft
from shiftproof.ensembling.heads import TextTowers
from shiftproof.errors import InputError, require_between, require_choice
from shiftproof.evaluation.inference import BATCH_SIZE, require_its_classes
from shiftproof.evaluation.metrics import ScoreCollector, Scores, correct_rows
from shiftproof.evaluation.predictions import Add
from shiftproof.evaluation.proportions import Proportion, measure_proportion
from shiftproof.models.classifier import Classifier, Network, require_same_task
from shiftproof.models.devices import resolve_device
from shiftproof.models.memory import lay_out, uses_channels_last
from shiftproof.models.precision import resolved_precision
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.weights.arithmetic import combine, is_running_statistic, path_coefficients, require_compatible

SPACES = ("weights", "outputs")
# What takes the logits of an alpha on a set; it is closed after the last batch.
Keep: TypeAlias = Callable[[float, str], contextlib.AbstractContextManager[Add]]
# Which of a set's (N,) images an alpha classified correctly in an earlier sweep; None where that is not known.
Known: TypeAlias = Callable[[float, str], NDArray[np.bool_] | None]
# The logits of a batch at each of several alphas, in their order.
_Along: TypeAlias = Callable[[Tensor, Sequence[float]], Iterator[Tensor]]
# The entries at an alpha that are not interpolated: a head that is rebuilt, statistics that are re-estimated.
_Replaced: TypeAlias = Callable[[float], Mapping[str, Tensor]]


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
    known: Known | None = None,
    batch_norm_images: ImageSet | None = None,
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
    batch, validation included; if the sweep is interrupted, the manager's exit receives the exception. Where
    ``known(alpha, set)`` returns which (N,) images are correct instead of None, the pair is not run again. ``device``
    is any torch device; "auto" means the GPU if there is one, and the CPU otherwise. ``precision`` is that of the
    encoder, as in ``predict``; the weights are interpolated in float32.

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
    shares = sweep_sets(
        zero_shot,
        fine_tuned,
        sets,
        grid,
        space=space,
        device=device,
        precision=precision,
        keep=keep,
        known=known,
        batch_norm_images=batch_norm_images,
    )
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
    known: Known | None = None,
    batch_norm_images: ImageSet | None = None,
) -> dict[str, dict[float, Proportion]]:
    """Does what ``sweep_alpha`` does on any sets; returns the accuracy of every alpha, by set."""
    require_same_task(zero_shot, fine_tuned)
    require_choice("space", space, SPACES)
    if batch_norm_images is not None:
        _require_reestimable(zero_shot, space)
    grid, place, ends = alpha_grid(alphas), resolve_device(device), (zero_shot, fine_tuned)
    for images in sets.values():
        require_its_classes(zero_shot, images)
    shares = {
        name: {
            alpha: measure_proportion(right, images.clusters.names)
            for alpha in grid
            if known and (right := known(alpha, name)) is not None
        }
        for name, images in sets.items()
    }
    missing = {name: [alpha for alpha in grid if alpha not in shares[name]] for name in sets}
    unmeasured = sorted({alpha for alphas in missing.values() for alpha in alphas})
    statistics = {} if batch_norm_images is None else _statistics(*ends, unmeasured, batch_norm_images, place)
    along = _along(*ends, space, place, precision, statistics)
    done = sum(len(images) * len(shares[name]) for name, images in sets.items())
    total = len(grid) * sum(map(len, sets.values()))

    def seen(images: int) -> None:
        nonlocal done
        done += images
        progress.report("sweep", done, total)

    for name, images in sets.items():
        if missing[name]:
            batches = _batches(images, zero_shot.preprocessing, place)
            with contextlib.ExitStack() as opened:
                # What is opened last is closed first, so that files appear in the order of alpha.
                adds = {a: opened.enter_context(keep(a, name)) for a in reversed(missing[name])} if keep else {}
                shares[name] |= _measured(along, batches, images, missing[name], seen, adds)
    return shares


def sweep_scores(
    first: Classifier,
    second: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: int | Sequence[float] = 11,
    *,
    device: str | torch.device = "auto",
) -> dict[float, dict[str, Scores]]:
    """Returns the compact predictions of every alpha between two classifiers on labelled sets, by alpha and set."""
    by_alpha: dict[float, dict[str, Scores]] = {alpha: {} for alpha in alpha_grid(alphas)}

    @contextlib.contextmanager
    def collect(alpha: float, name: str) -> Iterator[Add]:
        collector = ScoreCollector(sets[name].labels, sets[name].projection)
        yield collector.add
        by_alpha[alpha][name] = collector.whole()

    sweep_sets(first, second, sets, alpha_grid(alphas), device=device, keep=collect)
    return by_alpha


def ensemble_on_path(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    alpha: float,
    *,
    device: str | torch.device = "auto",
    batch_norm_images: ImageSet | None = None,
) -> Classifier:
    """Returns the classifier that ``sweep_alpha`` measures at an alpha, in the space of weights."""
    ensemble = wise_ft(zero_shot, fine_tuned, alpha)
    if batch_norm_images is None or alpha in (0, 1):
        return ensemble
    return reestimate_batch_norm(ensemble, batch_norm_images, device=device)


def _require_reestimable(classifier: Classifier, space: str) -> None:
    """Raises an InputError where a path has no averaged network whose batch norm could be re-estimated."""
    require_batch_norm(classifier)
    if space == "outputs":
        raise InputError(
            "batch norm is re-estimated for averaged weights, and in the space 'outputs' no weights are averaged. "
            "Interpolate the weights, or leave the statistics as they are."
        )


def _statistics(
    zero_shot: Classifier, fine_tuned: Classifier, alphas: Sequence[float], images: ImageSet, device: str
) -> dict[float, dict[str, Tensor]]:
    """Returns the re-estimated running statistics of every alpha between the ends, by the names of their entries."""
    images = decoded_once(images, zero_shot.preprocessing)
    networks = (
        (alpha, ensemble_on_path(zero_shot, fine_tuned, alpha, device=device, batch_norm_images=images))
        for alpha in alphas
        if 0 < alpha < 1
    )
    return {
        alpha: {name: entry for name, entry in network.state_dict().items() if is_running_statistic(name)}
        for alpha, network in networks
    }


def _along(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    space: str,
    device: str,
    precision: str,
    statistics: Mapping[float, Mapping[str, Tensor]],
) -> _Along:
    """Returns the function from a batch to the logits of every alpha, with both ends on the device."""
    models = zero_shot, fine_tuned
    require_compatible(*(model.network.state_dict() for model in models))
    towers = TextTowers.of(models, device=device) if space == "weights" else None
    one_encoder = _one_encoder(zero_shot.network, fine_tuned.network)
    if space == "weights" and (towers or statistics or not one_encoder):
        replaced = functools.cache(functools.partial(_replaced, towers, statistics))
        return _interpolating(models, replaced, device, precision)
    first, second = (model.network_on(device=device, precision=precision) for model in models)
    if one_encoder:
        return _mixing(lambda images: _two_heads(first, second, images))
    return _mixing(lambda images: (first(images), second(images)))


def _replaced(
    towers: TextTowers | None, statistics: Mapping[float, Mapping[str, Tensor]], alpha: float
) -> dict[str, Tensor]:
    """Returns the entries at an alpha that are not interpolated."""
    return {**(towers.between(alpha).entries if towers else {}), **statistics.get(alpha, {})}


def _interpolating(models: tuple[Classifier, Classifier], replaced: _Replaced, device: str, precision: str) -> _Along:
    """Moves the weights of one network along the path, batch by batch: three copies of the weights in all."""
    start = models[0]
    channels_last = uses_channels_last(start.network, device, start.channels_last)
    working = lay_out(deepcopy(start.network).to(device), channels_last).eval()
    working = working.in_precision(resolved_precision(precision, device))
    ends = [{name: entry.to(device) for name, entry in model.network.state_dict().items()} for model in models]
    tensors = working.state_dict()

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        for alpha in alphas:
            for name, shares in path_coefficients(tensors, alpha).items():
                combine([end[name] for end in ends], shares, out=tensors[name])
            for name, entry in replaced(alpha).items():
                tensors[name].copy_(entry)
            yield working(images)

    return logits


def _mixing(ends: Callable[[Tensor], tuple[Tensor, Tensor]]) -> _Along:
    """Interpolates the logits of the two ends."""

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        zero_shot, fine_tuned = ends(images)
        for alpha in alphas:
            yield mixed_logits(zero_shot, fine_tuned, alpha)

    return logits


def _two_heads(first: Network, second: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    features = first.features(images)
    return first.head(features), second.head(features)


def _one_encoder(first: Network, second: Network) -> bool:
    """Returns whether two networks differ in the head alone."""
    others = second.encoder.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in first.encoder.state_dict().items())


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
        yield from evaluation_batches(decoded_once(few, preprocessing), preprocessing, BATCH_SIZE)


def _measured(
    along: _Along,
    batches: Iterable[Tensor],
    images: ImageSet,
    alphas: Sequence[float],
    seen: Callable[[int], None],
    adds: Mapping[float, Add],
) -> dict[float, Proportion]:
    """Runs over a set once; returns the accuracy of each alpha. ``adds`` receive the logits of the models."""
    correct, projection = {alpha: np.zeros(len(images), dtype=bool) for alpha in alphas}, images.projection
    start = 0
    with torch.inference_mode():
        for batch in batches:
            rows = slice(start, start + len(batch))
            start += len(batch)
            for alpha, logits in zip(alphas, along(batch, alphas), strict=True):
                values = logits.float().cpu().numpy()
                scored = values if projection is None else projection.apply(values)
                correct[alpha][rows] = correct_rows(scored, images.labels[rows])
                if alpha in adds:
                    adds[alpha](values)
                seen(len(batch))
    return {alpha: measure_proportion(right, images.clusters.names) for alpha, right in correct.items()}


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
