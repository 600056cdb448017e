"""The processes of one job, as ``torchrun`` starts them: which of them writes, and what they tell each other."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from shiftproof.errors import TrainingError

Number = TypeVar("Number", np.float32, np.float64)
Value = TypeVar("Value")
# How long a process waits for another, which may build a head or make a report meanwhile. The loss of a process is
# noticed at once, by the closed connection or by torchrun.
_PATIENCE = timedelta(hours=4)
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|remote process exited", re.IGNORECASE)


def process_count() -> int:
    """The number of processes that share a job; 1 unless they were joined."""
    return distributed.get_world_size() if _joined() else 1


def process_index() -> int:
    """The rank of this process; the process of rank 0 writes the files."""
    return distributed.get_rank() if _joined() else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes files and prints to the terminal."""
    return process_index() == 0


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, by NCCL on GPUs and gloo on CPUs; does nothing without torchrun.

    They can be joined only once: the launcher's store still holds the messages of the first time at a second attempt.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _joined():
        yield
        return
    from accelerate import PartialState

    PartialState(cpu=torch.device(device).type == "cpu", timeout=_PATIENCE)
    try:
        yield
    finally:
        distributed.destroy_process_group()
        PartialState._reset_state()  # otherwise accelerate goes on to treat this process as one of several


def summed(values: NDArray[Number], device: str) -> NDArray[Number]:
    """The sum of an array over all processes, on each of them."""
    if process_count() == 1:
        return values
    tensor = torch.from_numpy(values).to(device)
    with translating_lost_process():
        distributed.all_reduce(tensor)
    return tensor.cpu().numpy()


def mean_of(value: float, device: str) -> float:
    """The mean of a number over all processes, on each of them."""
    return float(summed(np.array([value / process_count()]), device)[0])


def same_everywhere(number: int, device: str) -> bool:
    """Whether all processes hold the same number; every process must call this, and all get the same answer."""
    main = summed(np.array([float(number) if is_main_process() else 0.0]), device)[0]
    return bool(summed(np.array([float(number != main)]), device)[0] == 0)


def wait_for_main(device: str) -> None:
    """Returns once every process, including the main one, has reached this call."""
    summed(np.zeros(1), device)


def share_buffers(module: nn.Module) -> None:
    """Copies the main process's buffers to all: batch-norm statistics, which every process updates with its share."""
    if process_count() > 1:
        with translating_lost_process():
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)


@contextlib.contextmanager
def translating_lost_process() -> Iterator[None]:
    """Turns the many errors after the loss of another process into one TrainingError."""
    try:
        yield
    except RuntimeError as error:
        if process_count() > 1 and _LOST.search(str(error)):
            raise TrainingError(
                "another process has ended, and this one with it; see the message of that process for the cause"
            ) from error
        raise


def broadcast_from_main(value: Value) -> Value:
    """Returns the main process's value on every process; every process must call this."""
    if process_count() == 1:
        return value
    values = [value]
    with translating_lost_process():
        distributed.broadcast_object_list(values, 0)
    return values[0]


def gathered_on_main(value: Value) -> list[Value]:
    """The values of all processes in the order of ranks on the main process, none on the others; all must call this."""
    if process_count() == 1:
        return [value]
    values: list[Any] | None = [None] * process_count() if is_main_process() else None
    with translating_lost_process():
        distributed.gather_object(value, values, 0)
    return values or []


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """The (B, D) rows of every process, concatenated in the order of ranks, with gradients to all of them."""
    return _Gather.apply(rows) if process_count() > 1 else rows


class _Gather(torch.autograd.Function):
    """Every process's rows; in the backward pass, each process's rows receive the sum of all processes' gradients."""

    @staticmethod
    def forward(context: torch.autograd.function.FunctionCtx, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows) for _ in range(process_count())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        distributed.all_reduce(gradient)
        return gradient.chunk(process_count())[process_index()]


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
