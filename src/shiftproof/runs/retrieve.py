"""Retrieval with a model of two towers: the pictures that fit a text, and the texts that fit a picture."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from shiftproof import progress
from shiftproof.data.formats.entries import NamedPicture
from shiftproof.data.formats.registry import FORMATS
from shiftproof.data.paths import require_known_kind
from shiftproof.data.streams import picture_batches
from shiftproof.errors import InputError
from shiftproof.evaluation.inference import BATCH_SIZE
from shiftproof.evaluation.retrieval import BestMatches
from shiftproof.models.clip import Clip, load_clip
from shiftproof.models.devices import resolve_device
from shiftproof.models.names import is_encoder
from shiftproof.storage import write_text


@dataclass(frozen=True)
class Match:
    """One result: ``item`` (a picture or a text) is the ``rank``-th best for ``query``; ``similarity`` is a cosine."""

    query: str
    rank: int
    item: str
    similarity: float


@dataclass(frozen=True)
class Matches:
    """The best matches of every query, among ``searched`` items; ``broken`` pictures could not be decoded."""

    matches: tuple[Match, ...]
    searched: int
    broken: tuple[str, ...] = ()


def retrieve_images(
    model: str,
    texts: Sequence[str],
    data: str,
    *,
    top: int = 10,
    random_weights: bool = False,
    device: str | torch.device = "auto",
) -> Matches:
    """Finds the ``top`` pictures of some data, such as folder:PATH, that fit each text best, by cosine similarity.

    The pictures are read batch by batch, so there may be any number of them. Those that cannot be decoded are skipped.
    Raises an InputError if there is no picture or no text, or if the model has no text tower.
    """
    kind, _, place = data.partition(":")
    require_known_kind("data name", data, kind, FORMATS)
    clip = _clip(model, random_weights, device)
    if not texts:
        raise InputError("there is no text to search for. Name one in `texts`.")
    queries = _text_embeddings(clip, texts)
    best, broken = BestMatches(len(texts), top), list[str]()
    for names, embeddings in _pictures(clip, FORMATS[kind].pictures(place, "test"), broken):
        best.add(queries @ embeddings.T, names)
        progress.report("search pictures", best.searched, best.searched)
    if not best.searched:
        raise InputError(f"{data} contains no image that can be read. Check the path.")
    return Matches(_ranked(texts, best), best.searched, tuple(broken))


def retrieve_texts(
    model: str,
    images: Sequence[Path],
    texts: Path,
    *,
    top: int = 10,
    random_weights: bool = False,
    device: str | torch.device = "auto",
) -> Matches:
    """Finds the ``top`` lines of a text file that fit each picture best; the file may have any number of lines.

    Raises an InputError for a picture that cannot be decoded, for a file that cannot be read or has no text, and for a
    model without a text tower.
    """
    clip = _clip(model, random_weights, device)
    broken: list[str] = []
    pictures = (NamedPicture(str(image), image) for image in images)
    encoded = list(_pictures(clip, pictures, broken))
    if broken or not encoded:
        raise InputError(broken[0] if broken else "there is no picture to search for. Name one in `images`.")
    queries = torch.cat([embeddings for _, embeddings in encoded])
    best = BestMatches(len(queries), top)
    for lines in _batches(_lines(texts)):
        best.add(queries @ _text_embeddings(clip, lines).T, lines)
    if not best.searched:
        raise InputError(f"{texts} contains no text. Write one on each line.")
    return Matches(_ranked([str(image) for image in images], best), best.searched)


def save_matches(matches: Matches, out: str | Path) -> Path:
    """Writes the matches to a CSV file with the columns ``query``, ``rank``, ``item`` and ``similarity``."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["query", "rank", "item", "similarity"])
    writer.writerows((m.query, m.rank, m.item, f"{m.similarity:.6g}") for m in matches.matches)
    return write_text(out, buffer.getvalue())


def _clip(model: str, random_weights: bool, device: str | torch.device) -> Clip:
    if is_encoder(model):
        raise InputError(
            f"{model!r} has no text tower, so it cannot compare pictures with texts. Name one that has, such as "
            "tiny or open_clip:ViT-B-32/openai."
        )
    clip = load_clip(model, random_weights=random_weights)
    clip.model.to(resolve_device(device))
    return clip


def _text_embeddings(clip: Clip, texts: Sequence[str]) -> Tensor:
    with torch.inference_mode():
        parts = [clip.encode_text(texts[i : i + BATCH_SIZE]) for i in range(0, len(texts), BATCH_SIZE)]
        return functional.normalize(torch.cat(parts).float(), dim=-1).cpu()


def _pictures(clip: Clip, pictures: Iterator[NamedPicture], broken: list[str]) -> Iterator[tuple[list[str], Tensor]]:
    """Yields names and (B, D) embeddings of the pictures that can be decoded; the errors of others go to ``broken``."""
    place = next(clip.model.parameters()).device
    for batch in picture_batches(pictures, clip.preprocessing, BATCH_SIZE):
        broken += batch.errors.values()
        names = [name for position, name in enumerate(batch.samples) if position not in batch.errors]
        if names:
            with torch.inference_mode():
                embeddings = clip.model.encode_image(batch.inputs.to(place))  # type: ignore[operator]
            yield names, functional.normalize(embeddings.float(), dim=-1).cpu()


def _lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            yield from (line.strip() for line in stream if line.strip())
    except FileNotFoundError as error:
        raise InputError(f"the file {file} does not exist. Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text ({error}). Save it as UTF-8.") from error


def _batches(lines: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(itertools.islice(lines, BATCH_SIZE)):
        yield batch


def _ranked(queries: Sequence[str], best: BestMatches) -> tuple[Match, ...]:
    return tuple(
        Match(query, rank, item, similarity)
        for query, row in zip(queries, best.rows, strict=True)
        for rank, (similarity, item) in enumerate(row, 1)
    )
