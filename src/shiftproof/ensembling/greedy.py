"""Which candidates a greedy soup takes: a pure function of scores, for classifiers in memory and for files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shiftproof.errors import InputError, require_at_least


@dataclass(frozen=True)
class SoupTrial:
    """One candidate's turn: its place in the given order, its score, that of the soup with it, whether it was taken."""

    candidate: int
    alone: float
    soup: float
    taken: bool


def greedy_members(alone: Sequence[float], score: Callable[[tuple[int, ...]], float]) -> tuple[SoupTrial, ...]:
    """Greedy selection (Recipe 1 of "Model soups", 2022) over scores where more is better, e.g. accuracies.

    ``alone`` are the candidates' own scores, ``score(members)`` is that of a soup. The best candidate begins; each
    further one, in falling order and of equals the one given first, stays where the soup's score does not fall.

    >>> sizes = {(1, 2): 0.7, (1, 0): 0.9}
    >>> [(trial.candidate, trial.soup, trial.taken) for trial in greedy_members([0.5, 0.8, 0.6], sizes.get)]
    [(1, 0.8, True), (2, 0.7, False), (0, 0.9, True)]
    """
    require_at_least("the number of candidates", len(alone), 1)
    if broken := [i for i, value in enumerate(alone) if not math.isfinite(value)]:
        raise InputError(f"the scores of the candidates {broken} are not finite. Leave those candidates out.")
    first, *others = sorted(range(len(alone)), key=lambda i: -alone[i])
    members: tuple[int, ...] = (first,)
    best = alone[first]
    trials = [SoupTrial(first, best, best, True)]
    for candidate in others:
        reached = score((*members, candidate))
        taken = reached >= best
        if taken:
            members, best = (*members, candidate), reached
        trials.append(SoupTrial(candidate, alone[candidate], reached, taken))
    return tuple(trials)


def members_of(trials: Sequence[SoupTrial]) -> tuple[int, ...]:
    """The candidates that were taken, in the order in which they were tried."""
    return tuple(trial.candidate for trial in trials if trial.taken)
