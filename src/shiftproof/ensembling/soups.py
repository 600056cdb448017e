"""Soups: one classifier with the averaged weights of several that were fine-tuned from the same start."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shiftproof.data.batches import decoded_once
from shiftproof.data.sets import ImageSet, require_set
from shiftproof.ensembling.batch_norm import reestimate_batch_norm, require_batch_norm
from shiftproof.ensembling.greedy import SoupTrial, greedy_members, members_of
from shiftproof.ensembling.heads import TextTowers, with_combined_weights
from shiftproof.errors import refuse_path, require_at_least
from shiftproof.evaluation.inference import predict
from shiftproof.evaluation.metrics import accuracy
from shiftproof.models.classifier import Classifier, require_classifier, require_same_task
from shiftproof.models.identity import (
    fingerprint,
    has_fingerprint,
    is_first_form,
    parent_entry,
    recorded_starts,
)
from shiftproof.weights.arithmetic import average_weights, model_stock


@dataclass(frozen=True)
class SoupRecord:
    """How a greedy soup was made: the fingerprints of the candidates as given, and the trials as they took place.

    A soup of one member, the best candidate, is an ordinary outcome. ``accuracy`` is a fraction.

    >>> trials = greedy_members([0.7, 0.8], lambda members: 0.75)
    >>> record = SoupRecord(("a", "b"), trials)
    >>> record.members, record.accuracy, record.is_best_single
    ((1,), 0.8, True)
    """

    candidates: tuple[str, ...]
    trials: tuple[SoupTrial, ...]

    @property
    def members(self) -> tuple[int, ...]:
        """The candidates that were taken, in the order in which they were tried."""
        return members_of(self.trials)

    @property
    def accuracy(self) -> float:
        """The validation accuracy of the soup, a fraction."""
        return [trial.soup for trial in self.trials if trial.taken][-1]

    @property
    def is_best_single(self) -> bool:
        """Whether the best candidate is the only member."""
        return len(self.members) == 1


@dataclass(frozen=True)
class GreedySoup:
    """A greedy soup as a classifier, and the record of how it was made."""

    classifier: Classifier
    record: SoupRecord


def uniform_soup(
    classifiers: Sequence[Classifier],
    *,
    batch_norm_images: ImageSet | None = None,
    device: str | torch.device = "auto",
) -> Classifier:
    """Returns the classifier with the mean of the weights of all members.

    This is the uniform soup (Wortsman et al., "Model soups", 2022, arXiv 2203.05482, sec. 2). If a fine-tuned text
    tower wrote the head of a member, the text towers are averaged and their mean writes the head.

    The statistics of batch norm are averaged like all other entries, unless ``batch_norm_images`` are given (the
    training images): then those of a soup of several members are re-estimated on these on ``device``, as
    ``reestimate_batch_norm`` does. A soup of one member is no average, and keeps its statistics.

    Raises an IncompatibleWeightsError if members differ in classes, preprocessing or architecture, and an InputError
    if there is no member, if a text tower is missing, if text towers wrote only some of the heads, or if there is no
    batch norm to re-estimate. Warns if members are known to come from different starts, because the mean of such
    weights does not work as a model.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> soup = uniform_soup([zero, zero])
    >>> soup.head, [parent["role"] for parent in soup.parents]
    ('averaged', ['member', 'member'])
    """
    _require_ingredients(classifiers, 1, batch_norm_images=batch_norm_images)
    soup = _mean(classifiers, TextTowers.of(classifiers, device="cpu"), range(len(classifiers)))
    return _with_statistics(soup, batch_norm_images, device)


def greedy_soup(
    classifiers: Sequence[Classifier],
    validation: ImageSet,
    *,
    batch_norm_images: ImageSet | None = None,
    device: str | torch.device = "auto",
    precision: str = "float32",
) -> GreedySoup:
    """Returns the soup that adds a candidate only if the accuracy on ``validation`` does not fall, with its record.

    This is Recipe 1 of "Model soups" (Wortsman et al. 2022, arXiv 2203.05482). ``validation`` must contain only images
    that no candidate was trained on. ``device`` is where the soups are scored; "auto" means the GPU if there is one,
    and the CPU otherwise. ``precision`` is that in which the encoder is scored, as in ``predict``. Heads, errors and
    warnings are as in ``uniform_soup``, and so are the statistics of batch norm, with which every soup is scored.

    >>> from shiftproof import load_clip, load_suite, zero_shot_classifier
    >>> suite = load_suite("emoji")
    >>> zero = zero_shot_classifier(load_clip("tiny"), suite.classes)
    >>> greedy_soup([zero, zero], suite.reference.validation.subset(range(40))).record.members
    (0, 1)
    """
    require_set(validation, "validation")
    _require_ingredients(classifiers, 1, batch_norm_images=batch_norm_images)
    images, towers = decoded_once(validation, classifiers[0].preprocessing), TextTowers.of(classifiers, device=device)
    if batch_norm_images is not None:
        batch_norm_images = decoded_once(batch_norm_images, classifiers[0].preprocessing)

    def soup_of(members: Sequence[int]) -> Classifier:
        return _with_statistics(_mean(classifiers, towers, sorted(members)), batch_norm_images, device)

    def score(classifier: Classifier) -> float:
        predictions = predict(classifier, images, device=device, precision=precision)
        return accuracy(predictions.logits, predictions.labels)

    trials = greedy_members([score(classifier) for classifier in classifiers], lambda members: score(soup_of(members)))
    return GreedySoup(soup_of(members_of(trials)), SoupRecord(tuple(map(fingerprint, classifiers)), trials))


def model_stock_soup(zero_shot: Classifier, classifiers: Sequence[Classifier]) -> Classifier:
    """Returns the mean of the members, moved towards ``zero_shot`` entry by entry, as Model Stock computes it.

    The ratio follows from the angles between the members (Jang et al. 2024, arXiv 2403.19522; see
    ``weights.model_stock``). The method needs two or more members that were fine-tuned from ``zero_shot``, and no
    validation data. Heads, errors and warnings are as in ``uniform_soup``; text towers are combined by Model Stock too.

    >>> from shiftproof import ClassSpace, load_clip, zero_shot_classifier
    >>> zero = zero_shot_classifier(load_clip("tiny"), ClassSpace.from_ids(["lemon", "pear"]))
    >>> [parent["role"] for parent in model_stock_soup(zero, [zero, zero]).parents]
    ['zero_shot', 'member', 'member']
    """
    require_classifier(zero_shot, "zero_shot")
    _require_ingredients(classifiers, 2, zero_shot)
    towers = TextTowers.of((zero_shot, *classifiers), device="cpu")
    return with_combined_weights(
        zero_shot,
        model_stock(zero_shot.state_dict(), [classifier.state_dict() for classifier in classifiers]),
        towers.rebuild(lambda texts: model_stock(texts[0], texts[1:])) if towers else None,
        head="averaged",
        alpha=None,
        parents=(parent_entry("zero_shot", zero_shot), *(parent_entry("member", member) for member in classifiers)),
        training={},
    )


def _mean(classifiers: Sequence[Classifier], towers: TextTowers | None, members: Sequence[int]) -> Classifier:
    """Returns the mean of some of the classifiers; ``towers`` holds the text towers of all, in the same order."""
    chosen = [classifiers[i] for i in members]
    rebuilt = None
    if towers is not None:
        same_as = members[0] if len(members) == 1 else None
        rebuilt = towers.rebuild(lambda texts: average_weights([texts[i] for i in members]), same_as)
    return with_combined_weights(
        chosen[0],
        average_weights([classifier.state_dict() for classifier in chosen]),
        rebuilt,
        head="averaged",
        alpha=None,
        parents=tuple(parent_entry("member", classifier) for classifier in chosen),
        training={},
    )


def _with_statistics(soup: Classifier, images: ImageSet | None, device: str | torch.device) -> Classifier:
    """Returns a soup with batch-norm statistics re-estimated on the images, unless it has a single member."""
    if images is None or len(soup.parents) == 1:
        return soup
    return reestimate_batch_norm(soup, images, device=device)


def _require_ingredients(
    classifiers: Sequence[Classifier],
    least: int,
    zero_shot: Classifier | None = None,
    *,
    batch_norm_images: ImageSet | None = None,
) -> None:
    refuse_path("classifiers", classifiers, "a list of classifiers")
    require_at_least("the number of classifiers in a soup", len(classifiers), least)
    first = classifiers[0] if zero_shot is None else zero_shot
    for classifier in classifiers:
        require_same_task(first, classifier)
    if batch_norm_images is not None:
        require_batch_norm(first)
    starts = _distinct_starts(classifiers, zero_shot)
    if len(starts) > 1:
        fingerprints = ", ".join(sorted(start[:12] for start in starts))
        warnings.warn(
            f"the classifiers were fine-tuned from {len(starts)} different starts (fingerprints {fingerprints}). "
            "Only the weights of models that were fine-tuned from the same start can be averaged: use one start.",
            stacklevel=3,
        )


def _distinct_starts(classifiers: Sequence[Classifier], zero_shot: Classifier | None) -> set[str]:
    """Returns the fingerprints of the starts that are known to differ.

    The first form of a fingerprint cannot be compared with the present one, so only starts whose fingerprints have the
    same form count as different.
    """
    starts = {start["fingerprint"] for classifier in classifiers for start in recorded_starts(classifier)}
    if zero_shot is not None and starts:
        others = {start for start in starts if not has_fingerprint(zero_shot, start)}
        return {fingerprint(zero_shot), *others}
    in_first_form = {start for start in starts if is_first_form(start)}
    return max(in_first_form, starts - in_first_form, key=len)
