"""Networks that saw the reference only: the same architecture, trained from random weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional

from shiftproof.data.suites import ShiftSuite
from shiftproof.finetuning.loop import finetune
from shiftproof.finetuning.settings import FinetuneSettings
from shiftproof.models.classifier import Classifier, Network
from shiftproof.models.encoders import build_encoder
from shiftproof.seeding import global_draws

_HEAD_LENGTH = 16.0


def untrained(start: Classifier, *, seed: int = 0) -> Classifier:
    """A classifier of the start's architecture, classes and preprocessing with random weights.

    The head's rows are random directions of one length, so that its first logits are neither flat nor sure.
    """
    with global_draws(seed, "untrained"):
        encoder = build_encoder(start.architecture)
        rows = functional.normalize(torch.randn_like(start.network.head.weight), dim=1)
    head = nn.Linear(rows.shape[1], rows.shape[0])
    with torch.no_grad():
        head.weight.copy_(_HEAD_LENGTH * rows)
        head.bias.zero_()
    network = Network(encoder, head, start.network.normalised)
    network.requires_grad_(True)
    return replace(
        start,
        network=network.eval(),
        logit_scale=_HEAD_LENGTH,
        source=f"untrained {start.source}",
        head="trained",
        alpha=None,
        parents=(),
        training={},
    )


def train_from_scratch(
    start: Classifier, suite: ShiftSuite, settings: FinetuneSettings, *, seed: int = 0, device: str = "cpu"
) -> Classifier:
    """Trains the start's architecture on the suite's reference alone, from random weights."""
    return finetune(untrained(start, seed=seed), suite, settings, seed=seed, device=device)
