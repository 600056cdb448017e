"""The alpha path from zero-shot to fine-tuned, the rules that choose a point on it, and what they cost."""

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
from shiftproof.data.suites import VALIDATION, ShiftSuite
from shiftproof.ensembling.ensembles import mixed_logits
from shiftproof.ensembling.heads import TextTowers
from shiftproof.errors import InputError, require_between, require_choice, require_equal_length
from shiftproof.evaluation.inference import BATCH_SIZE, require_its_classes
from shiftproof.evaluation.intervals import LEVEL, accuracy_interval, can_resample, contrast_interval
from shiftproof.evaluation.metrics import ScoreCollector, Scores, accuracy
from shiftproof.models.classifier import Classifier, Network, require_same_task
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.paths import PathPoint, PathRecord
from shiftproof.records.rules import RuleRecord, RulesRecord
from shiftproof.weights.arithmetic import combine, path_coefficients, require_compatible

FIXED_ALPHA = 0.5
RULES = ("fixed", "reference", "tolerance")
SPACES = ("weights", "outputs")
MEAN = "mean"
# What takes in a batch's (B, K) logits; opened for an alpha and a set, it is closed when all batches were taken in.
Add: TypeAlias = Callable[[NDArray[np.float32]], object]
Keep: TypeAlias = Callable[[float, str], contextlib.AbstractContextManager[Add]]
# How many of a set's images an alpha named right in an earlier sweep; None where it is not known.
Kept: TypeAlias = Callable[[float, str], int | None]
# A batch's logits at each of some alphas, in their order.
_Along: TypeAlias = Callable[[Tensor, Sequence[float]], Iterator[Tensor]]
# The head's entries at an alpha, where they are not interpolated.
_Heads: TypeAlias = Callable[[float], Mapping[str, Tensor]]


def alpha_grid(alphas: int | Sequence[float]) -> tuple[float, ...]:
    """So many evenly spaced alphas from 0 to 1, or the given ones in rising order.

    >>> alpha_grid(3)
    (0.0, 0.5, 1.0)
    """
    if isinstance(alphas, int):
        if alphas < 2:
            raise InputError(f"alphas is {alphas}; a path needs two at least, for its ends.")
        return tuple(round(i / (alphas - 1), 10) for i in range(alphas))
    grid = tuple(sorted({require_between("alpha", float(alpha), 0, 1) for alpha in alphas}))
    if not grid:
        raise InputError("alphas is empty; name one alpha at least.")
    return grid


def path_sets(suite: ShiftSuite) -> dict[str, ImageSet]:
    """The sets that a path is measured on, by name: the reference's validation split and every test set."""
    return {VALIDATION: suite.reference.validation, **suite.test_sets}


def sweep_alpha(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    suite: ShiftSuite,
    alphas: int | Sequence[float] = 11,
    *,
    space: str = "weights",
    device: str = "cpu",
    keep: Keep | None = None,
    kept: Kept | None = None,
) -> PathRecord:
    """Accuracy along the alpha path: on the reference's validation and test splits and on every shift.

    Every image is decoded once and seen by all alphas, whose weights are interpolated in place into one working copy
    of the network; the logits are those of ``wise_ft`` at each alpha, bit for bit. ``space="outputs"`` interpolates
    the ends' logits instead (``output_ensemble``). Where only the head differs, both are one function, and the
    encoder runs once for all alphas. ``keep`` opens what takes in the logits of an (alpha, set), validation included,
    batch by batch; where the sweep is interrupted, its exit gets the exception. Pairs that ``kept`` knows are not run
    again.

    >>> from shiftproof import load_clip, load_suite, zero_shot_classifier
    >>> suite = load_suite("emoji")
    >>> zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    >>> sweep_alpha(zero, zero, suite, 3, kept=lambda alpha, name: 9).alphas
    (0.0, 0.5, 1.0)
    """
    grid, sets = alpha_grid(alphas), path_sets(suite)
    correct = sweep_sets(zero_shot, fine_tuned, sets, grid, space=space, device=device, keep=keep, kept=kept)
    points = [
        _point(alpha, {name: (correct[name][alpha], len(images)) for name, images in sets.items()}) for alpha in grid
    ]
    return PathRecord(suite.reference.name, tuple(shift.name for shift in suite.shifts), tuple(points))


def sweep_sets(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: Sequence[float],
    *,
    space: str = "weights",
    device: str = "cpu",
    keep: Keep | None = None,
    kept: Kept | None = None,
) -> dict[str, dict[float, int]]:
    """``sweep_alpha`` over any sets: how many images of each, by name, each alpha names right."""
    require_same_task(zero_shot, fine_tuned)
    grid, along = alpha_grid(alphas), _along(zero_shot, fine_tuned, space, device)
    for images in sets.values():
        require_its_classes(zero_shot, images)
    correct = {
        name: {alpha: count for alpha in grid if kept and (count := kept(alpha, name)) is not None} for name in sets
    }
    done = sum(len(images) * len(correct[name]) for name, images in sets.items())
    total = len(grid) * sum(map(len, sets.values()))

    def seen(images: int) -> None:
        nonlocal done
        done += images
        progress.report("sweep", done, total)

    for name, images in sets.items():
        missing = [alpha for alpha in grid if alpha not in correct[name]]
        if missing:
            batches = _batches(images, zero_shot.preprocessing, device)
            with contextlib.ExitStack() as opened:
                # The last opened is the first closed: so that files appear in the order of alpha.
                adds = {a: opened.enter_context(keep(a, name)) for a in reversed(missing)} if keep else {}
                correct[name] |= _measured(along, batches, images, missing, seen, adds)
    return correct


def sweep_scores(
    first: Classifier,
    second: Classifier,
    sets: Mapping[str, ImageSet],
    alphas: int | Sequence[float] = 11,
    *,
    device: str = "cpu",
) -> dict[float, dict[str, Scores]]:
    """The compact predictions of every alpha between two classifiers on labelled sets, by alpha and set."""
    found: dict[float, dict[str, Scores]] = {alpha: {} for alpha in alpha_grid(alphas)}

    @contextlib.contextmanager
    def collect(alpha: float, name: str) -> Iterator[Add]:
        collector = ScoreCollector(sets[name].labels)
        yield collector.add
        found[alpha][name] = collector.whole()

    sweep_sets(first, second, sets, alpha_grid(alphas), device=device, keep=collect)
    return found


def choose_alpha(path: PathRecord, rule: str = "fixed", *, tolerance: float = 0.01) -> float:
    """An alpha by a rule that reads no shift.

    ``fixed`` is 0.5. ``reference`` is the best on the reference's validation split, ties toward zero-shot.
    ``tolerance`` is the smallest alpha whose validation accuracy is within ``tolerance`` of the best.

    >>> points = [PathPoint(alpha, held_out, {}, {}) for alpha, held_out in ((0, 0.70), (0.5, 0.79), (1, 0.8))]
    >>> [choose_alpha(PathRecord("photo", (), tuple(points)), rule, tolerance=0.01) for rule in RULES]
    [0.5, 1, 0.5]
    """
    require_choice("alpha rule", rule, RULES)
    if rule == "fixed":
        return FIXED_ALPHA
    best = max(point.validation for point in path.points)
    allowed = require_between("tolerance", tolerance, 0, 1) if rule == "tolerance" else 0.0
    # 0.8 - 0.1 exceeds 0.7 in floating point; no two accuracies lie as close as the slack.
    return min(point.alpha for point in path.points if point.validation >= best - allowed - 1e-12)


def compare_alphas(
    path: PathRecord,
    correct: Mapping[float, Mapping[str, NDArray[np.bool_]]],
    averaged: Sequence[str] | None = None,
    clusters: Mapping[str, NDArray[np.str_]] | None = None,
    *,
    tolerance: float = 0.01,
    seed: int = 0,
) -> RulesRecord:
    """What each rule's alpha gives on every set, and its difference to alpha 0.5 with paired bootstrap intervals.

    ``correct[alpha][set]`` (N,) says which samples an alpha names right; ``averaged`` are the shifts whose mean is
    told (else all). ``clusters[set]`` (N,) name what is resampled together, as in ``contrast_interval``. The oracles
    beside the rules take the alpha that is best on a set, or on that mean, and are marked.
    Raises an InputError where alpha 0.5 is not on the path, or samples are missing.

    >>> points = [PathPoint(alpha, 0.5, {"photo": share}, {}) for alpha, share in ((0.5, 0.5), (1.0, 1.0))]
    >>> right = {0.5: {"photo": np.array([True, False])}, 1.0: {"photo": np.array([True, True])}}
    >>> oracle = compare_alphas(PathRecord("photo", (), tuple(points)), right).rule("oracle", "photo")
    >>> oracle.alpha, oracle.difference["photo"].value, oracle.oracle
    (1.0, 0.5, True)
    """
    averaged = path.shifts if averaged is None else tuple(averaged)
    path.at(FIXED_ALPHA)
    _require_samples(path, correct)
    choices = _choices(path, averaged, tolerance)
    names = (path.reference, *path.shifts)
    moved = {
        alpha: {name: correct[alpha][name].astype(np.float64) - correct[FIXED_ALPHA][name] for name in names}
        for alpha in {alpha for _, alpha, _ in choices}
    }
    # Of an alpha with itself there is no difference, whatever the samples.
    bounds = {alpha: None if alpha == FIXED_ALPHA else (-1.0, 1.0) for alpha in moved}
    told = {alpha: _differences(own, averaged, clusters, bounds[alpha], seed) for alpha, own in moved.items()}
    records = tuple(_rule_record(path, averaged, choice, *told[choice[1]]) for choice in choices)
    return RulesRecord(path.reference, path.shifts, averaged, tolerance, LEVEL, records)


def _choices(path: PathRecord, averaged: Sequence[str], tolerance: float) -> list[tuple[str, float, str | None]]:
    """Every rule with its alpha, and the oracles with what they read."""
    chosen: list[tuple[str, float, str | None]] = [
        (rule, choose_alpha(path, rule, tolerance=tolerance), None) for rule in RULES
    ]
    chosen += [("oracle", alpha, name) for name, alpha in path.oracle().items()]
    if averaged:
        best = max(path.points, key=lambda point: (_mean(point, averaged), -point.alpha))
        chosen.append(("oracle", best.alpha, MEAN))
    return chosen


def _rule_record(
    path: PathRecord,
    averaged: Sequence[str],
    choice: tuple[str, float, str | None],
    difference: Mapping[str, MeanRecord],
    mean_difference: MeanRecord | None,
) -> RuleRecord:
    rule, alpha, of_set = choice
    point = path.at(alpha)
    return RuleRecord(
        rule=rule,
        alpha=alpha,
        accuracy={name: point.accuracy[name] for name in (path.reference, *path.shifts)},
        difference=difference,
        mean=_mean(point, averaged) if averaged else None,
        mean_difference=mean_difference,
        oracle=of_set is not None,
        set=of_set,
    )


def _differences(
    moved: Mapping[str, NDArray[np.float64]],
    averaged: Sequence[str],
    clusters: Mapping[str, NDArray[np.str_]] | None,
    bounds: tuple[float, float] | None,
    seed: int,
) -> tuple[dict[str, MeanRecord], MeanRecord | None]:
    """What (N,) moves of correctness (-1, 0, 1) come to on every set, and on the mean of some."""

    def contrast(*names: str) -> MeanRecord:
        weights, some = dict.fromkeys(names, 1 / len(names)), {name: moved[name] for name in names}
        known = can_resample(some, clusters)
        interval = contrast_interval(some, weights, clusters, bounds=bounds, seed=seed) if known else None
        mean = sum(weight * float(moved[name].mean()) for name, weight in weights.items())
        return MeanRecord(mean, interval, sum(map(len, some.values())))

    return {name: contrast(name) for name in moved}, contrast(*averaged) if averaged else None


def _along(zero_shot: Classifier, fine_tuned: Classifier, space: str, device: str) -> _Along:
    """How a batch becomes the logits of every alpha, with both ends on the device."""
    require_choice("space", space, SPACES)
    first, second = (end.network_on(device) for end in (zero_shot, fine_tuned))
    require_compatible(first.state_dict(), second.state_dict())
    towers = TextTowers.of((zero_shot, fine_tuned), device) if space == "weights" else None
    if towers is not None:
        return _interpolating(first, second, functools.cache(lambda alpha: towers.between(alpha).entries))
    if _one_encoder(first, second):
        return _mixing(lambda images: _two_heads(first, second, images))
    if space == "outputs":
        return _mixing(lambda images: (first(images), second(images)))
    return _interpolating(first, second, None)


def _interpolating(first: Network, second: Network, rebuilt: _Heads | None) -> _Along:
    """One network whose weights are moved along the path, batch by batch: three copies of the weights in all.

    ``rebuilt`` gives the head at an alpha where it is not interpolated.
    """
    working = deepcopy(first)
    ends, inside = (first.state_dict(), second.state_dict()), working.state_dict()

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        for alpha in alphas:
            for name, shares in path_coefficients(inside, alpha).items():
                combine([end[name] for end in ends], shares, out=inside[name])
            for name, entry in (rebuilt(alpha) if rebuilt else {}).items():
                inside[name].copy_(entry)
            yield working(images)

    return logits


def _mixing(ends: Callable[[Tensor], tuple[Tensor, Tensor]]) -> _Along:
    """The ends' logits, interpolated."""

    def logits(images: Tensor, alphas: Sequence[float]) -> Iterator[Tensor]:
        zero_shot, fine_tuned = ends(images)
        for alpha in alphas:
            yield mixed_logits(zero_shot, fine_tuned, alpha)

    return logits


def _two_heads(first: Network, second: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    features = first.features(images)
    return first.head(features), second.head(features)


def _one_encoder(first: Network, second: Network) -> bool:
    """Whether two networks differ in the head alone."""
    other = second.encoder.state_dict()
    return all(torch.equal(tensor, other[name]) for name, tensor in first.encoder.state_dict().items())


def _batches(images: ImageSet, preprocessing: Preprocessing, device: str) -> Iterator[Tensor]:
    """The batches that ``predict`` makes, on the device."""
    if torch.device(device).type != "cpu":
        for batch in evaluation_batches(images, preprocessing, BATCH_SIZE):
            yield batch.to(device)
        return
    for start in range(0, len(images), BATCH_SIZE):
        # Not ahead of the model but between its passes: each core has a part of every layer to compute, so that a
        # thread which decodes beside them holds up all.
        few = images.subset(range(start, min(start + BATCH_SIZE, len(images))))
        yield from evaluation_batches(decoded_once(few, preprocessing), preprocessing, BATCH_SIZE)


def _measured(
    along: _Along,
    batches: Iterable[Tensor],
    images: ImageSet,
    alphas: Sequence[float],
    seen: Callable[[int], None],
    adds: Mapping[float, Add],
) -> dict[float, int]:
    """One pass over a set: how many images each alpha names right; ``adds`` take in the logits of its batches."""
    right = dict.fromkeys(alphas, 0)
    start = 0
    with torch.inference_mode():
        for batch in batches:
            labels = images.labels[start : start + len(batch)]
            start += len(batch)
            for alpha, found in zip(alphas, along(batch, alphas), strict=True):
                rows = found.float().cpu().numpy()
                right[alpha] += round(accuracy(rows, labels) * len(labels))
                if alpha in adds:
                    adds[alpha](rows)
                seen(len(labels))
    return right


def _mean(point: PathPoint, sets: Sequence[str]) -> float:
    return sum(point.accuracy[name] for name in sets) / len(sets)


def _require_samples(path: PathRecord, correct: Mapping[float, Mapping[str, NDArray[np.bool_]]]) -> None:
    """Raises an InputError where an alpha or a set of the path has no samples, or sets differ in length by alpha."""
    for alpha in path.alphas:
        for name in (path.reference, *path.shifts):
            found = correct.get(alpha, {}).get(name)
            if found is None:
                raise InputError(
                    f"the predictions of alpha {alpha:g} on {name} are missing. Sweep with keep= for them."
                )
            require_equal_length(f"the predictions of two alphas on {name}", found, correct[FIXED_ALPHA][name])


def _point(alpha: float, counts: dict[str, tuple[int, int]]) -> PathPoint:
    hits, n = counts.pop(VALIDATION)
    return PathPoint(
        alpha=alpha,
        validation=hits / n,
        accuracy={name: right / size for name, (right, size) in counts.items()},
        interval={name: accuracy_interval(right, size) for name, (right, size) in counts.items()},
        validation_interval=accuracy_interval(hits, n),
    )
