"""The alpha path from zero-shot to fine-tuned, and the rules that choose a point on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from shiftproof import progress
from shiftproof.data.batches import decoded_once
from shiftproof.data.suites import VALIDATION, ShiftSuite
from shiftproof.errors import InputError, require_between, require_choice
from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.evaluation.metrics import accuracy
from shiftproof.evaluation.predictions import Predictions, predict
from shiftproof.models.classifier import Classifier, require_same_task
from shiftproof.records import PathPoint, PathRecord
from shiftproof.weights import interpolate_weights

FIXED_ALPHA = 0.5
RULES = ("fixed", "reference", "tolerance")
# What a sweep hands on for every model it ran: alpha, the set's name, the predictions.
Keep: TypeAlias = Callable[[float, str, Predictions], object]


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


def sweep_alpha(
    zero_shot: Classifier,
    fine_tuned: Classifier,
    suite: ShiftSuite,
    alphas: int | Sequence[float] = 11,
    *,
    device: str = "cpu",
    keep: Keep | None = None,
) -> PathRecord:
    """Accuracy along the alpha path: on the reference's validation and test splits and on every shift.

    ``keep`` is called with the predictions of each (alpha, set), validation included.
    """
    grid = alpha_grid(alphas)
    sets = {VALIDATION: suite.reference.validation, **suite.test_sets}
    correct: dict[str, list[tuple[int, int]]] = {name: [] for name in sets}
    total = len(grid) * sum(len(images) for images in sets.values())
    done = 0
    require_same_task(zero_shot, fine_tuned)
    ends = zero_shot.state_dict(), fine_tuned.state_dict()
    for name, images in sets.items():
        decoded = decoded_once(images, zero_shot.preprocessing)
        for alpha in grid:
            # One interpolated model at a time: eleven of a large one would not fit.
            model = zero_shot.with_weights(interpolate_weights(*ends, alpha))
            predictions = predict(model, decoded, device=device)
            right = round(accuracy(predictions.logits, predictions.labels) * len(images))
            correct[name].append((right, len(images)))
            if keep is not None:
                keep(alpha, name, predictions)
            done += len(images)
            progress.report("sweep", done, total)
    points = [_point(i, alpha, correct) for i, alpha in enumerate(grid)]
    return PathRecord(suite.reference.name, tuple(shift.name for shift in suite.shifts), tuple(points))


def choose_alpha(path: PathRecord, rule: str = "fixed", *, tolerance: float = 0.01) -> float:
    """An alpha by a rule that reads no shift.

    ``fixed`` is 0.5. ``reference`` is the best on the reference's validation split, ties toward zero-shot.
    ``tolerance`` is the smallest alpha whose validation accuracy is within ``tolerance`` of the best.
    """
    require_choice("alpha rule", rule, RULES)
    if rule == "fixed":
        return FIXED_ALPHA
    best = max(point.validation for point in path.points)
    allowed = require_between("tolerance", tolerance, 0, 1) if rule == "tolerance" else 0.0
    # 0.8 - 0.1 exceeds 0.7 in floating point; no two accuracies lie as close as the slack.
    return min(point.alpha for point in path.points if point.validation >= best - allowed - 1e-12)


def _point(i: int, alpha: float, correct: Mapping[str, list[tuple[int, int]]]) -> PathPoint:
    counts = {name: entries[i] for name, entries in correct.items()}
    hits, n = counts.pop(VALIDATION)
    return PathPoint(
        alpha=alpha,
        validation=hits / n,
        accuracy={name: right / size for name, (right, size) in counts.items()},
        interval={name: accuracy_interval(right, size) for name, (right, size) in counts.items()},
    )
