"""LoRA adapters of peft: alpha scales the product B A; A and B are never averaged separately."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.errors import IncompatibleWeightsError, InputError, listed
from shiftproof.storage import read_json
from shiftproof.weights.checkpoints import Checkpoint

_PARTS = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_(embedding_)?([AB])(?:\.weight)?$")
# Initialisations that change the base weights too, so that base plus product is not the trained model.
_OTHER_STARTS = ("pissa", "olora", "loftq", "corda", "lora_ga")


@dataclass(frozen=True)
class Product:
    """The low-rank change of one weight: ``scale`` times B (out, r) A (r, in) (LoRA, Hu et al. 2022, eq. 3).

    ``transposed`` products are those of embeddings. ``repeats`` is how often peft adds the product.
    """

    a: Tensor = field(repr=False)
    b: Tensor = field(repr=False)
    scale: float
    transposed: bool
    repeats: int = 1

    def change(self, shape: Sequence[int]) -> Tensor:
        """Returns the change in float32, in the shape of the weight, or raises an IncompatibleWeightsError."""
        product = self.scale * self.repeats * (self.b.float().flatten(1) @ self.a.float().flatten(1))
        product = product.T if self.transposed else product
        if product.numel() != math.prod(shape):
            raise IncompatibleWeightsError(
                f"a product of {tuple(product.shape)} does not fit a weight of {tuple(shape)}. "
                "Name the base that the adapter was trained on."
            )
        return product.reshape(tuple(shape))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: the products by module, and ``whole`` tensors that replace the base's (biases, for example)."""

    config: Mapping[str, Any] = field(repr=False)
    products: Mapping[str, Product]
    whole: Mapping[str, Tensor] = field(repr=False)


def read_adapter(checkpoint: Checkpoint) -> Adapter:
    """Reads the adapter in a peft directory.

    Raises an InputError that gives the reason if its change is not a plain product, which alpha could scale.
    """
    config = read_json(checkpoint.folder / "adapter_config.json")
    _require_plain_lora(config, checkpoint.path)
    parts: dict[str, dict[str, Tensor]] = {}
    embeddings, whole = set(), {}
    for name, tensor in checkpoint.tensors.items():
        if match := _PARTS.match(name):
            parts.setdefault(match[1], {})[match[3]] = tensor
            embeddings |= {match[1]} if match[2] else set()
        else:
            whole[name.removeprefix("base_model.model.")] = tensor
    if unpaired := [module for module, pair in parts.items() if len(pair) != 2]:
        raise InputError(f"{checkpoint.path} has only one of A and B for {listed(unpaired)}. Restore the adapter.")
    products = {
        module: Product(
            pair["A"],
            pair["B"],
            _scale(config, module, pair["A"].shape[0]),
            transposed=(module in embeddings) != bool(config.get("fan_in_fan_out")),
            # In nn.MultiheadAttention, peft adds the output projection's product twice, in training and in merging.
            repeats=2 if module.endswith(".base_layer.out_proj") else 1,
        )
        for module, pair in parts.items()
    }
    return Adapter(config, products, whole)


class Adapted(Mapping[str, Tensor]):
    """The weights of a base with an adapter, W + scale B A in float32, each computed when it is read."""

    def __init__(self, base: Mapping[str, Tensor], adapter: Adapter) -> None:
        self._base = base
        self._whole = {_entry(base, name, name): tensor for name, tensor in adapter.whole.items()}
        self._products = {
            _entry(base, module, f"{module}.weight", f"{module}.in_proj_weight"): product
            for module, product in adapter.products.items()
        }
        if integral := [name for name in self._products if not base[name].is_floating_point()]:
            raise IncompatibleWeightsError(
                f"the adapter changes weights that the base stores as integers, {listed(integral, 3)}, so the base is "
                "quantised. Name the base before quantisation, or dequantise it first."
            )

    def __getitem__(self, name: str) -> Tensor:
        if name in self._whole:
            return self._whole[name]
        start = self._base[name]
        return start.float() + self._products[name].change(start.shape) if name in self._products else start

    def __iter__(self) -> Iterator[str]:
        return iter(self._base)

    def __len__(self) -> int:
        return len(self._base)


def scaled_adapters(adapters: Sequence[Adapter], shares: Sequence[float]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Returns tensors and config of the adapter whose product is the sum of share times product.

    The sum is exact, because the ranks are stacked. One adapter with the share alpha is the point alpha of the path
    from its base; two with (1 - alpha, alpha) are a point of the path between them. Raises an
    IncompatibleWeightsError if the adapters were not trained on the same base in the same way.
    """
    configs = [adapter.config for adapter in adapters]
    for key in ("fan_in_fan_out", "bias", "modules_to_save", "base_model_name_or_path"):
        if any(config.get(key) != configs[0].get(key) for config in configs):
            raise IncompatibleWeightsError(
                f"the adapters differ in {key}: {listed(config.get(key) for config in configs)}. "
                "Both must have been trained on the same base in the same way."
            )
    if len(adapters) > 1 and any(adapter.whole for adapter in adapters):
        raise IncompatibleWeightsError(
            "the adapters contain whole modules in addition to products. "
            "Merge each into the base, then merge the results."
        )
    if adapters[0].whole and shares[0] != 1:
        raise IncompatibleWeightsError(
            f"the adapter contains whole modules, such as {listed(adapters[0].whole, 1)}, which cannot be scaled "
            "without the base. Merge it into the base, then merge the result with the base."
        )
    tensors: dict[str, Tensor] = {}
    ranks = {}
    for module in dict.fromkeys(module for adapter in adapters for module in adapter.products):
        scaled = [
            (a.products[module], share) for a, share in zip(adapters, shares, strict=True) if module in a.products
        ]
        stem = f"base_model.model.{module}.lora_"
        embedding = scaled[0][0].transposed != bool(configs[0].get("fan_in_fan_out"))
        key_a, key_b = ("embedding_A", "embedding_B") if embedding else ("A.weight", "B.weight")
        tensors[stem + key_a] = torch.cat([product.a for product, _ in scaled], 0)
        tensors[stem + key_b] = torch.cat(
            [(product.b.float() * (product.scale * share)).to(product.b.dtype) for product, share in scaled], 1
        )
        ranks[module] = sum(product.a.shape[0] for product, _ in scaled)
    tensors |= {f"base_model.model.{name}": tensor for name, tensor in adapters[0].whole.items()}
    return tensors, _stacked_config(configs, ranks)


def _stacked_config(configs: Sequence[Mapping[str, Any]], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Returns a config in which every scale is 1, since the products already include theirs."""
    targets = [config.get("target_modules") for config in configs]
    if all(isinstance(target, list) for target in targets):
        joined: Any = sorted({module for target in targets if target for module in target})
    elif all(target == targets[0] for target in targets):
        joined = targets[0]
    else:
        raise IncompatibleWeightsError(f"the adapters differ in target_modules: {listed(targets)}. They must agree.")
    rank = max(ranks.values(), key=list(ranks.values()).count)
    exceptions = {module: r for module, r in ranks.items() if r != rank}
    return {
        **configs[0],
        "target_modules": joined,
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": exceptions,
        "alpha_pattern": exceptions,
    }


def _entry(base: Mapping[str, Tensor], module: str, *candidates: str) -> str:
    """Returns the base's name for what an adapter changes; peft's wrapper of attention adds ``base_layer`` to it."""
    for candidate in candidates:
        if (plain := candidate.replace(".base_layer", "")) in base:
            return plain
    raise IncompatibleWeightsError(
        f"the adapter changes {module!r}, which the base does not have; it has {listed(base, 5)}. "
        "Name the base that the adapter was trained on."
    )


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    pattern = config.get("alpha_pattern") or {}
    fitting = (alpha for key, alpha in pattern.items() if re.match(rf"(.*\.)?({key})$", module))
    alpha = next(fitting, config["lora_alpha"])
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _require_plain_lora(config: Mapping[str, Any], path: Path) -> None:
    if config.get("use_dora"):
        raise InputError(
            f"{path} is a DoRA adapter: its magnitudes do not scale linearly, so alpha does not apply to it. "
            "Merge it into its base with peft (merge_and_unload), and interpolate the two models."
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_OTHER_STARTS):
        raise InputError(
            f"{path} was initialised with {start!r}, which changes the base weights as well. "
            "Convert it to plain LoRA with peft (path_initial_model_for_weight_conversion) first."
        )
    if config.get("peft_type") != "LORA" or config.get("lora_bias") or config.get("layer_replication"):
        raise InputError(
            f"{path} is an adapter of type {config.get('peft_type')} whose change is not a plain product: it is not "
            "LoRA, has lora_bias, or replicates layers. "
            "Merge it into its base with peft (merge_and_unload), and interpolate the two models."
        )
