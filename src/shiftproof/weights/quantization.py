"""Quantised weights, recognised by names, dtypes and configs: their entries mean nothing without their scales."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shiftproof.errors import InputError, listed

# Entries that bitsandbytes, GPTQ, AWQ, compressed-tensors, HQQ and torch write for quantised weights only.
_TRACES = re.compile(
    r"(?:\.SCB|\.weight\.(?:absmax|quant_map|nested_absmax)|\.quant_state\.\w+|\.qweight|\.qzeros|\.W_q|"
    r"\.weight_packed|_packed_params(?:\.\w+)?)$"
)
_WEIGHT = re.compile(r"(?:^|[._])(?:weight|kernel)$")
# What is added to the name of a weight, or replaces it, in the name of its scales.
_SCALES = ("_scale", "_scale_inv", "_scales", ".scale", ".scales", ".weight_scale", ".weight_scale_inv")
_LOW = tuple(
    getattr(torch, name)
    for name in ("int8", "uint8", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
)
_SCALES_ONLY = ("float8_e8m0fnu", "float4_e2m1fn_x2")
_LIBRARIES = re.compile(r"torchao|optimum\.quanto|bitsandbytes|hqq")
_CONFIGS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_WAY_OUT = (
    "Numbers that were rounded by different scales cannot be averaged. Dequantise the model first "
    "(in transformers: model.dequantize(), then save_pretrained), or use the weights before quantisation."
)


def require_unquantized(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raises an InputError that gives the reason if a state dict contains quantised weights.

    Integer entries that are no weights, such as counters and position ids, and float8 weights without scales pass.
    """
    if quantized := [name for name, tensor in tensors.items() if _is_quantized(name, tensor, tensors)]:
        raise InputError(
            f"{path} contains quantised weights: {listed(quantized, 3)} "
            f"({str(tensors[quantized[0]].dtype).removeprefix('torch.')}). {_WAY_OUT}"
        )


def require_unquantized_config(directory: Path, config: Any) -> None:
    """Raises an InputError if the config of a model, or a file beside it, says that its weights are quantised."""
    configs = [config, *config.values()] if isinstance(config, dict) else []
    settings = [inner["quantization_config"] for inner in configs if isinstance(inner, dict) and _names_method(inner)]
    if settings:
        method = settings[0].get("quant_method", "") if isinstance(settings[0], dict) else ""
        sign = f"its config.json has a quantization_config{f' ({method})' if method else ''}"
    elif files := [name for name in _CONFIGS if (directory / name).is_file()]:
        sign = f"it has a {files[0]}"
    else:
        return
    raise InputError(f"{directory} contains quantised weights: {sign}. {_WAY_OUT}")


def require_no_quantizer(reason: str, file: Path) -> None:
    """Raises an InputError if torch refused to unpickle a file because of a class of a library of quantised tensors."""
    if match := _LIBRARIES.search(reason):
        raise InputError(f"{file} contains quantised weights: tensors of {match[0]}. {_WAY_OUT}")


def _names_method(config: Mapping[str, Any]) -> bool:
    return bool(config.get("quantization_config"))


def _is_quantized(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    if tensor.is_quantized or _TRACES.search(name) or str(tensor.dtype).removeprefix("torch.") in _SCALES_ONLY:
        return True
    stem = name.rpartition(".")[0]
    if tensor.dtype in _LOW and any(f"{start}{end}" in tensors for start in (name, stem) if start for end in _SCALES):
        return True
    integral = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    return integral and tensor.dim() > 1 and bool(_WEIGHT.search(name))
