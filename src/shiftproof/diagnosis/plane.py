"""Error and loss over the plane through three models' weights (Garipov et al. 2018, sec. 3 and app. A)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import ImageSet
from shiftproof.errors import InputError, require_at_least
from shiftproof.evaluation.inference import BATCH_SIZE, require_its_classes
from shiftproof.evaluation.intervals import accuracy_interval
from shiftproof.evaluation.metrics import log_probabilities
from shiftproof.models.classifier import Classifier, Network, require_same_task
from shiftproof.models.devices import resolve_device
from shiftproof.records.comparisons import PlanePoint, PlaneRecord
from shiftproof.weights.arithmetic import combine, require_compatible, task_products

NAMES = ("zero_shot", "first", "second")
# The sine of the least angle between two ways: three models that are nearer to one line span a plane of rounding.
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
) -> PlaneRecord:
    """Error and mean loss on a steps x steps grid in the plane through three classifiers' weights, and at the three.

    With u = w1 - w0 and v = (w2 - w0) - <w2 - w0, u> u / <u, u>, the model at (x, y) has the weights
    w0 + x u / |u| + y v / |v| (Garipov et al. 2018), so that distances in the plane are those of the weights. The grid
    encloses the three with a ``margin`` on every side, a share of their extent along that axis. Floating-point entries
    count, batch-norm statistics among them; integers are the origin's. All points see the same batches: the set is
    decoded once and stays in memory on the device, so take a small one. An InputError refuses models that are equal or
    lie on one line.

    >>> from shiftproof import ClassSpace, load_clip, load_data, zero_shot_classifier
    >>> from shiftproof.diagnosis.baselines import untrained
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "kiwifruit"]))
    >>> images = load_data("emoji").of_classes(zero.classes)
    >>> found = measure_plane(zero, untrained(zero, seed=1), untrained(zero, seed=2), images, steps=2)
    >>> len(found.axes[0]), len(found.error), found.points["first"].y, found.points["zero_shot"].x
    (2, 2, 0.0, 0.0)
    """
    require_at_least("steps", steps, 2)
    require_at_least("margin", margin, 0)
    models = (origin, first, second)
    for model in models[1:]:
        require_same_task(origin, model)
    require_its_classes(origin, images)
    plane = _Plane.through(*(model.state_dict() for model in models))
    axes = [_enclosing(corners, steps, margin) for corners in zip(*plane.corners, strict=True)]
    places = [*plane.corners, *((x, y) for y in axes[1] for x in axes[0])]
    measure = _measuring(models, images, resolve_device(device))
    found = []
    for place in places:
        found.append(_point(place, *measure(plane.shares(*place)), len(images)))
        progress.report("plane", len(found), len(places))
    rows = [found[start : start + steps] for start in range(len(models), len(found), steps)]
    return PlaneRecord(
        set=images.name,
        n=len(images),
        axes=(axes[0], axes[1]),
        points=dict(zip(NAMES, found[: len(models)], strict=True)),
        error=tuple(tuple(point.error for point in row) for row in rows),
        intervals=tuple(tuple(point.interval for point in row) for row in rows),
        loss=tuple(tuple(point.loss for point in row) for row in rows),
    )


@dataclass(frozen=True)
class _Plane:
    """|u|, the component of w2 - w0 along u, and |v|: the coordinates of all three models."""

    length: float
    along: float
    height: float

    @classmethod
    def through(cls, origin: Mapping[str, Tensor], *others: Mapping[str, Tensor]) -> _Plane:
        """An InputError says so where the three do not span a plane."""
        require_compatible(origin, *others)
        products = torch.zeros(2, 2, dtype=torch.float64)
        for name, start in origin.items():
            if start.is_floating_point():
                products += task_products([start, *(other[name] for other in others)])
        (uu, ud), (_, dd) = products.tolist()
        if not (uu and dd and uu + dd - 2 * ud):
            raise InputError("two of the three models have the same weights; a plane needs three that differ.")
        height = math.sqrt(max(dd - ud**2 / uu, 0.0))
        if height < _LEAST_SINE * math.sqrt(dd):
            raise InputError(
                "the three models lie on one line, which spans no plane. Take two fine-tunings of other data or another"
                " seed, and no point of the path between two models."
            )
        return cls(math.sqrt(uu), ud / math.sqrt(uu), height)

    @property
    def corners(self) -> tuple[tuple[float, float], ...]:
        """Where the origin, the first and the second are."""
        return (0.0, 0.0), (self.length, 0.0), (self.along, self.height)

    def shares(self, x: float, y: float) -> tuple[float, float, float]:
        """What a point takes of each model's weights; they sum to 1, and are (0, 1, 0) at the first, say."""
        second = y / self.height
        first = (x - second * self.along) / self.length
        return 1 - first - second, first, second


def _enclosing(corners: Sequence[float], steps: int, margin: float) -> tuple[float, ...]:
    low, high = min(corners), max(corners)
    beyond = margin * (high - low)
    return tuple(np.linspace(low - beyond, high + beyond, steps).tolist())


def _measuring(
    models: Sequence[Classifier], images: ImageSet, device: str
) -> Callable[[Sequence[float]], tuple[int, float | None]]:
    """From shares of the models' weights to the errors and the mean loss of their mixture, in one working copy."""
    networks = [model.network_on(device=device) for model in models]
    working = deepcopy(networks[0])
    entries, inside = [network.state_dict() for network in networks], working.state_dict()
    moving = [name for name, entry in inside.items() if entry.is_floating_point()]
    batches = [b.to(device) for b in evaluation_batches(images, models[0].preprocessing, BATCH_SIZE)]

    def measure(shares: Sequence[float]) -> tuple[int, float | None]:
        with torch.inference_mode():
            for name in moving:
                combine([entry[name] for entry in entries], shares, out=inside[name])
                if name.endswith("running_var"):
                    inside[name].clamp_(min=0)  # beyond the models a line may leave what a variance can be
            return _errors_and_loss(working, batches, images)

    return measure


def _errors_and_loss(network: Network, batches: Sequence[Tensor], images: ImageSet) -> tuple[int, float | None]:
    logits = np.concatenate([network(batch).float().cpu().numpy() for batch in batches])
    if not (whole := np.isfinite(logits).all(1)).all():  # weights far from all models may give numbers beyond float32
        return int((~whole | (logits.argmax(1) != images.labels)).sum()), None
    own = log_probabilities(logits)[np.arange(len(images)), images.labels]
    return int((logits.argmax(1) != images.labels).sum()), -float(own.mean())


def _point(place: tuple[float, float], wrong: int, loss: float | None, n: int) -> PlanePoint:
    return PlanePoint(*place, error=wrong / n, interval=accuracy_interval(wrong, n), loss=loss)
