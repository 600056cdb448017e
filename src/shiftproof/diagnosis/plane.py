"""Error and loss over the plane through three models' weights (Garipov et al. 2018, sec. 3 and app. A)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import Clusters, ImageSet, require_set
from shiftproof.ensembling.heads import TextTowers
from shiftproof.errors import InputError, require_at_least
from shiftproof.evaluation.inference import BATCH_SIZE, require_its_classes
from shiftproof.evaluation.metrics import log_probabilities
from shiftproof.evaluation.proportions import measure_proportion
from shiftproof.models.classifier import Classifier, Network, require_same_task
from shiftproof.models.devices import resolve_device
from shiftproof.records.comparisons import PlanePoint, PlaneRecord
from shiftproof.weights.arithmetic import combine, require_compatible, task_products

NAMES = ("zero_shot", "first", "second")
# The least sine of the angle between the two directions: below it, rounding errors would decide where the plane lies.
_LEAST_SINE = 1e-3


def measure_plane(
    origin: Classifier,
    first: Classifier,
    second: Classifier,
    images: ImageSet,
    *,
    steps: int = 7,
    margin: float = 0.25,
    device: str | torch.device = "auto",
    precision: str = "float32",
) -> PlaneRecord:
    """Error and mean loss on a grid in the plane through three classifiers' weights, and at the three themselves.

    With u = w1 - w0 and v = (w2 - w0) - <w2 - w0, u> u / <u, u>, the model at (x, y) has the weights
    w0 + x u / |u| + y v / |v| (Garipov et al. 2018, app. A), so x and y are Euclidean distances between weights. The
    grid has ``steps`` x ``steps`` points and encloses the three models with a ``margin`` on every side, which is a
    fraction of their extent along that axis. Errors are fractions in [0, 1], and the loss is the cross-entropy in
    nats; it is None where a logit is not finite, and such an image counts as an error. Floating-point entries are
    combined, batch-norm statistics included; integers are those of ``origin``.

    Where a fine-tuned text tower wrote the head of one of the three (``head`` is "rebuilt"), the text towers are
    combined instead of the heads and every point's head is rebuilt from the combined one; w then holds the weights of
    the encoder and of the text tower.

    ``precision`` is that of the encoder, as in ``predict``; the weights are combined in float32. All points are
    evaluated on the same batches. The set is decoded once and stays in memory on the device, so use a
    small one.

    Raises an IncompatibleWeightsError where the three differ in classes, preprocessing or architecture, and an
    InputError where two of them are equal, where they lie on one line, where the text tower behind a rebuilt head is
    missing or another head was not written by one, where ``images`` has other classes, and unless ``steps`` >= 2 and
    ``margin`` >= 0.

    >>> from shiftproof import ClassSpace, load_clip, load_data, zero_shot_classifier
    >>> from shiftproof.diagnosis.baselines import untrained
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "kiwifruit"]))
    >>> images = load_data("emoji").of_classes(zero.classes)
    >>> plane = measure_plane(zero, untrained(zero, seed=1), untrained(zero, seed=2), images, steps=2)
    >>> len(plane.axes[0]), len(plane.error), plane.points["first"].y, plane.points["zero_shot"].x
    (2, 2, 0.0, 0.0)
    """
    require_set(images)
    require_at_least("steps", steps, 2)
    require_at_least("margin", margin, 0)
    models = (origin, first, second)
    for model in models[1:]:
        require_same_task(origin, model)
    require_its_classes(origin, images)
    device = resolve_device(device)
    towers = TextTowers.of(models, device=device)
    plane = _Plane.through(*_independent_weights(models, towers))
    axes = [_enclosing(corners, steps, margin) for corners in zip(*plane.corners, strict=True)]
    places = [*plane.corners, *((x, y) for y in axes[1] for x in axes[0])]
    measure = _measuring(models, towers, images, device, precision)
    points = []
    for place in places:
        points.append(_point(place, *measure(plane.shares(*place)), images.clusters))
        progress.report("plane", len(points), len(places))
    return _record(images, (axes[0], axes[1]), points)


def _record(
    images: ImageSet, axes: tuple[tuple[float, ...], tuple[float, ...]], points: Sequence[PlanePoint]
) -> PlaneRecord:
    """Returns the record of the three models' points, which come first, and of those of the grid, row by row."""
    corners, steps = len(NAMES), len(axes[0])
    rows = [points[start : start + steps] for start in range(corners, len(points), steps)]
    return PlaneRecord(
        set=images.name,
        n=len(images),
        axes=axes,
        points=dict(zip(NAMES, points[:corners], strict=True)),
        error=tuple(tuple(point.error for point in row) for row in rows),
        intervals=tuple(tuple(point.interval for point in row) for row in rows),
        loss=tuple(tuple(point.loss for point in row) for row in rows),
    )


@dataclass(frozen=True)
class _Plane:
    """The coordinates of all three models: |u|, the component of w2 - w0 along u, and |v|."""

    length: float
    along: float
    height: float

    @classmethod
    def through(cls, origin: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> _Plane:
        """Returns the plane through three state dicts; raises an InputError where they do not span one."""
        require_compatible(origin, *others)
        products = torch.zeros(2, 2, dtype=torch.float64)
        for name, start in origin.items():
            if start.is_floating_point():
                products += task_products([start, *(other[name] for other in others)])
        (uu, ud), (_, dd) = products.tolist()
        if not (uu and dd and uu + dd - 2 * ud):
            raise InputError("two of the three models have the same weights; a plane needs three different models.")
        height = math.sqrt(max(dd - ud**2 / uu, 0.0))
        if height < _LEAST_SINE * math.sqrt(dd):
            raise InputError(
                "the three models lie on one line, which does not span a plane. Take two models that were fine-tuned on"
                " different data or with different seeds, rather than a point of the path between two models."
            )
        return cls(math.sqrt(uu), ud / math.sqrt(uu), height)

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """The places (x, y) of the origin, the first and the second model."""
        return (0.0, 0.0), (self.length, 0.0), (self.along, self.height)

    def shares(self, x: float, y: float) -> tuple[float, float, float]:
        """Returns the share of each model's weights at a place; they sum to 1 and are (0, 1, 0) at the first model."""
        second = y / self.height
        first = (x - second * self.along) / self.length
        return 1 - first - second, first, second


def _enclosing(corners: Sequence[float], steps: int, margin: float) -> tuple[float, ...]:
    low, high = min(corners), max(corners)
    beyond = margin * (high - low)
    return tuple(np.linspace(low - beyond, high + beyond, steps).tolist())


def _independent_weights(models: Sequence[Classifier], towers: TextTowers | None) -> list[Mapping[str, Tensor]]:
    """Returns the weights that are combined freely: a rebuilt head follows from its text tower, which replaces it."""
    weights = [model.state_dict() for model in models]
    if towers is None:
        return list(weights)
    return [
        {name: entry for name, entry in entries.items() if not name.startswith("head.")}
        | {f"text.{name}": entry for name, entry in text.items()}
        for entries, text in zip(weights, towers.texts, strict=True)
    ]


def _measuring(
    models: Sequence[Classifier], towers: TextTowers | None, images: ImageSet, device: str, precision: str
) -> Callable[[Sequence[float]], tuple[NDArray[np.bool_], float | None]]:
    """Returns a function from shares of the models' weights to the (N,) errors and the mean loss of the mixture.

    All mixtures are made in one working copy of the network.
    """
    networks = [model.network_on(device=device, precision=precision) for model in models]
    working = deepcopy(networks[0])
    entries, inside = [network.state_dict() for network in networks], working.state_dict()
    moving = [name for name, entry in inside.items() if entry.is_floating_point()]
    batches = [b.to(device) for b in evaluation_batches(images, models[0].preprocessing, BATCH_SIZE)]

    def measure(shares: Sequence[float]) -> tuple[NDArray[np.bool_], float | None]:
        with torch.inference_mode():
            for name in moving:
                _combine_entry(name, entries, shares, inside[name])
            for name, entry in _rebuilt_head(towers, shares).items():
                inside[name].copy_(entry)
            return _errors_and_loss(working, batches, images)

    return measure


def _rebuilt_head(towers: TextTowers | None, shares: Sequence[float]) -> Mapping[str, Tensor]:
    """Returns the head that the combined text towers write, or nothing where heads are combined like other weights."""
    if towers is None:
        return {}
    live = [i for i, share in enumerate(shares) if share]

    def combination(texts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {
            name: _combine_entry(name, texts, shares) if entry.is_floating_point() else entry
            for name, entry in texts[0].items()
        }

    return towers.rebuild(combination, live[0] if len(live) == 1 else None).entries


def _combine_entry(
    name: str, inputs: Sequence[Mapping[str, Tensor]], shares: Sequence[float], out: Tensor | None = None
) -> Tensor:
    """Combines one floating-point entry; a variance that extrapolation makes negative becomes zero."""
    entry = combine([entries[name] for entries in inputs], shares, out=out)
    return entry.clamp_(min=0) if name.endswith("running_var") else entry


def _errors_and_loss(
    network: Network, batches: Sequence[Tensor], images: ImageSet
) -> tuple[NDArray[np.bool_], float | None]:
    logits = np.concatenate([network(batch).float().cpu().numpy() for batch in batches])
    if (projection := images.projection) is not None:
        logits = projection.apply(logits)
    if not (finite := np.isfinite(logits).all(1)).all():  # far from all models, logits may overflow float32
        return ~finite | (logits.argmax(1) != images.labels), None
    of_labels = log_probabilities(logits)[np.arange(len(images)), images.labels]
    return logits.argmax(1) != images.labels, -float(of_labels.mean())


def _point(place: tuple[float, float], wrong: NDArray[np.bool_], loss: float | None, clusters: Clusters) -> PlanePoint:
    error = measure_proportion(wrong, clusters.names)
    return PlanePoint(*place, error=error.value, interval=error.interval, loss=loss)
