"""What every training needs: parameter groups, schedule, data order, one safe step, checkpoints."""

from __future__ import annotations

import functools
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.errors import InputError, TrainingError
from shiftproof.models.checkpoints import read_state_dict, write_state_dict
from shiftproof.seeding import child_generator
from shiftproof.storage import read_json, write_json

MAX_LOGIT_SCALE = math.log(100)
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


def optimisation_step(
    loss: Tensor,
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    lr: float,
    clip_norm: float,
) -> None:
    """Backward pass, global-norm clip and update at the given learning rate.

    Raises a TrainingError, with the weights as they were before the step, where the loss or a gradient
    is not finite.
    """
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(parameters, clip_norm)
    if not torch.isfinite(norm):
        raise TrainingError(f"the gradient's norm is {norm.item()}")
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Writes ``folder/step-00000500`` whole or not at all, then drops the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:08d}"
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".step-"))
    write_state_dict(model.state_dict(), temporary / "model.safetensors")
    moments = optimizer.state_dict()["state"]
    write_state_dict(
        {f"{i}.{key}": value for i, entry in moments.items() for key, value in entry.items()},
        temporary / "optimizer.safetensors",
    )
    write_json(temporary / "state.json", {"step": step, **state})
    if target.exists():
        shutil.rmtree(target)
    temporary.rename(target)
    for old in [*sorted(folder.glob("step-*"))[:-1], *folder.glob(".step-*")]:  # also what an interruption left
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Loads the last checkpoint into model and optimiser and returns its state, or None where there is none."""
    found = sorted(folder.glob("step-*"))
    if not found:
        return None
    try:
        model.load_state_dict(read_state_dict(found[-1] / "model.safetensors"))
    except RuntimeError as error:
        raise InputError(f"the checkpoint {found[-1]} is of another model ({error}). Choose another --out.") from error
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in read_state_dict(found[-1] / "optimizer.safetensors").items():
        index, key = name.split(".", 1)
        entries.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return dict(read_json(found[-1] / "state.json"))
