"""What each recipe trains, by which loss, and the classifier that results."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from shiftproof.errors import InputError
from shiftproof.finetuning.depths import decayed_groups, keep_in_evaluation, lock_layers
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.mixing.plans import MixPlan
from shiftproof.mixing.targets import caption_shares, mix_targets, one_hot
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.prompts import texts_of
from shiftproof.models.text_towers import rebuilt_head, source_clip, with_text
from shiftproof.pretraining.loss import contrastive_loss, sigmoid_loss
from shiftproof.pretraining.towers import TwoTowers
from shiftproof.seeding import child_generator, global_draws
from shiftproof.training.distributed import gathered, process_count, process_index
from shiftproof.training.engine import (
    parameter_groups,
    parts_of,
    process_share,
    rank_seed_path,
    require_equal_shares,
    require_images_for_batch_norm,
    smallest_part,
)
from shiftproof.training.hardware import checkpoint_gradients

_ORIGINAL = re.compile(r"^(.*)\.parametrizations\.(\w+)\.original$")
_NORMS = re.compile("norm", re.IGNORECASE)  # LayerNorm, BatchNormAct2d, RmsNorm, EvoNorm ...


class Batch(NamedTuple):
    """One process's share of a batch: (B, 3, size, size) inputs, their (B,) class positions, and how they are mixed.

    ``images`` are mixed already, as ``plan`` says, and ``labels`` are those of the images before that. Without a plan,
    nothing was mixed.
    """

    images: Tensor
    labels: Tensor
    plan: MixPlan | None = None


class Recipe(Protocol):
    """What differs between trainings: the module, its parameter groups, the loss of a batch, the final classifier."""

    @property
    def module(self) -> nn.Module:
        """The module that is trained, in training mode."""
        ...

    def groups(self) -> list[dict[str, Any]]:
        """The optimiser's parameter groups."""
        ...

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Tensor]:
        """The losses of this process's share of a batch, part by part; they add up to the loss of the batch.

        ``model`` is the wrapped module that must be called.
        """
        ...

    def after_step(self) -> None:
        """Corrections that are needed after every step."""
        ...

    def classifier(self, module: nn.Module) -> Classifier:
        """The classifier that the module, or an average of it, has become, with the provenance of the start."""
        ...


def recipe_of(start: Classifier, settings: FinetuneSettings, theta_0: Classifier, *, seed: int, device: str) -> Recipe:
    """Builds the recipe of the settings, on the device, in training mode.

    ``start`` is where training begins: ``theta_0`` itself, or ``theta_0`` with a probed head. The teacher of a
    distillation is ``theta_0``. Raises an InputError where the recipe cannot train this start.
    """
    if settings.recipe == "flyp":
        return ContrastiveRecipe(start, settings, seed=seed, device=device)
    return SupervisedRecipe(start, settings, theta_0, seed=seed, device=device)


def require_trainable_batches(start: Classifier, settings: FinetuneSettings, *, seed: int) -> None:
    """Raises an InputError where the settings leave batch norm a single image; nothing is trained or loaded for that.

    A long job calls this before it begins.
    """
    if settings.recipe == "linear-probe" or smallest_part(settings.batch_size, settings.accumulate) >= 2:
        return
    network = deepcopy(start.network).train()
    if settings.recipe != "flyp":
        _select_trainable(network, settings, seed)
    require_images_for_batch_norm("finetune", network, settings.batch_size, settings.accumulate)


class SupervisedRecipe:
    """Cross-entropy on class labels, with all or some of a network's weights trained."""

    def __init__(
        self, start: Classifier, settings: FinetuneSettings, theta_0: Classifier, *, seed: int, device: str
    ) -> None:
        self._start, self._settings, self._seed, self._device = start, settings, seed, device
        network = deepcopy(start.network).train()
        _select_trainable(network, settings, seed)
        if settings.gradient_checkpointing:
            checkpoint_gradients(network.encoder)
        self.module = network.to(device)
        self._teacher = theta_0.network_on(device=device) if settings.distillation else None

    def groups(self) -> list[dict[str, Any]]:
        """Two groups, or two per layer where the rate decays from layer to layer."""
        if self._settings.layer_decay < 1:
            return decayed_groups(self.module, self._settings.weight_decay, self._settings.layer_decay)
        return parameter_groups(self.module, self._settings.weight_decay)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Tensor]:
        """The mean over the batch, in ``accumulate`` parts; processes exchange gradients in the last part."""
        images, targets = batch.images, batch.labels
        if batch.plan is not None:
            targets = mix_targets(targets, batch.plan, len(self._start.classes))
        parts = parts_of(len(images), self._settings.accumulate)
        for number, part in enumerate(parts):
            unsynced = number + 1 < len(parts) and isinstance(model, nn.parallel.DistributedDataParallel)
            with (
                model.no_sync() if unsynced else contextlib.nullcontext(),  # type: ignore[operator]
                global_draws(self._seed, "stochastic layers", step, *rank_seed_path(number), device=self._device),
            ):
                logits = model(images[part])
            # The processes average their gradients, so each multiplies its share by their number.
            share = (part.stop - part.start) * process_count() / self._settings.batch_size
            yield self._loss(logits, images[part], targets[part]) * share

    def _loss(self, logits: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        loss = classification_loss(logits, targets, self._settings.label_smoothing)
        if self._teacher is None:
            return loss
        with torch.no_grad():
            teacher_logits = self._teacher(images)
        weight, temperature = self._settings.distillation, self._settings.distillation_temperature
        return (1 - weight) * loss + weight * distillation_loss(logits, teacher_logits, temperature)

    def after_step(self) -> None:
        """There is nothing to correct."""

    def classifier(self, module: nn.Module) -> Classifier:
        """The network's weights; adapters are merged into the weights that they adapt."""
        entries = module.state_dict() if self._settings.recipe != "lora" else _merged(module)
        weights = {name: tensor.detach().cpu() for name, tensor in entries.items()}
        head = "frozen" if self._settings.recipe in ("frozen-head", "lora") else "trained"
        return self._start.with_weights(weights, head=head)


class ContrastiveRecipe:
    """FLYP: the pretraining loss, softmax or SigLIP's sigmoid, on images and captions, with both towers trained.

    A batch's captions are prompts of its images' classes, each drawn at random from those of the start.
    Captions of the same class are not negatives of each other. The final text tower builds the head (Goyal
    et al. 2023, arXiv 2212.00638).
    """

    def __init__(self, start: Classifier, settings: FinetuneSettings, *, seed: int, device: str) -> None:
        require_equal_shares("finetune.batch_size", settings.batch_size)
        self._start, self._settings, self._seed, self._device = start, settings, seed, device
        self._clip = source_clip(start, seed=seed)
        self.module = TwoTowers(deepcopy(self._clip.model).to(device).train())
        if settings.gradient_checkpointing:
            checkpoint_gradients(self.module.model)
        texts = texts_of(start.prompts, start.classes)
        self._counts = torch.tensor([len(of_class) for of_class in texts])
        # Classes with fewer prompts than others are filled up with the first, which is never drawn from there.
        most = max(map(len, texts))
        filled = [text for of_class in texts for text in (*of_class, *[of_class[0]] * (most - len(of_class)))]
        self._tokens = self._clip.tokenizer(filled).view(len(texts), most, -1)

    def groups(self) -> list[dict[str, Any]]:
        """Two groups over both towers."""
        return parameter_groups(self.module, self._settings.weight_decay)

    def losses(self, model: nn.Module, batch: Batch, step: int) -> Iterator[Tensor]:
        """One loss over all pairs of all processes, each of which has run its share through the towers."""
        generator, size = child_generator(self._seed, "captions", step), self._settings.batch_size
        labels, most = batch.labels.cpu(), self._tokens.shape[1]
        if int(self._counts.min()) == most:
            drawn = torch.randint(most, (size,), generator=generator)[process_share(size)]
        else:
            shares = torch.rand(size, generator=generator)[process_share(size)]
            drawn = (shares * self._counts[labels]).long()
        tokens = self._tokens[labels, drawn].to(batch.images.device)
        with global_draws(self._seed, "stochastic layers", step, *rank_seed_path(0), device=self._device):
            image_features, text_features, scale, bias = model(batch.images, tokens)
        features = gathered(image_features.float()), gathered(text_features.float())
        if bias is None:
            yield contrastive_loss(*features, scale, self._targets(batch))
        else:
            yield sigmoid_loss(*features, scale, bias, self._shares(batch))

    def _shares(self, batch: Batch) -> Tensor:
        """How much of the class of each caption is in each image, over all processes."""
        count = len(self._start.classes)
        soft = one_hot(batch.labels, count) if batch.plan is None else mix_targets(batch.labels, batch.plan, count)
        return class_targets(gathered(soft), gathered(batch.labels))

    def _targets(self, batch: Batch) -> Tensor:
        """How much of each caption is in each image, over all processes; an image's caption names its own class."""
        if batch.plan is None:
            return self._shares(batch)
        classes = gathered(batch.labels)
        place = process_index() * len(batch.labels)  # the partners are positions in this process's share
        weights, partners = batch.plan.weights.to(classes.device), batch.plan.partners.to(classes.device)
        return caption_shares(gathered(weights), gathered(partners + place), classes)

    def after_step(self) -> None:
        """Keeps the logit scale within CLIP's bounds."""
        self.module.clamp_scale()

    def classifier(self, module: nn.Module) -> Classifier:
        """The image tower with the head that the text tower builds; the text tower is stored with it."""
        model = deepcopy(module.model).cpu().eval()  # type: ignore[union-attr]
        encoder = {f"encoder.{name}": tensor for name, tensor in model.visual.state_dict().items()}  # type: ignore[union-attr]
        text = {n: t.detach().clone() for n, t in model.state_dict().items() if not n.startswith("visual.")}
        tuned = with_text(self._clip, text)
        tuned.model.to(self._device)  # thousands of prompts are slow on a CPU
        head, scale = rebuilt_head(tuned, self._start)
        weights = encoder | head
        return self._start.with_weights(weights, head="rebuilt", logit_scale=scale, text=text)


def classification_loss(logits: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
    """Mean cross-entropy of (B, K) logits with (B,) class positions or (B, K) soft targets, in float32.

    >>> round(classification_loss(torch.zeros(1, 2), torch.tensor([0]), 0.0).item(), 4)
    0.6931
    """
    return functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(teacher || student) of (B, K) logits, averaged over the batch (Hinton et al. 2015, sec. 2).

    ``logits`` are the student's, and ``temperature`` T is above 0.

    >>> distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.0
    """
    student = functional.log_softmax(logits.float() / temperature, dim=1)
    teacher = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    return temperature**2 * functional.kl_div(student, teacher, log_target=True, reduction="batchmean")


def class_targets(soft: Tensor, captioned: Tensor) -> Tensor:
    """The (B, B) targets for ``contrastive_loss``: how much of caption j's class is in image i.

    ``soft`` are the (B, K) targets of the images, ``captioned`` the (B,) classes of the captions. All captions of the
    class of an image match it equally. For mixed images, use ``mixing.contrastive_targets``: there, a class's share
    must be divided among its captions, of which the two classes may have different numbers.

    >>> class_targets(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return soft[:, captioned]


def _select_trainable(network: Network, settings: FinetuneSettings, seed: int) -> None:
    """Sets which parameters a recipe trains, and adds adapters to the network for LoRA."""
    network.requires_grad_(True)
    if settings.recipe == "head-only":
        network.encoder.requires_grad_(False)
        keep_in_evaluation(network.encoder)
    elif settings.recipe == "frozen-head":
        network.head.requires_grad_(False)
    elif settings.recipe == "norms-and-biases":
        _only_norms_and_biases(network)
    elif settings.recipe == "lora":
        _adapt(network, settings, seed)
    if settings.locked_layers:
        lock_layers(network, settings.locked_layers)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InputError(
            f"with finetune.recipe {settings.recipe!r} and finetune.locked_layers {settings.locked_layers} nothing is "
            "left to train. Lock fewer layers."
        )


def _only_norms_and_biases(network: Network) -> None:
    of_norms = {
        f"{place}.{name}"
        for place, module in network.named_modules()
        if _NORMS.search(type(module).__name__)
        for name, _ in module.named_parameters(recurse=False)
    }
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in of_norms or name.endswith("bias"))


class LowRank(nn.Module):
    """A weight W (out, ...) plus ``scale`` B A of rank r (LoRA, Hu et al. 2022, eq. 3); B is 0 at first.

    >>> weight = torch.ones(2, 3)
    >>> bool((LowRank(weight, rank=1, scale=1.0)(weight) == weight).all())
    True
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Parameter(weight.new_empty(rank, weight.flatten(1).shape[1]))
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.scale * (self.lora_B @ self.lora_A).view_as(weight)


def _adapt(network: Network, settings: FinetuneSettings, seed: int) -> None:
    """Adds LoRA adapters to the encoder's matrices and freezes everything else, batch-norm statistics included."""
    network.requires_grad_(False)
    for module in network.encoder.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            keep_in_evaluation(module)
    with global_draws(seed, "lora"):
        for module, name in _matrices(network.encoder):
            weight = getattr(module, name)
            adapter = LowRank(weight.detach(), settings.lora_rank, settings.lora_scale)
            parametrize.register_parametrization(module, name, adapter)


def _matrices(encoder: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every matrix of linear layers, convolutions and attention except the first, whose input is pixels."""
    matrices: list[tuple[nn.Module, str]] = [
        (module, name)
        for module in encoder.modules()
        if isinstance(module, nn.Linear | nn.MultiheadAttention)
        or (isinstance(module, nn.Conv2d) and module.groups == 1)
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim >= 2
    ]
    if len(matrices) < 2:
        raise InputError("the encoder has no layer that LoRA could adapt. Choose another finetune.recipe.")
    return matrices[1:]


def _merged(network: nn.Module) -> dict[str, Tensor]:
    """The network's entries with every adapted matrix under its original name; the network is not changed."""
    entries = {}
    for name, tensor in network.state_dict().items():
        if original := _ORIGINAL.match(name):
            entries[f"{original[1]}.{original[2]}"] = getattr(network.get_submodule(original[1]), original[2])
        elif ".parametrizations." not in name:
            entries[name] = tensor
    return entries
