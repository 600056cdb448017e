"""The processes of one training, as ``torchrun`` starts them: which of them writes, and what they sum up to."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from shiftproof.errors import TrainingError

Number = TypeVar("Number", np.float32, np.float64)
_LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|timed out|remote process exited", re.IGNORECASE)


def process_count() -> int:
    """How many processes train together; 1 unless they were joined."""
    return distributed.get_world_size() if _joined() else 1


def process_index() -> int:
    """This process's place among them; 0 is the one that writes."""
    return distributed.get_rank() if _joined() else 0


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks to the terminal."""
    return process_index() == 0


@contextlib.contextmanager
def joined_processes(device: str) -> Iterator[None]:
    """Joins the processes that ``torchrun`` started, by NCCL on GPUs and gloo on CPUs; without it nothing happens.

    They meet once: a second time, the launcher's store still holds what they told each other the first time.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or _joined():
        yield
        return
    from accelerate import PartialState

    PartialState(cpu=torch.device(device).type == "cpu")
    try:
        yield
    finally:
        distributed.destroy_process_group()
        PartialState._reset_state()  # else accelerate takes this process for one of several ever after


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
    """Whether all processes hold the same number; all ask, and get one answer."""
    main = summed(np.array([float(number) if is_main_process() else 0.0]), device)[0]
    return bool(summed(np.array([float(number != main)]), device)[0] == 0)


def wait_for_main(device: str) -> None:
    """Returns once every process, the main one too, has come so far."""
    broadcast_from_main(True, device)


def share_buffers(module: nn.Module) -> None:
    """Gives every process the main one's buffers: batch-norm statistics, which each moves by its own samples."""
    if process_count() > 1:
        with translating_lost_process():
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)


@contextlib.contextmanager
def translating_lost_process() -> Iterator[None]:
    """Turns the many ways of losing another process into a TrainingError: that one's message says what happened."""
    try:
        yield
    except RuntimeError as error:
        if process_count() > 1 and _LOST.search(str(error)):
            raise TrainingError("another process has ended, and this one with it; its message says why") from error
        raise


def broadcast_from_main(value: bool, device: str) -> bool:
    """The main process's answer, on every process, once all have asked."""
    asked = np.array([float(value) if is_main_process() else 0.0], dtype=np.float64)
    return bool(summed(asked, device)[0])


def gathered(rows: torch.Tensor) -> torch.Tensor:
    """(B, D) rows of every process, one after the other in the order of processes, with gradients to all of them."""
    return _Gather.apply(rows) if process_count() > 1 else rows


class _Gather(torch.autograd.Function):
    """Every process's rows; backward, each process's rows get the gradients that all processes have for them."""

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
