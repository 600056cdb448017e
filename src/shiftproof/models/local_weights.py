"""Weights of open_clip models in local files, read as every other checkpoint is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from shiftproof.errors import InputError, listed
from shiftproof.weights.checkpoints import SUFFIXES, open_checkpoint, split_part, with_names_of


def local_path(architecture: str, tag: str | None) -> str | None:
    """Returns the local directory or file (``FILE`` or ``FILE:KEY``) that holds a model's weights, or None."""
    if architecture.startswith("local-dir:"):
        return architecture.removeprefix("local-dir:")
    return tag if tag and split_part(tag)[0].is_file() else None


def load_local_weights(model: nn.Module, path: str) -> None:
    """Loads the weights in a local file or directory into an open_clip model.

    The prefixes of wrappers are removed. A file with the names of another library is left to open_clip, which converts
    some. Raises an InputError if the file is damaged, is not what its name says, or has quantised weights, and a
    RuntimeError of torch if the weights do not fit.
    """
    import open_clip

    file, part = split_part(path)
    if file.is_file() and not file.name.endswith(SUFFIXES):  # such as the .npz files of big_vision
        open_clip.load_checkpoint(model, path)
        return
    wanted = model.state_dict()
    checkpoint = with_names_of(wanted.keys(), open_checkpoint(path))
    shapes = {name: tensor.shape for name, tensor in checkpoint.tensors.items()}
    if shapes == {name: tensor.shape for name, tensor in wanted.items()}:
        model.load_state_dict(dict(checkpoint.tensors))
    elif part is not None or len(checkpoint.shards) != 1:
        raise InputError(
            f"the weights in {path} do not fit the model: they have {len(shapes)} entries, and it has {len(wanted)}. "
            "Name the architecture that they were trained with."
        )
    else:
        (weights,) = checkpoint.shards
        open_clip.load_checkpoint(model, str(checkpoint.folder / weights))


_HEAD = re.compile(r"(?:^|\.)classification_head\.(weight|bias)$")


@dataclass(frozen=True)
class FittedWeights:
    """The entries of a weights file under a model's names, and the names that only one of the two has.

    ``reshaped`` are entries of the model that have another shape in the file; they are not in ``entries``.
    """

    path: str
    entries: Mapping[str, Tensor] = field(repr=False)
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    reshaped: tuple[str, ...]

    def refusal(self, name: str) -> InputError:
        """The error that lists what keeps the weights from being loaded into a model."""
        lists = {
            "The file lacks": self.missing,
            "The model lacks": self.unused,
            "Of another shape are": self.reshaped,
        }
        details = " ".join(f"{what} {listed(names)}." for what, names in lists.items() if names)
        return InputError(
            f"the weights in {self.path} do not fit {name!r}, of which {len(self.entries)} entries are in the file. "
            f"{details} Name the architecture that they were trained with."
        )

    def warn_of_unused(self, name: str) -> None:
        """Warns of the entries of the file that a model has no place for, apart from a classification head."""
        if unused := [entry for entry in self.unused if not _HEAD.search(entry)]:
            warnings.warn(
                f"{self.path} has entries that {name!r} does not have, which are not used: {listed(unused)}.",
                stacklevel=4,
            )


def fit_weights(path: str, wanted: Mapping[str, Tensor]) -> FittedWeights:
    """Reads a weights file and matches its names with those of a model, whose state dict is ``wanted``.

    Trainers wrap models: wise-ft writes ``image_encoder.model.visual.proj`` where open_clip writes ``visual.proj``.
    The prefix that is removed from the names of the file, or added to them, is the one with which most of them are the
    model's. Raises an InputError if the file is none of weights; a pickled model is refused, and never executed.
    """
    tensors = open_checkpoint(path).tensors
    removed, added = _best_prefixes(tensors, wanted)
    renamed = {added + name.removeprefix(removed): name for name in tensors if name.startswith(removed)}
    known = {name: tensors[renamed[name]] for name in wanted if name in renamed}
    reshaped = tuple(name for name, tensor in known.items() if tensor.shape != wanted[name].shape)
    used = {renamed[name] for name in known}
    return FittedWeights(
        path,
        {name: tensor for name, tensor in known.items() if name not in reshaped},
        tuple(name for name in wanted if name not in known),
        tuple(name for name in tensors if name not in used),
        reshaped,
    )


def head_in_file(path: str) -> tuple[Tensor, Tensor] | None:
    """The (K, D) weight and (K,) bias of the classification head in a file of wise-ft or model-soups, or None."""
    found = {match[1]: t for name, t in open_checkpoint(path).tensors.items() if (match := _HEAD.search(name))}
    if found.keys() != {"weight", "bias"}:
        return None
    return found["weight"].float(), found["bias"].float()


def _best_prefixes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> tuple[str, str]:
    """The prefix to remove from some names, and the one to add, with which most of the entries are wanted ones."""
    ending_alike: dict[str, list[str]] = {}
    for name in wanted:
        ending_alike.setdefault(name.rpartition(".")[2], []).append(name)
    candidates = {("", "")}
    for name in tensors:
        for other in ending_alike.get(name.rpartition(".")[2], ()):
            if name.endswith(f".{other}"):
                candidates.add((name.removesuffix(other), ""))
            elif other.endswith(f".{name}"):
                candidates.add(("", other.removesuffix(name)))

    def matches(prefixes: tuple[str, str]) -> tuple[int, int, int]:
        removed, added = prefixes
        names = {added + name.removeprefix(removed): name for name in tensors if name.startswith(removed)}
        alike = [tensors[names[name]].shape == tensor.shape for name, tensor in wanted.items() if name in names]
        return sum(alike), len(alike), -len(removed) - len(added)

    return max(sorted(candidates), key=matches)
