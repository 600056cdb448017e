"""The fine-tuning loop: from a start to a fine-tuned classifier of the same architecture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from shiftproof import progress
from shiftproof.augmentation.plans import mix_images
from shiftproof.augmentation.targets import mix_targets
from shiftproof.data.batches import decoded_once, training_batches
from shiftproof.data.suites import ShiftSuite
from shiftproof.errors import InputError, TrainingError
from shiftproof.evaluation.metrics import accuracy
from shiftproof.evaluation.predictions import predict
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier, Network, fingerprint
from shiftproof.models.directories import save_classifier
from shiftproof.seeding import child_generator, child_seed, global_draws
from shiftproof.training import cosine_with_warmup, optimisation_step, parameter_groups, positions_at


def finetune(
    start: Classifier,
    suite: ShiftSuite,
    settings: FinetuneSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    keep: Path | None = None,
) -> Classifier:
    """Fine-tunes on ``suite.reference.train`` and returns a new classifier; ``start`` stays as it was.

    The validation split is scored after each epoch, for the history in ``training`` only: the last weights are
    returned, none are picked. A shift is never read. Where ``settings.ema_decay`` asks for averaged weights, these are
    what is scored and returned. Where the loss is not finite, the weights of the last epoch that ended well are saved
    to ``keep`` (if given) and a TrainingError says which step it was.
    """
    train, validation = suite.reference.train, suite.reference.validation
    if train.classes.ids != start.classes.ids:
        raise InputError("the suite's classes are not the classifier's. Build the start for this suite.")
    network = deepcopy(start.network).to(device)
    _freeze(network, settings.recipe)
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(network, settings.weight_decay), lr=0.0)
    average = debiased_ema(network, settings.ema_decay) if settings.ema_decay else None
    steps, warmup = settings.steps(len(train)), settings.warmup(settings.steps(len(train)))

    def positions(step: int) -> list[int]:
        return positions_at(step, settings.batch_size, len(train), child_seed(seed, "finetune"))

    pixels = training_batches(train, start.preprocessing, map(positions, range(steps)), settings.crop_scale, seed)
    validation = decoded_once(validation, start.preprocessing)
    training = {"settings": asdict(settings), "seed": seed}
    parent = {"role": "start", "fingerprint": fingerprint(start), "source": start.source}
    mixer = settings.mixer
    good, history, losses = start, list[dict[str, float]](), list[float]()
    for step, images in enumerate(pixels):
        inputs, labels = images.to(device), torch.as_tensor(train.labels[positions(step)], device=device)
        if mixer and settings.mixes_at(step, len(train)):
            plan = mixer.plan(len(inputs), (inputs.shape[2], inputs.shape[3]), child_generator(seed, "mixing", step))
            inputs = mix_images(inputs, plan)
            labels = mix_targets(labels, plan, len(train.classes))
        with global_draws(seed, "stochastic layers", step):
            logits = network(inputs)
        loss = classification_loss(logits, labels, settings.label_smoothing)
        try:
            lr = settings.lr * cosine_with_warmup(step, steps, warmup)
            optimisation_step(loss, parameters, optimizer, lr, settings.clip_norm)
        except TrainingError as error:
            raise _stopped(error, step, good, history, keep) from error
        if average is not None:
            average.update_parameters(network)
        losses.append(loss.item())
        if _ends_epoch(step, steps, settings.batch_size, len(train)):
            ended = network if average is None else average.module
            reached = _snapshot(start, ended, parent, training | {"history": [dict(entry) for entry in history]})
            found = predict(reached, validation, device=device, stage="validate")
            if not np.isfinite(found.logits).all():
                raise _stopped(TrainingError("the validation logits are not finite"), step, good, history, keep)
            score = accuracy(found.logits, found.labels)
            history.append({"step": step + 1, "loss": sum(losses) / len(losses), "validation": score})
            good, losses = reached, []
        progress.report("fine-tune", step + 1, steps, loss=loss.item(), **_last(history, "validation"))
    return replace(good, training=training | {"history": history})


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Cross-entropy of (B, K) logits with (B,) labels, or (B, K) soft targets."""
    return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def debiased_ema(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of a model's parameters without a trace of where they began (WiSE-FT, on EMA).

    With e_t = decay e_(t-1) + (1 - decay) theta_t and e_0 = 0 it is e_t / (1 - decay^t), so that the average is one
    end of the alpha path: alpha = 1 - decay^T between theta_0 and it is the usual average that begins at theta_0.
    ``update_parameters(model)`` takes in a step's weights; buffers (batch-norm statistics) are always the last.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = debiased_ema(model, 0.5)
    >>> for weight in (3.0, 6.0):
    ...     _ = nn.init.constant_(model.weight, weight)
    ...     average.update_parameters(model)
    >>> average.module.weight.item()
    5.0
    """

    def take_in(averages: Sequence[Tensor], weights: Sequence[Tensor], taken: Tensor | int) -> None:
        share = (1 - decay) / (1 - decay ** (int(taken) + 1))
        for mean, weight in zip(averages, weights, strict=True):
            mean.lerp_(weight, share)

    return AveragedModel(model, multi_avg_fn=take_in)


def _freeze(network: Network, recipe: str) -> None:
    network.requires_grad_(True)
    if recipe == "head-only":
        network.encoder.requires_grad_(False)
        # Batch-norm statistics and dropout belong to the frozen encoder as well.
        network.encoder.train = lambda mode=True: nn.Module.train(network.encoder, False)  # type: ignore[method-assign]


def _ends_epoch(step: int, steps: int, batch_size: int, images: int) -> bool:
    before, after = step * batch_size // images, (step + 1) * batch_size // images
    return after > before or step + 1 == steps


def _snapshot(
    start: Classifier, network: nn.Module, parent: Mapping[str, str], training: Mapping[str, Any]
) -> Classifier:
    weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return start.with_weights(weights, head="trained", alpha=None, parents=(parent,), training=training)


def _stopped(
    error: TrainingError, step: int, good: Classifier, history: Sequence[dict[str, float]], keep: Path | None
) -> TrainingError:
    since = f"step {int(history[-1]['step'])}" if history else "the start"
    kept = f"The weights of {since} are kept in {save_classifier(good, keep)}. " if keep else ""
    return TrainingError(
        f"fine-tuning stopped at step {step + 1}: {error}. {kept}Lower finetune.lr or finetune.clip_norm."
    )


def _last(history: Sequence[dict[str, float]], key: str) -> dict[str, float]:
    return {key: history[-1][key]} if history else {}
