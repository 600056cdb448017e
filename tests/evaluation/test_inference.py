"""Running a classifier over a set: the device is chosen where none is named."""

from __future__ import annotations

import numpy as np

import shiftproof as sp


def test_batches_and_networks_choose_the_device_themselves() -> None:
    images = sp.load_data("emoji").subset(range(3))
    zero = sp.zero_shot_classifier(sp.load_clip("tiny"), images.classes)
    [logits] = sp.evaluation.predict_batches(zero, images)
    assert np.array_equal(logits, sp.predict(zero, images).logits)
    assert next(zero.network_on().parameters()).device.type in {"cpu", "cuda"}
