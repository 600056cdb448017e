"""Which layer of an encoder a parameter belongs to, for what treats layers differently by their depth."""

from __future__ import annotations

from typing import Any

from timm.models import group_parameters
from torch import nn

from shiftproof.errors import InputError
from shiftproof.models.classifier import Network

# Parameters that a tower itself holds are listed first, the last projection among them.
_LAST = ("proj",)


def parameter_depths(network: Network) -> dict[str, int]:
    """The depth of every parameter of a network by name: 0 for the lowest layer, the highest number for the head.

    The layers of a timm model are those that timm groups its parameters by. In any other encoder a layer is a numbered
    block, such as ``blocks.3``, in the order in which the encoder lists them. What is listed before the first block is
    layer 0, and what comes after the last block, or is a tower's final projection, is a layer of its own.

    >>> from torch import nn
    >>> encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> parameter_depths(Network(encoder, nn.Linear(2, 2)))["encoder.1.bias"]
    1
    """
    encoder = network.encoder
    layers = _timm_layers(encoder) if has_timm_layers(encoder) else _numbered_layers(encoder)
    depths = {f"encoder.{name}": layer for name, layer in layers.items()}
    top = max(depths.values(), default=0) + 1
    depths |= {f"head.{name}": top for name, _ in network.head.named_parameters()}
    # Counted without gaps: an encoder need not have anything before its first block, or after its last.
    order = {layer: number for number, layer in enumerate(sorted(set(depths.values())))}
    return {name: order[layer] for name, layer in depths.items()}


def has_timm_layers(encoder: nn.Module) -> bool:
    """Whether an encoder is a timm model, or an image tower around one, that groups its parameters by layer."""
    return callable(getattr(_trunk(encoder), "group_matcher", None))


def _timm_layers(encoder: nn.Module) -> dict[str, int]:
    """The layer of every parameter by timm's groups; what a tower adds above the timm model is a layer of its own."""
    trunk = _trunk(encoder)
    groups = group_parameters(trunk, trunk.group_matcher(), reverse=True)  # type: ignore[operator]
    prefix = "" if trunk is encoder else "trunk."
    layers = {f"{prefix}{name}": layer for name, layer in groups.items()}
    top = max(layers.values(), default=0) + 1
    return {name: layers.get(name, top) for name, _ in encoder.named_parameters()}


def _trunk(encoder: nn.Module) -> nn.Module:
    """The timm model inside one of open_clip's image towers, or the encoder itself."""
    trunk = getattr(encoder, "trunk", None)
    return trunk if isinstance(trunk, nn.Module) else encoder


def _numbered_layers(encoder: nn.Module) -> dict[str, int]:
    """The layer of every parameter by the numbered blocks of an encoder."""
    names = [name for name, _ in encoder.named_parameters()]
    blocks = {block: number for number, block in enumerate(dict.fromkeys(b for b in map(_block, names) if b), 1)}
    top = len(blocks) + 1
    layers, after_first = {}, False
    for name in names:
        block = _block(name)
        after_first = after_first or block is not None
        layers[name] = blocks[block] if block else top if after_first or name in _LAST else 0
    return layers


def lock_layers(network: Network, count: int) -> None:
    """Freezes the ``count`` lowest layers of an encoder, their batch-norm statistics included.

    Raises an InputError where the encoder has fewer layers.
    """
    depths = parameter_depths(network)
    if count > (highest := max(depths.values())):
        raise InputError(f"finetune.locked_layers is {count}; the encoder has {highest} layers. Choose at most that.")
    parameters = dict(network.named_parameters())
    locked = {name for name, layer in depths.items() if layer < count}
    for name in locked:
        parameters[name].requires_grad_(False)
    for place, module in network.named_modules():
        names = {f"{place}.{name}" for name, _ in module.named_parameters()}
        if names and names <= locked:  # a module is frozen with everything in it
            keep_in_evaluation(module)


def keep_in_evaluation(module: nn.Module) -> None:
    """Keeps a frozen module's batch-norm statistics and dropout as in evaluation, whatever mode a parent is put in."""
    module.eval()
    module.train = lambda mode=True: nn.Module.train(module, False)  # type: ignore[method-assign]


def decayed_groups(network: Network, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups by layer, whose ``lr_share`` falls by ``layer_decay`` from one layer to the next lower one.

    As in ``training.parameter_groups``, ``weight_decay`` applies to matrices, and not to biases, norms and scales.
    """
    depths = parameter_depths(network)
    top = max(depths.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depths[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": members, "weight_decay": weight_decay if decays else 0.0, "lr_share": layer_decay ** (top - layer)}
        for (layer, decays), members in groups.items()
    ]


def _block(name: str) -> str | None:
    """A parameter's name up to its first number, or None where it has none."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])
