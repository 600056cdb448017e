"""What every training needs: parameter groups, schedule, data order, one safe step on whatever machine there is."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from shiftproof import progress
from shiftproof.errors import DivergenceError, InputError, TrainingInterruptedError
from shiftproof.seeding import child_generator
from shiftproof.training.checkpoints import (
    TrainingState,
    load_checkpoint,
    load_optimizer,
    noticing_sigterm,
    optimizer_tensors,
    require_same_training,
    save_checkpoint,
)
from shiftproof.training.distributed import (
    is_main_process,
    mean_of,
    process_count,
    process_index,
    same_everywhere,
    share_buffers,
    summed,
    translating_lost_process,
    wait_for_main,
)
from shiftproof.training.hardware import LoopSettings, accelerated, prepared, translating_out_of_memory
from shiftproof.training.log import TrainingLog

if TYPE_CHECKING:
    from accelerate import Accelerator

MAX_LOGIT_SCALE = math.log(100)
_LEAST_SCALE = 2.0**-20  # of float16 gradients, halved from 2^16 on at every step that is left out
LARGEST = 1e30  # of a setting: no infinity, which JSON cannot hold, and nothing that overflows a float32 step


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay; biases, norms and scales do not."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """The share of the peak learning rate at a step: a straight rise, then half a cosine down to 0.

    >>> [round(cosine_with_warmup(step, 10, 2), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warmup = min(warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def positions_at(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """The data positions of a step's batch: epochs are permutations, laid end to end without a gap.

    It depends on its arguments alone, so that a resumed training sees the same data, and every image
    is seen equally often, whatever the batch size.

    >>> sorted(positions_at(0, 2, 4, seed=0) + positions_at(1, 2, 4, seed=0))
    [0, 1, 2, 3]
    """
    return [_permutation(count, seed, i // count)[i % count] for i in range(step * batch_size, (step + 1) * batch_size)]


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=child_generator(seed, "order", epoch)).tolist()


def process_share(batch_size: int) -> slice:
    """Which samples of every batch this process sees; alone, it is all of them."""
    count, index = process_count(), process_index()
    if batch_size < count:
        raise InputError(f"a batch of {batch_size} cannot be shared by {count} processes. Raise the batch size.")
    return slice(round(batch_size * index / count), round(batch_size * (index + 1) / count))


def parts_of(count: int, accumulate: int) -> list[slice]:
    """``count`` samples in ``accumulate`` parts that are about equal, or in fewer, so that none is empty.

    >>> parts_of(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    pieces = np.array_split(np.arange(count), min(accumulate, count))
    return [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


def require_equal_shares(what: str, batch_size: int) -> None:
    """Raises an InputError unless the processes can share a contrastive batch equally."""
    if batch_size % process_count():
        raise InputError(
            f"{what} is {batch_size}; {process_count()} processes cannot share it equally. Choose a multiple."
        )


def optimisation_step(
    losses: Tensor | Iterable[Tensor],
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip_norm: float,
    accelerator: Accelerator | None = None,
) -> float:
    """Backward pass, global-norm clip and update at the given learning rate; returns the loss over all processes.

    Several ``losses`` are parts of one, made one after the other and added up. Raises a DivergenceError, with the
    weights as they were before the step, where the loss or a gradient is not finite; in float16, where gradients
    overflow now and then, the step is left out instead, unless they do so at the least scale too.
    """
    optimizer.zero_grad(set_to_none=True)
    taken = []
    for part in [losses] if isinstance(losses, Tensor) else losses:
        _backward(part, accelerator)
        taken.append(part.detach())
    if accelerator is None:
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    else:
        norm = accelerator.clip_grad_norm_(parameters, clip_norm)
    # Both are read at once: each look at a number on a GPU waits for all that runs there.
    loss, size = torch.stack([torch.stack(taken).sum().float(), norm.float()]).tolist()
    loss = mean_of(loss, str(parameters[0].device))
    scaler = accelerator.scaler if accelerator else None
    if not math.isfinite(loss):
        raise DivergenceError(f"the loss is {loss}")
    if not math.isfinite(size) and (scaler is None or scaler.get_scale() < _LEAST_SCALE):
        raise DivergenceError(f"the gradient's norm is {size}")
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
    optimizer.step()
    return float(loss)


def _backward(loss: Tensor, accelerator: Accelerator | None) -> None:
    if accelerator is None:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        accelerator.backward(loss)


def rank_seed_path(part: int) -> tuple[int, ...]:
    """What to add to a generator's name so that processes, and parts of a batch, do not draw the same.

    Empty for the first part of the first process: alone, it draws what it always drew.
    """
    place = (process_index(), part)
    return place if any(place) else ()


@dataclass(frozen=True)
class Course:
    """Where a training is to go: its name for messages, steps, learning rate, and what makes it this and no other.

    ``section`` is that of the run file. ``origin`` holds plain values; checkpoints of another origin are refused.
    ``earlier_origin`` holds those of its values that an earlier version of this package wrote differently.
    ``splits`` says whether a batch may be taken in parts, which saves memory.
    """

    section: str
    stage: str
    steps: int
    warmup: int
    lr: float
    clip_norm: float
    batch_size: int
    origin: Mapping[str, Any]
    splits: bool = True
    earlier_origin: Mapping[str, Any] = field(default_factory=dict)

    def lr_at(self, step: int) -> float:
        """The learning rate of a step: warm-up, then cosine."""
        return self.lr * cosine_with_warmup(step, self.steps, self.warmup)


@dataclass
class Trainer:
    """One training under way: takes steps, says how it goes, writes checkpoints and stops where it is told to.

    ``model`` is the module as it is to be called, ``begun`` what a checkpoint said, where the training goes on.
    """

    module: nn.Module
    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    course: Course
    settings: LoopSettings
    device: str
    folder: Path | None
    terminated: Callable[[], bool]
    log: TrainingLog
    begun: TrainingState | None
    _stops: bool = False
    _started: float = field(default_factory=time.perf_counter)

    @property
    def first(self) -> int:
        """The step to begin with: 0, or the one after the checkpoint."""
        return self.begun.step if self.begun else 0

    @property
    def state(self) -> Mapping[str, Any]:
        """What the training's own code put into the checkpoint."""
        return self.begun.state["own"] if self.begun else {}

    def take(self, step: int, losses: Iterable[Tensor]) -> float:
        """One optimisation step; the loss over all processes. Raises a TrainingError where it cannot be taken."""
        trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        lr = self.course.lr_at(step)
        with translating_lost_process(), translating_out_of_memory(self.course.section, splits=self.course.splits):
            loss = optimisation_step(losses, trainable, self.optimizer, lr, self.course.clip_norm, self.accelerator)
        share_buffers(self.module)
        return loss

    @property
    def skipped(self) -> bool:
        """Whether the last step was left out, since its float16 gradients overflowed."""
        return bool(self.optimizer.step_was_skipped)

    def report(self, step: int, loss: float, **values: float) -> None:
        """Reports a step to the log, to the trackers and to the progress display."""
        speed = (step + 1 - self.first) * self.course.batch_size / (time.perf_counter() - self._started)
        measured = {"loss": loss, **values, "images_per_second": round(speed, 1)}
        self.log.line(step + 1, {"lr": self.course.lr_at(step), **measured})
        progress.report(self.course.stage, step + 1, self.course.steps, **measured)

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due after a step; every process must call this, and all get the same answer."""
        self._stops = bool(summed(np.array([float(self.terminated())]), self.device)[0])
        last = step + 1 == self.course.steps
        return self._stops or last or (step + 1) % self.settings.checkpoint_every == 0

    def save(self, step: int, loop_state: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Writes the checkpoint after ``step`` steps; ``loop_state`` is plain JSON, ``parts`` are tensors by name.

        Raises a TrainingInterruptedError where SIGTERM has asked the training to stop.
        """
        if self.folder is not None and is_main_process():
            scaler = self.accelerator.scaler
            tensors = {"model": self.module.state_dict(), "optimizer": optimizer_tensors(self.optimizer), **parts}
            state = {
                "own": loop_state,
                "origin": self.course.origin,
                "scaler": scaler.state_dict() if scaler else {},
            }
            save_checkpoint(self.folder, TrainingState(step, tensors, state), self.settings.checkpoints_kept)
        wait_for_main(self.device)  # no process goes on, or ends, before it is written
        if self._stops and step < self.course.steps:
            raise TrainingInterruptedError(
                f"{self.course.stage} was asked to stop after step {step} of {self.course.steps}. "
                f"{self.folder} holds all that is needed to go on with `resume=True`."
            )


@contextlib.contextmanager
def training(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    course: Course,
    settings: LoopSettings,
    *,
    device: str,
    folder: Path | None,
    trackers: Sequence[str] = (),
) -> Iterator[Trainer]:
    """A training of a module by an optimiser of its parameters, which goes on from the last checkpoint in ``folder``.

    Without a folder nothing is written, and SIGTERM keeps its effect.
    """
    begun = load_checkpoint(folder) if folder else None
    course = replace(course, origin=json.loads(json.dumps(course.origin)))  # as a checkpoint gives it back
    with accelerated(settings, device) as accelerator, noticing_sigterm(folder is not None) as terminated:
        model = prepared(module, settings, accelerator, device)
        if not same_everywhere(begun.step if begun else 0, device):
            raise InputError(
                f"not all processes find the same checkpoint in {folder}. Choose an `out` that all machines share."
            )
        if begun is not None and folder is not None:
            require_same_training(begun.state["origin"], course.origin, folder, course.earlier_origin)
            _restore(begun, module, optimizer, accelerator.scaler)
        log = TrainingLog(folder, begun.step if begun else 0, trackers, course.origin)
        stepper = accelerator.prepare_optimizer(optimizer, device_placement=False)
        try:
            yield Trainer(module, model, stepper, accelerator, course, settings, device, folder, terminated, log, begun)
        finally:
            log.close()


def _restore(begun: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    try:
        module.load_state_dict(dict(begun.parts["model"]))
    except RuntimeError as error:
        raise InputError(f"the checkpoint is of another model ({error}). Choose another `out`.") from error
    load_optimizer(optimizer, begun.parts["optimizer"])
    if scaler is not None and begun.state["scaler"]:
        scaler.load_state_dict(begun.state["scaler"])
