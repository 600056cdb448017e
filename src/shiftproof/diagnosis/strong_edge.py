"""The strong-edge study of SmoothMix (CVPRW 2020): does a network look at a pasted window instead of the object?

Windows with hard and soft edges are pasted into test images. Class activation maps then show how much of a network's
attention falls on the windows, compared with their share of the area and with the attention there before pasting.
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
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.diagnosis.cam import class_activation_map, map_kind, scale_to_one
from shiftproof.diagnosis.windows import Window, WindowSettings, paste_windows, place_windows
from shiftproof.errors import InputError
from shiftproof.evaluation.intervals import LEVEL, bootstrap_interval
from shiftproof.models.classifier import Classifier, Network, require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.records.accuracy import MeanRecord
from shiftproof.records.windows import MapExample, StrongEdgeStudy, WindowExample, WindowRecord, WindowSummary
from shiftproof.seeding import child_generator

CLEAN = "clean"
# Shares are fractions of the sum of a map; "width" is the fraction of the area that an even map would cover.
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
    """The measures of one model on N images under every window: ``values[window name][measure]`` are (N,).

    The window name "clean" stands for no window. ``score`` is the probability of the true class, ``correct`` is 0 or 1,
    and drops are clean minus windowed; all shares and widths lie in [0, 1] and are NaN where a map is zero everywhere.
    ``map_kind`` is the method of the maps ("cam" or "grad-cam"), and ``classes`` (N,) are the labels.
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
    precision: str = "float32",
    stage: str = "windows",
) -> WindowMeasurements:
    """Measures a classifier's maps and scores on every image, without a window and with each kind of window.

    This is the strong-edge study of SmoothMix (Lee et al. 2020). The map is that of the class which the classifier
    predicts. Windows depend on the seed and on the images but not on the classifier: models with the same preprocessing
    see the same pixels, and windows of one side and place have the same position for all contents and edges.
    ``precision`` is that of the encoder for scores and predictions, as in ``predict``; maps are in float32. ``stage``
    names the measurement in progress events. Raises an InputError where the settings need object masks that
    the images lack, where the images are of one class, and where maps need a layer (see ``map_kind``).
    """
    require_classifier(classifier)
    require_set(images)
    scene, device = _Scene.of(classifier, images, seed), resolve_device(device)
    windows = settings.windows(with_masks=scene.masks is not None)
    network = classifier.network_on(device=device, precision=precision)
    clean = _look(classifier, network, scene.images, scene.labels, device)
    values = {CLEAN: _measures(clean, None, None, scene.masks)}
    for number, window in enumerate(windows):
        pasted, weights = scene.with_window(window)
        windowed = _look(classifier, network, pasted, scene.labels, device)
        values[window.name] = _measures(windowed, clean, weights, scene.masks)
        progress.report(stage, number + 1, len(windows))
    return WindowMeasurements(map_kind(classifier), images.labels, windows, values)


def strong_edge_study(
    measured: Mapping[str, WindowMeasurements],
    contrasts: Sequence[tuple[str, str]] = (),
    *,
    set_name: str,
    seed: int = 0,
) -> StrongEdgeStudy:
    """Averages measurements: for every model and window, for the windows of one place and edge, and between models.

    ``contrasts`` are pairs of names, whose measures are subtracted image by image, the second from the first. A summary
    averages the windows of each image first. The 95 % intervals come from resampling whole classes, because views of
    the same drawing belong together.
    """
    summaries, differences = [], []
    for model, measurements in measured.items():
        summaries += [
            WindowSummary(model, None, place, edge, _means(values, measurements.classes))
            for (place, edge), values in _averages(measurements).items()
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
        kinds={model: measurements.map_kind for model, measurements in measured.items()},
        models={model: _window_records(measurements) for model, measurements in measured.items()},
        summaries=tuple(summaries),
        contrasts=tuple(differences),
    )


@dataclass(frozen=True)
class _Scene:
    """The test images (N, 3, S, S) as a model sees them before normalisation, with their masks, labels and partners."""

    images: Tensor
    masks: Tensor | None
    labels: Tensor
    partners: Tensor
    seed: int

    @classmethod
    def of(cls, classifier: Classifier, images: ImageSet, seed: int) -> _Scene:
        preprocessing, every = classifier.preprocessing, range(len(images))
        ready = decoded_once(images, preprocessing)
        pixels = to_unit_range([read_resized(ready, i, preprocessing) for i in every])
        covers = None
        if ready.mask:
            covers = torch.tensor(np.stack([read_resized_mask(ready, i, preprocessing) for i in every])).float() / 255
        labels = torch.tensor(images.labels)
        return cls(pixels, covers, labels, torch.tensor(_of_other_classes(images.labels, seed)), seed)

    def with_window(self, window: Window) -> tuple[Tensor, Tensor]:
        size = self.images.shape[-1]
        positions = child_generator(self.seed, "window", f"{window.side:g}", window.place)
        centres, halves = place_windows(len(self.images), size, window, positions, self.masks)
        noise = child_generator(self.seed, "window noise", f"{window.side:g}", window.place)
        return paste_windows(self.images, window, centres, halves, self.images[self.partners], noise)


@dataclass(frozen=True)
class _Looks:
    """(N, H, W) maps of the predicted class, (N,) scores of the true class, and (N,) whether predictions are right."""

    maps: Tensor
    score: Tensor
    correct: Tensor


def _look(classifier: Classifier, network: Network, images: Tensor, labels: Tensor, device: str) -> _Looks:
    maps, scores, correct = [], [], []
    for pixels, targets in zip(torch.split(images, _BATCH), torch.split(labels, _BATCH), strict=True):
        inputs = normalise(pixels, classifier.preprocessing)
        with torch.inference_mode():
            logits = network(inputs.to(device)).float().cpu()
        named = logits.argmax(1)
        maps.append(class_activation_map(classifier, inputs, named, device=device))
        scores.append(logits.softmax(1).gather(1, targets[:, None])[:, 0])
        correct.append(named == targets)
    return _Looks(torch.cat(maps), torch.cat(scores), torch.cat(correct))


def _measures(
    looks: _Looks, clean: _Looks | None, weights: Tensor | None, masks: Tensor | None
) -> dict[str, NDArray[np.float64]]:
    """Returns every one of ``MEASURES`` that can be computed, (N,) each."""
    values = {"width": _width(looks.maps), "score": looks.score, "correct": looks.correct}
    uncovered = 1 - weights if weights is not None else torch.ones_like(looks.maps)
    if masks is not None:
        values["object_share"] = _share(looks.maps, masks * uncovered)
    if clean is not None and weights is not None:
        values["area"] = weights.mean((1, 2))
        values["window_share"] = _share(looks.maps, weights)
        values["share_before"] = _share(clean.maps, weights)
        values["share_drawn"] = values["window_share"] - values["share_before"]
        values["score_drop"] = clean.score - looks.score
        values["accuracy_drop"] = clean.correct.double() - looks.correct.double()
    return {name: values[name].double().numpy() for name in MEASURES if name in values}


def _share(maps: Tensor, weights: Tensor) -> Tensor:
    """Returns the (N,) shares of the maps' sums that lie under the weights; they are NaN where a map is zero."""
    return (maps.double() * weights.double()).sum((1, 2)) / maps.double().sum((1, 2))


def _width(maps: Tensor) -> Tensor:
    """Returns (N,) values of (sum m)^2 / (pixels * sum m^2), where m are the values of a map.

    This is 1 for an even map, and the covered fraction of the area for a map that is even there and 0 elsewhere.
    """
    wide = maps.double().flatten(1)
    return wide.sum(1) ** 2 / (wide.shape[1] * (wide**2).sum(1))


def _of_other_classes(labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """Returns the (N,) positions of images of another class, drawn uniformly, whose pixels fill the windows."""
    # Classes are numbered by first occurrence, so that partners do not depend on the order of a model's classes.
    _, come, which = np.unique(labels, return_index=True, return_inverse=True)
    labels = come[which]
    order = np.argsort(labels, kind="stable")
    ranked = labels[order]
    first, last = np.searchsorted(ranked, labels, "left"), np.searchsorted(ranked, labels, "right")
    others = len(labels) - (last - first)
    if not others.all():
        raise InputError("the images are all of one class; a window that shows another image needs a second class.")
    draws = torch.rand(len(labels), generator=child_generator(seed, "window partners"), dtype=torch.float64).numpy()
    picked = (draws * others).astype(np.int64)
    # Skip the stretch of images of the same class.
    partners: NDArray[np.int64] = order[np.where(picked < first, picked, picked + last - first)]
    return partners


def _window_records(measurements: WindowMeasurements) -> dict[str, WindowRecord]:
    names = {CLEAN: None} | {window.name: window for window in measurements.windows}
    return {
        name: WindowRecord(
            content=window.content if window else None,
            edge=window.edge if window else None,
            side=window.side if window else None,
            place=window.place if window else None,
            means=_means(measurements.values[name], measurements.classes),
        )
        for name, window in names.items()
    }


def _averages(measurements: WindowMeasurements) -> dict[tuple[str, float], dict[str, NDArray[np.float64]]]:
    """Returns every measure's (N,) averages over the windows of each place and edge."""
    kinds = dict.fromkeys((window.place, window.edge) for window in measurements.windows)
    averages = {}
    for place, edge in kinds:
        some = [
            measurements.values[window.name]
            for window in measurements.windows
            if (window.place, window.edge) == (place, edge)
        ]
        averages[place, edge] = {name: np.mean([values[name] for values in some], axis=0) for name in some[0]}
    return averages


def _minus(
    first: Mapping[str, NDArray[np.float64]], second: Mapping[str, NDArray[np.float64]]
) -> dict[str, NDArray[np.float64]]:
    return {name: first[name] - second[name] for name in first}


def _means(values: Mapping[str, NDArray[np.float64]], classes: NDArray[np.int64]) -> dict[str, MeanRecord]:
    return {name: _mean(of_name, classes) for name, of_name in values.items()}


def _mean(values: NDArray[np.float64], classes: NDArray[np.int64]) -> MeanRecord:
    """Returns the mean over the samples for which the measure is defined."""
    defined = np.isfinite(values)
    if len(np.unique(classes[defined])) < 2:
        return MeanRecord(None, None, int(defined.sum()))
    finite = values[defined]
    return MeanRecord(float(finite.mean()), bootstrap_interval(finite, classes[defined]), int(defined.sum()))


def map_examples(
    classifiers: Mapping[str, Classifier],
    images: ImageSet,
    *,
    device: str | torch.device = "auto",
    precision: str = "float32",
) -> tuple[MapExample, ...]:
    """Returns every image of a small set with every model's map of the class that it predicts.

    Labels may be unknown (-1). Maps are scaled to [0, 1], and all images have the size of the first model's input.
    ``precision`` is that of the encoder for the predictions, as in ``predict``; maps are computed in float32.
    """
    device, first = resolve_device(device), next(iter(classifiers.values())).preprocessing
    shown = to_unit_range([read_resized(images, i, first) for i in range(len(images))])
    parts: list[dict[str, Any]] = [{"maps": {}, "answers": {}} for _ in images.ids]
    for model, classifier in classifiers.items():
        preprocessing = classifier.preprocessing
        pixels = to_unit_range([read_resized(images, i, preprocessing) for i in range(len(images))])
        inputs = normalise(pixels, preprocessing)
        with torch.inference_mode():
            probabilities = classifier.network_on(device=device, precision=precision)(inputs.to(device))
            probabilities = probabilities.softmax(1).cpu()
        top = probabilities.argmax(1)
        maps = scale_to_one(class_activation_map(classifier, inputs, top, device=device))
        maps = functional.interpolate(maps[:, None], shown.shape[2:], mode="bilinear")[:, 0]
        for position, part in enumerate(parts):
            named, label = int(top[position]), int(images.labels[position])
            right = None if label < 0 else named == label
            part["maps"][model] = maps[position].numpy()
            part["answers"][model] = (classifier.classes.names[named], float(probabilities[position, named]), right)
    names = [images.ids[i] if k < 0 else images.classes.names[k] for i, k in enumerate(images.labels)]
    return tuple(
        MapExample(name, _to_bytes(image), **part) for name, image, part in zip(names, shown, parts, strict=True)
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
    """Returns ``count`` randomly drawn images with one kind of window, with every model's map and answer."""
    device = resolve_device(device)
    order = torch.randperm(len(images), generator=child_generator(seed, "window examples"))[:count].tolist()
    parts: list[dict[str, Any]] = [{"maps": {}, "answers": {}} for _ in order]
    for model, classifier in classifiers.items():
        # Windows are placed in the whole set, so that an example shows the window that was measured.
        scene = _Scene.of(classifier, images.relabelled(classifier.classes), seed)
        pasted, _ = scene.with_window(window)
        inputs = normalise(pasted[order], classifier.preprocessing)
        with torch.inference_mode():
            probabilities = classifier.network_on(device=device)(inputs.to(device)).softmax(1).cpu()
        top = probabilities.argmax(1)
        maps = scale_to_one(class_activation_map(classifier, inputs, top, device=device))
        for position, part in enumerate(parts):
            part.setdefault("image", _to_bytes(scene.images[order[position]]))
            part.setdefault("windowed", _to_bytes(pasted[order[position]]))
            part["maps"][model] = maps[position].numpy()
            named = int(top[position])
            right = named == int(scene.labels[order[position]])
            part["answers"][model] = (classifier.classes.names[named], float(probabilities[position, named]), right)
    names = [images.classes.names[label] for label in images.labels[order]]
    return tuple(WindowExample(name, window.name, **part) for name, part in zip(names, parts, strict=True))


def _to_bytes(image: Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
