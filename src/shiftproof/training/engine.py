"""What every training needs: parameter groups, schedule, data order, one optimisation step, and checkpoints."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
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
from shiftproof.models.memory import uses_channels_last
from shiftproof.models.precision import precision_advice
from shiftproof.seeding import child_generator
from shiftproof.training.checkpoints import (
    TrainingState,
    load_checkpoint,
    load_optimizer,
    noticing_stop_signals,
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
_LEAST_SCALE = 2.0**-20  # of float16 gradients; it starts at 2^16 and is halved at every step that is skipped
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = "stopping after this step, to write a checkpoint; press Ctrl-C again to stop at once"
LARGEST = 1e30  # of a setting: JSON cannot hold infinity, and larger values overflow a float32 step


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups for an optimiser: matrices with weight decay, and the rest without.

    Biases, norms and scales are the rest: whatever has fewer than two dimensions.

    >>> [group["weight_decay"] for group in parameter_groups(nn.Linear(2, 2), 0.1)]
    [0.1, 0.0]
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """The fraction of the peak learning rate, in [0, 1], at a step: a linear rise, then half a cosine down to 0.

    ``step`` counts from 0 to ``total`` - 1. It is (step + 1) / warmup during the warm-up, and then
    (1 + cos(pi (step - warmup) / (total - warmup))) / 2 (Loshchilov and Hutter 2017, eq. 5).

    >>> [round(cosine_with_warmup(step, 10, 2), 2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.04]
    """
    warmup = min(warmup, total)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def positions_at(step: int, batch_size: int, count: int, seed: int) -> list[int]:
    """The data positions of a step's batch: epochs are permutations, concatenated without a gap.

    The result depends on the arguments alone. A resumed training therefore sees the same data, and every image is
    seen equally often, whatever the batch size.

    >>> sorted(positions_at(0, 2, 4, seed=0) + positions_at(1, 2, 4, seed=0))
    [0, 1, 2, 3]
    """
    return [_permutation(count, seed, i // count)[i % count] for i in range(step * batch_size, (step + 1) * batch_size)]


@functools.lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=child_generator(seed, "order", epoch)).tolist()


def process_share(batch_size: int) -> slice:
    """The samples of every batch that this process trains on; all of them where there is one process."""
    count, index = process_count(), process_index()
    if batch_size < count:
        raise InputError(f"a batch of {batch_size} cannot be shared by {count} processes. Raise the batch size.")
    return slice(round(batch_size * index / count), round(batch_size * (index + 1) / count))


def parts_of(count: int, accumulate: int) -> list[slice]:
    """``count`` samples in ``accumulate`` parts of about equal size, or in fewer, so that none is empty.

    >>> parts_of(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    pieces = np.array_split(np.arange(count), min(accumulate, count))
    return [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]


def smallest_part(batch_size: int, accumulate: int = 1) -> int:
    """The number of images in the smallest part that a network sees of a batch, over all processes.

    >>> smallest_part(8, accumulate=3)
    2
    """
    count = process_count()
    shares = [round(batch_size * (i + 1) / count) - round(batch_size * i / count) for i in range(count)]
    return min(share // min(accumulate, share) if share else 0 for share in shares)


def require_images_for_batch_norm(section: str, module: nn.Module, batch_size: int, accumulate: int = 1) -> None:
    """Raises an InputError where batch norm in training mode would compute its statistics from one image."""
    if smallest_part(batch_size, accumulate) >= 2:
        return
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if not any(layer.training for layer in layers):
        return
    divided = [f"{section}.batch_size is {batch_size}"]
    divided += [f"{section}.accumulate is {accumulate}"] if accumulate > 1 else []
    divided += [f"{process_count()} processes share the batch"] if process_count() > 1 else []
    lower = f", or lower {section}.accumulate" if accumulate > 1 else ""
    raise InputError(
        f"{' and '.join(divided)}, so that some parts hold one image; the network's batch norm needs at least two in "
        f"each. Raise {section}.batch_size to {2 * accumulate * process_count()} or more{lower}."
    )


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

    Several ``losses`` are parts of one loss; they are computed one after the other and added up. Raises a
    DivergenceError, before the weights change, where the loss or a gradient is not finite. In float16, where gradients
    overflow now and then, the step is skipped instead, unless they overflow at the smallest scale, too.
    """
    optimizer.zero_grad(set_to_none=True)
    part_losses = []
    for part in [losses] if isinstance(losses, Tensor) else losses:
        _backward(part, accelerator)
        part_losses.append(part.detach())
    if accelerator is None:
        norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    else:
        norm = accelerator.clip_grad_norm_(parameters, clip_norm)
    # Both are read at once, since each read of a number on a GPU waits for everything that runs there.
    loss, size = torch.stack([torch.stack(part_losses).sum().float(), norm.float()]).tolist()
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
    """What to add to a generator's path so that processes, and parts of a batch, draw different numbers.

    It is empty for the first part of the first process, which draws the same numbers as a process that trains alone.
    """
    place = (process_index(), part)
    return place if any(place) else ()


@dataclass(frozen=True)
class Course:
    """The plan of a training: its name in messages, its steps and learning rate, and what identifies it.

    ``section`` is that of the run file. ``origin`` holds the plain values that identify the training; checkpoints of
    another origin are refused. ``earlier_origin`` holds those of its values that an earlier version of this package
    wrote differently. ``splits`` says whether a batch may be processed in parts, which saves memory.
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
    """A training in progress: takes steps, reports them, writes checkpoints and stops on SIGTERM and Ctrl-C.

    ``model`` is the wrapped module that must be called in the forward pass; ``begun`` is the checkpoint that the
    training resumes from. ``channels_last`` is the memory format of the weights, which suits the images, too.
    """

    module: nn.Module
    model: nn.Module
    optimizer: Any
    accelerator: Accelerator
    course: Course
    settings: LoopSettings
    device: str
    folder: Path | None
    stop_signal: Callable[[], int]
    log: TrainingLog
    begun: TrainingState | None
    channels_last: bool
    _stopped_by: int = 0
    _started: float = field(default_factory=time.perf_counter)

    @property
    def first(self) -> int:
        """The first step to take: 0, or the one after the checkpoint."""
        return self.begun.step if self.begun else 0

    @property
    def state(self) -> Mapping[str, Any]:
        """The ``loop_state`` that was saved with the checkpoint."""
        return self.begun.state["own"] if self.begun else {}

    def take(self, step: int, losses: Iterable[Tensor]) -> float:
        """Takes an optimisation step; returns the loss over all processes. Raises a TrainingError where that fails."""
        trainable = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        lr = self.course.lr_at(step)
        with translating_lost_process(), translating_out_of_memory(self.course.section, splits=self.course.splits):
            loss = optimisation_step(losses, trainable, self.optimizer, lr, self.course.clip_norm, self.accelerator)
        share_buffers(self.module)
        return loss

    @property
    def skipped(self) -> bool:
        """Whether the last step was skipped because its float16 gradients overflowed."""
        return bool(self.optimizer.step_was_skipped)

    def report(self, step: int, loss: float, **values: float) -> None:
        """Reports a step to the log, to the trackers and to the progress display."""
        speed = (step + 1 - self.first) * self.course.batch_size / (time.perf_counter() - self._started)
        measured = {"loss": loss, **values, "images_per_second": round(speed, 1)}
        self.log.line(step + 1, {"lr": self.course.lr_at(step), **measured})
        progress.report(self.course.stage, step + 1, self.course.steps, **measured)

    def is_checkpoint_due(self, step: int) -> bool:
        """Whether a checkpoint is due after a step; every process must call this, and all get the same answer."""
        here = self.stop_signal()
        arrived = summed(np.array([float(here == number) for number in _STOP_SIGNALS]), self.device)
        self._stopped_by = next((n for n, processes in zip(_STOP_SIGNALS, arrived, strict=True) if processes), 0)
        last = step + 1 == self.course.steps
        return bool(self._stopped_by) or last or (step + 1) % self.settings.checkpoint_every == 0

    def must_stop(self) -> bool:
        """Whether what follows a step must be left out because of SIGTERM or Ctrl-C.

        Several processes leave nothing out, since a signal reaches each of them at another time.
        """
        return process_count() == 1 and bool(self.stop_signal())

    def save_and_stop(self, step: int, loop_state: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Writes the checkpoint as ``save`` does, and ends the training because of the signal that has arrived."""
        self._stopped_by = self.stop_signal()
        self.save(step, loop_state, **parts)

    def save(self, step: int, loop_state: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Writes the checkpoint after ``step`` steps; ``loop_state`` is plain JSON, ``parts`` are tensors by name.

        Raises a TrainingInterruptedError after SIGTERM and Ctrl-C.
        """
        if self.folder is not None and is_main_process():
            scaler = self.accelerator.scaler
            tensors = {"model": self.module.state_dict(), "optimizer": optimizer_tensors(self.optimizer), **parts}
            state = {
                "own": loop_state,
                "origin": self.course.origin,
                "scaler": scaler.state_dict() if scaler else {},
                "channels_last": self.channels_last,
            }
            save_checkpoint(self.folder, TrainingState(step, tensors, state), self.settings.checkpoints_kept)
        wait_for_main(self.device)  # no process continues, or ends, before it is written
        if self._stopped_by:
            raise TrainingInterruptedError(
                f"{self.course.stage} was interrupted after step {step} of {self.course.steps}. "
                f"Continue with `resume=True`: the checkpoint is in {self.folder}.",
                self._stopped_by,
            )

    def save_before_unreadable(self, step: int, loop_state: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> None:
        """Writes the checkpoint after ``step`` steps because the data of the next one cannot be read.

        Several processes write none, since the others would wait for this one in the middle of their step.
        """
        if step > self.first and process_count() == 1:
            self.save(step, loop_state, **parts)


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
    """Trains a module with an optimiser of its parameters, resuming from the last checkpoint in ``folder``.

    Without a folder, nothing is written, and SIGTERM and Ctrl-C keep their usual effect. Raises an InputError where the
    checkpoint is damaged, is of another training or model, or is not the same for all processes.
    """
    begun = load_checkpoint(folder) if folder else None
    course = replace(course, origin=json.loads(json.dumps(course.origin)))  # as it is read from a checkpoint
    notice = _NOTICE if is_main_process() else ""
    with (
        accelerated(settings, device) as accelerator,
        noticing_stop_signals(folder is not None, notice) as stop_signal,
    ):
        channels_last = uses_channels_last(module, device, _memory_format(settings, begun))
        model = prepared(module, settings, accelerator, device, channels_last)
        if not same_everywhere(begun.step if begun else 0, device):
            raise InputError(
                f"the processes see different checkpoints in {folder}. Choose an `out` that all machines share."
            )
        if begun is not None and folder is not None:
            require_same_training(begun.state["origin"], course.origin, folder, course.earlier_origin)
            _restore(begun, module, optimizer, accelerator.scaler)
        if advice := precision_advice(settings.precision, device):
            progress.note(f"{course.stage}: {advice}")
        log = TrainingLog(folder, begun.step if begun else 0, trackers, course.origin)
        stepper = accelerator.prepare_optimizer(optimizer, device_placement=False)
        try:
            parts = (module, model, stepper, accelerator, course, settings)
            yield Trainer(*parts, device, folder, stop_signal, log, begun, channels_last)
        finally:
            log.close()


def _memory_format(settings: LoopSettings, begun: TrainingState | None) -> bool | None:
    """The setting; where there is none, a resumed training keeps its format, which earlier versions did not record."""
    if settings.channels_last is None and begun is not None:
        return bool(begun.state.get("channels_last", False))
    return settings.channels_last


def _restore(begun: TrainingState, module: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
    try:
        module.load_state_dict(dict(begun.parts["model"]))
    except RuntimeError as error:
        raise InputError(f"the checkpoint is of another model ({error}). Choose another `out`.") from error
    load_optimizer(optimizer, begun.parts["optimizer"])
    if scaler is not None and begun.state["scaler"]:
        scaler.load_state_dict(begun.state["scaler"])
