"""Contrastive image-text pretraining, as CLIP is trained (Radford et al. 2021, arXiv 2103.00020)."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.data.captions import CaptionedSet
from shiftproof.data.loading import normalise
from shiftproof.data.photometric import vary_appearance
from shiftproof.errors import DivergenceError, InputError, TrainingError, require_at_least, require_between
from shiftproof.evaluation.retrieval import recall_at
from shiftproof.models.clip import Clip, model_config
from shiftproof.seeding import child_generator, global_draws
from shiftproof.storage import write_json
from shiftproof.training.distributed import gathered, is_main_process
from shiftproof.training.engine import (
    LARGEST,
    MAX_LOGIT_SCALE,
    Course,
    parameter_groups,
    positions_at,
    process_share,
    rank_seed_path,
    require_equal_shares,
    training,
)
from shiftproof.training.hardware import LoopSettings, checkpoint_gradients
from shiftproof.weights.checkpoints import write_state_dict


@dataclass(frozen=True)
class PretrainSettings(LoopSettings):
    """How to pretrain: ``steps`` batches of ``batch_size`` pairs at the peak rate ``lr``.

    ``photometric`` changes colour and sharpness of the training images at random. ``LoopSettings`` says what the rest
    does; ``accumulate`` must be 1, since every pair is a negative of all others of its batch.
    """

    # A dictionary is all that pydantic needs to refuse unknown keys of a run file.
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    steps: int = 3000
    batch_size: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup_steps: int = 200
    clip_norm: float = 1.0
    photometric: bool = True

    def __post_init__(self) -> None:
        require_at_least("pretrain.steps", self.steps, 1)
        require_at_least("pretrain.batch_size", self.batch_size, 2)
        require_between("pretrain.lr", self.lr, 0, LARGEST)
        require_between("pretrain.weight_decay", self.weight_decay, 0, LARGEST)
        require_between("pretrain.clip_norm", self.clip_norm, 1e-12, LARGEST)
        require_at_least("pretrain.warmup_steps", self.warmup_steps, 0)
        self.check_loop("pretrain")
        if self.accumulate != 1:
            raise InputError(
                f"pretrain.accumulate is {self.accumulate}; a contrastive batch must stay whole. "
                "Set pretrain.gradient_checkpointing to save memory."
            )


class TwoTowers(nn.Module):
    """A zero-shot model as it is trained: (B, 3, size, size) images and (B, L) texts to features of length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        if (bias := getattr(model, "logit_bias", None)) is not None:  # SigLIP's, which cancels in this loss
            bias.requires_grad_(False)

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, D) features of the images and of the texts, and the logit scale."""
        image_features = self.model.encode_image(images, normalize=True)  # type: ignore[operator]
        text_features = self.model.encode_text(texts, normalize=True)  # type: ignore[operator]
        return image_features, text_features, self.model.logit_scale.exp()  # type: ignore[operator]

    @torch.no_grad()
    def clamp_scale(self) -> None:
        """Keeps the logit scale within CLIP's bounds; to be called after every step."""
        self.model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)  # type: ignore[operator]


def contrastive_loss(
    image_features: Tensor, text_features: Tensor, logit_scale: Tensor, targets: Tensor | None = None
) -> Tensor:
    """Symmetric cross-entropy over the N x N similarities; the pair on the diagonal is the right one.

    Both features are (N, D) and normalised; ``logit_scale`` is the factor itself, not its logarithm.
    ``targets`` (N, N), as ``contrastive_targets`` makes them, say instead how much of caption j is in image i. Rows
    are the targets from image to text, columns those from text to image, each divided by its sum; one that sums to 0,
    as that of a caption in no image, is left out of the mean.
    """
    logits = logit_scale * image_features @ text_features.T
    if targets is not None:
        if targets.shape != logits.shape:
            raise InputError(
                f"targets have the shape {tuple(targets.shape)}; they must be {tuple(logits.shape)}: images, captions."
            )
        targets = targets.to(logits)
        return (_shared_cross_entropy(logits, targets) + _shared_cross_entropy(logits.T, targets.T)) / 2
    own = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2


def pretrain(
    clip: Clip,
    data: CaptionedSet,
    settings: PretrainSettings,
    *,
    seed: int,
    out: Path,
    device: str = "cpu",
    trackers: Sequence[str] = (),
) -> dict[str, Any]:
    """Trains a copy of both towers and writes ``out/model`` (open_clip's local-dir layout) and ``out/card.json``.

    Goes on from the last checkpoint in ``out/checkpoints``, if there is one, with the same data order and
    the same random views as if it had never stopped. On SIGTERM it writes a checkpoint and raises a
    TrainingInterruptedError. Returns the card.
    """
    _require_whole_batches(data, settings)
    towers = TwoTowers(deepcopy(clip.model).to(device).train())
    if settings.gradient_checkpointing:
        checkpoint_gradients(towers.model)
    optimizer = torch.optim.AdamW(
        parameter_groups(towers, settings.weight_decay), lr=0.0, betas=(0.9, 0.98), fused=True
    )
    origin = {
        **asdict(settings.deciding()),
        "seed": seed,
        "data": data.name,
        "images": data.digest(),
        "model": clip.name,
    }
    course = Course(
        "pretrain",
        "pretrain",
        settings.steps,
        settings.warmup_steps,
        settings.lr,
        settings.clip_norm,
        settings.batch_size,
        origin,
        splits=False,
    )
    folder = out / "checkpoints"
    started = time.perf_counter()
    with training(towers, optimizer, course, settings, device=device, folder=folder, trackers=trackers) as trainer:
        history: list[dict[str, float]] = list(trainer.state.get("history", []))
        started -= trainer.state.get("seconds", 0.0)
        loss_average = history[-1]["loss"] if history else 0.0
        if trainer.begun is None:  # so that a failure before the first checkpoint leaves good weights, too
            trainer.save(0, {"history": [], "seconds": 0.0})
        for step in range(trainer.first, settings.steps):
            try:
                loss = trainer.take(step, _losses(trainer.model, clip, data, settings, seed, step, device))
            except TrainingError as error:
                advice = " Start anew with a lower pretrain.lr, or with pretrain.precision float32, in another `out`."
                raise type(error)(
                    f"pretraining stopped at step {step + 1}: {error}. The last good weights are in {folder}."
                    f"{advice if isinstance(error, DivergenceError) else ''}"
                ) from error
            towers.clamp_scale()
            loss_average = loss if step == 0 else 0.98 * loss_average + 0.02 * loss
            trainer.report(step, loss_average)
            if trainer.is_checkpoint_due(step):
                history.append({"step": step + 1, "loss": loss_average})
                trainer.save(step + 1, {"history": history, "seconds": time.perf_counter() - started})
    trained = replace(clip, model=towers.model.eval())
    card = {
        "model": clip.name,
        "data": data.name,
        "settings": asdict(settings),
        "pairs_seen": settings.steps * settings.batch_size,
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "machine": _machine(device),
        "final_loss": history[-1]["loss"],
        "history": history,
        "recall_on": data.held_out,
        "recall": held_out_recall(trained, data, seed=seed),
    }
    if is_main_process():
        _save_open_clip(trained, out / "model")
        write_json(out / "card.json", card)
    return card


def _require_whole_batches(data: CaptionedSet, settings: PretrainSettings) -> None:
    if len(data) < settings.batch_size:
        raise InputError(
            f"{data.name} holds {len(data)} images, fewer than pretrain.batch_size {settings.batch_size}: a batch "
            "would hold an image twice, as its own negative. Lower pretrain.batch_size or add images."
        )
    require_equal_shares("pretrain.batch_size", settings.batch_size)


def _losses(
    model: nn.Module,
    clip: Clip,
    data: CaptionedSet,
    settings: PretrainSettings,
    seed: int,
    step: int,
    device: str,
) -> Iterator[Tensor]:
    """The loss of a step's batch, as soon as it is asked for; each of several processes runs its share of the pairs."""
    images, texts = _batch(clip, data, settings, seed, step)
    own = process_share(settings.batch_size)
    with global_draws(seed, "stochastic layers", step, *rank_seed_path(0), device=device):
        image_features, text_features, scale = model(images[own].to(device), texts[own].to(device))
    yield contrastive_loss(gathered(image_features.float()), gathered(text_features.float()), scale)


def _shared_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with rows of targets that need not sum to 1."""
    sums = targets.sum(1)
    counted = sums > 0
    return functional.cross_entropy(logits[counted], targets[counted] / sums[counted, None])


@torch.inference_mode()
def held_out_recall(clip: Clip, data: CaptionedSet, *, seed: int, limit: int = 5000) -> dict[str, dict[str, float]]:
    """Recall@1/5/10 in both directions on views (emoji) that training never drew, or on the files' centre crops."""
    generator = child_generator(seed, "held-out")
    order = torch.randperm(len(data), generator=generator)[:limit].tolist()
    image_features, text_features = [], []
    device = next(clip.model.parameters()).device
    for start in range(0, len(order), 256):
        images, captions = data.batch(order[start : start + 256], clip.preprocessing, generator, train=False)
        inputs = normalise(images, clip.preprocessing).to(device)
        image_features.append(clip.model.encode_image(inputs, normalize=True))  # type: ignore[operator]
        text_features.append(functional.normalize(clip.encode_text(captions), dim=-1))
    to_text = recall_at(torch.cat(image_features), torch.cat(text_features))
    to_image = recall_at(torch.cat(text_features), torch.cat(image_features))
    return {
        "image_to_text": {f"recall@{k}": value for k, value in to_text.items()},
        "text_to_image": {f"recall@{k}": value for k, value in to_image.items()},
    }


def _batch(clip: Clip, data: CaptionedSet, settings: PretrainSettings, seed: int, step: int) -> tuple[Tensor, Tensor]:
    positions = positions_at(step, settings.batch_size, len(data), seed)
    generator = child_generator(seed, "views", step)
    images, captions = data.batch(positions, clip.preprocessing, generator, train=True)
    if settings.photometric:
        images = vary_appearance(images, generator)
    return normalise(images, clip.preprocessing), clip.tokenizer(captions)


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else _processor()
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    """Linux tells the model in a file only; elsewhere the platform module knows it."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return platform.processor() or platform.machine()


def _save_open_clip(clip: Clip, folder: Path) -> None:
    """open_clip's own directory layout, so that ``local-dir:`` loads it there and here."""
    import open_clip

    config = {
        "model_cfg": model_config(str(clip.architecture["name"])),
        "preprocess_cfg": open_clip.get_model_preprocess_cfg(clip.model),
    }
    write_json(folder / "open_clip_config.json", config)
    write_state_dict(clip.model.state_dict(), folder / "open_clip_model.safetensors")
