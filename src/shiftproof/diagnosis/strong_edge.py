"""The strong-edge study of SmoothMix (CVPRW 2020): does a network look at a pasted window instead of the object?

Windows with hard and soft borders are pasted into test images; class activation maps tell how much of a network's
attention falls into them, against the window's share of the area and against what lay there before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from shiftproof import progress
from shiftproof.data.batches import decoded_once, read_resized, read_resized_mask
from shiftproof.data.loading import normalise, to_unit_range
from shiftproof.data.sets import ImageSet
from shiftproof.diagnosis.cam import class_activation_map, map_kind, scale_to_one
from shiftproof.diagnosis.windows import Window, WindowSettings, paste_windows, place_windows
from shiftproof.errors import InputError
from shiftproof.evaluation.intervals import LEVEL, bootstrap_interval
from shiftproof.models.classifier import Classifier
from shiftproof.models.devices import resolve_device
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.windows import MapExample, StrongEdgeStudy, WindowExample, WindowRecord, WindowSummary
from shiftproof.seeding import child_generator

CLEAN = "clean"
# Of one map: shares of its sum; "width" is the share of the area that it would cover if it were even.
MEASURES = (
    "area",
    "window_share",
    "share_before",
    "share_drawn",
    "object_share",
    "width",
    "score",
    "score_drop",
    "correct",
    "accuracy_drop",
)
_BATCH = 256


@dataclass(frozen=True)
class WindowMeasurements:
    """What one model did on N images under every window: ``values[window name][measure]`` are (N,).

    The entry ``clean`` is without a window. ``score`` is the true class's probability, ``correct`` 0 or 1; drops are
    clean minus windowed. Shares and widths are NaN where a map is zero everywhere. ``map_kind`` is the maps' method,
    ``classes`` (N,) the labels.
    """

    map_kind: str
    classes: NDArray[np.int64]
    windows: tuple[Window, ...]
    values: Mapping[str, Mapping[str, NDArray[np.float64]]]


def measure_windows(
    classifier: Classifier,
    images: ImageSet,
    settings: WindowSettings,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
    stage: str = "windows",
) -> WindowMeasurements:
    """Maps and scores of a classifier on every image, without a window and with each kind of window.

    The map is that of the class which the classifier names. Windows depend on the seed and on the images, not on the
    classifier: models of one preprocessing see the same pixels, and all contents and edges of a side and place
    stand at the same spot.
    """
    scene, place = _Scene.of(classifier, images, seed), resolve_device(device)
    windows = settings.windows(with_masks=scene.masks is not None)
    clean = _look(classifier, scene.images, scene.labels, place)
    values = {CLEAN: _measures(clean, None, None, scene.masks)}
    for number, window in enumerate(windows):
        pasted, weights = scene.with_window(window)
        seen = _look(classifier, pasted, scene.labels, place)
        values[window.name] = _measures(seen, clean, weights, scene.masks)
        progress.report(stage, number + 1, len(windows))
    return WindowMeasurements(map_kind(classifier), images.labels, windows, values)


def strong_edge_study(
    measured: Mapping[str, WindowMeasurements],
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    set_name: str,
    seed: int = 0,
) -> StrongEdgeStudy:
    """Means with intervals for every model and window, over the windows of a place and edge, and between models.

    ``contrasts`` are pairs of names: the first minus the second, image by image. A summary averages the windows for
    each image first. Intervals come from resampling whole classes, since views of one drawing go together.
    """
    summaries, differences = [], []
    for model, found in measured.items():
        summaries += [
            WindowSummary(model, None, place, edge, _means(values, found.classes))
            for (place, edge), values in _averages(found).items()
        ]
    for first, second in contrasts:
        ends = _averages(measured[first]), _averages(measured[second])
        differences += [
            WindowSummary(first, second, *key, _means(_minus(ends[0][key], ends[1][key]), measured[first].classes))
            for key in ends[0]
        ]
    return StrongEdgeStudy(
        set=set_name,
        seed=seed,
        level=LEVEL,
        kinds={model: found.map_kind for model, found in measured.items()},
        models={model: _window_records(found) for model, found in measured.items()},
        summaries=tuple(summaries),
        contrasts=tuple(differences),
    )


@dataclass(frozen=True)
class _Scene:
    """The test images as a model takes them, before normalisation, and what belongs to them."""

    images: Tensor
    masks: Tensor | None
    labels: Tensor
    partners: Tensor
    seed: int

    @classmethod
    def of(cls, classifier: Classifier, images: ImageSet, seed: int) -> _Scene:
        wanted, every = classifier.preprocessing, range(len(images))
        ready = decoded_once(images, wanted)
        pixels = to_unit_range([read_resized(ready, i, wanted) for i in every])
        covers = None
        if ready.mask:
            covers = torch.tensor(np.stack([read_resized_mask(ready, i, wanted) for i in every])).float() / 255
        labels = torch.tensor(images.labels)
        return cls(pixels, covers, labels, torch.tensor(_of_other_classes(images.labels, seed)), seed)

    def with_window(self, window: Window) -> tuple[Tensor, Tensor]:
        size = self.images.shape[-1]
        place = child_generator(self.seed, "window", f"{window.side:g}", window.place)
        centres, halves = place_windows(len(self.images), size, window, place, self.masks)
        noise = child_generator(self.seed, "window noise", f"{window.side:g}", window.place)
        return paste_windows(self.images, window, centres, halves, self.images[self.partners], noise)


@dataclass(frozen=True)
class _Looks:
    """(N, H, W) maps of the named class, (N,) scores of the true one, (N,) whether both are the same."""

    maps: Tensor
    score: Tensor
    correct: Tensor


def _look(classifier: Classifier, images: Tensor, labels: Tensor, device: str) -> _Looks:
    network = classifier.network_on(device=device)
    maps, scores, correct = [], [], []
    for pixels, own in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True):
        inputs = normalise(pixels, classifier.preprocessing)
        with torch.inference_mode():
            logits = network(inputs.to(device)).float().cpu()
        named = logits.argmax(1)
        maps.append(class_activation_map(classifier, inputs, named, device=device))
        scores.append(logits.softmax(1).gather(1, own[:, None])[:, 0])
        correct.append(named == own)
    return _Looks(torch.cat(maps), torch.cat(scores), torch.cat(correct))


def _measures(
    seen: _Looks, clean: _Looks | None, weights: Tensor | None, masks: Tensor | None
) -> dict[str, NDArray[np.float64]]:
    """Every measure of MEASURES that there is, (N,) each."""
    found = {"width": _width(seen.maps), "score": seen.score, "correct": seen.correct}
    free = 1 - weights if weights is not None else torch.ones_like(seen.maps)
    if masks is not None:
        found["object_share"] = _share(seen.maps, masks * free)
    if clean is not None and weights is not None:
        found["area"] = weights.mean((1, 2))
        found["window_share"] = _share(seen.maps, weights)
        found["share_before"] = _share(clean.maps, weights)
        found["share_drawn"] = found["window_share"] - found["share_before"]
        found["score_drop"] = clean.score - seen.score
        found["accuracy_drop"] = clean.correct.double() - seen.correct.double()
    return {name: found[name].double().numpy() for name in MEASURES if name in found}


def _share(maps: Tensor, weights: Tensor) -> Tensor:
    """(N,) shares of the maps' sums that lie under the weights; NaN where a map is zero."""
    return (maps.double() * weights.double()).sum((1, 2)) / maps.double().sum((1, 2))


def _width(maps: Tensor) -> Tensor:
    """(N,) (sum m)^2 / (pixels * sum m^2): 1 for an even map, the covered share for one that is even where it is."""
    wide = maps.double().flatten(1)
    return wide.sum(1) ** 2 / (wide.shape[1] * (wide**2).sum(1))


def _of_other_classes(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """(N,) positions of images of another class, any with equal chances, whose pixels fill the windows."""
    # Numbered as they come, classes have one order in every class space, and so a model's own moves no partner.
    _, come, which = np.unique(labels, return_index=True, return_inverse=True)
    labels = come[which]
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    first, last = np.searchsorted(ranked, labels, "left"), np.searchsorted(ranked, labels, "right")
    others = len(labels) - (last - first)
    if not others.all():
        raise InputError("the images are of one class; a window with another image needs a second one.")
    draws = torch.rand(len(labels), generator=child_generator(seed, "window partners"), dtype=torch.float64).numpy()
    picked = (draws * others).astype(np.int64)
    # Past the own class's stretch.
    partners: NDArray[np.int64] = order[np.where(picked < first, picked, picked + last - first)]
    return partners


def _window_records(found: WindowMeasurements) -> dict[str, WindowRecord]:
    names = {CLEAN: None} | {window.name: window for window in found.windows}
    return {
        name: WindowRecord(
            content=window.content if window else None,
            edge=window.edge if window else None,
            side=window.side if window else None,
            place=window.place if window else None,
            means=_means(found.values[name], found.classes),
        )
        for name, window in names.items()
    }


def _averages(found: WindowMeasurements) -> dict[tuple[str, float], dict[str, NDArray[np.float64]]]:
    """For each place and edge, every measure's (N,) averages over the windows."""
    kinds = dict.fromkeys((window.place, window.edge) for window in found.windows)
    averages = {}
    for place, edge in kinds:
        some = [found.values[window.name] for window in found.windows if (window.place, window.edge) == (place, edge)]
        averages[place, edge] = {name: np.mean([values[name] for values in some], axis=0) for name in some[0]}
    return averages


def _minus(
    first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    return {name: first[name] - second[name] for name in first}


def _means(values: Mapping[str, NDArray[np.float64]], classes: NDArray[np.int64]) -> dict[str, MeanRecord]:
    return {name: _mean(of_name, classes) for name, of_name in values.items()}


def _mean(values: NDArray[np.float64], classes: NDArray[np.int64]) -> MeanRecord:
    """The mean over the samples where the measure is defined."""
    defined = np.isfinite(values)
    if len(np.unique(classes[defined])) < 2:
        return MeanRecord(None, None, int(defined.sum()))
    kept = values[defined]
    return MeanRecord(float(kept.mean()), bootstrap_interval(kept, classes[defined]), int(defined.sum()))


def map_examples(
    classifiers: Mapping[str, Classifier], images: ImageSet, *, device: str | torch.device = "auto"
) -> tuple[MapExample, ...]:
    """Every image of a small set with every model's map of the class that it names; labels may be unknown (-1)."""
    device, first = resolve_device(device), next(iter(classifiers.values())).preprocessing
    shown = to_unit_range([read_resized(images, i, first) for i in range(len(images))])
    parts: list[dict[str, Any]] = [{"maps": {}, "answers": {}} for _ in images.ids]
    for model, classifier in classifiers.items():
        wanted = classifier.preprocessing
        inputs = normalise(to_unit_range([read_resized(images, i, wanted) for i in range(len(images))]), wanted)
        with torch.inference_mode():
            probabilities = classifier.network_on(device=device)(inputs.to(device)).softmax(1).cpu()
        top = probabilities.argmax(1)
        maps = scale_to_one(class_activation_map(classifier, inputs, top, device=device))
        maps = functional.interpolate(maps[:, None], shown.shape[2:], mode="bilinear")[:, 0]
        for place, part in enumerate(parts):
            named, label = int(top[place]), int(images.labels[place])
            right = None if label < 0 else named == label
            part["maps"][model] = maps[place].numpy()
            part["answers"][model] = (classifier.classes.names[named], float(probabilities[place, named]), right)
    names = [images.ids[i] if k < 0 else images.classes.names[k] for i, k in enumerate(images.labels)]
    return tuple(
        MapExample(name, _to_bytes(pixels), **part) for name, pixels, part in zip(names, shown, parts, strict=True)
    )


def window_examples(
    classifiers: Mapping[str, Classifier],
    images: ImageSet,
    window: Window,
    count: int,
    *,
    seed: int = 0,
    device: str | torch.device = "auto",
) -> tuple[WindowExample, ...]:
    """``count`` images drawn at random, not picked, with one kind of window, as every model sees them."""
    device = resolve_device(device)
    order = torch.randperm(len(images), generator=child_generator(seed, "window examples"))[:count].tolist()
    parts: list[dict[str, Any]] = [{"maps": {}, "answers": {}} for _ in order]
    for model, classifier in classifiers.items():
        # The whole set is placed, so that an example's window is the one that was measured.
        scene = _Scene.of(classifier, images.relabelled(classifier.classes), seed)
        pasted, _ = scene.with_window(window)
        inputs = normalise(pasted[order], classifier.preprocessing)
        with torch.inference_mode():
            probabilities = classifier.network_on(device=device)(inputs.to(device)).softmax(1).cpu()
        top = probabilities.argmax(1)
        maps = scale_to_one(class_activation_map(classifier, inputs, top, device=device))
        for place, part in enumerate(parts):
            part.setdefault("image", _to_bytes(scene.images[order[place]]))
            part.setdefault("windowed", _to_bytes(pasted[order[place]]))
            part["maps"][model] = maps[place].numpy()
            named = int(top[place])
            right = named == int(scene.labels[order[place]])
            part["answers"][model] = (classifier.classes.names[named], float(probabilities[place, named]), right)
    names = [images.classes.names[label] for label in images.labels[order]]
    return tuple(WindowExample(name, window.name, **part) for name, part in zip(names, parts, strict=True))


def _to_bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
