"""The errors for the name of a model that cannot be used, with hints at the name that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from shiftproof.errors import InputError, nearest
from shiftproof.storage import expanded

SCHEMES = ("open_clip:", "hf-hub:", "local-dir:", "hf:")
# Models without a text tower.
ENCODER_SCHEMES = ("timm:", "torchvision:")
ENCODER_NAMES = ("lite0",)
_WEIGHTS_OF = " with weights "
_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def is_encoder(name: str) -> bool:
    """Whether a name is that of a model without a text tower.

    >>> is_encoder("timm:resnet18"), is_encoder("tiny")
    (True, False)
    """
    name, _ = split_weights(name)
    return name.startswith(ENCODER_SCHEMES) or name in ENCODER_NAMES


def with_weights(name: str, file: str | Path) -> str:
    """The name of a model whose weights are those in a local file.

    >>> with_weights("open_clip:ViT-B-32/openai", "/tuned.pt")
    'open_clip:ViT-B-32/openai with weights /tuned.pt'
    """
    return f"{name}{_WEIGHTS_OF}{expanded(file).absolute()}"


def split_weights(name: str) -> tuple[str, str | None]:
    """Splits a name of ``with_weights`` into that of the model and the file, which is None for any other name.

    >>> split_weights("open_clip:ViT-B-32/openai with weights /tuned.pt"), split_weights("tiny")
    (('open_clip:ViT-B-32/openai', '/tuned.pt'), ('tiny', None))
    """
    model, separator, file = name.partition(_WEIGHTS_OF)
    return model, file if separator else None


def short_name(name: str) -> str:
    """A model's name without the folders of local paths, which mean nothing on another machine.

    >>> short_name("local-dir:/home/me/clip"), short_name("open_clip:ViT-B-32/openai with weights /home/me/tuned.pt")
    ('local-dir:clip', 'open_clip:ViT-B-32/openai with weights tuned.pt')
    """
    model, file = split_weights(name)
    scheme, colon, place = model.partition(":")
    if scheme == "local-dir" or (scheme == "hf" and Path(place).expanduser().is_dir()):
        place = Path(place).name
    elif scheme == "open_clip":
        architecture, slash, tag = place.partition("/")
        place = f"{architecture}{slash}{Path(tag).name}"
    return f"{scheme}{colon}{place}" + ("" if file is None else f"{_WEIGHTS_OF}{Path(file).name}")


def architecture_and_weights(name: str) -> tuple[str, str]:
    """The architecture and the weights in a model's name; one of them is the whole name where it has no parts.

    >>> architecture_and_weights("open_clip:ViT-B-32/openai"), architecture_and_weights("hf-hub:org/clip")
    (('ViT-B-32', 'openai'), ('hf-hub:org/clip', 'none'))
    """
    model, file = split_weights(short_name(name))
    scheme, _, rest = model.partition(":")
    separator = {"open_clip": "/", "timm": ".", "torchvision": "."}.get(scheme)
    architecture, _, tag = rest.partition(separator) if separator else (model, "", "")
    return architecture, "-".join(part for part in (tag, Path(file or "").stem) if part) or "none"


def is_untagged(name: str) -> bool:
    """Whether a model's name says nothing of its weights, so that they are random.

    >>> is_untagged("open_clip:ViT-B-32"), is_untagged("timm:resnet18.a1_in1k")
    (True, False)
    """
    scheme, _, rest = name.partition(":")
    return {"open_clip": "/", "timm": ".", "torchvision": "."}.get(scheme, "") not in rest


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
        "Examples: tiny, open_clip:ViT-B-32/openai, hf-hub:ORG/NAME, local-dir:PATH, hf:ORG/NAME, timm:NAME.TAG, "
        "torchvision:NAME.WEIGHTS, lite0, or a classifier directory."
    )
    known = ["tiny", *ENCODER_NAMES, *SCHEMES, *ENCODER_SCHEMES]
    return InputError(f"unknown model {name!r}. {_hint(name) or nearest(name, known)} {examples}")


def _hint(name: str) -> str | None:
    """What the name of a path, or of a model on the hub, should have been; None if it looks like neither."""
    path = expanded(name)
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
