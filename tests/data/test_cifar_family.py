"""CIFAR and its shifts, read from arrays in their files, without running what a pickle might hold."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.miniatures import numbering, pixels_of_numbers, reader, share_right

import shiftproof as sp
from shiftproof.data import load_data
from shiftproof.data.families.cifar import CIFAR10_NAMES

LABELS = np.array([3, 0, 9, 9, 5])


def planes(labels: np.ndarray) -> np.ndarray:
    return pixels_of_numbers(labels.tolist()).transpose(0, 3, 1, 2).reshape(len(labels), -1)


def write_cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    for name in names:  # as Python 2 wrote them: byte strings as keys, protocol 2
        content = {b"data": planes(LABELS), b"labels": LABELS.tolist(), b"filenames": [b"a.png"] * len(LABELS)}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(CIFAR10_NAMES)}, protocol=2))


def right(images: sp.ImageSet) -> float:
    return share_right(reader(images.classes), images)


def test_cifar10_and_its_shifts_are_read(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    (tmp_path / "CIFAR-10.1").mkdir()
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_data.npy", pixels_of_numbers([4, 4, 1]))
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_labels.npy", np.array([4, 4, 1], dtype=np.int32))
    (tmp_path / "CIFAR-10.2").mkdir()
    np.savez(tmp_path / "CIFAR-10.2" / "cifar102_test.npz", images=pixels_of_numbers([7]), labels=np.array([7]))
    (tmp_path / "CIFAR-10-C").mkdir()
    np.save(tmp_path / "CIFAR-10-C" / "labels.npy", np.tile([2, 8], 5))
    for name in ("fog", "snow", "spatter"):
        np.save(tmp_path / "CIFAR-10-C" / f"{name}.npy", pixels_of_numbers([2, 8] * 5))
    suite = sp.load_suite(f"cifar10:{tmp_path}")
    assert list(suite.test_sets) == ["cifar10", "cifar10.1", "cifar10.2", "cifar10-c"]
    assert (len(suite.reference.train) + len(suite.reference.validation), len(suite.reference.test)) == (25, 5)
    assert {name: right(images) for name, images in suite.test_sets.items()} == dict.fromkeys(suite.test_sets, 1.0)
    in_order_of_appearance = numbering(suite.reference.test, [3, 0, 9, 5, 1, 2, 4, 6, 7, 8])
    assert share_right(in_order_of_appearance, suite.reference.test) < 1.0
    corrupted = suite.test_sets["cifar10-c"]
    assert len(corrupted) == 20
    assert (corrupted.clusters.kind, corrupted.clusters.count) == ("picture", 2)
    assert corrupted.groups is not None
    assert (corrupted.groups[0], corrupted.groups[-1], corrupted.ids[-1]) == ("snow-1", "fog-5", "fog/5/1")


def test_cifar100_has_its_fine_labels(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    names = [f"class_{k}" for k in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names, "coarse_label_names": ["a"]}))
    for part in ("train", "test"):
        content = {"data": planes(np.array([99, 4])), "fine_labels": [99, 4], "coarse_labels": [0, 0]}
        (folder / part).write_bytes(pickle.dumps(content))
    images = load_data(f"cifar100:{tmp_path}")
    assert (images.labels.tolist(), right(images)) == ([99, 4], 1.0)
    assert share_right(numbering(images, sorted(range(100), key=str)), images) < 1.0  # class_10 comes before class_2


class _Malice:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_a_pickle_cannot_run_anything(tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    harm = tmp_path / "harm"
    batch = tmp_path / "cifar-10-batches-py" / "test_batch"
    batch.write_bytes(pickle.dumps({"data": _Malice(harm), "labels": [0]}))
    with pytest.raises(sp.InputError, match=r"test_batch is not a file of this data set \(it refers to posix.system\)"):
        load_data(f"cifar10:{tmp_path}")
    (tmp_path / "CIFAR-10.2").mkdir()
    np.save(tmp_path / "CIFAR-10.2" / "cifar102_test.npy", np.array({"images": _Malice(harm)}), allow_pickle=True)
    with pytest.raises(sp.InputError, match="refers to posix.system"):
        load_data(f"cifar10.2:{tmp_path}")
    (tmp_path / "CIFAR-10.1").mkdir()
    np.save(tmp_path / "CIFAR-10.1" / "cifar10.1_v6_data.npy", np.array([_Malice(harm)]), allow_pickle=True)
    with pytest.raises(sp.InputError, match="cannot be read as an array"):
        load_data(f"cifar10.1:{tmp_path}")
    assert not harm.exists()


def test_the_older_file_of_cifar10_2_is_read(tmp_path: Path) -> None:
    content = {"images": pixels_of_numbers([6, 1]), "labels": np.array([6, 1])}
    np.save(tmp_path / "cifar102_test.npy", np.array(content), allow_pickle=True)
    assert right(load_data(f"cifar10.2:{tmp_path}")) == 1.0


def test_files_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(sp.InputError, match=r"has no cifar-10-batches-py/batches.meta"):
        load_data(f"cifar10:{tmp_path}")
    np.save(tmp_path / "labels.npy", np.tile([2, 8], 5))
    np.save(tmp_path / "fog.npy", pixels_of_numbers([2, 8]))
    with pytest.raises(sp.InputError, match=r"fog.npy and labels.npy .* have 2 and 10 entries"):
        load_data(f"cifar10-c:{tmp_path}")
    np.save(tmp_path / "fog.npy", pixels_of_numbers([2, 8] * 5))
    np.save(tmp_path / "labels.npy", np.tile([2, 11], 5))
    with pytest.raises(sp.InputError, match="labels .* range from 2 to 11; 10 are known"):
        load_data(f"cifar10-c:{tmp_path}")
