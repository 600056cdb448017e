"""Weights of open_clip models in local files, read as every other checkpoint is."""

from __future__ import annotations

from torch import nn

from shiftproof.errors import InputError
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
