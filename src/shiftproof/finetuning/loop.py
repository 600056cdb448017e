"""The fine-tuning loop: from a start to a fine-tuned classifier of the same architecture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shiftproof.data.batches import decoded_once, training_batches
from shiftproof.data.sets import ImageSet, samples_digest
from shiftproof.data.suites import ShiftSuite
from shiftproof.errors import DivergenceError, InputError, TrainingError
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import accuracy
from shiftproof.finetuning.probe import probed
from shiftproof.finetuning.recipes import Recipe, recipe_of
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.mixing.plans import mix_images
from shiftproof.mixing.targets import mix_targets
from shiftproof.models.classifier import Classifier
from shiftproof.models.directories import save_classifier
from shiftproof.models.identity import first_fingerprint, parent_entry
from shiftproof.seeding import child_generator, child_seed
from shiftproof.training.distributed import is_main_process
from shiftproof.training.engine import Course, Trainer, positions_at, process_share, rank_seed_path, training
from shiftproof.training.hardware import translating_out_of_memory


def finetune(
    start: Classifier,
    suite: ShiftSuite,
    settings: FinetuneSettings,
    *,
    seed: int = 0,
    device: str = "cpu",
    checkpoints: Path | None = None,
    trackers: Sequence[str] = (),
) -> Classifier:
    """Fine-tunes on ``suite.reference.train`` and returns a new classifier; ``start`` stays as it was.

    The validation split is scored after each epoch, for the history in ``training``: the last weights are returned,
    unless ``settings.early_stopping`` asks for the best epoch's. A shift is never read. Where ``settings.ema_decay``
    asks for averaged weights, these are what is scored and returned.

    In ``checkpoints``, if given, stands all that is needed to go on: called again with the same arguments, it does so
    and ends with the same weights, bit for bit on one CPU. On SIGTERM it writes a checkpoint and raises a
    TrainingInterruptedError. Where the loss is not finite, or memory is full, a TrainingError says which step it was,
    and the weights of the last epoch that ended well are saved to ``checkpoints/last_good``. ``trackers`` are
    tensorboard and wandb. Processes that ``torchrun`` started share every batch, and all return the classifier.
    """
    train, validation = suite.reference.train, suite.reference.validation
    if train.classes.ids != start.classes.ids:
        raise InputError("the suite's classes are not the classifier's. Build the start for this suite.")
    train = train if settings.shots is None else few_shot(train, settings.shots, seed)
    validation = decoded_once(validation, start.preprocessing)
    training_record = {"settings": asdict(settings), "seed": seed}
    parent = parent_entry("start", start)
    begin = start
    if settings.recipe in ("linear-probe", "lp-ft"):
        own = child_seed(seed, "probe")
        begin, trials = probed(start, train, validation, crop_scale=settings.crop_scale, seed=own, device=device)
        training_record["probe"] = [trial._asdict() for trial in trials]
    told: dict[str, Any] = {"alpha": None, "parents": (parent,)}
    if settings.recipe == "linear-probe":
        return replace(begin, training={**training_record, "history": []}, **told)

    recipe = recipe_of(begin, settings, start, seed=seed, device=device)
    course = _course(settings, train, seed, parent["fingerprint"])
    if checkpoints is not None:
        course = replace(course, earlier_origin={"start": first_fingerprint(start)})
    optimizer = _optimizer(recipe, settings)
    anchor = _anchor(recipe.module, optimizer, start, settings)
    with training(
        recipe.module,
        optimizer,
        course,
        settings,
        device=device,
        folder=checkpoints,
        trackers=trackers,
    ) as trainer:
        progress = _Progress.of(trainer, recipe, settings, told)
        last = trainer.first if progress.is_over(settings.early_stopping) else course.steps
        inputs = _inputs(train, start, settings, trainer.first, last, seed, device)
        for step, (images, targets) in enumerate(inputs, trainer.first):
            try:
                loss = trainer.take(step, recipe.losses(trainer.model, images, targets, step))
                recipe.after_step()
                if not trainer.skipped:
                    _draw_to(anchor, course.lr_at(step) * settings.l2_to_start)
                progress.saw(loss, recipe.module)
                if _ends_epoch(step, course.steps, settings.batch_size, len(train)):
                    with translating_out_of_memory("finetune", splits=course.splits):
                        progress.end_epoch(step, recipe, validation, device, told)
            except TrainingError as error:
                raise _stopped(error, step, progress, begin, checkpoints, training_record) from error
            trainer.tell(step, loss, **progress.last())
            done = progress.is_over(settings.early_stopping)
            if trainer.keeps_after(step) or done:
                trainer.keep(step + 1, progress.state(), **progress.parts())
            if done:
                break
        reached = progress.result(recipe, told)
    return replace(reached, training={**training_record, "history": progress.history})


def few_shot(images: ImageSet, shots: int, seed: int) -> ImageSet:
    """At most ``shots`` images of every class, drawn by the seed, in the set's order.

    >>> from shiftproof import load_suite
    >>> len(few_shot(load_suite("emoji").reference.train, 2, seed=0))
    534
    """
    chosen: list[int] = []
    for label in range(len(images.classes)):
        own = np.flatnonzero(images.labels == label)
        order = torch.randperm(len(own), generator=child_generator(seed, "shots", label)).numpy()
        chosen += own[order[:shots]].tolist()
    return images.subset(sorted(chosen))


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


@dataclass
class _Progress:
    """How far a fine-tuning has come: its history, the average of its weights, the best epoch."""

    average: AveragedModel | None
    early: bool
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: Mapping[str, Tensor] | None = None
    good: Classifier | None = None
    good_step: int = 0

    @classmethod
    def of(cls, trainer: Trainer, recipe: Recipe, settings: FinetuneSettings, told: Mapping[str, Any]) -> _Progress:
        """A new one, or the one that the trainer's checkpoint holds."""
        average = debiased_ema(recipe.module, settings.ema_decay) if settings.ema_decay else None
        made = cls(average, settings.early_stopping > 0)
        if trainer.begun is not None:
            made.history, made.losses = list(trainer.state["history"]), list(trainer.state["losses"])
            made.best = trainer.begun.parts.get("best")
            if average is not None:
                average.load_state_dict(dict(trainer.begun.parts["average"]))
            made.good, made.good_step = recipe.classifier(made._module(recipe), **told), trainer.first
        return made

    def saw(self, loss: float, module: nn.Module) -> None:
        """Takes in a step."""
        self.losses.append(loss)
        if self.average is not None:
            self.average.update_parameters(module)

    def end_epoch(self, step: int, recipe: Recipe, validation: ImageSet, device: str, told: Mapping[str, Any]) -> None:
        """Scores the validation split; raises a TrainingError where the logits are not finite."""
        reached = recipe.classifier(self._module(recipe), **told)
        found = predict(reached, validation, device=device, stage="validate", together=True)
        if not np.isfinite(found.logits).all():
            raise DivergenceError("the validation logits are not finite")
        score = accuracy(found.logits, found.labels)
        if self.early and score > max((entry["validation"] for entry in self.history), default=-1.0):
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in self._module(recipe).state_dict().items()
            }
        self.history.append({"step": step + 1, "loss": sum(self.losses) / len(self.losses), "validation": score})
        self.good, self.good_step, self.losses = reached, step + 1, []

    def is_over(self, patience: int) -> bool:
        """Whether so many epochs have brought nothing better than an earlier one; never where patience is 0."""
        if not patience or self.losses or not self.history:
            return False
        scores = [entry["validation"] for entry in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    def result(self, recipe: Recipe, told: Mapping[str, Any]) -> Classifier:
        """The classifier of the best epoch where early stopping was asked for, else of the last."""
        module = self._module(recipe)
        if self.best is not None:
            module.load_state_dict(dict(self.best))
        elif self.good is not None:
            return self.good
        return recipe.classifier(module, **told)

    def last(self) -> dict[str, float]:
        """The last epoch's validation accuracy, once there is one."""
        return {"validation": self.history[-1]["validation"]} if self.history else {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold as JSON."""
        return {"history": self.history, "losses": self.losses}

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What a checkpoint must hold as tensors."""
        found: dict[str, Mapping[str, Tensor]] = {}
        if self.average is not None:
            found["average"] = self.average.state_dict()
        return found | ({"best": self.best} if self.best is not None else {})

    def _module(self, recipe: Recipe) -> nn.Module:
        return recipe.module if self.average is None else self.average.module


class _Anchored(NamedTuple):
    """A parameter, what it is drawn to, and its layer's share of the learning rate."""

    parameter: nn.Parameter
    origin: Tensor
    share: float


def _course(settings: FinetuneSettings, train: ImageSet, seed: int, start: str) -> Course:
    steps = settings.steps(len(train))
    return Course(
        section="finetune",
        stage="fine-tune",
        steps=steps,
        warmup=settings.warmup(steps),
        lr=settings.lr,
        clip_norm=settings.clip_norm,
        batch_size=settings.batch_size,
        splits=settings.recipe != "flyp",
        origin={
            **asdict(settings.deciding()),
            "seed": seed,
            "start": start,
            "images": samples_digest(train),
        },
    )


def _optimizer(recipe: Recipe, settings: FinetuneSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(recipe.groups(), lr=0.0, momentum=settings.momentum)
    return torch.optim.AdamW(recipe.groups(), lr=0.0)


def _inputs(
    train: ImageSet, start: Classifier, settings: FinetuneSettings, first: int, steps: int, seed: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of every batch from the first step on: images and targets, mixed where that is asked for."""
    order, share, mixer = child_seed(seed, "finetune"), process_share(settings.batch_size), settings.mixer

    def positions(step: int) -> list[int]:
        return positions_at(step, settings.batch_size, len(train), order)

    places = map(positions, range(first, steps))
    pixels = training_batches(train, start.preprocessing, places, settings.crop_scale, seed, first, share)
    for step, images in enumerate(pixels, first):
        inputs = images.to(
            device, memory_format=torch.channels_last if settings.channels_last else torch.preserve_format
        )
        labels = torch.as_tensor(train.labels[positions(step)[share]], device=device)
        if mixer and settings.mixes_at(step, len(train)):
            generator = child_generator(seed, "mixing", step, *rank_seed_path(0))
            plan = mixer.plan(len(inputs), (inputs.shape[2], inputs.shape[3]), generator)
            inputs = mix_images(inputs, plan)
            labels = mix_targets(labels, plan, len(train.classes))
        yield inputs, labels


def _anchor(
    module: nn.Module, optimizer: torch.optim.Optimizer, start: Classifier, settings: FinetuneSettings
) -> list[_Anchored]:
    """The trainable parameters with the start's values, where the penalty on leaving these is asked for."""
    if not settings.l2_to_start:
        return []
    origin = start.state_dict() if settings.recipe != "flyp" else module.state_dict()  # both towers begin at theta_0
    shares = {id(p): group.get("lr_share", 1.0) for group in optimizer.param_groups for p in group["params"]}
    return [
        _Anchored(p, origin[name].to(p.device, copy=True), shares[id(p)])
        for name, p in module.named_parameters()
        if p.requires_grad
    ]


@torch.no_grad()
def _draw_to(anchor: Sequence[_Anchored], strength: float) -> None:
    """The proximal step of (l2 / 2) ||theta - theta_0||^2 at ``strength`` = lr l2: stable whatever its size."""
    for parameter, origin, share in anchor:
        parameter.lerp_(origin, share * strength / (1 + share * strength))


def _ends_epoch(step: int, steps: int, batch_size: int, images: int) -> bool:
    before, after = step * batch_size // images, (step + 1) * batch_size // images
    return after > before or step + 1 == steps


def _stopped(
    error: TrainingError,
    step: int,
    progress: _Progress,
    start: Classifier,
    checkpoints: Path | None,
    record: Mapping[str, Any],
) -> TrainingError:
    since = f"step {progress.good_step}" if progress.good_step else "the start"
    kept = ""
    if checkpoints and is_main_process():
        good = replace(progress.good, training={**record, "history": progress.history}) if progress.good else start
        kept = f"The weights of {since} are kept in {save_classifier(good, checkpoints / 'last_good')}. "
    advice = "Lower finetune.lr or finetune.clip_norm." if isinstance(error, DivergenceError) else ""
    return type(error)(f"fine-tuning stopped at step {step + 1}: {error}. {kept}{advice}".rstrip())
