"""Two classifiers layer by layer: the linear CKA of every layer of one with every layer of the other, in one pass."""

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
from shiftproof.data.sets import ImageSet
from shiftproof.diagnosis.cka import CkaTable
from shiftproof.errors import InputError, listed, require_choice
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.devices import resolve_device
from shiftproof.records.comparisons import LayersRecord

Floats = NDArray[np.float64]
Reader = Callable[[Tensor], list[Floats]]
ENDS = ("features", "logits")
_MOST = 16


def layer_names(classifier: Classifier) -> tuple[str, ...]:
    """The layers that are compared where none is named: at most 16 parts of the encoder by depth, then the ends.

    The parts are the members of the encoder's rows of blocks and what stands before them, where they have weight
    matrices. What stands behind the last block makes "features", which the head reads; "logits" is what it says. Of
    more parts 16 are taken evenly. Any other module's name, as ``named_modules`` has it, can be given as well.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> layer_names(zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"])))[1:]
    ('encoder.trunk.blocks.0', 'encoder.trunk.blocks.1', 'encoder.trunk.blocks.2', 'features', 'logits')
    """
    parts = list(_parts(classifier.network.encoder, "encoder"))
    last = max((i for i, (_, in_row) in enumerate(parts) if in_row), default=len(parts) - 1)
    names = [name for name, _ in parts[: last + 1]]
    if len(names) > _MOST:
        names = [names[round(i * (len(names) - 1) / (_MOST - 1))] for i in range(_MOST)]
    return (*names, *ENDS)


def measure_layers(
    first: Classifier,
    second: Classifier,
    images: ImageSet,
    *,
    layers: Sequence[str] | None = None,
    other_layers: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    debiased: bool = False,
    batch_size: int = BATCH_SIZE,
    stage: str = "layers",
) -> LayersRecord:
    """The linear CKA of every layer of one classifier with every layer of another on a set, each network run once.

    ``layers`` name modules of the first, "features" or "logits"; ``other_layers`` those of the second, as ``layers``
    where only these are given. Without, they are those of ``layer_names``. The classifiers may differ in everything,
    preprocessing included: each sees the same images in the same order. Labels play no part.

    Of a map (B, C, H, W) the mean over places is compared, of tokens (B, T, C) that over all tokens: with P and Q
    channels in all layers of the two, P x Q float64 numbers are kept, whatever N, where whole maps would need as many
    squared places more. What differs between places alone is therefore not seen. The classifiers stay as they are.
    Raises an InputError for an unknown layer, one that is not run once or gives no tensor, and too few images.

    >>> from shiftproof import ClassSpace, load_clip, load_data, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> found = measure_layers(zero, zero, load_data("emoji").subset(range(8)), layers=["encoder.trunk.stem", "logits"])
    >>> round(found.values[0][0], 9), found.values[0][1] < 1
    (1.0, True)
    """
    names = _chosen(first, layers, "first")
    others = _chosen(second, layers if other_layers is None else other_layers, "second")
    place, table = resolve_device(device), CkaTable()
    with (
        torch.inference_mode(),
        _reading(first, names, place) as read,
        _reading(second, others, place) as read_other,
    ):
        for batch, other_batch in _batches(first, second, images, batch_size):
            table.add(read(batch), read_other(other_batch))
            progress.report(stage, table.n, len(images))
    return LayersRecord(images.name, table.n, names, others, table.values(debiased), debiased)


# ---- which layers


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, bool]]:
    """The parts with weight matrices in order, and whether each stands in a row of blocks."""
    in_row = isinstance(module, nn.Sequential | nn.ModuleList)
    for child_name, child in module.named_children():
        if _is_row(child) or (not in_row and any(map(_is_row, child.modules()))):
            yield from _parts(child, f"{name}.{child_name}")
        elif _has_matrix(child):
            yield f"{name}.{child_name}", in_row


def _is_row(module: nn.Module) -> bool:
    """Several layers or a block in a container: a convolution with its norm and activation is no row."""
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
        raise InputError(f"the layers of the {which} classifier are {listed(names)}; name each once, and one at least.")
    return names


def _modules(network: Network) -> dict[str, nn.Module]:
    return {name: module for name, module in network.named_modules(remove_duplicate=False) if name}


# ---- reading them


def _batches(
    first: Classifier, second: Classifier, images: ImageSet, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same images as each classifier wants them; decoded once where both want the same."""
    own = evaluation_batches(images, first.preprocessing, batch_size)
    if first.preprocessing == second.preprocessing:
        return ((batch, batch) for batch in own)
    return zip(own, evaluation_batches(images, second.preprocessing, batch_size), strict=True)


@contextlib.contextmanager
def _reading(classifier: Classifier, names: Sequence[str], device: str) -> Iterator[Reader]:
    """A function from (B, 3, size, size) inputs to the layers' (B, C) outputs; the network is left as it was."""
    outputs: dict[str, list[Any]] = {name: [] for name in names}
    shorten: dict[str, Callable[[Any], Any]] = dict.fromkeys(names, _shape)
    with contextlib.ExitStack() as stack:
        for module in classifier.network.modules():
            stack.callback(setattr, module, "training", module.training)
        network = classifier.network_on(device=device)

        def run(inputs: Tensor) -> list[Any]:
            for kept in outputs.values():
                kept.clear()
            network(inputs.to(device))
            if odd := [name for name, kept in outputs.items() if len(kept) != 1]:
                raise InputError(f"the layer {odd[0]!r} runs {len(outputs[odd[0]])} times; it must be once. {_OTHER}")
            return [kept[0] for kept in outputs.values()]

        def keep(name: str) -> Callable[[Any], None]:
            # At once: the next layer may change it in place, and whole maps of all layers would fill the memory.
            return lambda output: outputs[name].append(shorten[name](_tensor(name, output)))

        for name in names:
            stack.callback(_tap(network, name, keep(name)).remove)
        shorten.update(_pools(network, names, run, classifier.preprocessing.size))
        yield run


_OTHER = "Name another layer."


def _tap(network: Network, name: str, keep: Callable[[Any], None]) -> Any:
    """Hooks a layer up; the handle that takes the hook away."""
    if name == "features":
        return network.head.register_forward_pre_hook(lambda _, inputs: keep(inputs))
    module = network.head if name == "logits" else _modules(network)[name]
    return module.register_forward_hook(lambda _, __, output: keep(output))


def _tensor(name: str, output: Any) -> Tensor:
    while isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"the layer {name!r} gives a {type(output).__name__}; it must be a tensor. {_OTHER}")
    return output


def _shape(output: Tensor) -> tuple[int, ...]:
    return tuple(output.shape)


def _pools(
    network: Network, names: Sequence[str], run: Callable[[Tensor], list[Any]], size: int
) -> dict[str, Callable[[Tensor], Floats]]:
    """How every layer's output becomes (B, C): two and three blank images tell which axis counts them."""
    last = any(getattr(module, "output_fmt", "") == "NHWC" for module in network.modules())
    two, three = (run(torch.zeros(count, 3, size, size)) for count in (2, 3))
    return {name: _pool(name, shape, larger, last) for name, shape, larger in zip(names, two, three, strict=True)}


def _pool(name: str, two: tuple[int, ...], three: tuple[int, ...], last: bool) -> Callable[[Tensor], Floats]:
    counting = [axis for axis, sizes in enumerate(zip(two, three, strict=False)) if sizes == (2, 3)]
    if len(counting) != 1 or not 2 <= len(two) <= 4:
        raise InputError(
            f"the layer {name!r} gives {two} for two images; it must be a map, tokens or a vector an image. {_OTHER}"
        )
    axes = [axis for axis in range(len(two)) if axis != counting[0]]
    # Images are square, and so are their maps; where a map is a cube, the model's own word counts.
    square = [two[axes[0]] == two[axes[1]], two[axes[1]] == two[axes[2]]] if len(two) == 4 else [True, False]
    last = last if square[0] == square[1] else square[0]
    channel = axes[-1] if last or len(two) < 4 else axes[0]

    def pool(output: Tensor) -> Floats:
        moved = output.detach().float().movedim((counting[0], channel), (0, 1))
        found = moved.reshape(*moved.shape[:2], -1).mean(2).cpu().numpy().astype(np.float64)
        if not np.isfinite(found).all():
            raise InputError(f"the layer {name!r} gives numbers that are not finite. The model's weights are broken.")
        return found

    return pool
