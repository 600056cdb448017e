"""The inputs of a merge, checked to fit together entry by entry, and the content of each output."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shiftproof.ensembling.greedy import SoupTrial, members_of
from shiftproof.errors import IncompatibleWeightsError, InputError, listed
from shiftproof.merging.adapters import Adapted, read_adapter
from shiftproof.merging.layouts import Layout, copied_files, is_file, layout_of
from shiftproof.merging.methods import METHODS, MergeSettings, Plan
from shiftproof.records.merges import MergeInput, MergeRecord
from shiftproof.weights.arithmetic import is_combined, is_running_statistic, require_compatible
from shiftproof.weights.checkpoints import Checkpoint, size_of, with_names_of

if TYPE_CHECKING:
    from shiftproof.models.directories import Card


@dataclass(frozen=True)
class Merge:
    """Inputs that fit together: ``common`` entries are combined; ``alone`` names the input of each other entry."""

    checkpoints: Sequence[Checkpoint]
    settings: MergeSettings
    inputs: Sequence[Mapping[str, Tensor]]
    common: Sequence[str]
    alone: Mapping[str, int]
    cards: Sequence[Card]
    trials: Sequence[SoupTrial] = ()

    @property
    def names(self) -> list[str]:
        """The names of all entries of an output."""
        return [*self.common, *self.alone]

    @property
    def entries(self) -> dict[str, Tensor]:
        """A tensor with the dtype and shape of every entry of the output."""
        return {name: self.entry(name) for name in self.names}

    def entry(self, name: str) -> Tensor:
        """Returns a tensor with the dtype and shape of one entry: that of the first input, if it has the entry."""
        return self.inputs[self.alone.get(name, 0)][name]

    def parts(self, name: str) -> list[Tensor]:
        """Returns the tensors that an entry is computed from."""
        inputs = [self.inputs[self.alone[name]]] if name in self.alone else self.inputs
        return [tensors[name] for tensors in inputs]

    def shares(self, plan: Plan, name: str) -> Sequence[float]:
        """Returns the coefficient of each tensor that an entry is computed from."""
        return (1.0,) if name in self.alone else plan.coefficients[name]

    def layout(self, place: Path) -> Layout:
        """Returns the weights files of an output at ``place``."""
        single = place.name if is_file(place) else None
        return layout_of(self.checkpoints[0], self.entries, single, self.settings.shard_size)

    def record(self, plan: Plan, place: Path) -> MergeRecord:
        """Returns the record of one output, before any tensor is read."""
        entries, layout = self.entries, self.layout(place)
        tied, untied = self._ties(plan)
        combined = [name for name in self.common if is_combined(entries[name], plan.coefficients[name])]
        copies = () if is_file(place) else tuple(file.name for file in copied_files(self.checkpoints[0]))
        alphas = {name: shares[1] for name, shares in plan.coefficients.items()} if plan.layered else {}
        return MergeRecord(
            method=self.settings.method,
            paper=METHODS[self.settings.method],
            out=str(place),
            inputs=tuple(
                MergeInput(str(checkpoint.path), role, checkpoint.kind)
                for checkpoint, role in zip(self.checkpoints, self._roles(), strict=True)
            ),
            alpha=None if plan.layered else plan.alpha,
            alphas=alphas,
            interpolated=tuple(combined),
            copied=tuple(name for name in self.common if name not in set(combined)),
            missing=tuple(self.alone),
            tied=tied,
            untied=untied,
            batch_norm=tuple(filter(is_running_statistic, combined)),
            files={file: sum(size_of(entries[name]) for name in names) for file, names in layout.shards.items()},
            copied_files=copies,
            members=members_of(self.trials) if self.trials else (),
            scores=tuple(_plain(trial) for trial in self.trials),
        )

    def card(self, plan: Plan, tensors: Mapping[str, Tensor]) -> Card:
        """Returns the card of the merged classifier."""
        from shiftproof.models.classifier import head_scale
        from shiftproof.models.identity import fingerprint_of

        first, scale = self.cards[0], self.cards[0].logit_scale
        scaled = first.architecture.get("normalised", True)
        return replace(
            first,
            head="interpolated" if self.settings.method == "linear" else "averaged",
            logit_scale=head_scale(tensors["head.weight"], otherwise=scale) if scaled else scale,
            alpha=None if plan.layered else plan.alpha,
            parents=tuple(
                {"role": role, "fingerprint": card.fingerprint, "source": card.source}
                for role, card in zip(self._roles(), self.cards, strict=True)
            ),
            training={},
            fingerprint=fingerprint_of(first, tensors),
        )

    def passed_over(self, name: str) -> list[int]:
        """Returns the inputs that have an entry which is copied from an earlier input."""
        first = self.alone.get(name, len(self.inputs))
        return [i for i, tensors in enumerate(self.inputs) if i > first and name in tensors]

    def _ties(self, plan: Plan) -> tuple[dict[str, str], dict[str, str]]:
        """Returns the names that some input ties to an earlier one: those with equal values in the output, and others.

        An input ties two names by holding both in the same memory. Values are read only if another input does not.
        """
        order = {name: number for number, name in enumerate(self.names)}
        pairs = {
            tuple(sorted(tie, key=order.__getitem__, reverse=True))
            for checkpoint in self.checkpoints
            for tie in checkpoint.ties.items()
            if all(name in order for name in tie)
        }
        tied: dict[str, str] = {}
        untied: dict[str, str] = {}
        for name, first in sorted(pairs, key=lambda pair: [order[part] for part in pair]):
            (tied if self._stays_tied(plan, name, first) else untied)[name] = first
        return tied, untied

    def _stays_tied(self, plan: Plan, name: str, first: str) -> bool:
        if self.alone.get(name) != self.alone.get(first) or self.shares(plan, name) != self.shares(plan, first):
            return False
        inputs = [self.inputs[self.alone[name]]] if name in self.alone else self.inputs
        return all(_are_equal(tensors[name], tensors[first]) for tensors in inputs)

    def _roles(self) -> list[str]:
        others = len(self.inputs) - 1
        if self.settings.method == "linear":
            return ["zero_shot", "fine_tuned"]
        return ["zero_shot" if self.settings.method == "model-stock" else "member", *(["member"] * others)]


def aligned(checkpoints: Sequence[Checkpoint], settings: MergeSettings) -> Merge:
    """Inputs whose names, shapes and dtypes agree, an adapter as the weights that it makes of the first."""
    first = checkpoints[0]
    if first.kind == "peft":
        raise InputError(f"{first.path} is an adapter. Name its base first: shiftproof merge BASE {first.path}.")
    others = [c if c.kind == "peft" else with_names_of(first.tensors, c) for c in checkpoints[1:]]
    checkpoints = [first, *others]
    for other in (checkpoint for checkpoint in others if checkpoint.kind != "peft"):
        _require_fitting(first.tensors, other.tensors, settings)
    inputs = [
        Adapted(first.tensors, read_adapter(checkpoint)) if checkpoint.kind == "peft" else checkpoint.tensors
        for checkpoint in checkpoints
    ]
    names = dict.fromkeys(name for tensors in inputs for name in tensors)
    common = [name for name in names if all(name in tensors for tensors in inputs)]
    lacking = [name for name in names if name not in set(common)]
    alone = {name: next(i for i, tensors in enumerate(inputs) if name in tensors) for name in lacking}
    if not common:
        raise IncompatibleWeightsError("the inputs have no entry in common. All must come from one architecture.")
    return Merge(checkpoints, settings, inputs, common, alone, _cards(checkpoints))


def _cards(checkpoints: Sequence[Checkpoint]) -> list[Card]:
    """Returns the cards of classifier directories of the same task; none if the first input is not a classifier."""
    if checkpoints[0].kind != "shiftproof":
        return []
    if others := [checkpoint.path for checkpoint in checkpoints if checkpoint.kind != "shiftproof"]:
        raise InputError(
            f"{checkpoints[0].path} is a classifier directory, and {listed(others)} is not. "
            "Name only classifier directories, or only the model.safetensors in them."
        )
    # Imported for classifiers only: these modules import timm and torchvision, which takes seconds.
    from shiftproof.models.classifier import require_same_task
    from shiftproof.models.directories import read_card, require_weights_of_card

    cards = [read_card(checkpoint.path) for checkpoint in checkpoints]
    if rebuilt := [
        str(checkpoint.path) for checkpoint, card in zip(checkpoints, cards, strict=True) if card.head == "rebuilt"
    ]:
        raise InputError(
            f"a fine-tuned text tower wrote the head of {listed(rebuilt)}. Averaged heads are not the head that "
            "the averaged text tower writes, and a merge of files runs no text tower. Use `wise_ft`, `uniform_soup` or "
            "`greedy_soup` in Python, or the command sweep for one zero-shot and one fine-tuned classifier."
        )
    for card in cards[1:]:
        require_same_task(cards[0], card)
    for checkpoint, card in zip(checkpoints, cards, strict=True):
        require_weights_of_card(card, checkpoint.tensors, checkpoint.path)
    return cards


def _require_fitting(first: Mapping[str, Tensor], other: Mapping[str, Tensor], settings: MergeSettings) -> None:
    if settings.missing == "error":
        return require_compatible(first, other)
    common = first.keys() & other.keys()
    return require_compatible({n: first[n] for n in sorted(common)}, {n: other[n] for n in sorted(common)})


def _are_equal(first: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors have the same memory or the same values."""
    if first.shape != other.shape or first.dtype != other.dtype:
        return False
    same_memory = first.data_ptr() == other.data_ptr() and first.stride() == other.stride()
    return same_memory or torch.equal(first, other)


def _plain(trial: SoupTrial) -> dict[str, Any]:
    """Returns a trial as JSON can store it; a score that is not finite becomes None."""
    return {**asdict(trial), "soup": trial.soup if math.isfinite(trial.soup) else None}
