"""How the predictions on a public set are scored: which classes compete, which count as one answer, which metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Float = TypeVar("Float", bound=np.floating)
PLAIN = "accuracy"  # the name of the protocol that changes no score
_REFUSED = -1e4  # the logit of a class that may not be answered: its probability is 0, and all logits stay finite


@dataclass(frozen=True)
class Projection:
    """The logits of K classes as a protocol scores them, still in K columns.

    ``answers`` (K,) is the class that each class counts as, or -1 if it may not be answered. If several classes count
    as one, the largest of their logits takes the column of that class. ``pooled`` removes the others of them, so that
    probabilities are over the answers; otherwise they are exchanged and probabilities are over all permitted classes.
    """

    answers: NDArray[np.int64]
    pooled: bool = False

    @property
    def choices(self) -> int:
        """The number of answers that the model chooses from."""
        return len(np.unique(self.answers[self.answers >= 0]))

    def apply(self, logits: NDArray[Float]) -> NDArray[Float]:
        """The (N, K) logits of a protocol from the (N, K) logits of a model, of the same dtype.

        >>> Projection(np.array([0, 0, -1])).apply(np.array([[1.0, 2.0, 9.0]])).tolist()
        [[2.0, 1.0, -10000.0]]
        """
        projected = np.array(logits)
        projected[:, self.answers < 0] = _REFUSED
        rows = np.arange(len(logits))
        for answer, count in zip(*np.unique(self.answers[self.answers >= 0], return_counts=True), strict=True):
            if count > 1:
                members = np.flatnonzero(self.answers == answer)
                best = members[logits[:, members].argmax(1)]
                projected[rows, best] = logits[:, answer]
                projected[:, answer] = logits[rows, best]
                if self.pooled:
                    projected[:, members[members != answer]] = _REFUSED
        return projected


@dataclass(frozen=True)
class Protocol:
    """The scoring rule of a public set.

    ``name`` is what results call it. ``answers`` are the classes, by id, that the set's labels can be; the classes of
    one entry count as one answer, which is labelled by the first of them. Without ``answers``, every class is one.
    ``others`` says whether the model may also answer a class outside of them, and ``pooled`` is that of
    ``Projection``. ``metrics`` name the set's metrics beside accuracy (``evaluation.set_metrics``).
    """

    name: str = PLAIN
    answers: tuple[tuple[str, ...], ...] = ()
    others: bool = True
    pooled: bool = False
    metrics: tuple[str, ...] = ()

    def projection(self, class_ids: Sequence[str]) -> Projection | None:
        """The projection of a model's logits, whose classes have these ids; None if it would change nothing.

        >>> Protocol(answers=(("pear",), ("lemon", "lime")), others=False).projection(["fig", "lemon", "lime"]).answers
        array([-1,  1,  1])
        """
        if not self.answers:
            return None
        position = {name: k for k, name in enumerate(class_ids)}
        answers = np.arange(len(class_ids)) if self.others else np.full(len(class_ids), -1)
        for ids in self.answers:
            members = [position[name] for name in ids if name in position]
            answers[members] = members[:1] * len(members)
        unchanged = np.array_equal(answers, np.arange(len(class_ids)))
        return None if unchanged else Projection(answers.astype(np.int64), self.pooled)


def protocol_of(class_ids: Sequence[str]) -> Protocol:
    """The protocol of a set that has only these classes: a model may answer all of its own, but they are noted.

    >>> protocol_of(["lemon"]).answers
    (('lemon',),)
    """
    return Protocol("over all classes", tuple((name,) for name in class_ids))
