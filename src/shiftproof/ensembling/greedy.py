"""The candidates that a greedy soup takes: a pure function of scores, for classifiers in memory and for files."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shiftproof.errors import InputError, require_at_least


@dataclass(frozen=True)
class SoupTrial:
    """One trial: the candidate's place in the given order, its score, the soup's with it, and whether it was taken."""

    candidate: int
    alone: float
    soup: float
    taken: bool


def greedy_members(alone: Sequence[float], score: Callable[[tuple[int, ...]], float]) -> tuple[SoupTrial, ...]:
    """Selects the members of a greedy soup by scores of which higher is better, such as accuracies.

    This is Recipe 1 of "Model soups" (Wortsman et al. 2022, arXiv 2203.05482). ``alone`` are the scores of the
    candidates, and ``score(members)`` returns that of a soup. The soup starts with the best candidate. The others are
    tried in falling order, equal ones in the given order, and each stays if the soup's score does not fall. Raises an
    InputError if there is no candidate, or if the score of one is not finite.

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
