"""The linear CKA of every layer of one classifier with every layer of another, measured in one pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from shiftproof import progress
from shiftproof.data.batches import evaluation_batches
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.diagnosis.cka import CkaTable
from shiftproof.errors import InputError, listed, require_choice
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.models.classifier import Classifier, Network, require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.records.comparisons import LayersRecord

Floats = NDArray[np.float64]
Reader = Callable[[Tensor], list[Floats]]
ENDS = ("features", "logits")
_MOST_PARTS = 16


def layer_names(classifier: Classifier) -> tuple[str, ...]:
    """Returns the layers that are compared by default: up to 16 parts of the encoder by depth, then the ends.

    The parts are the blocks of the encoder and the modules before the first block, as far as they have weight
    matrices; of more than 16 parts, 16 are chosen at even distances. The ends are "features", the input of the head,
    to which the modules after the last block contribute, and "logits", its output. You can also compare any other
    module by its name in ``named_modules``.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> layer_names(zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"])))[1:]
    ('encoder.trunk.blocks.0', 'encoder.trunk.blocks.1', 'encoder.trunk.blocks.2', 'features', 'logits')
    """
    require_classifier(classifier)
    parts = list(_parts(classifier.network.encoder, "encoder"))
    last = max((i for i, (_, in_row) in enumerate(parts) if in_row), default=len(parts) - 1)
    names = [name for name, _ in parts[: last + 1]]
    if len(names) > _MOST_PARTS:
        names = [names[round(i * (len(names) - 1) / (_MOST_PARTS - 1))] for i in range(_MOST_PARTS)]
    return (*names, *ENDS)


def measure_layers(
    first: Classifier,
    second: Classifier,
    images: ImageSet,
    *,
    layers: Sequence[str] | None = None,
    other_layers: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
    debiased: bool = False,
    batch_size: int = BATCH_SIZE,
    stage: str = "layers",
) -> LayersRecord:
    """Measures the linear CKA of every layer of one classifier with every layer of another on a set.

    ``layers`` names modules of the first classifier, "features" or "logits"; ``other_layers`` names those of the
    second and defaults to ``layers``. By default both are those of ``layer_names``. The classifiers may differ in
    everything, including their preprocessing: both see the same images in the same order. Labels are not used. CKA is
    that of Kornblith et al. (2019, Eq. 4), in [0, 1], or its ``debiased`` form (see ``linear_cka``).

    A map (B, C, H, W) is averaged over its places and tokens (B, T, C) over all tokens before they are compared, so
    differences between places alone do not show. With P and Q channels in all layers of the two classifiers, this
    takes P x Q float64 numbers for any number of images; whole maps would take the square of the number of places
    times as many. Each network runs once, in batches of ``batch_size`` images, and the classifiers are left unchanged.
    ``precision`` is that of the encoder, as in ``predict``. ``stage`` names the measurement in progress events.

    Raises an InputError for an unknown layer, a layer that runs several times, not at all or does not return a tensor,
    and fewer than 2 images (4 if debiased).

    >>> from shiftproof import ClassSpace, load_clip, load_data, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> images = load_data("emoji").subset(range(8))
    >>> record = measure_layers(zero, zero, images, layers=["encoder.trunk.stem", "logits"])
    >>> round(record.values[0][0], 9), record.values[0][1] < 1
    (1.0, True)
    """
    require_classifier(first, "first")
    require_classifier(second, "second")
    require_set(images)
    names = _chosen(first, layers, "first")
    others = _chosen(second, layers if other_layers is None else other_layers, "second")
    device, table = resolve_device(device), CkaTable()
    with (
        torch.inference_mode(),
        _reading(first, names, device, precision) as read,
        _reading(second, others, device, precision) as read_other,
    ):
        for batch, other_batch in _batches(first, second, images, batch_size):
            table.add(read(batch), read_other(other_batch))
            progress.report(stage, table.n, len(images))
    return LayersRecord(images.name, table.n, names, others, table.values(debiased), debiased)


# ---- choosing layers


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, bool]]:
    """Yields the parts with weight matrices in order, and whether each is one of a row of blocks."""
    in_row = isinstance(module, nn.Sequential | nn.ModuleList)
    for child_name, child in module.named_children():
        if _is_row(child) or (not in_row and any(map(_is_row, child.modules()))):
            yield from _parts(child, f"{name}.{child_name}")
        elif _has_matrix(child):
            yield f"{name}.{child_name}", in_row


def _is_row(module: nn.Module) -> bool:
    """Whether a container holds several layers or a block, unlike a convolution with its norm and activation."""
    weighty = [child for child in module.children() if _has_matrix(child)]
    several = len(weighty) > 1 or any(list(child.children()) for child in weighty)
    return isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and several)


def _has_matrix(module: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in module.parameters())


def _chosen(classifier: Classifier, layers: Sequence[str] | None, which: str) -> tuple[str, ...]:
    names = layer_names(classifier) if layers is None else tuple(layers)
    known = [*_modules(classifier.network), *ENDS]
    for name in names:
        require_choice(f"layer of the {which} classifier", name, known)
    if not names or len(set(names)) < len(names):
        raise InputError(
            f"the layers of the {which} classifier are {listed(names)}; name at least one, and each only once."
        )
    return names


def _modules(network: Network) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules(remove_duplicate=False) if name}


# ---- reading layers


def _batches(
    first: Classifier, second: Classifier, images: ImageSet, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns the batches with each classifier's preprocessing; they are decoded once where both have the same."""
    batches = evaluation_batches(images, first.preprocessing, batch_size)
    if first.preprocessing == second.preprocessing:
        return ((batch, batch) for batch in batches)
    return zip(batches, evaluation_batches(images, second.preprocessing, batch_size), strict=True)


@contextlib.contextmanager
def _reading(classifier: Classifier, names: Sequence[str], device: str, precision: str) -> Iterator[Reader]:
    """Yields a function from (B, 3, size, size) inputs to the layers' (B, C) outputs; the network is left unchanged."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    shorten: dict[str, Callable[[Any], Any]] = dict.fromkeys(names, _shape)
    with contextlib.ExitStack() as stack:
        for module in classifier.network.modules():
            stack.callback(setattr, module, "training", module.training)
        network = classifier.network_on(device=device, precision=precision)

        def run(inputs: Tensor) -> list[Any]:
            for of_layer in outputs.values():
                of_layer.clear()
            network(inputs.to(device))
            if odd := [name for name, of_layer in outputs.items() if len(of_layer) != 1]:
                raise InputError(f"the layer {odd[0]!r} runs {len(outputs[odd[0]])} times; it must run once. {_OTHER}")
            return [of_layer[0] for of_layer in outputs.values()]

        def keep(name: str) -> Callable[[Any], None]:
            # Outputs are shortened at once: the next layer may change them in place, and the maps of all layers
            # together may not fit in memory.
            return lambda output: outputs[name].append(shorten[name](_tensor(name, output)))

        for name in names:
            stack.callback(_tap(network, name, keep(name)).remove)
        shorten.update(_pools(network, names, run, classifier.preprocessing.size))
        yield run


_OTHER = "Name another layer."


def _tap(network: Network, name: str, keep: Callable[[Any], None]) -> Any:
    """Registers a hook that passes a layer's output to ``keep``; returns the handle that removes the hook."""
    if name == "features":
        return network.head.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    module = network.head if name == "logits" else _modules(network)[name]
    return module.register_forward_hook(lambda _, __, output: keep(output))


def _tensor(name: str, output: Any) -> Tensor:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"the layer {name!r} returns a {type(output).__name__}; it must return a tensor. {_OTHER}")
    return output


def _shape(output: Tensor) -> tuple[int, ...]:
    return tuple(output.shape)


def _pools(
    network: Network, names: Sequence[str], run: Callable[[Tensor], list[Any]], size: int
) -> dict[str, Callable[[Tensor], Floats]]:
    """Returns functions that reduce each layer's output to (B, C).

    The network runs on two and on three blank images, which shows the axis along which a layer counts images.
    """
    last = any(getattr(module, "output_fmt", "") == "NHWC" for module in network.modules())
    two, three = (run(torch.zeros(count, 3, size, size)) for count in (2, 3))
    return {name: _pool(name, shape, larger, last) for name, shape, larger in zip(names, two, three, strict=True)}


def _pool(name: str, two: tuple[int, ...], three: tuple[int, ...], last: bool) -> Callable[[Tensor], Floats]:
    counting = [axis for axis, sizes in enumerate(zip(two, three, strict=False)) if sizes == (2, 3)]
    if len(counting) != 1 or not 2 <= len(two) <= 4:
        raise InputError(
            f"the layer {name!r} returns {two} for two images; it must return a map, tokens or a vector for each "
            f"image. {_OTHER}"
        )
    axes = [axis for axis in range(len(two)) if axis != counting[0]]
    # Images are square, and so are their maps; where all three sizes are equal, the model's ``output_fmt`` decides.
    square = [two[axes[0]] == two[axes[1]], two[axes[1]] == two[axes[2]]] if len(two) == 4 else [True, False]
    last = last if square[0] == square[1] else square[0]
    channel = axes[-1] if last or len(two) < 4 else axes[0]

    def pool(output: Tensor) -> Floats:
        moved = output.detach().float().movedim((counting[0], channel), (0, 1))
        means = moved.reshape(*moved.shape[:2], -1).mean(2).cpu().numpy().astype(np.float64)
        if not np.isfinite(means).all():
            raise InputError(f"the layer {name!r} returns numbers that are not finite. The model's weights are broken.")
        return means

    return pool
