"""Which layer of an encoder a parameter belongs to, for what treats layers differently by their depth."""

from __future__ import annotations

from typing import Any

from torch import nn

from shiftproof.errors import InputError
from shiftproof.models.classifier import Network

# Parameters that a tower itself holds are listed first, the last projection among them.
_LAST = ("proj",)


def parameter_depths(network: Network) -> dict[str, int]:
    """The depth of every parameter of a network, the lowest layer being 0 and the head the highest.

    A layer is a numbered block, ``blocks.3`` say, in the order in which the encoder lists them; what is listed before
    the first is layer 0 and what comes after the last, or is a tower's final projection, is a layer of its own.

    >>> from torch import nn
    >>> encoder = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> parameter_depths(Network(encoder, nn.Linear(2, 2)))["encoder.1.bias"]
    1
    """
    names = [name for name, _ in network.encoder.named_parameters()]
    blocks = {block: number for number, block in enumerate(dict.fromkeys(b for b in map(_block, names) if b), 1)}
    top = len(blocks) + 1
    found, seen = {}, False
    for name in names:
        block = _block(name)
        seen = seen or block is not None
        found[f"encoder.{name}"] = blocks[block] if block else top if seen or name in _LAST else 0
    found |= {f"head.{name}": top + 1 for name, _ in network.head.named_parameters()}
    # Counted without gaps: an encoder need not have anything before its first block, or after its last.
    order = {layer: number for number, layer in enumerate(sorted(set(found.values())))}
    return {name: order[layer] for name, layer in found.items()}


def lock_layers(network: Network, count: int) -> None:
    """Freezes the lowest layers of an encoder, batch-norm statistics included."""
    depth = parameter_depths(network)
    if count > (highest := max(depth.values())):
        raise InputError(f"finetune.locked_layers is {count}; the encoder has {highest} layers. Choose at most that.")
    parameters = dict(network.named_parameters())
    locked = {name for name, layer in depth.items() if layer < count}
    for name in locked:
        parameters[name].requires_grad_(False)
    for place, module in network.named_modules():
        own = {f"{place}.{name}" for name, _ in module.named_parameters()}
        if own and own <= locked:  # with all that is below it
            keep_in_evaluation(module)


def keep_in_evaluation(module: nn.Module) -> None:
    """Keeps a frozen module's batch-norm statistics and dropout as in evaluation, whatever mode a parent is put in."""
    module.eval()
    module.train = lambda mode=True: nn.Module.train(module, False)  # type: ignore[method-assign]


def decayed_groups(network: Network, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameter groups a layer, whose ``lr_share`` falls by ``layer_decay`` from one layer to the next lower one.

    As in ``training.parameter_groups``, matrices decay, and biases, norms and scales do not.
    """
    depth = parameter_depths(network)
    top = max(depth.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((depth[name], parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": own, "weight_decay": weight_decay if decays else 0.0, "lr_share": layer_decay ** (top - layer)}
        for (layer, decays), own in groups.items()
    ]


def _block(name: str) -> str | None:
    """A parameter's name up to its first number, or None where it has none."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if number is None else ".".join(parts[: number + 1])
