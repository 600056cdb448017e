"""CIFAR-10 and CIFAR-100 with their shifts: arrays in files, which are read without running any code in them."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shiftproof.data.families.corruptions import MEAN, PARTS, SEVERITIES
from shiftproof.data.labels import ClassSpace
from shiftproof.data.protocols import Protocol
from shiftproof.data.sets import ImageSet, array_set
from shiftproof.errors import InputError, require_equal_length
from shiftproof.storage import packaged_path

CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_SIDE = 32
# What a pickle of arrays, as numpy of any version writes it, refers to. Anything else is refused.
_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads pickles of dictionaries, lists, texts, numbers and arrays; refuses all that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        if module.startswith("numpy.core"):
            module = module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module
        return super().find_class(module, name)


def read_cifar10(root: Path, part: str) -> ImageSet:
    """The "train" or "test" images of ``root/cifar-10-batches-py``, or of ``root`` if it is that folder."""
    folder = _folder(root, "cifar-10-batches-py", "batches.meta")
    names = tuple(_read_pickle(folder / "batches.meta", "label_names")["label_names"])
    batches = [f"data_batch_{number}" for number in range(1, 6)] if part == "train" else ["test_batch"]
    return _pickled(f"cifar10:{part}:{root}", [folder / batch for batch in batches], "labels", names)


def read_cifar100(root: Path, part: str) -> ImageSet:
    """The "train" or "test" images of ``root/cifar-100-python`` with their 100 fine labels."""
    folder = _folder(root, "cifar-100-python", "meta")
    names = tuple(_read_pickle(folder / "meta", "fine_label_names")["fine_label_names"])
    return _pickled(f"cifar100:{part}:{root}", [folder / part], "fine_labels", names)


def read_cifar10_1(root: Path, version: str) -> ImageSet:
    """CIFAR-10.1 in its version v6, of 2,000 images with balanced classes, or v4, of 2,021."""
    folder = _folder(root, "CIFAR-10.1", f"cifar10.1_{version}_data.npy")
    pixels, labels = (_read_array(folder / f"cifar10.1_{version}_{kind}.npy") for kind in ("data", "labels"))
    return _arrays(f"cifar10.1:{version}:{root}", pixels, labels, CIFAR10_NAMES)


def read_cifar10_2(root: Path, part: str) -> ImageSet:
    """The "test" or "train" images of CIFAR-10.2, from ``cifar102_PART.npz`` or the older ``.npy`` of that name."""
    name = f"cifar102_{part}"
    folder = _folder(root, "CIFAR-10.2", f"{name}.npz", f"{name}.npy")
    file = folder / f"{name}.npz"
    content = _read_archive(file) if file.is_file() else _read_pickled_array(folder / f"{name}.npy")
    return _arrays(f"cifar10.2:{part}:{root}", content["images"], content["labels"], CIFAR10_NAMES)


def read_cifar10_c(root: Path, part: str) -> ImageSet:
    """All images of CIFAR-10-C under a folder, in groups such as ``fog-3``; the parts are those of ImageNet-C."""
    return _corrupted("cifar10-c", _folder(root, "CIFAR-10-C", "labels.npy"), root, part, CIFAR10_NAMES)


def read_cifar100_c(root: Path, part: str) -> ImageSet:
    """All images of CIFAR-100-C under a folder, as in ``read_cifar10_c``."""
    names = packaged_path("shiftproof", "assets", "cifar100.txt").read_text(encoding="utf-8").split()
    return _corrupted("cifar100-c", _folder(root, "CIFAR-100-C", "labels.npy"), root, part, names)


def _corrupted(family: str, folder: Path, root: Path, part: str, names: Sequence[str]) -> ImageSet:
    """The corruptions of a folder, each a file of one array with the five severities one after the other."""
    present = [name for name in PARTS[part] if (folder / f"{name}.npy").is_file()]
    if not present:
        raise InputError(f"{folder} has none of the files of {family}, such as {PARTS[part][0]}.npy. Check the path.")
    arrays = [_read_array(folder / f"{name}.npy") for name in present]
    labels = _read_array(folder / "labels.npy")
    for name, pixels in zip(present, arrays, strict=True):
        require_equal_length(f"{name}.npy and labels.npy in {folder}", pixels, labels)
    per_severity = len(labels) // len(SEVERITIES)
    if per_severity * len(SEVERITIES) != len(labels):
        raise InputError(f"{folder / 'labels.npy'} has {len(labels)} labels; five severities of one size are needed.")
    severities = [1 + i // per_severity for i in range(len(labels))]
    originals = [str(i % per_severity) for i in range(len(labels))]
    images = _arrays(f"{family}:{part}:{root}", _Stack(arrays), np.tile(labels, len(present)), names)
    return replace(
        images,
        ids=tuple(f"{name}/{s}/{o}" for name in present for s, o in zip(severities, originals, strict=True)),
        groups=tuple(f"{name}-{severity}" for name in present for severity in severities),
        sources=tuple(originals * len(present)),
        protocol=Protocol(family, metrics=(MEAN,)),
    )


class _Stack:
    """Several arrays one after the other, without a copy of them in memory."""

    def __init__(self, arrays: Sequence[NDArray[np.uint8]]) -> None:
        self._arrays = arrays
        self._ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        number = int(np.searchsorted(self._ends, i, side="right"))
        return np.asarray(self._arrays[number][i - (self._ends[number - 1] if number else 0)])


def _arrays(
    name: str, pixels: NDArray[np.uint8] | _Stack, labels: NDArray[np.integer], names: Sequence[str]
) -> ImageSet:
    """A set of N images from (N, 32, 32, 3) uint8 pixels and their (N,) labels."""
    require_equal_length(f"the images and labels of {name}", pixels, labels)
    shape, kind = pixels[0].shape, pixels[0].dtype
    if shape != (_SIDE, _SIDE, 3) or kind != np.uint8:
        raise InputError(f"the images of {name} are {shape} of {kind}; they must be (32, 32, 3) of uint8.")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise InputError(f"the labels of {name} range from {labels.min()} to {labels.max()}; {len(names)} are known.")
    ids = [str(i) for i in range(len(labels))]
    images = array_set(
        name, ClassSpace.from_ids(names), ids, labels.astype(np.int64), lambda: np.empty(0, dtype=np.uint8)
    )
    return replace(images, read=lambda i: np.array(pixels[i]))


def _pickled(name: str, files: Sequence[Path], labels: str, names: Sequence[str]) -> ImageSet:
    """The images of pickled batches, whose rows are a red, a green and a blue plane of 32 x 32 values."""
    batches = [_read_pickle(file, "data", labels) for file in files]
    rows = np.concatenate([np.asarray(batch["data"], dtype=np.uint8) for batch in batches])
    if rows.ndim != 2 or rows.shape[1] != 3 * _SIDE * _SIDE:
        raise InputError(f"the data of {files[0]} have the shape {rows.shape}; rows of 3,072 values are needed.")
    pixels = np.ascontiguousarray(rows.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1))
    return _arrays(name, pixels, np.concatenate([np.asarray(batch[labels]) for batch in batches]), names)


def _folder(root: Path, name: str, *files: str) -> Path:
    """The folder that has one of the files: ``root/name`` or ``root``; raises an InputError otherwise."""
    for folder in (root / name, root):
        if any((folder / file).is_file() for file in files):
            return folder
    raise InputError(f"{root} has no {name}/{files[0]}. Unpack the data there, or name the folder that holds {name}.")


def _read_pickle(file: Path, *entries: str) -> Mapping[str, Any]:
    """A pickled dictionary of lists and arrays with the given entries; raises an InputError that names the file."""
    if not file.is_file():
        raise InputError(f"the file {file} does not exist. Unpack the data again.")
    with file.open("rb") as stream:
        return _unpickled(stream, file, entries)


def _unpickled(stream: BinaryIO, file: Path, entries: Sequence[str]) -> Mapping[str, Any]:
    try:
        content = _ArrayUnpickler(stream, encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise InputError(f"{file} is not a file of this data set ({error}). Download it again.") from error
    if isinstance(content, np.ndarray) and content.shape == ():
        content = content.item()
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__}, not the entries of this data set.")
    # Python 2 wrote texts as bytes; a file that Python 3 has copied may have bytes as keys.
    named = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
    if lacking := [name for name in entries if name not in named]:
        raise InputError(f"{file} has no entry {lacking[0]!r}; it is not a file of this data set.")
    return named


def _read_array(file: Path) -> NDArray[Any]:
    """An array whose pixels stay in the file until they are read; an array of objects is refused."""
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)  # type: ignore[no-any-return]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{file} cannot be read as an array ({error}). Download it again.") from error


def _read_archive(file: Path) -> Mapping[str, Any]:
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in ("images", "labels")}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{file} cannot be read as arrays 'images' and 'labels' ({error}).") from error


def _read_pickled_array(file: Path) -> Mapping[str, Any]:
    """The dictionary in an ``.npy`` file of one object, read by the same rules as other pickles."""
    content = io.BytesIO(file.read_bytes())
    try:
        np.lib.format.read_magic(content)
        np.lib.format.read_array_header_1_0(content)
    except ValueError as error:
        raise InputError(f"{file} is no .npy file ({error}). Download it again.") from error
    return _unpickled(content, file, ("images", "labels"))
