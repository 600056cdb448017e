"""Images with captions, for contrastive pretraining: from your own data, or drawn from the emoji."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from shiftproof.data.decoding import Conversions, decode
from shiftproof.data.emoji.drawings import RENDITIONS, concepts, sprites
from shiftproof.data.emoji.views import ViewGeometry, compose, draw_backgrounds, draw_placements
from shiftproof.data.formats.hf import hf_captions
from shiftproof.data.formats.wds import wds_captions
from shiftproof.data.loading import Preprocessing, random_resized_crop, resize, to_unit_range
from shiftproof.data.paths import require_folder, require_known_kind, require_table
from shiftproof.data.pictures import LEFTOVER, SkippedFiles, find_pictures, is_leftover
from shiftproof.data.readable import require_files
from shiftproof.data.reading import PictureReader
from shiftproof.data.sources import Source
from shiftproof.errors import InputError, require_name
from shiftproof.storage import expanded, read_rows

_CROP_SCALE = (0.5, 1.0)
_GENERIC_CAPTIONS = (
    "{}",
    "a {}",
    "a photo of a {}",
    "a picture of a {}",
    "an image of a {}",
    "a photo of the {}",
    "a bad photo of a {}",
    "a photo of one {}",
    "a close-up photo of a {}",
    "a rendition of a {}",
    "a good photo of the {}",
    "a cropped photo of a {}",
    "itap of a {}",
    "art of the {}",
)
_STYLED_CAPTIONS = {
    "colour": ("a colour drawing of a {}", "a cartoon {}", "a colourful emoji of a {}"),
    "sketch": ("a line sketch of a {}", "a sketch of a {}", "an outline drawing of a {}"),
    "painting": ("a painting of a {}", "a flat painting of the {}", "a {} without outlines"),
    "monochrome": ("a black and white photo of a {}", "a black icon of a {}", "a monochrome emoji of a {}"),
}
_BACKGROUND_CAPTIONS = {"white": "", "plain": " on a plain background", "busy": " on a busy background"}


class CaptionedSet(ABC):
    """Images that each have one or more captions; a batch is drawn with an explicit generator."""

    name: str
    # Describes, for the model card, what a batch that is not for training contains.
    held_out: str
    # The image files, or parts of larger files, if the set consists of them.
    paths: tuple[Source, ...] = ()

    @abstractmethod
    def __len__(self) -> int: ...

    def digest(self) -> str:
        """Text that distinguishes this set from another one of the same name; the pixels are not read."""
        return str(len(self))

    def require_readable(self) -> None:
        """Raises an InputError unless all files exist and the first of them can be decoded."""
        require_files(self.paths, self.name)
        for path in self.paths[:1]:
            decode(path)

    @abstractmethod
    def batch(
        self, positions: Sequence[int], preprocessing: Preprocessing, generator: Generator, train: bool
    ) -> tuple[Tensor, list[str]]:
        """(B, 3, size, size) images in [0, 1] and one caption for each; crops are random only if ``train``."""


class CaptionedFiles(CaptionedSet):
    """Image files with their captions; for training, one caption and one crop of each are drawn at random.

    Raises an InputError if there is no entry.
    """

    def __init__(self, name: str, entries: Mapping[Source, Sequence[str]]) -> None:
        if not entries:
            raise InputError(f"{name} contains no image with a caption. Check the path and the column names.")
        self.name = name
        self.held_out = "the training files themselves, uncropped, each with its first caption"
        self.paths = tuple(entries)
        self.captions = tuple(tuple(captions) for captions in entries.values())
        self._conversions = Conversions(name)
        self._read = PictureReader.of(self.paths, self._conversions)

    def __len__(self) -> int:
        return len(self.paths)

    def digest(self) -> str:
        """A digest of the files' names and their captions."""
        records = zip(self.paths, self.captions, strict=True)
        text = "\0".join("\0".join([path.name, *captions]) for path, captions in records)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def batch(
        self, positions: Sequence[int], preprocessing: Preprocessing, generator: Generator, train: bool
    ) -> tuple[Tensor, list[str]]:
        pixels, captions = [], []
        for position in positions:
            image, choices = self._read(position), self.captions[position]
            if train:
                pixels.append(random_resized_crop(image, preprocessing, _CROP_SCALE, generator))
                captions.append(choices[int(torch.randint(len(choices), (), generator=generator))])
            else:
                pixels.append(resize(image, preprocessing))
                captions.append(choices[0])
        if not train:  # training reads the files in random order; the measurement at its end, all of them
            self._conversions.warn()
        return to_unit_range(pixels), captions


class EmojiCaptions(CaptionedSet):
    """Every emoji concept, drawn as a new, varied view with a new caption at each visit, as images on the web vary.

    If a concept's sketch, painting and monochrome are withheld, only its colour drawing is shown.
    """

    name = "emoji-captions"
    held_out = "one new view of every concept with its caption; withheld renditions are not among them"
    _geometry = ViewGeometry(scale=(0.4, 1.0), degrees=25, spill=0.2)
    _rendition_weights = (0.25, 0.25, 0.25, 0.25)
    _background_weights = (0.5, 0.2, 0.3)
    _styled_share = 0.4
    _full_stop_share = 0.5

    def __len__(self) -> int:
        return len(concepts())

    def batch(
        self, positions: Sequence[int], preprocessing: Preprocessing, generator: Generator, train: bool
    ) -> tuple[Tensor, list[str]]:
        count, size = len(positions), preprocessing.size
        chosen = [concepts()[position] for position in positions]
        renditions = _weighted(self._rendition_weights, count, generator)
        renditions[torch.tensor([concept.withheld for concept in chosen])] = 0
        kinds = list(_BACKGROUND_CAPTIONS)
        background = _weighted(self._background_weights, count, generator)
        canvas = torch.empty(count, 3, size, size)
        for i, kind in enumerate(kinds):
            where = background == i
            canvas[where] = draw_backgrounds(kind, int(where.sum()), size, generator)
        drawings = torch.tensor(sprites()[list(positions), renditions.numpy()])
        images, _ = compose(
            drawings.permute(0, 3, 1, 2).float() / 255,
            draw_placements(count, self._geometry, generator),
            canvas,
        )
        picks = torch.rand(count, 3, generator=generator).tolist()
        captions = []
        for i, (concept, (styled, pick, stop)) in enumerate(zip(chosen, picks, strict=True)):
            templates: tuple[str, ...] = _GENERIC_CAPTIONS
            ending = ""
            if styled < self._styled_share:
                templates = _STYLED_CAPTIONS[RENDITIONS[renditions[i]]]
                ending = _BACKGROUND_CAPTIONS[kinds[background[i]]]
            ending += "." if stop < self._full_stop_share else ""
            captions.append(templates[int(pick * len(templates))].format(concept.name) + ending)
        return images, captions


def load_captioned_set(spec: str) -> CaptionedSet:
    """Loads images with captions by their data name.

    The name is ``csv:PATH`` (a file with the columns ``filepath`` and ``caption``), ``folder:PATH`` (each image has its
    captions in a ``.txt`` file of the same name), ``wds:PATH`` (tar shards with pairs such as ``0.jpg`` and ``0.txt``),
    ``hf:NAME`` or ``hf:PATH`` (a column with captions) or ``emoji-captions``. Raises an InputError if the name is
    unknown, if the data cannot be read or if no image has a caption.
    """
    require_name("spec", spec, "csv:PATH")
    if spec == EmojiCaptions.name:
        return EmojiCaptions()
    kind, _, path = spec.partition(":")
    require_known_kind("captioned data", spec, kind, [*_READERS, EmojiCaptions.name])
    return CaptionedFiles(spec, _READERS[kind](path))


def _from_csv(place: str) -> dict[Source, list[str]]:
    """Reads one caption from every row; rows with the same file give one image several captions."""
    path = expanded(place)
    entries: dict[Source, list[str]] = {}
    require_table(path)
    skipped = SkippedFiles()
    for _, fields in read_rows(path, ("filepath", "caption"), multiline=("caption",)):
        if is_leftover(fields["filepath"]):
            skipped.add(LEFTOVER, fields["filepath"])
        else:
            image = Path(os.path.normpath(path.parent / expanded(fields["filepath"])))
            entries.setdefault(image, []).append(fields["caption"])
    skipped.warn(f"csv:{path}")
    return entries


def _from_folder(place: str) -> dict[Source, list[str]]:
    """Reads the captions of every ``name.jpg`` from ``name.txt`` beside it, one per line."""
    path = expanded(place)
    require_folder(path, "Check the path after 'folder:'.")
    entries: dict[Source, list[str]] = {}
    skipped = SkippedFiles()
    images = find_pictures(path, skipped, companions=frozenset({".txt"}))
    skipped.warn(f"folder:{path}")
    for image in images:
        text = image.with_suffix(".txt")
        if not text.is_file():
            raise InputError(f"{image} has no captions. Write them to {text}, one per line.")
        try:
            lines = text.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{text} is not UTF-8 text ({error}). Save it as UTF-8.") from error
        if captions := [line.strip() for line in lines if line.strip()]:
            entries[image] = captions
    return entries


_READERS: Mapping[str, Callable[[str], Mapping[Source, Sequence[str]]]] = {
    "csv": _from_csv,
    "folder": _from_folder,
    "wds": lambda address: dict(wds_captions(address)),
    "hf": lambda address: dict(hf_captions(address)),
}


def _weighted(weights: Sequence[float], count: int, generator: Generator) -> Tensor:
    return torch.multinomial(torch.tensor(weights), count, replacement=True, generator=generator)
