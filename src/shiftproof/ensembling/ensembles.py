"""The weight-space ensemble of two classifiers."""

from __future__ import annotations

from shiftproof.models.classifier import Classifier, fingerprint, require_same_task
from shiftproof.weights import interpolate_weights


def wise_ft(zero_shot: Classifier, fine_tuned: Classifier, alpha: float = 0.5) -> Classifier:
    """The classifier with the weights (1 - alpha) theta_0 + alpha theta_1 (WiSE-FT, Eq. 1), encoder and head.

    alpha 0 is ``zero_shot``, 1 is ``fine_tuned``; 0.5 needs no tuning. Raises an IncompatibleWeightsError where the two
    differ in classes, preprocessing or architecture.
    """
    require_same_task(zero_shot, fine_tuned)
    parents = tuple(
        {"role": role, "fingerprint": fingerprint(parent), "source": parent.source}
        for role, parent in (("zero_shot", zero_shot), ("fine_tuned", fine_tuned))
    )
    return zero_shot.with_weights(
        interpolate_weights(zero_shot.state_dict(), fine_tuned.state_dict(), alpha),
        head="interpolated",
        alpha=alpha,
        parents=parents,
        training={},
    )
