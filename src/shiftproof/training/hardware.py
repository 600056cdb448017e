"""How a training uses the machine: devices, precision and memory, through Hugging Face's Accelerate."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from shiftproof.errors import InputError, TrainingError, require_at_least, require_choice
from shiftproof.models.devices import resolve_device
from shiftproof.models.memory import lay_out
from shiftproof.models.precision import FASTEST, PRECISIONS, resolved_precision
from shiftproof.training.distributed import process_count

if TYPE_CHECKING:
    from accelerate import Accelerator

# Accelerate's name of each precision. Gradients and the optimiser's state are float32 in all of them.
_NAMES = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class LoopSettings:
    """How a training uses the machine; apart from ``precision``, the settings change a result in the last bits only.

    ``precision`` is that of the forward pass (float16 needs a GPU); "fastest" stands for the fastest one on the device
    (``resolved_precision``). ``accumulate`` splits every batch into this many
    parts, processed one after the other; batch norm, where there is any, then computes its statistics for each part.
    ``gradient_checkpointing`` recomputes activations in the backward pass. Both save memory. ``channels_last`` is the
    memory format; None chooses by the kind of network (``uses_channels_last``). ``compile`` may save time. A checkpoint
    is written every ``checkpoint_every`` steps, and the last ``checkpoints_kept`` of them are kept.
    """

    precision: str = "float32"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    channels_last: bool | None = None
    compile: bool = False
    checkpoint_every: int = 500
    checkpoints_kept: int = 2

    def check_loop(self, section: str) -> None:
        """Raises an InputError that names the key, in its section of the run file, of a value that is not allowed."""
        require_choice(f"{section}.precision", self.precision, (*PRECISIONS, FASTEST))
        require_at_least(f"{section}.accumulate", self.accumulate, 1)
        require_at_least(f"{section}.checkpoint_every", self.checkpoint_every, 1)
        require_at_least(f"{section}.checkpoints_kept", self.checkpoints_kept, 1)

    def resolved_on(self, *, device: str | torch.device = "auto") -> Self:
        """These settings with the precision that they mean on a device."""
        return replace(self, precision=resolved_precision(self.precision, resolve_device(device)))

    def deciding(self) -> Self:
        """These settings with defaults for all that may differ when a training is resumed."""
        machine: dict[str, Any] = {
            field.name: field.default for field in fields(LoopSettings) if field.name != "precision"
        }
        # This was the default of earlier versions, whose checkpoints and directories are to be recognised.
        return replace(self, **machine | {"channels_last": False})


@contextlib.contextmanager
def accelerated(settings: LoopSettings, device: str) -> Iterator[Accelerator]:
    """Hugging Face's accelerator for one training: device, precision and the processes that were joined.

    Accelerate's state is global to the process; the caller's is restored at the end. There is no public way to do so
    (docs/decisions.md). Raises an InputError where a CPU shall train in float16.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    if process_count() == 1:  # the state of joined processes must outlast a training
        shared.append(PartialState._shared_state)
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield Accelerator(
            mixed_precision=_NAMES[resolved_precision(settings.precision, device)],
            cpu=torch.device(device).type == "cpu",
            # Otherwise accelerate reads from the environment by what to divide the loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # The buffers are shared after the step instead, since they are measured and saved then.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        for state, entries in zip(shared, before, strict=True):
            state.clear()
            state.update(entries)


def prepared(
    module: nn.Module, settings: LoopSettings, accelerator: Accelerator, device: str, channels_last: bool
) -> nn.Module:
    """The module as it is trained: on the device, in the memory format and precision, over all processes."""
    module = lay_out(module.to(device), channels_last)
    if settings.compile:
        module.compile()
    return accelerator.prepare_model(module, device_placement=False)  # type: ignore[no-any-return]


def checkpoint_gradients(model: nn.Module) -> None:
    """Makes an image tower, or both towers of a zero-shot model, recompute activations in the backward pass.

    The model must be in training mode. Raises an InputError where the tower does not support it, or where both passes
    would update batch-norm statistics.
    """
    from open_clip.modified_resnet import ModifiedResNet

    tower = getattr(model, "visual", model)
    try:
        if isinstance(tower, ModifiedResNet):
            raise NotImplementedError("open_clip does not implement it")
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in model.modules()):
            raise NotImplementedError("its batch norm would count every batch twice")
        if (trunk := getattr(tower, "trunk", None)) is not None:  # open_clip would only log its refusal
            trunk.set_grad_checkpointing()
        model.set_grad_checkpointing()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"the image tower {type(tower).__name__} does not support gradient checkpointing ({error}). "
            "Set gradient_checkpointing to false; accumulate saves memory too."
        ) from error


@contextlib.contextmanager
def translating_out_of_memory(section: str, splits: bool = True) -> Iterator[None]:
    """Turns the many errors of running out of memory into one TrainingError that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _out_of_memory(section, error, splits) from error
    except RuntimeError as error:
        # torch's CPU allocator raises nothing more specific.
        if type(error) is RuntimeError and re.search("out of memory|can't allocate memory", str(error)):
            raise _out_of_memory(section, error, splits) from error
        raise


def _out_of_memory(section: str, error: BaseException, splits: bool) -> TrainingError:
    lines = str(error).splitlines()
    split = f"Raise {section}.accumulate or set" if splits else "Set"
    return TrainingError(
        f"out of memory ({lines[0] if lines else type(error).__name__}). "
        f"{split} {section}.gradient_checkpointing and continue with `resume=True`, or start again with a lower "
        f"{section}.batch_size"
    )
