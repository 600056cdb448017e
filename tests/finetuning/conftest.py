"""Fixtures for fine-tuning."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
from support.recipes import PROMPTS, Seen, Trained, some, two_steps, watch

import shiftproof as sp
from shiftproof.models import text_towers


@pytest.fixture(scope="session")
def few() -> sp.ShiftSuite:
    """A dozen emoji: two views each to train on, one in every other set."""
    whole = sp.load_suite("emoji-development-1")
    classes = sp.ClassSpace(whole.classes.ids[:12], whole.classes.names[:12])
    train, validation, sketch = (
        images.of_classes(classes)
        for images in (whole.reference.train, whole.reference.validation, whole.shifts[0].data)
    )
    held_out = some(validation, range(1))
    reference = sp.data.Reference("colour", some(train, range(2)), held_out, some(validation, range(1, 2)))
    return sp.ShiftSuite("few", classes, reference, (sp.data.Shift("sketch", "natural", some(sketch, range(1))),))


@pytest.fixture(scope="session")
def zero(tiny: sp.models.Clip, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.zero_shot_classifier(tiny, few.classes, PROMPTS)


@pytest.fixture(scope="session")
def tuned_by(zero: sp.Classifier, few: sp.ShiftSuite) -> Trained:
    """What a recipe makes in two steps with the seed 0; trained once for all that look at it."""
    return functools.cache(lambda recipe: sp.finetune(zero, few, two_steps(recipe=recipe)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    return watch(monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _loaded_once() -> Iterator[None]:
    """A text tower is asked for again and again."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_towers, "load_clip", functools.cache(sp.load_clip))
        yield


@pytest.fixture(scope="session")
def flyp(zero: sp.Classifier, few: sp.ShiftSuite) -> sp.Classifier:
    return sp.finetune(zero, few, two_steps(recipe="flyp", lr=3e-3, epochs=2))
