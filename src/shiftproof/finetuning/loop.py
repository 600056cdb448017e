"""The fine-tuning loop: from a start to a fine-tuned classifier of the same architecture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shiftproof.data.batches import decoded_once, training_batches
from shiftproof.data.readable import require_readable
from shiftproof.data.sets import ImageSet, require_set, samples_digest
from shiftproof.data.suites import VALIDATION, ShiftSuite, require_suite
from shiftproof.errors import DivergenceError, InputError, TrainingError
from shiftproof.evaluation.inference import PredictionStopped, predict
from shiftproof.evaluation.metrics import accuracy
from shiftproof.finetuning.anchor import Anchored, anchored_parameters, pull_to_start
from shiftproof.finetuning.averages import debiased_ema
from shiftproof.finetuning.depths import has_timm_layers
from shiftproof.finetuning.probe import ProbeCrops, probed
from shiftproof.finetuning.recipes import Batch, Recipe, recipe_of, require_trainable_batches
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.mixing.plans import mix_images
from shiftproof.models.classifier import Classifier, require_classifier
from shiftproof.models.devices import resolve_device
from shiftproof.models.directories import save_classifier
from shiftproof.models.identity import first_fingerprint, parent_entry
from shiftproof.progress import note
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
    device: str | torch.device = "auto",
    checkpoints: str | Path | None = None,
    trackers: Sequence[str] = (),
) -> Classifier:
    """Fine-tunes on ``suite.reference.train`` and returns a new classifier; ``start`` is not changed.

    The validation split is scored after each epoch (an accuracy in [0, 1]) for the history in the classifier's
    ``training``. The last weights are returned, unless ``settings.early_stopping`` asks for those of the best epoch.
    Shifts are never read. Where ``settings.ema_decay`` asks for averaged weights, those are scored and returned.
    ``settings.recipe`` names the paper that each recipe comes from; the default is WiSE-FT's (Wortsman et al. 2022,
    arXiv 2109.01903, sec. 3).

    ``checkpoints`` is a directory for everything that is needed to resume. A second call with the same arguments
    resumes there, and ends with the same weights, bit for bit on one CPU. ``trackers`` may name tensorboard and wandb.
    The processes that ``torchrun`` started share every batch, and each of them returns the classifier.

    Raises an InputError where the suite's classes are not the start's, where the checkpoints are of another training,
    where an image is missing, or where batch norm would see a single one; a TrainingInterruptedError on SIGTERM and
    Ctrl-C, after writing a checkpoint; a DivergenceError where the loss or a gradient is not finite, and a
    TrainingError when out of memory. The last two name the step, and the weights of the last successful epoch are saved
    to ``checkpoints/last_good``.

    >>> from shiftproof import load_clip, load_suite, zero_shot_classifier
    >>> suite = load_suite("emoji").limited(20)
    >>> zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    >>> tuned = finetune(zero, suite, FinetuneSettings(epochs=1, shots=1, batch_size=256), device="cpu")
    >>> len(tuned.training["history"])
    1
    """
    checkpoints = None if checkpoints is None else Path(checkpoints)
    require_classifier(start, "start")
    require_suite(suite)
    device = resolve_device(device)
    require_trainable_batches(start, settings, seed=seed)
    if settings.channels_last is not None:
        start = replace(start, channels_last=settings.channels_last)
    train, validation = _splits(start, suite, settings, seed)
    begin, trials = _beginning(start, train, validation, settings, seed, device)
    record = {"settings": settings.recorded(), "seed": seed, **suite.reference.provenance, **trials}
    settings = settings.resolved_on(device=device)
    record["precision"] = settings.precision
    job = _Job(parent_entry("start", start), begin, train, validation, settings, seed, device, checkpoints, record)
    if settings.recipe == "linear-probe":
        return job.documented(begin, [])
    recipe = recipe_of(begin, settings, start, seed=seed, device=device)
    optimizer = _optimizer(recipe, settings)
    anchor = anchored_parameters(recipe.module, optimizer, start, settings)
    with training(
        recipe.module, optimizer, job.course(start), settings, device=device, folder=checkpoints, trackers=trackers
    ) as trainer:
        progress = _Progress.of(trainer, recipe, settings)
        _train(job, recipe, trainer, progress, anchor)
        tuned = progress.result(recipe)
    return job.documented(tuned, progress.history)


def _note_ignored(settings: FinetuneSettings) -> None:
    if ignored := settings.ignored():
        names = ", ".join(f"finetune.{name}" for name in ignored)
        note(f"fine-tune: the recipe {settings.recipe!r} with {settings.optimizer} makes no use of {names}")


@dataclass(frozen=True)
class _Job:
    """The inputs of one fine-tuning, after the data and the first classifier have been determined.

    ``parent`` is the entry of theta_0 in the result's provenance. ``begin`` is the classifier that training begins
    with: theta_0, or theta_0 with a probed head. ``record`` is the result's ``training`` without the history.
    """

    parent: Mapping[str, Any]
    begin: Classifier
    train: ImageSet
    validation: ImageSet
    settings: FinetuneSettings
    seed: int
    device: str
    checkpoints: Path | None
    record: Mapping[str, Any]

    def course(self, start: Classifier) -> Course:
        """The course from ``start``, theta_0; checkpoints of a course with another origin are refused."""
        settings, steps = self.settings, self.settings.steps(len(self.train))
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
                **settings.deciding().recorded(),
                "seed": self.seed,
                "start": self.parent["fingerprint"],
                "images": samples_digest(self.train),
                **self._layers(),
            },
            earlier_origin={} if self.checkpoints is None else {"start": first_fingerprint(start)},
        )

    def _layers(self) -> dict[str, str]:
        """Whose layers the settings count, where that is timm: earlier versions counted those of all encoders."""
        by_depth = self.settings.layer_decay < 1 or self.settings.locked_layers > 0
        return {"layers": "timm"} if by_depth and has_timm_layers(self.begin.network.encoder) else {}

    def ends_epoch(self, step: int) -> bool:
        """Whether an epoch, or the training, ends with a step."""
        size, images = self.settings.batch_size, len(self.train)
        before, after = step * size // images, (step + 1) * size // images
        return after > before or step + 1 == self.settings.steps(images)

    def documented(self, classifier: Classifier, history: Sequence[Mapping[str, float]]) -> Classifier:
        """The classifier with its provenance and how it was fine-tuned."""
        training_record = {**self.record, "history": list(history)}
        return replace(classifier, training=training_record, alpha=None, parents=(self.parent,))


def _splits(start: Classifier, suite: ShiftSuite, settings: FinetuneSettings, seed: int) -> tuple[ImageSet, ImageSet]:
    """The images to train on, a few of every class where the settings say so, and the decoded validation split."""
    train, validation = suite.reference.train, suite.reference.validation
    if train.classes.ids != start.classes.ids:
        raise InputError("the classes of the suite are not those of the classifier. Build the start for this suite.")
    train = train if settings.shots is None else few_shot(train, settings.shots, seed=seed)
    require_readable([("train", train), (VALIDATION, validation)])
    return train, decoded_once(validation, start.preprocessing)


def _beginning(
    start: Classifier, train: ImageSet, validation: ImageSet, settings: FinetuneSettings, seed: int, device: str
) -> tuple[Classifier, dict[str, Any]]:
    """The classifier to begin with, and what a probe of its features adds to the record of the training."""
    _note_ignored(settings)
    if settings.recipe not in ("linear-probe", "lp-ft"):
        return start, {}
    probe_seed = child_seed(seed, "probe")
    crops = ProbeCrops(settings.crop_scale, settings.augment, probe_seed)
    begin, trials = probed(start, train, validation, crops, device=device)
    return begin, {"probe": [trial._asdict() for trial in trials]}


def _train(job: _Job, recipe: Recipe, trainer: Trainer, progress: _Progress, anchor: Sequence[Anchored]) -> None:
    """Takes the remaining steps: update, pull to the start, average, score at the end of an epoch, checkpoint."""
    patience = job.settings.early_stopping
    _make_up_for_epoch(job, recipe, trainer, progress)
    last = trainer.first if progress.is_over(patience) else trainer.course.steps
    batches = _saving_unless_read(_batches(job, trainer, last), trainer, progress)
    for step, batch in enumerate(batches, trainer.first):
        try:
            loss = trainer.take(step, recipe.losses(trainer.model, batch, step))
            recipe.after_step()
            if not trainer.skipped:
                pull_to_start(anchor, trainer.course.lr_at(step) * job.settings.l2_to_start)
            progress.add_step(loss, recipe.module)
            if job.ends_epoch(step):
                _end_epoch(job, recipe, trainer, progress, step)
        except TrainingError as error:
            raise _stopped(error, step, progress, job) from error
        trainer.report(step, loss, **progress.last())
        done = progress.is_over(patience)
        if trainer.is_checkpoint_due(step) or done:
            trainer.save(step + 1, progress.state(), **progress.parts())
        if done:
            break


def _end_epoch(job: _Job, recipe: Recipe, trainer: Trainer, progress: _Progress, step: int) -> None:
    """Scores the validation split; a signal stops this, and the checkpoint is one from which it is made up for."""
    try:
        with translating_out_of_memory("finetune", splits=trainer.course.splits):
            progress.end_epoch(step, recipe, job.validation, job.device, trainer.must_stop)
    except PredictionStopped:
        trainer.save_and_stop(step + 1, progress.state(), **progress.parts())


def _make_up_for_epoch(job: _Job, recipe: Recipe, trainer: Trainer, progress: _Progress) -> None:
    """Scores the epoch that ends with the checkpoint, unless that has been done."""
    step, losses = trainer.first - 1, progress.losses
    if losses and job.ends_epoch(step):
        _end_epoch(job, recipe, trainer, progress, step)
        trainer.report(step, losses[-1], **progress.last())


def _saving_unless_read(batches: Iterator[Batch], trainer: Trainer, progress: _Progress) -> Iterator[Batch]:
    """The batches; where one cannot be read, the checkpoint of all steps before it is written first."""
    step = trainer.first
    try:
        for batch in batches:
            yield batch
            step += 1
    except InputError:
        trainer.save_before_unreadable(step, progress.state(), **progress.parts())
        raise


def few_shot(images: ImageSet, shots: int, *, seed: int) -> ImageSet:
    """A subset of at most ``shots`` images of every class, drawn with ``seed``, in the order of the set.

    >>> from shiftproof import load_suite
    >>> len(few_shot(load_suite("emoji").reference.train, 2, seed=0))
    534
    """
    require_set(images)
    chosen: list[int] = []
    for label in range(len(images.classes)):
        positions = np.flatnonzero(images.labels == label)
        order = torch.randperm(len(positions), generator=child_generator(seed, "shots", label)).numpy()
        chosen += positions[order[:shots]].tolist()
    return images.subset(sorted(chosen))


@dataclass
class _Progress:
    """The state of a fine-tuning: its history, the average of its weights, and the weights of the best epoch."""

    average: AveragedModel | None
    early: bool
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    best: Mapping[str, Tensor] | None = None
    good: Classifier | None = None
    good_step: int = 0

    @classmethod
    def of(cls, trainer: Trainer, recipe: Recipe, settings: FinetuneSettings) -> _Progress:
        """The initial state, or the state in the trainer's checkpoint."""
        average = debiased_ema(recipe.module, settings.ema_decay) if settings.ema_decay else None
        state = cls(average, settings.early_stopping > 0)
        if trainer.begun is not None:
            state.history, state.losses = list(trainer.state["history"]), list(trainer.state["losses"])
            state.best = trainer.begun.parts.get("best")
            if average is not None:
                average.load_state_dict(dict(trainer.begun.parts["average"]))
            state.good, state.good_step = recipe.classifier(state._module(recipe)), trainer.first
        return state

    def add_step(self, loss: float, module: nn.Module) -> None:
        """Records the loss of a step, and averages its weights."""
        self.losses.append(loss)
        if self.average is not None:
            self.average.update_parameters(module)

    def end_epoch(
        self, step: int, recipe: Recipe, validation: ImageSet, device: str, stop: Callable[[], object]
    ) -> None:
        """Scores the validation split; raises a TrainingError where the logits are not finite.

        Once ``stop`` returns true, it raises ``PredictionStopped``, and nothing has changed.
        """
        reached = recipe.classifier(self._module(recipe))
        predictions = predict(reached, validation, device=device, stage="validate", together=True, stop=stop)
        if not np.isfinite(predictions.logits).all():
            raise DivergenceError("the validation logits are not finite")
        score = accuracy(predictions.logits, predictions.labels)
        if self.early and score > max((entry["validation"] for entry in self.history), default=-1.0):
            self.best = {
                name: tensor.detach().cpu().clone() for name, tensor in self._module(recipe).state_dict().items()
            }
        self.history.append({"step": step + 1, "loss": sum(self.losses) / len(self.losses), "validation": score})
        self.good, self.good_step, self.losses = reached, step + 1, []

    def is_over(self, patience: int) -> bool:
        """Whether the last ``patience`` epochs were no better than an earlier one; never where patience is 0."""
        if not patience or self.losses or not self.history:
            return False
        scores = [entry["validation"] for entry in self.history]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    def result(self, recipe: Recipe) -> Classifier:
        """The classifier of the best epoch with early stopping, else of the last epoch."""
        module = self._module(recipe)
        if self.best is not None:
            module.load_state_dict(dict(self.best))
        elif self.good is not None:
            return self.good
        return recipe.classifier(module)

    def last(self) -> dict[str, float]:
        """The validation accuracy of the last epoch, or nothing before the first epoch has ended."""
        return {"validation": self.history[-1]["validation"]} if self.history else {}

    def state(self) -> dict[str, Any]:
        """The part of a checkpoint that is JSON."""
        return {"history": self.history, "losses": self.losses}

    def parts(self) -> dict[str, Mapping[str, Tensor]]:
        """The parts of a checkpoint that are tensors."""
        average = {} if self.average is None else {"average": self.average.state_dict()}
        best = {} if self.best is None else {"best": self.best}
        return {**average, **best}

    def _module(self, recipe: Recipe) -> nn.Module:
        return recipe.module if self.average is None else self.average.module


def _optimizer(recipe: Recipe, settings: FinetuneSettings) -> torch.optim.Optimizer:
    if settings.optimizer == "sgd":
        return torch.optim.SGD(recipe.groups(), lr=0.0, momentum=settings.momentum)
    return torch.optim.AdamW(recipe.groups(), lr=0.0)


def _batches(job: _Job, trainer: Trainer, steps: int) -> Iterator[Batch]:
    """This process's share of every remaining batch, mixed if the settings say so."""
    train, settings, seed, device, first = job.train, job.settings, job.seed, job.device, trainer.first
    memory_format = torch.channels_last if trainer.channels_last else torch.preserve_format
    order, share, mixer = child_seed(seed, "finetune"), process_share(settings.batch_size), settings.mixer

    def positions(step: int) -> list[int]:
        return positions_at(step, settings.batch_size, len(train), order)

    places = map(positions, range(first, steps))
    pixels = training_batches(
        train,
        job.begin.preprocessing,
        places,
        settings.crop_scale,
        seed=seed,
        first=first,
        share=share,
        augment=settings.augment,
    )
    for step, images in enumerate(pixels, first):
        inputs = images.to(device, memory_format=memory_format)
        labels = torch.as_tensor(train.labels[positions(step)[share]], device=device)
        plan = None
        if mixer and settings.mixes_at(step, len(train)):
            generator = child_generator(seed, "mixing", step, *rank_seed_path(0))
            plan = mixer.plan(len(inputs), (inputs.shape[2], inputs.shape[3]), generator)
            inputs = mix_images(inputs, plan)
        yield Batch(inputs, labels, plan)


def _stopped(error: TrainingError, step: int, progress: _Progress, job: _Job) -> TrainingError:
    """The error with the step, where the last good weights are, which this saves, and what to change."""
    since = f"step {progress.good_step}" if progress.good_step else "the start"
    place = ""
    if job.checkpoints and is_main_process():
        good = job.documented(progress.good, progress.history) if progress.good else job.begin
        saved = save_classifier(good, job.checkpoints / "last_good", overwrite=True)
        place = f"The weights of {since} are in {saved}. "
    advice = "Lower finetune.lr or finetune.clip_norm." if isinstance(error, DivergenceError) else ""
    return type(error)(f"fine-tuning stopped at step {step + 1}: {error}. {place}{advice}".rstrip())
