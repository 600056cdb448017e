"""Contrastive image-text pretraining, as CLIP is trained (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shiftproof.data.captions import CaptionedSet
from shiftproof.data.loading import normalise
from shiftproof.data.photometric import vary_appearance
from shiftproof.errors import DivergenceError, InputError, TrainingError, refuse_path
from shiftproof.models.clip import Clip, model_config, require_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.transformers import DualEncoder, Tokenizer, save_transformers
from shiftproof.pretraining.loss import contrastive_loss, sigmoid_loss
from shiftproof.pretraining.recall import held_out_recall
from shiftproof.pretraining.settings import PretrainSettings
from shiftproof.pretraining.towers import TwoTowers
from shiftproof.records.codec import to_json
from shiftproof.records.pretraining import LossPoint, PretrainRecord
from shiftproof.seeding import child_generator, global_draws
from shiftproof.storage import write_json
from shiftproof.training.distributed import gathered, is_main_process
from shiftproof.training.engine import (
    Course,
    Trainer,
    parameter_groups,
    positions_at,
    process_share,
    rank_seed_path,
    require_equal_shares,
    require_images_for_batch_norm,
    training,
)
from shiftproof.training.hardware import checkpoint_gradients
from shiftproof.weights.checkpoints import write_state_dict


def pretrain(
    clip: Clip,
    data: CaptionedSet,
    settings: PretrainSettings,
    *,
    seed: int,
    out: str | Path,
    device: str | torch.device = "auto",
    trackers: Sequence[str] = (),
) -> PretrainRecord:
    """Trains a copy of both towers and writes ``out/model`` and ``out/card.json``.

    ``out/model`` has the layout of the library that the model comes from: open_clip's local-dir, or that of
    transformers. Returns the record that ``card.json`` holds. Minimises ``contrastive_loss`` over the image-text pairs
    of every batch (Radford et al. 2021, arXiv 2103.00020), or ``sigmoid_loss`` for a model with a logit bias (Zhai et
    al. 2023, arXiv 2303.15343). Resumes from the last checkpoint in ``out/checkpoints``, if there is
    one, with the same data order and random views as an uninterrupted training. ``trackers`` may name tensorboard and
    wandb.

    Raises an InputError where ``data`` holds fewer pairs than a batch, where a file of it is missing, where batch norm
    would see a single image, or where the checkpoints are of another training; a TrainingInterruptedError on SIGTERM
    and Ctrl-C, after writing a checkpoint; a DivergenceError where the loss or a gradient is not finite, and a
    TrainingError when out of memory.
    """
    require_clip(clip)
    refuse_path("data", data, "captioned images, e.g. load_captioned_set('csv:PATH')")
    out = Path(out)
    _require_whole_batches(data, settings)
    device = resolve_device(device)
    settings = settings.resolved_on(device=device)
    data.require_readable()
    job = _Job(clip, data, settings, seed, device, out, time.perf_counter())
    towers = TwoTowers(deepcopy(clip.model).to(job.device).train())
    require_images_for_batch_norm("pretrain", towers, settings.batch_size)
    if settings.gradient_checkpointing:
        checkpoint_gradients(towers.model)
    optimizer = torch.optim.AdamW(
        parameter_groups(towers, settings.weight_decay), lr=0.0, betas=(0.9, 0.98), fused=True
    )
    course, folder = job.course(), job.checkpoints
    with training(towers, optimizer, course, settings, device=job.device, folder=folder, trackers=trackers) as trainer:
        history, seconds = _train(job, towers, trainer)
    trained = replace(clip, model=towers.model.eval())
    record = job.record(history, seconds, held_out_recall(trained, data, seed=seed))
    if is_main_process():
        _save_model(trained, out / "model")
        write_json(out / "card.json", to_json(record))
    return record


@dataclass(frozen=True)
class _Job:
    """The inputs of one pretraining, and when it started."""

    clip: Clip
    data: CaptionedSet
    settings: PretrainSettings
    seed: int
    device: str
    out: Path
    started: float

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.out / "checkpoints"

    def course(self) -> Course:
        """The course of the training; checkpoints of a course with another origin are refused."""
        settings = self.settings
        return Course(
            section="pretrain",
            stage="pretrain",
            steps=settings.steps,
            warmup=settings.warmup_steps,
            lr=settings.lr,
            clip_norm=settings.clip_norm,
            batch_size=settings.batch_size,
            origin={
                **asdict(settings.deciding()),
                "seed": self.seed,
                "data": self.data.name,
                "images": self.data.digest(),
                "model": self.clip.name,
            },
            splits=False,
        )

    def record(
        self, history: Sequence[dict[str, float]], seconds: float, recall: dict[str, dict[str, float]]
    ) -> PretrainRecord:
        """The record of the finished training."""
        return PretrainRecord(
            model=self.clip.name,
            data=self.data.name,
            settings=asdict(self.settings),
            pairs_seen=self.settings.steps * self.settings.batch_size,
            seed=self.seed,
            seconds=round(seconds, 1),
            machine=_machine(self.device),
            final_loss=history[-1]["loss"],
            history=tuple(LossPoint(step=int(point["step"]), loss=point["loss"]) for point in history),
            recall_on=self.data.held_out,
            recall=recall,
        )


def _train(job: _Job, towers: TwoTowers, trainer: Trainer) -> tuple[list[dict[str, float]], float]:
    """Takes the remaining steps; returns the loss at every checkpoint and the seconds, earlier ones included."""
    history: list[dict[str, float]] = list(trainer.state.get("history", []))
    started = job.started - trainer.state.get("seconds", 0.0)
    loss_average = history[-1]["loss"] if history else 0.0
    if trainer.begun is None:  # a failure before the first checkpoint must leave usable weights, too
        trainer.save(0, {"history": [], "seconds": 0.0})

    def state(steps: int) -> dict[str, Any]:
        if not history or history[-1]["step"] < steps:
            history.append({"step": steps, "loss": loss_average})
        return {"history": history, "seconds": time.perf_counter() - started}

    for step in range(trainer.first, job.settings.steps):
        try:
            loss = trainer.take(step, _losses(job, trainer.model, step))
        except InputError:
            trainer.save_before_unreadable(step, state(step))
            raise
        except TrainingError as error:
            raise _stopped(error, step, job) from error
        towers.clamp_scale()
        loss_average = loss if step == 0 else 0.98 * loss_average + 0.02 * loss
        trainer.report(step, loss_average)
        if trainer.is_checkpoint_due(step):
            trainer.save(step + 1, state(step + 1))
    return history, time.perf_counter() - started


def _losses(job: _Job, model: nn.Module, step: int) -> Iterator[Tensor]:
    """The loss of a step's batch; each of several processes runs its share of the pairs through the towers."""
    images, texts = _batch(job, step)
    share = process_share(job.settings.batch_size)
    with global_draws(job.seed, "stochastic layers", step, *rank_seed_path(0), device=job.device):
        image_features, text_features, scale, bias = model(images[share].to(job.device), texts[share].to(job.device))
    features = gathered(image_features.float()), gathered(text_features.float())
    yield contrastive_loss(*features, scale) if bias is None else sigmoid_loss(*features, scale, bias)


def _batch(job: _Job, step: int) -> tuple[Tensor, Tensor]:
    """A step's images (B, 3, size, size), normalised, and its tokens (B, L)."""
    positions = positions_at(step, job.settings.batch_size, len(job.data), job.seed)
    generator = child_generator(job.seed, "views", step)
    images, captions = job.data.batch(positions, job.clip.preprocessing, generator, train=True)
    if job.settings.photometric:
        images = vary_appearance(images, generator)
    return normalise(images, job.clip.preprocessing), job.clip.tokenizer(captions)


def _stopped(error: TrainingError, step: int, job: _Job) -> TrainingError:
    advice = " Start again with a lower pretrain.lr, or with pretrain.precision float32, in another `out`."
    return type(error)(
        f"pretraining stopped at step {step + 1}: {error}. The last good weights are in {job.checkpoints}."
        f"{advice if isinstance(error, DivergenceError) else ''}"
    )


def _require_whole_batches(data: CaptionedSet, settings: PretrainSettings) -> None:
    if len(data) < settings.batch_size:
        raise InputError(
            f"{data.name} holds {len(data)} images, fewer than pretrain.batch_size {settings.batch_size}: a batch "
            "would contain an image twice, as a negative of itself. Lower pretrain.batch_size or add images."
        )
    require_equal_shares("pretrain.batch_size", settings.batch_size)


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    """The name of the processor: Linux has it in a file only, and elsewhere the platform module returns it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()


def _save_model(clip: Clip, folder: Path) -> None:
    """Writes the layout of the model's library: transformers' own, or open_clip's, which ``local-dir:`` loads."""
    import open_clip

    if isinstance(clip.model, DualEncoder) and isinstance(clip.tokenizer, Tokenizer):
        save_transformers(clip.model, clip.tokenizer, clip.preprocessing, folder)
        return
    config = {
        "model_cfg": model_config(str(clip.architecture["name"])),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(clip.model),
    }
    write_json(folder / "open_clip_config.json", config)
    write_state_dict(clip.model.state_dict(), folder / "open_clip_model.safetensors")
