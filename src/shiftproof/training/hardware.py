"""How a training uses the machine: devices, precision, memory, through Hugging Face's Accelerate."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from shiftproof.errors import InputError, TrainingError, require_at_least, require_choice
from shiftproof.training.distributed import process_count

if TYPE_CHECKING:
    from accelerate import Accelerator

# By the name that accelerate gives it. Weights, gradients and optimiser are float32 in all of them.
PRECISIONS = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class LoopSettings:
    """How a training uses the machine; what it learns depends on it in the last bits only.

    ``precision`` is that of the forward pass (float16 needs a GPU). ``accumulate`` splits every batch into so many
    parts, one after the other, each of which batch norm, where there is any, then measures by itself.
    ``gradient_checkpointing`` computes activations anew in the backward pass. Both save memory. ``channels_last`` and
    ``compile`` may save time. Every ``checkpoint_every`` steps all that is needed to go on is written, and the last
    ``checkpoints_kept`` of these stay.
    """

    precision: str = "float32"
    accumulate: int = 1
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    checkpoint_every: int = 500
    checkpoints_kept: int = 2

    def check_loop(self, section: str) -> None:
        """Raises an InputError that names the key in its section of the run file."""
        require_choice(f"{section}.precision", self.precision, PRECISIONS)
        require_at_least(f"{section}.accumulate", self.accumulate, 1)
        require_at_least(f"{section}.checkpoint_every", self.checkpoint_every, 1)
        require_at_least(f"{section}.checkpoints_kept", self.checkpoints_kept, 1)

    def deciding(self) -> Self:
        """These settings with the defaults where they decide nothing: a training may be resumed with others there."""
        machine: dict[str, Any] = {
            field.name: field.default for field in fields(LoopSettings) if field.name != "precision"
        }
        return replace(self, **machine)


@contextlib.contextmanager
def accelerated(settings: LoopSettings, device: str) -> Iterator[Accelerator]:
    """Hugging Face's accelerator for one training: device, precision and the processes that were joined.

    Accelerate keeps its state for the whole process; that of the caller is put back at the end.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    on_cpu = torch.device(device).type == "cpu"
    if settings.precision == "float16" and on_cpu:
        raise InputError("precision float16 needs a GPU. Use bfloat16 or float32 on a CPU.")
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    if process_count() == 1:  # the processes' own state must outlast a training
        shared.append(PartialState._shared_state)
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield Accelerator(
            mixed_precision=PRECISIONS[settings.precision],
            cpu=on_cpu,
            # Else accelerate reads from the environment by what to divide the loss.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            # The buffers are shared after the step, for what is measured and written then.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
    finally:
        for state, kept in zip(shared, before, strict=True):
            state.clear()
            state.update(kept)


def prepared(module: nn.Module, settings: LoopSettings, accelerator: Accelerator, device: str) -> nn.Module:
    """The module as it is trained: on the device, in the asked precision, over all processes."""
    module = module.to(device)
    if settings.channels_last:
        module = module.to(memory_format=torch.channels_last)
    if settings.compile:
        module.compile()
    return accelerator.prepare_model(module, device_placement=False)  # type: ignore[no-any-return]


def checkpoint_gradients(model: nn.Module) -> None:
    """Has an image tower, or both of a zero-shot model, compute its activations anew in the backward pass.

    To be called in training mode. Raises an InputError where the tower knows no checkpointing, or where batch-norm
    statistics would be moved twice a step, by either pass.
    """
    from open_clip.modified_resnet import ModifiedResNet

    tower = getattr(model, "visual", model)
    try:
        if isinstance(tower, ModifiedResNet):
            raise NotImplementedError("open_clip has none for it")
        if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in model.modules()):
            raise NotImplementedError("its batch norm would take in every batch twice")
        if (trunk := getattr(tower, "trunk", None)) is not None:  # whose refusal open_clip would only log
            trunk.set_grad_checkpointing()
        model.set_grad_checkpointing()  # type: ignore[operator]
    except (AttributeError, NotImplementedError, AssertionError) as error:
        raise InputError(
            f"the image tower {type(tower).__name__} allows no gradient checkpointing ({error}). "
            "Set gradient_checkpointing to false; accumulate saves memory too."
        ) from error


@contextlib.contextmanager
def translating_out_of_memory(section: str, splits: bool = True) -> Iterator[None]:
    """Turns the many ways of running out of memory into one TrainingError that says what to lower."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _memory_is_full(section, error, splits) from error
    except RuntimeError as error:
        # torch's allocator on a CPU raises nothing more particular.
        if type(error) is RuntimeError and re.search("out of memory|can't allocate memory", str(error)):
            raise _memory_is_full(section, error, splits) from error
        raise


def _memory_is_full(section: str, error: BaseException, splits: bool) -> TrainingError:
    told = str(error).splitlines()
    split = f"Raise {section}.accumulate or set" if splits else "Set"
    return TrainingError(
        f"the memory is full ({told[0] if told else type(error).__name__}). "
        f"{split} {section}.gradient_checkpointing and go on with `resume=True`, or start anew with a lower "
        f"{section}.batch_size"
    )
