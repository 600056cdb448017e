"""An overwritten classifier directory holds the old classifier or the new one, whenever the process is killed."""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftproof as sp
from shiftproof.models import directories
from shiftproof.models.classifier import Classifier


class Killed(BaseException):
    """What stands for the end of a process: nothing that it would have cleared away is cleared away."""


def rebuilt(zero: Classifier) -> Classifier:
    """A classifier with a text tower in its directory."""
    weights = {name: 2 * tensor if "head" in name else tensor for name, tensor in zero.state_dict().items()}
    return replace(zero.with_weights(weights), head="rebuilt", text={"tower": torch.ones(2)})


@pytest.fixture
def pair(tiny: sp.models.Clip) -> tuple[Classifier, Classifier]:
    zero = sp.zero_shot_classifier(tiny, sp.ClassSpace.from_ids(["lemon", "pear"]))
    return zero, rebuilt(zero)


@pytest.mark.parametrize("with_text_first", [False, True])
@pytest.mark.parametrize("survived", range(8))
def test_a_process_that_is_killed_leaves_the_old_classifier_or_the_new_one(
    pair: tuple[Classifier, Classifier],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    with_text_first: bool,
    survived: int,
) -> None:
    old, new = reversed(pair) if with_text_first else pair
    sp.save_classifier(old, tmp_path / "kept")
    renames = 0
    rename, delete = os.replace, directories.shutil.rmtree

    def killing(source: Any, target: Any) -> None:
        nonlocal renames
        if renames == survived:
            raise Killed
        renames += 1
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killing)
        patched.setattr(directories.shutil, "rmtree", lambda *a, **k: None if renames == survived else delete(*a, **k))
        with contextlib.suppress(Killed):
            sp.save_classifier(new, tmp_path / "kept", overwrite=True)
    found = sp.load_classifier(tmp_path / "kept")
    assert sp.models.fingerprint(found) in {sp.models.fingerprint(old), sp.models.fingerprint(new)}
    assert found.head in ("zero-shot", "rebuilt") and (found.text is not None) == (found.head == "rebuilt")
    sp.save_classifier(new, tmp_path / "kept", overwrite=True)
    assert sp.models.fingerprint(sp.load_classifier(tmp_path / "kept")) == sp.models.fingerprint(new)
    files = {"classifier.json", "model.safetensors", *(["text_tower.safetensors"] if new.text else [])}
    assert {path.name for path in (tmp_path / "kept").iterdir()} == files


def test_a_full_disk_costs_no_earlier_classifier(
    pair: tuple[Classifier, Classifier], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = pair
    sp.save_classifier(old, tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directories, "write_state_dict", full)
    with pytest.raises(OSError, match="No space left"):
        sp.save_classifier(new, tmp_path, overwrite=True)
    assert sp.models.fingerprint(sp.load_classifier(tmp_path)) == sp.models.fingerprint(old)
    assert {path.name for path in tmp_path.iterdir()} == {"classifier.json", "model.safetensors"}
