"""Names in words for WordNet ids, by which ImageNet's folders are called."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from shiftproof.storage import packaged_path, read_rows

_WNID = re.compile(r"n\d{8}")


def in_words(class_id: str) -> str | None:
    """The name of a class whose id is a WordNet id, such as n01440764, and None for any other id.

    The 1,000 classes of ImageNet have the names of OpenAI CLIP, made distinct, and other ids the first word that
    WordNet has for them, as timm stores them.

    >>> in_words("n01440764"), in_words("n00007846"), in_words("lemon")
    ('tench', 'person', None)
    """
    if not _WNID.fullmatch(class_id):
        return None
    return _imagenet_names().get(class_id) or _first_lemmas().get(class_id)


@functools.cache
def _imagenet_names() -> Mapping[str, str]:
    rows = read_rows(packaged_path("shiftproof", "assets", "imagenet.csv"), ("wnid", "name"))
    return {row.fields["wnid"]: row.fields["name"] for row in rows}


@functools.cache
def _first_lemmas() -> Mapping[str, str]:
    from timm.data import ImageNetInfo

    lemmas: Mapping[str, str] = ImageNetInfo("imagenet-22k").label_descriptions(as_dict=True)
    return {wnid: words.split(",")[0] for wnid, words in lemmas.items()}
