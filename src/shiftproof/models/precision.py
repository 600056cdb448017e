"""The precision of a forward pass: which ones there are, which is the fastest on a device, and running in one."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from shiftproof.errors import InputError, require_choice

# The type of matrix products and convolutions in each. Weights are float32 in all of them.
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FASTEST = "fastest"
_CPU_INFO = Path("/proc/cpuinfo")
# What benchmarks on processors with and without these instructions say; nothing was measured on any other.
_ADVICE = {
    True: "bfloat16 is about 1.75 times as fast as float32 on a processor with AMX, as this one is",
    False: "bfloat16 is many times slower than float32 on a processor without AMX, as this one is",
    None: "whether bfloat16 is faster than float32 on this processor is not known",
}


def resolved_precision(precision: str, device: str | torch.device) -> str:
    """The precision itself, or the fastest one on a device if it is "fastest".

    On a CPU, that is bfloat16 where the processor has AMX, and float32 otherwise. On CUDA, it is bfloat16 from compute
    capability 8.0 on, and float16 before. On other devices it is float32. Raises an InputError for an unknown
    precision, and for float16 on a CPU.

    >>> resolved_precision("float32", "cpu")
    'float32'
    """
    place = torch.device(device)
    require_choice("precision", precision, (*PRECISIONS, FASTEST))
    if precision == "float16" and place.type == "cpu":
        raise InputError("precision float16 needs a GPU. Use bfloat16 or float32 on a CPU.")
    if precision != FASTEST:
        return precision
    if place.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(place)[0] >= 8 else "float16"
    return "bfloat16" if place.type == "cpu" and runs_bfloat16_fast() else "float32"


def encoded_in(precision: str, encoder: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The outputs of an encoder with float32 weights that runs in a precision, converted to float32.

    In float32, the encoder runs as it is called. Raises an InputError for outputs in float16 that are not finite.

    >>> encoded_in("bfloat16", torch.nn.Linear(2, 3), torch.ones(1, 2)).dtype
    torch.float32
    """
    if precision == "float32":
        return encoder(images)
    # The context keeps copies of the weights, so it must end before they change, as they do along an alpha path.
    with torch.autocast(images.device.type, PRECISIONS[precision]):
        outputs = encoder(images).float()
    if precision == "float16" and not outputs.isfinite().all():
        raise InputError(
            "the features of this model are not finite in float16, whose numbers end at 65,504. Use the precision "
            "bfloat16 or float32."
        )
    return outputs


def runs_bfloat16_fast() -> bool | None:
    """Whether this processor computes faster in bfloat16 than in float32; None where that is not known.

    It does with AMX, and is many times slower without it or any other instructions for bfloat16. Linux lists a
    processor's instructions; other systems are not asked.
    """
    flags = set[str]()
    with contextlib.suppress(OSError):
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
        flags = next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), flags)
    if "amx_bf16" in flags:
        return True
    known = platform.machine() in ("x86_64", "AMD64") and flags and "avx512_bf16" not in flags
    return False if known else None


def precision_advice(precision: str, device: str | torch.device) -> str | None:
    """A line about bfloat16 on this processor, for the start of a training; None on other devices than a CPU."""
    if torch.device(device).type != "cpu":
        return None
    fast = runs_bfloat16_fast()
    better = None if fast is None else resolved_precision(FASTEST, device)
    remedy = "" if better in (None, precision) else f". The precision fastest would be {better} here"
    return f"precision {precision}: {_ADVICE[fast]}{remedy}"
