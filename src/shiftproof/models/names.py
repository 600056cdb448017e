"""The errors for the name of a model that cannot be used, with hints at the name that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shiftproof.errors import InputError, nearest

SCHEMES = ("open_clip:", "hf-hub:", "local-dir:", "hf:")
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def random_weights_refused(name: str, tagged: Sequence[str]) -> InputError:
    """The error for a name without a tag where weights are needed; ``tagged`` are names of the model with a tag."""
    way_out = f"Name pretrained weights, e.g. {tagged[0]}" if tagged else "Name a model with weights"
    return InputError(
        f"the model {name!r} has random weights, since its name has no tag, and would score at chance. {way_out}, or "
        "add `random_weights=True` if you want random weights."
    )


def unknown_model(name: str) -> InputError:
    """The error for a name that is no model's, with a hint at what stands under that path, if anything does."""
    examples = (
        "Examples: tiny, open_clip:ViT-B-32/openai, hf-hub:ORG/NAME, local-dir:PATH, hf:ORG/NAME, or a classifier "
        "directory."
    )
    return InputError(f"unknown model {name!r}. {_hint(name) or nearest(name, ['tiny', *SCHEMES])} {examples}")


def _hint(name: str) -> str | None:
    """What the name of a path, or of a model on the hub, should have been; None if it looks like neither."""
    path = Path(name).expanduser()
    if path.is_dir():
        return _hint_at_directory(name, path)
    if path.is_file() or name.endswith(_WEIGHTS):
        return f"It is a file: put its architecture before it, as in open_clip:ViT-B-32/{name}."
    if name.count("/") == 1 and ":" not in name:
        return (
            f"No directory has this name; a model of the Hugging Face hub is named hf-hub:{name} if it is in "
            f"open_clip's format, and hf:{name} if it is in that of transformers."
        )
    return None


def _hint_at_directory(name: str, path: Path) -> str:
    if (path / "open_clip_config.json").is_file():
        return f"It is the directory of an open_clip model: write local-dir:{name}."
    if (path / "ensemble" / "classifier.json").is_file():
        return f"It is a run directory: name one of its classifiers, e.g. {path / 'ensemble'}."
    if (path / "config.json").is_file():
        return f"It is the directory of a transformers model: write hf:{name}."
    return "It is a directory without classifier.json or open_clip_config.json, so it holds no model."
