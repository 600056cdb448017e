"""The study of networks that it trains itself: resumed, finished, and with the images that it takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.windows import FEW, nothing_changes, picture_suite, stamps, study_in, toy_set

import shiftproof as sp
from shiftproof.diagnosis.strong_edge import (
    MEASURES,
)
from shiftproof.runs import interventions as diagnosing
from shiftproof.runs.interventions import DiagnosisFile, run_strong_edge
from shiftproof.storage import locked

pytestmark = pytest.mark.slow

# Which images


@given(labels=st.lists(st.integers(0, 4), min_size=3, max_size=30), asked=st.integers(2, 30), seed=st.integers(0, 1000))
def test_images_are_spread_over_the_classes(labels: list[int], asked: int, seed: int) -> None:
    space = sp.ClassSpace.from_ids(["a", "b", "c", "d", "e"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosing, "load_data", lambda _: toy_set(labels, space))
        result = diagnosing._images(DiagnosisFile(data="x", images=asked, seed=seed))
        again = diagnosing._images(DiagnosisFile(data="x", images=asked, seed=seed))
    assert result.ids == again.ids == tuple(sorted(set(result.ids), key=int))
    assert len(result) == min(asked, len(labels))
    assert [labels[int(i)] for i in result.ids] == result.labels.tolist()
    every, taken = Counter(labels), Counter(result.labels.tolist())
    most = max(taken.values())
    # No class is passed over for another's further image, unless it has no more.
    assert all(taken[label] >= min(most - 1, every[label]) for label in every)


def test_another_seed_takes_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosing, "load_data", lambda _: toy_set([0] * 20 + [1] * 20))
    taken = {diagnosing._images(DiagnosisFile(data="x", images=10, seed=seed)).ids for seed in range(5)}
    assert len(taken) == 5
    with pytest.raises(sp.InputError, match="the number of images is 1"):
        DiagnosisFile(images=1)
    with pytest.raises(sp.InputError, match="unknown head 'owned'. Did you mean 'own'"):
        DiagnosisFile(head="owned")


# The study of networks of its own


MIXED = ("none", "cutmix", "smoothmix-square", "smoothmix-circle")
NETWORKS = [f"{start}-{mixing}" for start in ("scratch", "tuned") for mixing in MIXED]


def test_the_studys_reference_is_a_part_of_the_classes_in_several_draws(small: list[str]) -> None:
    suite = diagnosing._study_suite("emoji", 3)
    assert suite.classes.ids == ("lemon", "pear")
    drawn = [picture_suite("emoji", seed).reference.train for seed in (6, 7)]
    train = suite.reference.train
    assert (len(train), len(suite.reference.validation), len(suite.reference.test)) == (8, 2, 6)
    assert len(set(train.ids)) == 8
    expected = [part.read(i) for part in drawn for i in (0, 1, 4, 5)]
    assert all(np.array_equal(train.read(i), pixels) for i, pixels in enumerate(expected))
    assert not np.array_equal(train.read(0), train.read(4))
    assert train.labels.tolist() == [0, 0, 1, 1] * 2


class Stopped(Exception):  # noqa: N818
    """Someone has stopped the study."""


def stopped(*_: Any, **__: Any) -> Any:
    raise Stopped


@pytest.mark.long
def test_a_study_of_own_networks_writes_what_it_found(small: list[str], tmp_path: Path) -> None:
    study = run_strong_edge(DiagnosisFile(images=4, seed=1, device="cpu"), tmp_path, settings=FEW)
    assert small == list(study.models) == NETWORKS
    assert {path.name for path in tmp_path.iterdir()} == {
        *("strong_edge.json", "measurements.npz", "figures", "networks", ".lock")
    }
    assert study_in(tmp_path) == study
    assert set(study.kinds.values()) == {"cam"}
    assert list(dict.fromkeys((c.model, c.second) for c in study.contrasts)) == [
        (f"{start}-cutmix", f"{start}-{other}")
        for start in ("scratch", "tuned")
        for other in ("smoothmix-square", "smoothmix-circle", "none")
    ]
    for name in NETWORKS:
        training = sp.load_classifier(tmp_path / "networks" / name).training
        assert training["settings"]["mixing"] == name.partition("-")[2]
        assert training["settings"]["mixing_probability"] == (None if name.endswith("none") else 0.5)
        assert (training["seed"], training["settings"]["lr"]) == (1, 1e-3 if name.startswith("scratch") else 2e-3)
    for start in ("scratch", "tuned"):
        with Image.open(tmp_path / "figures" / f"strong-edge-{start}.png") as figure:
            assert figure.size[0] > 3 * figure.size[1]  # one example, six columns
            assert len(np.unique(np.asarray(figure.convert("L")))) > 50

    # Every number can be had again from the measures of every image, which no pickle is needed to read.
    with np.load(tmp_path / "measurements.npz", allow_pickle=False) as saved:
        assert set(saved["ids"].tolist()) <= set(diagnosing._study_suite("emoji", 1).reference.test.ids)
        assert saved["classes"].tolist() == [sample.partition("-")[0] for sample in saved["ids"].tolist()]
        assert Counter(saved["classes"].tolist()) == {"lemon": 2, "pear": 2}
        windows = [window.name for window in FEW.windows(with_masks=True)]
        names = {f"{model}|{window}|{name}" for model in NETWORKS for window in windows for name in MEASURES}
        names |= {f"{m}|clean|{name}" for m in NETWORKS for name in ("object_share", "width", "score", "correct")}
        assert set(saved.files) == {"ids", "classes", *names}
        for model, records in study.models.items():
            for window, record in records.items():
                for name, mean in record.means.items():
                    values = saved[f"{model}|{window}|{name}"]
                    assert (len(values), mean.n) == (4, np.isfinite(values).sum())
                    assert mean.value is None or mean.value == pytest.approx(np.nanmean(values), abs=1e-6)


@pytest.mark.long
def test_a_study_goes_on_where_it_was_stopped(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = DiagnosisFile(images=4, seed=1, device="cpu")
    monkeypatch.setattr(diagnosing, "window_figure", stopped)
    with pytest.raises(Stopped):
        run_strong_edge(asked, tmp_path, settings=FEW)
    assert (tmp_path / "measurements.npz").is_file()  # so late was that
    monkeypatch.setattr(diagnosing, "measure_windows", stopped)  # only trainings matter from here on

    def again(asked: DiagnosisFile, **how: Any) -> list[str]:
        small.clear()
        with pytest.raises(Stopped):
            run_strong_edge(asked, tmp_path, settings=FEW, **how)
        return list(small)

    networks = tmp_path / "networks"
    before = stamps(networks)
    assert again(asked) == []
    assert stamps(networks) == before
    # What is missing is trained; what is there of another seed is not taken for this one's.
    (networks / "tuned-cutmix" / "classifier.json").unlink()
    assert again(asked) == ["tuned-cutmix"]
    assert stamps(networks) == before
    with pytest.raises(sp.InputError, match="scratch-none holds a network that was trained with another seed"):
        run_strong_edge(replace(asked, seed=2), tmp_path, settings=FEW)
    assert stamps(networks) == before
    assert again(replace(asked, seed=2), overwrite=True) == NETWORKS
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "networks"}


@pytest.mark.parametrize("written", ["strong_edge.json", "backgrounds.json"])
def test_a_finished_diagnosis_is_kept_and_so_is_what_no_diagnosis_wrote(
    small: list[str], tmp_path: Path, written: str
) -> None:
    file = DiagnosisFile(images=4)
    (tmp_path / written).write_text("{}")
    with nothing_changes(tmp_path):
        with pytest.raises(sp.InputError, match="already holds a diagnosis.*`overwrite=True`"):
            run_strong_edge(file, tmp_path)
        with locked(tmp_path), pytest.raises(sp.InputError, match="in use by another shiftproof process"):
            run_strong_edge(file, tmp_path, overwrite=True)
    (tmp_path / "notes.txt").write_text("mine")
    with nothing_changes(tmp_path):
        for overwrite in (True, False):
            with pytest.raises(sp.InputError, match="already holds 'notes.txt', which no diagnosis wrote"):
                run_strong_edge(file, tmp_path, overwrite=overwrite)
    assert small == []
