"""Zero-shot models of Hugging Face transformers: CLIP, SigLIP and SigLIP 2, with the methods of an open_clip model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from shiftproof.data.loading import Preprocessing
from shiftproof.errors import InputError, listed
from shiftproof.models.processors import preprocessing_of, processor_config
from shiftproof.storage import expanded, read_json, write_json
from shiftproof.weights.checkpoints import open_checkpoint, write_state_dict

SCHEME = "hf:"
# By the model type in config.json: the classes of the model and of its image tower.
_CLASSES = {
    "clip": ("CLIPModel", "CLIPVisionModel", "CLIPVisionConfig"),
    "siglip": ("SiglipModel", "SiglipVisionModel", "SiglipVisionConfig"),
    "siglip2": ("Siglip2Model", "Siglip2VisionModel", "Siglip2VisionConfig"),
}
# The settings of an image tower that decide what it computes; others differ between versions of transformers.
_VISION_SETTINGS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels", "image_size"),
    *("patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "vision_use_head", "num_patches"),
)


@dataclass(frozen=True)
class LoadedModel:
    """A model as read from transformers: the fields of a ``Clip`` without its name."""

    model: DualEncoder = field(repr=False, compare=False)
    tokenizer: Tokenizer = field(repr=False, compare=False)
    preprocessing: Preprocessing
    architecture: Mapping[str, Any]
    context_length: int


class ImageTower(nn.Module):
    """(B, 3, size, size) images to (B, D) embeddings; its entries have the names that transformers gives them."""

    def __init__(self, vision_model: nn.Module, visual_projection: nn.Module | None) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.visual_projection = visual_projection
        side = int(vision_model.config.patch_size)  # type: ignore[union-attr, arg-type]
        self.patch_size = (side, side)
        self.num_prefix_tokens = int(visual_projection is not None)  # CLIP has a class token, SigLIP has none
        # SigLIP 2 takes images that are cut into patches, of any aspect ratio.
        self._takes_patches = hasattr(vision_model.config, "num_patches")

    def forward(self, images: Tensor) -> Tensor:
        inputs = _patches(images, self.patch_size[0]) if self._takes_patches else {"pixel_values": images}
        pooled = self.vision_model(**inputs).pooler_output
        return pooled if self.visual_projection is None else self.visual_projection(pooled)  # type: ignore[no-any-return]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass."""
        _set_grad_checkpointing(self.vision_model, enable)


class TextTower(nn.Module):
    """(T, L) tokens to (T, D) embeddings; its entries have the names that transformers gives them.

    No padding is masked: CLIP's tokens attend only to earlier ones, and SigLIP was trained without a mask.
    """

    def __init__(self, text_model: nn.Module, text_projection: nn.Module | None) -> None:
        super().__init__()
        self.text_model = text_model
        self.text_projection = text_projection

    def forward(self, tokens: Tensor) -> Tensor:
        pooled = self.text_model(input_ids=tokens).pooler_output
        return pooled if self.text_projection is None else self.text_projection(pooled)  # type: ignore[no-any-return]


class DualEncoder(nn.Module):
    """A CLIP or SigLIP model of transformers with the methods and attributes of an open_clip model.

    ``logit_scale`` is the natural logarithm of the scale. ``logit_bias`` is that of SigLIP, and None for CLIP.
    ``config`` is the configuration of transformers.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config = model.config
        self.visual = ImageTower(model.vision_model, getattr(model, "visual_projection", None))
        self.text = TextTower(model.text_model, getattr(model, "text_projection", None))
        self.logit_scale = model.logit_scale
        self.logit_bias = getattr(model, "logit_bias", None)

    def encode_image(self, images: Tensor, normalize: bool = False) -> Tensor:
        """The (B, D) embeddings of images, of length 1 where ``normalize`` is set."""
        features = self.visual(images)
        return functional.normalize(features, dim=-1) if normalize else features

    def encode_text(self, tokens: Tensor, normalize: bool = False) -> Tensor:
        """The (T, D) embeddings of texts, of length 1 where ``normalize`` is set."""
        features = self.text(tokens)
        return functional.normalize(features, dim=-1) if normalize else features

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the activations of both towers in the backward pass."""
        self.visual.set_grad_checkpointing(enable)
        _set_grad_checkpointing(self.text.text_model, enable)


@dataclass(frozen=True)
class Tokenizer:
    """Texts to (T, L) tokens, truncated and padded to the context length, as the model was trained.

    With ``lowercase``, texts are put into lower case first, which SigLIP was trained with.
    """

    tokenizer: Any
    context_length: int
    lowercase: bool

    def __call__(self, texts: Sequence[str]) -> Tensor:
        settings = {"padding": "max_length", "max_length": self.context_length, "truncation": True}
        tokens: Tensor = self.tokenizer(self._cleaned(texts), return_tensors="pt", **settings)["input_ids"]
        return tokens

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has before it is truncated, with the tokens that begin and end it."""
        return [len(tokens) for tokens in self.tokenizer(self._cleaned(texts), verbose=False)["input_ids"]]

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the tokenizer's files into a folder."""
        self.tokenizer.save_pretrained(str(folder))

    def _cleaned(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() if self.lowercase else text for text in texts]


def load_transformers(name: str) -> LoadedModel:
    """Loads ``hf:PATH`` or ``hf:ORG/NAME``, in evaluation mode on the CPU, with weights in float32.

    Raises an InputError where transformers is missing, where a file is missing or damaged, where weights are missing,
    and for a model of another kind.
    """
    transformers = _transformers()
    place = name.removeprefix(SCHEME)
    if (folder := expanded(place)).is_dir():
        open_checkpoint(folder)  # this explains damaged files and pointers of Git LFS
        place = str(folder)
    # transformers draws initial weights from the global state before it reads the trained ones.
    with torch.random.fork_rng(devices=[]), quiet_transformers(), _explained(name):
        config = transformers.AutoConfig.from_pretrained(place)
        _require_supported(name, config)
        model_class = getattr(transformers, _CLASSES[config.model_type][0])
        model, report = model_class.from_pretrained(place, config=config, dtype=torch.float32, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        processor = transformers.AutoImageProcessor.from_pretrained(place).to_dict()
    if missing := sorted(report["missing_keys"]):
        raise InputError(f"the weights of {name!r} lack {listed(missing, 3)}. Download the model again.")
    _require_tokenizer(name, tokenizer, place, config.text_config.vocab_size)
    context = int(config.text_config.max_position_embeddings)
    lowercase = config.model_type != "clip" and getattr(tokenizer, "do_lower_case", True)
    return LoadedModel(
        DualEncoder(model.eval()),
        Tokenizer(tokenizer, context, lowercase),
        preprocessing_of(name, processor, config),
        _architecture(config),
        context,
    )


def build_image_tower(architecture: Mapping[str, Any]) -> nn.Module:
    """Builds the image tower that an ``architecture`` describes, without loading its weights."""
    transformers = _transformers()
    _, model_class, config_class = (getattr(transformers, name) for name in _CLASSES[architecture["name"]])
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        model = model_class(config_class(**architecture["vision_cfg"]))
        width, embedding = model.config.hidden_size, architecture["embed_dim"]
        projection = nn.Linear(width, embedding, bias=False) if architecture["name"] == "clip" else None
    return ImageTower(model.eval(), projection)


def save_transformers(
    model: DualEncoder, tokenizer: Tokenizer, preprocessing: Preprocessing, folder: str | Path
) -> Path:
    """Writes a directory that transformers loads, and ``hf:PATH`` here: config, weights, processor and tokenizer.

    Raises an InputError for a preprocessing that no image processor of transformers describes.
    """
    folder = Path(folder)
    processor = processor_config(model.config.model_type, preprocessing, model.visual.patch_size[0])
    folder.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", processor)
    write_state_dict(transformers_names(model.state_dict()), folder / "model.safetensors")
    return folder


def transformers_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of a ``DualEncoder`` under the names that they have in a checkpoint of transformers.

    >>> list(transformers_names({"visual.vision_model.post_layernorm.bias": torch.zeros(1)}))
    ['vision_model.post_layernorm.bias']
    """
    return {name.removeprefix("visual.").removeprefix("text."): tensor for name, tensor in tensors.items()}


def _architecture(config: Any) -> dict[str, Any]:
    vision = config.vision_config
    return {
        "library": "transformers",
        "name": config.model_type,
        "embed_dim": config.projection_dim if config.model_type == "clip" else vision.hidden_size,
        "vision_cfg": {key: getattr(vision, key) for key in _VISION_SETTINGS if hasattr(vision, key)},
    }


def _patches(images: Tensor, side: int) -> dict[str, Tensor]:
    """Images cut into patches as SigLIP 2 takes them: (B, N, side * side * 3), none of which is padding."""
    batch, channels, height, width = images.shape
    rows, columns = height // side, width // side
    cut = images.reshape(batch, channels, rows, side, columns, side).permute(0, 2, 4, 3, 5, 1)
    return {
        "pixel_values": cut.reshape(batch, rows * columns, side * side * channels),
        "pixel_attention_mask": torch.ones(batch, rows * columns, dtype=torch.int32, device=images.device),
        "spatial_shapes": torch.tensor([[rows, columns]], device=images.device).expand(batch, 2),
    }


def _set_grad_checkpointing(model: Any, enable: bool) -> None:
    if enable:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _require_supported(name: str, config: Any) -> None:
    if config.model_type not in _CLASSES:
        raise InputError(
            f"{name!r} is a transformers model of the type {config.model_type!r}; a zero-shot model with an image and "
            f"a text tower must be of the type {listed(_CLASSES)}. Choose another model."
        )
    if not getattr(config.vision_config, "vision_use_head", True):
        raise InputError(f"the image tower of {name!r} does not pool its features. Choose another model.")
    if isinstance(config.vision_config.patch_size, list | tuple):
        raise InputError(
            f"{name!r} has patches of {config.vision_config.patch_size} pixels; they must be square. "
            "Choose another model."
        )


def _require_tokenizer(name: str, tokenizer: Any, place: str, vocabulary: int) -> None:
    """Raises an InputError where transformers has put another tokenizer in the place of the model's, without a word.

    Without its files, a tokenizer has a few special tokens only; without sentencepiece, SigLIP's does not remove
    punctuation.
    """
    if not vocabulary / 2 <= len(tokenizer) <= vocabulary:
        raise InputError(
            f"the tokenizer of {name!r} has {len(tokenizer)} tokens, and its text tower {vocabulary}. "
            "Add the files of the tokenizer, e.g. tokenizer.json."
        )
    file = Path(place) / "tokenizer_config.json"
    wanted = read_json(file).get("tokenizer_class") if file.is_file() else None
    if wanted == "SiglipTokenizer" and type(tokenizer).__name__ != wanted:
        raise InputError(
            f"the tokenizer of {name!r} needs the packages sentencepiece and protobuf. "
            "Install them with: pip install 'shiftproof[hf]'"
        )


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            "models named hf: need the package transformers. Install it with: pip install 'shiftproof[hf]'"
        ) from error
    return transformers


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns the errors of transformers for files that are missing or do not fit into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, OSError, ValueError, KeyError, ImportError) as error:
        raise InputError(
            f"the model {name!r} cannot be loaded ({error}). Check the name, the path and the network."
        ) from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences transformers, which logs every entry of a checkpoint that it does not use and shows progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
